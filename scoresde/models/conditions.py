"""Conditions: what a network takes besides x and the time, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.sde.times import is_concrete

#: tensors ``(B, ...)``, or mappings of them, by the names of the network's arguments; None for no condition
Condition = Mapping[str, Any] | None

#: the name of the class labels in a condition, and of the networks' argument
LABEL = "y"
#: the name of the estimate of x0 from the call before, for models that condition on themselves
ESTIMATE = "x0"
#: the label of a sample without a class
NO_CLASS = -1


def condition_rows(cond: Condition, rows: slice | Tensor) -> Condition:
    """Return the condition of some samples: ``rows`` of every value."""
    return map_condition(lambda value: value[rows], cond)


def map_condition(function: Callable[..., Tensor], *conds: Condition) -> dict[str, Any] | None:
    """Return a condition with a function of each tensor.

    Args:
        function: Function of a tensor, or of one tensor of each condition.
        conds: Conditions with the same names. None: the result is None.
    """
    first = conds[0]
    if first is None:
        return None
    parts = {name: [cond[name] for cond in conds if cond is not None] for name in first}
    return {
        name: map_condition(function, *values) if isinstance(values[0], Mapping) else function(*values)
        for name, values in parts.items()
    }


def check_labels(y: Tensor, batch: int, classes: int | None = None, name: str = "cond['y']") -> Tensor:
    """Return ``y`` if it holds class labels, ``(batch,)`` int64.

    Labels must be below ``classes``. On an accelerator this is not checked, as it would wait for the device.

    Args:
        y: Class labels; -1 means "no class".
        batch: Number of samples.
        classes: Number of classes. None: not checked.
        name: Name of the argument in error messages.

    Raises:
        DTypeError, ShapeError: ``y`` has another dtype or shape.
        ArgumentError: A label is below -1, or not below ``classes``.
    """
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        raise DTypeError(name, getattr(y, "dtype", type(y).__name__), "a tensor of class labels, torch.int64")
    if tuple(y.shape) != (batch,):
        raise ShapeError(name, tuple(y.shape), f"of shape ({batch},), one class for each sample")
    if classes is not None and is_concrete(y) and len(y):
        low, high = int(y.min()), int(y.max())
        if low < NO_CLASS or high >= classes:
            expected = f"class labels from 0 to {classes - 1}, or {NO_CLASS} for no class"
            raise ArgumentError(name, low if low < NO_CLASS else high, expected)
    return y


def check_condition(cond: object, batch: int, classes: int | None = None) -> None:
    """Refuse what is no condition of ``batch`` samples.

    Args:
        cond: The condition.
        batch: Number of samples.
        classes: Number of classes of the model. None: labels are not checked.

    Raises:
        ArgumentError: ``cond`` is not a mapping, or has a label that is no class.
        DTypeError: A value is not a tensor, or labels are not int64.
        ShapeError: A value has not one row a sample.
    """
    if cond is None:
        return
    if not isinstance(cond, Mapping):
        raise ArgumentError("cond", type(cond).__name__, "a mapping from names to tensors, such as {'y': labels}")
    _check_rows(cond, batch, "cond")
    if classes is not None and LABEL in cond:
        check_labels(cond[LABEL], batch, classes)


def _check_rows(cond: Mapping[str, Any], batch: int, argument: str) -> None:
    """Refuse values that are no tensors with one row a sample."""
    for key, value in cond.items():
        name = f"{argument}[{key!r}]"
        if isinstance(value, Mapping):
            _check_rows(value, batch, name)
        elif not isinstance(value, Tensor):
            raise DTypeError(name, type(value).__name__, f"a tensor ({batch}, ...), one row a sample")
        elif value.shape[:1] != (batch,):
            raise ShapeError(name, tuple(value.shape), f"({batch}, ...), one row a sample")


def of_class(log_p: Tensor, y: Tensor) -> Tensor:
    """Return log p(y | .) ``(B,)``, the entries of ``log_p`` at the labels y.

    Where y < 0 ("no class") the result is log 1 = 0.

    Args:
        log_p: log p(k | .) of all classes, ``(B, K)``.
        y: Class labels, ``(B,)`` int64.

    Raises:
        DTypeError, ShapeError, ArgumentError: As :func:`check_labels`.
    """
    check_labels(y, len(log_p), log_p.shape[1], "y")
    return torch.where(y < 0, 0.0, log_p.gather(1, y.clamp(min=0)[:, None])[:, 0])
