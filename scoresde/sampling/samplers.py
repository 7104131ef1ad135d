"""Samplers: plain objects that turn noise into data. :mod:`scoresde.sampling.run` runs them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.flow.field import ProbabilityFlowField, on_the_flow
from scoresde.flow.ode import ADAPTIVE, METHODS, integrate
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.random import randn
from scoresde.sampling.steps import Coefficients, Corrector, Implicit, Predictor, ReverseDiffusion
from scoresde.sde import SDE, Level
from scoresde.sde.grids import Grid, check_grid, fixes_steps, time_grid, time_range
from scoresde.sde.tensors import flat, state_dtype


class State(NamedTuple):
    """A point of a trajectory.

    Attributes:
        x: the samples ``(B, *D)`` at time t.
        t: the time, 1 (noise) to 0 (data).
        x0: the model's estimate of the data that this point was stepped from; None before the first call.
        step, steps: how many steps are done, of how many.
        calls: network calls so far.
        log_weight: of samplers that draw with weights (:class:`Particles`), the logarithms ``(B,)`` of the samples'.
    """

    x: Tensor
    t: float
    x0: Tensor | None
    step: int
    steps: int
    calls: int
    log_weight: Tensor | None = None


def noise_like(x: Tensor, generator) -> Callable[[], Tensor]:
    """A function that draws standard normal noise of x's shape, dtype and device, as :func:`randn` does."""
    plain = generator is None or (type(generator) is torch.Generator and generator.device == x.device)
    if plain:  # nothing to look at again in each step
        return partial(torch.randn, x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return partial(randn, x.shape, generator, x.device, x.dtype)


def half_tweedie(model: Model, x: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
    """x = (x_t - sigma eps / 2) / alpha: the probability flow's last stretch to t = 0, to first order in sigma^2."""
    estimate = model.estimate(x, level, cond)
    return (x - 0.5 * level.sigma * estimate.eps) / level.alpha, estimate.x0


def tweedie(model: Model, x: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
    """x = E[x_0 | x_t] ("denoise to zero"): no noise is left, but the spread of the data below sigma is lost."""
    x0 = model.estimate(x, level, cond).x0
    return x0, x0


#: what becomes of the noise that is left at t_min
LAST_STEPS: dict[str, Callable | None] = {"half-tweedie": half_tweedie, "tweedie": tweedie, "none": None}
#: the last step is x = (x_t - weight sigma eps)/alpha
LAST_WEIGHTS = {"half-tweedie": 0.5, "tweedie": 1.0, "none": None}


def undo_last(model: Model, x0: Tensor, level: Level, last: str, cond: Condition, calls: int = 4) -> Tensor:
    """The x_t at ``level`` that the last step takes to ``x0``.

    x_t = alpha x0 + weight sigma eps(x_t), solved by iterating from alpha x0; each of the ``calls`` leaves a fraction
    of the error, weight sigma times the norm of d eps/dx, which is small where the density is smooth below sigma.
    """
    weight = LAST_WEIGHTS[last]
    if weight is None or not level.sigma:
        return x0
    x = level.alpha * x0
    for _ in range(calls):
        x = level.alpha * x0 + (weight * level.sigma) * model.estimate(x, level, cond).eps
    return x


class Sampler(ABC):
    """From x at t_max to samples at t = 0. Subclasses are plain objects: settings, and :meth:`states`.

    Args of every sampler:
        t_min, t_max: the ends of the run; None takes the default for the model's SDE (``grids.time_range``).
        last: ``"half-tweedie"`` (follow the flow from t_min to 0, to first order in sigma^2), ``"tweedie"`` (denoise)
            or ``"none"``. Where the run ends without noise there is nothing left to do.

    What the last step costs, measured on the exact flow (VP) of the four mixtures of benchmarks/quality.py, by where
    the run ends: the mean endpoint error over sqrt(d), the same in both dimensions, and the bias of -log p in nats.

        ==================  =======  ============  =======  ======
        sigma/alpha, t_min           half-tweedie  tweedie  none
        ==================  =======  ============  =======  ======
        .001 (default)      error    2e-10         2e-6     2e-6
        .001                d = 2    2e-9          -4e-5    +4e-5
        .001                d = 64   5e-8          -7e-4    +6e-4
        .01                 error    9e-7          2e-4     2e-4
        .01                 d = 2    2e-5          -.004    +.004
        .01                 d = 64   2e-4          -.07     +.06
        .03                 error    6e-5          2e-3     2e-3
        .03                 d = 2    .001          -.03     +.03
        .03                 d = 64   .02           -.54     +.58
        ==================  =======  ============  =======  ======
    """

    #: steps where the caller gives none; None where they follow from the grid
    default_steps: int | None = 1
    #: whether the samples are a function of the start alone
    deterministic: bool = False

    def __init__(self, *, t_min: float | None = None, t_max: float | None = None, last: str = "half-tweedie"):
        if last not in LAST_STEPS:
            raise UnknownNameError("last", last, LAST_STEPS)
        self.t_min, self.t_max, self.last = t_min, t_max, last

    @abstractmethod
    def states(self, model: Model, x: Tensor, steps: int, cond: Condition, generator) -> Iterator[State]:
        """The states from t_max to t_min, the start included."""

    def trajectory(self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator) -> Iterator[State]:
        """The states from x at t_max to the samples at t = 0, the start and the last step included."""
        steps = self._steps(steps)
        state = None
        for state in self.states(model, x, steps, cond, generator):
            yield state
        finish, level = LAST_STEPS[self.last], model.sde.levels(torch.tensor([state.t], dtype=torch.float64))[0]
        if finish is not None and level.sigma > 0:
            x, x0 = finish(model, state.x, level, cond)
            yield state._replace(x=x, t=0.0, x0=x0, calls=state.calls + 1)

    def _steps(self, steps: int | None) -> int | None:
        return self.default_steps if steps is None else whole("steps", steps)

    def inverse(self, model: Model, x0: Tensor, steps: int | None, cond: Condition) -> Tensor:
        """x at t_max from data x0: the sampler run backwards.

        Raises:
            ArgumentError: this sampler has no inverse.
        """
        raise ArgumentError("sampler", repr(self), "one that runs backwards: ProbabilityFlow() or DDIM(eta=0)")


class GridSampler(Sampler):
    """A sampler on a grid of times.

    Args:
        grid: what the times are uniform in, ``"time"``, ``"log_snr"``, ``"quadratic"`` or ``"karras"``; for a DDPM or
            an NCSN its own ``"levels"``, or a ``"trailing"`` subsequence of them; or the times, a decreasing list
            (see :func:`time_grid`). With levels or a list the number of steps may be left out.

    Raises:
        ArgumentError: given times that do not decrease within [0, 1], or that come with ``t_min`` or ``t_max``.
    """

    def __init__(self, grid: Grid, t_min: float | None, t_max: float | None, last: str):
        super().__init__(t_min=t_min, t_max=t_max, last=last)
        self.grid = check_grid(grid)
        if not isinstance(self.grid, str) and (t_min, t_max) != (None, None):
            raise ArgumentError("t_min, t_max", (t_min, t_max), "None: the times given as grid bring their own ends")
        if fixes_steps(self.grid):
            self.default_steps = None


REVERSE_DIFFUSION = ReverseDiffusion()


class PredictorCorrector(GridSampler):
    """The reverse SDE (E2) by predictor and corrector (E7; Song et al. 2021, algorithm 1).

    Each step takes the predictor from t to s, then ``corrector_steps`` steps of the corrector at s: one network call
    each. Without a predictor the corrector alone works, at every time of the grid with noise, the first included: with
    :class:`AnnealedLangevin`, ``grid="levels"`` and ``last="tweedie"`` that is NCSN's sampler (N3, N5).

    Args:
        predictor: :class:`ReverseDiffusion` (the default), :class:`Ancestral`, :class:`EulerMaruyama`, or None.
        corrector: :class:`Langevin`, :class:`AnnealedLangevin`, or None.
        corrector_steps: how many times the corrector steps at each level.
        corrector_first: correct at t before the predictor's step from t, instead of at s after it (the order of the
            paper's code).
        grid: as in :class:`GridSampler`.
        t_min, t_max, last: as in :class:`Sampler`.

    Raises:
        ArgumentError: neither predictor nor corrector.
    """

    default_steps = 500

    def __init__(
        self,
        predictor: Predictor | None = REVERSE_DIFFUSION,
        corrector: Corrector | None = None,
        *,
        corrector_steps: int = 1,
        corrector_first: bool = False,
        grid: Grid = "time",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(grid, t_min, t_max, last)
        if predictor is None and corrector is None:
            raise ArgumentError("predictor, corrector", (None, None), "at least one of the two")
        self.predictor, self.corrector, self.corrector_first = predictor, corrector, corrector_first
        self.corrector_steps = whole("corrector_steps", corrector_steps) if corrector is not None else 0

    def states(self, model, x, steps, cond, generator):
        times = time_grid(model.sde, steps, self.grid, self.t_min, self.t_max)
        levels = model.sde.levels(times)
        t, s = times[:-1], times[1:]
        alphas = model.sde.transition(s, t)[0].tolist()
        corrector = None if self.corrector is None else self.corrector.on(levels)

        draw = noise_like(x, generator)

        def correct(x, level, alpha):
            """x, the estimate of the last call (None without any) and the calls; at sigma = 0 nothing is to correct."""
            estimate, calls = None, self.corrector_steps if level.sigma > 0 else 0
            for _ in range(calls):
                estimate = model.estimate(x, level, cond)
                x = corrector.step(x, estimate, alpha, draw)
            return x, estimate, calls

        calls = 0
        if self.predictor is None:
            noisy = [level for level in levels if level.sigma > 0]
            yield State(x, noisy[0].t, None, 0, len(noisy), calls)
            for i, (level, alpha) in enumerate(zip(noisy, [alphas[0], *alphas], strict=False), start=1):
                x, estimate, spent = correct(x, level, alpha)
                calls += spent
                yield State(x, level.t, estimate.x0, i, len(noisy), calls)
            return
        steps = len(t)
        table = zip(*(c.tolist() for c in self.predictor.coefficients(model.sde, t, s)), strict=True)
        yield State(x, levels[0].t, None, 0, steps, calls)
        for i, ((level, target), row, alpha) in enumerate(
            zip(itertools.pairwise(levels), table, alphas, strict=True), start=1
        ):
            spent = 0
            if self.corrector_first:
                x, _, spent = correct(x, level, alpha)
            estimate = model.estimate(x, level, cond)
            x = self.predictor.step(Coefficients(*row), x, estimate, target, draw)
            if not self.corrector_first:
                x, _, spent = correct(x, target, alpha)
            calls += 1 + spent
            yield State(x, target.t, estimate.x0, i, steps, calls)

    def __repr__(self):
        return f"PredictorCorrector({self.predictor!r}, {self.corrector!r})"


class DDIM(PredictorCorrector):
    """DDIM (D3, D5; Song, Meng & Ermon 2021) for every SDE.

    Args:
        eta: 0 is deterministic, a first-order integrator of the probability flow (D6); 1 is ancestral sampling.
        grid, t_min, t_max, last: as in :class:`PredictorCorrector`.
    """

    default_steps = 50

    def __init__(
        self,
        eta: float = 0.0,
        *,
        grid: Grid = "time",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(Implicit(eta), grid=grid, t_min=t_min, t_max=t_max, last=last)
        self.deterministic = eta == 0

    def inverse(self, model, x0, steps, cond):
        """DDIM's step taken backwards (D6): x_t = alpha_t x0(x_s, s) + sigma_t eps(x_s, s), from s up to t."""
        if not self.deterministic:
            return super().inverse(model, x0, steps, cond)
        times = time_grid(model.sde, self._steps(steps), self.grid, self.t_min, self.t_max)
        levels = model.sde.levels(times.flip(0))
        x = undo_last(model, x0, levels[0], self.last, cond)
        for level, target in itertools.pairwise(levels):
            estimate = model.estimate(x, level, cond)
            x = target.alpha * estimate.x0 + target.sigma * estimate.eps
        return x

    def __repr__(self):
        return f"DDIM(eta={self.predictor.eta:g})"


class ProbabilityFlow(Sampler):
    """The probability-flow ODE (E8) by a black-box solver, in lambda = log(alpha/sigma).

    Args:
        method: ``"dopri5"`` (default) and ``"bosh3"`` adapt the step of each sample alone; ``"rk4"``, ``"heun"``,
            ``"midpoint"``, ``"euler"`` take ``steps`` equal steps in lambda; torchdiffeq's and scipy's methods go
            by their names (see :func:`scoresde.flow.ode.integrate`).
        rtol, atol: tolerances of the adaptive methods.

    With an adaptive method ``steps`` is the number of states a trajectory shows, 1 by default.
    """

    deterministic = True

    def __init__(
        self,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        *,
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(t_min=t_min, t_max=t_max, last=last)
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
        self.method, self.rtol, self.atol = method, rtol, atol
        self.default_steps = 1 if method in ADAPTIVE else 50

    def _grid(self, sde: SDE, steps: int) -> tuple[float, float, list[float]]:
        """t_min, t_max, and ``steps + 1`` levels of lambda from the noise to the data."""
        t_min, t_max = time_range(sde, self.t_min, self.t_max)
        start, end = (sde.log_snr(t).item() / 2 for t in (t_max, t_min))
        return t_min, t_max, torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()

    def _settings(self, sde: SDE) -> dict:
        return {"method": self.method, "rtol": self.rtol, "atol": self.atol, "where": on_the_flow(sde)}

    def inverse(self, model, x0, steps, cond):
        """The flow from t_min up to t_max (E11), from the x that the last step takes to x0."""
        t_min, _, grid = self._grid(model.sde, 1)
        level = model.sde.levels(torch.tensor([t_min], dtype=torch.float64))[0]
        x = undo_last(model, x0, level, self.last, cond)
        field = ProbabilityFlowField(model, x.shape[1:], cond)
        y = flat(x).to(state_dtype(x))
        y = integrate(field, y, grid[-1], grid[0], steps=self._steps(steps), **self._settings(model.sde)).y
        return y.reshape(x.shape).to(x.dtype)

    def states(self, model, x, steps, cond, generator):
        t_min, t_max, grid = self._grid(model.sde, steps)
        times = [t_max, *model.sde.time_at(lam=torch.tensor(grid[1:-1], dtype=torch.float64)).tolist(), t_min]
        field, settings = ProbabilityFlowField(model, x.shape[1:], cond), self._settings(model.sde)
        y = flat(x).to(state_dtype(x))
        calls = 0
        yield State(x, t_max, None, 0, steps, calls)
        for i, (a, b) in enumerate(itertools.pairwise(grid), start=1):
            y, spent = integrate(field, y, a, b, steps=1, **settings)
            calls += spent
            yield State(y.reshape(x.shape).to(x.dtype), times[i], None, i, steps, calls)

    def __repr__(self):
        return f"ProbabilityFlow({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"
