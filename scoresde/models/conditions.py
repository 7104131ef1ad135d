"""Conditions: what a network takes besides x and the time, by name; class labels above all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError

#: what a network takes by name, tensors ``(B, ...)``; None for nothing
Condition = Mapping[str, Tensor] | None

LABEL = "y"  # the classes' name in cond, and the networks' argument
NO_CLASS = -1


def condition_rows(cond: Condition, rows: slice | Tensor) -> Condition:
    """Return the condition of some samples: ``rows`` of every value."""
    return None if cond is None else {name: value[rows] for name, value in cond.items()}


def check_labels(y: Tensor, batch: int, classes: int | None = None, name: str = "cond['y']") -> Tensor:
    """``y`` itself, if it is ``(batch,)`` int64 with values below ``classes``.

    The values are looked at on the CPU only: on an accelerator the check would wait for the device.

    Raises:
        DTypeError, ShapeError: another dtype or shape. ArgumentError: a class that there is not.
    """
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        raise DTypeError(name, getattr(y, "dtype", type(y).__name__), "torch.int64 class labels")
    if tuple(y.shape) != (batch,):
        raise ShapeError(name, tuple(y.shape), f"({batch},), one class for each sample")
    if classes is not None and y.device.type == "cpu" and bool((y >= classes).any()):
        raise ArgumentError(name, y.max().item(), f"classes from 0 to {classes - 1}, or {NO_CLASS} for none")
    return y


def of_class(log_p: Tensor, y: Tensor) -> Tensor:
    """log p(y | .) ``(B,)`` of all classes' ``(B, K)``; 0 where y < 0, "no class", which is certain.

    Raises:
        DTypeError, ShapeError, ArgumentError: as :func:`check_labels`.
    """
    check_labels(y, len(log_p), log_p.shape[1], "y")
    return torch.where(y < 0, 0.0, log_p.gather(1, y.clamp(min=0)[:, None])[:, 0])
