"""Strata of log-SNR, from which a variational bound draws noise levels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.models import Gaussian
from scoresde.sde import SDE


class Drawn(NamedTuple):
    """A drawn term: the step from ``t`` to ``s``, and its weight.

    ``s`` is None in continuous time, where the term is a density in log-SNR.
    """

    s: float | Tensor | None
    t: float | Tensor
    weight: float | Tensor


class Strata(ABC):
    """The range of log-SNR between the end levels, cut into J strata.

    Attributes:
        sde: the forward process.
        edges: log-SNR at the edges, J + 1 of them, decreasing.
        control_below: log-SNR below which the control variate is used.
    """

    sde: SDE
    edges: list[float]
    control_below: float

    def __len__(self) -> int:
        return len(self.edges) - 1

    def log_snr(self, j: int, u: Tensor) -> Tensor:
        """Return log-SNR at the offsets ``u`` in [0, 1) of stratum j."""
        return self.edges[j] + (self.edges[j + 1] - self.edges[j]) * u

    @abstractmethod
    def draw(self, j: int, u: Tensor) -> Drawn:
        """Return the terms at the offsets ``u`` ``(B,)`` in [0, 1) of stratum j."""

    @abstractmethod
    def coefficient(self, s: float | Tensor | None, t: float | Tensor) -> Tensor:
        """Return the factor of |eps - eps_G|^2 in a step's control variate.

        The step is from t to s; eps_G is the noise of the exact model of the data's Gaussian.
        """

    @abstractmethod
    def expected(self, gaussian: Gaussian, z2: Tensor) -> Tensor:
        """Return the mean of the control variate in each stratum, ``(B, J)``.

        Args:
            gaussian: The Gaussian of the data's moments.
            z2: Squares ``(B, n)`` of x_0 - m in its eigenbasis.
        """


class ContinuousStrata(Strata):
    """Strata in continuous time (E12).

    The term is the density |eps - eps_theta|^2 / 2 in log-SNR.

    Args:
        sde: The forward process.
        first, last: log-SNR of the first and the last level.
        drawn: Levels drawn per item, two from each stratum.
        control_below: As in :class:`Strata`.
    """

    def __init__(self, sde: SDE, first: float, last: float, drawn: int, control_below: float) -> None:
        self.sde, self.control_below = sde, control_below
        self.edges = torch.linspace(first, last, drawn // 2 + 1, dtype=torch.float64).tolist()

    def draw(self, j: int, u: Tensor) -> Drawn:
        return Drawn(None, self.sde.time_of(self.log_snr(j, u)), self.edges[j] - self.edges[j + 1])

    def coefficient(self, s: float | Tensor | None, t: float | Tensor) -> Tensor:
        return 0.5 * (self.sde.log_snr(t) < self.control_below)

    def expected(self, gaussian: Gaussian, z2: Tensor) -> Tensor:
        edges = [min(edge, self.control_below) for edge in self.edges]
        values = torch.stack([gaussian.integrated_noise_error(math.exp(edge), z2) for edge in edges], 1)
        return -0.5 * values.diff(dim=1)


class DiscreteStrata(Strata):
    """Strata of the levels of a discrete process (P4).

    Each level is a stratum, or a stratum has several levels. The term of a level is spread evenly over its step in
    log-SNR. Levels are thus drawn in proportion to their steps.

    Args:
        sde: The forward process.
        times: Times of its levels.
        drawn: Levels drawn per item, two from each stratum. None: all levels, twice.
        v: P7's exponent of the steps' variance.
        control_below: As in :class:`Strata`.
    """

    def __init__(self, sde: SDE, times: Tensor, drawn: int | None, v: float, control_below: float) -> None:
        self.sde, self.v, self.control_below, self.times = sde, v, control_below, times
        self.log_snrs = sde.log_snr(times)
        self.steps = -self.log_snrs.diff()
        self.edges = self.log_snrs.tolist()
        self.all = drawn is None or len(times) == 1
        if drawn is not None and not self.all:
            first, last = self.edges[0], self.edges[-1]
            self.edges = torch.linspace(first, last, drawn // 2 + 1, dtype=torch.float64).tolist()

    def draw(self, j: int, u: Tensor) -> Drawn:
        if self.all:
            return Drawn(self.times[j].item(), self.times[j + 1].item(), 1.0)
        times, steps = self.times.to(u), self.steps.to(u)
        index = torch.searchsorted(-self.log_snrs.to(u), -self.log_snr(j, u), right=True) - 1
        index = index.clamp(0, len(steps) - 1)
        return Drawn(times[index], times[index + 1], (self.edges[j] - self.edges[j + 1]) / steps[index])

    def coefficient(self, s: float | Tensor | None, t: float | Tensor) -> Tensor:
        assert s is not None
        log_snr = self.sde.log_snr(t)
        weight = 0.5 * torch.expm1(self.sde.log_snr(s) - log_snr) * (log_snr < self.control_below)
        return weight * (self.sde.sigma(s) / self.sde.sigma(t)) ** (2 * self.v)

    def expected(self, gaussian: Gaussian, z2: Tensor) -> Tensor:
        if not len(self.steps):
            return z2.new_zeros(len(z2), 0)
        c = self.coefficient(self.times[:-1], self.times[1:]).tolist()
        snrs = self.log_snrs[1:].exp().tolist()
        terms = torch.stack([c[i] * gaussian.mean_noise_error(snrs[i], z2) for i in range(len(c))], 1)
        if self.all:
            return terms
        edges = torch.tensor(self.edges, dtype=torch.float64)
        low = torch.maximum(edges[1:, None], self.log_snrs[1:])  # the part of each stratum in each step
        overlap = (torch.minimum(edges[:-1, None], self.log_snrs[:-1]) - low).clamp(min=0)
        return terms @ (overlap / self.steps).T.to(terms)
