"""Exponential multistep solvers in lambda = log(alpha/sigma), deterministic and stochastic.

In y = x/alpha and rho = sigma/alpha = exp(-lambda), the reverse process with noise tau (0: the probability flow,
1: the reverse SDE) is dy = (1 + tau^2) (x0 - y) dlambda + sqrt(2) tau rho dW. Its linear part is solved exactly:

    x_s = (sigma_s/sigma_t) e^{-tau^2 h} x_t + sigma_s sqrt(1 - e^{-2 tau^2 h}) z
          + alpha_s int_t^s (1 + tau^2) e^{-(1 + tau^2)(lambda_s - lambda)} x0 dlambda,    h = lambda_s - lambda_t,

and x0 under the integral is the polynomial in lambda through the estimates at the last levels (Adams-Bashforth): a
method is its levels and its weights (Lu et al. 2022b; Zhao et al. 2023; Xue et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Model, Moments
from scoresde.sampling.flow import flat
from scoresde.sampling.grids import GRIDS, Grid, explicit_times, time_grid, time_range
from scoresde.sampling.samplers import LAST_STEPS, Sampler, State
from scoresde.sde import Level
from scoresde.sde.times import randn

MAX_ORDER = 5
END_LEVELS = 4  # levels that the last stretch is extrapolated from


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(16)


def _lagrange(nodes: Sequence[float], points: np.ndarray) -> np.ndarray:
    """The Lagrange polynomials of ``nodes`` at ``points``, ``(nodes, points)``."""
    rows = np.ones((len(nodes), len(points)))
    for j, a in enumerate(nodes):
        for k, b in enumerate(nodes):
            if k != j:
                rows[j] *= (points - b) / (a - b)
    return rows


@lru_cache(maxsize=4096)  # a grid's weights are the same in every run over it
def exponential_weights(start: float, end: float, nodes: tuple[float, ...], tau: float = 0.0) -> tuple[float, ...]:
    """w_j = int_start^end r e^{-r (end - lambda)} L_j(lambda) dlambda, r = 1 + tau^2, L_j the nodes' Lagrange basis.

    They sum to 1 - e^{-r (end - start)}; for one node that is the exponential Euler step, DDIM (D6).
    """
    x, w = _gauss_legendre()
    points, w = (start + end) / 2 + (end - start) / 2 * x, (end - start) / 2 * w
    rate = 1 + tau**2
    return tuple((_lagrange(nodes, points) @ (w * rate * np.exp(-rate * (end - points)))).tolist())


def end_weights(rhos: Sequence[float]) -> list[float]:
    """w_j with y(0) = y(rho_n) - sum_j w_j eps_j/rho_j: the flow's last stretch, from rho_n = ``rhos[-1]`` to 0.

    dy/d(rho^2) = (eps/rho)/2, and eps/rho = -alpha score is smooth in rho^2 near the data: here it is the polynomial
    through the last levels. One level gives w = rho^2/2, the half Tweedie step.
    """
    x, w = _gauss_legendre()
    square = rhos[-1] ** 2
    return (0.5 * _lagrange([rho**2 for rho in rhos], square / 2 * (1 + x)) @ (square / 2 * w)).tolist()


def automatic_order(calls: int, tau: float = 0.0) -> int:
    """An order that grows with the number of calls, as smaller steps bear it: 2 to 7, 3 to 20, 4 to 60, then 5.

    Noise that is injected at every step is no polynomial: with tau > 0 the order stays at 3 (5 was unstable).
    """
    if calls < 8:
        return 2
    return 3 if calls <= 20 or tau else 4 if calls <= 60 else 5


def data_levels(moments: Moments, calls: int, tau: float = 0.0) -> np.ndarray:
    """``calls`` levels of lambda from the scale of the data, growing, denser in the middle.

    For 5 calls the first is at rho = e^0.4 (largest std), where p_t stops being the Gaussian of its moments, and the
    last at e^-2 (mean std), where eps starts to be linear in rho. Both ends move out with the logarithm of the calls;
    between them lambda = a + (b - a)(u + 0.2 sin(2 pi u)/(2 pi)), u uniform. With noise the last level is e^-tau lower,
    as what is injected near the data has to be taken out again. The numbers were measured on mixtures of 8 anisotropic
    Gaussians in 2 and 64 dimensions.
    """
    growth = math.log(max(calls, 2) / 5)
    largest = 0.5 * moments.values.max().clamp(min=1e-300).log().item()
    first = -largest - 0.4 - 1.1 * growth
    last = max(2.0 + tau + 0.65 * growth - math.log(max(moments.std, 1e-300)), first + 1.0)
    u = np.linspace(0.0, 1.0, calls)
    return first + (last - first) * (u + 0.2 * np.sin(2 * math.pi * u) / (2 * math.pi))


class DPMSolver(Sampler):
    """Exponential multistep solver of the probability flow, or of the reverse SDE, in log-SNR; ``steps`` network calls.

    The predictor is Adams-Bashforth's of the given order; with ``corrector`` the estimate at the new level corrects the
    step that led there before it serves the next one, at no further call (an Adams-Moulton step of one order more).

    With ``grid="data"`` the levels come from the data's scale. Above the first of them p_t is as good as the
    Gaussian with the data's mean and covariance, whose flow is known: x goes there without a call. Below the last one
    eps/rho is extrapolated as a polynomial in rho^2.

    Args:
        order: 1 to 5, or ``"auto"`` (:func:`automatic_order`). Order 1 without corrector is DDIM.
        stochastic: False (tau = 0, the flow), True (tau = 1, the reverse SDE), or tau itself.
        corrector: see above.
        grid: ``"data"`` (for models that know the data's moments; ``"log_snr"`` for others), or what the times are
            uniform in: ``"log_snr"``, ``"time"``, ``"quadratic"``, ``"karras"``; a DDPM's or an NCSN's ``"levels"`` or
            ``"trailing"``; or the times of the calls themselves, a decreasing list.
        t_min, t_max: ends.
        last: from the last level to 0: ``"flow"`` (extrapolation), ``"half-tweedie"``, ``"tweedie"`` or ``"none"``.
    """

    default_steps = 20

    def __init__(
        self,
        order: int | str = "auto",
        stochastic: bool | float = False,
        *,
        corrector: bool = True,
        grid: Grid = "data",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "flow",
    ):
        if last not in ("flow", *LAST_STEPS):
            raise UnknownNameError("last", last, ("flow", *LAST_STEPS))
        super().__init__(t_min=t_min, t_max=t_max, last="none")
        if order != "auto" and not (isinstance(order, int) and 1 <= order <= MAX_ORDER):
            raise ArgumentError("order", order, f"'auto' or 1 to {MAX_ORDER}")
        if isinstance(grid, str) and grid not in ("data", *GRIDS):
            raise UnknownNameError("grid", grid, ("data", *GRIDS))
        if not 0 <= float(stochastic) < math.inf:
            raise ArgumentError("stochastic", stochastic, "False, True or a noise tau >= 0")
        self.order, self.tau, self.corrector, self.finish = order, float(stochastic), corrector, last
        self.deterministic = self.tau == 0
        self.grid = grid if isinstance(grid, str) else explicit_times(grid)
        if not isinstance(grid, str):
            self.default_steps = len(self.grid)

    def levels(self, model: Model, steps: int) -> tuple[Level, list[Level], bool]:
        """``(level of x, levels of the calls, whether x goes to the first of them by the Gaussian's flow)``."""
        sde = model.sde
        if not isinstance(self.grid, str):
            levels = sde.levels(self.grid)
            if steps != len(levels) or levels[-1].sigma == 0:
                got = f"{len(levels)} times from {self.grid[0]:g} to {self.grid[-1]:g}"
                raise ArgumentError("grid", got, f"{steps} times with noise, one a call")
            return levels[0], levels, False
        t_min, t_max = time_range(sde, self.t_min, self.t_max)
        start = sde.levels(torch.tensor([t_max], dtype=torch.float64))[0]
        if self.grid == "data" and model.moments is not None:
            lowest, highest = start.log_snr / 2, sde.log_snr(t_min).item() / 2
            lam = data_levels(model.moments, steps, self.tau)
            if lam[0] < lowest or lam[-1] > highest:  # keep the spacing's shape within the ends
                first, last = max(lam[0], lowest), min(lam[-1], highest)
                lam = first + (last - first) * (lam - lam[0]) / max(lam[-1] - lam[0], 1e-300)
            levels = sde.levels(sde.time_of(2 * torch.from_numpy(lam)))
            return start, levels, levels[0].log_snr > start.log_snr + 1e-9
        kind = "log_snr" if self.grid == "data" else self.grid
        times = time_grid(sde, steps - 1, kind, t_min, t_max) if steps > 1 else torch.tensor([t_max])
        return start, sde.levels(times), False

    def states(self, model, x, steps, cond, generator):
        start, levels, jump = self.levels(model, steps)
        order = automatic_order(steps, self.tau) if self.order == "auto" else self.order
        lam = [level.log_snr / 2 for level in levels]
        yield State(x, start.t, None, 0, steps, 0)
        if jump:
            x = gaussian_flow(model.moments, x, start, levels[0])
        history: list[Tensor] = []  # estimates of x0, the newest last
        slopes: list[Tensor] = []  # eps/rho at the last levels
        moved = x
        for i, level in enumerate(levels):
            x0 = model.estimate(x, level, cond).x0
            history = [*history, x0][-order - 1 :]
            if self.corrector and i:
                nodes = tuple(lam[max(0, i - order) : i + 1])
                x = self._drifted(moved, levels[i - 1], level, nodes, history)
            slopes = [*slopes, (x / level.alpha - x0) * (level.alpha / level.sigma) ** 2][-END_LEVELS:]
            yield State(x, level.t, x0, i, steps, i + 1)
            if i + 1 < steps:
                target = levels[i + 1]
                h = lam[i + 1] - lam[i]
                moved = (target.sigma / level.sigma * math.exp(-(self.tau**2) * h)) * x
                if self.tau:
                    scale = target.sigma * math.sqrt(-math.expm1(-2 * self.tau**2 * h))
                    moved = moved + scale * randn(x.shape, generator, x.device, x.dtype)
                nodes = tuple(lam[max(0, i + 1 - order) : i + 1])
                x = self._drifted(moved, level, target, nodes, history)
        yield State(
            self._end(x, levels, x0, slopes), 0.0 if self.finish != "none" else level.t, x0, steps, steps, steps
        )

    def _drifted(self, x: Tensor, start: Level, end: Level, nodes: tuple[float, ...], history: list[Tensor]) -> Tensor:
        weights = exponential_weights(start.log_snr / 2, end.log_snr / 2, nodes, self.tau)
        for w, x0 in zip(weights, history[-len(nodes) :], strict=True):
            x = torch.add(x, x0, alpha=end.alpha * w)
        return x

    def _end(self, x: Tensor, levels: list[Level], x0: Tensor, slopes: list[Tensor]) -> Tensor:
        if self.finish == "none":
            return x
        if self.finish == "tweedie":
            return x0
        rhos = [level.sigma / level.alpha for level in levels]
        used = slopes[-1:] if self.finish == "half-tweedie" else slopes
        weights = end_weights(rhos[-len(used) :])
        return x / levels[-1].alpha - sum(w * slope for w, slope in zip(weights, used, strict=True))


def gaussian_flow(moments: Moments, x: Tensor, start: Level, end: Level) -> Tensor:
    """The probability flow of the Gaussian with the data's moments, from one level to another, in closed form.

    Along it (y - m)/sqrt(c + rho^2) is constant in each eigendirection of the covariance, c its eigenvalue.
    """
    mean = moments.mean.reshape(-1).to(x)
    rho_start, rho_end = start.sigma / start.alpha, end.sigma / end.alpha
    ratio = ((moments.values + rho_end**2) / (moments.values + rho_start**2)).sqrt().to(x)
    centred = flat(x) / start.alpha - mean
    if moments.vectors is None:
        y = centred * ratio + mean
    else:
        vectors = moments.vectors.to(x)
        y = (centred @ vectors * ratio) @ vectors.T + mean
    return (end.alpha * y).reshape(x.shape)
