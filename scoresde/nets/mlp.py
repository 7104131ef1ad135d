"""A residual MLP for points, vectors and other data without neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.argument_types import checked
from scoresde.checks import probability, whole, wholes
from scoresde.errors import ArgumentError
from scoresde.nets.configured import configured
from scoresde.nets.embeddings import Conditioning
from scoresde.nets.inputs import check_inputs
from scoresde.nets.precision import exactly


class _Block(nn.Module):
    """h + W2 dropout(SiLU(W1 SiLU((1 + scale) norm(h) + shift)))."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        u = F.silu(torch.addcmul(shift, self.norm(h), 1 + scale))
        residual: Tensor = self.outer(self.dropout(F.silu(self.inner(u))))
        return h + residual


@checked
@configured("mlp")
class ResidualMLP(nn.Module):
    """Residual MLP whose blocks the time input and the class modulate.

    ``net(x, time_input, y=None)``: x ``(B, *shape)``, of any rank, flattened inside; time input ``(B,)`` or ``()``,
    floating-point; y ``(B,)`` int64 class labels, -1 (or ``None`` for all) for no class. The result is ``(B, *shape)``,
    with a first axis of length ``out_channels`` if given. The network is zero at the start of training.

    Args:
        shape: Shape of a sample.
        width: Width of the residual blocks, default 256.
        blocks: Number of blocks, default 4.
        classes: Number of classes. None: an unconditional network.
        dropout: Probability in [0, 1) inside each block, default 0. Training draws it from torch's global random state.
        embedding, embedding_scale, embedding_seed: Features of the time input, see
            :class:`~scoresde.nets.embeddings.Conditioning`.
        out_channels: Length of the result's first axis, e.g. 2 * shape[0] to predict a variance too. None: shape[0].

    Raises:
        ArgumentError: Sizes that are not positive integers; when called, class labels where there are no classes.
        UnknownNameError: Another ``embedding``.
        ShapeError, DTypeError: When called, tensors that do not fit.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 256,
        blocks: int = 4,
        classes: int | None = None,
        dropout: float = 0.0,
        embedding: str = "sinusoidal",
        embedding_scale: float = 1.0,
        embedding_seed: int = 0,
        out_channels: int | None = None,
    ):
        super().__init__()
        # 1. check the arguments
        self.shape = wholes("shape", shape)
        if not self.shape:
            raise ArgumentError("shape", "()", "a shape of at least one axis")
        width, dropout = whole("width", width, least=2), probability("dropout", dropout)
        out = self.shape[0] if out_channels is None else whole("out_channels", out_channels)
        self.out_shape = (out, *self.shape[1:])
        # 2. layers, in the order in which their weights are drawn; one wide layer modulates all blocks
        self.conditioning = Conditioning(64, width, classes, embedding, embedding_scale, embedding_seed)
        self.stem = nn.Linear(math.prod(self.shape), width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(whole("blocks", blocks)))
        self.modulation = nn.Linear(width, 2 * width * len(self.blocks))
        last = nn.Linear(width, math.prod(self.out_shape))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, time_input: Tensor, y: Tensor | None = None) -> Tensor:
        check_inputs(x, time_input, self.shape, self.stem.weight)
        modulation = self.modulation(self.conditioning(time_input, y, x.shape[0])).chunk(2 * len(self.blocks), dim=1)
        h = exactly(self.stem, x.flatten(1))
        for block, scale, shift in zip(self.blocks, modulation[::2], modulation[1::2], strict=True):
            h = block(h, scale, shift)
        out: Tensor = self.head(h)
        return torch.unflatten(out, 1, self.out_shape)
