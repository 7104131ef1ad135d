"""Times as users give them: numbers or tensors in [0, 1]."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError


def as_time(t: float | Tensor, name: str = "t") -> Tensor:
    """``t`` as a floating tensor in [0, 1], its shape kept; a Python number becomes a float64 scalar on the CPU.

    The range is checked on the CPU only: on an accelerator the check would wait for the device.

    Raises:
        ArgumentError: a value outside [0, 1], or NaN.
        DTypeError: an integer or complex tensor (levels by index are ``ddpm.times[i - 1]``), or not a number at all.
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
    """Whether ``t`` is one time known to the host: a number, or a scalar tensor on the CPU."""
    return isinstance(t, Real) or (isinstance(t, Tensor) and t.ndim == 0 and t.device.type == "cpu")
