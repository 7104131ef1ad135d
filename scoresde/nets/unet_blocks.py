"""The parts of a U-Net: resampling, residual blocks, attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nets.attention import attend

CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _Periodic(nn.Module):
    """The part of a convolution that joins the ends of some axes."""

    wraps: tuple[int, ...]  # entries to add at both ends, last axis first, as F.pad takes them

    def forward(self, h: Tensor) -> Tensor:
        result: Tensor = super().forward(F.pad(h, self.wraps, mode="circular"))
        return result


class _PeriodicConv1d(_Periodic, nn.Conv1d):
    pass


class _PeriodicConv2d(_Periodic, nn.Conv2d):
    pass


class _PeriodicConv3d(_Periodic, nn.Conv3d):
    pass


_PeriodicConv = _PeriodicConv1d | _PeriodicConv2d | _PeriodicConv3d
_PERIODIC: dict[int, type[_PeriodicConv]] = {1: _PeriodicConv1d, 2: _PeriodicConv2d, 3: _PeriodicConv3d}
_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def halved(h: Tensor, fir: bool) -> Tensor:
    """Halve the lengths along every axis, rounded up.

    By means of two, or with ``fir`` by the filter (1, 3, 3, 1)/8.
    """
    pool = _POOL[h.ndim - 2]
    if fir:  # a mean of two, three times; at the borders over the entries that there are, so that constants stay
        h = pool(pool(h, 2, 1, 1, count_include_pad=False), 2, 1)
    result: Tensor = pool(h, 2, ceil_mode=True)
    return result


def doubled(h: Tensor, size: torch.Size, fir: bool) -> Tensor:
    """Resize h to ``size``, twice its lengths or one less.

    By nearest neighbours, or with ``fir`` by the filter (1, 3, 3, 1)/4.
    """
    if not fir:
        return F.interpolate(h, size=size, mode="nearest") if h.shape[2:] != size else h
    h = F.interpolate(h, scale_factor=2.0, mode=_LINEAR[h.ndim - 2], align_corners=False)
    for axis, length in enumerate(size, start=2):
        h = h.narrow(axis, 0, length)
    return h


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share; the arguments of ``UNet``.

    Args:
        rank: Number of axes of the data, without the channels.
        groups: Groups of each GroupNorm.
        dropout: Probability inside each residual block.
        scale_shift: Scale and shift by the modulation, instead of adding it.
        rescale: Multiply the sums of skip and residual by 1/sqrt(2).
        fir: Resample with the filter (1, 3, 3, 1).
        fused: Use torch's fused attention.
        periodic: Whether each axis wraps around. Empty: none does.
        plain: Whether blocks that resample have no convolution in their skip.
    """

    rank: int
    groups: int
    dropout: float = 0.0
    scale_shift: bool = True
    rescale: bool = False
    fir: bool = False
    fused: bool = False
    periodic: tuple[bool, ...] = ()
    plain: bool = False

    @property
    def gain(self) -> float | None:
        """Factor of the sums of skip and residual; None for 1."""
        return 0.5**0.5 if self.rescale else None

    def conv(self, inputs: int, width: int, size: int, stride: int = 1) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Return a convolution of this rank, padded to keep the lengths."""
        half = size // 2
        if not any(self.periodic) or not half:
            return CONV[self.rank](inputs, width, size, stride=stride, padding=half)
        zeros = tuple(0 if wraps else half for wraps in self.periodic)
        conv: _PeriodicConv
        conv = _PERIODIC[self.rank](inputs, width, size, stride=stride, padding=zeros)  # type: ignore[arg-type]  # rank
        conv.wraps = tuple(half * wraps for wraps in reversed(self.periodic) for _ in range(2))
        return conv


class ResBlock(nn.Module):
    """Residual block with two convolutions, modulated between them.

        skip(h) + conv(dropout(SiLU(modulated norm(conv(SiLU(norm(h)))))))

    Args:
        inputs: Channels of h.
        width: Channels of the result.
        style: What all blocks share.
        resize: "halve" or "double" changes the lengths before the first convolution and before the skip. None: keep
            them.
    """

    def __init__(self, inputs: int, width: int, style: Style, resize: str | None = None):
        super().__init__()
        self.scale_shift, self.resize, self.fir, self.gain = style.scale_shift, resize, style.fir, style.gain
        self.norm1, self.conv1 = nn.GroupNorm(style.groups, inputs), style.conv(inputs, width, 3)
        self.norm2, self.conv2 = nn.GroupNorm(style.groups, width), style.conv(width, width, 3)
        self.dropout = nn.Dropout(style.dropout)
        same = inputs == width and (resize is None or style.plain)
        self.skip = nn.Identity() if same else style.conv(inputs, width, 1)

    def forward(self, h: Tensor, modulation: Tensor, size: torch.Size | None = None) -> Tensor:
        u = F.silu(self.norm1(h))
        if self.resize == "halve":
            u, h = halved(u, self.fir), halved(h, self.fir)
        elif size is not None:
            u, h = doubled(u, size, self.fir), doubled(h, size, self.fir)
        u = self.conv1(u)
        modulation = modulation.view(*modulation.shape, *(1,) * (h.ndim - 2))
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            u = torch.addcmul(shift, self.norm2(u), 1 + scale)
        else:
            u = self.norm2(u + modulation)
        h = self.skip(h) + self.conv2(self.dropout(F.silu(u)))
        return h if self.gain is None else h * self.gain


class Attention(nn.Module):
    """Self-attention over all positions, with a residual connection."""

    def __init__(self, width: int, heads: int, style: Style):
        super().__init__()
        self.heads, self.fused, self.gain = heads, style.fused, style.gain
        self.norm = nn.GroupNorm(style.groups, width)
        self.qkv, self.out = style.conv(width, 3 * width, 1), style.conv(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        qkv = torch.unflatten(
            self.qkv(self.norm(h)).flatten(2), 1, (3, self.heads, -1)
        )  # (B, 3, heads, dim, positions)
        h = h + self.out(attend(qkv.unbind(1), self.fused).reshape(h.shape))
        return h if self.gain is None else h * self.gain


class Stage(nn.Module):
    """A residual block, followed by attention where its resolution has it."""

    def __init__(self, block: ResBlock, attend: nn.Module):
        super().__init__()
        self.block, self.attend = block, attend

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        result: Tensor = self.attend(self.block(h, modulation))
        return result
