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

    last_names: ClassVar[tuple[str, ...]] = ("flow", *LAST_STEPS)
    grid_names: ClassVar[tuple[str, ...]] = ("data", *GRIDS)
    usual_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order != "auto":
            if whole("order", self.order) > MAX_ORDER:
                raise ArgumentError("order", self.order, f"1 to {MAX_ORDER}, or 'auto'")
            self._store(order=whole("order", self.order))
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
        # 1. the noise levels, and the weights of the steps between them
        plan, settings = self.plan(model, steps, cond)
        start, levels, jump = plan
        steps, order = len(levels), settings.order
        above = levels[0].log_snr - levels[1].lam if jump and steps > 1 else None
        table = multistep_table(levels, order, self.tau, corrector=settings.corrector, above=above)
        draw = noise_like(x, generator)
        yield State(x, start.t, None, 0, steps, 0)

        # 2. the jump to the first level, its correction, and the estimate above it
        history: list[Tensor] = []  # estimates of x0, the newest last
        if jump:
            assert model.moments is not None
            y = x / start.alpha
            gaussian = GaussianStart(y, start.rho, model.moments.gaussian(y))
            x = levels[0].alpha * gaussian.flow(levels[0].rho)
        x0 = model.estimate(x, levels[0], cond).x0
        if jump:
            x = levels[0].alpha * gaussian.correct(x0, levels[0].rho)
            history = [] if above is None else [gaussian.estimate(math.exp(-above))]

        # 3. predict, evaluate and correct through the other levels
        visited: list[tuple[HostLevel, Tensor, Tensor]] = []  # the last levels, with x and x0
        for i, level in enumerate(levels):
            if i:
                step = table[i - 1]
                moved = step.x * x
                if step.z:
                    moved = torch.add(moved, draw(), alpha=step.z)
                x = combine(moved, step.predict, history)
                x0 = model.estimate(x, level, cond).x0
            history = [*history[-order:], x0]
            if i and table[i - 1].correct:
                x = combine(moved, step.correct, history)
            visited = [*visited[1 - END_LEVELS :], (level, x, x0)]
            yield State(x, level.t, x0, i, steps, i + 1)

        # 4. the last stretch to the data
        end = 0.0 if self.last != "none" else level.t
        yield State(self._end(model, visited), end, x0, steps, steps, steps)

    def final(self, model: Model, state: State, cond: Condition) -> None:
        """Return None: :meth:`states` takes the last step, without a call."""

    def _end(self, model: Model, visited: list[tuple[HostLevel, Tensor, Tensor]]) -> Tensor:
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
