"""What a network is told about the time: conventions by name, so that foreign networks plug in.

A time_input is a function of the level of the process the network was trained on; the number or ``(B,)`` tensor it returns
is the network's second argument.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sde import SDE, Level

TimeInput = Callable[[Level, SDE], float | Tensor]


def _levels(sde: SDE, time_input: str) -> int:
    times = sde.times
    if times is None:
        raise ArgumentError(
            "time_input", repr(time_input), f"a process with counted levels (DDPM or NCSN); {sde!r} has none"
        )
    return len(times)


def _flat(value: float | Tensor) -> float | Tensor:
    return value.reshape(-1) if isinstance(value, Tensor) else value


TIME_INPUTS: dict[str, TimeInput] = {
    "time": lambda level, sde: level.t,
    "log_snr": lambda level, sde: level.log_snr,
    "sigma": lambda level, sde: _flat(level.sigma),
    "ddpm": lambda level, sde: level.t * _levels(sde, "ddpm") - 1,  # Ho et al. 2020: the step counted from 0, i - 1
    "improved_ddpm": lambda level, sde: (level.t - 1 / _levels(sde, "improved_ddpm")) * 1000,  # Nichol & Dhariwal 2021
    "ncsn": lambda level, sde: (1 - level.t) * _levels(sde, "ncsn"),  # Song & Ermon 2019: 0 is the largest sigma
    "score_sde_vp": lambda level, sde: level.t * 999,  # Song et al. 2021, continuous VP and sub-VP
    "score_sde_ve": lambda level, sde: _flat(level.sigma),  # Song et al. 2021, VE; the network takes its logarithm
    "edm": lambda level, sde: level.log_snr / -8,  # Karras et al. 2022: log(sigma / alpha) / 4
}


def resolve_time_input(time_input: str | TimeInput) -> TimeInput:
    """The time_input function of that name, or ``time_input`` itself if it is a function ``(level, sde) -> number or (B,)``.

    Raises:
        UnknownNameError: no time_input has that name.
    """
    if callable(time_input):
        return time_input
    if time_input not in TIME_INPUTS:
        raise UnknownNameError("time_input", time_input, TIME_INPUTS)
    return TIME_INPUTS[time_input]
