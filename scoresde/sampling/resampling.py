"""Repeated steps, which make an observed part of x agree with the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.random import Generators
from scoresde.sampling.base import GridSampler, State, noise_like
from scoresde.sampling.steps import Ancestral, Predictor


@checked
@dataclass(frozen=True, repr=False)
class Resampling(GridSampler):
    """Reverse steps repeated with re-noising in between (RePaint).

    The re-noising is the forward transition s -> t. With :func:`scoresde.guidance.replacement` this is RePaint with
    jumps of one step (N4). The known part equals the observation at every level. Going back and forth draws the unknown
    part given it, the better the more repeats.

    Args:
        repeats: Number of times that each step is taken, default 10. 1 is ancestral sampling.
        predictor: Step of the reverse SDE, default :class:`Ancestral`.
        grid: See :class:`GridSampler`, default ``"time"``.
        t_min, t_max, last: See :class:`Sampler`.

    ``steps`` counts steps of ``repeats`` network calls each, 100 by default.

    Raises:
        ArgumentError: ``repeats`` is not a positive integer.

    References: Lugmayr et al. 2022, algorithm 1.
    """

    repeats: int = 10
    predictor: Predictor = field(default=Ancestral())

    usual_steps: ClassVar[int] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(repeats=whole("repeats", self.repeats))

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        times = self.times(model, steps)
        levels, t, s = model.sde.levels(times), times[:-1], times[1:]
        rows = self.predictor.coefficients(model.sde, t, s).rows()
        forward = zip(*(c.tolist() for c in model.sde.transition(s, t)), strict=True)
        draw, calls = noise_like(x, generator), 0
        yield State(x, levels[0].t, None, 0, len(rows), calls)
        for i, ((level, target), row, (alpha_ts, sigma_ts)) in enumerate(
            zip(itertools.pairwise(levels), rows, forward, strict=True), start=1
        ):
            for repeat in range(self.repeats):
                if repeat:
                    x = torch.add(x.mul(alpha_ts), draw(), alpha=sigma_ts)
                estimate = model.estimate(x, level, cond)
                x = self.predictor.step(row, x, estimate, target, draw)
            calls += self.repeats
            yield State(x, target.t, estimate.x0, i, len(rows), calls)
