"""Langevin dynamics on one density (S5)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.random import Generators
from scoresde.sampling.base import noise_like

Score = Callable[[Tensor], Tensor]


@checked
@torch.no_grad()
def langevin_dynamics(
    score: Score | Model,
    x: Tensor,
    step_size: float,
    steps: int,
    generator: Generators = None,
    *,
    t: float | Tensor | None = None,
    cond: Condition = None,
) -> Tensor:
    """Run Langevin dynamics on the density of a score (S5).

        x <- x + a score(x) + sqrt(2a) z,    z ~ N(0, I)

    As a -> 0 and the number of steps grows, the law of x converges to the density.

    Args:
        score: grad log p of x ``(B, *D)``, as a function; or a model, for its score at the time ``t``.
        x: Start of the chains, ``(B, *D)``.
        step_size: a, positive, in units of the squared unit of x.
        steps: Number of steps.
        generator: Source of the noise: one generator, or a list of B, one a sample. None: torch's default.
        t: Time in [0, 1] of p_t, ``()`` or ``(B,)``; for a model only.
        cond: Tensors ``(B, ...)`` by name; for a model only.

    Returns:
        End of the chains, ``(B, *D)``.

    Raises:
        ArgumentError: ``step_size`` or ``steps`` is not positive; a model is given without ``t`` or at a time without
            noise; a function is given with ``t`` or ``cond``.
        DTypeError: x is not a floating-point tensor.

    Notes:
        A finite step leaves a bias of order a. For N(0, 1) the variance is 2/(2 - a), and above a = 2 the chain
        diverges.

    References: Song & Ermon 2019, eq. 4, with a for their a/2.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DTypeError("x", getattr(x, "dtype", type(x).__name__), "a floating-point tensor (B, *D)")
    if not x.numel():
        raise ShapeError("x", tuple(x.shape), "(B, *D) with B >= 1")
    step_size, steps = positive("step_size", step_size), whole("steps", steps)
    score = _score(score, x, t, cond)
    noise, draw = math.sqrt(2 * step_size), noise_like(x, generator)
    for _ in range(steps):
        x = torch.add(torch.add(x, score(x), alpha=step_size), draw(), alpha=noise)
    return x


def _score(score: Score | Model, x: Tensor, t: float | Tensor | None, cond: Condition) -> Score:
    """Return the score as a function of x alone."""
    if not isinstance(score, Model):
        if t is not None or cond is not None:
            raise ArgumentError("t, cond", (t, cond), "None for a score that is a function of x alone")
        return score
    if t is None:
        raise ArgumentError("t", None, "the time of the density, for a model")
    model, level = score, score.sde.level(t, x)
    if isinstance(level.sigma, float) and not level.sigma:
        raise ArgumentError("t", t, "a time with noise, as the score of a model is -eps/sigma")
    return lambda x: model.estimate(x, level, cond).score
