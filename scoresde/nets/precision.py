"""What a network computes in full precision although it runs under autocast."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def exactly(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` in the dtype of its weights, under autocast too, where only the result has autocast's dtype.

    For the layer that takes in x: near -1 and 1 bfloat16 has two numbers in a bin of an 8-bit image, and a network that
    sees no more than those cannot tell the fine noise of the last levels.
    """
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return layer(x)
    with torch.autocast(device, enabled=False):
        return layer(x.to(layer.weight.dtype)).to(torch.get_autocast_dtype(device))
