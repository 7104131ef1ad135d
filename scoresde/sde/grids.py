"""Where time starts and ends, and the grids of times between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError, DTypeError, ShapeError, UnknownNameError
from scoresde.sde.base import SDE

#: The default ends of time, as log signal-to-noise ratios: they mean the same noise for every SDE. Time starts where
#: log-SNR = LOG_SNR_MAX (sigma/alpha = 1e-3, for data of unit scale), or at 0 where the process is never so clean.
LOG_SNR_MAX = 6 * math.log(10.0)
#: Time ends where log-SNR = LOG_SNR_MIN, or at 1. Cosine and flow reach -inf at t = 1, where eps does not fix x_0.
LOG_SNR_MIN = -20.0
#: The finest length of the data over sigma/alpha at the start of time, at least.
DETAIL_OVER_NOISE = 15.0


@checked
def time_range(
    sde: SDE, t_min: float | None = None, t_max: float | None = None, finest: float | None = None
) -> tuple[float, float]:
    """Return the ends of time ``(t_min, t_max)`` for samplers and losses.

    Args:
        sde: The process.
        t_min: First time. None: where log-SNR = ``LOG_SNR_MAX``, or 0.
        finest: The finest length of the data. Where sigma/alpha would be more than a fifteenth of it at the default
            t_min, time starts earlier. None: unknown.
        t_max: Last time. None: where log-SNR = ``LOG_SNR_MIN``, or 1.

    Raises:
        ArgumentError: Not 0 <= t_min < t_max <= 1.
    """
    if t_min is None:
        finer = 0.0 if finest is None else 2 * math.log(DETAIL_OVER_NOISE / positive("finest", finest))
        clean = max(LOG_SNR_MAX, finer)
        t_min = sde.time_of(clean).item()
    if t_max is None:
        t_max = sde.time_of(LOG_SNR_MIN).item()
    if not 0 <= t_min < t_max <= 1:
        raise ArgumentError("t_min, t_max", (t_min, t_max), "0 <= t_min < t_max <= 1")
    return t_min, t_max


def check_finite_log_snr(sde: SDE, t_min: float | None, t_max: float | None) -> None:
    """Raise an error where log-SNR is infinite at an end of time.

    Args:
        sde: The process.
        t_min, t_max: The ends that need a finite log-SNR. None: one that does not.

    Raises:
        ArgumentError: sigma(t_min) = 0 or alpha(t_max) = 0; names the argument.
    """
    if t_min is not None and sde.log_snr(t_min).item() == math.inf:
        raise ArgumentError("t_min", t_min, f"a time with noise under {sde!r}, above 0 (None: the default)")
    if t_max is not None and sde.log_snr(t_max).item() == -math.inf:
        expected = f"a time with alpha > 0 under {sde!r}, below 1 (None: where log-SNR is {LOG_SNR_MIN:g})"
        raise ArgumentError("t_max", t_max, expected)


# ---- grids of any process: u in [0, 1] and the first and last time give the times ----------------------------------


def _uniform(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return start + u * (end - start)


def _quadratic(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return (start.sqrt() + u * (end.sqrt() - start.sqrt())) ** 2


def _log_snr(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return sde.time_of(_uniform(sde, u, sde.log_snr(start), sde.log_snr(end)))


def _karras(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    exponent = 7.0
    first, last = (torch.exp(-sde.log_snr(t) / (2 * exponent)) for t in (start, end))
    return sde.time_of(-2 * exponent * _uniform(sde, u, first, last).log())


CONTINUOUS: dict[str, Callable[[SDE, Tensor, Tensor, Tensor], Tensor]] = {
    "time": _uniform,  # uniform in t (Song et al. 2021)
    "quadratic": _quadratic,  # uniform in sqrt(t) (DDIM, appendix D.2)
    "log_snr": _log_snr,  # uniform in log-SNR (Lu et al. 2022)
    "karras": _karras,  # uniform in (sigma/alpha)^(1/7) (Karras et al. 2022, eq. 5)
}

# ---- grids of a discrete process: `own` has the times of its levels, descending, to the data at 0 or not ------------


def _levels(sde: SDE, steps: int | None, own: Tensor, to_data: bool) -> Tensor:
    if len(own) < 2 or steps not in (None, len(own) - 1):
        raise ArgumentError("steps", steps, f"None, or {len(own) - 1}, the steps between the levels of {sde!r}")
    return own


def _trailing(sde: SDE, steps: int | None, own: Tensor, to_data: bool) -> Tensor:
    steps = whole("steps", steps)
    highest, count = (len(own) - 1, steps) if to_data else (len(own), steps + 1)  # own: levels highest..1, (0)
    if count > highest:
        raise ArgumentError("steps", steps, f"at most {len(own) - 1}, the steps between the levels of {sde!r}")
    index = highest - torch.arange(count + to_data, dtype=torch.float64) * highest / count
    return own[highest - index.round().long()]


DISCRETE: dict[str, Callable[[SDE, int | None, Tensor, bool], Tensor]] = {
    "levels": _levels,  # all of its levels
    "trailing": _trailing,  # a subsequence (D5), equally spaced from the noisiest (Lin et al. 2024)
}

#: the names of all grids
GRIDS = (*CONTINUOUS, *DISCRETE)

#: a name in GRIDS, or the times themselves
Grid = str | Sequence[float] | Tensor


def explicit_times(grid: Sequence[float] | Tensor) -> Tensor:
    """Return the given times as a float64 CPU tensor.

    Raises:
        ShapeError, DTypeError: Not a vector of at least two numbers.
        ArgumentError: Times outside [0, 1], or not strictly decreasing.
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
    """Return a known name as it is, and times by :func:`explicit_times`.

    Raises:
        UnknownNameError: A name that is not in ``GRIDS``.
        ShapeError, DTypeError, ArgumentError: As :func:`explicit_times`.
    """
    if not isinstance(grid, str):
        return explicit_times(grid)
    if grid not in GRIDS:
        raise UnknownNameError("grid", grid, GRIDS)
    return grid


def fixes_steps(grid: Grid) -> bool:
    """Return whether the grid fixes the number of steps."""
    return not isinstance(grid, str) or grid == "levels"


@checked
def time_grid(
    sde: SDE, steps: int | None = None, kind: Grid = "time", t_min: float | None = None, t_max: float | None = None
) -> Tensor:
    """Return ``steps + 1`` times from t_max down to t_min.

    Args:
        sde: The process.
        steps: Number of steps. None: what the grid fixes.
        kind: What the grid is uniform in, ``"time"`` (default), ``"quadratic"`` (sqrt(t)), ``"log_snr"`` or
            ``"karras"``. For a DDPM or an NCSN of N levels also ``"levels"`` (1, (N-1)/N, ..., 0) or ``"trailing"``,
            the levels nearest to N, N - N/steps, ..., 0. Or the times themselves, with their own ends.
        t_min: Last time. None: that of :func:`time_range`, or 0 for a discrete grid.
        t_max: First time. None: that of :func:`time_range`, or 1 for a discrete grid. A discrete grid has the levels
            between the two.

    Returns:
        Times, float64 on the CPU.

    Raises:
        ArgumentError: No steps, ends out of order, times that do not decrease, or a process without levels. Steps that
            do not fit the given times or levels. On a grid that needs log-SNR, an end where it is infinite.
        UnknownNameError: A name of no grid.
    """
    grid = check_grid(kind)
    if steps is not None or not fixes_steps(grid):
        steps = whole("steps", steps)
    # 1. times that were given
    if not isinstance(grid, str):
        if steps not in (None, len(grid) - 1):
            raise ArgumentError("steps", steps, f"None, or {len(grid) - 1}, the steps between the {len(grid)} times")
        return grid
    # 2. the levels of a discrete process
    if grid in DISCRETE:
        own = sde.times
        if own is None:
            raise ArgumentError("grid", repr(grid), f"the name of a continuous grid, since {sde!r} has no levels")
        t_min, t_max = time_range(sde, 0.0 if t_min is None else t_min, 1.0 if t_max is None else t_max)
        own = torch.cat([own.new_zeros(1), own]).flip(0)
        own = own[(own >= t_min) & (own <= t_max)]
        return DISCRETE[grid](sde, steps, own, t_min == 0)
    # 3. a grid in continuous time
    t_min, t_max = time_range(sde, t_min, t_max)
    start, end = torch.tensor(t_max, dtype=torch.float64), torch.tensor(t_min, dtype=torch.float64)
    if grid in ("log_snr", "karras"):
        check_finite_log_snr(sde, t_min if grid == "log_snr" else None, t_max)
    times = CONTINUOUS[grid](sde, torch.linspace(0, 1, whole("steps", steps) + 1, dtype=torch.float64), start, end)
    times[0], times[-1] = start, end
    return times
