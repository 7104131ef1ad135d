"""Conjugate gradients for each sample (Hestenes & Stiefel 1952)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


def per_sample_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return <a, b> of each sample, ``(B, 1, ..., 1)`` for ``(B, *E)``."""
    return (a * b).reshape(len(a), -1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


class Step(NamedTuple):
    """One step of conjugate gradients.

    Attributes:
        size: Length of the step along its direction p, ``(B, 1, ..., 1)``; 0 for a sample that has converged.
        image: What ``apply`` returned beside the product, for this direction.
        square: |r|^2 before the step, ``(B, 1, ..., 1)``.
    """

    size: Tensor
    image: Tensor
    square: Tensor


def conjugate_gradient_steps(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], b: Tensor, iterations: int
) -> Iterator[Step]:
    """Yield the steps that solve M u = b, sample by sample.

    M is symmetric and positive. With ``apply(p) = (M p, L p)`` for any linear L, L u is the sum of ``size * image``
    over the steps, at no further product. u' b is the sum of ``size * square``. The number of iterations is fixed, so
    nothing waits for the device.

    Args:
        apply: From a direction p ``(B, *E)`` to M p and an image of p.
        b: Right-hand side, ``(B, *E)``.
        iterations: Number of steps.
    """
    r = b
    p, square = r, per_sample_dot(b, b)
    tiny = square * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        q, image = apply(p)
        curvature = per_sample_dot(p, q)
        going = (square > tiny) & (curvature > 0)
        size = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
        yield Step(size, image, square)
        r = r - size * q
        before, square = square, per_sample_dot(r, r)
        p = r + torch.where(going, square / torch.where(going, before, 1.0), 0.0) * p


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Return the solution u ``(B, *E)`` of M u = b.

    M is symmetric and positive, and ``apply(p)`` is M p.
    """
    u = torch.zeros_like(b)
    for step in conjugate_gradient_steps(lambda p: (apply(p), p), b, iterations):
        u = u + step.size * step.image
    return u
