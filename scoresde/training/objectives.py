"""Objectives: each maps a model and data to a loss per sample. Here what they share, and the two simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.random import randn
from scoresde.sde import Level
from scoresde.sde.tensors import flat
from scoresde.training.time_sampling import TimeSampling, refuse_state, resolve_time_sampling
from scoresde.training.weightings import Weighting, resolve_weighting


class Terms(NamedTuple):
    """What an objective finds for each sample, all ``(B,)``.

    Attributes:
        loss: what its mean is to be minimised.
        t: the time drawn.
        value: the loss at that time, without the weight of the draw, detached: its mean over the draws near a time is
            the loss of that noise level.
    """

    loss: Tensor
    t: Tensor
    value: Tensor


class Perturbed(NamedTuple):
    """x_t = alpha x_0 + sigma eps at a level, x_t and eps ``(B, *D)``."""

    x_t: Tensor
    eps: Tensor
    level: Level


class Objective(ABC):
    """``objective(model, x0, cond=None, generator=None)`` is a loss per sample ``(B,)``; its mean is minimised."""

    @abstractmethod
    def terms(self, model: Model, x0: Tensor, cond: Condition = None, generator=None) -> Terms:
        """The loss of data x0 ``(B, *D)`` and the times it was found at."""

    def __call__(self, model: Model, x0: Tensor, cond: Condition = None, generator=None) -> Tensor:
        """The loss ``(B,)`` of data x0 ``(B, *D)``; ``cond`` holds tensors ``(B, ...)`` that are the network's.

        All randomness comes from ``generator``, a torch.Generator or a list of them, one a sample.

        Raises:
            DTypeError, ShapeError: data that are not floating-point, or no sample.
        """
        return self.terms(model, x0, cond, generator).loss

    def state_dict(self) -> dict[str, Tensor]:
        """What the objective has learned on the way (its time sampling, if anything), for an exact resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`."""
        refuse_state(state)


class TimedObjective(Objective):
    """An objective that draws a time and noise for each sample.

    Args:
        time_sampling: a name in :data:`~scoresde.training.time_sampling.TIME_SAMPLINGS`, a
            :class:`~scoresde.training.time_sampling.TimeSampling`, or a number: one fixed time. The mean over uniform t does
            not depend on it (``"levels"`` and ``"loss-aware"`` average over discrete levels instead).
        t_min, t_max: ends; None takes the default for the SDE.
    """

    def __init__(
        self, time_sampling: str | float | TimeSampling, t_min: float | None = None, t_max: float | None = None
    ):
        self.time_sampling = resolve_time_sampling(time_sampling)
        self.t_min, self.t_max = t_min, t_max

    @abstractmethod
    def values(self, model: Model, x0: Tensor, at: Perturbed, cond, generator) -> Tensor:
        """The loss ``(B,)`` at the times drawn."""

    def terms(self, model, x0, cond=None, generator=None):
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            raise DTypeError("x0", getattr(x0, "dtype", type(x0).__name__), "a floating-point tensor (B, *D)")
        if x0.ndim == 0 or len(x0) == 0:
            raise ShapeError("x0", tuple(x0.shape), "(B, *D) with B >= 1")
        sde = model.sde
        t, weight = self.time_sampling.draw(len(x0), sde, self.t_min, self.t_max, generator, x0.device)
        level = sde.level_at(t, x0)
        eps = randn(x0.shape, generator, x0.device, x0.dtype)
        values = self.values(model, x0, Perturbed(level.alpha * x0 + level.sigma * eps, eps, level), cond, generator)
        if torch.is_grad_enabled():
            self.time_sampling.observe(t, values.detach())
        return Terms(weight * values, t, values.detach())

    def state_dict(self):
        return self.time_sampling.state_dict()

    def load_state_dict(self, state):
        self.time_sampling.load_state_dict(state)


class ScoreMatching(TimedObjective):
    """An objective lambda(t) l(theta; t) in which only the loss l at one noise level differs from its siblings.

    With w = lambda/sigma^2 all of them are stated for eps_theta = -sigma s_theta, and so that their means agree:
    denoising, implicit and sliced score matching have one expectation, and explicit score matching's is less by a
    constant. So they have one gradient, and their losses can be compared.

    Args:
        weighting: a name in :data:`~scoresde.training.weightings.WEIGHTINGS`, a
            :class:`~scoresde.training.weightings.Weighting`, or a function ``(model, t) -> w (B,)``.
        time_sampling: None takes the one that suits the weighting; see :class:`TimedObjective`.
        t_min, t_max: ends; None takes the default for the SDE.
    """

    def __init__(
        self,
        weighting: str | Weighting | Callable[[Model, Tensor], Tensor] = "simple",
        time_sampling: str | float | TimeSampling | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        self.weighting = resolve_weighting(weighting)
        super().__init__(self.weighting.time_sampling() if time_sampling is None else time_sampling, t_min, t_max)

    @abstractmethod
    def error(self, model: Model, at: Perturbed, cond, generator) -> Tensor:
        """l sigma^2 ``(B,)``: the loss of w = 1."""

    def values(self, model, x0, at, cond, generator):
        return self.weighting(model, at.level.t) * self.error(model, at, cond, generator)

    def __repr__(self):
        return f"{type(self).__name__}({self.weighting!r}, {self.time_sampling!r})"


class DenoisingScoreMatching(ScoreMatching):
    r"""Denoising score matching (S3, E6): lambda(t) |s_theta(x_t, t) - grad log p(x_t | x_0)|^2, t ~ U(t_min, t_max).

    As grad log p(x_t | x_0) = -eps/sigma, this is (lambda / sigma^2) |eps - eps_theta|^2, summed over the entries,
    whatever the network predicts. Source: Vincent (2011); Song & Ermon (2019); Song et al. (2021, eq. 7).

    Args:
        weighting: ``"simple"``, lambda = sigma^2 (P6, N2); ``"likelihood"``, lambda = g^2, half of which bounds the
            negative log-likelihood up to a constant (Song et al. 2021b, E12); ``"sigmoid"``, the same and more where
            there is much noise, which samples gain by; ``"min-snr"``; ``"edm"``;
            ``"theorem-1"``, the variational bound of DDIM's family (D4); or your own, see :class:`ScoreMatching`.
        time_sampling: ``"low-discrepancy"``, ``"uniform"``, ``"log-snr"`` (the importance sampling of the likelihood
            weighting), ``"log-normal"`` (EDM's), ``"levels"`` (those of a DDPM or an NCSN), ``"loss-aware"``, a
            :class:`~scoresde.training.time_sampling.TimeSampling` or a fixed time. None takes what suits the weighting.
        t_min, t_max: ends; None takes the default for the SDE.
    """

    def error(self, model, at, cond, generator):
        return flat(at.eps - model.estimate(at.x_t, at.level, cond).eps).square().sum(1)


class ExplicitScoreMatching(ScoreMatching):
    r"""Explicit score matching (S1): lambda(t) |s_theta(x_t, t) - grad log p_t(x_t)|^2, the yardstick of the others.

    Its mean under no_grad is the Fisher divergence of a model, weighted over the noise levels.

    Args:
        target: a model with the true score, such as ``GaussianMixture(...).model(sde)``, or a teacher. Under another
            SDE than the model's it is asked at equal log-SNR.
        weighting, time_sampling, t_min, t_max: as for :class:`DenoisingScoreMatching`.

    Raises:
        ArgumentError: a target that is not a model.
    """

    def __init__(
        self,
        target: Model,
        weighting: str | Weighting | Callable[[Model, Tensor], Tensor] = "simple",
        time_sampling: str | float | TimeSampling | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        if not isinstance(target, Model):
            raise ArgumentError("target", type(target).__name__, "a Model, such as GaussianMixture(...).model(sde)")
        super().__init__(weighting, time_sampling, t_min, t_max)
        self.target = target

    def error(self, model, at, cond, generator):
        target = self.target if self.target.sde is model.sde else self.target.with_sde(model.sde)
        with torch.no_grad():
            eps = target.estimate(at.x_t, at.level, cond).eps
        return flat(eps - model.estimate(at.x_t, at.level, cond).eps).square().sum(1)
