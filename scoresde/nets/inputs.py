"""Checks of a network's inputs, which do not wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.errors import DTypeError, ShapeError

#: the names of the axes of data of each rank, without the channels
AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def check_inputs(x: Tensor, time_input: Tensor, shape: Sequence[int | str], weight: Tensor) -> None:
    """Refuse inputs that do not fit a network.

    Args:
        x: Data, of shape ``(B, *shape)`` and the dtype of ``weight``, or any floating dtype under autocast.
        time_input: Time input, floating-point, of shape ``()`` or ``(B,)``.
        shape: Shape of a sample. A string names an axis of free size, as in ``(3, "H", "W")``.
        weight: A weight of the network.

    Raises:
        ShapeError, DTypeError: Inputs of another shape or dtype.
    """
    fits = x.ndim == len(shape) + 1 and all(
        isinstance(n, str) or n == m for n, m in zip(shape, x.shape[1:], strict=True)
    )
    if not fits:
        raise ShapeError("x", tuple(x.shape), f"of shape ({', '.join(map(str, ('B', *shape)))})")
    if x.dtype != weight.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise DTypeError("x", x.dtype, f"of the dtype of the network, {weight.dtype}")
    if time_input.shape not in ((), x.shape[:1]):
        expected = f"of shape () or ({x.shape[0]},), one number for each sample of x"
        raise ShapeError("time_input", tuple(time_input.shape), expected)
    if not time_input.is_floating_point():
        raise DTypeError("time_input", time_input.dtype, "a floating-point tensor")
