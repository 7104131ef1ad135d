"""Time sampling from discrete noise levels: all alike, or by their losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import number, whole
from scoresde.errors import ArgumentError, CheckpointError
from scoresde.random import Generators
from scoresde.sde import SDE
from scoresde.training.time_sampling import Draws, TimeSampling, time_ends


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


@checked
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
        for name, value in (("t_min", t_min), ("t_max", t_max)):
            if value is not None:
                number(name, value, "a time in [0, 1], or None")
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


@checked
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
