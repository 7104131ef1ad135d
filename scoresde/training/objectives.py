"""Objectives: each maps a model and data to a loss per sample.

This file has their base, and denoising and explicit score matching.

Symbols: x_t = alpha x_0 + sigma eps, s the score and eps_theta = -sigma s_theta its estimate as noise, w the weight of
|eps - eps_theta|^2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.models import Model
from scoresde.models.conditions import ESTIMATE, Condition
from scoresde.random import Generators, rand, randn
from scoresde.sde import Level
from scoresde.sde.tensors import flat
from scoresde.sde.times import is_concrete
from scoresde.training.named_time_samplings import resolve_time_sampling
from scoresde.training.time_sampling import Draws, TimeSampling, refuse_state
from scoresde.training.weightings import WeightFunction, Weighting, resolve_weighting

SELF_CONDITIONED = 0.5  # share of samples that see an estimate of x0


class Terms(NamedTuple):
    """What an objective finds for each sample, all ``(B,)``.

    Attributes:
        loss: loss, whose mean is minimised.
        t: time drawn.
        value: loss at that time without the weight of the draw, detached. Its mean over the draws near a time is the
            loss of that noise level.
    """

    loss: Tensor
    t: Tensor
    value: Tensor


class Perturbed(NamedTuple):
    """x_t = alpha x_0 + sigma eps at a noise level, x_t and eps ``(B, *D)``.

    ``observed`` ``(B, *D)`` is True where x_0 is known. None: everywhere.
    """

    x_t: Tensor
    eps: Tensor
    level: Level
    observed: Tensor | None = None

    def square_of(self, error: Tensor) -> Tensor:
        """Return the squared length of the observed part of an error, ``(B,)``."""
        known = error if self.observed is None else torch.where(self.observed, error, 0.0)
        return flat(known).square().sum(1)


class Objective(ABC):
    """A loss per sample ``(B,)``, whose mean is minimised.

    It is called as ``objective(model, x0, cond=None, generator=None)``.
    """

    @abstractmethod
    def terms(
        self,
        model: Model,
        x0: Tensor,
        cond: Condition = None,
        generator: Generators = None,
        observed: Tensor | None = None,
    ) -> Terms:
        """Return the loss of data x0 ``(B, *D)``, and the times drawn."""

    def __call__(
        self,
        model: Model,
        x0: Tensor,
        cond: Condition = None,
        generator: Generators = None,
        observed: Tensor | None = None,
    ) -> Tensor:
        """Return the loss ``(B,)`` of data x0 ``(B, *D)``.

        Args:
            model: Model to train.
            x0: Data in model units, floating point.
            cond: Tensors ``(B, ...)`` for the network, by name. None: no condition.
            generator: Source of all randomness: one generator, or a list of them, one a sample.
            observed: True where x0 is known, ``(B, *D)``; the loss is over these entries. Elsewhere x0 is any finite
                number, such as the mean. For denoising and explicit score matching. None: everywhere.

        Raises:
            DTypeError: data that are not floating point.
            ShapeError: an empty batch, or ``observed`` of another shape.
            ArgumentError: ``observed`` for another objective.
        """
        mask = {} if observed is None else {"observed": observed}  # a user's objective need not know it
        return self.terms(model, x0, cond, generator, **mask).loss

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the time sampling has learned, for an exact resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a :meth:`state_dict`."""
        refuse_state(state)


class TimedObjective(Objective):
    """An objective that draws a time and noise for each sample.

    Subclasses are frozen dataclasses with these fields. Names become the objects that they stand for. The settings
    never change; what a time sampling learns from the losses is in ``draws``.

    Attributes:
        time_sampling: a name in :data:`~scoresde.training.named_time_samplings.TIME_SAMPLINGS`, a
            :class:`~scoresde.training.time_sampling.TimeSampling`, or a number, one fixed time. The mean over uniform t
            does not depend on it; ``"levels"`` and ``"loss-aware"`` average over discrete levels instead.
        t_min, t_max: ends of the times. None: those of the SDE.
        draws: the draws of one training.
    """

    time_sampling: str | float | TimeSampling | None
    t_min: float | None
    t_max: float | None
    draws: Draws

    def _begin(self, sampling: TimeSampling) -> None:
        object.__setattr__(self, "time_sampling", sampling)
        object.__setattr__(self, "draws", sampling.begin())

    @abstractmethod
    def values(self, model: Model, x0: Tensor, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        """Return the loss ``(B,)`` at the times drawn."""

    #: whether the loss can leave out entries that are not observed
    masks: ClassVar[bool] = False

    def terms(
        self,
        model: Model,
        x0: Tensor,
        cond: Condition = None,
        generator: Generators = None,
        observed: Tensor | None = None,
    ) -> Terms:
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            raise DTypeError("x0", getattr(x0, "dtype", type(x0).__name__), "a floating-point tensor (B, *D)")
        if x0.ndim == 0 or len(x0) == 0:
            raise ShapeError("x0", tuple(x0.shape), "(B, *D) with B >= 1")
        if observed is not None:
            self._check_observed(observed, x0)
        sde = model.sde
        t, weight = self.draws.draw(len(x0), sde, self.t_min, self.t_max, generator, x0.device)
        level = sde.level_at(t, x0)
        eps = randn(x0.shape, generator, x0.device, x0.dtype)
        at = Perturbed(level.alpha * x0 + level.sigma * eps, eps, level, observed)
        if model.self_condition:
            cond = _with_estimate(model, at, cond, generator)
        values = self.values(model, x0, at, cond, generator)
        if torch.is_grad_enabled() and not self.draws.deferred:
            self.draws.observe(t, values.detach())
        return Terms(weight * values, t, values.detach())

    def _check_observed(self, observed: Tensor, x0: Tensor) -> None:
        """Refuse a mask that does not fit."""
        if not self.masks:
            expected = "denoising or explicit score matching, for data with missing values"
            raise ArgumentError("objective", type(self).__name__, expected)
        if observed.shape != x0.shape or observed.dtype != torch.bool:
            got = f"{tuple(observed.shape)} of {observed.dtype}"
            raise ShapeError("observed", got, f"of the shape of x0, {tuple(x0.shape)}, and torch.bool")

    def state_dict(self) -> dict[str, Tensor]:
        return self.draws.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.draws.load_state_dict(state)


def _with_estimate(model: Model, at: Perturbed, cond: Condition, generator: Generators) -> Condition:
    """Return a condition with an estimate of x0, for half of the samples."""
    with torch.no_grad():
        x0 = model.estimate(at.x_t, at.level, cond).x0
    given = rand(x0.shape[:1], generator, x0.device) < SELF_CONDITIONED
    return {**(cond or {}), ESTIMATE: torch.where(given.reshape(-1, *(1,) * (x0.ndim - 1)), x0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class ScoreMatching(TimedObjective):
    """An objective lambda(t) l(theta; t); subclasses define the loss l.

    All subclasses are stated for eps_theta = -sigma s_theta with w = lambda/sigma^2, so that their means agree.
    Denoising, implicit and sliced score matching have one expectation; that of explicit score matching is smaller by a
    constant. All have the same gradient, and their losses can be compared.

    Args:
        weighting: A name in :data:`~scoresde.training.weightings.WEIGHTINGS`, a
            :class:`~scoresde.training.weightings.Weighting`, or a function ``(model, t) -> w (B,)``. Default
            ``"simple"``.
        time_sampling: See :class:`TimedObjective`. None: the one that suits the weighting.
        t_min, t_max: Ends of the times. None: those of the SDE.

    Raises:
        ArgumentError: When called on the CPU at a time where the weight is infinite, or where the network's prediction
            does not determine x0 and eps.
    """

    weighting: str | Weighting | WeightFunction = "simple"
    time_sampling: str | float | TimeSampling | None = None
    t_min: float | None = None
    t_max: float | None = None
    draws: Draws = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        weighting = resolve_weighting(self.weighting)
        object.__setattr__(self, "weighting", weighting)
        given = self.time_sampling
        self._begin(weighting.time_sampling() if given is None else resolve_time_sampling(given))

    @abstractmethod
    def error(self, model: Model, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        """Return l sigma^2 ``(B,)``, the loss of w = 1."""

    def values(self, model: Model, x0: Tensor, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        weighting, t = cast(Weighting, self.weighting), cast(Tensor, at.level.t)
        w = weighting(model, t)
        if is_concrete(w) and not bool(w.isfinite().all()):
            where = t[~w.isfinite()][0].item()
            expected = f"times where the weight of {self.weighting!r} is finite, with alpha and sigma above 0"
            raise ArgumentError("t_min, t_max", f"a time of {where:g}", expected)
        return w * self.error(model, at, cond, generator)


@checked
@dataclass(frozen=True)
class DenoisingScoreMatching(ScoreMatching):
    r"""Denoising score matching (S3, E6).

        lambda(t) |s_theta(x_t, t) - grad log p(x_t | x_0)|^2,   t ~ U(t_min, t_max)

    As grad log p(x_t | x_0) = -eps/sigma, this is (lambda/sigma^2) |eps - eps_theta|^2, summed over the entries,
    whatever the network predicts.

    Args:
        weighting: See the list below, or :class:`ScoreMatching`. Default ``"simple"``.
        time_sampling: ``"low-discrepancy"``, ``"uniform"``, ``"log-snr"`` (the importance sampling of the likelihood
            weighting), ``"log-normal"`` (EDM's), ``"levels"`` (those of a DDPM or an NCSN), ``"loss-aware"``, a
            :class:`~scoresde.training.time_sampling.TimeSampling` or a fixed time. None: what suits the weighting.
        t_min, t_max: Ends of the times. None: those of the SDE.

    Notes:
        - ``"simple"``: lambda = sigma^2 (P6, N2).
        - ``"likelihood"``: lambda = g^2. Half of the loss bounds the negative log-likelihood up to a constant (E12).
        - ``"sigmoid"``: as ``"likelihood"``, with more weight at high noise, which improves samples.
        - ``"min-snr"`` and ``"edm"``: the weights of those papers.
        - ``"theorem-1"``: the variational bound of DDIM's family (D4).

    References: Vincent 2011; Song & Ermon 2019; Song et al. 2021, eq. 7; Song et al. 2021b (likelihood).
    """

    masks = True

    weighting: str | Weighting | WeightFunction = "simple"
    time_sampling: str | float | TimeSampling | None = None

    def error(self, model: Model, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        return at.square_of(at.eps - model.estimate(at.x_t, at.level, cond).eps)


@checked
@dataclass(frozen=True)
class ExplicitScoreMatching(ScoreMatching):
    r"""Explicit score matching (S1), for a known score.

        lambda(t) |s_theta(x_t, t) - grad log p_t(x_t)|^2

    It is the yardstick of the other objectives. Under no_grad its mean is the Fisher divergence of a model, weighted
    over the noise levels.

    Args:
        target: A model with the true score, such as ``GaussianMixture(...).model(sde)``, or a teacher. Under another
            SDE than the model's it is evaluated at equal log-SNR.
        weighting, time_sampling, t_min, t_max: As for :class:`DenoisingScoreMatching`, by keyword.

    Raises:
        ArgumentError: a target that is not a model.
    """

    masks = True

    target: Model

    def __post_init__(self) -> None:
        if not isinstance(self.target, Model):
            raise ArgumentError("target", type(self.target).__name__, "a Model such as GaussianMixture(...).model(sde)")
        super().__post_init__()

    def error(self, model: Model, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        target = self.target if self.target.sde is model.sde else self.target.with_sde(model.sde)
        with torch.no_grad():
            eps = target.estimate(at.x_t, at.level, cond).eps
        return at.square_of(eps - model.estimate(at.x_t, at.level, cond).eps)
