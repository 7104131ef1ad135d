r"""The solver ``"multistep"`` of the probability flow, made for log p.

It goes from data to noise at one network call a level. The method is ours. `docs/likelihood_solver.md` derives it and
checks each formula by running it.

Symbols:
    x, alpha, sigma: state and noise level; rho = sigma/alpha = e^{-lambda}; n: entries of a sample.
    y = x/alpha: in y every SDE has the same flow, dy/dlambda = -rho eps.
    m, C: mean and covariance of the data; c: the eigenvalues of C.
    z = (C + rho^2)^{-1/2} (y - m), in the eigenbasis of C: constant along the flow of N(m, C).
    eps, eps_C: the network's noise, and that of the exact model of N(m, C), eps_C = rho (C + rho^2)^{-1} (y - m).
    F: the flow in z, F = -rho (C + rho^2)^{-1/2} (eps - eps_C).
    s: the score in z, s = -(C + rho^2)^{1/2} eps/rho.
    G = -F/rho^2: the flow near the data, dz/d(rho^2) = G/2.
    r = dz/dlambda - F: the residual of a path z(lambda) that solves the flow only nearly.

F is what the data have besides their moments. It vanishes like rho^2 near the data and like rho^-3 near the noise; like
rho^-2 under a condition, where :func:`conditional_mean` finds m by one call and C is that of all data.

The solver has four stages (:func:`solve`):

1. The first levels are solved together. There G is smooth in rho^2: the polynomial in rho^2 through these levels,
   integrated from rho = 0, gives z at each of them. Directions in which the data are a narrow Gaussian are exact.
2. A predictor and corrector of Adams, of order 3, goes through the other levels, one call a level. Higher orders were
   unstable where a sample lies between two modes: there the flow is stiff from data to noise.
3. A rule of high degree integrates the trace; its weights are known beforehand. The Gaussian's part is in closed form.
4. Along any path d log p/dlambda = -div F + s . r. The polynomials of degree 8 through the points of the calls are such
   a path. The integral of s . r is subtracted from log p and takes out the error of the low order, without a call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.data import DataScale
from scoresde.likelihood.path_plan import (
    ADAMS_ORDER,
    LAST_LEVEL,
    Ends,
    Plan,
    choose_levels,
    make_plan,
)
from scoresde.likelihood.trace import TraceIntegral
from scoresde.models import Gaussian, Moments
from scoresde.sde import SDE, HostLevel
from scoresde.sde.tensors import flat

LEAST_STD = 1e-6  # of C's directions, over rho at t_min

# Error of log p in nats a dimension where the first level's rho is r times the finest length, and no lower level can be
# had: .05 r^4, at most log(1 + r). Errors of exact models under VESDE() were .5 to 2 times this for r = .2 to 160.
COARSE_ERROR = 0.05


@dataclass(frozen=True, eq=False)
class FlowProblem:
    """What the solver is given besides the data.

    Attributes:
        sde: the forward process.
        moments: moments of the data, if known.
        scale: lengths of the data, if known.
        calls: network calls to spend.
        ends: where the path begins and ends; to infinite noise only with moments.
        bin_std, reach: as in :func:`~scoresde.likelihood.path_plan.choose_levels`.
        mean: mean ``(B, n)`` of each sample's data, where it is not that of the moments.
    """

    sde: SDE
    moments: Moments | None
    scale: DataScale | None
    calls: int
    ends: Ends
    bin_std: float | None = None
    mean: Tensor | None = None
    reach: float = 0.0

    def gaussian(self, x: Tensor) -> Gaussian:
        """Return N(m, C) for data like x ``(B, *D)``; N(0, I) without moments."""
        if self.moments is None:
            return Gaussian.isotropic(torch.zeros(1, x[0].numel(), dtype=x.dtype, device=x.device), 1.0)
        return self.moments.gaussian(x, self.mean).at_least(self.floor**2)

    @property
    def floor(self) -> float:
        """The least standard deviation of C, where the data's own is less.

        The flow begins at t_min; narrower directions look the same from there.
        """
        end = self.sde.levels(torch.tensor([self.ends.t_min], dtype=torch.float64))[0]
        return LEAST_STD * end.rho


class PathErrors(NamedTuple):
    """Estimated errors of log p ``(B,)``, without that of the path.

    Attributes:
        low, high: Below the first level and above the last one, by polynomials of one order less.
        rule: Of the trace's integral, by a rule of lower degree.
        hidden_low, hidden_high: What no method between t_min and t_max can see: finer detail than the noise at t_min,
            and data that are not Gaussian at t_max.
    """

    low: Tensor
    high: Tensor
    rule: Tensor
    hidden_low: Tensor
    hidden_high: Tensor


class PathSolution(NamedTuple):
    """The end of the path, and what it adds to log p.

    Attributes:
        latent: x at t_max, ``(B, *D)``.
        log_det: log-determinant ``(B,)`` of the map from x_0 to the latent, except for the traces that the
            :class:`TraceIntegral` has summed. If the path goes to infinite noise, it includes the logarithm of the
            ratio between p_{t_max} and the Gaussian of its moments.
        defect: as in :class:`~scoresde.likelihood.results.Likelihood`; included in ``log_det``.
        t_first: time of the first level.
        path: what log p has from the path's points alone, ``(B,)``: the defect and the ratio at infinite noise.
        errors: estimated errors of log p.
    """

    latent: Tensor
    log_det: Tensor
    defect: Tensor
    t_first: float
    path: Tensor
    errors: PathErrors


@dataclass
class _Path:
    """The points of the calls, and the path through them.

    ``residual_integral`` is the integral of s . r along the polynomials through the points. Only as many points are
    kept as the polynomials need.
    """

    plan: Plan
    gaussian: Gaussian
    traces: TraceIntegral
    levels: Sequence[HostLevel]
    shape: torch.Size
    z: dict[int, Tensor] = field(default_factory=dict)
    F: dict[int, Tensor] = field(default_factory=dict)
    s: dict[int, Tensor] = field(default_factory=dict)
    count: int = 0  # points so far
    settled: int = 0  # levels whose residual is in the integral
    residual_integral: Tensor | float = 0.0

    def noise(self, y: Tensor, k: int, traced: bool = True) -> Tensor:
        """Return eps at y ``(B, n)`` of level k; count its trace if ``traced``."""
        p, x = self.plan, (self.levels[k].alpha * y).reshape(self.shape)
        if not traced:
            return self.traces.eps(x, self.levels[k])
        weight = p.trace_below[k] - p.trace_rule[k] - p.trace_above[k]
        others = (p.trace_below[k], p.rougher_below[k], p.rougher_above[k], p.rougher_rule[k])
        return self.traces.eps_and_add(x, self.levels[k], weight, others)

    def add(self, z: Tensor, eps: Tensor) -> None:
        """Add the next level's point z ``(B, n)``.

        The residuals that it completes go to the integral.
        """
        k, rho = self.count, self.plan.rhos[self.count]
        std, eps = self.gaussian.std(rho), self.gaussian.to_eigen(eps)
        self.z[k], self.F[k], self.s[k] = z, (rho / std) * ((rho / std) * z - eps), (-1 / rho) * std * eps
        self.count += 1
        while self.settled < len(self.plan.lams):
            k = self.settled
            lo, weights = self.plan.slopes[k]
            if lo + len(weights) > self.count:
                break
            residual = _combination(weights, [self.z[lo + j] for j in range(len(weights))]) - self.F[k]
            self.residual_integral = self.residual_integral + self.plan.trace_rule[k] * (self.s[k] * residual).sum(1)
            self.settled += 1
            for old in [j for j in self.z if j < lo - ADAMS_ORDER]:
                del self.z[old], self.F[old], self.s[old]

    def step(self, z: Tensor, weights: Sequence[float]) -> Tensor:
        """Return z moved by the newest F, weighted."""
        first = self.count - len(weights)
        return z + _combination(weights, [self.F[first + j] for j in range(len(weights))])


class _Block(NamedTuple):
    """The solved first levels.

    z_0, G at each level, and z and s at the first point of the path.
    """

    z0: Tensor
    G: list[Tensor]
    z_first: Tensor
    s_first: Tensor


def solve(traces: TraceIntegral, x0: Tensor, problem: FlowProblem) -> PathSolution:
    """Solve the flow from x_0 ``(B, *D)`` to t_max.

    Args:
        traces: The network, and the sum of its traces.
        x0: The data, at t = 0, or at t_min with ``ends.data_at_t_min``.
        problem: Everything else.

    References: `docs/likelihood_solver.md`.
    """
    ends = problem.ends
    grid = choose_levels(problem.sde, problem.scale, problem.calls, ends, problem.bin_std, problem.reach)
    *levels, top = _levels_of(problem.sde, grid.lams, ends.t_max)
    lams = tuple(level.lam for level in levels)
    first, decay = levels[0], 3 if problem.mean is None else 2
    bottom = math.exp(-2 * lams[0]) if ends.data_at_t_min else 0.0
    plan = make_plan(lams, bottom, top.lam if ends.noise_to_infinity else None, decay)
    gaussian = problem.gaussian(x0)
    path = _Path(plan, gaussian, traces, levels, x0.shape)
    alpha_start = first.alpha if ends.data_at_t_min else 1.0

    # 1. levels near the data, solved together in rho^2
    block = _first_block(path, gaussian.whiten(flat(x0) / alpha_start, math.sqrt(bottom)), grid.rounds)
    # 2. predictor and corrector through the others
    z = _adams(path, block)
    # 3. the Gaussian's part of the trace, in closed form
    known = sum(
        (rule + above - below) * gaussian.trace(rho)
        for rule, above, below, rho in zip(plan.trace_rule, plan.trace_above, plan.trace_below, plan.rhos, strict=True)
    )
    known += gaussian.log_det(math.sqrt(bottom), top.rho) + z.shape[1] * math.log(top.alpha / alpha_start)
    # 4. the path's residual, subtracted from log p
    defect = _ends_of_path(path, block, z) - path.residual_integral
    # 5. z at t_max, and the density there, from N(0, I) at infinite noise
    z_top = path.step(z, plan.z_top[-3:])
    ratio = torch.zeros_like(defect)
    if ends.noise_to_infinity:
        ratio = (z_top.square() - path.step(z, plan.z_infinity[-3:]).square()).sum(1) / 2
    latent = (top.alpha * gaussian.unwhiten(z_top, top.rho)).reshape(x0.shape)
    low, high, rule = _errors(path, block, z)
    # 6. what t_min and t_max themselves hide
    hidden_low = hidden_high = torch.zeros_like(low)
    if grid.coarse and problem.scale is not None and problem.scale.finest is not None:
        r = plan.rhos[0] / problem.scale.finest
        hidden_low = hidden_low + z.shape[1] * min(COARSE_ERROR * r**4, math.log1p(r))
    if grid.cut:  # the stretch to infinite noise is too long to be extrapolated
        hidden_high = high + ratio.abs().detach()
    errors = PathErrors(low + hidden_low, torch.maximum(high, hidden_high), rule, hidden_low, hidden_high)
    return PathSolution(latent, defect + (known + ratio), defect, first.t, defect + ratio, errors)


def _errors(path: _Path, block: _Block, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the errors of log p ``(B,)`` by weights of a lower order.

    At the data's end, at the noise's end, and between them for the trace.
    """
    plan, gaussian = path.plan, path.gaussian

    def rougher(i: int, weights: Sequence[float]) -> Tensor:
        known = sum(w * gaussian.trace(rho) for w, rho in zip(weights, plan.rhos, strict=True))
        return torch.as_tensor(path.traces.others[i] - known).abs()

    moved = _combination(plan.block_rougher, block.G)
    low = (block.s_first * moved).sum(1).abs() + rougher(1, plan.rougher_below)
    end = path.step(z, plan.z_infinity[-3:])
    moved_above = path.step(torch.zeros_like(z), plan.infinity_rougher[-3:])
    high = (end * moved_above).sum(1).abs() + rougher(2, plan.rougher_above)
    return low.detach(), high.detach(), rougher(3, plan.rougher_rule).detach()


def _first_block(path: _Path, z0: Tensor, rounds: int) -> _Block:
    """Solve the first levels together, from z_0 ``(B, n)``.

    Only the last round counts traces.
    """
    plan, gaussian = path.plan, path.gaussian

    def slope(z: Tensor, k: int, traced: bool) -> tuple[Tensor, Tensor]:
        rho = plan.rhos[k]
        std = gaussian.std(rho)
        eps = path.noise(gaussian.unwhiten(z, rho), k, traced)
        return (gaussian.to_eigen(eps) / rho - z / std) / std, eps

    # first round: each level from those before it
    G: list[Tensor] = []
    for k, weights in enumerate(plan.block_explicit):
        G.append(slope(z0 + _combination(weights, G), k, False)[0])
    # later rounds: each level from all, with the newest G
    for _ in range(rounds - 2):
        for k, weights in enumerate(plan.block_implicit):
            G[k] = slope(z0 + _combination(weights, G), k, False)[0]
    for k, weights in enumerate(plan.block_implicit):
        z = z0 + _combination(weights, G)
        G[k], eps = slope(z, k, True)
        path.add(z, eps)
        if k == 0:
            z_first, s_first = path.z[0], path.s[0]
    return _Block(z0, G, z_first, s_first)


def _adams(path: _Path, block: _Block) -> Tensor:
    """Go through the other levels; return z ``(B, n)`` at the last one.

    Each level has one call, between the predictor and the corrector.
    """
    plan, start = path.plan, len(block.G)
    z = block.z0 + _combination(plan.block_implicit[-1], block.G)
    for k, (predict, correct) in enumerate(zip(plan.predict, plan.correct, strict=True), start):
        guess = path.step(z, predict)
        path.add(guess, path.noise(path.gaussian.unwhiten(guess, plan.rhos[k]), k))
        z = path.step(z, correct)
    return z


def _ends_of_path(path: _Path, block: _Block, z: Tensor) -> Tensor:
    """Return the change of log p ``(B,)`` from the solved ends to the path's.

    The points of the calls lie beside the solved path: at the last level the call was made before the last correction,
    at the first level before the last round was complete. To first order log p changes by s times the distance.
    """
    plan, k = path.plan, len(path.plan.lams) - 1
    last = (path.s[k] * (path.z[k] - z)).sum(1)
    z_solved = block.z0 + _combination(plan.block_implicit[0], block.G)
    return last - (block.s_first * (block.z_first - z_solved)).sum(1)


def conditional_mean(traces: TraceIntegral, x0: Tensor, sde: SDE, moments: Moments, t_max: float) -> Tensor:
    """Estimate the mean ``(B, n)`` of the data under each sample's condition.

    One network call gives the conditional mean of x_0:

        E[x_0 | x_t] = mean + v (m - mean)/(v + rho^2)    at x_t = alpha m

    This holds for a condition that leaves the data the covariance v I. It is solved for the mean, with m the mean and v
    the mean variance of all data. The noise is e^{2.8} times the largest std of the data, or that of t_max.

    Args:
        traces: The network.
        x0: Data ``(B, *D)``, for their shape, dtype and device.
        sde: The forward process.
        moments: Moments of all data.
        t_max: The latest time.
    """
    lam = torch.tensor([LAST_LEVEL - 0.5 * moments.values.max().clamp(min=1e-300).log().item()], dtype=torch.float64)
    level = sde.levels(sde.time_at(lam=lam).clamp(max=t_max))[0]
    m, rho = moments.mean.reshape(1, -1).to(x0), level.rho
    eps = traces.eps((level.alpha * m).expand(len(x0), -1).reshape(x0.shape), level)
    return m - (rho + moments.std**2 / rho) * eps


def _levels_of(sde: SDE, lams: Sequence[float], t_max: float) -> list[HostLevel]:
    """Return the levels at these lambda and at t_max."""
    t = sde.time_at(lam=torch.tensor(lams, dtype=torch.float64))
    return sde.levels(torch.cat([t, torch.tensor([t_max], dtype=torch.float64)]))


def _combination(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor | float:
    """Return the sum of weight times tensor; 0 for none."""
    total: Tensor | float = 0.0
    for weight, value in zip(weights, values, strict=False):
        total = total + weight * value
    return total
