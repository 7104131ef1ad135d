"""The variational bound of a chain of discrete levels as an objective, alone and beside L_simple."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Estimate, Model
from scoresde.models.kernels import EXPONENTS, discretised_gaussian, step_kl
from scoresde.sde import SDE
from scoresde.sde.tensors import flat, state_dtype
from scoresde.training.objectives import Perturbed, TimedObjective
from scoresde.training.time_sampling import LevelGrid, Levels, LossAware, TimeSampling

VARIANCES = (*EXPONENTS, None)
LEVEL_SAMPLINGS = {"levels": Levels, "loss-aware": LossAware}


class VLB(TimedObjective):
    r"""L_vlb (P4): the bound -log p(x_0) <= L_T + sum_i L_{i-1} in nats, less L_T, which has no parameters.

    At level i of N, drawn at random, the loss is N L_{i-1}:

    - i >= 2: KL(q(x_{i-1} | x_i, x_0) || p_theta(x_{i-1} | x_i)), :func:`~scoresde.likelihood.bounds.step_kl`;
    - i = 1: -log p_theta(x_0 | x_1), the mass of the data's bin for integer data
      (:func:`~scoresde.likelihood.bounds.discretised_gaussian`), a Gaussian density otherwise. Its variance is P7's
      with beta~_1 = 0 replaced by beta~_2.

    The terms differ by orders of magnitude between levels, so they are drawn in proportion to sqrt(E[L_i^2]) (P8).
    Source: Ho et al. (2020, eq. 5); Nichol & Dhariwal (2021, section 3).

    Args:
        variance: of p_theta, a name of P7: ``"learned"``, ``"posterior"`` (beta~) or ``"forward"`` (beta). None is
            learned where the model has it, ``"posterior"`` elsewhere.
        time_sampling: ``"loss-aware"``, ``"levels"`` or a :class:`~scoresde.training.time_sampling.Levels`, which counts the
            levels of a process that has none of its own.
        t_min, t_max: the levels between them are drawn; None sets no bound.

    Raises:
        UnknownNameError: another variance or time sampling.
        ArgumentError: when called, learned variances that the model has not.
    """

    def __init__(
        self,
        variance: str | None = None,
        time_sampling: str | TimeSampling = "loss-aware",
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        if variance not in VARIANCES:
            raise UnknownNameError("variance", variance, EXPONENTS)
        if isinstance(time_sampling, str) and time_sampling in LEVEL_SAMPLINGS:
            time_sampling = LEVEL_SAMPLINGS[time_sampling]()
        if not isinstance(time_sampling, Levels):
            raise UnknownNameError("time_sampling", time_sampling, LEVEL_SAMPLINGS)
        super().__init__(time_sampling, t_min, t_max)
        self.variance = variance
        self._decoder: tuple | None = None  # the process and levels last seen, and log beta_1, log beta~_2

    def values(self, model, x0, at, cond, generator):
        return self.bound(model, x0, at, model.estimate(at.x_t, at.level, cond))

    def bound(self, model: Model, x0: Tensor, at: Perturbed, estimate: Estimate) -> Tensor:
        """N L_{i-1} ``(B,)``, for the N levels that may be drawn."""
        v = estimate.v if self.variance in (None, "learned") else None
        if v is None:
            if self.variance == "learned":
                raise ArgumentError("model", type(model).__name__, "one with learned_variance=True")
            v = EXPONENTS[self.variance or "posterior"]
        sde, wide = model.sde, state_dtype(x0)
        grid = self.time_sampling.grid(sde, self.t_min, self.t_max)
        i = grid.index(at.level.t)
        terms = self.reconstruction(model, x0, estimate.x0, v, grid, i == 1)
        if grid.count > 1:
            i = i.clamp(min=2)  # a stand-in where i = 1
            s, t = grid.time(i - 1, wide), grid.time(i, wide)
            terms = torch.where(grid.index(at.level.t) == 1, terms, step_kl(sde, s, t, at.eps, estimate.eps, v))
        return (grid.last - grid.first + 1) * terms

    def reconstruction(
        self, model: Model, x0: Tensor, mean: Tensor, v: float | Tensor, grid: LevelGrid, first: Tensor
    ) -> Tensor:
        """-log p_theta(x_0 | x_1) ``(B,)`` where ``first`` ``(B,)``; elsewhere a finite number with no gradient."""
        wide = state_dtype(x0)
        log_beta, log_posterior = self._log_variances(model.sde, grid)
        log_std = 0.5 * (v * log_beta + (1 - v) * log_posterior)
        log_std = log_std.to(wide) if isinstance(log_std, Tensor) else x0.new_full((), log_std, dtype=wide)
        data = x0.to(wide)
        mean = torch.where(first.reshape(-1, *(1,) * (x0.ndim - 1)), mean.to(wide), data)
        scaling = model.scaling
        if scaling is not None and scaling.num_values is not None:
            return discretised_gaussian(scaling.to_raw(x0), mean, log_std.exp(), scaling).to(x0.dtype)
        z = (data - mean) * torch.exp(-log_std)
        return flat(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1).to(x0.dtype)

    def _log_variances(self, sde: SDE, grid: LevelGrid) -> tuple[float, float]:
        """``(log beta_1, log beta~_2)``, Python floats; the first for both if there is no second level."""
        if self._decoder is None or self._decoder[0] is not sde or self._decoder[1] != grid:
            times = grid.time(torch.arange(1, min(grid.count, 2) + 1), torch.float64)
            logs = [2 * sde.log_sigma(times[0]).item()]
            logs.append(2 * sde.posterior_coefficients(*times)[2].log().item() if len(times) == 2 else logs[0])
            self._decoder = sde, grid, tuple(logs)
        return self._decoder[2]

    def __repr__(self):
        return f"{type(self).__name__}({self.variance!r}, {self.time_sampling!r})"


class HybridVLB(VLB):
    r"""L_simple + w L_vlb (P8) for a model with learned variances: the mean is detached in L_vlb.

    So L_simple alone trains the mean, and L_vlb alone the variances. Both are sums over the entries, L_vlb is in nats.
    Source: Nichol & Dhariwal (2021, eq. 16), whose w = 0.001 counts L_vlb in bits in their code, 0.00144 here.

    Args:
        weight: w.
        time_sampling: ``"levels"``, ``"loss-aware"`` or a :class:`~scoresde.training.time_sampling.Levels`.
        t_min, t_max: the levels between them are drawn; None sets no bound.

    Raises:
        ArgumentError: a weight that is not positive; when called, a model without learned variances.
    """

    def __init__(
        self,
        weight: float = 0.001,
        time_sampling: str | TimeSampling = "levels",
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        if not weight > 0:
            raise ArgumentError("weight", weight, "a positive number")
        super().__init__("learned", time_sampling, t_min, t_max)
        self.weight = float(weight)

    def values(self, model, x0, at, cond, generator):
        estimate = model.estimate(at.x_t, at.level, cond)
        detached = Estimate(estimate.x0.detach(), estimate.eps.detach(), estimate.level, estimate.v)
        simple = flat(at.eps - estimate.eps).square().sum(1)
        return simple + self.weight * self.bound(model, x0, at, detached)

    def __repr__(self):
        return f"HybridVLB({self.weight:g}, {self.time_sampling!r})"
