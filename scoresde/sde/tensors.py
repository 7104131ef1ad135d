"""Tensors of any rank: the one place where a quantity per sample meets data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors import DeviceError, ShapeError


def flat(x: Tensor) -> Tensor:
    """Return ``x`` ``(B, *D)`` as ``(B, n)``, n = prod(D)."""
    return x.reshape(len(x), -1)


def broadcast(value: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """Shape a quantity per sample, ``()`` or ``(B,)``, to multiply x ``(B, *D)``, in the dtype of ``x``.

    ``(B,)`` becomes ``(B, 1, ..., 1)`` whatever the rank of D. No other shape is accepted, so that a time never
    broadcasts against a data axis by accident.

    Raises:
        ShapeError: another shape.
        DeviceError: a tensor on another device than ``x`` (a scalar on the CPU goes with every device).
    """
    if value.device != x.device and (value.ndim or value.device.type != "cpu"):
        raise DeviceError(name, value.device, f"the device of x, {x.device}")
    if value.ndim == 0:
        return value.to(x.dtype)
    if x.ndim == 0 or value.shape != x.shape[:1]:
        batch = x.shape[0] if x.ndim else 0
        raise ShapeError(name, tuple(value.shape), f"shape () or ({batch},) for x of shape {tuple(x.shape)}")
    return value.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def as_column(value: Tensor, like: Tensor) -> Tensor:
    """Shape a quantity per sample, ``()`` or ``(B,)``, to multiply ``like`` ``(B, n)``, in its dtype, on its device."""
    return value.to(like) if value.ndim == 0 else value.to(like)[:, None]


def state_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for a solver's state: float64, or float32 on devices without float64 (MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def log1mexp(b: Tensor) -> Tensor:
    """Return log(1 - exp(-b)) for b >= 0, accurate at both ends.

    Near 0 it is log(-expm1(-b)), far away log1p(-exp(-b)).
    """
    log_2 = math.log(2.0)
    return torch.where(b < log_2, torch.log(-torch.expm1(-b)), torch.log1p(-torch.exp(-b.clamp(min=log_2))))
