"""Samplers: plain objects that turn noise into data, and the two functions that run them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DeviceError, ShapeError, UnknownNameError
from scoresde.models import Model
from scoresde.sampling.flow import ProbabilityFlowField, flat, state_dtype
from scoresde.sampling.grids import GRIDS, check_steps, time_grid, time_range
from scoresde.sampling.ode import ADAPTIVE, METHODS, integrate
from scoresde.sampling.steps import Coefficients, Corrector, Implicit, Predictor, ReverseDiffusion
from scoresde.sde import Level
from scoresde.sde.times import randn

Cond = Mapping[str, Tensor] | None


class State(NamedTuple):
    """A point of a trajectory.

    Attributes:
        x: the samples ``(B, *D)`` at time t.
        t: the time, 1 (noise) to 0 (data).
        x0: the model's estimate of the data that this point was stepped from; None before the first call.
        step, steps: how many steps are done, of how many.
        calls: network calls so far.
    """

    x: Tensor
    t: float
    x0: Tensor | None
    step: int
    steps: int
    calls: int


def half_tweedie(model: Model, x: Tensor, level: Level, cond: Cond) -> tuple[Tensor, Tensor]:
    """x = (x_t - sigma eps / 2) / alpha: the probability flow's last stretch to t = 0, to first order in sigma^2."""
    estimate = model.estimate(x, level, cond)
    return (x - 0.5 * level.sigma * estimate.eps) / level.alpha, estimate.x0


def tweedie(model: Model, x: Tensor, level: Level, cond: Cond) -> tuple[Tensor, Tensor]:
    """x = E[x_0 | x_t] ("denoise to zero"): no noise is left, but the spread of the data below sigma is lost."""
    x0 = model.estimate(x, level, cond).x0
    return x0, x0


#: what becomes of the noise that is left at t_min
LAST_STEPS: dict[str, Callable | None] = {"half-tweedie": half_tweedie, "tweedie": tweedie, "none": None}


class Sampler(ABC):
    """From x at t_max to samples at t = 0. Subclasses are plain objects: settings, and :meth:`states`.

    Args of every sampler:
        t_min, t_max: the ends of the run; None takes the default for the model's SDE (``grids.time_range``).
        last: ``"half-tweedie"`` (follow the flow from t_min to 0), ``"tweedie"`` (denoise) or ``"none"``.
    """

    #: steps where the caller gives none
    default_steps: int = 1

    def __init__(self, *, t_min: float | None = None, t_max: float | None = None, last: str = "half-tweedie"):
        if last not in LAST_STEPS:
            raise UnknownNameError("last", last, LAST_STEPS)
        self.t_min, self.t_max, self.last = t_min, t_max, last

    @abstractmethod
    def states(self, model: Model, x: Tensor, steps: int, cond: Cond, generator) -> Iterator[State]:
        """The states from t_max to t_min, the start included."""

    def trajectory(self, model: Model, x: Tensor, steps: int | None, cond: Cond, generator) -> Iterator[State]:
        """The states from x at t_max to the samples at t = 0, the start and the last step included."""
        steps = self.default_steps if steps is None else check_steps(steps)
        state = None
        for state in self.states(model, x, steps, cond, generator):
            yield state
        finish = LAST_STEPS[self.last]
        if finish is not None:
            x, x0 = finish(model, state.x, model.sde.levels(torch.tensor([state.t], dtype=torch.float64))[0], cond)
            yield State(x, 0.0, x0, state.step, state.steps, state.calls + 1)


class PredictorCorrector(Sampler):
    """The reverse SDE (E2) by predictor and corrector (E7; Song et al. 2021, algorithm 1).

    Each step takes the predictor from t to s, then ``corrector_steps`` steps of the corrector at s: one network call
    each.

    Args:
        predictor: :class:`ReverseDiffusion`, :class:`Ancestral` or :class:`EulerMaruyama`.
        corrector: :class:`Langevin`, or None.
        corrector_steps: how many times the corrector steps at each level.
        grid: what the times are uniform in: ``"time"``, ``"log_snr"``, ``"quadratic"`` or ``"karras"``.
    """

    default_steps = 500

    def __init__(
        self,
        predictor: Predictor | None = None,
        corrector: Corrector | None = None,
        *,
        corrector_steps: int = 1,
        grid: str = "time",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(t_min=t_min, t_max=t_max, last=last)
        if grid not in GRIDS:
            raise UnknownNameError("grid", grid, GRIDS)
        self.predictor = ReverseDiffusion() if predictor is None else predictor
        self.corrector, self.grid = corrector, grid
        self.corrector_steps = check_steps(corrector_steps, "corrector_steps") if corrector is not None else 0

    def states(self, model, x, steps, cond, generator):
        times = time_grid(model.sde, steps, self.grid, self.t_min, self.t_max)
        levels = model.sde.levels(times)
        t, s = times[:-1], times[1:]
        table = zip(*(c.tolist() for c in self.predictor.coefficients(model.sde, t, s)), strict=True)
        alphas = model.sde.transition(s, t)[0].tolist()

        def draw():
            return randn(x.shape, generator, x.device, x.dtype)

        calls = 0
        yield State(x, levels[0].t, None, 0, steps, calls)
        for i, ((level, target), row, alpha) in enumerate(
            zip(itertools.pairwise(levels), table, alphas, strict=True), start=1
        ):
            c = Coefficients(*row)
            estimate = model.estimate(x, level, cond)
            x = c.combine(x, estimate, draw)
            for _ in range(self.corrector_steps):
                x = self.corrector.step(x, model.estimate(x, target, cond), alpha, draw)
            calls += 1 + self.corrector_steps
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
        grid: str = "time",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(Implicit(eta), grid=grid, t_min=t_min, t_max=t_max, last=last)

    def __repr__(self):
        return f"DDIM(eta={self.predictor.eta:g})"


class ProbabilityFlow(Sampler):
    """The probability-flow ODE (E8) by a black-box solver, in lambda = log(alpha/sigma).

    Args:
        method: ``"dopri5"`` (default) and ``"bosh3"`` adapt the step of each sample alone; ``"rk4"``, ``"heun"``,
            ``"midpoint"``, ``"euler"`` take ``steps`` equal steps in lambda; torchdiffeq's and scipy's methods go
            by their names (see :func:`scoresde.sampling.ode.integrate`).
        rtol, atol: tolerances of the adaptive methods.

    With an adaptive method ``steps`` is the number of states a trajectory shows, 1 by default.
    """

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

    def states(self, model, x, steps, cond, generator):
        t_min, t_max = time_range(model.sde, self.t_min, self.t_max)
        start, end = (model.sde.log_snr(t).item() / 2 for t in (t_max, t_min))
        grid = torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()
        times = [t_max, *model.sde.time_of(2 * torch.tensor(grid[1:-1], dtype=torch.float64)).tolist(), t_min]
        field = ProbabilityFlowField(model, x.shape[1:], cond)
        y = flat(x).to(state_dtype(x))
        calls = 0
        yield State(x, t_max, None, 0, steps, calls)
        for i, (a, b) in enumerate(itertools.pairwise(grid), start=1):
            y, spent = integrate(field, y, a, b, method=self.method, rtol=self.rtol, atol=self.atol, steps=1)
            calls += spent
            yield State(y.reshape(x.shape).to(x.dtype), times[i], None, i, steps, calls)

    def __repr__(self):
        return f"ProbabilityFlow({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"


def _start(model: Model, shape, start: Tensor | None, cond: Cond, generator, device, dtype) -> Tensor:
    shape = tuple(shape)
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ShapeError("shape", shape, "(B, *D) of positive sizes")
    device = torch.device(device) if device is not None else model.device
    dtype = model.dtype if dtype is None else dtype
    for name, value in (cond or {}).items():
        if value.shape[:1] != shape[:1]:
            raise ShapeError(f"cond[{name!r}]", tuple(value.shape), f"({shape[0]}, ...), one row a sample")
    if start is None:
        return model.sde.prior_sample(shape, generator, device, dtype)
    if tuple(start.shape) != shape:
        raise ShapeError("start", tuple(start.shape), f"the shape asked for, {shape}")
    if start.device != device:
        raise DeviceError("start", start.device, f"the model's device, {device}")
    return start.to(dtype)


@torch.no_grad()
def trajectory(
    model: Model,
    shape,
    sampler: Sampler | None = None,
    steps: int | None = None,
    start: Tensor | None = None,
    cond: Cond = None,
    generator=None,
    *,
    device=None,
    dtype=None,
) -> Iterator[State]:
    """Iterate over the states of a sampling run, from the noise to the samples; arguments as in :func:`sample`."""
    sampler = ProbabilityFlow() if sampler is None else sampler
    if not isinstance(sampler, Sampler):
        raise ArgumentError("sampler", repr(sampler), "a sampler, such as ProbabilityFlow() or PredictorCorrector()")
    x = _start(model, shape, start, cond, generator, device, dtype)
    yield from sampler.trajectory(model, x, steps, cond, generator)


def sample(
    model: Model,
    shape,
    sampler: Sampler | None = None,
    steps: int | None = None,
    start: Tensor | None = None,
    cond: Cond = None,
    generator=None,
    *,
    device=None,
    dtype=None,
    callback: Callable[[State], None] | None = None,
) -> Tensor:
    """Draw samples ``(B, *D)`` from the model.

    Args:
        model: a score model.
        shape: ``(B, *D)``.
        sampler: :class:`PredictorCorrector`, :class:`ProbabilityFlow`...; None is the probability flow by ``dopri5``.
        steps: how many steps; None is the sampler's default.
        start: x at t_max ``(B, *D)``, instead of a draw from the prior.
        cond: tensors ``(B, ...)`` by name, passed to the network.
        generator: a torch.Generator, or a list of B of them, one a sample; all randomness comes from it.
        device, dtype: of the samples; default: the model's.
        callback: called with each :class:`State`.

    Raises:
        ShapeError, ArgumentError: arguments that do not fit.
        ToleranceError: an adaptive method cannot reach its tolerance.
    """
    state = None
    for state in trajectory(model, shape, sampler, steps, start, cond, generator, device=device, dtype=dtype):
        if callback is not None:
            callback(state)
    return state.x
