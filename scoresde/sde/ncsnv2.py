"""Choosing the noise levels from the data (N5): the techniques of Song & Ermon (2020), as functions.

Technique 3 (an unconditional network divided by sigma) is ``ScoreModel(net, sde, predicts="noise")`` with a network
that ignores its label; technique 5 is :class:`scoresde.EMA`.
"""

from __future__ import annotations

import math

import torch

from scoresde.checks import positive
from scoresde.errors import ArgumentError, DataError, ShapeError
from scoresde.sde.discrete import NCSN
from scoresde.sde.families import VESDE


def largest_sigma(data, chunk: int = 1024) -> float:
    """Technique 1: the largest noise level is the largest Euclidean distance between two items.

    Args:
        data: an array or tensor ``(N, *D)``, N >= 2; it is read in blocks of ``chunk`` rows, so that memory grows with
            chunk^2 and not with N^2.

    Raises:
        ShapeError: fewer than two items.
        DataError: NaN or infinity.
    """
    data = torch.as_tensor(data)
    if data.ndim < 1 or len(data) < 2:
        raise ShapeError("data", tuple(data.shape), "(N, *D) with N >= 2")
    if chunk < 1:
        raise ArgumentError("chunk", chunk, "1 or more")
    flat = data.reshape(len(data), -1)
    dtype = torch.promote_types(flat.dtype, torch.float32)

    def block(i: int) -> torch.Tensor:  # seen from the first item: a common offset would cost the distances digits
        return flat[i : i + chunk].to(dtype) - flat[0].to(dtype)

    largest = torch.zeros((), dtype=torch.float64, device=flat.device)
    for i in range(0, len(flat), chunk):
        rows = block(i)
        if not bool(rows.isfinite().all()):
            raise DataError("data", "NaN or infinite values", "finite numbers")
        for j in range(i, len(flat), chunk):
            largest = torch.maximum(largest, torch.cdist(rows, block(j)).max().double())
    return largest.item()


def _overlap(gamma: float, dim: int) -> float:
    """How much of a level's shell its neighbour covers: Phi(sqrt(2D)(g-1) + 3g) - Phi(sqrt(2D)(g-1) - 3g)."""
    centre = math.sqrt(2 * dim) * (gamma - 1)
    return 0.5 * (math.erf((centre + 3 * gamma) / math.sqrt(2)) - math.erf((centre - 3 * gamma) / math.sqrt(2)))


def level_ratio(dim: int, overlap: float = 0.5) -> float:
    """Technique 2: the ratio gamma at which the shells of neighbouring levels, in ``dim`` dimensions, overlap so much.

    Raises:
        ArgumentError: ``dim`` below 1, ``overlap`` not in (0, 0.99).
    """
    if not isinstance(dim, int) or dim < 1:
        raise ArgumentError("dim", dim, "a whole number of dimensions")
    if not 0 < overlap < 0.99:
        raise ArgumentError("overlap", overlap, "a number in (0, 0.99)")
    from scipy.optimize import brentq

    high = 2.0
    while _overlap(high, dim) > overlap and high < 1e6:  # few dimensions: wide shells
        high *= 2
    if _overlap(high, dim) > overlap:
        raise ArgumentError("dim", dim, f"enough dimensions for shells to part: the overlap stays above {overlap}")
    return float(brentq(lambda gamma: _overlap(gamma, dim) - overlap, 1.0, high, xtol=1e-14))


def number_of_levels(dim: int, sigma_min: float, sigma_max: float, overlap: float = 0.5) -> int:
    """Technique 2: how many geometric levels take sigma_max to sigma_min by :func:`level_ratio`, or less."""
    if positive("sigma_max", sigma_max) <= positive("sigma_min", sigma_min):
        raise ArgumentError("sigma_max", sigma_max, f"more than sigma_min = {sigma_min}")
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(level_ratio(dim, overlap)))


def variance_ratio(r: float, gamma: float, steps: int) -> float:
    """Technique 4's left side: the variance after T steps at a level, over the level's, with r = e / sigma_L^2.

    (1-r)^{2T} (gamma^2 - c) + c with c = 2r / (1 - (1-r)^2) = 2/(2-r).
    """
    c = 2 / (2 - r)
    return (1 - r) ** (2 * steps) * (gamma**2 - c) + c


def langevin_step_size(sigma_min: float, gamma: float, steps: int) -> float:
    """Technique 4: the e of annealed Langevin dynamics, a_i = e sigma_i^2 / sigma_min^2, for T ``steps`` a level.

    It brings :func:`variance_ratio` as near to 1 as it gets, for the step x <- x + a s(x) + sqrt(2a) z of Song & Ermon
    (2020). Written with a/2 and sqrt(a), as in Song & Ermon (2019) and N3, the same step has twice this e.

    Raises:
        ArgumentError: gamma not above 1, fewer than one step.
    """
    positive("sigma_min", sigma_min)
    if not gamma > 1:
        raise ArgumentError("gamma", gamma, "a ratio of neighbouring levels, more than 1")
    if steps < 1:
        raise ArgumentError("steps", steps, "1 or more")
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_r: variance_ratio(math.exp(log_r), gamma, steps), bounds=(math.log(1e-8), 0.0), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    return float(math.exp(found.x) * sigma_min**2)


def ncsn_for(data, sigma_min: float = 0.01) -> NCSN:
    """The NCSN that techniques 1 and 2 choose for ``data`` ``(N, *D)``; sigma_min is below the data's finest detail."""
    data = torch.as_tensor(data)
    sigma_max = largest_sigma(data)
    return NCSN.geometric(sigma_min, sigma_max, number_of_levels(data[0].numel(), sigma_min, sigma_max))


def vesde_for(data, sigma_min: float = 0.01) -> VESDE:
    """The geometric VE SDE whose sigma_max technique 1 chooses for ``data`` ``(N, *D)``."""
    return VESDE(sigma_min, largest_sigma(data))
