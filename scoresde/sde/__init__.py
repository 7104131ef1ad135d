"""The forward process: clocks, families, and DDPM and NCSN as exact special cases."""

from scoresde.sde.base import SDE, Level
from scoresde.sde.discrete import DDPM, NCSN
from scoresde.sde.families import VESDE, VPSDE, FlowSDE, SubVPSDE, build_sde, register_sde
from scoresde.sde.ncsnv2 import (
    langevin_step_size,
    largest_sigma,
    level_ratio,
    ncsn_for,
    number_of_levels,
    variance_ratio,
    vesde_for,
)

__all__ = [
    "DDPM",
    "NCSN",
    "SDE",
    "VESDE",
    "VPSDE",
    "FlowSDE",
    "Level",
    "SubVPSDE",
    "build_sde",
    "langevin_step_size",
    "largest_sigma",
    "level_ratio",
    "ncsn_for",
    "number_of_levels",
    "register_sde",
    "variance_ratio",
    "vesde_for",
]
