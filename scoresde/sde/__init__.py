"""The forward process: clocks, families, and DDPM and NCSN as exact special cases."""

from scoresde.sde.base import SDE, Level
from scoresde.sde.discrete import DDPM, NCSN
from scoresde.sde.families import VESDE, VPSDE, FlowSDE, SubVPSDE, build_sde, register_sde

__all__ = ["DDPM", "NCSN", "SDE", "VESDE", "VPSDE", "FlowSDE", "Level", "SubVPSDE", "build_sde", "register_sde"]
