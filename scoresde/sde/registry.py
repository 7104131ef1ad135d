"""Processes by name, as configurations and saved models hold them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sde.base import SDE
from scoresde.sde.discrete import DDPM, NCSN
from scoresde.sde.families import VESDE, VPSDE, FlowSDE, SubVPSDE

_BUILDERS: dict[str, Callable[..., SDE]] = {
    "vp": VPSDE,
    "vp-cosine": VPSDE.cosine,
    "subvp": SubVPSDE,
    "subvp-cosine": SubVPSDE.cosine,
    "ve": VESDE,
    "ve-linear": VESDE.linear,
    "flow": FlowSDE,
    "ddpm": DDPM,
    "ncsn": NCSN,
}


def register_sde(name: str, builder: Callable[..., SDE]) -> None:
    """Make a process of your own known to :func:`build_sde`.

    Args:
        name: The ``"name"`` of its configuration.
        builder: Class or function, called with the other entries of the configuration.

    Raises:
        ArgumentError: A name that is taken.
    """
    if name in _BUILDERS:
        raise ArgumentError("name", repr(name), "a name that is not taken")
    _BUILDERS[name] = builder


@checked
def build_sde(config: Mapping[str, Any]) -> SDE:
    """Make the process that ``config`` describes; inverse of ``sde.config``.

    Args:
        config: ``{"name": name, **arguments}``.

    Raises:
        UnknownNameError: A name or an argument that no process has.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in _BUILDERS:
        raise UnknownNameError("sde.name", name, _BUILDERS)
    known = inspect.signature(_BUILDERS[name]).parameters
    for key in arguments:
        if key not in known:
            raise UnknownNameError(f"an argument of the {name!r} SDE", key, known)
    return _BUILDERS[name](**arguments)
