"""Comparisons by log p: of two sets, and of two models on one set."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, ShapeError


class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.stderr:.4f}"


def auroc(inside: Tensor, outside: Tensor) -> Measured:
    """Return the area under the receiver operating characteristic of a score.

        P(inside > outside) + P(inside = outside)/2 for a random pair

    The score should be higher inside: 1 tells the sets apart, 1/2 does not. The standard error is DeLong's,
    var_i[P_j(i, j)]/N + var_j[P_i(i, j)]/M, from the rank of each item in the other set.

    Args:
        inside, outside: scores ``(N,)`` and ``(M,)`` of the two sets, log p of each item; N, M >= 2.

    Raises:
        ShapeError: not two vectors of at least two numbers each.
        ArgumentError: NaN among the scores.

    References: DeLong, DeLong & Clarke-Pearson 1988; Mann & Whitney 1947.
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or len(scores) < 2:
            raise ShapeError(name, tuple(scores.shape), "a vector of at least two scores")
        if bool(scores.isnan().any()):
            raise ArgumentError(name, "NaN among the scores", "numbers")
    inside, outside = inside.double(), outside.double()
    above = _placements(inside, outside)
    below = 1 - _placements(outside, inside)
    stderr = math.sqrt(above.var().item() / len(above) + below.var().item() / len(below))
    return Measured(above.mean().item(), stderr)


def _placements(scores: Tensor, others: Tensor) -> Tensor:
    """Return for each score the share of the others below it, ties halved."""
    others = others.sort().values
    left, right = (torch.searchsorted(others, scores, right=side) for side in (False, True))
    return (left + right).double() / (2 * len(others))


def paired_difference(first: Tensor, second: Tensor) -> Measured:
    """Return the mean of ``first - second`` and its standard error.

    Variation that is common to the items of a pair cancels.

    Args:
        first, second: numbers ``(N,)`` of the same N >= 2 items.

    Raises:
        ShapeError: not two vectors of one length, at least 2.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        expected = f"of the shape of first, {tuple(first.shape)}, with two or more entries"
        raise ShapeError("second", tuple(second.shape), expected)
    difference = first.double() - second.double()
    return Measured(difference.mean().item(), (difference.std() / math.sqrt(len(difference))).item())
