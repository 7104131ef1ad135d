"""A diffusion transformer for series, images and volumes.

One implementation serves (C, L), (C, H, W) and (C, D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import probability, whole, wholes
from scoresde.errors import ArgumentError, ShapeError
from scoresde.nets.attention import attend
from scoresde.nets.configured import configured
from scoresde.nets.embeddings import Conditioning, Sinusoidal
from scoresde.nets.inputs import AXES, check_inputs
from scoresde.nets.precision import exactly
from scoresde.nets.recomputing import recomputed


class _Block(nn.Module):
    """Attention, then an MLP, each modulated, gated and added.

        h + gate1 attention(modulated norm(h)), then h + gate2 MLP(modulated norm(h))

    The modulation ``(B, 6 width)`` holds shift, scale and gate of both.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Dropout(dropout), nn.Linear(hidden, width)
        )

    def attention(self, h: Tensor) -> Tensor:
        qkv = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)  # (3, B, heads, dim, positions)
        out: Tensor = self.out(attend(qkv.unbind(0), self.fused).flatten(1, 2).mT)
        return out

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, None].chunk(6, dim=2)
        h = h + gate1 * self.attention(torch.addcmul(shift1, self.norm(h), 1 + scale1))
        residual: Tensor = self.mlp(torch.addcmul(shift2, self.norm(h), 1 + scale2))
        return h + gate2 * residual


@checked
@configured("dit")
class DiT(nn.Module):
    """Diffusion transformer, modulated by the time input and the class.

    ``net(x, time_input, y=None)``: x ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``; time input ``(B,)`` or
    ``()``, floating-point; y ``(B,)`` int64 class labels, -1 (or ``None`` for all) for no class. The result has the
    shape of x, with ``out_channels`` channels if given. Patches of x are the tokens. At the start of training every
    block is the identity and the network zero.

    ``shape`` fixes the number of channels and the rank. When called, the network takes other lengths too, if ``patch``
    divides them. Positions are not learned: each axis has ``width / rank`` features of the index, half sines, half
    cosines.

    Args:
        shape: Shape of a sample, ``(C, L)``, ``(C, H, W)`` or ``(C, D, H, W)``.
        patch: Length of a patch along every axis, default 2. A patch is a token.
        width: Width of the blocks, a multiple of twice the rank, default 96.
        blocks: Number of blocks, default 4.
        heads: Attention heads, a divisor of ``width``, default 4.
        mlp_ratio: Width of the hidden layer of each block's MLP, in units of ``width``, default 4.
        dropout: Probability in [0, 1) inside each block's MLP, default 0. Training draws it from torch's global random
            state.
        classes: Number of classes. None: an unconditional network.
        embedding, embedding_scale, embedding_seed: Features of the time input, see
            :class:`~scoresde.nets.embeddings.Conditioning`.
        out_channels: Channels of the result, e.g. 2 C to predict a variance too. None: C.
        fused_attention: Use torch's fused kernel, with memory linear in the number of tokens, default False. It has
            first derivatives only: implicit and sliced score matching, which differentiate twice, need False.
        recompute: In training, compute each block again in the backward pass instead of keeping what is inside,
            default False: less memory, about a third more time, the same gradients.
        augmented: Whether the network takes labels ``(B, 9)`` of its input's augmentation as its argument ``augment``,
            see :func:`~scoresde.training.augmentation.augmented`. Default False.

    Raises:
        ArgumentError: Numbers that do not fit together; when called, class labels where there are no classes.
        UnknownNameError: Another ``embedding``.
        ShapeError, DTypeError: When called, tensors that do not fit.

    References: Peebles, Xie 2023, sections 3.2 and 4 (DiT with adaLN-Zero).
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        patch: int = 2,
        width: int = 96,
        blocks: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        classes: int | None = None,
        embedding: str = "sinusoidal",
        embedding_scale: float = 1.0,
        embedding_seed: int = 0,
        out_channels: int | None = None,
        fused_attention: bool = False,
        recompute: bool = False,
        augmented: bool = False,
    ):
        super().__init__()
        # 1. check the arguments
        self.shape = wholes("shape", shape)
        rank = len(self.shape) - 1
        if rank not in AXES:
            raise ArgumentError("shape", self.shape, "(C, L), (C, H, W) or (C, D, H, W)")
        self.patch = patch = whole("patch", patch)
        if any(n % patch for n in self.shape[1:]):
            raise ArgumentError("shape", self.shape, f"a shape whose lengths are multiples of patch = {patch}")
        width, heads = whole("width", width), whole("heads", heads)
        if width % (2 * rank):
            raise ArgumentError("width", width, f"a multiple of {2 * rank}, for sines and cosines along {rank} axes")
        if width % heads:
            raise ArgumentError("heads", heads, f"a divisor of width = {width}")
        self.recompute = recompute
        hidden, dropout = width * whole("mlp_ratio", mlp_ratio), probability("dropout", dropout)
        self.out = self.shape[0] if out_channels is None else whole("out_channels", out_channels)

        # 2. layers, in the order in which their weights are drawn
        self.conditioning = Conditioning(256, width, classes, embedding, embedding_scale, embedding_seed, augmented)
        self.position = Sinusoidal(width // rank)
        self.stem = nn.Linear(self.shape[0] * patch**rank, width)
        self.blocks = nn.ModuleList(
            _Block(width, heads, hidden, dropout, fused_attention) for _ in range(whole("blocks", blocks))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.head = nn.Linear(width, self.out * patch**rank)
        # one wide layer makes the modulations of every block and of the head at once
        self._sizes = [*(6 * width,) * len(self.blocks), 2 * width]
        self.modulation = nn.Linear(width, sum(self._sizes))
        self._init()

    def _init(self) -> None:
        """Draw the initial weights of the paper."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
        for weight in (self.conditioning.mlp[0].weight, self.conditioning.mlp[2].weight):
            nn.init.normal_(cast(Tensor, weight), std=0.02)
        if self.conditioning.classes is not None:
            nn.init.normal_(self.conditioning.classes.table.weight, std=0.02)

    def _tokens(self, x: Tensor) -> Tensor:
        """Cut x into patches ``(B, positions, C patch^rank)``."""
        rank, p = x.ndim - 2, self.patch
        for axis in range(x.ndim - 1, 1, -1):
            x = torch.unflatten(x, axis, (x.shape[axis] // p, p))
        x = x.permute(0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2))
        return x.flatten(1 + rank).flatten(1, rank)

    def _untokens(self, h: Tensor, grid: Sequence[int]) -> Tensor:
        """Join a grid of patches to ``(B, out, *lengths)``."""
        rank = len(grid)
        h = torch.unflatten(torch.unflatten(h, 2, (self.out, *(self.patch,) * rank)), 1, grid)
        h = h.permute(0, 1 + rank, *(axis for k in range(1, 1 + rank) for axis in (k, k + 1 + rank)))
        for axis in range(2, 2 + rank):
            h = h.flatten(axis, axis + 1)
        return h

    def _positions(self, grid: Sequence[int], like: Tensor) -> Tensor:
        """Return ``(positions, width)``, the features of each axis' index."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        parts = []
        for axis, n in enumerate(grid):
            features = self.position(torch.arange(n, device=like.device, dtype=dtype))
            parts.append(features.view(*(n if a == axis else 1 for a in range(len(grid))), -1).expand(*grid, -1))
        return torch.cat(parts, dim=-1).flatten(0, -2).to(like.dtype)

    def forward(self, x: Tensor, time_input: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        check_inputs(x, time_input, (self.shape[0], *AXES[len(self.shape) - 1]), self.stem.weight)
        if any(n % self.patch for n in x.shape[2:]):
            raise ShapeError("x", tuple(x.shape), f"of lengths that are multiples of patch = {self.patch}")
        grid = tuple(n // self.patch for n in x.shape[2:])
        condition = self.conditioning(time_input, y, x.shape[0], augment)
        *modulations, last = self.modulation(condition).split(self._sizes, dim=1)
        h = exactly(self.stem, self._tokens(x))
        h = h + self._positions(grid, self.stem.weight)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            h = recomputed(block, h, modulation, self.recompute and self.training)
        shift, scale = last[:, None].chunk(2, dim=2)
        return self._untokens(self.head(torch.addcmul(shift, self.norm(h), 1 + scale)), grid)
