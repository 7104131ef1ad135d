"""Networks by name, as configurations and checkpoints hold them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.nets.configured import Net, configured
from scoresde.nets.diffusers_net import DiffusersNet
from scoresde.nets.dit import DiT
from scoresde.nets.mlp import ResidualMLP
from scoresde.nets.ncsnpp import NCSNpp
from scoresde.nets.unet import UNet

_REGISTRY: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "dit": DiT,
    "mlp": ResidualMLP,
    "ncsn++": NCSNpp,
    "diffusers": DiffusersNet,
}


def register_net(name: str) -> Callable[[Net], Net]:
    """Make a network class known to :func:`build_net` (class decorator).

    The class gets a ``config`` property. ``net.config`` holds ``"name"`` and every constructor argument, defaults
    included, in the types of JSON, so that ``build_net(net.config)`` builds the same architecture. A class that
    defines its own ``config`` keeps it. ::

        @register_net("linear")
        class Linear(torch.nn.Module):
            def __init__(self, shape, bias=True): ...
            def forward(self, x, time_input): ...

    Args:
        name: Name for configurations, such as "my-net".

    Raises:
        ArgumentError: A name that another class has, something that is not a class of networks, or a constructor with
            ``*args`` or ``**kwargs``, which would accept a misspelt option.
    """
    if not isinstance(name, str) or not name:
        raise ArgumentError("name", repr(name), "a name for the network, such as 'my-net'")

    def register(cls: Net) -> Net:
        taken = _REGISTRY.get(name)
        if taken is not None and _identity(taken) != _identity(cls):
            raise ArgumentError("name", repr(name), f"a name that is not taken (by {taken.__qualname__})")
        _REGISTRY[name] = configured(name)(cls)
        return cls

    return register


def _identity(cls: type) -> tuple[object, object]:  # survives the reloading of a module
    return getattr(cls, "__module__", None), getattr(cls, "__qualname__", None)


def is_registered(net: object, name: object) -> bool:
    """Return whether the class of a network is registered by this name."""
    found = _REGISTRY.get(name) if isinstance(name, str) else None
    return found is not None and _identity(found) == _identity(type(net))


def net_names() -> tuple[str, ...]:
    """Return the names that :func:`build_net` knows."""
    return tuple(_REGISTRY)


@checked
def net_options(name: str) -> dict[str, inspect.Parameter]:
    """Return the constructor arguments of the network called ``name``.

    The values have their defaults and annotations.

    Raises:
        UnknownNameError: A name that is not registered.
    """
    if name not in _REGISTRY:
        raise UnknownNameError("net", name, _REGISTRY)
    return dict(inspect.signature(_REGISTRY[name]).parameters)


@checked
def build_net(config: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """Build the network that ``config`` describes.

    The weights are drawn on the CPU; move the network afterwards.

    Args:
        config: Name and options, such as ``{"name": "unet", "shape": [1, 8, 8], "channels": 32}``.
        seed: Seed of the initial weights, which leaves torch's global random state unchanged. None: draw them from
            the global state.

    Raises:
        UnknownNameError: An unknown name or option. The message suggests the nearest.
        ArgumentError: A missing option, or one that the network's constructor refuses.
    """
    if not isinstance(config, Mapping) or "name" not in config:
        raise ArgumentError("config", repr(config), f"a mapping with a 'name', one of {', '.join(_REGISTRY)}")
    name, options = config["name"], {key: value for key, value in config.items() if key != "name"}
    known = net_options(name)
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of net {name!r}", key, known)
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in options]
    if missing:
        got = f"no {', '.join(map(repr, missing))}"
        raise ArgumentError("config", got, f"a mapping with every required option of net {name!r}")
    if seed is None:
        return _REGISTRY[name](**options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(whole("seed", seed, 0))
        return _REGISTRY[name](**options)
