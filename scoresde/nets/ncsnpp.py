"""NCSN++, DDPM++ and the DDPM network of Song et al. 2021."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import non_negative, positive, probability, whole, wholes
from scoresde.errors import ArgumentError, ShapeError, UnknownNameError
from scoresde.nets.configured import configured
from scoresde.nets.embeddings import Fourier
from scoresde.nets.inputs import check_inputs
from scoresde.nets.ncsnpp_blocks import (
    ACTIVATIONS,
    Attention,
    Block,
    Combine,
    Enlarge,
    Halve,
    Output,
    Resample,
    Style,
    positional,
)
from scoresde.nets.precision import exactly

NAMES: dict[str, tuple[str, ...]] = {
    "block": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "combine": ("sum", "cat"),
    "embedding": ("fourier", "positional"),
    "activation": tuple(ACTIVATIONS),
}


class _Down(nn.Module):
    """A resolution on the way down.

    Args:
        width: Channels of h, which come from the finer resolution.
        wide: Channels of the resolution.
        blocks: Number of residual blocks.
        attends: Whether attention follows each.
        last: Whether it is the coarsest, which halves no more.
        pyramid: Channels of the map of the input.
        net: The network that it is for, with its settings.
    """

    def __init__(self, width: int, wide: int, blocks: int, attends: bool, last: bool, pyramid: int, net: NCSNpp):
        super().__init__()
        style, timed = net.style, net.conditional
        self.stages = nn.ModuleList()
        self.widths = []
        for _ in range(blocks):
            self.stages.append(Block(width, wide, style, timed))
            if attends:
                self.stages.append(Attention(wide, style))
            width = wide
            self.widths.append(width)
        self.halve: nn.Module | None = None
        self.join: nn.Module | None = None
        self.pyramid = pyramid
        if last:
            return
        self.halve = Block(width, width, style, timed, "halve") if net.block == "biggan" else Halve(width, width, style)
        if net.progressive_input == "input_skip":
            self.join = Combine(pyramid, width, style, net.combine)
            width *= 2 if net.combine == "cat" else 1
        elif net.progressive_input == "residual":
            self.join = Halve(pyramid, width, style)
            self.pyramid = width
        self.widths.append(width)


class _Up(nn.Module):
    """A resolution on the way up.

    Args:
        width: Channels of h, which come from the coarser resolution.
        wide: Channels of the resolution.
        skips: Channels of the skips that its blocks take up.
        attends: Whether attention follows the last block.
        place: Number of the resolution, 0 for the finest.
        net: The network that it is for, with its settings.
    """

    def __init__(self, width: int, wide: int, skips: Sequence[int], attends: bool, place: int, net: NCSNpp):
        super().__init__()
        style, timed = net.style, net.conditional
        coarsest = place == len(net.multipliers) - 1
        self.blocks = nn.ModuleList()
        for skip in skips:
            self.blocks.append(Block(width + skip, wide, style, timed))
            width = wide
        self.attend = Attention(wide, style) if attends else None
        self.show: nn.Module | None = None
        if net.progressive == "output_skip":
            self.show = Output(wide, net.shape[0], style, style.init_scale)
        elif net.progressive == "residual":
            before = net.channels * net.multipliers[min(place + 1, len(net.multipliers) - 1)]
            self.show = Output(wide, wide, style, 1.0) if coarsest else Enlarge(before, wide, style)
        self.enlarge: nn.Module | None = None
        if place:
            by_block = net.block == "biggan"
            self.enlarge = Block(wide, wide, style, timed, "enlarge") if by_block else Enlarge(wide, wide, style)


@checked
@configured("ncsn++")
class NCSNpp(nn.Module):
    r"""NCSN++, DDPM++ or the DDPM network of Song et al. 2021.

    ``net(x, time_input)``: x ``(B, C, H, W)``, time input ``(B,)`` or ``()``, floating-point. The result has the shape
    of x. Its layers are those of the paper's published checkpoints, which :meth:`ScoreModel.from_score_sde` reads.

    Args:
        shape: Shape of a sample, (C, H, W). H and W are multiples of 2^(resolutions - 1).
        channels: Width of the stem, default 128.
        multipliers: The width of resolution k is ``channels * multipliers[k]``; default (1, 2, 2, 2).
        blocks: Residual blocks of each resolution on the way down, default 4. The way up has one more.
        attention: Resolutions with self-attention, -1 the coarsest; 0 is the finest. Default (1,).
        dropout: Probability in [0, 1) inside each block, default 0. Training draws it from torch's global random state.
        block: ``"biggan"`` (default): blocks resample. ``"ddpm"``: convolutions do.
        fir: Taps of the filter that resamples, default (1, 3, 3, 1). None: means of two and nearest neighbours.
        skip_rescale: Multiply sums of a skip and a residual by :math:`1/\sqrt 2`, default True.
        progressive: How the output grows: ``"none"`` (default), ``"output_skip"`` (a sum over resolutions), or
            ``"residual"``.
        progressive_input: How coarser resolutions see the input: ``"none"``, ``"input_skip"``, or ``"residual"``
            (default).
        combine: How ``"input_skip"`` joins: ``"sum"`` (default) or ``"cat"``, as channels.
        embedding: Features of the time input: ``"fourier"`` (default), of the logarithm of sigma, or ``"positional"``.
        fourier_scale: Standard deviation of the Fourier frequencies, default 16.
        conditional: Whether the blocks see the time, default True.
        sigmas: ``(sigma_min, sigma_max, L)``, geometric levels by whose sigma the output is divided; the time input
            then counts them from the largest (``"ncsn"``). With Fourier features, whose time input is sigma itself,
            ``scale_by_sigma`` suffices. Default None.
        scale_by_sigma: Whether to divide the output by sigma, so that it is a score. Default False.
        activation: ``"swish"`` (default), ``"relu"``, ``"elu"`` or ``"lrelu"``.
        num_groups: Groups of each GroupNorm. None: a quarter of the channels, at most 32.
        init_scale: Variance of the last weights of each branch, relative to the others', default 0.
        centered: Whether the data are in [-1, 1] (default). False: in [0, 1], and the network maps them to [-1, 1].
        fused_attention: Use torch's fused kernel, which has first derivatives only, default False.

    Raises:
        ArgumentError: Numbers that do not fit together.
        UnknownNameError: Another block, embedding, activation or kind of progress.
        ShapeError, DTypeError: When called, tensors that do not fit.

    References: Song et al. 2021, appendices G and H; Karras et al. 2020, "Analyzing and improving the image quality of
    StyleGAN" (progressive inputs and outputs); Ho, Jain, Abbeel 2020, appendix B.
    """

    levels: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (1,),
        dropout: float = 0.0,
        block: str = "biggan",
        fir: Sequence[float] | None = (1, 3, 3, 1),
        skip_rescale: bool = True,
        progressive: str = "none",
        progressive_input: str = "residual",
        combine: str = "sum",
        embedding: str = "fourier",
        fourier_scale: float = 16.0,
        conditional: bool = True,
        sigmas: Sequence[float] | None = None,
        scale_by_sigma: bool = False,
        activation: str = "swish",
        num_groups: int | None = None,
        init_scale: float = 0.0,
        centered: bool = True,
        fused_attention: bool = False,
    ):
        super().__init__()
        # 1. check the arguments
        names = {"block": block, "progressive": progressive, "progressive_input": progressive_input}
        names |= {"combine": combine, "embedding": embedding, "activation": activation}
        for argument, name in names.items():
            if name not in NAMES[argument]:
                raise UnknownNameError(argument, name, NAMES[argument])
        self.shape, self.channels = wholes("shape", shape), whole("channels", channels, least=4)
        self.multipliers = wholes("multipliers", multipliers)
        self.block, self.progressive, self.progressive_input = block, progressive, progressive_input
        self.combine, self.embedding, self.conditional, self.centered = combine, embedding, conditional, centered
        self.blocks, attends = whole("blocks", blocks), self._check_sizes(attention, num_groups)
        self.scale_by_sigma = self._set_levels(sigmas, scale_by_sigma)
        self.style = style = Style(
            4 * channels,
            ACTIVATIONS[activation],
            num_groups,
            probability("dropout", dropout),
            skip_rescale,
            None if fir is None else tuple(fir),
            non_negative("init_scale", init_scale),
            fused_attention,
        )

        # 2. features of the time input, and the stem; the layers are in the order of the paper's checkpoints
        self.waves = Fourier(2 * channels, positive("fourier_scale", fourier_scale)) if embedding == "fourier" else None
        dim = channels if self.waves is None else 2 * channels
        self.time = nn.ModuleList()
        if conditional:
            self.time.extend((nn.Linear(dim, 4 * channels), nn.Linear(4 * channels, 4 * channels)))
        for layer in self.time:
            nn.init.xavier_uniform_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))
        self.stem = style.conv(self.shape[0], channels)

        # 3. the way down, the middle, the way up, the head
        skips = self._add_way_down(attends)
        width = skips[-1]
        self.middle = nn.ModuleList(
            (Block(width, width, style, conditional), Attention(width, style), Block(width, width, style, conditional))
        )
        self._add_way_up(width, skips, attends)
        self.head = None
        if progressive != "output_skip":
            self.head = Output(channels * self.multipliers[0], self.shape[0], style, style.init_scale)
        self.resample = Resample(self.shape[0], self.shape[0], style, by_conv=False)  # no weights

    def _check_sizes(self, attention: Sequence[int], num_groups: int | None) -> frozenset[int]:
        """Return the resolutions with attention, from checked arguments."""
        resolutions = len(self.multipliers)
        if len(self.shape) != 3 or not resolutions:
            raise ArgumentError("shape, multipliers", (self.shape, self.multipliers), "(C, H, W), and one or more")
        if any(n % 2 ** (resolutions - 1) for n in self.shape[1:]):
            raise ArgumentError("shape", self.shape, f"lengths that are multiples of {2 ** (resolutions - 1)}")
        for width in {self.channels, *(self.channels * m for m in self.multipliers)}:
            groups = min(width // 4, 32) if num_groups is None else whole("num_groups", num_groups)
            if width % groups:
                raise ArgumentError("num_groups", groups, f"a divisor of a resolution's width, {width}")
        attention = wholes("attention", attention, least=-resolutions)
        if any(resolution >= resolutions for resolution in attention):
            raise ArgumentError("attention", attention, f"resolution numbers from {-resolutions} to {resolutions - 1}")
        return frozenset(resolution % resolutions for resolution in attention)

    def _set_levels(self, sigmas: Sequence[float] | None, scale_by_sigma: bool) -> bool:
        """Keep the levels; return whether the output is divided by sigma."""
        if sigmas is None:
            if scale_by_sigma and self.embedding == "positional":
                raise ArgumentError("sigmas", None, "(sigma_min, sigma_max, L), to divide by a counted sigma")
            return scale_by_sigma
        if len(sigmas) != 3 or self.embedding == "fourier":
            raise ArgumentError("sigmas", tuple(sigmas), "(sigma_min, sigma_max, L), with positional features")
        low, high = positive("sigmas[0]", sigmas[0]), positive("sigmas[1]", sigmas[1])
        count = whole("sigmas[2]", int(sigmas[2]))
        levels = torch.linspace(math.log(high), math.log(low), count, dtype=torch.float64).exp()
        levels = levels.to(torch.get_default_dtype()).to(torch.get_default_device())
        self.register_buffer("levels", levels, persistent=False)
        return True

    def _add_way_down(self, attends: frozenset[int]) -> list[int]:
        """Add the resolutions from fine to coarse; return the skips' widths."""
        self.down = nn.ModuleList()
        skips, pyramid, last = [self.channels], self.shape[0], len(self.multipliers) - 1
        for place, multiplier in enumerate(self.multipliers):
            wide = self.channels * multiplier
            made = _Down(skips[-1], wide, self.blocks, place in attends, place == last, pyramid, self)
            skips, pyramid = skips + made.widths, made.pyramid
            self.down.append(made)
        return skips

    def _add_way_up(self, width: int, skips: list[int], attends: frozenset[int]) -> None:
        """Add the resolutions from coarse to fine, which take up the skips."""
        self.up = nn.ModuleList()
        for place in reversed(range(len(self.multipliers))):
            wide = self.channels * self.multipliers[place]
            taken = [skips.pop() for _ in range(self.blocks + 1)]
            self.up.append(_Up(width, wide, taken, place in attends, place, self))
            width = wide

    def _features(self, time_input: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Return the features of the time, and sigma ``(B,)`` if it is known."""
        if self.waves is not None:
            features, sigma = self.waves(time_input.log()), time_input
        else:
            features, sigma = positional(time_input, self.channels), None
            if self.scale_by_sigma:
                sigma = self.levels.to(time_input.dtype)[time_input.round().long()]
        if not self.conditional:
            return None, sigma
        features = self.time[0](features.to(dtype))
        return self.time[1](self.style.act(features)), sigma

    def _go_down(self, x: Tensor, features: Tensor | None) -> list[Tensor]:
        """Return the skips, the last of them h at the coarsest resolution."""
        skips, pyramid = [exactly(self.stem, x)], x
        for resolution in cast("list[Any]", self.down):
            h = skips[-1]
            for stage in resolution.stages:
                h = stage(h, features) if isinstance(stage, Block) else stage(h)
                if isinstance(stage, Block):
                    skips.append(h)
                skips[-1] = h
            if resolution.halve is None:
                continue
            h = resolution.halve(h, features) if isinstance(resolution.halve, Block) else resolution.halve(h)
            if self.progressive_input == "input_skip":
                pyramid = self.resample.halve(pyramid)
                h = resolution.join(pyramid, h)
            elif self.progressive_input == "residual":
                h = pyramid = (resolution.join(pyramid) + h) * self.style.gain
            skips.append(h)
        return skips

    def _go_up(self, skips: list[Tensor], features: Tensor | None) -> Tensor:
        """Return the output from the skips."""
        h, shown = skips[-1], None
        for layer in self.middle:
            h = layer(h, features) if isinstance(layer, Block) else layer(h)
        for resolution in cast("list[Any]", self.up):
            for block in resolution.blocks:
                h = block(torch.cat((h, skips.pop()), dim=1), features)
            h = h if resolution.attend is None else resolution.attend(h)
            if self.progressive == "output_skip":
                new = resolution.show(h)
                shown = new if shown is None else self.resample.enlarge(shown) + new
            elif self.progressive == "residual":
                if shown is None:
                    shown = resolution.show(h)
                else:
                    h = shown = (resolution.show(shown) + h) * self.style.gain
            if resolution.enlarge is not None:
                h = resolution.enlarge(h, features) if isinstance(resolution.enlarge, Block) else resolution.enlarge(h)
        output: Tensor | None = shown if self.head is None else self.head(h)
        assert output is not None
        return output

    def forward(self, x: Tensor, time_input: Tensor) -> Tensor:
        check_inputs(x, time_input, (self.shape[0], "H", "W"), self.stem.weight)
        if any(n % 2 ** (len(self.multipliers) - 1) for n in x.shape[2:]):
            raise ShapeError(
                "x", tuple(x.shape), f"of lengths that are multiples of {2 ** (len(self.multipliers) - 1)}"
            )
        features, sigma = self._features(time_input.expand(len(x)), self.stem.weight.dtype)
        h = self._go_up(self._go_down(x if self.centered else 2 * x - 1, features), features)
        return h / sigma.to(h.dtype)[:, None, None, None] if self.scale_by_sigma and sigma is not None else h
