"""A residual MLP for points, vectors and other small data without a neighbourhood structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.checks import probability, whole, wholes
from scoresde.nets.embeddings import Conditioning
from scoresde.nets.inputs import check_inputs
from scoresde.nets.precision import exactly
from scoresde.nets.registry import register_net


class _Block(nn.Module):
    """h + W2 dropout(SiLU(W1 SiLU((1 + scale) norm(h) + shift)))."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        u = F.silu(torch.addcmul(shift, self.norm(h), 1 + scale))
        return h + self.outer(self.dropout(F.silu(self.inner(u))))


@register_net("mlp")
class ResidualMLP(nn.Module):
    """Residual MLP whose blocks are modulated by the time input, and by the class where there is one.

    ``net(x, time_input, y=None)``: x ``(B, *shape)``, any rank, flattened inside; time_input ``(B,)`` or ``()``, floating point;
    y ``(B,)`` int64 classes, -1 (or ``None`` for all) meaning no class. The result is ``(B, *shape)``, its first axis
    ``out_channels`` long if given. The network is zero at the start of training.

    - ``width``, ``blocks``: size and number of the residual blocks.
    - ``classes``: number of classes; None for an unconditional network.
    - ``dropout``: in [0, 1), inside each block; drawn from torch's global random state while training.
    - ``embedding``, ``embedding_scale``, ``embedding_seed``: the features of the time input, see
      :class:`~scoresde.nets.embeddings.Conditioning`.
    - ``out_channels``: e.g. 2 * shape[0] for a network that also predicts a variance.

    Raises :class:`ArgumentError` for sizes that are not positive integers, :class:`UnknownNameError` for another
    embedding; when called, :class:`ShapeError` and :class:`DTypeError` for tensors that do not fit.
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
        self.shape = wholes("shape", shape)
        whole("shape: number of axes", len(self.shape))
        whole("width", width, least=2)
        out = self.shape[0] if out_channels is None else whole("out_channels", out_channels)
        self.out_shape = (out, *self.shape[1:])
        self.conditioning = Conditioning(64, width, classes, embedding, embedding_scale, embedding_seed)
        self.stem = nn.Linear(math.prod(self.shape), width)
        dropout = probability("dropout", dropout)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(whole("blocks", blocks)))
        self.modulation = nn.Linear(width, 2 * width * len(self.blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, math.prod(self.out_shape)))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, x: Tensor, time_input: Tensor, y: Tensor | None = None) -> Tensor:
        check_inputs(x, time_input, self.shape, self.stem.weight)
        modulation = self.modulation(self.conditioning(time_input, y, x.shape[0])).chunk(2 * len(self.blocks), dim=1)
        h = exactly(self.stem, x.flatten(1))
        for block, scale, shift in zip(self.blocks, modulation[::2], modulation[1::2], strict=True):
            h = block(h, scale, shift)
        return self.head(h).unflatten(1, self.out_shape)
