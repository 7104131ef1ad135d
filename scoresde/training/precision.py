"""The network as training runs it: in low precision, compiled, channels last; the model itself stays as it was."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from scoresde.models import ScoreModel

#: what the network's matrix products and convolutions are computed in, by autocast
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Network(nn.Module):
    """``net`` called under autocast, compiled, on channels-last images; the same weights, the result in x's dtype."""

    def __init__(self, net: nn.Module, device: torch.device, precision: str, compile: bool | str, channels_last: bool):
        super().__init__()
        self.net, self.channels_last = net, channels_last
        backend = {"backend": compile} if isinstance(compile, str) else {}
        self._call = [torch.compile(net, **backend) if compile else net]  # in a list: not a second set of weights
        self._autocast = {"device_type": device.type, "dtype": PRECISIONS[precision]}

    def forward(self, x: Tensor, time_input: Tensor, **cond: Tensor) -> Tensor:
        dtype = x.dtype
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with nullcontext() if self._autocast["dtype"] is None else torch.autocast(**self._autocast):
            return self._call[0](x, time_input, **cond).to(dtype)


def training_view(
    model: ScoreModel,
    device: torch.device,
    precision: str = "float32",
    compile: bool | str = False,
    channels_last=False,
) -> ScoreModel:
    """A model of the same network, process and settings, whose calls of the network run as training wants them.

    Weights, hooks and training mode are shared; saving, averaging and sampling go on with ``model``.
    """
    if precision == "float32" and not compile and not channels_last:
        return model
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.net = _Network(model.net, device, precision, compile, channels_last)
    return view
