"""An initial value problem for a batch, and the arguments of every solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import positive

#: dy/ds = f(s, y) for s ``(B,)`` and y ``(B, n)``; ``rows`` are the indices of these samples in the batch
Field = Callable[[Tensor, Tensor, Tensor], Tensor]
#: the size of an error in units of the tolerance, ``(B,)`` from ``(B, n)``
Norm = Callable[[Tensor], Tensor]
#: the words for a time s and a (signed) step there, for messages
Where = Callable[[float, float], str]

MAX_CALLS = 20_000  # of the field, for one adaptive solution
SHOWN = 8  # samples that a message lists


class Solution(NamedTuple):
    """The end of a solution.

    Attributes:
        y: State at the end, ``(B, n)``.
        calls: Calls of the field for the batch; the most of any sample if the solver is adaptive.
    """

    y: Tensor
    calls: int


def rms(error: Tensor) -> Tensor:
    """Return the root mean square over the entries of each sample, ``(B,)``."""
    return error.square().mean(1).sqrt()


def as_they_are(s: float, h: float) -> str:
    """Return the words for a time and a step, without a change of units."""
    return f"s = {s:.6g} with a step of {abs(h):.3g}"


@dataclass(frozen=True)
class Problem:
    """The problem dy/ds = field(s, y) for every row of ``y`` ``(B, n)``.

    Attributes:
        field: The slope.
        y: States at ``start``.
        start, end: Times.
    """

    field: Field
    y: Tensor
    start: float
    end: float

    @property
    def rows(self) -> Tensor:
        """The indices of the samples, ``(B,)``."""
        return torch.arange(len(self.y), device=self.y.device)


@dataclass(frozen=True)
class Control:
    """How accurate a solution must be, and how its solver reports a failure.

    Attributes:
        rtol, atol: Relative and absolute tolerance, positive.
        norm: Size of an error in units of the tolerance, per sample.
        max_calls: Most calls of the field.
        where: Words for a time and a step, where s is not the time that the user knows.

    Raises:
        ArgumentError: A tolerance is not positive.
    """

    rtol: float
    atol: float
    norm: Norm = rms
    max_calls: int = MAX_CALLS
    where: Where = as_they_are

    def __post_init__(self) -> None:
        positive("rtol", self.rtol)
        positive("atol", self.atol)

    @property
    def tolerances(self) -> str:
        """The tolerances, for messages."""
        return f"rtol={self.rtol:g}, atol={self.atol:g}"

    def not_finite(self, at: str, calls: int, samples: Tensor) -> str:
        """Return the message about NaN or infinity from the field."""
        return f"the field returned NaN or infinity at {at}, {calls} calls, samples {samples.tolist()[:SHOWN]}"
