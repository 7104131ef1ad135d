"""A U-Net for series (C, L), images (C, H, W) and volumes (C, D, H, W), from one implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.errors import ArgumentError
from scoresde.nets.checks import check_inputs, integer, integers, probability
from scoresde.nets.embeddings import Conditioning
from scoresde.nets.registry import register_net

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


class _ResBlock(nn.Module):
    """skip(h) + conv(dropout(SiLU(modulated norm(conv(SiLU(norm(h)))))))."""

    def __init__(self, conv: type[nn.Module], inputs: int, width: int, groups: int, dropout: float, scale_shift: bool):
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs), conv(inputs, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), conv(width, width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == width else conv(inputs, width, 1)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        u = self.conv1(F.silu(self.norm1(h)))
        modulation = modulation.view(*modulation.shape, *(1,) * (h.ndim - 2))
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            u = torch.addcmul(shift, self.norm2(u), 1 + scale)
        else:
            u = self.norm2(u + modulation)
        return self.skip(h) + self.conv2(self.dropout(F.silu(u)))


class _Attention(nn.Module):
    """Self-attention over all positions, with a residual connection."""

    def __init__(self, conv: type[nn.Module], width: int, groups: int, heads: int, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm = nn.GroupNorm(groups, width)
        self.qkv, self.out = conv(width, 3 * width, 1), conv(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1))  # (B, 3, heads, dim, positions)
        q, k, v = qkv.unbind(1)
        if self.fused:
            u = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        else:
            u = v @ (q.mT @ k * q.shape[-2] ** -0.5).softmax(-1).mT
        return h + self.out(u.reshape(h.shape))


class _Stage(nn.Module):
    """A residual block, and attention after it at the levels that have it."""

    def __init__(self, block: _ResBlock, attend: nn.Module):
        super().__init__()
        self.block, self.attend = block, attend

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        return self.attend(self.block(h, modulation))


@register_net("unet")
class UNet(nn.Module):
    """Convolutional U-Net with residual blocks modulated by the time label, and by the class where there is one.

    ``net(x, label, y=None)``: x ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``; label ``(B,)`` or ``()``,
    floating point; y ``(B,)`` int64 classes, -1 (or ``None`` for all) meaning no class. The result has the shape of x,
    with ``out_channels`` channels if given. With ``zero_init`` it is zero at the start of training.

    ``shape`` fixes the number of channels and the rank; other lengths are accepted when called. Odd sizes need no
    padding: level k + 1 has half the length of level k, rounded up (25, 13, 7), and the way up returns
    to the same lengths.

    - ``channels``, ``multipliers``: the width of level k is ``channels * multipliers[k]``.
    - ``blocks``: residual blocks of each level, both on the way down and on the way up.
    - ``attention``: the levels with self-attention; 0 is the finest, -1 the coarsest. It follows each block of its
      level; at the coarsest level only the middle block, where one look at the whole input is enough.
    - ``heads``: attention heads; divides the width of those levels.
    - ``dropout``: in [0, 1), inside each block; drawn from torch's global random state while training.
    - ``classes``: number of classes; None for an unconditional network.
    - ``embedding``, ``embedding_scale``, ``embedding_seed``: the features of the label, see
      :class:`~scoresde.nets.embeddings.Conditioning`.
    - ``out_channels``: e.g. 2 C for a network that also predicts a variance.
    - ``scale_shift``: the label scales and shifts each block after its norm; if False it is added before.
    - ``num_groups``: groups of each GroupNorm; divides ``channels``.
    - ``fused_attention``: torch's fused kernel, whose memory is linear in the number of positions. It has first
      derivatives only: implicit and sliced score matching, which differentiate twice, need False.
    - ``zero_init``: zero the last layer of each residual branch and of the network.

    Raises :class:`ArgumentError` for numbers that do not fit together (a shape too small for its levels, heads or
    groups that do not divide a width), :class:`UnknownNameError` for another embedding; when called,
    :class:`ShapeError` and :class:`DTypeError` for tensors that do not fit, :class:`ArgumentError` for
    a ``y`` where there are no classes.

    Source: Ronneberger, Fischer, Brox 2015 (the U); Ho, Jain, Abbeel 2020, appendix B (time and attention); Nichol,
    Dhariwal 2021, section 3 (scale and shift). Upsampling is by nearest neighbour; the convolution after it is the
    first one of the next block.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (-1,),
        heads: int = 4,
        dropout: float = 0.0,
        classes: int | None = None,
        embedding: str = "sinusoidal",
        embedding_scale: float = 1.0,
        embedding_seed: int = 0,
        out_channels: int | None = None,
        scale_shift: bool = True,
        num_groups: int = 8,
        fused_attention: bool = False,
        zero_init: bool = True,
    ):
        super().__init__()
        self.shape = integers("shape", shape)
        rank = len(self.shape) - 1
        if rank not in _CONV:
            raise ArgumentError("shape", self.shape, "(C, L), (C, H, W) or (C, D, H, W)")
        conv = _CONV[rank]
        integer("channels", channels)
        multipliers = integers("multipliers", multipliers)
        widths = [channels * m for m in multipliers]
        levels = integer("multipliers: number of levels", len(widths))
        integer("blocks", blocks)
        attends = _attention_levels(attention, levels)
        if channels % integer("num_groups", num_groups):
            raise ArgumentError("num_groups", num_groups, f"a divisor of channels = {channels}")
        for k in attends:
            if widths[k] % integer("heads", heads):
                raise ArgumentError("heads", heads, f"a divisor of the width {widths[k]} of level {k}")
        if levels > 1 and min(self.shape[1:]) <= 2 ** (levels - 2):
            raise ArgumentError(
                "shape",
                self.shape,
                f"every length > {2 ** (levels - 2)}, so that each of the {levels} levels is coarser",
            )
        dropout = probability("dropout", dropout)
        out = self.shape[0] if out_channels is None else integer("out_channels", out_channels)

        features = 4 * channels
        self.conditioning = Conditioning(2 * channels, features, classes, embedding, embedding_scale, embedding_seed)
        self.stem = conv(self.shape[0], channels, 3, padding=1)

        def stage(inputs: int, level: int, attends: bool) -> _Stage:
            width = widths[level]
            block = _ResBlock(conv, inputs, width, num_groups, dropout, scale_shift)
            attend = _Attention(conv, width, num_groups, heads, fused_attention) if attends else nn.Identity()
            return _Stage(block, attend)

        coarsest = levels - 1
        sides = attends - {coarsest}

        self.down, self.halve, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width = channels
        for level in range(levels):
            self.halve.append(conv(width, width, 3, stride=2, padding=1) if level else nn.Identity())
            inputs = (width, *(widths[level],) * (blocks - 1))
            self.down.append(nn.ModuleList(stage(n, level, level in sides) for n in inputs))
            width = widths[level]
        self.middle = stage(width, coarsest, coarsest in attends)
        for level in reversed(range(levels)):
            inputs = (width + widths[level], *(2 * widths[level],) * (blocks - 1))
            self.up.append(nn.ModuleList(stage(n, level, level in sides) for n in inputs))
            width = widths[level]
        self.head = nn.Sequential(nn.GroupNorm(num_groups, width), nn.SiLU(), conv(width, out, 3, padding=1))

        # One wide layer makes the modulations of every block at once; forward deals them out in this order.
        stages = [*(s for level in self.down for s in level), self.middle, *(s for level in self.up for s in level)]
        self._sizes = [(1 + scale_shift) * s.block.conv1.out_channels for s in stages]
        self.modulation = nn.Linear(features, sum(self._sizes))
        if zero_init:
            last = [self.head[-1], *(s.block.conv2 for s in stages)]
            last += [s.attend.out for s in stages if isinstance(s.attend, _Attention)]
            for layer in last:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, label: Tensor, y: Tensor | None = None) -> Tensor:
        check_inputs(x, label, (self.shape[0], *_AXES[len(self.shape) - 1]), self.stem.weight)
        modulations = iter(self.modulation(self.conditioning(label, y, x.shape[0])).split(self._sizes, dim=1))
        h, skips = self.stem(x), []
        for halve, stages in zip(self.halve, self.down, strict=True):
            h = halve(h)
            for stage in stages:
                h = stage(h, next(modulations))
                skips.append(h)
        h = self.middle(h, next(modulations))
        for stages in self.up:
            size = skips[-1].shape[2:]
            if h.shape[2:] != size:
                h = F.interpolate(h, size=size, mode="nearest")
            for stage in stages:
                h = stage(torch.cat((h, skips.pop()), dim=1), next(modulations))
        return self.head(h)


def _attention_levels(attention: Sequence[int], levels: int) -> set[int]:
    """Level numbers, negative ones counted from the coarsest, as a set of numbers in 0 .. levels - 1."""
    attention = integers("attention", attention, least=-levels)
    if any(level >= levels for level in attention):
        raise ArgumentError("attention", attention, f"level numbers from {-levels} to {levels - 1}")
    return {level % levels for level in attention}
