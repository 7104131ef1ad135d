"""Networks as descriptions that JSON can hold, and back.

A registered network is described by its name and arguments. Any other one is described by the path of its class and by
its configuration, if it has one. It is rebuilt only from a class or an instance that the caller passes: no code is ever
taken from a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from scoresde.errors import ArgumentError
from scoresde.nets.adapted import Adapted, adapt
from scoresde.nets.configured import plain
from scoresde.nets.registry import build_net, is_registered

ADAPTED = "adapted"


def describe_net(net: object) -> dict[str, Any]:
    """Return what rebuilds a network: its name and arguments, or its class."""
    if isinstance(net, Adapted):
        return {"name": ADAPTED, "net": describe_net(net.net), **net.settings}
    config = None
    with contextlib.suppress(AttributeError):  # none, or that of a registered class, which this one extends
        config = net.config  # type: ignore[attr-defined]
    if isinstance(config, Mapping) and is_registered(net, config.get("name")):
        return dict(config)
    cls = net if isinstance(net, type) or not isinstance(net, nn.Module) else type(net)
    path = f"{getattr(cls, '__module__', '')}.{getattr(cls, '__qualname__', type(net).__qualname__)}"
    found, made_with = None, getattr(net, "init_kwargs", None)  # EDM's networks keep how they were made
    if config is None and isinstance(made_with, Mapping) and not getattr(net, "init_args", ()):
        config = made_with
    with contextlib.suppress(ArgumentError):  # a configuration that JSON cannot hold: the caller has the network
        if isinstance(config, Mapping):
            found = plain("config", {key: value for key, value in config.items() if not str(key).startswith("_")})
    return {"class": path, "config": found}


def class_needed(description: object) -> str | None:
    """Return the path of a class that the caller must pass. None: none."""
    if not isinstance(description, Mapping):
        return None
    if description.get("name") == ADAPTED:
        return class_needed(description.get("net"))
    return str(description["class"]) if "class" in description else None


def rebuild_net(description: Mapping[str, Any], net: nn.Module | Callable[..., Any] | None = None) -> Any:
    """Build the network of a description.

    Args:
        description: What :func:`describe_net` returned.
        net: Class, function or instance, for a network that is not registered. None: it is registered.

    Raises:
        ArgumentError: The network is not registered and ``net`` is None; or its class has no configuration to be built
            from, so that an instance is needed.
    """
    if description.get("name") == ADAPTED:
        settings = {key: value for key, value in description.items() if key not in ("name", "net")}
        inner = net.net if isinstance(net, Adapted) else net
        return adapt(rebuild_net(description["net"], inner), **settings)
    if "class" not in description:
        return build_net(description) if net is None else _made(net, description, description)
    if net is None:
        raise ArgumentError("net", None, f"the class {description['class']}, or a network of it")
    return _made(net, description, description["config"])


def _made(net: Any, description: Mapping[str, Any], config: Mapping[str, Any] | None) -> Any:
    """Return an instance as it is, and one of a class from its configuration."""
    if not isinstance(net, type):
        return net
    options = {key: value for key, value in (config or {}).items() if key != "name"}
    build = getattr(net, "from_config", None)
    try:
        return build(options) if callable(build) else net(**options)
    except TypeError as error:
        expected = f"a network of this class, net={net.__name__}(...), as its arguments are not saved"
        raise ArgumentError("net", f"the class {net.__name__} ({error})", expected) from error
