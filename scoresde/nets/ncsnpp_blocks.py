"""The parts of NCSN++ and DDPM++: blocks, attention, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nets.attention import attend
from scoresde.nets.fir import FIR

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "relu": F.relu,
    "elu": F.elu,
    "lrelu": lambda h: F.leaky_relu(h, 0.2),
}


def positional(time_input: Tensor, dim: int) -> Tensor:
    r"""Return sines and cosines of the time input, ``(B, dim)``.

    Unlike :class:`~scoresde.nets.embeddings.Sinusoidal`, the last frequency is 1/10000 itself: they are
    :math:`10000^{-k/(d/2 - 1)}`, k = 0..d/2 - 1.

    References: Ho, Jain, Abbeel 2020, in their code.
    """
    time_input = time_input.to(torch.promote_types(time_input.dtype, torch.float32))
    half = dim // 2
    k = torch.arange(half, dtype=time_input.dtype, device=time_input.device)
    phase = time_input[:, None] * torch.exp(k * (-math.log(10000.0) / max(half - 1, 1)))
    return torch.cat((phase.sin(), phase.cos()), dim=1)


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share; the arguments of ``NCSNpp``.

    Args:
        features: Number of features of the time input.
        act: The activation.
        groups: Groups of each GroupNorm. None: a quarter of the channels, at most 32.
        dropout: Probability inside each residual block.
        rescale: Multiply the sums of skip and residual by 1/sqrt(2).
        fir: Taps of the filter that resamples. None: means of two, and nearest neighbours.
        init_scale: Scale of the variance of the last weights of each branch.
        fused: Use torch's fused attention.
    """

    features: int
    act: Callable[[Tensor], Tensor]
    groups: int | None
    dropout: float
    rescale: bool
    fir: tuple[float, ...] | None
    init_scale: float
    fused: bool

    @property
    def gain(self) -> float:
        """Factor of the sums of skip and residual."""
        return 0.5**0.5 if self.rescale else 1.0

    def norm(self, width: int) -> nn.GroupNorm:
        """Return the norm of ``width`` channels."""
        groups = min(width // 4, 32) if self.groups is None else self.groups
        return nn.GroupNorm(groups, width, eps=1e-6)

    def conv(self, inputs: int, width: int, size: int = 3, scale: float = 1.0) -> nn.Conv2d:
        """Return a convolution that keeps the lengths, with its weights drawn.

        They are uniform, of variance ``scale`` 2 / (fan_in + fan_out), and the biases are 0.
        """
        conv = nn.Conv2d(inputs, width, size, padding=size // 2)
        nn.init.xavier_uniform_(conv.weight, gain=math.sqrt(scale))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv


class Resample(nn.Module):
    """Halves or doubles the lengths, with a convolution or without.

    Args:
        inputs, width: Channels of h and of the result.
        style: What all blocks share.
        by_conv: Whether a convolution follows, or is part of it. Without, ``width`` is ``inputs``.
    """

    def __init__(self, inputs: int, width: int, style: Style, by_conv: bool = True):
        super().__init__()
        self.conv = style.conv(inputs, width) if by_conv else None
        self.fir = None if style.fir is None else FIR(style.fir)

    def halve(self, h: Tensor) -> Tensor:
        """Return h at half its lengths."""
        if self.conv is None:
            return F.avg_pool2d(h, 2) if self.fir is None else self.fir.halve(h)
        if self.fir is not None:
            return self.fir.halve_by(self.conv, h)
        return F.conv2d(F.pad(h, (0, 1, 0, 1)), self.conv.weight, self.conv.bias, stride=2)

    def enlarge(self, h: Tensor) -> Tensor:
        """Return h at twice its lengths."""
        if self.fir is None:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            return h if self.conv is None else self.conv(h)
        return self.fir.enlarge(h) if self.conv is None else self.fir.enlarge_by(self.conv, h)


class Halve(Resample):
    """A :class:`Resample` that halves."""

    def forward(self, h: Tensor) -> Tensor:
        return self.halve(h)


class Enlarge(Resample):
    """A :class:`Resample` that doubles."""

    def forward(self, h: Tensor) -> Tensor:
        return self.enlarge(h)


class Block(nn.Module):
    """Residual block that adds the features of the time between convolutions.

        skip(h) + conv(dropout(act(norm(conv(act(norm(h))) + linear(act(features))))))

    Args:
        inputs, width: Channels of h and of the result.
        style: What all blocks share.
        resize: "halve" or "enlarge": before the first convolution and before the skip. None: keep the lengths.
        timed: Whether there are features of the time.
    """

    def __init__(self, inputs: int, width: int, style: Style, timed: bool, resize: str | None = None):
        super().__init__()
        self.act, self.gain, self.resize = style.act, style.gain, resize
        self.norm1, self.conv1 = style.norm(inputs), style.conv(inputs, width)
        self.time = nn.Linear(style.features, width) if timed else None
        self.norm2, self.dropout = style.norm(width), nn.Dropout(style.dropout)
        self.conv2 = style.conv(width, width, scale=max(style.init_scale, 1e-10))
        self.skip = style.conv(inputs, width, 1) if inputs != width or resize is not None else None
        self.resample = None if resize is None else Resample(inputs, inputs, style, by_conv=False)
        if self.time is not None:
            nn.init.xavier_uniform_(self.time.weight)
            nn.init.zeros_(self.time.bias)

    def forward(self, h: Tensor, features: Tensor | None) -> Tensor:
        u = self.act(self.norm1(h))
        if self.resample is not None:
            change = self.resample.halve if self.resize == "halve" else self.resample.enlarge
            u, h = change(u), change(h)
        u = self.conv1(u)
        if self.time is not None and features is not None:
            u = u + self.time(self.act(features))[:, :, None, None]
        u = self.conv2(self.dropout(self.act(self.norm2(u))))
        result: Tensor = ((h if self.skip is None else self.skip(h)) + u) * self.gain
        return result


class Attention(nn.Module):
    """Self-attention with one head over all positions."""

    def __init__(self, width: int, style: Style):
        super().__init__()
        self.gain, self.fused = style.gain, style.fused
        self.norm = style.norm(width)
        self.q, self.k, self.v = (style.conv(width, width, 1, 0.1) for _ in range(3))
        self.out = style.conv(width, width, 1, max(style.init_scale, 1e-10))

    def forward(self, h: Tensor) -> Tensor:
        u = self.norm(h)
        q, k, v = (layer(u).flatten(2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        result: Tensor = (h + self.out(attend((q, k, v), self.fused).reshape(h.shape))) * self.gain
        return result


class Combine(nn.Module):
    """Joins a map of the input to h: by their sum, or as channels."""

    def __init__(self, inputs: int, width: int, style: Style, way: str):
        super().__init__()
        self.conv, self.way = style.conv(inputs, width, 1), way

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        u: Tensor = self.conv(pyramid)
        return torch.cat((u, h), dim=1) if self.way == "cat" else u + h


class Output(nn.Module):
    """The norm, activation and convolution of an output."""

    def __init__(self, inputs: int, width: int, style: Style, scale: float):
        super().__init__()
        self.act = style.act
        self.norm, self.conv = style.norm(inputs), style.conv(inputs, width, scale=max(scale, 1e-10))

    def forward(self, h: Tensor) -> Tensor:
        u: Tensor = self.conv(self.act(self.norm(h)))
        return u
