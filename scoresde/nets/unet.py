"""A U-Net for series (C, L), images (C, H, W) and volumes (C, D, H, W)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import probability, whole, wholes
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.nets.configured import configured
from scoresde.nets.embeddings import Conditioning
from scoresde.nets.inputs import AXES, check_inputs
from scoresde.nets.precision import exactly
from scoresde.nets.recomputing import recomputed
from scoresde.nets.unet_blocks import CONV, Attention, ResBlock, Stage, Style, doubled

LAYOUTS = ("compact", "ddpm", "ddpm++", "adm")
RESAMPLINGS = ("conv", "block", "fir")
INITS = ("torch", "xavier")
MOST_POSITIONS = 1024  # at the coarsest resolution, up to which it has attention by default
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """Which parts a U-Net has, from its checked arguments.

    Args:
        channels: Width of the stem.
        widths: Width of each resolution, the finest first.
        blocks: Residual blocks of each resolution on the way down.
        attends: Resolutions with attention.
        layout: A name in ``LAYOUTS``.
        by_conv: A resolution halves and doubles the lengths by plain convolutions.
        heads: Attention heads. ``head_channels``, the width of one, replaces it if not None.
    """

    channels: int
    widths: tuple[int, ...]
    blocks: int
    attends: frozenset[int]
    layout: str
    by_conv: bool
    heads: int
    head_channels: int | None

    @property
    def compact(self) -> bool:
        """Whether the layout is the compact one."""
        return self.layout == "compact"

    @property
    def coarsest(self) -> int:
        """The last resolution."""
        return len(self.widths) - 1

    @property
    def middle_attends(self) -> bool:
        """Whether there is attention in the middle."""
        return not self.compact or self.coarsest in self.attends

    @property
    def sides(self) -> frozenset[int]:
        """Resolutions with attention on the way down and up."""
        return self.attends - {self.coarsest} if self.compact else self.attends

    def heads_at(self, resolution: int) -> int:
        """Return the number of attention heads of a resolution."""
        return self.heads if self.head_channels is None else self.widths[resolution] // self.head_channels

    def check(self, shape: tuple[int, ...], num_groups: int) -> None:
        """Refuse groups, heads and lengths that do not fit the resolutions."""
        if self.channels % num_groups:
            raise ArgumentError("num_groups", num_groups, f"a divisor of channels = {self.channels}")
        name, number = ("heads", self.heads) if self.head_channels is None else ("head_channels", self.head_channels)
        for resolution in sorted(self.sides | {self.coarsest} if self.middle_attends else self.sides):
            if self.widths[resolution] % whole(name, number):
                raise ArgumentError(
                    name, number, f"a divisor of the width {self.widths[resolution]} of resolution {resolution}"
                )
        if self.coarsest and min(shape[1:]) <= 2 ** (self.coarsest - 1):
            expected = f"a shape with every length > {2 ** (self.coarsest - 1)}, so that each resolution is coarser"
            raise ArgumentError("shape", shape, f"{expected} ({self.coarsest + 1} resolutions)")


class _Parts:
    """Makes a network's blocks and keeps the sizes of their modulations."""

    def __init__(self, plan: _Plan, style: Style):
        self.plan, self.style = plan, style
        self.sizes: list[int] = []

    def block(self, inputs: int, width: int, resize: str | None = None) -> ResBlock:
        """Return a residual block."""
        self.sizes.append((1 + self.style.scale_shift) * width)
        return ResBlock(inputs, width, self.style, resize)

    def stage(self, inputs: int, resolution: int, attends: bool) -> Stage:
        """Return a residual block of a resolution, with attention or without."""
        width = self.plan.widths[resolution]
        made = self.block(inputs, width)
        return Stage(made, Attention(width, self.plan.heads_at(resolution), self.style) if attends else nn.Identity())


@checked
@configured("unet")
class UNet(nn.Module):
    r"""U-Net with residual blocks, modulated by the time input and the class.

    ``net(x, time_input, y=None)``: x ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``; time input ``(B,)`` or
    ``()``, floating-point; y ``(B,)`` int64 class labels, -1 (or ``None`` for all) for no class. The result has the
    shape of x, with ``out_channels`` channels if given. With ``zero_init`` it is zero at the start of training.

    ``shape`` fixes the number of channels and the rank. When called, the network takes other lengths too. Odd lengths
    need no padding: resolution k + 1 has half the length of resolution k, rounded up (25, 13, 7), and the way up
    returns to the same lengths. Resolution 0 is the finest.

    Args:
        shape: Shape of a sample.
        channels: Width of the stem, default 32.
        multipliers: The width of resolution k is ``channels * multipliers[k]``; default (1, 2).
        blocks: Residual blocks of each resolution on the way down, default 1. ``layout`` fixes those on the way up.
        attention: Resolutions with self-attention, after each of their blocks; -1 is the coarsest. In the compact
            layout the coarsest resolution has it in the middle alone, which suffices to see the whole input. The other
            layouts always have it there. None (default): the coarsest, if it has at most 1024 positions; attention
            takes time in proportion to their square.
        heads: Attention heads, a divisor of the width of these resolutions, default 4.
        dropout: Probability in [0, 1) inside each block, default 0. Training draws it from torch's global random state.
        classes: Number of classes. None: an unconditional network.
        null_class: Whether the network also knows "no class" (default), as classifier-free guidance needs. False: every
            sample has a class.
        embedding, embedding_scale, embedding_seed: Features of the time input, see
            :class:`~scoresde.nets.embeddings.Conditioning`.
        out_channels: Channels of the result, e.g. 2 C to predict a variance too. None: C.
        scale_shift: Scale and shift each block after its norm by the time input (default). False: add it before.
        num_groups: Groups of each GroupNorm, a divisor of ``channels``, default 8.
        fused_attention: Use torch's fused kernel, with memory linear in the number of positions, default False. It has
            first derivatives only: implicit and sliced score matching, which differentiate twice, need False.
        zero_init: Start with zeros in the last layer of each residual branch and of the network, default True.
        layout: Where the blocks are.
            ``"compact"`` (default): as many blocks on the way up as on the way down, one block in the middle.
            ``"ddpm"``, as in Ho et al. 2020: the stem and each halving have skip connections too, and the way up has
            one block more at each resolution. In the middle: block, attention, block. Half as many sinusoidal features.
            ``"ddpm++"``, as in Song et al. 2021: the same, with one attention, not one a block, at each resolution on
            the way up.
            ``"adm"``, as in Dhariwal, Nichol 2021: as "ddpm", but blocks that resample have no convolution in their
            skip.
        resample: How a resolution halves and doubles the lengths.
            ``"conv"`` (default): a convolution of stride 2; nearest neighbours and a convolution, which in the compact
            layout is the first one of the next block.
            ``"block"``: a separate residual block, with means of two and nearest neighbours inside.
            ``"fir"``: the same with the filter (1, 3, 3, 1), which aliases less of the high frequencies.
        head_channels: Width of one attention head. It replaces ``heads``. None: use ``heads``.
        skip_rescale: Multiply sums of a skip and a residual by :math:`1/\sqrt 2`, so that variances do not grow with
            depth, default False.
        fourier_inputs: Exponents n, default none. The network also sees :math:`\sin(2^n\pi x)` and
            :math:`\cos(2^n\pi x)`, which resolve the fine values of data such as 8-bit images in [-1, 1]: (7, 8) for
            likelihoods. They refer to x as the network gets it; a caller that rescales x changes their meaning.
        periodic: Whether the axes wrap around, for all or for each: longitudes do, latitudes do not. Convolutions then
            join the two ends of an axis, and a roll of x by a multiple of ``2^(resolutions - 1)`` rolls the result.
            Default False. Not with ``resample="fir"``.
        recompute: In training, compute each block again in the backward pass instead of keeping what is inside,
            default False: less memory, about a third more time, the same gradients.
        augmented: Whether the network takes labels ``(B, 9)`` of its input's augmentation as its argument ``augment``,
            see :func:`~scoresde.training.augmentation.augmented`. Default False.
        init: The other weights: ``"torch"`` (default), each layer's own, or ``"xavier"``, uniform with variance
            2 / (fan_in + fan_out) and no biases, as in both papers above.

    Raises:
        ArgumentError: Numbers that do not fit together (a shape too small for its resolutions, heads or groups that do
            not divide a width); when called, class labels where there are no classes.
        UnknownNameError: Another layout, resampling, init or embedding.
        ShapeError, DTypeError: When called, tensors that do not fit.

    References: Ronneberger, Fischer, Brox 2015 (the U); Ho, Jain, Abbeel 2020, appendix B (time and attention);
    Nichol, Dhariwal 2021, section 3, and Dhariwal, Nichol 2021, section 3 (scale and shift, heads, resampling blocks);
    Song et al. 2021, appendix H (skip_rescale, FIR); Kingma et al. 2021, section 3.4 (Fourier inputs).
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] | None = None,
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
        periodic: bool | Sequence[bool] = False,
        recompute: bool = False,
        augmented: bool = False,
        init: str = "torch",
        null_class: bool = True,
    ):
        super().__init__()
        # 1. check the arguments and plan the resolutions
        _check_names(layout=layout, resample=resample, init=init)
        self.shape = wholes("shape", shape)
        rank = len(self.shape) - 1
        if rank not in AXES:
            raise ArgumentError("shape", self.shape, "(C, L), (C, H, W) or (C, D, H, W)")
        channels, num_groups = whole("channels", channels), whole("num_groups", num_groups)
        widths = tuple(channels * m for m in wholes("multipliers", multipliers))
        if not widths:
            raise ArgumentError("multipliers", "()", "a non-empty sequence, one for each resolution")
        blocks, attends = whole("blocks", blocks), _attention_resolutions(attention, len(widths), self.shape[1:])
        plan = _Plan(channels, widths, blocks, attends, layout, resample == "conv", heads, head_channels)
        plan.check(self.shape, num_groups)
        fir, dropout = resample == "fir", probability("dropout", dropout)
        wraps = _periodic_axes(periodic, rank, fir)
        style = Style(
            rank, num_groups, dropout, scale_shift, skip_rescale, fir, fused_attention, wraps, layout == "adm"
        )
        self.recompute = recompute
        out = self.shape[0] if out_channels is None else whole("out_channels", out_channels)
        self.compact, self.fourier_inputs = plan.compact, wholes("fourier_inputs", fourier_inputs, least=0)

        # 2. features of the time input, and the stem; weights are drawn in the order of the layers
        features, waves = 4 * channels, 2 * channels if plan.compact else channels
        self.conditioning = Conditioning(
            waves, features, classes, embedding, embedding_scale, embedding_seed, augmented, null_class
        )
        self.stem = style.conv(self.shape[0] * (1 + 2 * len(self.fourier_inputs)), channels, 3)

        # 3. the way down, the middle, and the way up
        parts = _Parts(plan, style)
        self.down, self.halve = nn.ModuleList(), nn.ModuleList()
        self.up, self.enlarge = nn.ModuleList(), nn.ModuleList()
        skips = self._add_way_down(parts)
        self.middle = parts.stage(widths[-1], plan.coarsest, plan.middle_attends)
        self.last = None if plan.compact else parts.block(widths[-1], widths[-1])
        self._add_way_up(parts, skips)

        # 4. the head; one wide layer makes the modulations of all blocks, which forward hands out in order
        self.head = nn.Sequential(nn.GroupNorm(num_groups, widths[0]), nn.SiLU(), style.conv(widths[0], out, 3))
        self._sizes = parts.sizes
        self.modulation = nn.Linear(features, sum(self._sizes))

        # 5. initial weights other than torch's
        if init == "xavier":
            self._init_xavier()
        if zero_init:
            self._zero_last_layers()

    def _add_way_down(self, parts: _Parts) -> list[int]:
        """Add the resolutions from fine to coarse; return the skips' widths."""
        plan, width = parts.plan, parts.plan.channels
        skips = [] if plan.compact else [width]
        for resolution in range(len(plan.widths)):
            halve: nn.Module = nn.Identity()
            if resolution:
                halve = (
                    parts.style.conv(width, width, 3, stride=2) if plan.by_conv else parts.block(width, width, "halve")
                )
                skips += [] if plan.compact else [width]
            self.halve.append(halve)
            stages = nn.ModuleList()
            for _ in range(plan.blocks):
                stages.append(parts.stage(width, resolution, resolution in plan.sides))
                width = plan.widths[resolution]
                skips.append(width)
            self.down.append(stages)
        return skips

    def _add_way_up(self, parts: _Parts, skips: list[int]) -> None:
        """Add the resolutions from coarse to fine, which take up the skips."""
        plan, width = parts.plan, parts.plan.widths[-1]
        number = plan.blocks if plan.compact else plan.blocks + 1
        for resolution in reversed(range(len(plan.widths))):
            enlarge: nn.Module = nn.Identity()
            if resolution != plan.coarsest and not (plan.compact and plan.by_conv):
                enlarge = parts.style.conv(width, width, 3) if plan.by_conv else parts.block(width, width, "double")
            self.enlarge.append(enlarge)
            stages = nn.ModuleList()
            for i in reversed(range(number)):
                attends = resolution in plan.sides and (i == 0 or plan.layout != "ddpm++")
                stages.append(parts.stage(width + skips.pop(), resolution, attends))
                width = plan.widths[resolution]
            self.up.append(stages)

    def _init_xavier(self) -> None:
        """Draw each layer by its own fans, also those computed as one."""
        sizes: dict[nn.Module, list[int]] = {self.modulation: self._sizes}
        sizes |= {m.qkv: [m.qkv.out_channels // 3] * 3 for m in self.modules() if isinstance(m, Attention)}
        for module in self.modules():
            if isinstance(module, (nn.Linear, *CONV.values())):
                weight, bias = module.get_parameter("weight"), module.bias
                for part in torch.split(weight.detach(), sizes.get(module, [len(weight)])):
                    nn.init.xavier_uniform_(part)
                if isinstance(bias, Tensor):
                    nn.init.zeros_(bias)

    def _zero_last_layers(self) -> None:
        """Zero the last layer of the network and of each residual branch."""
        last: list[nn.Module] = [self.head[-1], *(m.conv2 for m in self.modules() if isinstance(m, ResBlock))]
        last += [m.out for m in self.modules() if isinstance(m, Attention)]
        for layer in last:
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    def _inputs(self, x: Tensor) -> Tensor:
        """Join x and its Fourier features, as channels."""
        if not self.fourier_inputs:
            return x
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        phases = [2**n * math.pi * exact for n in self.fourier_inputs]
        return torch.cat((x, *(wave(phase).to(x.dtype) for phase in phases for wave in (torch.sin, torch.cos))), dim=1)

    def _run(self, stage: nn.Module, h: Tensor, modulation: Tensor) -> Tensor:
        """Return ``stage(h, modulation)``, see :func:`recomputed`."""
        return recomputed(stage, h, modulation, self.recompute and self.training)

    def forward(self, x: Tensor, time_input: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        check_inputs(x, time_input, (self.shape[0], *AXES[len(self.shape) - 1]), self.stem.weight)
        # 1. the modulations of all blocks, and the stem
        condition = self.conditioning(time_input, y, x.shape[0], augment)
        modulations = iter(self.modulation(condition).split(self._sizes, dim=1))
        h = exactly(self.stem, self._inputs(x))
        # 2. the way down; skips of the compact layout start at the first block
        skips = [] if self.compact else [h]
        for resolution, (halve, stages) in enumerate(zip(self.halve, self.down, strict=True)):
            h = halve(h, next(modulations)) if isinstance(halve, ResBlock) else halve(h)
            if resolution and not self.compact:
                skips.append(h)
            for stage in cast(nn.ModuleList, stages):
                h = self._run(stage, h, next(modulations))
                skips.append(h)
        # 3. the middle
        h = self.middle(h, next(modulations))
        if self.last is not None:
            h = self.last(h, next(modulations))
        # 4. the way up, each resolution at the lengths that it had on the way down
        for enlarge, stages in zip(self.enlarge, self.up, strict=True):
            size = skips[-1].shape[2:]
            if isinstance(enlarge, ResBlock):
                h = enlarge(h, next(modulations), size)
            else:
                h = enlarge(doubled(h, size, fir=False))
            for stage in cast(nn.ModuleList, stages):
                h = self._run(stage, torch.cat((h, skips.pop()), dim=1), next(modulations))
        result: Tensor = self.head(h)
        return result


def _periodic_axes(periodic: bool | Sequence[bool], rank: int, fir: bool) -> tuple[bool, ...]:
    """Return whether each axis wraps around."""
    axes = (periodic,) * rank if isinstance(periodic, bool) else tuple(periodic)
    if len(axes) != rank or not all(isinstance(axis, bool) for axis in axes):
        raise ArgumentError("periodic", repr(periodic), f"True, False, or {rank} of them, one for each axis")
    if any(axes) and fir:
        raise ArgumentError("periodic", repr(periodic), "False with resample='fir', whose filter does not wrap around")
    return axes


def _check_names(**names: str) -> None:
    known = {"layout": LAYOUTS, "resample": RESAMPLINGS, "init": INITS}
    for argument, name in names.items():
        if name not in known[argument]:
            raise UnknownNameError(argument, name, known[argument])


def _attention_resolutions(
    attention: Sequence[int] | None, resolutions: int, lengths: tuple[int, ...]
) -> frozenset[int]:
    """Return resolution numbers in 0..resolutions-1, for negative ones too."""
    if attention is None:
        positions = math.prod(-(-length // 2 ** (resolutions - 1)) for length in lengths)
        if positions > MOST_POSITIONS:
            _log.info("No attention: %d positions at the coarsest resolution; `attention` asks for it.", positions)
        attention = (-1,) if positions <= MOST_POSITIONS else ()
    attention = wholes("attention", attention, least=-resolutions)
    if any(resolution >= resolutions for resolution in attention):
        raise ArgumentError("attention", attention, f"resolution numbers from {-resolutions} to {resolutions - 1}")
    return frozenset(resolution % resolutions for resolution in attention)
