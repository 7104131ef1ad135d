"""Times as users give them: numbers or tensors in [0, 1]."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError


def as_time(t: float | Tensor, name: str = "t") -> Tensor:
    """Return ``t`` as a tensor of its shape, in float32 at least, in [0, 1].

    The range is checked on the CPU only, since on an accelerator the check would wait for the device. Half precision
    would not resolve the noise levels.

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
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    if is_concrete(t) and not ((t >= 0) & (t <= 1)).all():
        wrong = t[~((t >= 0) & (t <= 1))].flatten()[0].item()
        raise ArgumentError(name, wrong, "times in [0, 1] (data at 0)")
    return t


def is_concrete(value: Tensor) -> bool:
    """Return whether the values of a tensor can be looked at without a wait.

    True on the CPU, but not while torch traces a function or transforms it (``torch.compile``, ``torch.func``).
    """
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(value)
    return value.device.type == "cpu" and not traced


def is_host_scalar(t: object) -> bool:
    """Return whether ``t`` is one time that the host knows.

    True for a number, and for a scalar tensor on the CPU through which no derivative is taken.
    """
    if not isinstance(t, Tensor):
        return isinstance(t, Real)
    return t.ndim == 0 and not t.requires_grad and is_concrete(t)
