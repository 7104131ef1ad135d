r"""Levels and weights of the method ``"multistep"``, from the grid alone.

The method is ours. `docs/likelihood_solver.md` derives it. :mod:`scoresde.likelihood.gaussian_path` has the table of
symbols and does the steps. Everything here is known before the first network call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scoresde.data import DataScale
from scoresde.flow.weights import gauss_legendre, lagrange
from scoresde.sde import SDE

Array = NDArray[np.float64]

# Numbers in brackets are mean errors of log p in nats with another value, at 100 calls and at 50. They were measured on
# 4 mixtures of 8 Gaussians in 2 dimensions: stds 0.05 to 0.4, VP, 60 points each, exact score and trace. The values
# below have 2.6e-7 and 1.2e-4.

# ---- orders ----------------------------------------------------------------------------------------------------------

BLOCK_LEVELS = 4  # solved together near the data (3: 2.3e-7, 1.0e-4; 5: 4.7e-7, 1.6e-4)
ADAMS_ORDER = 3  # of predictor and corrector; higher ones are unstable (4: 2.2e-7, 2.4e-3; 5: 3.2e-5, 1.7e-2)
PATH_DEGREE = 8  # of the polynomials through the points of the calls (6: 8.9e-7, 1.0e-4; 10: 1.5e-6, 2.4e-4)
TRACE_DEGREE = 7  # of the trace's rule, at most an eighth of the levels (5: 7.7e-7, 1.2e-4; 9: 6.8e-7, 1.2e-4)
END_SPACING = 0.4  # in lambda, of the levels that extrapolate the trace at both ends (0.2: 2.5e-7; 0.8: 2.9e-7)
LEAST_CALLS = 2 * BLOCK_LEVELS + 1

# ---- ends of the grid, as log(std of the data/rho); GROWTH is the change with log(calls/100) -------------------------

FIRST_LEVEL, FIRST_LEVEL_GROWTH = 2.8, 0.8  # of the finest length, first (1.8: 5.2e-5, 2.7e-4; 3.8: 5.6e-7, 4.8e-4)
UNKNOWN_FINEST = 1 / 20  # of the typical length, where the finest is unknown
LAST_LEVEL, LAST_LEVEL_GROWTH = -2.8, 0.5  # of the largest std, last level (-1.8: 7.2e-6, 5.7e-5; -3.8: 5.7e-7, 6.5e-4)
LEAST_RANGE = 1.0  # in lambda, from the first level to the last

# ---- spacing ---------------------------------------------------------------------------------------------------------

DENSITY_SWING = 0.2  # spacing is 1 + 0.2 cos of the mean: denser in the middle (0: 8.5e-7, 1.5e-3; 0.4: 1.7e-7, 6.8e-5)
BLOCK_SPACING = 0.1  # least distance in lambda of the block's levels (0.05: 2.6e-7; 0.2: 6.3e-6)

# The block takes two rounds more if t_min keeps the first level this far in lambda from the wanted one, and only with
# more calls than this.
COARSE_START, LEAST_CALLS_FOR_MORE_ROUNDS = 0.5, 30

# ---- dequantised integers --------------------------------------------------------------------------------------------
#
# Networks are rough where the noise is as narrow as a bin. Through levels that are nearer or less even than these the
# polynomials amplified the roughness: a U-Net's bits/dim on 8-bit images was wrong by 0.5 at 200 calls and by 26 at
# 400 (tests/likelihood/test_path_plan.py).

BINS_START = 0.8  # log(std within a bin/rho) at the first level, at least
BINS_LEAST_SPACING = 0.14  # usual spacing below which the block is set apart
BINS_BLOCK_SPACING = 0.25  # spacing of the block then
BINS_SPACING_RATIO = 0.85  # from one spacing to the next, until the usual one is reached


@dataclass(frozen=True)
class Ends:
    """Where the path begins and ends.

    Attributes:
        t_min, t_max: the times between which the network is evaluated.
        data_at_t_min: True if x_0 is a point of p_{t_min}; False if it is a point of the data, at t = 0.
        noise_to_infinity: True if the flow is followed to infinite noise, where it is the Gaussian of the moments.
            False if it ends at t_max.
    """

    t_min: float
    t_max: float
    data_at_t_min: bool
    noise_to_infinity: bool


@dataclass(frozen=True)
class Grid:
    """Levels of the calls and how often the first of them are visited.

    Attributes:
        lams: lambda at each level, from data to noise, decreasing.
        rounds: calls at each of the first levels.
        coarse: whether t_min keeps the first level from where the data show their finest detail.
        cut: whether t_max keeps the last level from where the data are nearly Gaussian.
    """

    lams: tuple[float, ...]
    rounds: int
    coarse: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Plan:
    """Weights of a grid, as Python floats.

    Attributes:
        lams, rhos: lambda and rho at each level, from data to noise.
        block_explicit: for each level j of the block, weights of G at the levels before it, for z_j. First round.
        block_implicit: the same, with weights of G at all levels of the block. Later rounds.
        block_rougher: weights of G for z at the last level of the block, less those without its outermost level.
        trace_rule: weights of div F and of the residual's term between the first and the last level.
        trace_below: weights of div F for the stretch below the first level; 0 for a path that begins there.
        rougher_rule, rougher_below, rougher_above: these weights less those of a lower order.
        trace_above: weights of div F for the stretch above the last level; 0 for a path that ends there.
        z_top: weights of F that carry z from the last level to t_max; 0 for a path that ends there.
        z_infinity: weights of F that carry z from the last level to infinite noise; 0 as well.
        infinity_rougher: z_infinity less the weights of one order less.
        predict, correct: Adams weights of each step, the newest F last.
        slopes: first level and weights of dz/dlambda at each level.
    """

    lams: tuple[float, ...]
    rhos: tuple[float, ...]
    block_explicit: list[list[float]]
    block_implicit: list[list[float]]
    trace_rule: list[float]
    trace_below: list[float]
    trace_above: list[float]
    z_top: list[float]
    z_infinity: list[float]
    block_rougher: list[float]
    rougher_rule: list[float]
    rougher_below: list[float]
    rougher_above: list[float]
    infinity_rougher: list[float]
    predict: list[list[float]]
    correct: list[list[float]]
    slopes: list[tuple[int, list[float]]]


# ---- levels ----------------------------------------------------------------------------------------------------------


def choose_levels(
    sde: SDE, scale: DataScale | None, calls: int, ends: Ends, bin_std: float | None = None, reach: float = 0.0
) -> Grid:
    """Choose the levels of a number of network calls, denser in the middle.

    With a known scale the grid begins where rho is e^{-2.8} times the finest length of the data, and ends where rho is
    e^{2.8} times the largest. Both move outwards with the logarithm of the calls, within t_min and t_max. Otherwise the
    grid reaches from t_min to t_max.

    Args:
        sde: The forward process.
        scale: Lengths of the data, if known.
        calls: Network calls, all rounds together.
        ends: With ``data_at_t_min`` the grid begins at t_min, without ``noise_to_infinity`` it ends at t_max.
        bin_std: Standard deviation within the bins of dequantised integers. The flow bends where rho is as narrow as
            the bins, and is smooth in rho^2 only below. The grid begins below. None: other data.
        reach: By how much the last level's lambda is lower than usual.

    Returns:
        The grid. The first levels take two rounds, or four if t_min keeps them from the data.
    """
    first, last = sde.log_snr(ends.t_min).item() / 2, sde.log_snr(ends.t_max).item() / 2
    rounds, coarse, cut = 2, False, False
    if scale is not None:
        growth = math.log(calls / 100)
        wanted = FIRST_LEVEL + FIRST_LEVEL_GROWTH * growth - math.log(finest_length(scale))
        wanted = wanted if bin_std is None else max(wanted, BINS_START - math.log(bin_std))
        coarse = first < wanted - COARSE_START and not ends.data_at_t_min
        rounds += 2 if first < wanted - COARSE_START and calls > LEAST_CALLS_FOR_MORE_ROUNDS else 0
        first = first if ends.data_at_t_min else min(first, wanted)
        if ends.noise_to_infinity:
            wanted = LAST_LEVEL - LAST_LEVEL_GROWTH * growth - math.log(scale.largest)
            cut = last > wanted + COARSE_START
            last = min(max(last, wanted - reach), first - LEAST_RANGE)
    count = calls - BLOCK_LEVELS * (rounds - 1)
    gaps = [] if ends.data_at_t_min else _block_gaps((first - last) / count * (1 + DENSITY_SWING), bin_std is not None)
    head = first - np.cumsum([0.0, *gaps])
    start, u = head[-1], np.linspace(0.0, 1.0, count - len(gaps))
    line = start + (last - start) * (u + DENSITY_SWING * np.sin(2 * math.pi * u) / (2 * math.pi))
    return Grid(tuple(np.concatenate([head[:-1], line]).tolist()), rounds, coarse, cut)


def finest_length(scale: DataScale) -> float:
    """Return the finest length of the data, or one that is assumed."""
    return UNKNOWN_FINEST * scale.typical if scale.finest is None else scale.finest


def _block_gaps(usual: float, bins: bool) -> list[float]:
    """Return the distances of the first levels, or none.

    Where the ``usual`` spacing is wide enough, the first levels have it too. Elsewhere they are set apart, as levels
    too near to each other do not show what the flow does below them.
    """
    if not bins:
        return [BLOCK_SPACING] * (BLOCK_LEVELS - 1) if usual < BLOCK_SPACING else []
    if usual >= BINS_LEAST_SPACING:
        return []
    gaps = [BINS_BLOCK_SPACING] * (BLOCK_LEVELS - 1)
    while gaps[-1] * BINS_SPACING_RATIO > usual:
        gaps.append(gaps[-1] * BINS_SPACING_RATIO)
    return gaps


# ---- weights ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def make_plan(lams: tuple[float, ...], bottom: float, top: float | None, decay: int) -> Plan:
    """Compute the weights of a grid.

    Args:
        lams: Lambda at the levels, decreasing.
        bottom: rho^2 of x_0: 0 for data at t = 0, that of the first level for data at t_min.
        top: Lambda at which x is wanted, for a flow that goes to infinite noise. None: the last level.
        decay: Power of 1/rho with which F and div F vanish at high noise: 3 with the data's mean and covariance, 2 with
            their mean alone.
    """
    count = len(lams)
    rhos = tuple(math.exp(-lam) for lam in lams)
    squares = [rho**2 for rho in rhos]
    explicit, implicit = _block_weights(squares[: min(BLOCK_LEVELS, count)], bottom)
    above, z_top, z_infinity = _weights_above(lams, rhos, top, decay)
    low_above, _, low_infinity = _weights_above(lams, rhos, top, decay, less=1)
    rule = _trace_rule(lams, TRACE_DEGREE)
    below, low_below = (_trace_below(lams, squares, bottom, nodes) for nodes in (3, 2))
    predict, correct = _adams_weights(lams, len(implicit) - 1)
    return Plan(
        lams=lams,
        rhos=rhos,
        block_explicit=explicit,
        block_implicit=implicit,
        trace_rule=rule,
        rougher_rule=_difference(rule, _trace_rule(lams, TRACE_DEGREE - 2)),
        trace_below=below,
        trace_above=above,
        z_top=z_top,
        z_infinity=z_infinity,
        block_rougher=_block_rougher(squares[: min(BLOCK_LEVELS, count)], bottom),
        rougher_below=_difference(below, low_below),
        rougher_above=_difference(above, low_above),
        infinity_rougher=_difference(z_infinity, low_infinity),
        predict=predict,
        correct=correct,
        slopes=[_slope_weights(lams, k) for k in range(count)],
    )


def _block_weights(squares: Sequence[float], bottom: float) -> tuple[list[list[float]], list[list[float]]]:
    """Return the block's weights of g for y, explicit and implicit.

    y(rho) - y(bottom) is half the integral of g over rho^2.
    """
    explicit = [
        (0.5 * _integral(squares[:j], bottom, square)).tolist() if j else [] for j, square in enumerate(squares)
    ]
    implicit = [(0.5 * _integral(squares, bottom, square)).tolist() for square in squares]
    return explicit, implicit


def _block_rougher(squares: Sequence[float], bottom: float) -> list[float]:
    """Return the implicit weights at the last level, less lower ones.

    The lower ones have one level less.
    """
    full, fewer = _integral(squares, bottom, squares[-1]), np.zeros(len(squares))
    fewer[:-1] = _integral(squares[:-1], bottom, squares[-1])
    return _floats(0.5 * (full - fewer))


def _difference(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _trace_rule(lams: Sequence[float], degree: int) -> list[float]:
    """Return the weights of an integral over lambda, first to last level."""
    count = len(lams)
    rule, points = np.zeros(count), min(degree, max(1, count // 8)) + 1
    for k in range(count - 1):
        lo = _window(k, count, points)
        rule[lo : lo + points] += _integral(lams[lo : lo + points], lams[k], lams[k + 1])
    return _floats(rule)


def _trace_below(lams: Sequence[float], squares: Sequence[float], bottom: float, nodes: int) -> list[float]:
    """Return the weights of div F below the first level.

    There div F/rho^2 is smooth in rho^2.
    """
    below = np.zeros(len(lams))
    if squares[0] > bottom:
        chosen = _spread(lams, nodes)
        below[chosen] = _integral([squares[i] for i in chosen], bottom, squares[0])
        below /= 2 * np.asarray(squares)
    return _floats(below)


def _weights_above(
    lams: Sequence[float], rhos: Sequence[float], top: float | None, decay: int, less: int = 0
) -> tuple[list[float], list[float], list[float]]:
    """Return the weights above the last level.

    They are those of div F, of F up to ``top`` and of F up to infinite noise. There F and div F are rho^-decay times a
    smooth function of p = 1/rho, and dlambda = dp/p. With ``less`` = 1 the polynomials have one level less.
    """
    count = len(lams)
    above, z_top, z_infinity = np.zeros((3, count))
    if top is not None:
        inverse = 1 / np.asarray(rhos)
        spread = [count - 1 - i for i in _spread(lams[::-1], 2 - less)]
        nearest = list(range(max(0, count - 3 + less), count))
        for weights, chosen, end in ((above, spread, 0.0), (z_top, nearest, math.exp(top)), (z_infinity, nearest, 0.0)):
            integral = _integral(inverse[chosen].tolist(), end, inverse[-1], lambda p: p ** (decay - 1))
            weights[chosen] = -integral / inverse[chosen] ** decay
    return _floats(above), _floats(z_top), _floats(z_infinity)


def _adams_weights(lams: Sequence[float], start: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return the predictor's and the corrector's weights of F.

    One list for each step from level ``start`` on.
    """
    predict, correct = [], []
    for k in range(start, len(lams) - 1):
        oldest = max(0, k - ADAMS_ORDER + 1)
        predict.append(_floats(_integral(lams[oldest : k + 1], lams[k], lams[k + 1])))
        correct.append(_floats(_integral(lams[oldest : k + 2], lams[k], lams[k + 1])))
    return predict, correct


def _slope_weights(lams: Sequence[float], k: int) -> tuple[int, list[float]]:
    """Return the first level and the weights of dz/dlambda at level k.

    The polynomial goes through the PATH_DEGREE + 1 levels around k.
    """
    lo = _window(k, len(lams), PATH_DEGREE + 1)
    return lo, _derivative(lams[lo : lo + PATH_DEGREE + 1], k - lo)


def _integral(
    nodes: Sequence[float], start: float, end: float, factor: Callable[[Array], Array] | None = None
) -> Array:
    """Return w_j = int_start^end factor(p) L_j(p) dp.

    L_j is the Lagrange basis of the nodes.
    """
    x, w = gauss_legendre()
    points = (start + end) / 2 + (end - start) / 2 * x
    scale = w * (end - start) / 2
    return np.asarray(lagrange(nodes, points) @ (scale if factor is None else scale * factor(points)))


def _derivative(nodes: Sequence[float], at: int) -> list[float]:
    """Return w_j = L_j'(nodes[at]), by barycentric weights."""
    x = np.asarray(nodes)
    gaps = x[:, None] - x + np.eye(len(x))
    b = 1 / gaps.prod(1)
    row = b / b[at] / np.where(np.arange(len(x)) == at, 1.0, x[at] - x)
    row[at] = 0.0
    row[at] = -row.sum()
    return _floats(row)


def _window(k: int, count: int, size: int) -> int:
    """Return the first of ``size`` levels around level k of ``count``."""
    return min(max(0, k - size // 2), max(0, count - size))


def _spread(lams: Sequence[float], count: int) -> list[int]:
    """Return ``count`` levels from the first on, END_SPACING apart.

    There are fewer if the levels do not reach so far.
    """
    distance = np.abs(np.asarray(lams) - lams[0])
    chosen = [0]
    while len(chosen) < count and chosen[-1] + 1 < len(lams):
        chosen.append(max(chosen[-1] + 1, int(np.argmin(np.abs(distance - len(chosen) * END_SPACING)))))
    return chosen


def _floats(values: Array) -> list[float]:
    return [float(value) for value in values]
