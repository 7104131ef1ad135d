"""Time inputs: what a network receives for the time, by name.

A time input is a function of the noise level and of the process that the network was trained on. Its result, a number
or ``(B,)``, is the network's second argument. The names are the conventions in use, so that networks of other
libraries plug in.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sde import SDE, Level
from scoresde.sde.grids import LOG_SNR_MAX, LOG_SNR_MIN

TimeInput = Callable[[Level, SDE], float | Tensor]


def _count(sde: SDE, time_input: str) -> int:
    """Return the number of levels of a discrete process."""
    if sde.times is None:
        expected = f"one for a process in continuous time, as {sde!r} has no counted levels (DDPM and NCSN have)"
        raise ArgumentError("time_input", repr(time_input), expected)
    return len(sde.times)


def _time(level: Level, sde: SDE) -> float | Tensor:
    return level.t


def _scaled_time(level: Level, sde: SDE) -> float | Tensor:
    """Return 1000 t (flow matching in diffusers, SD3)."""
    return level.t * 1000


def _log_snr(level: Level, sde: SDE) -> float | Tensor:
    """Return log-SNR, finite at both ends of time too."""
    low, high = LOG_SNR_MIN, 2 * LOG_SNR_MAX
    if isinstance(level.log_snr, Tensor):
        return level.log_snr.clamp(low, high)
    return min(max(level.log_snr, low), high)


def _sigma(level: Level, sde: SDE) -> float | Tensor:
    return level.sigma.reshape(-1) if isinstance(level.sigma, Tensor) else level.sigma


def _ddpm(level: Level, sde: SDE) -> float | Tensor:
    """Return the step counted from 0, i - 1 (Ho et al. 2020)."""
    return level.t * _count(sde, "ddpm") - 1


def _improved_ddpm(level: Level, sde: SDE) -> float | Tensor:
    """Return the step from 0, scaled to 0..1000 (Nichol & Dhariwal 2021)."""
    return (level.t - 1 / _count(sde, "improved_ddpm")) * 1000


def _ncsn(level: Level, sde: SDE) -> float | Tensor:
    """Return the level's index from the largest sigma (Song & Ermon 2019)."""
    return (1 - level.t) * _count(sde, "ncsn")


def _score_sde_vp(level: Level, sde: SDE) -> float | Tensor:
    """Return 999 t (Song et al. 2021, continuous VP and sub-VP)."""
    return level.t * 999


def _edm(level: Level, sde: SDE) -> float | Tensor:
    """Return log(sigma / alpha) / 4 (Karras et al. 2022)."""
    return _log_snr(level, sde) / -8


#: those that count the levels of a discrete process, which is all that networks with them know
COUNTED = ("ddpm", "improved_ddpm", "ncsn")

#: module-level functions, so that a model that holds one can be pickled
TIME_INPUTS: dict[str, TimeInput] = {
    "time": _time,
    "scaled_time": _scaled_time,
    "log_snr": _log_snr,
    "sigma": _sigma,
    "ddpm": _ddpm,
    "improved_ddpm": _improved_ddpm,
    "ncsn": _ncsn,
    "score_sde_vp": _score_sde_vp,
    "score_sde_ve": _sigma,  # Song et al. 2021, VE; the network takes the logarithm
    "edm": _edm,
}


def resolve_time_input(time_input: str | TimeInput) -> TimeInput:
    """Return the time input of that name.

    A function ``(level, sde) -> number or (B,)`` is returned as it is.

    Raises:
        UnknownNameError: No time input has this name.
    """
    if callable(time_input):
        return time_input
    if time_input not in TIME_INPUTS:
        raise UnknownNameError("time_input", time_input, TIME_INPUTS)
    return TIME_INPUTS[time_input]
