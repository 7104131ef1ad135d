"""Exponential multistep integrators: their weights and tables of steps.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    lambda = log(alpha/sigma), growing towards the data. h = lambda_s - lambda_t, a step.
    rho = sigma/alpha = exp(-lambda). y = x/alpha.
    tau: noise of the process, 0 (the probability flow) to 1 (the reverse SDE). r = 1 + tau^2.
    L_j: Lagrange polynomials of the nodes, the lambdas of the last estimates x0_j.
    z: standard normal noise.

The reverse process with noise tau is dy = r (x0 - y) dlambda + sqrt(2) tau rho dW. Its linear part is solved exactly:

    x_s = (sigma_s/sigma_t) e^{-tau^2 h} x_t + sigma_s sqrt(1 - e^{-2 tau^2 h}) z
          + alpha_s int_t^s r e^{-r (lambda_s - lambda)} x0 dlambda

Under the integral, x0 is the polynomial in lambda through the estimates at the last levels (Adams-Bashforth). A method
is thus its levels and its weights (Lu et al. 2022b; Zhao et al. 2023; Xue et al. 2023). Both are numbers, computed
before the loop and cached.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.flow.weights import gauss_legendre, lagrange
from scoresde.sde import HostLevel

MAX_ORDER = 5


@lru_cache(maxsize=4096)  # a grid's weights are the same in every run over it
def exponential_weights(start: float, end: float, nodes: tuple[float, ...], tau: float = 0.0) -> tuple[float, ...]:
    """Return the weights of the nodes in one step.

        w_j = int_start^end r e^{-r (end - lambda)} L_j(lambda) dlambda

    The step goes from lambda = ``start`` to ``end``. The weights sum to 1 - e^{-r (end - start)}. With one node this is
    the exponential Euler step, DDIM (D6).
    """
    x, w = gauss_legendre()
    points, w = (start + end) / 2 + (end - start) / 2 * x, (end - start) / 2 * w
    r = 1 + tau**2
    return tuple((lagrange(nodes, points) @ (w * r * np.exp(-r * (end - points)))).tolist())


def midpoint_weights(start: float, end: float, nodes: tuple[float, ...], tau: float = 0.0) -> tuple[float, ...]:
    """Return the weights of two nodes by the middle of the step.

    The line through both estimates is not integrated, but taken at (start + end)/2, which is as accurate for short
    steps. With E = 1 - e^{-r h} and a slope over ``start - nodes[0]``:

        w_1 = E (1 + h/(2 (start - nodes[0]))),    w_0 = E - w_1

    References: Lu et al. 2022b, algorithm 2, which is the default of diffusers (``solver_type="midpoint"``).
    """
    h, r = end - start, 1 + tau**2
    total = -math.expm1(-r * h)
    newest = total * (1 + h / (2 * (start - nodes[0])))
    return total - newest, newest


class Step(NamedTuple):
    """The numbers of one step.

    Attributes:
        x, z: Coefficients of x_t and of the noise, in x_s = x x_t + z noise + sum_j predict_j x0_j.
        predict: Weights of the newest estimates, oldest first.
        correct: Weights of the same step once the estimate at its end is known too. Empty without a corrector.
    """

    x: float
    z: float
    predict: tuple[float, ...]
    correct: tuple[float, ...]


@lru_cache(maxsize=64)
def multistep_table(
    levels: tuple[HostLevel, ...],
    order: int,
    tau: float,
    *,
    corrector: bool,
    above: float | None = None,
    midpoint: bool = False,
) -> tuple[Step, ...]:
    """Return the steps between the levels.

    Args:
        levels: Noise levels of the calls, from the noisiest on. alpha may be 0 at the first.
        order: Number of estimates that a step uses, where there are as many.
        tau: Noise of the process.
        corrector: Whether to give the corrector's weights, one estimate more than the predictor's.
        above: Lambda of an estimate from before the first level. None: there is none.
        midpoint: Whether two estimates have the weights of :func:`midpoint_weights`.
    """
    if levels[0].alpha == 0 and len(levels) > 1:
        rest = multistep_table(levels[1:], order, tau, corrector=corrector, midpoint=midpoint)
        return (_from_pure_noise(levels[1], tau), *rest)
    lams = [level.lam for level in levels]
    nodes = lams if above is None else [above, *lams]
    steps = []
    for i, (start, end) in enumerate(itertools.pairwise(levels)):
        a, b, known = lams[i], lams[i + 1], len(nodes) - len(lams) + i + 1

        def weights(first: int, last: int, a: float = a, b: float = b, end: HostLevel = end) -> tuple[float, ...]:
            used = tuple(nodes[max(0, first) : last])
            rule = midpoint_weights if midpoint and len(used) == 2 else exponential_weights
            return tuple(end.alpha * w for w in rule(a, b, used, tau))

        x = end.sigma / start.sigma * math.exp(-(tau**2) * (b - a))
        z = end.sigma * math.sqrt(-math.expm1(-2 * tau**2 * (b - a)))
        correct = weights(known - order, known + 1) if corrector else ()
        steps.append(Step(x, z, weights(known - order, known), correct))
    return tuple(steps)


def _from_pure_noise(end: HostLevel, tau: float) -> Step:
    """Return the step from a level with alpha = 0, where sigma is 1.

    There lambda is infinite, so that the estimate is a constant along the step and serves no later one.
    """
    if tau:
        return Step(0.0, end.sigma, (end.alpha,), ())
    return Step(end.sigma, 0.0, (end.alpha,), ())


def combine(x: Tensor, weights: Sequence[float], estimates: Sequence[Tensor]) -> Tensor:
    """Return x + sum_j w_j x0_j with the newest estimates, as a new tensor."""
    terms = zip(weights, estimates[-len(weights) :], strict=True)
    w, x0 = next(terms)
    total = torch.add(x, x0, alpha=w)
    for w, x0 in terms:
        total.add_(x0, alpha=w)
    return total
