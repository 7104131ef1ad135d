"""The forward processes that a run can have, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scoresde.app.config import SDEConfig, SDEName
from scoresde.data import Data, Mapped
from scoresde.errors import ArgumentError, ConfigError
from scoresde.sde import DDPM, NCSN, SDE, VESDE, VPSDE, FlowSDE, SubVPSDE


class Process(NamedTuple):
    """A process of the command line.

    Attributes:
        title: What reports call it.
        make: Function of the training data that makes it, with some settings as keywords.
        options: The settings that it takes, and the names of its arguments for them.
    """

    title: str
    make: Callable[..., SDE]
    options: dict[str, str]


def _ncsn(data: Data | Mapped, L: int = 232, **noise: float) -> SDE:
    """Return an NCSN whose noise suits the data."""
    ve = VESDE.for_data(data, **noise).config
    return NCSN.geometric(ve["sigma_min"], ve["sigma_max"], L)


_BETAS = {name: name for name in ("beta_min", "beta_max")}
_SIGMAS = {name: name for name in ("sigma_min", "sigma_max")}
PROCESSES: dict[SDEName, Process] = {
    "vp": Process("variance-preserving (VP)", lambda data, **betas: VPSDE(**betas), _BETAS),
    "vp-cosine": Process("variance-preserving (VP) with the cosine schedule", lambda data: VPSDE.cosine(), {}),
    "subvp": Process("sub-VP", lambda data, **betas: SubVPSDE(**betas), _BETAS),
    "ve": Process("variance-exploding (VE)", VESDE.for_data, _SIGMAS),
    "ve-linear": Process(
        "variance-exploding (VE) with noise linear in time",
        lambda data, **sigma: VESDE.linear(**sigma),
        {"sigma_max": "sigma_max"},
    ),
    "flow": Process("flow-matching", lambda data: FlowSDE(), {}),
    "ddpm": Process(
        "discrete DDPM",
        lambda data, **levels: DDPM.linear(**levels),
        {"levels": "N", "beta_min": "beta_start", "beta_max": "beta_end"},
    ),
    "ddpm-cosine": Process(
        "discrete DDPM with the cosine schedule", lambda data, **levels: DDPM.cosine(**levels), {"levels": "N"}
    ),
    "ncsn": Process("discrete NCSN", _ncsn, {"levels": "L", **_SIGMAS}),
}


def make_sde(config: SDEConfig, train: Data | Mapped) -> SDE:
    """Return the forward process of a run.

    Its own defaults stand in for settings that are None. The training data choose the noise of VE and NCSN
    (:meth:`scoresde.VESDE.for_data`).

    Raises:
        ConfigError: settings that the process cannot have; names the key.
    """
    process = PROCESSES[config.name]
    given = {key: getattr(config, key) for key in process.options if getattr(config, key) is not None}
    try:
        return process.make(train, **{process.options[key]: value for key, value in given.items()})
    except ArgumentError as error:
        shown = ", ".join(f"{value:g}" for value in given.values())
        keys = ", ".join(f"sde.{key}" for key in given)
        raise ConfigError(keys, shown, f"settings of the process {config.name!r} ({error})") from error
