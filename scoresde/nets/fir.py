"""Resampling with a FIR filter, with zeros outside of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.errors import ArgumentError


class FIR(nn.Module):
    """Halves or doubles images with a filter, without aliasing.

    The filter acts along both axes. Constants stay constants, except at the borders, where the pixels outside are 0.

    Args:
        taps: Numbers of the filter, an even number of them, such as (1, 3, 3, 1).

    Raises:
        ArgumentError: An odd number of taps, or taps of sum 0.

    References: Zhang 2019, "Making convolutional networks shift-invariant again"; Song et al. 2021, appendix H.
    """

    taps: Tensor

    def __init__(self, taps: Sequence[float] = (1, 3, 3, 1)):
        super().__init__()
        line = torch.tensor(list(taps), dtype=torch.float64, device="cpu")
        if len(line) % 2 or not len(line) or line.sum() == 0:
            raise ArgumentError("fir", tuple(taps), "an even number of taps with a sum other than 0, as (1, 3, 3, 1)")
        line = line / line.sum()
        # not saved: the taps are an argument of the network
        filter_ = torch.outer(line, line).flip((0, 1)).to(torch.get_default_dtype())
        self.register_buffer("taps", filter_.to(torch.get_default_device()), persistent=False)
        self.reach = len(line) // 2

    def _filter(self, h: Tensor) -> Tensor:
        """Return the filter for each channel, ``(C, 1, n, n)``."""
        return self.taps.to(h.dtype).expand(h.shape[1], 1, -1, -1)

    def halve(self, h: Tensor) -> Tensor:
        """Return h ``(B, C, H, W)`` at half its lengths."""
        return F.conv2d(h, self._filter(h), stride=2, padding=self.reach - 1, groups=h.shape[1])

    def enlarge(self, h: Tensor) -> Tensor:
        """Return h ``(B, C, H, W)`` at twice its lengths."""
        weight = 4 * self._filter(h).flip((2, 3))
        return F.conv_transpose2d(h, weight, stride=2, padding=self.reach - 1, groups=h.shape[1])

    def halve_by(self, conv: nn.Conv2d, h: Tensor) -> Tensor:
        """Return h filtered, and halved by a 3 x 3 convolution of stride 2."""
        h = F.conv2d(h, self._filter(h), padding=self.reach, groups=h.shape[1])
        return F.conv2d(h, conv.weight, conv.bias, stride=2)

    def enlarge_by(self, conv: nn.Conv2d, h: Tensor) -> Tensor:
        """Return h with zeros between, convolved with 3 x 3, filtered."""
        h = F.conv_transpose2d(h, conv.weight.flip((2, 3)).transpose(0, 1), stride=2)
        h = F.conv2d(h, 4 * self._filter(h), padding=self.reach - 1, groups=h.shape[1])
        return h if conv.bias is None else h + conv.bias[:, None, None]
