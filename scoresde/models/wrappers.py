"""Wrappers that change how a model is evaluated, not what it predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import ArgumentError, DTypeError
from scoresde.models.conditions import ESTIMATE, Condition, condition_rows
from scoresde.models.estimate import Estimate, Unguided
from scoresde.models.model import Model, Wrapper
from scoresde.sde import Level

AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


class _Chunked(Wrapper):
    same_flow = True

    def __init__(self, model: Model, chunk: int):
        super().__init__(model)
        self.chunk = chunk

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        if len(x) <= self.chunk:
            return self.model.estimate(x, level, cond)
        parts = []
        for begin in range(0, len(x), self.chunk):
            rows = slice(begin, begin + self.chunk)
            parts.append(self.model.estimate(x[rows], level.rows(rows), condition_rows(cond, rows)))
        learned = [part.v for part in parts if part.v is not None]
        v = torch.cat(learned) if learned else None
        plain = [part.unguided for part in parts if part.unguided is not None]
        unguided = Unguided(*(torch.cat(values) for values in zip(*plain, strict=True))) if plain else None
        x0, eps = torch.cat([part.x0 for part in parts]), torch.cat([part.eps for part in parts])
        return Estimate(x0, eps, level, v, unguided)

    def extra_repr(self) -> str:
        return f"chunk={self.chunk}"


class _Autocast(Wrapper):
    same_flow = True

    def __init__(self, model: Model, dtype: torch.dtype):
        super().__init__(model)
        self.low, self.high = dtype, model.dtype

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        with torch.autocast(x.device.type, dtype=self.low):
            estimate = self.model.estimate(x.to(self.high), level, cond)
        return estimate.to(x.dtype)

    def extra_repr(self) -> str:
        return f"dtype={self.low}"


class _InOwnDtype(Wrapper):
    same_flow = True

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        estimate = self.model.estimate(x.to(self.dtype), level, cond)
        return estimate.to(x.dtype)


class Remembering(Wrapper):
    """A model that hands its estimate of x0 to the next call, by cond["x0"].

    A call for other samples, as after some of them have ended, begins without an estimate.
    """

    same_flow = True

    def __init__(self, model: Model):
        super().__init__(model)
        self.self_condition = False
        self._before: Tensor | None = None

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        given, before = dict(cond or {}), self._before
        if before is not None and before.shape == x.shape:
            given.setdefault(ESTIMATE, before)
        estimate = self.model.estimate(x, level, given or None)
        self._before = estimate.x0.detach()
        return estimate


@checked
def chunked(model: Model, chunk: int) -> Model:
    """Return the model, with at most ``chunk`` samples per network call.

    Large batches then fit in little memory. Results are unchanged except for floating-point differences between batch
    sizes.

    Args:
        model: The model.
        chunk: Number of samples, a positive integer.

    Raises:
        ArgumentError: ``chunk`` is not a positive integer.
    """
    return _Chunked(model, whole("chunk", chunk))


@checked
def in_own_dtype(model: Model) -> Model:
    """Return the model, with its network in the dtype of its parameters.

    x may have any dtype, in which x0 and eps come back. A sampler's state may thus be float64 around a float32 network.

    Args:
        model: The model. One without parameters is returned as it is.
    """
    return _InOwnDtype(model) if any(True for _ in model.parameters()) else model


@checked
def autocast(model: Model, dtype: torch.dtype) -> Model:
    """Return the model, with its network under ``torch.autocast``.

    The device type is that of x. x may have any dtype, float64 too. The network receives x in its own dtype, and
    x0 and eps come back in the dtype of x. A sampler's state thus keeps its precision around a network of low
    precision.

    Args:
        model: The model.
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        DTypeError: ``dtype`` is another dtype.
        ArgumentError: torch.autocast does not know the model's device.

    References: Karras et al. (2022).
    """
    if dtype not in AUTOCAST_DTYPES:
        raise DTypeError("autocast", dtype, "torch.bfloat16 or torch.float16")
    device = model.device.type
    if not torch.amp.is_autocast_available(device):
        expected = "for a device that torch.autocast knows, such as 'cuda'"
        raise ArgumentError("autocast", f"{dtype} on {device!r}", expected)
    return _Autocast(model, dtype)
