"""Time samplings by name."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

from scoresde.errors import UnknownNameError
from scoresde.training.config import TimeSamplingName
from scoresde.training.discrete_times import Levels, LossAware
from scoresde.training.time_sampling import FixedTime, LogNormal, TimeSampling, UniformLogSNR, UniformTime

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
    if not isinstance(name, str) or name not in TIME_SAMPLINGS:
        raise UnknownNameError("time_sampling", name, TIME_SAMPLINGS)
    return TIME_SAMPLINGS[name]()
