"""Objectives: each maps a model and data to a loss per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from scoresde.errors import UnknownNameError
from scoresde.models import Model
from scoresde.sampling.flow import flat
from scoresde.sampling.grids import time_range
from scoresde.sde import SDE
from scoresde.sde.times import randn
from scoresde.training.times import TimeSampling, resolve_time_sampling

#: lambda(t) sigma(t)^-2, the weight of |eps - eps_theta|^2, by the name of the weighting
WEIGHTINGS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "simple": lambda sde, t: torch.ones_like(t),  # lambda = sigma^2: L_simple (P6), NCSN's (N2)
    "likelihood": lambda sde, t: 2 * (sde.log_sigma_rate(t) - sde.log_alpha_rate(t)),  # lambda = g^2
}


class Objective(ABC):
    """``objective(model, x0, cond=None, generator=None)`` is a loss per sample ``(B,)``; its mean is minimised."""

    @abstractmethod
    def __call__(self, model: Model, x0: Tensor, cond: Mapping[str, Tensor] | None = None, generator=None) -> Tensor:
        """The loss ``(B,)`` of data x0 ``(B, *D)``; all randomness comes from the generator."""


class DenoisingScoreMatching(Objective):
    r"""Denoising score matching (S3, E6): lambda(t) |s_theta(x_t, t) - grad log p(x_t | x_0)|^2, t ~ U(t_min, t_max).

    As grad log p(x_t | x_0) = -eps/sigma, this is (lambda / sigma^2) |eps - eps_theta|^2, summed over the entries,
    whatever the network predicts.

    Args:
        weighting: ``"simple"``, lambda = sigma^2 (P6, N2), or ``"likelihood"``, lambda = g^2, half of which bounds
            the negative log-likelihood up to a constant (Song et al. 2021b, E12).
        time_sampling: ``"low-discrepancy"``, ``"uniform"``, ``"log-snr"`` (the importance sampling of the likelihood
            weighting), or a :class:`~scoresde.training.times.TimeSampling`. The mean does not depend on it.
        t_min, t_max: ends; None takes the default for the SDE.
    """

    def __init__(
        self,
        weighting: str = "simple",
        time_sampling: str | TimeSampling = "low-discrepancy",
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting", weighting, WEIGHTINGS)
        self.weighting, self.time_sampling = weighting, resolve_time_sampling(time_sampling)
        self.t_min, self.t_max = t_min, t_max

    def __call__(self, model, x0, cond=None, generator=None):
        sde = model.sde
        t, weight = self.time_sampling.draw(
            len(x0), sde, *time_range(sde, self.t_min, self.t_max), generator, x0.device
        )
        level = sde.level_at(t, x0)
        eps = randn(x0.shape, generator, x0.device, x0.dtype)
        x_t = level.alpha * x0 + level.sigma * eps
        error = flat(eps - model.estimate(x_t, level, cond).eps).square().sum(1)
        return WEIGHTINGS[self.weighting](sde, t) * weight * error

    def __repr__(self):
        return f"DenoisingScoreMatching({self.weighting!r}, {self.time_sampling!r})"
