"""Argument checks shared by the networks. None of them reads a tensor's values, so none waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.errors import DTypeError, ShapeError


def check_inputs(x: Tensor, time_input: Tensor, shape: Sequence[int | str], weight: Tensor) -> None:
    """Refuse an ``x`` that is not ``(B, *shape)`` or has another dtype than ``weight``, and a ``time_input`` that is not
    ``()`` or ``(B,)``. A string in ``shape`` names an axis of free size, as in ``(3, "H", "W")``.
    """
    fits = x.ndim == len(shape) + 1 and all(
        isinstance(n, str) or n == m for n, m in zip(shape, x.shape[1:], strict=True)
    )
    if not fits:
        raise ShapeError("x", tuple(x.shape), f"({', '.join(map(str, ('B', *shape)))})")
    if x.dtype != weight.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise DTypeError("x", x.dtype, f"the dtype of the network, {weight.dtype}")
    if time_input.shape not in ((), x.shape[:1]):
        raise ShapeError(
            "time_input", tuple(time_input.shape), f"() or ({x.shape[0]},), one time_input for each sample of x"
        )
    if not time_input.is_floating_point():
        raise DTypeError("time_input", time_input.dtype, "a floating-point tensor")
