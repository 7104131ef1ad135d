"""Dot-product attention, written out or by torch's fused kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
    r"""Each position's average of the values, weighted by how well its query fits their keys.

    .. math:: u_i = \sum_j v_j \, \mathrm{softmax}_j\!\big(q_i \cdot k_j / \sqrt d\big)

    ``fused`` computes it by :func:`torch.nn.functional.scaled_dot_product_attention`: the same function, memory linear
    in the number of positions. Torch's fused kernels have first derivatives only; what differentiates twice needs
    ``fused=False``, or torch's own ``sdpa_kernel(SDPBackend.MATH)`` around the call.

    Shapes: q, k, v ``(B, heads, d, positions)``; so is the result.

    Source: Vaswani et al. 2017, section 3.2.
    """
    if fused:
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
    return v @ (q.mT @ k * q.shape[-2] ** -0.5).softmax(-1).mT
