"""Memory against time: activations that are computed again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, h: Tensor, modulation: Tensor, wanted: bool) -> Tensor:
    """Return ``block(h, modulation)`` and, if wanted, keep none of its inside.

    The backward pass computes it again, and dropout draws the same numbers twice. Without gradients, or if it is not
    wanted, this is a plain call.

    References: Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    if not wanted or not torch.is_grad_enabled():
        result: Tensor = block(h, modulation)
        return result
    again: Tensor = checkpoint(block, h, modulation, use_reentrant=False)
    return again
