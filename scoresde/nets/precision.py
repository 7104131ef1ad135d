"""Layers that compute in full precision, under autocast too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def exactly(layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``layer(x)``, computed in the dtype of the layer's weights.

    Under autocast only the result has autocast's dtype. This is for the layer that takes in x. Near -1 and 1 bfloat16
    has two numbers in a bin of an 8-bit image. A network that sees only those cannot resolve the fine noise of the
    last levels.

    Args:
        layer: Layer with a ``weight``.
        x: Its input.
    """
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        result: Tensor = layer(x)
        return result
    with torch.autocast(device, enabled=False):
        result = layer(x.to(layer.get_parameter("weight").dtype))
    return result.to(torch.get_autocast_dtype(device))
