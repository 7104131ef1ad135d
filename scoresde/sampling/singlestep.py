"""Single-step solvers of the probability flow.

A step uses no estimate of the steps before it, so its size is free to change.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    lambda = log(alpha/sigma), growing towards the data. h: a step in lambda.
    rho = sigma/alpha. y = x/alpha.
    r, c: ends of the moves inside a step, in units of h.

The exponential Runge-Kutta steps are Lu et al.'s (2022a), in x0 as in Lu et al. (2022b). Heun's method with churn is
Karras et al.'s (2022), here for every SDE.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import non_negative, positive
from scoresde.errors import ArgumentError
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.random import Generators
from scoresde.sampling.base import GridSampler, State, noise_like
from scoresde.sde import SDE, HostLevel
from scoresde.sde.grids import Grid, check_finite_log_snr, fixes_steps, time_grid

#: by order the moves (r, c) of one step: from lambda_t to lambda_t + r h, with x0 a straight line through its values at
#: lambda_t and lambda_t + c h, the end of the move before (c = 0: a constant)
MOVES: Mapping[int, tuple[tuple[float, float], ...]] = {
    2: ((1 / 2, 0), (1, 1 / 2)),
    3: ((1 / 3, 0), (2 / 3, 1 / 3), (1, 2 / 3)),
}
LARGEST_CHURN = math.sqrt(2) - 1  # of gamma in one step (Karras et al. 2022, algorithm 2)


def line_weights(h: Tensor, r: float, c: float) -> tuple[Tensor, Tensor]:
    """Return ``(w_0, w_c)``, the weights of the integral of a straight line m.

    int_0^{rh} e^{-(rh - u)} m(u) du = w_0 m(0) + w_c m(c h).
    """
    total = -torch.expm1(-r * h)
    if not c:
        return total, torch.zeros_like(h)
    slope = (r * h - total) / (c * h)
    return total - slope, slope


class Move(NamedTuple):
    """One move within a step.

    Attributes:
        target: Level at its end.
        x, x0: Coefficients of x_t and of the estimate x0 at the step's start.
        inner: Coefficient of the estimate at the end of the move before.
    """

    target: HostLevel
    x: float
    x0: float
    inner: float


@checked
@dataclass(frozen=True, repr=False)
class SingleStep(GridSampler):
    """Exponential Runge-Kutta steps of the flow: DPM-Solver++ 2S and 3S.

    A step from lambda_t to lambda_s = lambda_t + h solves the flow's linear part exactly. Under the integral, x0 is a
    straight line in lambda:

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{-(lambda_s - lambda)} x0 dlambda

    The line goes through x0 at lambda_t and at an inner node, lambda_t + h/2 for order 2 and lambda_t + 2h/3 for
    order 3. The step reaches the inner node in the same way, for order 3 from lambda_t and lambda_t + h/3. The order is
    the number of network calls a step.

    Args:
        order: 2 (default) or 3.
        grid: See :class:`GridSampler`, default ``"log_snr"``. Noise must be left at its end.
        t_min, t_max, last: See :class:`Sampler`.

    ``steps`` is a budget of network calls, 21 by default. It includes the last step's call and is rounded down to whole
    steps. On ``"levels"`` or given times ``steps`` is the number of steps.

    Raises:
        ArgumentError: ``order`` is neither 2 nor 3; in a run, the budget is too small or no noise is left at the end.

    References: Lu et al. 2022a (DPM-Solver-2 and 3), Lu et al. 2022b. The line's integral is exact in both.
    """

    order: Literal[2, 3] = 2
    grid: Grid = field(default="log_snr", kw_only=True)

    usual_steps: ClassVar[int] = 21

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in MOVES:
            raise ArgumentError("order", repr(self.order), "2 or 3")

    @property
    def deterministic(self) -> bool:
        """Whether the samples are a function of the start alone."""
        return True

    def _whole_steps(self, calls: int | None) -> int | None:
        """Return the number of whole steps that a budget of ``calls`` pays for."""
        if calls is None or fixes_steps(self.grid):
            return calls
        final = int(self.last != "none")
        if calls < self.order + final:
            raise ArgumentError("steps", calls, f"at least {self.order + final}, the network calls of one step")
        return (calls - final) // self.order

    def _moves(self, sde: SDE, times: Tensor) -> list[tuple[Move, ...]]:
        """Return the moves of each step of the grid ``times``."""
        lam, sigma = sde.log_snr(times[:-1]) / 2, sde.sigma(times[:-1])
        h = sde.log_snr(times[1:]) / 2 - lam
        columns = []
        for r, c in MOVES[self.order]:
            ends = times[1:] if r == 1 else sde.time_at(lam=lam + r * h)
            weights = (sde.sigma(ends) / sigma, *(sde.alpha(ends) * w for w in line_weights(h, r, c)))
            columns.append([Move(*row) for row in zip(sde.levels(ends), *(w.tolist() for w in weights), strict=True)])
        return list(zip(*columns, strict=True))

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        sde = model.sde
        ends = model.time_range(self.t_min, self.t_max) if isinstance(self.grid, str) else (None, None)
        times = time_grid(sde, self._whole_steps(steps), self.grid, *ends)
        levels = sde.levels(times)
        check_finite_log_snr(sde, None, levels[0].t)
        if not levels[-1].sigma > 0:
            raise ArgumentError("grid", f"one that ends at t = {levels[-1].t:g}", "one that ends with noise")
        moves = self._moves(sde, times)
        yield State(x, levels[0].t, None, 0, len(moves), 0)
        for i, (level, step) in enumerate(zip(levels[:-1], moves, strict=True), start=1):
            # 1. the estimate at the step's start, and the move that it is enough for
            x0 = model.estimate(x, level, cond).x0
            move = step[0]
            y = torch.add(x.mul(move.x), x0, alpha=move.x0)
            # 2. the other moves, each with the estimate at the end of the move before
            for following in step[1:]:
                inner = model.estimate(y, move.target, cond).x0
                move = following
                y = torch.add(torch.add(x.mul(move.x), x0, alpha=move.x0), inner, alpha=move.inner)
            x = y
            yield State(x, move.target.t, x0, i, len(moves), i * self.order)


@checked
@dataclass(frozen=True, repr=False)
class Heun(GridSampler):
    """Heun's method in rho = sigma/alpha, with churn, for every SDE.

    In y = x/alpha the flow is dy/drho = eps. A step from rho_t to rho_s < rho_t first adds noise:

        rho^ = (1 + gamma) rho_t,    y^ = y + s_noise sqrt(rho^^2 - rho_t^2) z
        gamma = min(churn/steps, sqrt(2) - 1) if s_min <= rho_t <= s_max, else 0

    It then takes Heun's step of the flow (order 2) from rho^ to rho_s, with two network calls. rho^ is at most the
    largest rho of the process. A step to rho_s = 0 is Euler's, with one call.

    Args:
        churn: S_churn of the paper, 0 or more, default 0 (deterministic).
        s_min: Smallest rho at which noise is added, 0 or more, default 0.
        s_max: Largest rho at which noise is added, above ``s_min``, default infinite.
        s_noise: Scale of the noise, positive, default 1. The paper takes up to 1.007 for networks that remove too much.
        grid: See :class:`GridSampler`, default ``"karras"``, the paper's.
        t_min, t_max, last: See :class:`Sampler`.

    ``steps`` counts steps of two network calls, 18 by default.

    Raises:
        ArgumentError: A setting is out of its range.

    References: Karras et al. 2022, algorithm 2.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    grid: Grid = field(default="karras", kw_only=True)

    usual_steps: ClassVar[int] = 18

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(churn=non_negative("churn", self.churn), s_noise=positive("s_noise", self.s_noise))
        if not 0 <= self.s_min < self.s_max:
            raise ArgumentError("s_min, s_max", (self.s_min, self.s_max), "0 <= s_min < s_max")
        self._store(s_min=float(self.s_min), s_max=float(self.s_max))

    @property
    def deterministic(self) -> bool:
        """Whether the samples are a function of the start alone."""
        return self.churn == 0

    def _raised(self, sde: SDE, levels: list[HostLevel]) -> list[HostLevel]:
        """Return the levels rho^ of the steps' starts, after adding noise."""
        gamma = min(self.churn / (len(levels) - 1), LARGEST_CHURN)
        if not gamma > 0:
            return levels[:-1]
        log_rho = torch.tensor([math.log(level.rho * (1 + gamma)) for level in levels[:-1]], dtype=torch.float64)
        noisier = sde.levels(sde.time_of(-2 * log_rho))
        churned = [self.s_min <= level.rho <= self.s_max for level in levels[:-1]]
        return [high if chosen else low for low, high, chosen in zip(levels[:-1], noisier, churned, strict=True)]

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        levels = model.sde.levels(self.times(model, steps))
        check_finite_log_snr(model.sde, None, levels[0].t)
        raised, steps = self._raised(model.sde, levels), len(levels) - 1
        y, calls, draw = x / levels[0].alpha, 0, noise_like(x, generator)
        yield State(x, levels[0].t, None, 0, steps, calls)
        for i, ((start, target), level) in enumerate(zip(itertools.pairwise(levels), raised, strict=True), start=1):
            rho, end = level.rho, target.rho
            # 1. add noise; at the process's largest rho there is nothing to add
            if rho > start.rho:
                y = torch.add(y, draw(), alpha=self.s_noise * math.sqrt(rho**2 - start.rho**2))
            # 2. Euler's step
            estimate = model.estimate(y.mul(level.alpha), level, cond)
            ahead = torch.add(y, estimate.eps, alpha=end - rho)
            calls += 1
            # 3. Heun's correction, with the slope at the end
            if end > 0:
                slope = model.estimate(ahead.mul(target.alpha), target, cond).eps
                ahead = torch.add(y, estimate.eps + slope, alpha=0.5 * (end - rho))
                calls += 1
            y = ahead
            yield State(y.mul(target.alpha), target.t, estimate.x0, i, steps, calls)
