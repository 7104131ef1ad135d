"""Tensors of any rank: how a quantity per sample meets data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors import DeviceError, ShapeError


def flat(x: Tensor) -> Tensor:
    """Return ``x`` ``(B, *D)`` as ``(B, n)``, n = prod(D)."""
    return x.reshape(x.shape[0], -1)


def broadcast(value: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """Shape a quantity per sample so that it multiplies ``x``.

    Args:
        value: Quantity, ``()`` or ``(B,)``. No other shape is accepted, so that a time never broadcasts against a data
            axis by accident.
        x: Data ``(B, *D)``.
        name: What an error calls ``value``, default "t".

    Returns:
        ``()``, or ``(B, 1, ..., 1)`` of the rank of ``x``, in the dtype of ``x``.

    Raises:
        ShapeError: Another shape.
        DeviceError: A tensor on another device than ``x``. A scalar on the CPU goes with every device.
    """
    if value.device != x.device and (value.ndim or value.device.type != "cpu"):
        raise DeviceError(name, value.device, f"on the device of x, {x.device}")
    if value.ndim == 0:
        return value.to(x.dtype)
    if x.ndim == 0 or value.shape != x.shape[:1]:
        batch = x.shape[0] if x.ndim else 0
        raise ShapeError(name, tuple(value.shape), f"of shape () or ({batch},) for x of shape {tuple(x.shape)}")
    return value.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def as_column(value: Tensor, like: Tensor) -> Tensor:
    """Shape a quantity per sample so that it multiplies flat data.

    Args:
        value: Quantity, ``()`` or ``(B,)``.
        like: Flat data ``(B, n)``.

    Returns:
        ``()`` or ``(B, 1)``, with the dtype and device of ``like``.
    """
    return value.to(like) if value.ndim == 0 else value.to(like)[:, None]


def state_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for a solver's state.

    float64, or float32 on a device without float64 (MPS).
    """
    return torch.float32 if x.device.type == "mps" else torch.float64


def log1mexp(b: Tensor) -> Tensor:
    """Return log(1 - exp(-b)) for b >= 0, accurate at both ends.

    Below log 2 it is log(-expm1(-b)), above it log1p(-exp(-b)).
    """
    log_2 = math.log(2.0)
    return torch.where(b < log_2, torch.log(-torch.expm1(-b)), torch.log1p(-torch.exp(-b.clamp(min=log_2))))
