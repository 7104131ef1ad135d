"""Fit the default sampler to a model, by following a few of its paths.

For each number of network calls a search by coordinates moves one setting at a time and keeps what lowers the mean
error of the end points. The error is measured against the same flow with many calls, from the same starts. Settings are
fitted on some paths and chosen on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole, wholes
from scoresde.errors import ArgumentError, NonFiniteError, ToleranceError
from scoresde.models import Calibration, Model, SolverSettings
from scoresde.models.conditions import Condition, condition_rows
from scoresde.models.evaluation import evaluation
from scoresde.models.model import check_model
from scoresde.random import Generators
from scoresde.sampling.level_plan import default_settings
from scoresde.sampling.multistep import DPMSolver
from scoresde.sampling.start import draw_start
from scoresde.sde.tensors import flat

CALLS = (5, 10, 20, 50, 100)  # numbers of network calls that are fitted by default
FITTED = 2 / 3  # share of the paths on which settings are fitted; the others choose between the best
FINALISTS = 5
# Steps of the search; the second sweep halves them. Runs with many calls have one sweep, with the inner steps alone.
STEPS = {
    "last": (-1.4, -0.7, -0.3, 0.3, 0.7, 1.4),
    "first": (-1.2, -0.5, 0.5, 1.2),
    "bend": (-0.3, 0.3),
    "swell": (-0.3, 0.3),
}
FEW_CALLS = 30
LARGEST_SHAPE = 0.9  # of the sizes of bend and swell together, so that levels grow
#: Error of the reference over the typical length of the data, above which nothing is fitted.
WORST_REFERENCE = 0.01
#: By how much twice the calls lower the reference's error, at least: its order is 3.
REFERENCE_GAIN = 8.0
#: A setting replaces the default only if it lowers the error on the other paths by this factor.
WORTHWHILE = 0.97


@checked
def calibrate(
    model: Model,
    shape: Sequence[int] | None = None,
    cond: Condition = None,
    *,
    calls: Sequence[int] = CALLS,
    paths: int = 32,
    reference: int = 300,
    generator: Generators = None,
) -> Model:
    """Fit the default sampler's noise levels and order to a model.

    It follows ``paths`` of the model's probability flow with ``reference`` calls. For each number of calls it then fits
    what :class:`~scoresde.models.SolverSettings` holds. The result is stored in ``model.calibration``, and saved with a
    :class:`ScoreModel`. Runs with other numbers of calls interpolate.

    Args:
        model: Score model, changed in place.
        shape: Shape ``(*D)`` of one sample. None: that of the model's moments.
        cond: Condition for which the sampler is fitted, tensors ``(K, ...)`` by name; the paths take its rows in turn.
            Runs with any condition then use the result. None: runs without a condition.
        calls: Numbers of network calls, growing, each at least 2.
        paths: Number of paths, at least 3, default 32.
        reference: Number of calls along which they are followed, default 300.
        generator: Source of the starts. None: torch's default.

    Returns:
        The model itself.

    Raises:
        ArgumentError: ``shape`` is not known; a number is out of range.
        ToleranceError: The flow with ``reference`` calls and with half of them differ too much.

    Notes:
        It takes about 4000 network calls for a batch of ``paths`` samples: 10 to 20 seconds for the digits network. On
        a guided model, calibrate the guided one with its condition.
    """
    check_model(model)
    calls, paths = wholes("calls", calls), whole("paths", paths)
    if not calls or list(calls) != sorted(set(calls)) or calls[0] < 2:
        raise ArgumentError("calls", list(calls), "growing numbers, each at least 2")
    cond = cond or None
    if paths < 3:
        raise ArgumentError("paths", paths, "at least 3")
    if shape is None:
        if model.moments is None:
            raise ArgumentError("shape", None, "the shape (*D) of one sample, as the model has no moments")
        shape = model.moments.mean.shape
    with evaluation(model, autograd=False):
        problem = _Problem.of(model, (paths, *wholes("shape", shape)), cond, whole("reference", reference), generator)
        found = tuple(_fit(problem, n) for n in calls)
    before = model.calibration or Calibration()
    model.calibration = replace(before, **{"settings" if cond is None else "conditional": found})
    return model


@dataclass(frozen=True, eq=False)
class _Problem:
    """The paths, and where they end.

    ``ends`` are those of the reference, ``accuracy`` its own error. The first ``fitted`` paths are for fitting.
    """

    model: Model
    x: Tensor
    cond: Condition
    ends: Tensor
    accuracy: float
    fitted: int

    @classmethod
    def of(cls, model: Model, shape: Sequence[int], cond: Condition, reference: int, generator: Generators) -> _Problem:
        """Draw the starts, and follow their paths."""
        rows = None
        if cond is not None:
            count = len(next(iter(cond.values())))
            rows = condition_rows(cond, torch.arange(shape[0], device=model.device) % count)
        x = draw_start(model, shape, DPMSolver(), rows, "matched", generator, model.device, model.dtype)
        problem = cls(model, x, rows, x, 0.0, max(1, round(FITTED * shape[0])))
        fine, coarse = (problem.run(problem.reference(n)) for n in (reference, reference // 2))
        accuracy = flat(fine - coarse).norm(dim=1).mean().item()
        scale = model.known_scale()
        typical = flat(fine).std(0, correction=0).square().mean().sqrt().item() if scale is None else scale.typical
        if not accuracy < WORST_REFERENCE * typical * math.prod(shape[1:]) ** 0.5:
            raise ToleranceError(
                f"with {reference} and {reference // 2} calls the flow ends {accuracy:.3g} apart, at data of typical "
                f"length {typical:.3g}: take a larger `reference`"
            )
        return replace(problem, ends=fine, accuracy=accuracy / REFERENCE_GAIN)

    def reference(self, calls: int) -> SolverSettings:
        """Return settings that are accurate with many calls on any model."""
        settings = default_settings(calls, mean_known=False)
        return replace(settings, first=settings.first + 1.0, above=calls // 6, order=3)

    def run(self, settings: SolverSettings) -> Tensor:
        """Return the ends of the paths under some settings."""
        trial = Calibration((settings,), (settings,))
        before, self.model.calibration = self.model.calibration, trial
        try:
            *_, last = DPMSolver().states(self.model, self.x, settings.calls, self.cond, None)
        finally:
            self.model.calibration = before
        return last.x

    def errors(self, settings: SolverSettings) -> tuple[float, float]:
        """Return the mean errors on the fitted and on the other paths."""
        try:
            error = flat(self.run(settings) - self.ends).double().norm(dim=1)
        except (NonFiniteError, OverflowError):
            return float("inf"), float("inf")
        error = error.nan_to_num(nan=float("inf"))
        fitted, other = error[: self.fitted].mean(), error[self.fitted :].mean()
        return fitted.item(), other.item()


def _fit(problem: _Problem, calls: int) -> SolverSettings:
    """Return the best settings for a number of calls."""
    model = problem.model
    jumps = model.knows_mean(problem.cond)
    default = default_settings(calls, mean_known=jumps, guidance=model.guidance)
    tried: dict[SolverSettings, tuple[float, float]] = {}

    def best_of(candidates: Iterable[SolverSettings]) -> SolverSettings:
        for settings in candidates:
            if settings not in tried:
                tried[settings] = problem.errors(settings)
        return min(tried, key=lambda settings: tried[settings][0])

    # 1. a few starts, then one setting at a time
    few = calls <= FEW_CALLS
    best = best_of([default, replace(default, first=default.first + 1), *(_above(default, jumps) if few else ())])
    for scale in (1.0, 0.5, 0.25) if few else (1.0,):
        for name, steps in STEPS.items():
            chosen = steps if few else steps[len(steps) // 4 : -(len(steps) // 4) or None]
            best = best_of(_moved(best, name, scale * step) for step in chosen)
        best = best_of(_order(best))
        best = best_of(_above(best, jumps))
    # 2. the best of them on all paths; differences below the reference's accuracy say nothing
    finalists = sorted(tried, key=lambda settings: tried[settings][0])[:FINALISTS]
    winner = min(finalists, key=lambda settings: sum(tried[settings]))
    return winner if max(tried[winner][1], problem.accuracy) < WORTHWHILE * tried[default][1] else default


def _moved(at: SolverSettings, name: str, step: float) -> SolverSettings:
    """Return the settings with a number moved, where the levels still grow."""
    moved = replace(at, **{name: getattr(at, name) + step})
    return moved if abs(moved.bend) + abs(moved.swell) < LARGEST_SHAPE else at


def _order(at: SolverSettings) -> Iterator[SolverSettings]:
    """Change order and corrector."""
    for order in range(max(1, at.order - 1), min(at.order + 2, 6)):
        yield replace(at, order=order)
    yield replace(at, corrector=not at.corrector)


def _above(at: SolverSettings, jumps: bool) -> Iterator[SolverSettings]:
    """Change the number of calls above the first level, and the jump."""
    numbers = {0, 1, 2, 3, at.above, at.calls // 8} if at.calls <= FEW_CALLS else {at.above, at.above + 4}
    for above in sorted(numbers):
        if above <= max(1, at.calls // 3):
            if jumps:
                yield replace(at, above=above, jump=True)
            if above:
                yield replace(at, above=above, jump=False)
