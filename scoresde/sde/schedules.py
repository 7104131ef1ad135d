"""Schedules: the one scalar function of time that turns a family into a process.

A :class:`RateSchedule` is the integrated rate B(t) = int_0^t beta of the variance-preserving families; a
:class:`NoiseSchedule` is sigma(t) of the variance-exploding ones. Each knows its derivative and its inverse, in forms
that stay accurate in float32 and at both ends of [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import positive
from scoresde.errors import ArgumentError


class Table:
    """A float64 table on the CPU, cast once to each device and dtype that asks for it."""

    def __init__(self, values: Tensor):
        self.values = values
        self._cast: dict[tuple, Tensor] = {}

    def like(self, t: Tensor) -> Tensor:
        key = (t.device, t.dtype)
        if key not in self._cast:
            self._cast[key] = self.values.to(device=t.device, dtype=t.dtype)
        return self._cast[key]


class Piecewise:
    """The piecewise-linear function through (i/N, knots[i]), i = 0..N, its slope and its inverse (knots increasing)."""

    def __init__(self, knots: Tensor):
        self.pieces = len(knots) - 1
        self.knots, self.steps = Table(knots), Table(knots.diff())

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = t * self.pieces
        # (i/N) N may round to just above i: a knot, to a few last digits, belongs to the piece on its left
        index = (torch.ceil(position * (1 - 4 * torch.finfo(t.dtype).eps)) - 1).clamp(0, self.pieces - 1).long()
        return index, position - index

    def value(self, t: Tensor) -> Tensor:
        index, fraction = self._piece(t)
        knots = self.knots.like(t)
        return torch.where(fraction >= 1, knots[index + 1], knots[index] + fraction * self.steps.like(t)[index])

    def slope(self, t: Tensor) -> Tensor:
        return self.pieces * self.steps.like(t)[self._piece(t)[0]]

    def inverse(self, value: Tensor) -> Tensor:
        knots = self.knots.like(value)
        index = (torch.searchsorted(knots, value.contiguous()) - 1).clamp(0, self.pieces - 1)
        return (index + (value - knots[index]) / self.steps.like(value)[index]) / self.pieces


def invert_monotone(function: Callable[[Tensor], Tensor], value: Tensor, iterations: int = 100) -> Tensor:
    """t in [0, 1] with function(t) = value, for an increasing function, by bisection (values outside are clamped).

    The interval is halved in log t, so that times near 0 keep their relative accuracy.
    """
    low = torch.full_like(value, math.log(torch.finfo(value.dtype).tiny))
    high = torch.zeros_like(value)
    for _ in range(iterations):
        middle = (low + high) / 2
        below = function(middle.exp()) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(value <= function(torch.zeros_like(value)), 0.0, ((low + high) / 2).exp())


class RateSchedule(ABC):
    """B(t) = int_0^t beta(s) ds of the families in which B alone fixes alpha = exp(-B/2)."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """beta(t) = dB/dt."""

    def inverse(self, integral: Tensor) -> Tensor:
        """The time at which B has the given value (by bisection, unless the schedule has a closed form)."""
        return invert_monotone(self.integral, integral)


class LinearRate(RateSchedule):
    """beta(t) = beta_min + t (beta_max - beta_min)  (Song et al. 2021, eq. 32)."""

    def __init__(self, beta_min: float, beta_max: float):
        self.beta_min, self.beta_max = positive("beta_min", beta_min), positive("beta_max", beta_max)
        if self.beta_max < self.beta_min:
            raise ArgumentError("beta_max", beta_max, f"at least beta_min = {beta_min}")

    def integral(self, t):
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def rate(self, t):
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def inverse(self, integral):
        integral = integral.clamp(max=0.5 * (self.beta_min + self.beta_max))
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)


class CosineRate(RateSchedule):
    """alpha(t) = cos(theta_0 + u) / cos(theta_0), u = pi t / (2 (1 + s)), theta_0 = pi s / (2 (1 + s)).

    P10, cosine (Nichol & Dhariwal 2021, eq. 17) in continuous time. With 1 - alpha = 2 sin^2(u/2) + tan(theta_0) sin(u)
    neither B nor its inverse cancels near t = 0. At t = 1 alpha is 0: B and beta are infinite there.
    """

    def __init__(self, s: float = 0.008):
        self.s = positive("s", s)
        self.speed = math.pi / (2 * (1 + self.s))
        self.theta = self.speed * self.s
        self.tan = math.tan(self.theta)

    def integral(self, t):
        u = t * self.speed
        one_minus_alpha = 2 * torch.sin(u / 2) ** 2 + self.tan * torch.sin(u)
        return torch.where(t == 1, math.inf, -2 * torch.log1p(-one_minus_alpha.clamp(max=1)))

    def rate(self, t):
        return torch.where(t == 1, math.inf, 2 * self.speed * torch.tan(self.theta + t * self.speed))

    def inverse(self, integral):
        one_minus_alpha = -torch.expm1(-integral / 2)
        discriminant = (self.tan**2 + one_minus_alpha * (2 - one_minus_alpha)).sqrt()
        return 2 * torch.atan(one_minus_alpha / (self.tan + discriminant)) / self.speed


class PiecewiseRate(RateSchedule):
    """Piecewise-constant beta(t) = -N log(1 - beta_i) on ((i-1)/N, i/N]: the schedule that IS a discrete DDPM (E4)."""

    def __init__(self, steps: Tensor):
        """``steps``: B(i/N) - B((i-1)/N) = -log(1 - beta_i), float64 ``(N,)``."""
        self.b = Piecewise(torch.cat([steps.new_zeros(1), steps.cumsum(0)]))

    def integral(self, t):
        return self.b.value(t)

    def rate(self, t):
        return self.b.slope(t)

    def inverse(self, integral):
        return self.b.inverse(integral)


class AnyRate(RateSchedule):
    """Any positive beta(t) given as a function of a tensor; B by Gauss-Legendre quadrature on [0, t] (64 nodes)."""

    def __init__(self, beta: Callable[[Tensor], Tensor]):
        self.beta = beta
        nodes, weights = np.polynomial.legendre.leggauss(64)
        self.nodes = Table(torch.from_numpy((nodes + 1) / 2))
        self.weights = Table(torch.from_numpy(weights / 2))
        probe = beta(torch.linspace(0, 1, 101, dtype=torch.float64))
        if not (isinstance(probe, Tensor) and probe.shape == (101,) and bool((probe > 0).all())):
            raise ArgumentError("beta", "values that are not positive, or of another shape", "beta(t) > 0 of t's shape")

    def integral(self, t):
        points = t.unsqueeze(-1) * self.nodes.like(t)
        return t * (self.beta(points) * self.weights.like(t)).sum(-1)

    def rate(self, t):
        return self.beta(t)


class NoiseSchedule(ABC):
    """sigma(t) of a variance-exploding process, through its logarithm and the rate of its square."""

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """log sigma(t)."""

    @abstractmethod
    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """d log sigma / dt."""

    @abstractmethod
    def variance_rate(self, t: Tensor) -> Tensor:
        """d sigma^2 / dt, finite where sigma = 0."""

    @abstractmethod
    def inverse(self, log_sigma: Tensor) -> Tensor:
        """The time at which log sigma has the given value."""


class GeometricNoise(NoiseSchedule):
    """sigma(t) = sigma_min (sigma_max/sigma_min)^t  (Song et al. 2021, eq. 30)."""

    def __init__(self, sigma_min: float, sigma_max: float):
        self.sigma_min, self.sigma_max = positive("sigma_min", sigma_min), positive("sigma_max", sigma_max)
        if self.sigma_max <= self.sigma_min:
            raise ArgumentError("sigma_max", sigma_max, f"more than sigma_min = {sigma_min}")
        self.log_min, self.log_ratio = math.log(self.sigma_min), math.log(self.sigma_max / self.sigma_min)

    def log_sigma(self, t):
        return self.log_min + t * self.log_ratio

    def log_sigma_rate(self, t):
        return torch.full_like(t, self.log_ratio)

    def variance_rate(self, t):
        return 2 * self.log_ratio * torch.exp(2 * self.log_sigma(t))

    def inverse(self, log_sigma):
        return (log_sigma - self.log_min) / self.log_ratio


class LinearNoise(NoiseSchedule):
    """sigma(t) = sigma_max t  (Karras et al. 2022: sigma is the time, here scaled to [0, 1])."""

    def __init__(self, sigma_max: float):
        self.sigma_max = positive("sigma_max", sigma_max)

    def log_sigma(self, t):
        return torch.log(t) + math.log(self.sigma_max)

    def log_sigma_rate(self, t):
        return 1 / t

    def variance_rate(self, t):
        return 2 * self.sigma_max**2 * t

    def inverse(self, log_sigma):
        return torch.exp(log_sigma - math.log(self.sigma_max))


class PiecewiseNoise(NoiseSchedule):
    """sigma^2 linear between sigma_0 = 0 and the levels at i/L: the schedule that IS a discrete NCSN (E3)."""

    def __init__(self, sigmas: Tensor):
        """``sigmas``: increasing levels, float64 ``(L,)``."""
        self.variance = Piecewise(torch.cat([sigmas.new_zeros(1), sigmas**2]))

    def log_sigma(self, t):
        return 0.5 * torch.log(self.variance.value(t))

    def log_sigma_rate(self, t):
        return self.variance.slope(t) / (2 * self.variance.value(t))

    def variance_rate(self, t):
        return self.variance.slope(t)

    def inverse(self, log_sigma):
        return self.variance.inverse(torch.exp(2 * log_sigma))
