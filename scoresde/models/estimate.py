"""A model's estimate at (x_t, t): x_0, eps and score in one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from scoresde.sde import Level


class Unguided(NamedTuple):
    """The estimate before guidance, and the log-likelihood that guided it.

    Attributes:
        x0, eps: The unguided estimate, ``(B, *D)``.
        log_p: log p_t(y | x_t) ``(B,)`` in nats, up to a function of t that all samples share.
    """

    x0: Tensor
    eps: Tensor
    log_p: Tensor


class Estimate(NamedTuple):
    """The estimate of x_0, eps and score at one noise level (P11).

        x_t = alpha x0 + sigma eps,    score = -eps/sigma

    For a perfect model x0 = E[x_0 | x_t] (Tweedie), eps = E[eps | x_t] and score = grad log p_t(x_t).

    Attributes:
        x0, eps: Data and noise in x_t, ``(B, *D)``.
        level: The noise level.
        v: Exponent of P7 for each entry, ``(B, *D)``: 1 is the larger variance beta, 0 is beta~
            (:meth:`scoresde.SDE.posterior_variance`). None: the network has no learned variances.
        unguided: The estimate before guidance by an observation (:mod:`scoresde.guidance.observations`). None: the
            model is not guided, or its guidance stands for no likelihood.
    """

    x0: Tensor
    eps: Tensor
    level: Level
    v: Tensor | None = None
    unguided: Unguided | None = None

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -eps / sigma."""
        return self.eps / -self.level.sigma
