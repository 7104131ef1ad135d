"""How the times of a training batch are drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError, CheckpointError, UnknownNameError
from scoresde.random import rand, strata_offsets
from scoresde.sde import SDE
from scoresde.sde.grids import time_range


def snr_rate(sde: SDE, t: Tensor) -> Tensor:
    """-d log_snr/dt = g^2/sigma^2 = 2 (d log sigma/dt - d log alpha/dt), positive."""
    return 2 * (sde.log_sigma_rate(t) - sde.log_alpha_rate(t))


def refuse_state(state: Mapping[str, Tensor]) -> None:
    """A CheckpointError for a state given to what learns nothing; an empty one is right."""
    if state:
        raise CheckpointError("state", sorted(state), "no state: nothing here learns from the losses")


class Ends(NamedTuple):
    """The times between which a sampling draws, and the log-SNR there, as Python floats."""

    t_min: float
    t_max: float
    log_snr_min: float
    log_snr_max: float


class TimeSampling(ABC):
    """A proposal for t on [t_min, t_max], with the weight that makes averages over it averages over uniform t.

    Args:
        low_discrepancy: spread a batch evenly, u_i = (u + i/B) mod 1 with one uniform u: each t is as likely as before,
            the batch's mean varies much less (Kingma et al. 2021, appendix I.1). With a list of generators, one a
            sample, each sample's number is its own and nothing is spread.
    """

    _known: tuple | None = None  # the process and ends last asked for, and what was found

    def __init__(self, low_discrepancy: bool = True):
        self.low_discrepancy = low_discrepancy

    def uniform(self, n: int, generator, device) -> Tensor:
        """``(n,)`` uniform numbers in [0, 1)."""
        if not self.low_discrepancy or isinstance(generator, (list, tuple)):
            return rand((n,), generator, device)
        u = torch.rand(1, generator=generator, device=device if generator is None else generator.device).to(device)
        return (u + strata_offsets(n, generator, device)) % 1

    def ends(self, sde: SDE, t_min: float | None, t_max: float | None) -> Ends:
        """The ends, with the defaults of the SDE (:func:`~scoresde.sde.grids.time_range`) for what is None."""
        if self._known is None or self._known[0] is not sde or self._known[1] != (t_min, t_max):
            ends = time_range(sde, t_min, t_max)
            high, low = sde.log_snr(torch.tensor(ends, dtype=torch.float64)).tolist()
            self._known = sde, (t_min, t_max), Ends(*ends, low, high)
        return self._known[2]

    @abstractmethod
    def draw(
        self, n: int, sde: SDE, t_min: float | None, t_max: float | None, generator, device
    ) -> tuple[Tensor, Tensor]:
        """``(t, weight)``, both ``(n,)``: E[weight h(t)] is the mean of h over t ~ U(t_min, t_max).

        ``t_min`` and ``t_max`` may be None, the defaults for the SDE; the generator may be a list, one a sample.
        """

    def observe(self, t: Tensor, loss: Tensor) -> None:  # noqa: B027 - a sampling that learns nothing is complete
        """Learn from the losses ``(n,)`` found at t ``(n,)``, without their weights; most samplings do not."""

    def state_dict(self) -> dict[str, Tensor]:
        """What has been learned, for an exact resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`."""
        refuse_state(state)

    def __repr__(self):
        return f"{type(self).__name__}(low_discrepancy={self.low_discrepancy})"


class UniformTime(TimeSampling):
    """t ~ U(t_min, t_max) (E6)."""

    def draw(self, n, sde, t_min, t_max, generator, device):
        ends = self.ends(sde, t_min, t_max)
        t = ends.t_min + (ends.t_max - ends.t_min) * self.uniform(n, generator, device)
        return t, torch.ones_like(t)


class FixedTime(TimeSampling):
    """One noise level: every t is the given one, in [0, 1]."""

    def __init__(self, t: float):
        if not 0 <= t <= 1:
            raise ArgumentError("t", t, "a time in [0, 1] (data at 0)")
        super().__init__()
        self.t = float(t)

    def draw(self, n, sde, t_min, t_max, generator, device):
        t = torch.full((n,), self.t, device=device)
        return t, torch.ones_like(t)

    def __repr__(self):
        return f"FixedTime({self.t:g})"


class UniformLogSNR(TimeSampling):
    """log-SNR uniform between its values at the ends: t in proportion to g^2/sigma^2 = -d log_snr/dt.

    It is the importance sampling of the likelihood weighting in closed form (Song et al. 2021b; Kingma et al. 2021):
    there every t contributes with the same weight. For VP, e^B - 1 = 1/snr, so that it draws
    B(t) = log(1 + e^v (e^{B(t_min)} - 1)) with v uniform; for the geometric VE it is uniform in t.

    Raises:
        ArgumentError: ends at which log-SNR is infinite.
    """

    def draw(self, n, sde, t_min, t_max, generator, device):
        ends = self.ends(sde, t_min, t_max)
        low, high = ends.log_snr_min, ends.log_snr_max
        if not math.isfinite(high - low):
            raise ArgumentError("t_min, t_max", ends[:2], f"times at which the log-SNR of {sde!r} is finite")
        t = sde.time_of(low + (high - low) * self.uniform(n, generator, device)).clamp(ends.t_min, ends.t_max)
        return t, (high - low) / ((ends.t_max - ends.t_min) * snr_rate(sde, t))


class LogNormal(TimeSampling):
    """log(sigma/alpha) ~ N(P_mean, P_std^2), cut off at the ends (Karras et al. 2022, table 1; -1.2 and 1.2 there)."""

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, low_discrepancy: bool = True):
        if not P_std > 0:
            raise ArgumentError("P_std", P_std, "a positive number")
        super().__init__(low_discrepancy)
        self.P_mean, self.P_std = float(P_mean), float(P_std)

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """The density of t, not cut off: N(log(sigma/alpha); P_mean, P_std^2) |d log(sigma/alpha)/dt|."""
        z = (-sde.log_snr(t) / 2 - self.P_mean) / self.P_std
        return torch.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * self.P_std) * (snr_rate(sde, t) / 2)

    def draw(self, n, sde, t_min, t_max, generator, device):
        ends = self.ends(sde, t_min, t_max)
        scaled = ((-log_snr / 2 - self.P_mean) / self.P_std for log_snr in (ends.log_snr_max, ends.log_snr_min))
        low, high = (math.erfc(-z / math.sqrt(2)) / 2 for z in scaled)
        u = low + (high - low) * self.uniform(n, generator, device)
        one = 1 - torch.finfo(u.dtype).eps / 2
        z = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-one, one))
        t = sde.time_of(-2 * (self.P_mean + self.P_std * z)).clamp(ends.t_min, ends.t_max)
        return t, (high - low) / ((ends.t_max - ends.t_min) * self.density(sde, t))

    def __repr__(self):
        return f"LogNormal(P_mean={self.P_mean:g}, P_std={self.P_std:g}, low_discrepancy={self.low_discrepancy})"


class LevelGrid(NamedTuple):
    """The levels t_i = end i / count, i = 1..count, of which first..last are drawn."""

    count: int
    end: float
    first: int
    last: int

    def time(self, i: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """t_i, in torch's default dtype or another."""
        return self.end * i.to(dtype or torch.get_default_dtype()) / self.count

    def index(self, t: Tensor) -> Tensor:
        """The i of t_i."""
        return (t * (self.count / self.end)).round().long()


class Levels(TimeSampling):
    """Discrete levels, each as likely as the other: averages over uniform t are averages over the levels.

    A DDPM or an NCSN has levels of its own, i/N with i = 1..N. On another process they are t_max i/count.

    Args:
        count: how many; None: those of the process, or 1000 if it has none.
        low_discrepancy: as for every :class:`TimeSampling`.

    Raises:
        ArgumentError: another count than the process has; when drawing, no level between the ends.
    """

    def __init__(self, count: int | None = None, low_discrepancy: bool = True):
        super().__init__(low_discrepancy)
        self.count = None if count is None else whole("count", count)

    def grid(self, sde: SDE, t_min: float | None = None, t_max: float | None = None) -> LevelGrid:
        """The levels of the process between the ends; None sets no bound."""
        own = sde.times
        if own is not None and self.count not in (None, len(own)):
            raise ArgumentError("count", self.count, f"None, or {len(own)}: the levels of {sde!r}")
        end, count = (self.ends(sde, t_min, t_max).t_max, self.count or 1000) if own is None else (1.0, len(own))
        first = 1 if t_min is None else max(1, math.ceil(t_min / end * count - 1e-6))
        last = count if t_max is None else min(count, math.floor(t_max / end * count + 1e-6))
        if first > last:
            raise ArgumentError("t_min, t_max", (t_min, t_max), f"ends with one of {count} levels between them")
        return LevelGrid(count, end, first, last)

    def draw(self, n, sde, t_min, t_max, generator, device):
        grid = self.grid(sde, t_min, t_max)
        size = grid.last - grid.first + 1
        i = grid.first + (self.uniform(n, generator, device) * size).long().clamp(max=size - 1)
        t = grid.time(i)
        return t, torch.ones_like(t)

    def __repr__(self):
        return f"{type(self).__name__}({'' if self.count is None else self.count})"


class LossAware(Levels):
    """Level i in proportion to sqrt(E[L_i^2]), the mean over its last ten losses (P8; Nichol & Dhariwal 2021, eq. 18).

    It is the proposal of least variance for sum_i L_i. All levels are equally likely until each has its ten, and a
    share of the draws stays uniform, so that no level is forgotten. Losses that are not finite are not taken in.
    Everything happens on the device of the losses, without a host sync.

    Args:
        count: how many levels; None: those of the process, or 1000 if it has none.
        history: losses kept for each level.
        uniform_share: the share of draws that stays uniform, in (0, 1].
    """

    def __init__(
        self, count: int | None = None, history: int = 10, uniform_share: float = 0.001, low_discrepancy: bool = True
    ):
        if not 0 < uniform_share <= 1:
            raise ArgumentError("uniform_share", uniform_share, "a number in (0, 1]")
        super().__init__(count, low_discrepancy)
        self.history, self.uniform_share = whole("history", history), float(uniform_share)
        self._squares: Tensor | None = None  # (levels + 1, history): a ring for each level; the last row is for waste
        self._seen: Tensor | None = None  # (levels + 1,)
        self._grid: LevelGrid | None = None

    def _prepare(self, grid: LevelGrid, device) -> None:
        if self._squares is None:
            self._squares = torch.zeros(grid.count + 1, self.history, device=device)
            self._seen = torch.zeros(grid.count + 1, dtype=torch.long, device=device)
        if len(self._squares) != grid.count + 1:
            raise ArgumentError("count", grid.count, f"{len(self._squares) - 1}, the levels whose losses are known")
        self._grid, self._squares, self._seen = grid, self._squares.to(device), self._seen.to(device)

    def probabilities(self, grid: LevelGrid, device) -> Tensor:
        """The probability of each level first..last of the grid."""
        self._prepare(grid, device)
        rows = slice(grid.first - 1, grid.last)
        size = grid.last - grid.first + 1
        root = self._squares[rows].mean(1).sqrt()
        proportional = root / root.sum().clamp(min=torch.finfo(root.dtype).tiny)
        warm = (self._seen[rows] >= self.history).all() & (root.sum() > 0)
        share = torch.where(warm, self.uniform_share, 1.0)
        return share / size + (1 - share) * proportional

    def draw(self, n, sde, t_min, t_max, generator, device):
        grid = self.grid(sde, t_min, t_max)
        p = self.probabilities(grid, device)
        u = self.uniform(n, generator, device)
        j = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
        return grid.time(grid.first + j), 1 / (len(p) * p[j])

    @torch.no_grad()
    def observe(self, t, loss):
        squares = loss.to(self._squares.dtype).square()
        waste = self._grid.count
        level = torch.where(squares.isfinite(), self._grid.index(t) - 1, waste)
        level, order = level.sort(stable=True)  # the losses of a level one after another, in the order of the batch
        first, past = torch.searchsorted(level, level), torch.searchsorted(level, level, right=True)
        rank = torch.arange(len(level), device=level.device) - first
        row = torch.where(past - first - rank <= self.history, level, waste)  # of many, the last ten
        self._squares[row, (self._seen[level] + rank) % self.history] = squares[order]
        self._seen.index_add_(0, level, torch.ones_like(level))

    def state_dict(self):
        return {} if self._squares is None else {"squares": self._squares.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state):
        if not state:
            self._squares = self._seen = None
            return
        if set(state) != {"squares", "seen"} or state["squares"].shape != (len(state["seen"]), self.history):
            raise CheckpointError("state", sorted(state), f"the squares and counts of {self.history} losses a level")
        self._squares, self._seen = state["squares"].clone(), state["seen"].clone()


TIME_SAMPLINGS = {
    "uniform": lambda: UniformTime(low_discrepancy=False),
    "low-discrepancy": UniformTime,
    "log-snr": UniformLogSNR,
    "log-normal": LogNormal,
    "levels": Levels,
    "loss-aware": LossAware,
}


def resolve_time_sampling(name: str | float | TimeSampling) -> TimeSampling:
    """The time sampling of that name, the object itself, or one fixed time.

    Raises:
        UnknownNameError: no time sampling has that name.
        ArgumentError: a time outside [0, 1].
    """
    if isinstance(name, TimeSampling):
        return name
    if isinstance(name, Real) and not isinstance(name, bool):
        return FixedTime(name)
    if name not in TIME_SAMPLINGS:
        raise UnknownNameError("time_sampling", name, TIME_SAMPLINGS)
    return TIME_SAMPLINGS[name]()
