"""The network as training runs it: low precision, compiled."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from scoresde.models import ScoreModel
from scoresde.training.config import Precision

#: the dtype of autocast in the network's matrix products and convolutions
PRECISIONS: dict[Precision, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": None,
}
FASTER = 0.9  # share of the time in float32 that bfloat16 must stay below, to be chosen
HOPELESS = 3.0  # share from which on a single pass in bfloat16 suffices to tell
QUICK, REPEATS = 0.1, 3  # passes shorter than this, in seconds, are timed several times


class Network(nn.Module):
    """``net`` under autocast, compiled, on channels-last images."""

    def __init__(
        self, net: nn.Module, device: torch.device, precision: Precision, compile: bool | str, channels_last: bool
    ):
        super().__init__()
        self.net, self.channels_last = net, channels_last
        backend = compile if isinstance(compile, str) else "inductor"
        called = cast(nn.Module, torch.compile(net, backend=backend)) if compile else net
        self._call = [called]  # in a list, so that its weights are not registered twice
        self._device_type, self.dtype = device.type, PRECISIONS[precision]

    def forward(self, x: Tensor, time_input: Tensor, **cond: Tensor) -> Tensor:
        dtype = x.dtype
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with nullcontext() if self.dtype is None else torch.autocast(self._device_type, self.dtype):
            return cast(Tensor, self._call[0](x, time_input, **cond)).to(dtype)


def training_view(
    model: ScoreModel,
    device: torch.device,
    precision: Precision = "float32",
    compile: bool | str = False,
    channels_last: bool = False,
) -> ScoreModel:
    """Return a model that runs the network of ``model`` by these settings.

    Weights, hooks and training mode are shared. ``model`` itself is unchanged, for saving, averaging and sampling.

    Args:
        model: The model.
        device: Its device.
        precision, compile, channels_last: See :class:`~scoresde.training.TrainerConfig`.
    """
    if precision == "float32" and not compile and not channels_last:
        return model
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.net = Network(model.net, device, precision, compile, channels_last)
    return view


def time_bfloat16(network: Network, work: Callable[[], object]) -> float:
    """Return the time of ``work`` in bfloat16 over that in float32.

    The network keeps the precision that it had.

    Args:
        network: The network that ``work`` runs.
        work: Function that returns when the device has done it.
    """

    def seconds(dtype: torch.dtype | None, above: float = math.inf) -> float:
        """Return the shortest time; the first pass counts alone if it is above."""
        network.dtype = dtype
        taken = [_seconds(work)]
        if taken[0] < above:
            taken = [_seconds(work)]
            taken += [_seconds(work) for _ in range(REPEATS if taken[0] < QUICK else 0)]
        return min(taken)

    before = network.dtype
    try:
        plain = seconds(None)
        return seconds(torch.bfloat16, HOPELESS * plain) / plain
    finally:
        network.dtype = before


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
