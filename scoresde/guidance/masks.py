"""Masks: which entries or frequencies of x an operator observes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole, wholes
from scoresde.errors import ArgumentError, DTypeError, ShapeError


def check_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """Return ``mask`` as a bool tensor.

    Args:
        mask: Tensor of bool, or of 0 and 1, with a 1 somewhere.
        name: Name of the argument in error messages.

    Raises:
        DTypeError: ``mask`` is not a tensor.
        ArgumentError: ``mask`` holds other values, or no 1.
    """
    if not isinstance(mask, Tensor):
        raise DTypeError(name, type(mask).__name__, "a tensor of bool, or of 0 and 1")
    if not bool(((mask == 0) | (mask == 1)).all()):
        got = f"values from {mask.min().item():g} to {mask.max().item():g}"
        raise ArgumentError(name, got, "a tensor of bool, or of 0 and 1")
    if not bool(mask.any()):
        raise ArgumentError(name, "0 everywhere", "1 at each known entry")
    return mask.bool()


def expand_mask(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a copy of ``mask``, expanded to ``shape``.

    Raises:
        ShapeError: ``mask`` does not broadcast to ``shape``.
    """
    try:
        return mask.expand(shape).clone()
    except RuntimeError:
        raise ShapeError("mask", tuple(mask.shape), f"of a shape that broadcasts to {tuple(shape)}") from None


def mirrored(mask: Tensor) -> Tensor:
    """Return the mask at -k, for frequencies k in the order of torch.fft."""
    axes = tuple(range(mask.ndim))
    return mask.flip(axes).roll((1,) * mask.ndim, axes)


@checked
def radial_mask(shape: tuple[int, int], lines: int) -> Tensor:
    """Return a mask ``(H, W)`` of frequencies on lines through 0.

    By the Fourier slice theorem these are the frequencies that tomography observes.

    Args:
        shape: ``(H, W)``.
        lines: Number of lines, at equal angles.

    Raises:
        ArgumentError: ``lines`` is not a positive integer.
    """
    H, W = wholes("shape", shape)
    lines = whole("lines", lines)
    mask, reach = torch.zeros(H, W, dtype=torch.bool), 2 * max(H, W)
    radii = torch.linspace(-0.5, 0.5, reach + 1, dtype=torch.float64)
    for i in range(lines):
        angle = math.pi * i / lines
        rows, columns = (radii * math.sin(angle) * H).round().long(), (radii * math.cos(angle) * W).round().long()
        mask[rows % H, columns % W] = True
    return mask | mirrored(mask)
