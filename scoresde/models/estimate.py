"""What a model says at (x_t, t): one estimate with three views, x_0, eps and score."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from scoresde.sde import Level


class Unguided(NamedTuple):
    """What a guided model's estimate was before guidance, and the log p_t(y | x_t) that it was guided by.

    ``log_p`` ``(B,)`` is known up to a function of t that is the same for all samples.
    """

    x0: Tensor
    eps: Tensor
    log_p: Tensor


class Estimate(NamedTuple):
    """The denoiser's answer at one noise level; x0, eps and score are one thing (P11).

    x_t = alpha x0 + sigma eps and score = -eps/sigma, so x0 = E[x_0 | x_t] (Tweedie), eps = E[eps | x_t] and
    score = grad log p_t(x_t) for a perfect model. ``v``, if the network has learned variances, is P7's exponent per
    entry: 1 for the larger variance beta, 0 for beta~ (:meth:`scoresde.SDE.posterior_variance`). ``unguided`` is there
    for a model guided by an observation (:mod:`scoresde.guidance.observations`).
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
