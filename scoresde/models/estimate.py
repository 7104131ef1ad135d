"""A model's estimate at (x_t, t): x_0, eps and score in one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError
from scoresde.sde import Level
from scoresde.sde.times import is_concrete


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
        """grad log p_t(x_t) = -eps / sigma.

        Raises:
            ArgumentError: sigma = 0, where eps does not determine it. Times on an accelerator are not checked.
        """
        sigma = self.level.sigma
        none = is_concrete(sigma) and not bool((sigma > 0).all()) if isinstance(sigma, Tensor) else not sigma > 0
        if none:
            raise ArgumentError("t", "a time where sigma = 0", "a time with noise, where eps determines the score")
        return self.eps / -sigma

    def __repr__(self) -> str:
        """Return what is estimated and at which level, without the numbers."""
        more = "".join(f", {name}" for name in ("v", "unguided") if getattr(self, name) is not None)
        of = f"{tuple(self.x0.shape)} {str(self.x0.dtype).removeprefix('torch.')}"
        return f"Estimate(x0, eps, score{more} of shape {of} at {self.level!r})"

    def to(self, dtype: torch.dtype) -> Estimate:
        """Return the estimate in another floating dtype."""
        unguided = self.unguided
        if unguided is not None:
            unguided = Unguided(unguided.x0.to(dtype), unguided.eps.to(dtype), unguided.log_p.to(dtype))
        v = None if self.v is None else self.v.to(dtype)
        return Estimate(self.x0.to(dtype), self.eps.to(dtype), self.level, v, unguided)
