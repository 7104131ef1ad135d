"""The default sampler: an exponential multistep solver.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    lambda = log(alpha/sigma), growing towards the data. rho = sigma/alpha = exp(-lambda). y = x/alpha.
    tau: noise of the process, 0 (the probability flow) to 1 (the reverse SDE).

A run has four stages:
    1. Plan the noise levels of the calls (:mod:`scoresde.sampling.level_plan`).
    2. Jump from t_max to the first of them along a Gaussian's flow (:mod:`scoresde.sampling.gaussian_start`).
    3. Step through the others, Adams-Bashforth-Moulton in lambda (:mod:`scoresde.sampling.exponential`).
    4. Go from the last of them to the data (:mod:`scoresde.sampling.last_stretch`).

Stage 3 is the method of Lu et al. 2022b, Zhao et al. 2023 and Xue et al. 2023, derived in
docs/ddim_is_an_exponential_integrator.md. The others are ours (docs/samplers.md, sections 2 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import non_negative, whole
from scoresde.errors import ArgumentError
from scoresde.models import Model
from scoresde.models.calibration import SolverSettings
from scoresde.models.conditions import Condition
from scoresde.random import Generators
from scoresde.sampling.base import LAST_STEPS, GridSampler, LastName, State, noise_like
from scoresde.sampling.exponential import MAX_ORDER, combine, multistep_table
from scoresde.sampling.gaussian_start import GaussianStart
from scoresde.sampling.last_stretch import END_LEVELS, to_data
from scoresde.sampling.level_plan import Plan, default_settings, lengths, plan_levels
from scoresde.sde import HostLevel
from scoresde.sde.grids import DISCRETE, GRIDS, Grid, check_finite_log_snr, time_grid


@checked
@dataclass(frozen=True, repr=False)
class DPMSolver(GridSampler):
    """Exponential multistep solver in log-SNR (D6, E8).

    The predictor is Adams and Bashforth's of the given order. With the corrector, the estimate at a new level corrects
    the step that led there before it serves the next one. This is an Adams-Moulton step of one order more, at no
    further call.

    With ``grid="data"`` the levels come from the lengths of the data (:class:`~scoresde.data.DataScale`). Above the
    first of them p_t is nearly Gaussian: with few calls x jumps there without one, and the estimate there corrects the
    jump (:class:`GaussianStart`). Below the last one the flow is nearly straight (:func:`to_data`).

    Args:
        order: 1 to 5, or ``"auto"`` (default, :func:`automatic_order`). Order 1 without corrector is DDIM.
        stochastic: False (default; tau = 0, the flow), True (tau = 1, the reverse SDE), or tau itself, 0 or more.
        corrector: Whether to correct. None (default): with the flow, but not with noise, where it gains nothing, nor
            with few calls under guidance.
        grid: ``"data"`` (default), a name as in :class:`GridSampler`, or the times of the calls, decreasing.
        t_min, t_max: See :class:`Sampler`.
        last: Step from the last level to 0: ``"flow"`` (default), ``"half-tweedie"``, ``"tweedie"`` or ``"none"``.
        midpoint: Whether steps of order 2 take the slope's value at the middle instead of its integral, default False.
            That is the default of diffusers' DPMSolverMultistepScheduler. It needs ``order=2`` and no corrector.

    ``steps`` is the number of network calls, 20 by default.

    Raises:
        ArgumentError, UnknownNameError: Settings are out of their range; times are not one a call.

    Notes:
        On a model with a calibration (:func:`scoresde.calibrate`), levels, order and corrector are those measured,
        where they are not given here. Lengths that the model does not know are taken to be those of data of unit scale,
        with detail of a thirtieth of it. Data of another scale should bring theirs. With a guidance scale above 3 the
        order is 1, as higher ones diverge.

    References: Lu et al. 2022b; Zhao et al. 2023; Xue et al. 2023.
    """

    order: int | Literal["auto"] = "auto"
    stochastic: bool | float = False
    corrector: bool | None = field(default=None, kw_only=True)
    grid: Grid = field(default="data", kw_only=True)
    last: LastName = field(default="flow", kw_only=True)
    midpoint: bool = field(default=False, kw_only=True)

    last_names: ClassVar[tuple[str, ...]] = ("flow", *LAST_STEPS)
    grid_names: ClassVar[tuple[str, ...]] = ("data", *GRIDS)
    usual_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order != "auto":
            if whole("order", self.order) > MAX_ORDER:
                raise ArgumentError("order", self.order, f"1 to {MAX_ORDER}, or 'auto'")
            self._store(order=whole("order", self.order))
        if self.midpoint and (self.order != 2 or self.corrector is not False):
            raise ArgumentError("midpoint", True, "False, or order=2 and corrector=False")
        if not isinstance(self.stochastic, bool):
            self._store(stochastic=non_negative("stochastic", self.stochastic))

    @property
    def tau(self) -> float:
        """The noise of the process: 0 for the flow, 1 for the reverse SDE."""
        return float(self.stochastic)

    @property
    def deterministic(self) -> bool:
        """Whether the samples are a function of the start alone."""
        return self.tau == 0

    @property
    def assumes_unit_scale(self) -> bool:
        return self.grid == "data"

    @property
    def default_steps(self) -> int | None:
        """The default number of calls. None: it follows from the grid."""
        return super().default_steps if isinstance(self.grid, str) else len(self.grid)

    # ---- 1. the noise levels -----------------------------------------------------------------------------------------

    def settings(self, model: Model, calls: int, cond: Condition = None) -> SolverSettings:
        """Return what a run on this model uses: levels, order and corrector.

        Args:
            model: Score model.
            calls: Number of network calls.
            cond: Condition of the run.
        """
        found = default_settings(calls, self.tau, mean_known=model.knows_mean(cond), guidance=model.guidance)
        if model.calibration is not None and self.deterministic:
            found = model.calibration.at(calls, cond is not None, found)
        order = found.order if self.order == "auto" else self.order
        return replace(found, order=order, corrector=found.corrector if self.corrector is None else self.corrector)

    def plan(self, model: Model, steps: int | None, cond: Condition = None) -> tuple[Plan, SolverSettings]:
        """Return the noise levels of a run, and the settings behind them.

        Args:
            model: Score model.
            steps: Number of network calls. None: what the grid fixes.
            cond: Condition of the run.
        """
        if self.grid != "data":
            plan = self._grid_plan(model, steps)
            return plan, self.settings(model, len(plan.levels), cond)
        steps = whole("steps", steps)
        settings, scale = self.settings(model, steps, cond), lengths(model, steps)
        t_min, t_max = model.time_range(self.t_min, self.t_max, scale.finest if model.any_noise else None)
        check_finite_log_snr(model.sde, None, t_max)
        start, end = model.sde.levels(torch.tensor([t_max, t_min], dtype=torch.float64))
        return plan_levels(model.sde, scale, settings, start, end), settings

    def _grid_plan(self, model: Model, steps: int | None) -> Plan:
        """Plan calls at given times, or at those of a named grid."""
        sde = model.sde
        if not isinstance(self.grid, str):
            times = torch.as_tensor(self.grid, dtype=torch.float64)
        elif self.grid in DISCRETE:
            times = time_grid(sde, steps, self.grid, self.t_min, self.t_max)
            times = times[:-1] if times[-1] == 0 else times  # the last step goes there without a call
        else:
            ends = model.time_range(self.t_min, self.t_max)
            steps = whole("steps", steps)
            times = time_grid(sde, steps - 1, self.grid, *ends) if steps > 1 else torch.tensor(ends[1:])
        levels = sde.levels(times)
        if steps not in (None, len(levels)) or levels[-1].sigma == 0:
            got = f"{len(levels)} times from {times[0]:g} to {times[-1]:g}"
            raise ArgumentError("grid", got, f"{steps or len(levels)} times with noise, one a call")
        return Plan(levels[0], tuple(levels))

    # ---- 2. to 4. the run --------------------------------------------------------------------------------------------

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        run = MultistepRun(self, model, x, steps, cond, generator)
        yield State(x, run.start, None, 0, run.calls, 0)
        for i, level in enumerate(run.levels):
            x0 = model.estimate(run.x, level, cond).x0
            run.correct(x0)
            yield State(run.x, level.t, x0, i, run.calls, i + 1)
            run.predict()
        end = 0.0 if self.last != "none" else level.t
        yield State(run.x, end, x0, run.calls, run.calls, run.calls)

    def final(self, model: Model, state: State, cond: Condition) -> None:
        """Return None: :meth:`states` takes the last step, without a call."""

    def end(self, model: Model, visited: list[tuple[HostLevel, Tensor, Tensor]]) -> Tensor:
        """Take the last step, from x at the last of the visited levels to t = 0."""
        level, x, x0 = visited[-1]
        if self.last == "none":
            return x
        if self.last == "tweedie" or level.alpha == 0:  # without a signal the flow leads to the estimate
            return x0
        if self.last == "half-tweedie":
            return (x / level.alpha + x0) / 2
        used = visited if self.deterministic else visited[-1:]  # noise makes earlier estimates no guide
        used = [point for point in used if point[0].alpha > 0]
        scale = lengths(model, len(visited))
        assert scale.finest is not None
        gaussian = None if model.moments is None else model.moments.gaussian(x)
        levels, xs, x0s = zip(*used, strict=True)
        return to_data(levels, xs, x0s, scale.finest, gaussian)


class MultistepRun:
    """A run of :class:`DPMSolver`, between its network calls.

    Each call is at ``levels[i]`` for ``x``; :meth:`correct` takes its estimate, and :meth:`predict` goes on from there.

    Args:
        sampler: The settings.
        model: Score model, of which only the process and what it knows of the data are used here.
        x: Start ``(B, *D)``.
        steps: Number of calls. None: what the grid fixes.
        cond: Condition of the run.
        generator: Source of noise.

    Attributes:
        x: Samples ``(B, *D)``, at the next call or, after all of them, at the end.
        start: Time of the start.
        levels: Levels of the calls.
    """

    def __init__(
        self, sampler: DPMSolver, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ):
        # the noise levels, and the weights of the steps between them
        plan, settings = sampler.plan(model, steps, cond)
        start, self.levels, jump = plan
        levels, self.order = self.levels, settings.order
        above = levels[0].log_snr - levels[1].lam if jump and len(levels) > 1 else None
        self.table = multistep_table(
            levels, self.order, sampler.tau, corrector=settings.corrector, above=above, midpoint=sampler.midpoint
        )
        self.sampler, self.model, self.start, self.x = sampler, model, start.t, x
        self.draw, self.done, self.moved = noise_like(x, generator), 0, x
        self.history: list[Tensor] = []  # estimates of x0, the newest last
        self.visited: list[tuple[HostLevel, Tensor, Tensor]] = []  # the last levels, with x and x0
        # the jump to the first level, and then the estimate above it
        self.gaussian: GaussianStart | None = None
        if jump:
            assert model.moments is not None
            y = x / start.alpha
            self.gaussian = GaussianStart(y, start.rho, model.moments.gaussian(y))
            self.x = levels[0].alpha * self.gaussian.flow(levels[0].rho)
        self.above = above

    @property
    def calls(self) -> int:
        """The number of network calls."""
        return len(self.levels)

    def correct(self, x0: Tensor) -> None:
        """Take the estimate ``(B, *D)`` at the level, which corrects x there."""
        i = self.done
        level = self.levels[i]
        if i == 0 and self.gaussian is not None:
            self.x = level.alpha * self.gaussian.correct(x0, level.rho)
            self.history = [] if self.above is None else [self.gaussian.estimate(math.exp(-self.above))]
        self.history = [*self.history[-self.order :], x0]
        if i and self.table[i - 1].correct:
            self.x = combine(self.moved, self.table[i - 1].correct, self.history)
        self.visited = [*self.visited[1 - END_LEVELS :], (level, self.x, x0)]
        self.done = i + 1

    def predict(self) -> None:
        """Go to the next level or, after the last one, to the data."""
        if self.done == self.calls:
            self.x = self.sampler.end(self.model, self.visited)
            return
        step = self.table[self.done - 1]
        self.moved = step.x * self.x
        if step.z:
            self.moved = torch.add(self.moved, self.draw(), alpha=step.z)
        self.x = combine(self.moved, step.predict, self.history)
