"""Checks of what the pictures show; all of it becomes float64 arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scoresde.errors import ArgumentError, ShapeError

#: a NumPy array, a tensor on any device, or nested sequences of numbers
Array = Tensor | ArrayLike
Floats = NDArray[np.float64]


def as_floats(name: str, values: Any) -> Floats:
    """Return an array, a tensor or nested numbers as a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(name, type(values).__name__, "an array or tensor of numbers") from None


def as_vector(name: str, values: Array) -> Floats:
    """Return ``values`` as ``(N,)`` with N >= 1."""
    found = as_floats(name, values)
    if found.ndim != 1 or not len(found):
        raise ShapeError(name, f"shape {found.shape}", "(N,) with N >= 1")
    return found


def as_points(name: str, values: Array) -> Floats:
    """Return ``values`` as finite points ``(N, 2)`` with N >= 1."""
    found = as_floats(name, values)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise ShapeError(name, f"shape {found.shape}", "(N, 2) with N >= 1")
    if not np.isfinite(found).all():
        raise ArgumentError(name, f"{(~np.isfinite(found)).sum()} non-finite values", "finite coordinates")
    return found


def as_images(name: str, values: Array) -> Floats:
    """Return images (N, C, H, W) in [0, 1] as RGB images (N, H, W, 3).

    An alpha channel is composed with white.
    """
    found = as_floats(name, values)
    if found.ndim != 4 or found.shape[1] not in (1, 3, 4) or 0 in found.shape:
        raise ShapeError(name, f"shape {found.shape}", "(N, C, H, W) with C = 1, 3 or 4 and N, H, W >= 1")
    if not np.isfinite(found).all():
        raise ArgumentError(name, f"{(~np.isfinite(found)).sum()} non-finite values", "numbers in [0, 1]")
    found = np.moveaxis(found.clip(0, 1), 1, -1)
    if found.shape[-1] == 4:
        return found[..., :3] * found[..., 3:] + 1 - found[..., 3:]
    return np.broadcast_to(found, (*found.shape[:3], 3))
