"""How a training draws the times of a batch.

A :class:`TimeSampling` is a setting: a proposal for t, with weights that make averages over the proposal averages over
uniform t. :meth:`TimeSampling.begin` returns the :class:`Draws` of one training, which may learn from its losses.

Symbols: snr = alpha^2/sigma^2, g^2 the squared diffusion coefficient, B the integral of the VP rate beta.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from numbers import Real
from typing import NamedTuple, cast

import torch
from torch import Tensor

from scoresde.checks import number, positive, whole
from scoresde.errors import ArgumentError, CheckpointError, UnknownNameError
from scoresde.random import Generators, rand, strata_offsets
from scoresde.sde import SDE
from scoresde.sde.grids import time_range
from scoresde.training.config import TimeSamplingName


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
    """The draws of one training; a subclass may learn from the losses."""

    def __init__(self, sampling: TimeSampling):
        self.sampling = sampling

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


@dataclass(frozen=True)
class LevelGrid:
    """The noise levels t_i = end i / count, of which first..last are drawn."""

    count: int
    end: float
    first: int
    last: int

    def time(self, i: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return t_i, in torch's default dtype or another."""
        return self.end * i.to(dtype or torch.get_default_dtype()) / self.count

    def index_of(self, t: Tensor) -> Tensor:
        """Return the i of t_i."""
        return (t * (self.count / self.end)).round().long()


@dataclass(frozen=True)
class Levels(TimeSampling):
    """Discrete noise levels, all equally likely.

    Averages over uniform t become averages over the levels. A DDPM or an NCSN has N levels i/N. On another process they
    are t_max i/count, i = 1..count.

    Args:
        count: Number of levels. None: that of the process, or 1000 if it is continuous.
        low_discrepancy: See :class:`TimeSampling`.

    Raises:
        ArgumentError: a count that is not a positive integer; when drawing, a count that differs from the process's,
            or no level between the ends.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            object.__setattr__(self, "count", whole("count", self.count))

    def grid(self, sde: SDE, t_min: float | None = None, t_max: float | None = None) -> LevelGrid:
        """Return the levels of the process between the ends; None sets no bound."""
        own = sde.times
        if own is not None and self.count not in (None, len(own)):
            raise ArgumentError("count", self.count, f"None, or {len(own)}: the levels of {sde!r}")
        end, count = (time_ends(sde, t_min, t_max).t_max, self.count or 1000) if own is None else (1.0, len(own))
        first = 1 if t_min is None else max(1, math.ceil(t_min / end * count - 1e-6))
        last = count if t_max is None else min(count, math.floor(t_max / end * count + 1e-6))
        if first > last:
            raise ArgumentError("t_min, t_max", (t_min, t_max), f"ends with one of {count} levels between them")
        return LevelGrid(count, end, first, last)

    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        grid = self.grid(sde, t_min, t_max)
        size = grid.last - grid.first + 1
        i = grid.first + (self.uniform(n, generator, device) * size).long().clamp(max=size - 1)
        t = grid.time(i)
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class LossAware(Levels):
    """Discrete noise levels i in proportion to sqrt(E[L_i^2]) (P8).

    The mean is over the last losses of a level. This proposal has the least variance for sum_i L_i. All levels are
    equally likely until each has its ``history`` losses. A share of the draws stays uniform, so that every level is
    drawn again. What it learns is in :class:`LossAwareDraws`; the settings alone draw as :class:`Levels`.

    Args:
        count: See :class:`Levels`.
        history: Number of losses kept for each level, default 10.
        uniform_share: Share of uniform draws, in (0, 1], default 0.001.
        low_discrepancy: See :class:`TimeSampling`.

    References: Nichol & Dhariwal 2021, eq. 18.
    """

    history: int = 10
    uniform_share: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "history", whole("history", self.history))
        if not 0 < number("uniform_share", self.uniform_share) <= 1:
            raise ArgumentError("uniform_share", self.uniform_share, "a number in (0, 1]")
        object.__setattr__(self, "uniform_share", float(self.uniform_share))

    def begin(self) -> LossAwareDraws:
        """Return the draws of one training, which learn from its losses."""
        return LossAwareDraws(self)


class LossAwareDraws(Draws):
    """The draws of :class:`LossAware`, with what they learned.

    This is the squares of each level's last losses. Losses that are not finite are left out. Everything happens on the
    device of the losses, without a host sync.
    """

    sampling: LossAware

    def __init__(self, sampling: LossAware):
        super().__init__(sampling)
        self._squares: Tensor | None = None  # (levels + 1, history): a ring for each level; the last row is for waste
        self._seen: Tensor | None = None  # (levels + 1,)
        self._grid: LevelGrid | None = None

    def _memory(self, grid: LevelGrid, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
        """Return the squares and the counts, which the first call makes."""
        if self._squares is None or self._seen is None:
            self._squares = torch.zeros(grid.count + 1, self.sampling.history, device=device)
            self._seen = torch.zeros(grid.count + 1, dtype=torch.long, device=device)
        if len(self._squares) != grid.count + 1:
            raise ArgumentError("count", grid.count, f"{len(self._squares) - 1}, the levels whose losses are known")
        self._grid, self._squares, self._seen = grid, self._squares.to(device), self._seen.to(device)
        return self._squares, self._seen

    def probabilities(self, grid: LevelGrid, device: torch.device | str | None) -> Tensor:
        """Return the probability of each level first..last of the grid."""
        squares, seen = self._memory(grid, device)
        rows = slice(grid.first - 1, grid.last)
        size = grid.last - grid.first + 1
        root = squares[rows].mean(1).sqrt()
        proportional = root / root.sum().clamp(min=torch.finfo(root.dtype).tiny)
        warm = (seen[rows] >= self.sampling.history).all() & (root.sum() > 0)
        share = torch.where(warm, self.sampling.uniform_share, 1.0)
        return share / size + (1 - share) * proportional

    def draw(
        self,
        n: int,
        sde: SDE,
        t_min: float | None,
        t_max: float | None,
        generator: Generators,
        device: torch.device | str | None,
    ) -> tuple[Tensor, Tensor]:
        grid = self.sampling.grid(sde, t_min, t_max)
        p = self.probabilities(grid, device)
        u = self.sampling.uniform(n, generator, device)
        j = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
        return grid.time(grid.first + j), 1 / (len(p) * p[j])

    @torch.no_grad()
    def observe(self, t: Tensor, loss: Tensor) -> None:
        if self._grid is None or self._squares is None or self._seen is None:
            raise ArgumentError("t", "times of no draw", "times that this object drew")
        squares = loss.to(self._squares.dtype).square()
        waste = self._grid.count
        level = torch.where(squares.isfinite(), self._grid.index_of(t) - 1, waste)
        level, order = level.sort(stable=True)  # the losses of a level one after another, in the order of the batch
        first, past = torch.searchsorted(level, level), torch.searchsorted(level, level, right=True)
        rank = torch.arange(len(level), device=level.device) - first
        row = torch.where(past - first - rank <= self.sampling.history, level, waste)  # of many, the last ones
        self._squares[row, (self._seen[level] + rank) % self.sampling.history] = squares[order]
        self._seen.index_add_(0, level, torch.ones_like(level))

    def state_dict(self) -> dict[str, Tensor]:
        if self._squares is None or self._seen is None:
            return {}
        return {"squares": self._squares.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            self._squares = self._seen = None
            return
        history = self.sampling.history
        if set(state) != {"squares", "seen"} or state["squares"].shape != (len(state["seen"]), history):
            raise CheckpointError("state", sorted(state), f"the squares and counts of {history} losses a level")
        self._squares, self._seen = state["squares"].clone(), state["seen"].clone()


TIME_SAMPLINGS: dict[TimeSamplingName, Callable[[], TimeSampling]] = {
    "uniform": lambda: UniformTime(low_discrepancy=False),
    "low-discrepancy": UniformTime,
    "log-snr": UniformLogSNR,
    "log-normal": LogNormal,
    "levels": Levels,
    "loss-aware": LossAware,
}


def resolve_time_sampling(name: str | float | TimeSampling) -> TimeSampling:
    """Return a time sampling: of that name, itself, or one fixed time.

    Raises:
        UnknownNameError: an unknown name.
        ArgumentError: a time outside [0, 1].
    """
    if isinstance(name, TimeSampling):
        return name
    if isinstance(name, Real) and not isinstance(name, bool):
        return FixedTime(float(name))
    if name not in TIME_SAMPLINGS:
        raise UnknownNameError("time_sampling", name, TIME_SAMPLINGS)
    return TIME_SAMPLINGS[name]()
