"""Where time starts and ends, and the grids between."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError, DTypeError, ShapeError, UnknownNameError
from scoresde.sde import SDE

#: The one table of default ends, as log signal-to-noise ratios: they mean the same noise for every SDE. Time runs from
#: where log-SNR = LOG_SNR_MAX (sigma/alpha = 1e-3 for data of unit scale), or 0 where the process never gets so clean,
#: to where log-SNR = LOG_SNR_MIN (cosine and flow reach -inf at t = 1, where eps does not determine x_0), or 1.
LOG_SNR_MAX = 6 * math.log(10.0)
LOG_SNR_MIN = -20.0


def time_range(sde: SDE, t_min: float | None = None, t_max: float | None = None) -> tuple[float, float]:
    """``(t_min, t_max)`` with the defaults of the table above for what is None.

    Raises:
        ArgumentError: not 0 <= t_min < t_max <= 1.
    """
    if t_min is None:
        t_min = sde.time_of(LOG_SNR_MAX).item()
    if t_max is None:
        t_max = sde.time_of(LOG_SNR_MIN).item()
    if not 0 <= t_min < t_max <= 1:
        raise ArgumentError("t_min, t_max", (t_min, t_max), "0 <= t_min < t_max <= 1")
    return t_min, t_max


def _uniform(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return start + u * (end - start)


def _quadratic(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return (start.sqrt() + u * (end.sqrt() - start.sqrt())) ** 2


def _log_snr(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return sde.time_of(_uniform(sde, u, sde.log_snr(start), sde.log_snr(end)))


def _karras(sde: SDE, u: Tensor, start: Tensor, end: Tensor, rho: float = 7.0) -> Tensor:
    first, last = (torch.exp(-sde.log_snr(t) / (2 * rho)) for t in (start, end))
    return sde.time_of(-2 * rho * _uniform(sde, u, first, last).log())


def _levels(sde: SDE, steps: int | None, own: Tensor, to_data: bool) -> Tensor:
    if len(own) < 2 or steps not in (None, len(own) - 1):
        raise ArgumentError("steps", steps, f"None, or {len(own) - 1}: the steps between the levels of {sde!r}")
    return own


def _trailing(sde: SDE, steps: int, own: Tensor, to_data: bool) -> Tensor:
    highest, count = (len(own) - 1, steps) if to_data else (len(own), steps + 1)  # own: levels highest..1, (0)
    if count > highest:
        raise ArgumentError("steps", steps, f"at most {len(own) - 1}: the steps between the levels of {sde!r}")
    index = highest - torch.arange(count + to_data, dtype=torch.float64) * highest / count
    return own[highest - index.round().long()]


GRIDS = {
    "time": _uniform,  # uniform in t (Song et al. 2021)
    "quadratic": _quadratic,  # uniform in sqrt(t) (DDIM, appendix D.2)
    "log_snr": _log_snr,  # uniform in log-SNR (Lu et al. 2022)
    "karras": _karras,  # uniform in (sigma/alpha)^(1/7) (Karras et al. 2022, eq. 5)
    "levels": _levels,  # a discrete process's own levels, all of them
    "trailing": _trailing,  # a subsequence of them (D5), equally spaced from the noisiest (Lin et al. 2024)
}
DISCRETE = ("levels", "trailing")

#: a name in GRIDS, or the times themselves
Grid = str | Sequence[float] | Tensor


def explicit_times(grid: Sequence[float] | Tensor) -> Tensor:
    """Given times as a float64 CPU tensor.

    Raises:
        ShapeError, DTypeError: not a vector of at least two numbers.
        ArgumentError: times outside [0, 1] or not strictly decreasing.
    """
    try:
        times = torch.as_tensor(grid, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise DTypeError("grid", repr(grid), "the name of a grid, or a vector of times") from None
    if times.ndim != 1 or len(times) < 2:
        raise ShapeError("grid", tuple(times.shape), "at least two times, in a vector")
    if not bool(((times >= 0) & (times <= 1)).all() and (times.diff() < 0).all()):
        raise ArgumentError("grid", times.tolist()[:8], "times in [0, 1], strictly decreasing")
    return times


def check_grid(grid: Grid) -> str | Tensor:
    """A known name, or :func:`explicit_times`."""
    if not isinstance(grid, str):
        return explicit_times(grid)
    if grid not in GRIDS:
        raise UnknownNameError("grid", grid, GRIDS)
    return grid


def fixes_steps(grid: str | Tensor) -> bool:
    """Whether the number of steps follows from the grid, so that it need not be given."""
    return not isinstance(grid, str) or grid == "levels"


def time_grid(
    sde: SDE, steps: int | None = None, kind: Grid = "time", t_min: float | None = None, t_max: float | None = None
) -> Tensor:
    """``steps + 1`` times from t_max down to t_min, float64 on the CPU.

    Args:
        steps: how many; may be None where the grid says it.
        kind: what the grid is uniform in: ``"time"``, ``"quadratic"`` (sqrt(t)), ``"log_snr"`` or ``"karras"``; for a
            DDPM or an NCSN of N levels ``"levels"`` (1, (N-1)/N, ..., 0) or ``"trailing"``, the levels nearest to N,
            N - N/steps, ..., 0; or the times themselves, which bring their own ends.
        t_min, t_max: the ends, by default those of :func:`time_range`. A discrete grid takes the levels between them,
            by default all, to the data at 0.

    Raises:
        ArgumentError: fewer than one step, ends out of order, steps that do not fit the given times or levels, times
            that do not decrease, or a process without levels.
        UnknownNameError: no such grid.
    """
    grid = check_grid(kind)
    if steps is not None or not fixes_steps(grid):
        whole("steps", steps)
    if not isinstance(grid, str):
        if steps not in (None, len(grid) - 1):
            raise ArgumentError("steps", steps, f"None, or {len(grid) - 1}: the steps between the {len(grid)} times")
        return grid
    if grid in DISCRETE:
        own = sde.times
        if own is None:
            raise ArgumentError("grid", repr(grid), f"the name of a continuous grid: {sde!r} has no levels of its own")
        t_min, t_max = time_range(sde, 0.0 if t_min is None else t_min, 1.0 if t_max is None else t_max)
        own = torch.cat([own.new_zeros(1), own]).flip(0)
        own = own[(own >= t_min) & (own <= t_max)]
        return GRIDS[grid](sde, steps, own, t_min == 0)
    t_min, t_max = time_range(sde, t_min, t_max)
    start, end = torch.tensor(t_max, dtype=torch.float64), torch.tensor(t_min, dtype=torch.float64)
    times = GRIDS[grid](sde, torch.linspace(0, 1, steps + 1, dtype=torch.float64), start, end)
    times[0], times[-1] = start, end
    return times
