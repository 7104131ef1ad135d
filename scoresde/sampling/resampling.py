"""Going back and forth between two levels, so that what a model imposes on a part of x reaches the rest."""

from __future__ import annotations

import itertools

import torch

from scoresde.checks import whole
from scoresde.sampling.samplers import GridSampler, State, noise_like
from scoresde.sampling.steps import Ancestral, Coefficients, Predictor
from scoresde.sde.grids import Grid, time_grid


class Resampling(GridSampler):
    """Each step t -> s is taken ``repeats`` times, with the forward transition s -> t between (Lugmayr et al. 2022).

    With :func:`scoresde.guidance.replacement` that is RePaint with jumps of one step: the known part is the observation
    at every level, and the going back and forth draws the unknown part given it, so far as the repeats suffice. A call
    each repeat.

    Args:
        repeats: how often each step is taken; 1 is ancestral sampling.
        predictor: the step; default :class:`Ancestral`.
        grid, t_min, t_max, last: as in :class:`PredictorCorrector`.
    """

    default_steps = 100

    def __init__(
        self,
        repeats: int = 10,
        predictor: Predictor | None = None,
        *,
        grid: Grid = "time",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(grid, t_min, t_max, last)
        self.repeats = whole("repeats", repeats)
        self.predictor = Ancestral() if predictor is None else predictor

    def states(self, model, x, steps, cond, generator):
        times = time_grid(model.sde, steps, self.grid, self.t_min, self.t_max)
        levels, t, s = model.sde.levels(times), times[:-1], times[1:]
        table = zip(*(c.tolist() for c in self.predictor.coefficients(model.sde, t, s)), strict=True)
        forward = zip(*(c.tolist() for c in model.sde.transition(s, t)), strict=True)
        draw, steps, calls = noise_like(x, generator), len(t), 0
        yield State(x, levels[0].t, None, 0, steps, calls)
        for i, ((level, target), row, (alpha_ts, sigma_ts)) in enumerate(
            zip(itertools.pairwise(levels), table, forward, strict=True), start=1
        ):
            for repeat in range(self.repeats):
                if repeat:
                    x = torch.add(x.mul(alpha_ts), draw(), alpha=sigma_ts)
                estimate = model.estimate(x, level, cond)
                x = self.predictor.step(Coefficients(*row), x, estimate, target, draw)
            calls += self.repeats
            yield State(x, target.t, estimate.x0, i, steps, calls)

    def __repr__(self):
        return f"Resampling({self.repeats}, {self.predictor!r})"
