"""Noise schedules, functions of time that turn a family into a process.

A :class:`RateSchedule` is the integrated rate of the variance-preserving families, a :class:`NoiseSchedule` the
sigma(t) of the variance-exploding ones. Each has its derivative and its inverse, in forms that are accurate in float32
and at both ends of [0, 1]. Schedules are immutable settings, equal if their arguments are.

==========  ==================================================================================================
t           time in [0, 1], the data at 0
beta(t)     rate of a variance-preserving process
B(t)        integrated rate, int_0^t beta(s) ds; alpha(t) = exp(-B(t)/2)
sigma(t)    standard deviation of the noise
s           offset of the cosine schedule, with speed = pi / (2 (1 + s)) and theta_0 = speed * s
N, L        number of levels of a DDPM, of an NCSN
==========  ==================================================================================================
"""

from __future__ import annotations

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import positive
from scoresde.errors import ArgumentError
from scoresde.sde.tables import Piecewise, Table


def invert_monotone(function: Callable[[Tensor], Tensor], value: Tensor, iterations: int = 100) -> Tensor:
    """Solve function(t) = value for t in [0, 1] by bisection.

    Each step halves the interval in log t, so that times near 0 keep their relative accuracy.

    Args:
        function: Increasing function of a tensor of times.
        value: Values of any shape. One outside the function's range gives the nearest end.
        iterations: Number of bisections, default 100.

    Returns:
        Times of the shape of ``value``.
    """
    low = torch.full_like(value, math.log(torch.finfo(value.dtype).tiny))
    high = torch.zeros_like(value)
    for _ in range(iterations):
        middle = (low + high) / 2
        below = function(middle.exp()) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(value <= function(torch.zeros_like(value)), 0.0, ((low + high) / 2).exp())


def _set(settings: object, **values: object) -> None:
    """Set attributes of a frozen dataclass, in its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


class RateSchedule(ABC):
    """B(t) = int_0^t beta(s) ds of the families with alpha = exp(-B/2)."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """Return B(t)."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """Return beta(t) = dB/dt."""

    def inverse(self, integral: Tensor) -> Tensor:
        """Return the times at which B has the given values.

        The base class bisects; a schedule with a closed form overrides this.
        """
        return invert_monotone(self.integral, integral)


@dataclass(frozen=True)
class LinearRate(RateSchedule):
    """beta(t) = beta_min + t (beta_max - beta_min).

    Args:
        beta_min: beta(0), positive.
        beta_max: beta(1), at least ``beta_min``.

    Raises:
        ArgumentError: A rate that is not positive, or ``beta_max`` below ``beta_min``.

    References: Song et al. 2021, eq. 32.
    """

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        _set(self, beta_min=positive("beta_min", self.beta_min), beta_max=positive("beta_max", self.beta_max))
        if self.beta_max < self.beta_min:
            raise ArgumentError("beta_max", self.beta_max, f"at least beta_min = {self.beta_min}")

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def rate(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def inverse(self, integral: Tensor) -> Tensor:
        integral = integral.clamp(max=0.5 * (self.beta_min + self.beta_max))
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class CosineRate(RateSchedule):
    """The cosine schedule (P10) in continuous time.

        alpha(t) = cos(theta_0 + u) / cos(theta_0),  u = speed t

    With 1 - alpha = 2 sin^2(u/2) + tan(theta_0) sin(u), neither B nor its inverse cancels near t = 0. At t = 1 alpha
    is 0, and B and beta are infinite.

    Args:
        s: Offset, positive, default 0.008.

    Raises:
        ArgumentError: ``s`` is not positive.

    References: Nichol & Dhariwal 2021, eq. 17.
    """

    s: float = 0.008
    speed: float = field(init=False, repr=False, compare=False)
    theta: float = field(init=False, repr=False, compare=False)
    tan: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        s = positive("s", self.s)
        speed = math.pi / (2 * (1 + s))
        _set(self, s=s, speed=speed, theta=speed * s, tan=math.tan(speed * s))

    def integral(self, t: Tensor) -> Tensor:
        u = t * self.speed
        one_minus_alpha = 2 * torch.sin(u / 2) ** 2 + self.tan * torch.sin(u)
        return torch.where(t == 1, math.inf, -2 * torch.log1p(-one_minus_alpha.clamp(max=1)))

    def rate(self, t: Tensor) -> Tensor:
        return torch.where(t == 1, math.inf, 2 * self.speed * torch.tan(self.theta + t * self.speed))

    def inverse(self, integral: Tensor) -> Tensor:
        one_minus_alpha = -torch.expm1(-integral / 2)
        discriminant = (self.tan**2 + one_minus_alpha * (2 - one_minus_alpha)).sqrt()
        return 2 * torch.atan(one_minus_alpha / (self.tan + discriminant)) / self.speed


@dataclass(frozen=True)
class PiecewiseRate(RateSchedule):
    """beta(t) = -N log(1 - beta_i) on ((i-1)/N, i/N]: a discrete DDPM (E4).

    If the last step is infinite (beta_N = 1, zero terminal SNR), alpha^2 falls linearly to 0 in the last piece:

        B(t) = B((N-1)/N) - log(1 - f),  f = N t - (N - 1)

    Args:
        steps: B(i/N) - B((i-1)/N) = -log(1 - beta_i), i = 1..N. The last one may be infinite.
    """

    steps: Sequence[float]
    b: Piecewise = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = tuple(self.steps)
        finite = [*steps[:-1], 1.0 if math.isinf(steps[-1]) else steps[-1]]
        values = torch.tensor(finite, dtype=torch.float64)
        _set(self, steps=steps, b=Piecewise(torch.cat([values.new_zeros(1), values.cumsum(0)])))

    @property
    def ends(self) -> bool:
        """Whether alpha(1) = 0."""
        return math.isinf(self.steps[-1])

    @property
    def knots(self) -> Tensor:
        """B(i/N), i = 0..N, in float64."""
        return torch.tensor([0.0, *self.steps], dtype=torch.float64).cumsum(0)

    def _in_last(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return which times are in the last piece, and f there."""
        index, fraction = self.b.piece(t)
        return index == self.b.pieces - 1, fraction.clamp(0, 1)

    def integral(self, t: Tensor) -> Tensor:
        value = self.b.value(t)
        if not self.ends:
            return value
        last, f = self._in_last(t)
        return torch.where(last, self.b.knots.like(t)[-2] - torch.log1p(-f), value)

    def rate(self, t: Tensor) -> Tensor:
        slope = self.b.slope(t)
        if not self.ends:
            return slope
        last, f = self._in_last(t)
        return torch.where(last, self.b.pieces / (1 - f), slope)

    def inverse(self, integral: Tensor) -> Tensor:
        if not self.ends:
            return self.b.inverse(integral)
        start, N = self.b.knots.like(integral)[-2], self.b.pieces
        f = -torch.expm1(start - integral.clamp(min=start))
        return torch.where(integral > start, (N - 1 + f) / N, self.b.inverse(integral.clamp(max=start)))


@dataclass(frozen=True)
class AnyRate(RateSchedule):
    """Any positive, smooth rate beta(t).

    Gauss-Legendre quadrature with 64 nodes on [0, t] gives B(t).

    Args:
        beta: Function of a tensor of times of any shape, which returns positive rates of that shape. To be pickled it
            must be importable: a function at the top level of a module, not a lambda.

    Raises:
        ArgumentError: Values that are not positive or have another shape; on pickling, a function that is not
            importable.
    """

    beta: Callable[[Tensor], Tensor]
    nodes: Table = field(init=False, repr=False, compare=False)
    weights: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        nodes, weights = np.polynomial.legendre.leggauss(64)
        _set(self, nodes=Table(torch.from_numpy((nodes + 1) / 2)), weights=Table(torch.from_numpy(weights / 2)))
        probe = self.beta(torch.linspace(0, 1, 101, dtype=torch.float64))
        if not (isinstance(probe, Tensor) and probe.shape == (101,) and bool((probe > 0).all())):
            expected = "a function of t with positive values of t's shape"
            raise ArgumentError("beta", "values that are not positive, or of another shape", expected)

    def integral(self, t: Tensor) -> Tensor:
        points = t.unsqueeze(-1) * self.nodes.like(t)
        return t * (self.beta(points) * self.weights.like(t)).sum(-1)

    def rate(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def __deepcopy__(self, memo: dict[int, Any]) -> AnyRate:
        return self  # immutable; and a copy, unlike a pickle, may hold any function

    def __reduce__(self) -> tuple[object, ...]:
        try:
            pickle.dumps(self.beta)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            expected = "a function at the top level of a module, to be pickled"
            raise ArgumentError("beta", repr(self.beta), expected) from error
        return type(self), (self.beta,)


class NoiseSchedule(ABC):
    """sigma(t) of the variance-exploding families.

    The methods give its logarithm and the rate of its square, which stay accurate where sigma is tiny.
    """

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """Return log sigma(t)."""

    @abstractmethod
    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """Return d log sigma / dt."""

    @abstractmethod
    def variance_rate(self, t: Tensor) -> Tensor:
        """Return d sigma^2 / dt, finite where sigma = 0."""

    @abstractmethod
    def inverse(self, log_sigma: Tensor) -> Tensor:
        """Return the times at which log sigma has the given values."""


@dataclass(frozen=True)
class GeometricNoise(NoiseSchedule):
    """sigma(t) = sigma_min (sigma_max/sigma_min)^t.

    Args:
        sigma_min: sigma(0), positive, in units of the data.
        sigma_max: sigma(1), above ``sigma_min``.

    Raises:
        ArgumentError: A sigma that is not positive, or ``sigma_max`` not above ``sigma_min``.

    References: Song et al. 2021, eq. 30.
    """

    sigma_min: float
    sigma_max: float
    log_min: float = field(init=False, repr=False, compare=False)
    log_ratio: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        low, high = positive("sigma_min", self.sigma_min), positive("sigma_max", self.sigma_max)
        if high <= low:
            raise ArgumentError("sigma_max", self.sigma_max, f"above sigma_min = {self.sigma_min}")
        _set(self, sigma_min=low, sigma_max=high, log_min=math.log(low), log_ratio=math.log(high / low))

    def log_sigma(self, t: Tensor) -> Tensor:
        return self.log_min + t * self.log_ratio

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.log_ratio)

    def variance_rate(self, t: Tensor) -> Tensor:
        return 2 * self.log_ratio * torch.exp(2 * self.log_sigma(t))

    def inverse(self, log_sigma: Tensor) -> Tensor:
        return (log_sigma - self.log_min) / self.log_ratio


@dataclass(frozen=True)
class LinearNoise(NoiseSchedule):
    """sigma(t) = sigma_max t.

    Args:
        sigma_max: sigma(1), positive, in units of the data.

    Raises:
        ArgumentError: ``sigma_max`` is not positive.

    References: Karras et al. 2022, where sigma itself is the time.
    """

    sigma_max: float

    def __post_init__(self) -> None:
        _set(self, sigma_max=positive("sigma_max", self.sigma_max))

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t) + math.log(self.sigma_max)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        return 1 / t

    def variance_rate(self, t: Tensor) -> Tensor:
        return 2 * self.sigma_max**2 * t

    def inverse(self, log_sigma: Tensor) -> Tensor:
        return torch.exp(log_sigma - math.log(self.sigma_max))


@dataclass(frozen=True)
class PiecewiseNoise(NoiseSchedule):
    """sigma^2 linear between 0 and the levels at i/L: a discrete NCSN (E3).

    Args:
        sigmas: Increasing, positive noise levels, i = 1..L.
    """

    sigmas: Sequence[float]
    variance: Piecewise = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sigmas = tuple(self.sigmas)
        values = torch.tensor(sigmas, dtype=torch.float64)
        _set(self, sigmas=sigmas, variance=Piecewise(torch.cat([values.new_zeros(1), values**2])))

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(self.variance.value(t))

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        return self.variance.slope(t) / (2 * self.variance.value(t))

    def variance_rate(self, t: Tensor) -> Tensor:
        return self.variance.slope(t)

    def inverse(self, log_sigma: Tensor) -> Tensor:
        return self.variance.inverse(torch.exp(2 * log_sigma))
