"""The variational bound of discrete noise levels as an objective.

Symbols: level i of N at time t_i, L_{i-1} the divergence of step i, L_T that of the prior, beta_i and beta~_i the
variances of the forward kernel and of its posterior.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Estimate, Model
from scoresde.models.conditions import Condition
from scoresde.models.kernels import EXPONENTS, VARIANCES, discretised_gaussian, step_kl
from scoresde.random import Generators
from scoresde.sde import SDE
from scoresde.sde.tensors import flat, state_dtype
from scoresde.training.discrete_times import LevelGrid, Levels, LossAware
from scoresde.training.objectives import Perturbed, TimedObjective
from scoresde.training.time_sampling import Draws, TimeSampling

LEVEL_SAMPLINGS: dict[str, type[Levels]] = {"levels": Levels, "loss-aware": LossAware}


class _Bound(TimedObjective):
    """An objective with L_vlb in it."""

    variance: str | None

    def _begin_levels(self) -> None:
        """Resolve the name of the time sampling, and begin its draws."""
        sampling = self.time_sampling
        if isinstance(sampling, str) and sampling in LEVEL_SAMPLINGS:
            sampling = LEVEL_SAMPLINGS[sampling]()
        if not isinstance(sampling, Levels):
            raise UnknownNameError("time_sampling", sampling, LEVEL_SAMPLINGS)
        self._begin(sampling)

    @abstractmethod
    def values(self, model: Model, x0: Tensor, at: Perturbed, cond: Condition, generator: Generators) -> Tensor: ...

    def bound(self, model: Model, x0: Tensor, at: Perturbed, estimate: Estimate) -> Tensor:
        """Return N L_{i-1} ``(B,)``, for the N levels that may be drawn."""
        learned = estimate.v if self.variance in (None, "learned") else None
        if learned is None and self.variance == "learned":
            raise ArgumentError("model", type(model).__name__, "a model with learned_variance=True")
        v = EXPONENTS[self.variance or "posterior"] if learned is None else learned
        sde, wide = model.sde, state_dtype(x0)
        grid = cast(Levels, self.time_sampling).grid(sde, self.t_min, self.t_max)
        i = first = grid.index_of(cast(Tensor, at.level.t))
        terms = self.reconstruction(model, x0, estimate.x0, v, grid, i == 1)
        if grid.count > 1:
            i = i.clamp(min=2)  # a stand-in where i = 1
            s, t = grid.time(i - 1, wide), grid.time(i, wide)
            terms = torch.where(first == 1, terms, step_kl(sde, s, t, at.eps, estimate.eps, v))
        return (grid.last - grid.first + 1) * terms

    def reconstruction(
        self, model: Model, x0: Tensor, mean: Tensor, v: float | Tensor, grid: LevelGrid, first: Tensor
    ) -> Tensor:
        """Return -log p_theta(x_0 | x_1) ``(B,)`` where ``first`` ``(B,)``.

        Elsewhere it is a finite number without gradient.
        """
        wide = state_dtype(x0)
        log_beta, log_posterior = log_variances(model.sde, grid)
        log_std = 0.5 * (v * log_beta + (1 - v) * log_posterior)
        log_std = log_std.to(wide) if isinstance(log_std, Tensor) else x0.new_full((), log_std, dtype=wide)
        data = x0.to(wide)
        mean = torch.where(first.reshape(-1, *(1,) * (x0.ndim - 1)), mean.to(wide), data)
        scaling = model.scaling
        if scaling is not None and scaling.num_values is not None:
            return discretised_gaussian(scaling.to_raw(x0), mean, log_std.exp(), scaling).to(x0.dtype)
        z = (data - mean) * torch.exp(-log_std)
        return flat(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1).to(x0.dtype)


@lru_cache(maxsize=8)
def log_variances(sde: SDE, grid: LevelGrid) -> tuple[float, float]:
    """Return ``(log beta_1, log beta~_2)`` as Python floats.

    With a single level both are log beta_1.

    Raises:
        ArgumentError: alpha = 0 at the last level, where the terms are not finite.
    """
    end = grid.time(torch.tensor(grid.last), torch.float64).item()
    if sde.alpha(end) == 0:
        raise ArgumentError("t_max", end, f"a level with alpha > 0: the bound of {sde!r} ends before its last level")
    times = grid.time(torch.arange(1, min(grid.count, 2) + 1), torch.float64)
    log_beta = 2 * sde.log_sigma(times[0]).item()
    return log_beta, 2 * sde.posterior_coefficients(*times)[2].log().item() if len(times) == 2 else log_beta


@checked
@dataclass(frozen=True)
class VLB(_Bound):
    r"""L_vlb (P4), the variational bound in nats without L_T.

        -log p(x_0) <= L_T + sum_i L_{i-1}

    L_T has no parameters. At level i of N, drawn at random, the loss is N L_{i-1}:

    - i >= 2: KL(q(x_{i-1} | x_i, x_0) || p_theta(x_{i-1} | x_i)), :func:`~scoresde.models.kernels.step_kl`;
    - i = 1: -log p_theta(x_0 | x_1). For integer data this is the mass of the data's bin
      (:func:`~scoresde.models.kernels.discretised_gaussian`), otherwise a Gaussian density. Its variance is P7's with
      beta~_1 = 0 replaced by beta~_2.

    The terms differ by orders of magnitude between levels. They are therefore drawn in proportion to sqrt(E[L_i^2])
    (P8).

    Args:
        variance: Variance of p_theta by its name in P7: ``"learned"``, ``"posterior"`` (beta~) or ``"forward"`` (beta).
            None: learned if the model has it, else ``"posterior"``.
        time_sampling: ``"loss-aware"`` (default), ``"levels"`` or a :class:`~scoresde.training.discrete_times.Levels`,
            whose count is the number of levels of a continuous process.
        t_min, t_max: Ends of the levels drawn. None: no bound.

    Raises:
        UnknownNameError: an unknown variance or time sampling.
        ArgumentError: when called, learned variances with a model that has none, or alpha = 0 at the last level.

    References: Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, section 3.
    """

    variance: str | None = None
    time_sampling: str | float | TimeSampling | None = "loss-aware"
    t_min: float | None = None
    t_max: float | None = None
    draws: Draws = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.variance is not None and self.variance not in VARIANCES:
            raise UnknownNameError("variance", self.variance, VARIANCES)
        self._begin_levels()

    def values(self, model: Model, x0: Tensor, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        return self.bound(model, x0, at, model.estimate(at.x_t, at.level, cond))


@checked
@dataclass(frozen=True)
class HybridVLB(_Bound):
    r"""L_simple + w L_vlb (P8) for a model with learned variances.

    The mean is detached in L_vlb. L_simple alone thus trains the mean, and L_vlb alone the variances. Both are sums
    over the entries, L_vlb in nats.

    Args:
        weight: w, positive, default 0.001.
        time_sampling: ``"levels"`` (default), ``"loss-aware"`` or a :class:`~scoresde.training.discrete_times.Levels`.
        t_min, t_max: Ends of the levels drawn. None: no bound.

    Raises:
        ArgumentError: a weight that is not positive; when called, a model without learned variances.

    Notes: In their code, w = 0.001 multiplies L_vlb in bits, which is 0.00144 here.

    References: Nichol & Dhariwal 2021, eq. 16.
    """

    variance = "learned"

    weight: float = 0.001
    time_sampling: str | float | TimeSampling | None = "levels"
    t_min: float | None = None
    t_max: float | None = None
    draws: Draws = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", positive("weight", self.weight))
        self._begin_levels()

    def values(self, model: Model, x0: Tensor, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        estimate = model.estimate(at.x_t, at.level, cond)
        detached = Estimate(estimate.x0.detach(), estimate.eps.detach(), estimate.level, estimate.v)
        simple = flat(at.eps - estimate.eps).square().sum(1)
        return simple + self.weight * self.bound(model, x0, at, detached)
