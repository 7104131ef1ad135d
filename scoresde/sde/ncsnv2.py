"""Noise levels chosen from the data (N5), after Song & Ermon (2020).

Technique 1 chooses the largest level, technique 2 the number of levels, technique 4 the step of annealed Langevin
dynamics. Technique 3, an unconditional network divided by sigma, is ``ScoreModel(net, sde, predicts="noise")`` with a
network that ignores its time input. Technique 5 is :class:`scoresde.EMA`.

==========  ==================================================================================================
D           dimension of the data
gamma       ratio of neighbouring levels, above 1
T           Langevin steps at each level
e, a_i      step size: a_i = e sigma_i^2 / sigma_min^2 at level i
r           e / sigma_min^2
==========  ==================================================================================================
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import number, numbers, positive, whole
from scoresde.errors import ArgumentError, DataError, ShapeError
from scoresde.sde.discrete import NCSN
from scoresde.sde.families import VESDE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@checked
def largest_sigma(data: ArrayLike | Tensor, chunk: int = 1024) -> float:
    """Return the largest Euclidean distance between two items.

    Technique 1 takes it as the largest noise level.

    Args:
        data: Array or tensor ``(N, *D)``, N >= 2.
        chunk: Rows of a block, default 1024. Memory grows with chunk^2, not with N^2.

    Raises:
        ShapeError: Fewer than two items.
        DataError: NaN or infinity.
    """
    data = numbers("data", data)
    if data.ndim < 1 or len(data) < 2:
        raise ShapeError("data", tuple(data.shape), "(N, *D) with N >= 2")
    chunk = whole("chunk", chunk)
    flat = data.reshape(len(data), -1)
    dtype = torch.promote_types(flat.dtype, torch.float32)
    origin = flat[0].to(dtype)  # distances from the first item: a common offset would cost them digits

    def block(i: int) -> Tensor:
        return flat[i : i + chunk].to(dtype).sub(origin)

    largest = torch.zeros((), dtype=torch.float64, device=flat.device)
    for i in range(0, len(flat), chunk):
        rows = block(i)
        if not bool(rows.isfinite().all()):
            raise DataError("data", "NaN or infinite values", "finite numbers")
        for j in range(i, len(flat), chunk):
            largest = torch.maximum(largest, torch.cdist(rows, block(j)).max().double())
    return largest.item()


def _overlap(gamma: float, dim: int) -> float:
    """Return how much of a level's shell its neighbour covers.

    Phi(sqrt(2D)(gamma-1) + 3 gamma) - Phi(sqrt(2D)(gamma-1) - 3 gamma), with the normal distribution function Phi.
    """
    centre = math.sqrt(2 * dim) * (gamma - 1)
    return 0.5 * (math.erf((centre + 3 * gamma) / math.sqrt(2)) - math.erf((centre - 3 * gamma) / math.sqrt(2)))


@checked
def level_ratio(dim: int, overlap: float = 0.5) -> float:
    """Return the ratio gamma of neighbouring levels (technique 2).

    At this ratio the shells of two neighbours, in ``dim`` dimensions, overlap by ``overlap``.

    Args:
        dim: Dimension of the data.
        overlap: Shared probability, in (0, 0.99), default 0.5.

    Raises:
        ArgumentError: ``dim`` below 1 or too small for this overlap, or ``overlap`` outside (0, 0.99).
    """
    dim = whole("dim", dim)
    if not 0 < overlap < 0.99:
        raise ArgumentError("overlap", overlap, "a number in (0, 0.99)")
    from scipy.optimize import brentq

    high = 2.0
    while _overlap(high, dim) > overlap and high < 1e6:  # few dimensions: wide shells
        high *= 2
    if _overlap(high, dim) > overlap:
        raise ArgumentError("dim", dim, f"larger: in so few dimensions the overlap stays above {overlap}")
    return float(brentq(lambda gamma: _overlap(gamma, dim) - overlap, 1.0, high, xtol=1e-14))


@checked
def number_of_levels(dim: int, sigma_min: float, sigma_max: float, overlap: float = 0.5) -> int:
    """Return the number of geometric levels (technique 2).

    The smallest number whose ratio is :func:`level_ratio` or less.

    Args:
        dim: Dimension of the data.
        sigma_min: Smallest level, positive.
        sigma_max: Largest level, above ``sigma_min``.
        overlap: As in :func:`level_ratio`, default 0.5.

    Raises:
        ArgumentError: Levels out of order, or as :func:`level_ratio`.
    """
    if positive("sigma_max", sigma_max) <= positive("sigma_min", sigma_min):
        raise ArgumentError("sigma_max", sigma_max, f"above sigma_min = {sigma_min}")
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(level_ratio(dim, overlap)))


@checked
def variance_ratio(r: float, gamma: float, steps: int) -> float:
    """Return the variance after the steps at a level, over the level's.

        (1-r)^{2T} (gamma^2 - c) + c,  c = 2r / (1 - (1-r)^2) = 2/(2-r)

    Technique 4 brings it to 1.

    Args:
        r: Step size over the variance of the level.
        gamma: Ratio of neighbouring levels.
        steps: T.
    """
    c = 2 / (2 - r)
    return (1 - r) ** (2 * steps) * (gamma**2 - c) + c


@checked
def langevin_step_size(sigma_min: float, gamma: float, steps: int) -> float:
    """Return the step size e of annealed Langevin dynamics (technique 4).

    It brings :func:`variance_ratio` as near to 1 as possible, for the step x <- x + a s(x) + sqrt(2a) z of Song & Ermon
    (2020). Written with a/2 and sqrt(a), as in Song & Ermon (2019) and N3, the same step has twice this e.

    Args:
        sigma_min: Smallest level, positive.
        gamma: Ratio of neighbouring levels, above 1.
        steps: Steps T at each level.

    Raises:
        ArgumentError: A value outside these ranges.
    """
    positive("sigma_min", sigma_min)
    steps = whole("steps", steps)
    if number("gamma", gamma, "a ratio above 1") <= 1:
        raise ArgumentError("gamma", gamma, "a ratio above 1")
    from scipy.optimize import minimize_scalar

    def ratio(log_r: float) -> float:
        return variance_ratio(math.exp(log_r), gamma, steps)

    found = minimize_scalar(ratio, bounds=(math.log(1e-8), 0.0), method="bounded", options={"xatol": 1e-10})
    return float(math.exp(found.x) * sigma_min**2)


@checked
def ncsn_for(data: ArrayLike | Tensor, sigma_min: float = 0.01) -> NCSN:
    """Return the NCSN that techniques 1 and 2 choose for ``data``.

    Args:
        data: Array or tensor ``(N, *D)``, N >= 2.
        sigma_min: Smallest level, below the data's finest detail, default 0.01.
    """
    data = numbers("data", data)
    sigma_max = largest_sigma(data)
    return NCSN.geometric(sigma_min, sigma_max, number_of_levels(data[0].numel(), sigma_min, sigma_max))


@checked
def vesde_for(data: ArrayLike | Tensor, sigma_min: float = 0.01) -> VESDE:
    """Return the geometric VE SDE with technique 1's sigma_max for ``data``.

    Args:
        data: Array or tensor ``(N, *D)``, N >= 2.
        sigma_min: sigma(0), below the data's finest detail, default 0.01.
    """
    return VESDE(sigma_min, largest_sigma(data))
