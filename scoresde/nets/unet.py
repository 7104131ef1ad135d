"""A U-Net for series (C, L), images (C, H, W) and volumes (C, D, H, W), from one implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.checks import probability, whole, wholes
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.nets.attention import attend
from scoresde.nets.embeddings import Conditioning
from scoresde.nets.inputs import check_inputs
from scoresde.nets.precision import exactly
from scoresde.nets.registry import register_net

LAYOUTS = ("compact", "ddpm", "ddpm++")
RESAMPLINGS = ("conv", "block", "fir")
INITS = ("torch", "xavier")

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def _halved(h: Tensor, fir: bool) -> Tensor:
    """Half the length along every axis, rounded up: means of two, or with ``fir`` the filter (1, 3, 3, 1)/8."""
    pool = _POOL[h.ndim - 2]
    if fir:  # a mean of two, three times; at the borders over the entries that there are, so that constants stay
        h = pool(pool(h, 2, 1, 1, count_include_pad=False), 2, 1)
    return pool(h, 2, ceil_mode=True)


def _doubled(h: Tensor, size: torch.Size, fir: bool) -> Tensor:
    """``size``, twice the lengths of h or one less: nearest neighbours, or with ``fir`` the filter (1, 3, 3, 1)/4."""
    if not fir:
        return F.interpolate(h, size=size, mode="nearest") if h.shape[2:] != size else h
    h = F.interpolate(h, scale_factor=2.0, mode=_LINEAR[h.ndim - 2], align_corners=False)
    for axis, length in enumerate(size, start=2):
        h = h.narrow(axis, 0, length)
    return h


class _ResBlock(nn.Module):
    """skip(h) + conv(dropout(SiLU(modulated norm(conv(SiLU(norm(h))))))), times 1/sqrt(2) with ``rescale``.

    With ``resize`` = "halve" or "double" the lengths change before the first convolution and before the skip.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        resize: str | None = None,
        *,
        conv: type[nn.Module],
        groups: int,
        dropout: float,
        scale_shift: bool,
        rescale: bool,
        fir: bool,
    ):
        super().__init__()
        self.scale_shift, self.resize, self.fir = scale_shift, resize, fir
        self.gain = 0.5**0.5 if rescale else None
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs), conv(inputs, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), conv(width, width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == width and resize is None else conv(inputs, width, 1)

    def forward(self, h: Tensor, modulation: Tensor, size: torch.Size | None = None) -> Tensor:
        u = F.silu(self.norm1(h))
        if self.resize == "halve":
            u, h = _halved(u, self.fir), _halved(h, self.fir)
        elif self.resize == "double":
            u, h = _doubled(u, size, self.fir), _doubled(h, size, self.fir)
        u = self.conv1(u)
        modulation = modulation.view(*modulation.shape, *(1,) * (h.ndim - 2))
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            u = torch.addcmul(shift, self.norm2(u), 1 + scale)
        else:
            u = self.norm2(u + modulation)
        h = self.skip(h) + self.conv2(self.dropout(F.silu(u)))
        return h if self.gain is None else h * self.gain


class _Attention(nn.Module):
    """Self-attention over all positions, with a residual connection, times 1/sqrt(2) with ``rescale``."""

    def __init__(self, conv: type[nn.Module], width: int, groups: int, heads: int, fused: bool, rescale: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.gain = 0.5**0.5 if rescale else None
        self.norm = nn.GroupNorm(groups, width)
        self.qkv, self.out = conv(width, 3 * width, 1), conv(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1))  # (B, 3, heads, dim, positions)
        u = attend(*qkv.unbind(1), self.fused)
        h = h + self.out(u.reshape(h.shape))
        return h if self.gain is None else h * self.gain


class _Stage(nn.Module):
    """A residual block, and attention after it at the levels that have it."""

    def __init__(self, block: _ResBlock, attend: nn.Module):
        super().__init__()
        self.block, self.attend = block, attend

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        return self.attend(self.block(h, modulation))


@register_net("unet")
class UNet(nn.Module):
    r"""Convolutional U-Net with residual blocks modulated by the time input, and by the class where there is one.

    ``net(x, time_input, y=None)``: x ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``; time_input ``(B,)`` or ``()``,
    floating point; y ``(B,)`` int64 classes, -1 (or ``None`` for all) meaning no class. The result has the shape of x,
    with ``out_channels`` channels if given. With ``zero_init`` it is zero at the start of training.

    ``shape`` fixes the number of channels and the rank; other lengths are accepted when called. Odd sizes need no
    padding: level k + 1 has half the length of level k, rounded up (25, 13, 7), and the way up returns
    to the same lengths.

    - ``channels``, ``multipliers``: the width of level k is ``channels * multipliers[k]``.
    - ``blocks``: residual blocks of each level on the way down; as many, or one more, on the way up (``layout``).
    - ``layout``: what stands where.
      ``"compact"``: as many blocks on the way up as on the way down, one block in the middle.
      ``"ddpm"``, as in Ho et al. 2020: the stem and each halving have skip connections too, so that the way up has one
      block more at each level; block, attention, block in the middle; half as many sinusoidal features of the time input.
      ``"ddpm++"``, as in Song et al. 2021: the same, but with one attention, not one a block, at a level on the way up.
    - ``attention``: the levels with self-attention; 0 is the finest, -1 the coarsest. It follows each block of its
      level. In the compact layout the coarsest level has it in the middle alone, where one look at the whole input is
      enough; the other layouts always have it there.
    - ``heads``: attention heads, a divisor of the width of those levels; or ``head_channels``, the width of one head.
    - ``resample``: how a level halves and doubles the lengths. ``"conv"``: a convolution of stride 2; nearest
      neighbours, and a convolution (in the compact layout the first one of the next block). ``"block"``: a residual
      block of its own, with means of two and nearest neighbours inside. ``"fir"``: the same with the filter (1, 3, 3,
      1), which lets less of the high frequencies fold back.
    - ``scale_shift``: the time_input scales and shifts each block after its norm; if False it is added before.
    - ``skip_rescale``: sums of a skip and a residual times :math:`1/\sqrt 2`, so that variances do not grow with depth.
    - ``fourier_inputs``: exponents n; the network also sees :math:`\sin(2^n\pi x)` and :math:`\cos(2^n\pi x)`, which
      tell apart the fine levels of data such as 8-bit images in [-1, 1]: (7, 8) for likelihoods. x as it comes: a
      caller that rescales it changes what they mean.
    - ``dropout``: in [0, 1), inside each block; drawn from torch's global random state while training.
    - ``classes``: number of classes; None for an unconditional network.
    - ``embedding``, ``embedding_scale``, ``embedding_seed``: the features of the time input, see
      :class:`~scoresde.nets.embeddings.Conditioning`.
    - ``out_channels``: e.g. 2 C for a network that also predicts a variance.
    - ``num_groups``: groups of each GroupNorm; divides ``channels``.
    - ``fused_attention``: torch's fused kernel, whose memory is linear in the number of positions. It has first
      derivatives only: implicit and sliced score matching, which differentiate twice, need False.
    - ``zero_init``: zero the last layer of each residual branch and of the network.
    - ``init``: the other weights: ``"torch"``, each layer's own default, or ``"xavier"``, uniform with variance
      2 / (fan_in + fan_out) and no biases, as in both papers above.

    Raises :class:`ArgumentError` for numbers that do not fit together (a shape too small for its levels, heads or
    groups that do not divide a width), :class:`UnknownNameError` for another layout, resampling, init or embedding;
    when called, :class:`ShapeError` and :class:`DTypeError` for tensors that do not fit, :class:`ArgumentError` for
    a ``y`` where there are no classes.

    Source: Ronneberger, Fischer, Brox 2015 (the U); Ho, Jain, Abbeel 2020, appendix B (time and attention); Nichol,
    Dhariwal 2021, section 3, and Dhariwal, Nichol 2021, section 3 (scale and shift, heads, resampling blocks); Song et
    al. 2021, appendix H (skip_rescale, FIR); Kingma et al. 2021, section 3.4 (Fourier inputs).
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
        layout: str = "compact",
        resample: str = "conv",
        head_channels: int | None = None,
        skip_rescale: bool = False,
        fourier_inputs: Sequence[int] = (),
        init: str = "torch",
    ):
        super().__init__()
        self.shape = wholes("shape", shape)
        rank = len(self.shape) - 1
        if rank not in _CONV:
            raise ArgumentError("shape", self.shape, "(C, L), (C, H, W) or (C, D, H, W)")
        conv = _CONV[rank]
        for name, value, known in (
            ("layout", layout, LAYOUTS),
            ("resample", resample, RESAMPLINGS),
            ("init", init, INITS),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        whole("channels", channels)
        multipliers = wholes("multipliers", multipliers)
        widths = [channels * m for m in multipliers]
        levels = whole("multipliers: number of levels", len(widths))
        whole("blocks", blocks)
        coarsest, compact, by_conv = levels - 1, layout == "compact", resample == "conv"
        attends = _attention_levels(attention, levels)
        middle = not compact or coarsest in attends
        sides = attends - {coarsest} if compact else attends
        if channels % whole("num_groups", num_groups):
            raise ArgumentError("num_groups", num_groups, f"a divisor of channels = {channels}")
        for k in sorted(sides | {coarsest} if middle else sides):
            name, number = ("heads", heads) if head_channels is None else ("head_channels", head_channels)
            if widths[k] % whole(name, number):
                raise ArgumentError(name, number, f"a divisor of the width {widths[k]} of level {k}")
        if levels > 1 and min(self.shape[1:]) <= 2 ** (levels - 2):
            raise ArgumentError(
                "shape",
                self.shape,
                f"every length > {2 ** (levels - 2)}, so that each of the {levels} levels is coarser",
            )
        dropout = probability("dropout", dropout)
        out = self.shape[0] if out_channels is None else whole("out_channels", out_channels)
        self.compact, self.fourier_inputs = compact, wholes("fourier_inputs", fourier_inputs, least=0)

        features = 4 * channels
        waves = 2 * channels if compact else channels
        self.conditioning = Conditioning(waves, features, classes, embedding, embedding_scale, embedding_seed)
        self.stem = conv(self.shape[0] * (1 + 2 * len(self.fourier_inputs)), channels, 3, padding=1)

        # One wide layer makes the modulations of every block at once; forward deals them out in this order.
        self._sizes: list[int] = []

        def block(inputs: int, width: int, resize: str | None = None) -> _ResBlock:
            self._sizes.append((1 + scale_shift) * width)
            return _ResBlock(
                inputs,
                width,
                resize,
                conv=conv,
                groups=num_groups,
                dropout=dropout,
                scale_shift=scale_shift,
                rescale=skip_rescale,
                fir=resample == "fir",
            )

        def stage(inputs: int, level: int, attends: bool) -> _Stage:
            width = widths[level]
            made = block(inputs, width)
            if not attends:
                return _Stage(made, nn.Identity())
            number = heads if head_channels is None else width // head_channels
            return _Stage(made, _Attention(conv, width, num_groups, number, fused_attention, skip_rescale))

        self.down, self.halve = nn.ModuleList(), nn.ModuleList()
        self.up, self.enlarge = nn.ModuleList(), nn.ModuleList()
        width = channels
        skips = [] if compact else [channels]
        for level in range(levels):
            if level == 0:
                self.halve.append(nn.Identity())
            else:
                halve = conv(width, width, 3, stride=2, padding=1) if by_conv else block(width, width, "halve")
                self.halve.append(halve)
                if not compact:
                    skips.append(width)
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(width, level, level in sides))
                width = widths[level]
                skips.append(width)
            self.down.append(stages)
        self.middle = stage(width, coarsest, middle)
        self.last = None if compact else block(width, width)
        for level in reversed(range(levels)):
            if level == coarsest or (compact and by_conv):
                self.enlarge.append(nn.Identity())
            else:
                self.enlarge.append(conv(width, width, 3, padding=1) if by_conv else block(width, width, "double"))
            stages, number = nn.ModuleList(), blocks if compact else blocks + 1
            for i in reversed(range(number)):
                stages.append(stage(width + skips.pop(), level, level in sides and (i == 0 or layout != "ddpm++")))
                width = widths[level]
            self.up.append(stages)
        self.head = nn.Sequential(nn.GroupNorm(num_groups, width), nn.SiLU(), conv(width, out, 3, padding=1))
        self.modulation = nn.Linear(features, sum(self._sizes))
        if init == "xavier":
            self._init_xavier()
        if zero_init:
            last = [self.head[-1], *(m.conv2 for m in self.modules() if isinstance(m, _ResBlock))]
            last += [m.out for m in self.modules() if isinstance(m, _Attention)]
            for layer in last:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def _init_xavier(self) -> None:
        """Each layer by its own fans, also those that are computed as one."""
        sizes = {self.modulation: self._sizes}
        sizes |= {m.qkv: [m.qkv.out_channels // 3] * 3 for m in self.modules() if isinstance(m, _Attention)}
        for module in self.modules():
            if isinstance(module, (nn.Linear, *_CONV.values())):
                for part in module.weight.detach().split(sizes.get(module, len(module.weight))):
                    nn.init.xavier_uniform_(part)
                nn.init.zeros_(module.bias)

    def _inputs(self, x: Tensor) -> Tensor:
        """x and its Fourier features, as channels."""
        if not self.fourier_inputs:
            return x
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        phases = [2**n * math.pi * exact for n in self.fourier_inputs]
        return torch.cat((x, *(wave(phase).to(x.dtype) for phase in phases for wave in (torch.sin, torch.cos))), dim=1)

    def forward(self, x: Tensor, time_input: Tensor, y: Tensor | None = None) -> Tensor:
        check_inputs(x, time_input, (self.shape[0], *_AXES[len(self.shape) - 1]), self.stem.weight)
        modulations = iter(self.modulation(self.conditioning(time_input, y, x.shape[0])).split(self._sizes, dim=1))
        h = exactly(self.stem, self._inputs(x))
        skips = [] if self.compact else [h]
        for level, (halve, stages) in enumerate(zip(self.halve, self.down, strict=True)):
            h = halve(h, next(modulations)) if isinstance(halve, _ResBlock) else halve(h)
            if level and not self.compact:
                skips.append(h)
            for stage in stages:
                h = stage(h, next(modulations))
                skips.append(h)
        h = self.middle(h, next(modulations))
        if self.last is not None:
            h = self.last(h, next(modulations))
        for enlarge, stages in zip(self.enlarge, self.up, strict=True):
            size = skips[-1].shape[2:]
            if isinstance(enlarge, _ResBlock):
                h = enlarge(h, next(modulations), size)
            else:
                h = enlarge(_doubled(h, size, fir=False))
            for stage in stages:
                h = stage(torch.cat((h, skips.pop()), dim=1), next(modulations))
        return self.head(h)


def _attention_levels(attention: Sequence[int], levels: int) -> set[int]:
    """Level numbers, negative ones counted from the coarsest, as a set of numbers in 0 .. levels - 1."""
    attention = wholes("attention", attention, least=-levels)
    if any(level >= levels for level in attention):
        raise ArgumentError("attention", attention, f"level numbers from {-levels} to {levels - 1}")
    return {level % levels for level in attention}
