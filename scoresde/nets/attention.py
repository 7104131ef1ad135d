"""Dot-product attention, written out or by torch's fused kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend(qkv: tuple[Tensor, ...], fused: bool) -> Tensor:
    r"""Average the values, weighted by how well queries fit keys.

    .. math:: u_i = \sum_j v_j \, \mathrm{softmax}_j\!\big(q_i \cdot k_j / \sqrt d\big)

    Args:
        qkv: Queries, keys and values, each ``(B, heads, d, positions)``.
        fused: Use :func:`torch.nn.functional.scaled_dot_product_attention`: the same function, with memory linear in
            the number of positions. Torch's fused kernels have first derivatives only. What differentiates twice needs
            False, or torch's ``sdpa_kernel(SDPBackend.MATH)`` around the call.

    Returns:
        ``(B, heads, d, positions)``.

    References: Vaswani et al. 2017, section 3.2.
    """
    q, k, v = qkv
    if fused:
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
    weights: Tensor = (q.mT @ k * q.shape[-2] ** -0.5).softmax(-1)
    return v @ weights.mT
