"""What a network predicts, as rows of one table.

Every common target is F = p x_0 + q eps with two numbers p, q that depend on the level only. With
x = alpha x_0 + sigma eps this is a 2x2 linear system of determinant D = alpha q - sigma p:

    x_0 = (q x - sigma F) / D,      eps = (alpha F - p x) / D.

======== ================================ =============================================================
name     (p, q)                           source
======== ================================ =============================================================
noise    (0, 1)                           Ho et al. 2020 (P6)
data     (1, 0)                           P11
velocity (-sigma, alpha)                  Salimans & Ho 2022
score    (0, -1/sigma)                    Song et al. 2021 (E6)
flow     (-1, 1)                          dx/dt of the path alpha = 1-t, sigma = t; Lipman et al. 2023
edm      (sigma, -alpha s_d^2) / (s_d S)  Karras et al. 2022, S^2 = alpha^2 s_d^2 + sigma^2, s_d the data's std
======== ================================ =============================================================
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import UnknownNameError

#: a number for all samples, or a tensor that broadcasts against x
Coefficient = float | Tensor


def total_std(alpha: Coefficient, sigma: Coefficient, data_std: float) -> Coefficient:
    """Return S = sqrt(alpha^2 s_d^2 + sigma^2).

    This is the standard deviation of x_t for data of standard deviation s_d.
    """
    total: Coefficient = (alpha**2 * data_std**2 + sigma**2) ** 0.5
    return total


def _edm(alpha: Coefficient, sigma: Coefficient, data_std: float) -> tuple[Coefficient, Coefficient]:
    s = total_std(alpha, sigma, data_std)
    return sigma / (data_std * s), -alpha * data_std / s


#: what a network may predict, by name: the coefficients of x_0 and eps in it, for alpha, sigma and s_d
PREDICTIONS: dict[str, Callable[[Coefficient, Coefficient, float], tuple[Coefficient, Coefficient]]] = {
    "noise": lambda alpha, sigma, data_std: (0.0, 1.0),
    "data": lambda alpha, sigma, data_std: (1.0, 0.0),
    "velocity": lambda alpha, sigma, data_std: (-sigma, alpha),
    "score": lambda alpha, sigma, data_std: (0.0, -1.0 / sigma),
    "flow": lambda alpha, sigma, data_std: (-1.0, 1.0),
    "edm": _edm,
}


#: what must not be 0 where a prediction is to determine both x0 and eps
NEEDED: dict[str, tuple[str, ...]] = {"noise": ("alpha",), "data": ("sigma",), "score": ("alpha", "sigma")}


@checked
def prediction_row(
    name: str, alpha: Coefficient, sigma: Coefficient, data_std: float = 1.0
) -> tuple[Coefficient, Coefficient]:
    """Return ``(p, q)`` of F = p x_0 + q eps for a prediction at a level.

    Args:
        name: A row of :data:`PREDICTIONS`.
        alpha, sigma: Mean scale and noise of the level.
        data_std: s_d, the standard deviation of the data, default 1.

    Raises:
        UnknownNameError: No prediction has this name.
    """
    if name not in PREDICTIONS:
        raise UnknownNameError("predicts", name, PREDICTIONS)
    return PREDICTIONS[name](alpha, sigma, data_std)


def solve(
    F: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient, p: Coefficient, q: Coefficient
) -> tuple[Tensor, Tensor]:
    """Return ``(x0, eps)`` from F = p x_0 + q eps and x_t.

        x_0 = (q x - sigma F) / D,    eps = (alpha F - p x) / D,    D = alpha q - sigma p

    With numbers for coefficients, as in a sampler's loop, a term that is zero or a factor of one costs nothing. Where F
    is x0 or eps itself, the result is F and not a copy.
    """
    D = alpha * q - sigma * p
    return _combined(q / D, x, -sigma / D, F), _combined(-p / D, x, alpha / D, F)


def _combined(a: Coefficient, x: Tensor, b: Coefficient, F: Tensor) -> Tensor:
    """Return a x + b F."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * F
    if not a:
        return F if b == 1 else b * F
    return torch.add(a * x, F, alpha=b) if b else a * x
