"""Noise levels and order of the default sampler.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    lambda = log(alpha/sigma), growing towards the data. rho = sigma/alpha = exp(-lambda).
    g = log(calls/5): how the settings move with the number of calls.
    tau: noise of the process, 0 (the probability flow) to 1 (the reverse SDE).

The levels lie between two lengths of the data (:class:`~scoresde.data.DataScale`). Above the largest one p_t is
nearly Gaussian. Below the finest one the flow is nearly straight. docs/samplers.md, section 2, has the reasons and the
measurements.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from scoresde.data import DataScale
from scoresde.models import Model
from scoresde.models.calibration import SolverSettings
from scoresde.sde import SDE, HostLevel

# ---- the default settings --------------------------------------------------------------------------------------------
#
# Chosen on the problems of even seed of benchmarks/families.py, with exact moments and with errors of the network, and
# on the digits network. The worst ratio of the error to the best peer's was then 1.1, 1.4, .7, 2.9 at 5, 10, 20, 50
# calls, and the median .23, .3, .33, .25. Higher `first` and more calls above serve networks, whose score is not
# exactly the Gaussian's where the noise is large.

FIRST, FIRST_GROWTH = 0.1, 1.1  # log(first rho/largest length) = .1 + 1.1 g
LAST, LAST_GROWTH, LAST_CURVATURE = 0.6, 0.6, 0.25  # log(last rho/finest length) = .6 - .6 g - .25 g^2
MOST_CALLS_OF_ORDER = {2: 7, 3: 30, 4: math.inf}
FEWEST_CALLS_ABOVE = 16  # from which on one call is spent above the first level
MOST_CALLS_WITH_JUMP = 30  # more calls start at t_max, and one in 12 is above the first level

# With noise: order 3 was the best at 50 and 100 calls, and near it at 10 and 20. The last level is lower, as the noise
# injected near the data has to be removed again.
NOISE_FIRST_GROWTH = 0.8
NOISE_LAST, NOISE_LAST_GROWTH = 1.0, 0.63
HIGHEST_ORDER_WITH_NOISE = 3

# Guidance that extrapolates far makes the flow stiff, and high orders diverge. With w = 7.5, order 1 with levels that
# begin further out had at most .77 of the error of DDIM on six families (5 to 50 calls).
STRONG_GUIDANCE = 3.0
STRONG_FIRST = 1.0
FEWEST_CALLS_TO_CORRECT = 8
FEWEST_CALLS_TO_CORRECT_STRONG = 16

# ---- lengths of data that the model does not know --------------------------------------------------------------------
# Unit scale is assumed, as is usual. As data differ, the largest length grows with the number of calls.

UNKNOWN_LARGEST, UNKNOWN_LARGEST_GROWTH = 3.0, 0.4
UNKNOWN_FINEST = 1 / 30  # of the typical length

SWELL, SWELL_GROWTH = 0.1, 0.05  # the spacing is a little denser in the middle, by .1 + .05 g
LEAST_RANGE = 1.0  # in lambda, from the first level to the last


def automatic_order(calls: int, tau: float = 0.0) -> int:
    """Return the order that suits a number of network calls.

    It is 2 to 7 calls, 3 to 30, then 4; with noise (tau > 0) at most 3.
    """
    order = next(order for order, most in MOST_CALLS_OF_ORDER.items() if calls <= most)
    return min(order, HIGHEST_ORDER_WITH_NOISE) if tau else order


def default_settings(calls: int, tau: float = 0.0, *, mean_known: bool = True, guidance: float = 1.0) -> SolverSettings:
    """Return the settings that suit a number of network calls on any model.

    Args:
        calls: Number of network calls.
        tau: Noise of the process.
        mean_known: Whether the mean of the data is known, so that x may jump.
        guidance: Scale of the model's guidance, 1 for none.
    """
    g = math.log(max(calls, 2) / 5)
    order, jump, swell = automatic_order(calls, tau), mean_known, SWELL + SWELL_GROWTH * g
    if tau:
        first, last = FIRST + NOISE_FIRST_GROWTH * g, NOISE_LAST - NOISE_LAST_GROWTH * g - tau
        return SolverSettings(calls, first, last, 0 if jump else 1, jump, order, False, swell=swell)
    first, last = FIRST + FIRST_GROWTH * g, LAST - LAST_GROWTH * g - LAST_CURVATURE * g**2
    above = 1 if calls >= FEWEST_CALLS_ABOVE else 0
    if not jump or calls > MOST_CALLS_WITH_JUMP:
        jump, above = False, max(above + 1, calls // 12)
    corrector = True
    if guidance > STRONG_GUIDANCE:
        first, order = first + STRONG_FIRST, 1
        above = max(above, 2) if calls >= FEWEST_CALLS_TO_CORRECT else above
        corrector = calls >= FEWEST_CALLS_TO_CORRECT_STRONG
    elif guidance > 1:
        corrector = calls >= FEWEST_CALLS_TO_CORRECT
    return SolverSettings(calls, first, last, above, jump, order, corrector, swell=swell)


# ---- the levels ------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """The noise levels of a run.

    Attributes:
        start: Level of x at t_max.
        levels: Levels of the calls.
        jump: Whether x jumps from ``start`` to the first level. Otherwise the first level is ``start``.
    """

    start: HostLevel
    levels: tuple[HostLevel, ...]
    jump: bool = False


def lengths(model: Model, calls: int) -> DataScale:
    """Return the lengths of a model's data, assumed where they are unknown.

    Args:
        model: Score model.
        calls: Number of network calls.

    Where the moments are unknown, the narrowest direction of the data counts as detail too.
    """
    scale = model.known_scale()
    if scale is None:
        largest = UNKNOWN_LARGEST * (max(calls, 2) / 5) ** UNKNOWN_LARGEST_GROWTH
        return DataScale(1.0, largest, UNKNOWN_FINEST)
    finest = UNKNOWN_FINEST * scale.typical if scale.finest is None else scale.finest
    if model.moments is None and scale.least is not None:
        finest = min(finest, scale.least)
    return DataScale(scale.typical, scale.largest, min(finest, scale.largest))


def data_lambdas(first: float, last: float, count: int, bend: float = 0.0, swell: float = 0.0) -> np.ndarray:
    """Return growing lambdas from ``first`` to ``last``.

        lambda = a + (b - a) (u + A sin(2 pi u)/(2 pi) + B sin(pi u)/pi),    u uniform in [0, 1]

    Args:
        first, last: The ends a and b.
        count: Number of lambdas.
        bend, swell: B and A, whose sizes sum to less than 1.
    """
    u = np.linspace(0.0, 1.0, count)
    moved = u + swell * np.sin(2 * math.pi * u) / (2 * math.pi) + bend * np.sin(math.pi * u) / math.pi
    lam: np.ndarray = first + (last - first) * moved
    return lam


def plan_levels(sde: SDE, scale: DataScale, settings: SolverSettings, start: HostLevel, end: HostLevel) -> Plan:
    """Return the noise levels of a run at the lengths of the data.

    Args:
        sde: The process.
        scale: Lengths of the data.
        settings: Where the levels lie between the lengths.
        start, end: Levels at t_max and t_min. No call is made outside.
    """
    assert scale.finest is not None
    # 1. the ends, within those of time
    first = max(-(math.log(scale.largest) + settings.first), start.lam)
    last = min(max(-(math.log(scale.finest) + settings.last), first + LEAST_RANGE), end.lam)
    first = max(min(first, last - LEAST_RANGE), start.lam)
    # 2. calls from t_max to the first of them
    jump, above = settings.jump, min(settings.above, settings.calls - 1)
    if first <= start.lam + 1e-9:
        first, jump, above = start.lam, False, 0
    steps = above + 1 if jump else max(above, 1)
    outer = np.linspace(start.lam, first, steps + 1)[1 if jump else 0 : -1] if above else np.empty(0)
    # 3. the others
    lam = np.concatenate([outer, data_lambdas(first, last, settings.calls - above, settings.bend, settings.swell)])
    levels = sde.levels(sde.time_at(lam=torch.from_numpy(lam)))
    return Plan(start, tuple(levels if jump else [start, *levels[1:]]), jump)
