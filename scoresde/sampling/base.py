"""The interface of samplers: their ends, last steps and grids.

Symbols:
    x: noisy samples ``(B, *D)``, x = alpha x_0 + sigma eps. t: time, from t_max (noise) to t_min, with the data at 0.
    alpha, sigma: mean scale and standard deviation of the noise at t.
    x0, eps: the model's estimates E[x_0 | x] and E[eps | x].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import number, whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.random import Generators, randn
from scoresde.sampling.frozen import Frozen
from scoresde.sde import SDE, Level
from scoresde.sde.grids import DISCRETE, GRIDS, Grid, explicit_times, fixes_steps, time_grid, time_range

#: a function that draws standard normal noise of the shape of x
Draw = Callable[[], Tensor]


class State(NamedTuple):
    """One point of a trajectory.

    Attributes:
        x: Samples ``(B, *D)`` at time t.
        t: Time, 1 (noise) to 0 (data).
        x0: Model's estimate of the data from which this point was stepped to. None before the first network call.
        step, steps: Steps done, and their total.
        calls: Network calls so far.
        log_weight: Logarithms ``(B,)`` of the samples' weights. None for samplers that draw without weights.
    """

    x: Tensor
    t: float
    x0: Tensor | None
    step: int
    steps: int
    calls: int
    log_weight: Tensor | None = None

    def __repr__(self) -> str:
        """Return where the trajectory is, without the numbers of the samples."""
        of = f"{tuple(self.x.shape)} {str(self.x.dtype).removeprefix('torch.')}"
        weights = "" if self.log_weight is None else ", log_weight"
        return (
            f"State(x of shape {of} at t={self.t:.4g}, step {self.step} of {self.steps}, {self.calls} calls{weights})"
        )


def noise_like(x: Tensor, generator: Generators) -> Draw:
    """Return a function that draws standard normal noise of the shape of x."""
    if generator is None or (type(generator) is torch.Generator and generator.device == x.device):
        # the usual case, without randn's checks in each step
        return partial(torch.randn, x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return partial(randn, x.shape, generator, x.device, x.dtype)


# ---- the last step, from t_min to the data ---------------------------------------------------------------------------

#: from a model, x at t_min, its level and a condition to x at t = 0 and the estimate x0
LastStep = Callable[[Model, Tensor, Level, Condition], tuple[Tensor, Tensor]]
LastName = Literal["flow", "half-tweedie", "tweedie", "none"]


def half_tweedie(model: Model, x: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
    """Follow the probability flow to t = 0, to first order in sigma^2.

    x_0 = (x - sigma eps / 2) / alpha.
    """
    estimate = model.estimate(x, level, cond)
    return (x - 0.5 * level.sigma * estimate.eps) / level.alpha, estimate.x0


def tweedie(model: Model, x: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
    """Denoise: x_0 = E[x_0 | x].

    No noise is left. The spread of the data below sigma is lost.
    """
    x0 = model.estimate(x, level, cond).x0
    return x0, x0


LAST_STEPS: Mapping[str, LastStep | None] = {"half-tweedie": half_tweedie, "tweedie": tweedie, "none": None}
#: the weight w of each last step, written as x_0 = (x - w sigma eps)/alpha
LAST_WEIGHTS: Mapping[str, float | None] = {"half-tweedie": 0.5, "tweedie": 1.0, "none": None}


def undo_last(model: Model, x0: Tensor, level: Level, last: str, cond: Condition, calls: int = 4) -> Tensor:
    """Return the x at ``level`` that the last step takes to ``x0``.

        x = alpha x0 + w sigma eps(x),    w the last step's weight

    This is solved by fixed-point iteration from alpha x0. Each call multiplies the error by w sigma |d eps/dx|, which
    is small where the density is smooth on the scale of sigma.
    """
    weight = LAST_WEIGHTS[last]
    if weight is None or not level.sigma:
        return x0
    x = level.alpha * x0
    for _ in range(calls):
        x = level.alpha * x0 + (weight * level.sigma) * model.estimate(x, level, cond).eps
    return x


# ---- samplers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Sampler(Frozen, ABC):
    """A method that takes x at t_max to samples at t = 0.

    Subclasses are frozen dataclasses: settings, and :meth:`states`. :mod:`scoresde.sampling.run` runs them.

    Args:
        t_min: Time in [0, 1] at which the run ends. None: the default for the SDE (:func:`scoresde.sde.time_range`).
        t_max: Time in [0, 1] at which the run starts. None: the default for the SDE.
        last: Step from t_min to the data: ``"half-tweedie"`` (default; follow the flow, to first order in sigma^2),
            ``"tweedie"`` (denoise) or ``"none"``. A run that ends without noise takes no last step.

    Raises:
        UnknownNameError: ``last`` is none of these names.

    Notes:
        Error of the last step on the exact flow (VP) of the four mixtures of benchmarks/quality.py. Rows are
        sigma/alpha at t_min; *error* is the mean endpoint error over sqrt(d), the same in both dimensions; the other
        rows are the bias of -log p in nats.

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

    t_min: float | None = field(default=None, kw_only=True)
    t_max: float | None = field(default=None, kw_only=True)
    last: LastName = field(default="half-tweedie", kw_only=True)

    #: whether row i of a call is the sample of row i of the call before
    keeps_rows: ClassVar[bool] = True
    #: the values of ``last``
    last_names: ClassVar[tuple[str, ...]] = tuple(LAST_STEPS)

    def __post_init__(self) -> None:
        if not isinstance(self.last, str) or self.last not in self.last_names:
            raise UnknownNameError("last", self.last, self.last_names)
        for name in ("t_min", "t_max"):
            value = getattr(self, name)
            if value is not None:
                self._store(**{name: number(name, value, "a time in [0, 1], or None")})

    @property
    def default_steps(self) -> int | None:
        """The default number of steps. None: it follows from the grid."""
        return 1

    @property
    def deterministic(self) -> bool:
        """Whether the samples are a function of the start alone."""
        return False

    @property
    def assumes_unit_scale(self) -> bool:
        """Whether data of unknown scale are taken to be of unit scale."""
        return False

    def start_time(self, sde: SDE) -> float:
        """Return the time at which a run under ``sde`` starts."""
        return time_range(sde, self.t_min, self.t_max)[1]

    @abstractmethod
    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        """Yield the states from t_max to t_min, the start included.

        Args:
            model: Score model.
            x: Start ``(B, *D)`` at t_max.
            steps: Number of steps. None: it follows from the grid.
            cond: Tensors ``(B, ...)`` by name for the network, or None.
            generator: Source of all noise.
        """

    def trajectory(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        """Yield the states from t_max to the samples at t = 0.

        The start and the last step are included. The arguments are those of :meth:`states`.
        """
        state = None
        for state in self.states(model, x, self.steps_for(steps), cond, generator):
            yield state
        final = None if state is None else self.final(model, state, cond)
        if final is not None:
            yield final

    def final(self, model: Model, state: State, cond: Condition) -> State | None:
        """Take the last step from ``state`` at t_min. None: there is none."""
        finish, level = LAST_STEPS[self.last], model.sde.levels(torch.tensor([state.t], dtype=torch.float64))[0]
        if finish is None or not level.sigma > 0:
            return None
        x, x0 = finish(model, state.x, level, cond)
        return state._replace(x=x, t=0.0, x0=x0, calls=state.calls + 1)

    def steps_for(self, steps: int | None) -> int | None:
        """Return the number of steps of a run, for what its caller gave.

        Raises:
            ArgumentError: ``steps`` is not a positive integer.
        """
        return self.default_steps if steps is None else whole("steps", steps)

    def inverse(self, model: Model, x0: Tensor, steps: int | None, cond: Condition) -> Tensor:
        """Run the sampler backwards, from data x0 ``(B, *D)`` to x at t_max.

        Raises:
            ArgumentError: This sampler has no inverse.
        """
        raise ArgumentError("sampler", repr(self), "one that runs backwards, such as ProbabilityFlow() or DDIM()")


@dataclass(frozen=True, repr=False)
class GridSampler(Sampler):
    """A sampler on a grid of times.

    Args:
        grid: Scale on which the times are equally spaced, default ``"time"``: ``"time"``, ``"log_snr"``,
            ``"quadratic"`` or ``"karras"``. For a DDPM or an NCSN also ``"levels"`` (all its levels) or ``"trailing"``
            (a subsequence). Or the times themselves, decreasing. See :func:`scoresde.sde.time_grid`.
        t_min, t_max, last: See :class:`Sampler`.

    With ``"levels"`` or given times the number of steps follows, and ``steps`` may be None.

    Raises:
        UnknownNameError: The name of the grid is unknown.
        ArgumentError: Given times do not decrease within [0, 1], or ``t_min`` or ``t_max`` is given with them.
    """

    grid: Grid = field(default="time", kw_only=True)

    #: the names that ``grid`` may have
    grid_names: ClassVar[tuple[str, ...]] = tuple(GRIDS)
    #: the number of steps where neither caller nor grid gives one
    usual_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.grid, str):
            if self.grid not in self.grid_names:
                raise UnknownNameError("grid", self.grid, self.grid_names)
            return
        self._store(grid=tuple(explicit_times(self.grid).tolist()))
        if (self.t_min, self.t_max) != (None, None):
            ends = (self.t_min, self.t_max)
            raise ArgumentError("t_min, t_max", ends, "None: the times given as `grid` have their own ends")

    def start_time(self, sde: SDE) -> float:
        if not isinstance(self.grid, str):
            return float(torch.as_tensor(self.grid, dtype=torch.float64)[0])
        if self.grid in DISCRETE and self.t_max is None:
            return 1.0
        return super().start_time(sde)

    @property
    def default_steps(self) -> int | None:
        """The default number of steps. None: it follows from the grid."""
        return None if fixes_steps(self.grid) else self.usual_steps

    def times(self, model: Model, steps: int | None) -> Tensor:
        """Return the times of a run on a model, ``steps + 1`` from t_max down."""
        ends = self.t_min, self.t_max
        if isinstance(self.grid, str) and self.grid not in DISCRETE:
            ends = model.time_range(*ends)
        return time_grid(model.sde, steps, self.grid, *ends)
