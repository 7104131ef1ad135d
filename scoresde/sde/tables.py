"""Functions of time given by a table of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Table:
    """A float64 table on the CPU, cast once for each device and dtype."""

    def __init__(self, values: Tensor):
        self.values = values
        self._cast: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, t: Tensor) -> Tensor:
        """Return the table with the device and dtype of ``t``."""
        if torch.compiler.is_compiling():  # what a trace makes must not outlive it
            return self.values.to(device=t.device, dtype=t.dtype)
        key = (t.device, t.dtype)
        if key not in self._cast:
            self._cast[key] = self.values.to(device=t.device, dtype=t.dtype)
        return self._cast[key]

    def __getstate__(self) -> dict[str, Any]:  # the casts are a cache, of devices that a reader may lack
        return {"values": self.values, "_cast": {}}


def _at(table: Tensor, index: Tensor) -> Tensor:
    """Return the entries at ``index`` of any shape.

    The vector of indices also works under ``torch.func``, where a scalar one does not.
    """
    return table[index.reshape(-1)].reshape(index.shape)


class Piecewise:
    """The piecewise-linear function through (i/N, knots[i]), i = 0..N.

    The knots increase, so that the function has an inverse.
    """

    def __init__(self, knots: Tensor):
        self.pieces = len(knots) - 1
        self.knots, self.steps = Table(knots), Table(knots.diff())

    def piece(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index of the piece of each time, and where t is in it."""
        position = t * self.pieces
        # (i/N) N may round to just above i: a knot, to a few last digits, belongs to the piece on its left
        index = (torch.ceil(position * (1 - 4 * torch.finfo(t.dtype).eps)) - 1).clamp(0, self.pieces - 1).long()
        return index, position - index

    def value(self, t: Tensor) -> Tensor:
        """Return the function at the times ``t``."""
        index, fraction = self.piece(t)
        knots, steps = self.knots.like(t), self.steps.like(t)
        inside = _at(knots, index) + fraction * _at(steps, index)
        return torch.where(fraction >= 1, _at(knots, index + 1), inside)

    def slope(self, t: Tensor) -> Tensor:
        """Return the slope; at a knot, that of the piece on its left."""
        return self.pieces * _at(self.steps.like(t), self.piece(t)[0])

    def inverse(self, value: Tensor) -> Tensor:
        """Return the times at which the function has the given values."""
        knots = self.knots.like(value)
        index = (torch.searchsorted(knots, value.contiguous()) - 1).clamp(0, self.pieces - 1)
        return (index + (value - _at(knots, index)) / _at(self.steps.like(value), index)) / self.pieces
