"""Langevin dynamics on one density (S5)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError, DTypeError
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.sampling.samplers import noise_like


@torch.no_grad()
def langevin_dynamics(
    score: Callable[[Tensor], Tensor] | Model,
    x: Tensor,
    step_size: float,
    steps: int,
    generator=None,
    *,
    t: float | Tensor | None = None,
    cond: Condition = None,
) -> Tensor:
    """``steps`` steps x <- x + a score(x) + sqrt(2a) z (S5), z ~ N(0, I).

    As a -> 0 and the steps grow, x comes to be distributed as the density whose score it is. A finite step leaves a
    bias of order a: for N(0, 1) the variance is 2/(2 - a), and above a = 2 the chain diverges.

    Args:
        score: grad log p of x ``(B, *D)``, as a function; or a model, which is asked for its score at the time ``t``.
        x: where the chains start, ``(B, *D)``.
        step_size: a, positive, in units of the squared unit of x.
        generator: a torch.Generator, or a list of B of them, one a sample.
        t: the time in [0, 1] of p_t, ``()`` or ``(B,)``; for a model only.
        cond: tensors ``(B, ...)`` by name; for a model only.

    Raises:
        ArgumentError: a step that is not positive, fewer than one step, a model without ``t`` or at a time without
            noise, a function with ``t`` or ``cond``.
        DTypeError: x is not a floating-point tensor.

    Source: Song & Ermon 2019, eq. 4, with a for their a/2.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DTypeError("x", getattr(x, "dtype", type(x).__name__), "a floating-point tensor (B, *D)")
    if not 0 < step_size < math.inf:
        raise ArgumentError("step_size", step_size, "a positive number")
    whole("steps", steps)
    if isinstance(score, Model):
        if t is None:
            raise ArgumentError("t", None, "the time at which the model is asked for its score")
        model, level = score, score.sde.level(t, x)
        if isinstance(level.sigma, float) and not level.sigma:
            raise ArgumentError("t", t, "a time with noise: the score of a model is -eps/sigma")

        def score(x):
            return model.estimate(x, level, cond).score

    elif t is not None or cond is not None:
        raise ArgumentError("t, cond", (t, cond), "None, for a score given as a function of x alone")
    noise, draw = math.sqrt(2 * step_size), noise_like(x, generator)
    for _ in range(steps):
        x = torch.add(torch.add(x, score(x), alpha=step_size), draw(), alpha=noise)
    return x
