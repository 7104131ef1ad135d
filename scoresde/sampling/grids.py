"""Where time starts and ends, and the grids between."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
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


def check_steps(steps: int, name: str = "steps") -> int:
    """``steps`` itself, if it is a whole number of at least 1; an ArgumentError otherwise."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ArgumentError(name, steps, "a whole number of steps, 1 or more")
    return steps


def _uniform(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return start + u * (end - start)


def _quadratic(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return (start.sqrt() + u * (end.sqrt() - start.sqrt())) ** 2


def _log_snr(sde: SDE, u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return sde.time_of(_uniform(sde, u, sde.log_snr(start), sde.log_snr(end)))


def _karras(sde: SDE, u: Tensor, start: Tensor, end: Tensor, rho: float = 7.0) -> Tensor:
    first, last = (torch.exp(-sde.log_snr(t) / (2 * rho)) for t in (start, end))
    return sde.time_of(-2 * rho * _uniform(sde, u, first, last).log())


GRIDS = {
    "time": _uniform,  # uniform in t (Song et al. 2021; DDPM's "trailing" levels)
    "quadratic": _quadratic,  # uniform in sqrt(t) (DDIM, appendix D.2)
    "log_snr": _log_snr,  # uniform in log-SNR (Lu et al. 2022)
    "karras": _karras,  # uniform in (sigma/alpha)^(1/7) (Karras et al. 2022, eq. 5)
}


def time_grid(
    sde: SDE, steps: int, kind: str = "time", t_min: float | None = None, t_max: float | None = None
) -> Tensor:
    """``steps + 1`` times from t_max down to t_min, float64 on the CPU.

    Args:
        kind: what the grid is uniform in: ``"time"``, ``"quadratic"`` (sqrt(t)), ``"log_snr"`` or ``"karras"``.

    Raises:
        ArgumentError: fewer than one step, or ends out of order.
        UnknownNameError: no such grid.
    """
    check_steps(steps)
    if kind not in GRIDS:
        raise UnknownNameError("grid", kind, GRIDS)
    t_min, t_max = time_range(sde, t_min, t_max)
    start, end = torch.tensor(t_max, dtype=torch.float64), torch.tensor(t_min, dtype=torch.float64)
    times = GRIDS[kind](sde, torch.linspace(0, 1, steps + 1, dtype=torch.float64), start, end)
    times[0], times[-1] = start, end
    return times
