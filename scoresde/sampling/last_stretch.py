r"""The last stretch, from the last noise level to the data.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    rho = sigma/alpha. y = x/alpha.
    s: the width below which the data have no further detail, in each direction.
    mu: where the estimate points, mu = x0 + (x0 - y) s^2/rho^2.

Near a Gaussian of width s about m, x0 = m + s^2/(s^2 + rho^2) (y - m), so mu = m is constant along the flow. In general

    dy/d(rho^2) = (y - mu)/(2 (s^2 + rho^2)),

and mu varies slowly. The linear part is solved exactly, and mu is the polynomial in rho^2 through the last levels:

    y(0) = v y + int_v^1 mu dv',    v = s/sqrt(s^2 + rho^2)

For s much less than rho this is Tweedie's step, y(0) = mu = x0. For s much more, it is the flow's straight end, where
eps/rho is extrapolated. A direction in which the data's variance is below s^2 has that instead, so that directions
without spread are exact. The method is ours (docs/samplers.md, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scoresde.flow.weights import lagrange
from scoresde.models import Gaussian
from scoresde.sde import HostLevel
from scoresde.sde.tensors import flat

END_LEVELS = 4  # levels through which mu is extrapolated
NODES = 32  # of the quadrature
LEAST_WIDTH = 1e-9  # of s over rho, so that the integral stays finite


@lru_cache(maxsize=4096)
def end_weights(rhos: tuple[float, ...], width: float) -> tuple[float, tuple[float, ...]]:
    """Return v and the weights of mu at the last levels.

        y(0) = v y + sum_j w_j mu_j,    v + sum_j w_j = 1

    With rho = s sinh(theta), dv = -sinh/cosh^2 dtheta is smooth for any ratio of rho to s.

    Args:
        rhos: rho of the last levels, decreasing.
        width: s.
    """
    s = max(width / rhos[-1], LEAST_WIDTH)
    x, w = np.polynomial.legendre.leggauss(NODES)
    theta = (x + 1) / 2 * math.asinh(1 / s)
    measure = w / 2 * math.asinh(1 / s) * np.sinh(theta) / np.cosh(theta) ** 2
    nodes = [(rho / rhos[-1]) ** 2 for rho in rhos]
    weights = lagrange(nodes, (s * np.sinh(theta)) ** 2) @ measure
    return s / math.hypot(1, s), tuple(weights.tolist())


def to_data(
    levels: Sequence[HostLevel], xs: Sequence[Tensor], x0s: Sequence[Tensor], width: float, gaussian: Gaussian | None
) -> Tensor:
    """Return x at t = 0, ``(B, *D)``.

    Args:
        levels: The last levels, from the noisiest on.
        xs, x0s: x and its estimate x0 at them, ``(B, *D)``.
        width: s, a number for all directions.
        gaussian: N(m, C) of the data. Directions with a variance below s^2 then have that. None: unknown.
    """
    rhos = tuple(level.rho for level in levels)
    ys = [flat(x) / level.alpha for x, level in zip(xs, levels, strict=True)]
    x0s = [flat(x0) for x0 in x0s]
    if gaussian is None or gaussian.least_variance >= width**2:
        v, weights = end_weights(rhos, width)
        squares = [(width / rho) ** 2 for rho in rhos]
        return _combination(v, weights, squares, ys, x0s).reshape(xs[-1].shape)
    # each direction of C has its own width
    widths = gaussian.widths(width)
    tables = [end_weights(rhos, s) for s in widths]
    like, s = ys[-1], torch.tensor(widths, dtype=torch.float64)
    v_of = torch.tensor([v for v, _ in tables], dtype=torch.float64).to(like)
    weights_of = torch.tensor([weights for _, weights in tables], dtype=torch.float64).T.to(like)
    squares_of = [(s / rho).square().to(like) for rho in rhos]
    ys, x0s = [gaussian.to_eigen(y) for y in ys], [gaussian.to_eigen(x0) for x0 in x0s]
    return gaussian.from_eigen(_combination(v_of, list(weights_of), squares_of, ys, x0s)).reshape(xs[-1].shape)


def _combination(
    v: float | Tensor,
    weights: Sequence[float | Tensor],
    squares: Sequence[float | Tensor],
    ys: Sequence[Tensor],
    x0s: Sequence[Tensor],
) -> Tensor:
    """Return v y + sum_j w_j mu_j, from s^2/rho^2 at each level."""
    total = v * ys[-1]
    for weight, square, y, x0 in zip(weights, squares, ys, x0s, strict=True):
        total = total + weight * (x0 + square * (x0 - y))
    return total
