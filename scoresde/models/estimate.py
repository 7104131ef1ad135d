"""What a model says at (x_t, t): one estimate with three views, x_0, eps and score."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from scoresde.sde import Level


class Estimate(NamedTuple):
    """The denoiser's answer at one noise level; x0, eps and score are one thing (P11).

    x_t = alpha x0 + sigma eps and score = -eps/sigma, so x0 = E[x_0 | x_t] (Tweedie), eps = E[eps | x_t] and
    score = grad log p_t(x_t) for a perfect model. ``v``, if the network has learned variances, is P7's exponent per
    entry: 1 for the larger variance beta, 0 for beta~ (:meth:`scoresde.SDE.posterior_variance`).
    """

    x0: Tensor
    eps: Tensor
    level: Level
    v: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -eps / sigma."""
        return self.eps / -self.level.sigma
