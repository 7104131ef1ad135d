"""Settings of the default sampler, measured on a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from scoresde.errors import ArgumentError


@dataclass(frozen=True)
class SolverSettings:
    """Settings of the default sampler for one number of network calls.

    Lengths are those of :class:`DataScale`, rho is sigma/alpha.

    Args:
        calls: Number of network calls.
        first: Logarithm of the first level's rho over the largest length.
        last: Logarithm of the last level's rho over the finest length.
        above: Number of calls between t_max and the first level, spaced evenly in log rho.
        jump: Whether x jumps from t_max along the flow of the data's Gaussian. Otherwise the first call is at t_max.
        order: Order of the solver, 1 to 5.
        corrector: Whether each step is corrected.
        bend: B, by which levels are moved towards the data (positive) or the noise.
        swell: A, by which they are moved to the middle. With u uniform in [0, 1] from the first level to the last,
            lambda is linear in u + A sin(2 pi u)/(2 pi) + B sin(pi u)/pi.
    """

    calls: int
    first: float
    last: float
    above: int
    jump: bool
    order: int
    corrector: bool
    bend: float = 0.0
    swell: float = 0.1


@dataclass(frozen=True)
class Calibration:
    """Settings of the default sampler, measured on one model.

    Args:
        settings: The settings by growing number of calls.
        conditional: Those of runs with a condition. Empty: not measured.

    Raises:
        ArgumentError: The numbers of calls do not grow.
    """

    settings: tuple[SolverSettings, ...] = ()
    conditional: tuple[SolverSettings, ...] = ()

    def __post_init__(self) -> None:
        for name in ("settings", "conditional"):
            calls = [one.calls for one in getattr(self, name)]
            if any(a >= b for a, b in itertools.pairwise(calls)):
                raise ArgumentError(name, calls, "growing numbers of calls")

    def at(self, calls: int, conditional: bool, default: SolverSettings) -> SolverSettings:
        """Return the settings for a number of calls.

        Between two measured numbers the lengths are interpolated in log(calls), and the rest is that of the nearer
        one. Past the ends the settings are those of the nearest end.

        Args:
            calls: Number of network calls.
            conditional: Whether the run has a condition.
            default: Settings where nothing was measured.
        """
        measured = self.conditional if conditional else self.settings
        if not measured:
            return default
        below = [one for one in measured if one.calls <= calls]
        above = [one for one in measured if one.calls >= calls]
        if not below or not above:
            return replace((below or above)[-1 if below else 0], calls=calls)
        low, high = below[-1], above[0]
        share = 0.0 if low == high else math.log(calls / low.calls) / math.log(high.calls / low.calls)
        nearer = low if share < 0.5 else high
        lengths = {
            name: getattr(low, name) + share * (getattr(high, name) - getattr(low, name))
            for name in ("first", "last", "bend", "swell")
        }
        return replace(nearer, calls=calls, **lengths)

    @property
    def config(self) -> dict[str, Any]:
        """The settings as values that JSON can hold."""
        return {name: [asdict(one) for one in getattr(self, name)] for name in ("settings", "conditional")}

    @classmethod
    def from_config(cls, config: Mapping[str, Sequence[Mapping[str, Any]]]) -> Calibration:
        """Return the calibration that :attr:`config` describes.

        Raises:
            ArgumentError: A key is missing or unknown.
        """
        names = {field.name for field in fields(SolverSettings)}
        for one in itertools.chain.from_iterable(config.values()):
            if set(one) != names:
                raise ArgumentError("calibration", sorted(one), f"settings with the keys {sorted(names)}")
        return cls(**{name: tuple(SolverSettings(**one) for one in rows) for name, rows in config.items()})
