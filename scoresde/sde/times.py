"""Times, and the one place where a time meets data of any rank."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError


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


def broadcast(value: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """A per-sample quantity of shape ``()`` or ``(B,)``, in the dtype of ``x`` and shaped to multiply x ``(B, *D)``.

    ``(B,)`` becomes ``(B, 1, ..., 1)`` whatever the rank of D; nothing else is accepted, so that a time never
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


class Share(torch.Generator):
    """A generator of which this process uses a share: it draws for a whole batch and keeps some of the items.

    Of a batch of ``total`` items it keeps ``index``, ``index + count``, ``index + 2 count``... Processes, or pieces of
    a batch taken one after another, that each hold a share thus see the numbers that one process would have drawn for
    the whole, and leave the generator in the same state. :func:`randn`, :func:`rand` and :func:`places` know of it; to
    what draws from it directly it is an ordinary generator, and every share sees the same numbers.
    """

    index, count, total = 0, 1, 1

    def of(self, index: int, count: int, total: int) -> Share:
        """Use the share of these items from now on; returns itself."""
        self.index, self.count, self.total = index, count, total
        return self

    def whole(self, n: int) -> int:
        """The items to draw for, of which ``n`` are to be kept."""
        return self.total if n == len(range(self.index, self.total, self.count)) else n * self.count


def _draw(function, shape, generator, device, dtype) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    device = torch.device(device if device is not None else "cpu")
    if isinstance(generator, (list, tuple)):
        if len(generator) != shape[0]:
            raise ArgumentError(
                "generator", f"a list of {len(generator)}", f"one generator or {shape[0]}, one a sample"
            )
        return torch.stack([_draw(function, tuple(shape[1:]), g, device, dtype) for g in generator])
    source = device if generator is None else generator.device
    if isinstance(generator, Share):
        whole = (generator.whole(shape[0]), *shape[1:])
        drawn = function(whole, generator=generator, device=source, dtype=dtype)[generator.index :: generator.count]
        return drawn.to(device)
    return function(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def randn(shape, generator=None, device=None, dtype=None) -> Tensor:
    """Standard normal noise ``(B, *D)`` from a generator, from a :class:`Share` of one, or from a list, one a sample.

    The draw is made on the generator's own device and then moved, so a CPU generator gives the same numbers wherever
    the data live. With a list, sample i sees its own stream only and does not depend on what else is in the batch.
    """
    return _draw(torch.randn, shape, generator, device, dtype)


def rand(shape, generator=None, device=None, dtype=None) -> Tensor:
    """Uniform numbers in [0, 1), ``(B, *D)``, drawn as :func:`randn` draws."""
    return _draw(torch.rand, shape, generator, device, dtype)


def places(n: int, generator=None, device=None) -> Tensor:
    """``(n,)``: i/B, where each of n items stands in its batch of B; with a :class:`Share`, in the whole batch."""
    if isinstance(generator, Share):
        total = generator.whole(n)
        return torch.arange(generator.index, total, generator.count, device=device) / total
    return torch.arange(n, device=device) / n


def streams(generator: torch.Generator | None, n: int) -> list[torch.Generator] | None:
    """``n`` generators seeded by ``generator``, one a sample; None gives None.

    What is drawn with them does not depend on how the samples are cut into batches: streams(g, 3) and then
    streams(g, 2) are the five of streams(g, 5).
    """
    if generator is None:
        return None
    seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device).tolist()
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]


def is_host_scalar(t: object) -> bool:
    """Whether ``t`` is one time known to the host: a number, or a scalar tensor on the CPU."""
    return isinstance(t, Real) or (isinstance(t, Tensor) and t.ndim == 0 and t.device.type == "cpu")


def log1mexp(b: Tensor) -> Tensor:
    """log(1 - exp(-b)) for b >= 0, accurate at both ends (log(-expm1(-b)) near 0, log1p(-exp(-b)) far away)."""
    log_2 = math.log(2.0)
    return torch.where(b < log_2, torch.log(-torch.expm1(-b)), torch.log1p(-torch.exp(-b.clamp(min=log_2))))
