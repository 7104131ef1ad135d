"""Times as users give them: numbers or tensors in [0, 1]."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError


def as_time(t: float | Tensor, name: str = "t") -> Tensor:
    """Return ``t`` as a floating-point tensor of its shape, in [0, 1].

    The range is checked on the CPU only, since on an accelerator the check would wait for the device.

    Args:
        t: Number, which becomes a float64 scalar on the CPU, or a floating-point tensor.
        name: What an error calls ``t``, default "t".

    Raises:
        ArgumentError: A value outside [0, 1], or NaN.
        DTypeError: An integer or complex tensor, or no number. The time of level i is ``ddpm.times[i - 1]``.
    """
    if isinstance(t, Real):
        if not 0.0 <= t <= 1.0:
            raise ArgumentError(name, t, "a time in [0, 1] (data at 0)")
        return torch.tensor(float(t), dtype=torch.float64)
    if not isinstance(t, Tensor):
        raise DTypeError(name, type(t).__name__, "a number or a floating-point tensor of times in [0, 1]")
    if not t.is_floating_point():
        raise DTypeError(name, t.dtype, "a floating-point tensor of times in [0, 1]")
    if t.device.type == "cpu" and not torch.compiler.is_compiling() and not ((t >= 0) & (t <= 1)).all():
        wrong = t[~((t >= 0) & (t <= 1))].flatten()[0].item()
        raise ArgumentError(name, wrong, "times in [0, 1] (data at 0)")
    return t


def is_host_scalar(t: object) -> bool:
    """Return whether the host knows the one time ``t``.

    True for a number and for a scalar tensor on the CPU.
    """
    return isinstance(t, Real) or (isinstance(t, Tensor) and t.ndim == 0 and t.device.type == "cpu")
