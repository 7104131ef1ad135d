"""Single-step solvers: each step starts afresh, from estimates inside it, so that its size is free to change."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from scoresde.errors import ArgumentError
from scoresde.sampling.samplers import GridSampler, State, noise_like
from scoresde.sde.grids import Grid, fixes_steps, time_grid, time_range

#: of each order the moves (r, c) of one step h: from lambda_t to lambda_t + r h, with x0 a line through its values at
#: lambda_t and lambda_t + c h, where the move before has led (c = 0: a constant)
MOVES = {2: ((1 / 2, 0), (1, 1 / 2)), 3: ((1 / 3, 0), (2 / 3, 1 / 3), (1, 2 / 3))}


def line_weights(h: Tensor, r: float, c: float) -> tuple[Tensor, Tensor]:
    """int_0^{rh} e^{-(rh - u)} m(u) du = w_0 m(0) + w_c m(c h) for a straight line m; ``(w_0, w_c)``."""
    total = -torch.expm1(-r * h)
    if not c:
        return total, torch.zeros_like(h)
    slope = (r * h - total) / (c * h)
    return total - slope, slope


class SingleStep(GridSampler):
    """Exponential Runge-Kutta steps of the probability flow in lambda = log(alpha/sigma): DPM-Solver++ 2S and 3S.

    A step from lambda_t to lambda_s = lambda_t + h solves the flow's linear part exactly, with x0 under the integral a
    straight line in lambda,

        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{-(lambda_s - lambda)} x0 dlambda,

    through x0 at lambda_t and at an inner node: lambda_t + h/2 for order 2, lambda_t + 2h/3 for order 3, reached in
    the same way from lambda_t and lambda_t + h/3. Its order is its network calls a step.

    Args:
        order: 2 or 3.
        grid: as in :class:`GridSampler`; noise must be left at its end.
        t_min, t_max, last: as in :class:`Sampler`.

    ``steps`` is a budget of network calls, the last step's included, rounded down to whole steps. Levels, or times
    given as a grid, bring their steps, and ``steps`` is then that number.

    Source: Lu et al. 2022a (DPM-Solver-2 and 3), in x0 as in Lu et al. 2022b; the line's integral is exact in both.
    """

    default_steps = 21
    deterministic = True

    def __init__(
        self,
        order: int = 2,
        *,
        grid: Grid = "log_snr",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(grid, t_min, t_max, last)
        if order not in MOVES:
            raise ArgumentError("order", order, "2 or 3")
        self.order = order

    def _whole_steps(self, calls: int | None) -> int | None:
        if calls is None or fixes_steps(self.grid):
            return calls
        final = int(self.last != "none")
        if calls < self.order + final:
            raise ArgumentError("steps", calls, f"{self.order + final} network calls or more, enough for one step")
        return (calls - final) // self.order

    def states(self, model, x, steps, cond, generator):
        sde, steps = model.sde, self._whole_steps(steps)
        ends = time_range(sde, self.t_min, self.t_max) if isinstance(self.grid, str) else (None, None)
        times = time_grid(sde, steps, self.grid, *ends)
        levels = sde.levels(times)
        if not levels[-1].sigma > 0:
            raise ArgumentError("grid", f"an end at t = {levels[-1].t:g}", "an end with noise, log-SNR finite")
        lam, sigma = sde.log_snr(times[:-1]) / 2, sde.sigma(times[:-1])
        h = sde.log_snr(times[1:]) / 2 - lam
        moves, steps = [], len(h)  # of each move the levels it leads to, and its coefficients of x, m and m_c
        for r, c in MOVES[self.order]:
            ends = times[1:] if r == 1 else sde.time_at(lam=(lam + r * h))
            rows = (sde.sigma(ends) / sigma, *(sde.alpha(ends) * w for w in line_weights(h, r, c)))
            moves.append(list(zip(sde.levels(ends), *(row.tolist() for row in rows), strict=True)))
        yield State(x, levels[0].t, None, 0, steps, 0)
        for i, (level, *step) in enumerate(zip(levels[:-1], *moves, strict=True), start=1):
            m, m_c, y = model.estimate(x, level, cond).x0, None, None
            for j, (target, c_x, c_m, c_c) in enumerate(step):
                if j:  # the move before has led to y at `level`
                    m_c = model.estimate(y, level, cond).x0
                level, y = target, torch.add(x.mul(c_x), m, alpha=c_m)
                if c_c:
                    y = torch.add(y, m_c, alpha=c_c)
            x = y
            yield State(x, level.t, m, i, steps, i * self.order)

    def __repr__(self):
        return f"SingleStep({self.order})"


class Heun(GridSampler):
    """Heun's method in rho = sigma/alpha, with churn: the sampler of Karras et al. (2022, algorithm 2) for every SDE.

    In y = x/alpha the flow is dy/drho = eps. A step from rho_t to rho_s < rho_t first adds noise,

        rho^ = (1 + gamma) rho_t,    y^ = y + s_noise sqrt(rho^^2 - rho_t^2) z,
        gamma = min(churn/steps, sqrt(2) - 1) if s_min <= rho_t <= s_max, else 0,

    and then takes Heun's step of the flow (order 2) from rho^ to rho_s: two network calls. Noise is not added beyond
    the largest noise of the process. A step to rho_s = 0 is Euler's, with one call.

    Args:
        churn: the paper's S_churn, 0 or more; 0 is deterministic.
        s_min, s_max: the range of rho in which noise is added.
        s_noise: the scale of the noise; the paper takes up to 1.007 for networks that remove too much.
        grid: as in :class:`GridSampler`; the default is the paper's.
        t_min, t_max, last: as in :class:`Sampler`.

    ``steps`` counts steps, of two network calls each.
    """

    default_steps = 18

    def __init__(
        self,
        churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
        *,
        grid: Grid = "karras",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(grid, t_min, t_max, last)
        if not 0 <= churn < math.inf:
            raise ArgumentError("churn", churn, "0 or more")
        if not 0 <= s_min < s_max:
            raise ArgumentError("s_min, s_max", (s_min, s_max), "0 <= s_min < s_max")
        if not 0 < s_noise < math.inf:
            raise ArgumentError("s_noise", s_noise, "a positive number")
        self.churn, self.s_min, self.s_max, self.s_noise = churn, s_min, s_max, s_noise
        self.deterministic = churn == 0

    def states(self, model, x, steps, cond, generator):
        sde = model.sde
        times = time_grid(sde, steps, self.grid, self.t_min, self.t_max)
        levels, steps = sde.levels(times), len(times) - 1
        rhos = [level.rho for level in levels]
        gamma = min(self.churn / steps, math.sqrt(2) - 1)
        churned = [gamma > 0 and self.s_min <= rho <= self.s_max for rho in rhos[:-1]]
        log_rho = torch.tensor([math.log(rho * (1 + gamma)) for rho in rhos[:-1]], dtype=torch.float64)
        noisier = sde.levels(sde.time_of(-2 * log_rho)) if gamma else levels
        y, calls, draw = x / levels[0].alpha, 0, noise_like(x, generator)
        yield State(x, levels[0].t, None, 0, steps, calls)
        for i, (level, target) in enumerate(itertools.pairwise(levels)):
            rho, end = rhos[i], rhos[i + 1]
            if churned[i]:
                level = noisier[i]
                hat = level.rho
                if hat > rho:
                    scale = self.s_noise * math.sqrt(hat**2 - rho**2)
                    y = torch.add(y, draw(), alpha=scale)
                rho = hat
            estimate = model.estimate(y.mul(level.alpha), level, cond)
            ahead = torch.add(y, estimate.eps, alpha=end - rho)
            calls += 1
            if end > 0:
                slope = model.estimate(ahead.mul(target.alpha), target, cond).eps
                ahead = torch.add(y, estimate.eps + slope, alpha=0.5 * (end - rho))
                calls += 1
            y = ahead
            yield State(y.mul(target.alpha), target.t, estimate.x0, i + 1, steps, calls)

    def __repr__(self):
        return f"Heun(churn={self.churn:g})"
