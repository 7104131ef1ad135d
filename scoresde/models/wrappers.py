"""Models around models: the same estimates, asked for in another way."""

from __future__ import annotations

import torch

from scoresde.errors import ArgumentError, DTypeError
from scoresde.models.conditions import condition_rows
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model, Wrapper

AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


class _Chunked(Wrapper):
    def __init__(self, model, size):
        super().__init__(model)
        self.size = size

    def estimate(self, x, level, cond=None):
        if len(x) <= self.size:
            return self.model.estimate(x, level, cond)
        parts = []
        for begin in range(0, len(x), self.size):
            rows = slice(begin, begin + self.size)
            some = condition_rows(cond, rows)
            parts.append(self.model.estimate(x[rows], level.rows(rows), some))
        v = None if parts[0].v is None else torch.cat([part.v for part in parts])
        return Estimate(torch.cat([part.x0 for part in parts]), torch.cat([part.eps for part in parts]), level, v)


class _Autocast(Wrapper):
    def __init__(self, model, dtype):
        super().__init__(model)
        self.low, self.high = dtype, model.dtype

    def estimate(self, x, level, cond=None):
        with torch.autocast(x.device.type, dtype=self.low):
            estimate = self.model.estimate(x.to(self.high), level, cond)
        v = None if estimate.v is None else estimate.v.to(x.dtype)
        return Estimate(estimate.x0.to(x.dtype), estimate.eps.to(x.dtype), level, v)


def chunked(model: Model, size: int) -> Model:
    """The model, its network called with at most ``size`` samples at a time: large batches in little memory.

    x, a level per sample and ``cond`` are cut into pieces and the estimates joined, so whatever uses the model gives
    what it gives without, up to the rounding of a network at another batch size.

    Raises:
        ArgumentError: ``size`` is not a whole number of at least 1.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ArgumentError("chunk", size, "a whole number of samples, 1 or more")
    return _Chunked(model, size)


def autocast(model: Model, dtype: torch.dtype) -> Model:
    """The model, its network run under ``torch.autocast`` in ``dtype``, on the device type of x.

    x may have any dtype, float64 too: the network sees it in its own, and x0 and eps come back in that of x. So a
    sampler's state keeps its precision around a network of low precision (Karras et al. 2022).

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        DTypeError: another dtype.
        ArgumentError: autocast does not know the model's device.
    """
    if dtype not in AUTOCAST_DTYPES:
        raise DTypeError("autocast", dtype, "torch.bfloat16 or torch.float16")
    device = model.device.type
    if not torch.amp.is_autocast_available(device):
        raise ArgumentError("autocast", f"{dtype} on {device!r}", "a device that torch.autocast knows, such as 'cuda'")
    return _Autocast(model, dtype)
