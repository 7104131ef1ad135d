"""Argument checks shared by the networks. None of them reads a tensor's values, so none waits for the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError


def integer(name: str, value: object, least: int = 1) -> int:
    """``value`` as an int, refused with :class:`ArgumentError` when it is no integer or lies below ``least``."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ArgumentError(name, repr(value), f"an integer >= {least}")
    return number


def integers(name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """``values`` as a tuple of ints, each at least ``least``."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError(name, repr(values), f"a sequence of integers >= {least}")
    return tuple(integer(name, value, least) for value in values)


def probability(name: str, value: float) -> float:
    """``value`` as a float in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ArgumentError(name, repr(value), "a number in [0, 1)")
    return float(value)


def check_inputs(x: Tensor, label: Tensor, shape: Sequence[int | str], weight: Tensor) -> None:
    """Refuse an ``x`` that is not ``(B, *shape)`` or has another dtype than ``weight``, and a ``label`` that is not
    ``()`` or ``(B,)``. A string in ``shape`` names an axis of free size, as in ``(3, "H", "W")``.
    """
    fits = x.ndim == len(shape) + 1 and all(
        isinstance(n, str) or n == m for n, m in zip(shape, x.shape[1:], strict=True)
    )
    if not fits:
        raise ShapeError("x", tuple(x.shape), f"({', '.join(map(str, ('B', *shape)))})")
    if x.dtype != weight.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise DTypeError("x", x.dtype, f"the dtype of the network, {weight.dtype}")
    if label.shape not in ((), x.shape[:1]):
        raise ShapeError("label", tuple(label.shape), f"() or ({x.shape[0]},), one label for each sample of x")
    if not label.is_floating_point():
        raise DTypeError("label", label.dtype, "a floating-point tensor")
