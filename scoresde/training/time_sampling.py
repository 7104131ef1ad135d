"""How a training draws times, and the laws of continuous time.

A :class:`TimeSampling` is a setting: a proposal for t, with weights that make averages over the proposal averages over
uniform t. :meth:`TimeSampling.begin` returns the :class:`Draws` of one training, which may learn from its losses.

:mod:`scoresde.training.discrete_times` draws from discrete noise levels, and
:mod:`scoresde.training.named_time_samplings` finds a sampling by its name.

Symbols: snr = alpha^2/sigma^2, g^2 the squared diffusion coefficient, B the integral of the VP rate beta.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import number, positive
from scoresde.errors import ArgumentError, CheckpointError
from scoresde.random import Generators, rand, strata_offsets
from scoresde.sde import SDE
from scoresde.sde.grids import time_range


def snr_rate(sde: SDE, t: Tensor) -> Tensor:
    """Return -d log_snr/dt = g^2/sigma^2, positive."""
    return 2 * (sde.log_sigma_rate(t) - sde.log_alpha_rate(t))


def refuse_state(state: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError unless the state is empty."""
    if state:
        raise CheckpointError("state", sorted(state), "empty, as nothing here learns from the losses")


class Ends(NamedTuple):
    """The ends between which a sampling draws, and the log-SNR there."""

    t_min: float
    t_max: float
    log_snr_min: float
    log_snr_max: float


@lru_cache(maxsize=32)
def time_ends(sde: SDE, t_min: float | None, t_max: float | None) -> Ends:
    """Return the ends, None being the default of the SDE."""
    ends = time_range(sde, t_min, t_max)
    high, low = sde.log_snr(torch.tensor(ends, dtype=torch.float64)).tolist()
    return Ends(*ends, low, high)


@dataclass(frozen=True)
class TimeSampling(ABC):
    """A proposal for t on [t_min, t_max], with weights.

    The weights make averages over the proposal averages over uniform t.

    Args:
        low_discrepancy: Spread a batch evenly, u_i = (u + i/B) mod 1 with one uniform u, default True. Each t is as
            likely as before, and the batch's mean varies much less. With a list of generators, one a sample, every
            sample draws its own number and nothing is spread.

    References: Kingma et al. 2021, appendix I.1 (low discrepancy).
    """

    _: KW_ONLY
    low_discrepancy: bool = True

    def uniform(self, n: int, generator: Generators, device: torch.device | str | None) -> Tensor:
        """Draw ``(n,)`` uniform numbers in [0, 1)."""
        if not self.low_discrepancy or isinstance(generator, list | tuple):
            return rand((n,), generator, device)
        one = cast("torch.Generator | None", generator)
        u = torch.rand(1, generator=one, device=device if one is None else one.device).to(device)
        return (u + strata_offsets(n, one, device)) % 1

    @abstractmethod
    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``(t, weight)``, both ``(n,)``.

        E[weight h(t)] is the mean of h over t ~ U(t_min, t_max). ``t_min`` and ``t_max`` may be None, the
        defaults of the SDE. The generator may be a list, one a sample.
        """

    def begin(self) -> Draws:
        """Return the draws of one training."""
        return Draws(self)


class Draws:
    """The draws of one training; a subclass may learn from the losses.

    Attributes:
        sampling: the settings.
        deferred: whether an objective leaves :meth:`observe` to its caller, who knows when a batch is complete.
    """

    def __init__(self, sampling: TimeSampling):
        self.sampling, self.deferred = sampling, False

    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``(t, weight)`` as :meth:`TimeSampling.draw` does."""
        return self.sampling.draw(n, sde, t_min, t_max, generator, device)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Learn from the losses ``(n,)`` at t ``(n,)``, without their weights.

        Most samplings learn nothing.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has been learned, for an exact resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a :meth:`state_dict`."""
        refuse_state(state)


@checked
@dataclass(frozen=True)
class UniformTime(TimeSampling):
    """t ~ U(t_min, t_max) (E6)."""

    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        ends = time_ends(sde, t_min, t_max)
        t = ends.t_min + (ends.t_max - ends.t_min) * self.uniform(n, generator, device)
        return t, torch.ones_like(t)


@checked
@dataclass(frozen=True)
class FixedTime(TimeSampling):
    """One noise level: every t is the given one.

    Args:
        t: The time, in [0, 1].
        low_discrepancy: Without effect here.
    """

    t: float

    def __post_init__(self) -> None:
        if not 0 <= number("t", self.t) <= 1:
            raise ArgumentError("t", self.t, "a time in [0, 1] (data at 0)")
        object.__setattr__(self, "t", float(self.t))

    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        t = torch.full((n,), self.t, device=device)
        return t, torch.ones_like(t)


@checked
@dataclass(frozen=True)
class UniformLogSNR(TimeSampling):
    """log-SNR uniform between its values at the ends.

    The density of t is in proportion to g^2/sigma^2 = -d log_snr/dt. This is the importance sampling of the likelihood
    weighting in closed form: every t contributes with the same weight. For VP, e^B - 1 = 1/snr, so that
    B(t) = log(1 + e^v (e^{B(t_min)} - 1)) with v uniform. For the geometric VE, t itself is uniform.

    Raises:
        ArgumentError: when drawing, ends at which the log-SNR is infinite.

    References: Song et al. 2021b; Kingma et al. 2021.
    """

    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        ends = time_ends(sde, t_min, t_max)
        low, high = ends.log_snr_min, ends.log_snr_max
        if not math.isfinite(high - low):
            raise ArgumentError("t_min, t_max", ends[:2], f"times at which the log-SNR of {sde!r} is finite")
        t = sde.time_of(low + (high - low) * self.uniform(n, generator, device)).clamp(ends.t_min, ends.t_max)
        return t, (high - low) / ((ends.t_max - ends.t_min) * snr_rate(sde, t))


@checked
@dataclass(frozen=True)
class LogNormal(TimeSampling):
    """log(sigma/alpha) ~ N(P_mean, P_std^2), truncated at the ends.

    Args:
        P_mean: Mean of log(sigma/alpha), default -1.2.
        P_std: Standard deviation of log(sigma/alpha), positive, default 1.2.
        low_discrepancy: See :class:`TimeSampling`.

    References: Karras et al. 2022, table 1.
    """

    P_mean: float = -1.2
    P_std: float = 1.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "P_mean", number("P_mean", self.P_mean))
        object.__setattr__(self, "P_std", positive("P_std", self.P_std))

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the density of t without truncation.

        It is N(log(sigma/alpha); P_mean, P_std^2) |d log(sigma/alpha)/dt|.
        """
        z = (-sde.log_snr(t) / 2 - self.P_mean) / self.P_std
        return torch.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * self.P_std) * (snr_rate(sde, t) / 2)

    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        ends = time_ends(sde, t_min, t_max)
        scaled = ((-log_snr / 2 - self.P_mean) / self.P_std for log_snr in (ends.log_snr_max, ends.log_snr_min))
        low, high = (math.erfc(-z / math.sqrt(2)) / 2 for z in scaled)
        u = low + (high - low) * self.uniform(n, generator, device)
        one = 1 - torch.finfo(u.dtype).eps / 2
        z = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-one, one))
        t = sde.time_of(-2 * (self.P_mean + self.P_std * z)).clamp(ends.t_min, ends.t_max)
        return t, (high - low) / ((ends.t_max - ends.t_min) * self.density(sde, t))
