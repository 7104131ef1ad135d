"""Networks by name: what a configuration file or a checkpoint needs to build one."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn

from scoresde.errors import ArgumentError, UnknownNameError

_REGISTRY: dict[str, type[nn.Module]] = {}
#: the modules of the package's own networks, which register themselves when they are imported
_OWN = ("unet", "dit", "mlp")
_CONFIG = property(lambda self: copy.deepcopy(self._config), doc="What `build_net` needs to rebuild this network.")
_Net = TypeVar("_Net", bound=type[nn.Module])


def _plain(argument: str, value: Any) -> Any:
    """``value`` in the types of JSON: tuples become lists, anything JSON cannot hold is refused."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(argument, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(argument, item) for key, item in value.items()}
    if hasattr(value, "__index__"):  # NumPy integers
        return value.__index__()
    raise ArgumentError(argument, repr(value), "a value that JSON can hold, so that the network can be rebuilt")


def register_net(name: str) -> Callable[[_Net], _Net]:
    """Class decorator: make a network known to :func:`build_net` as ``name`` and give it a ``config`` property.

    ``net.config`` holds ``"name"`` and every constructor argument, defaults included, in the types of JSON, so that
    ``build_net(net.config)`` builds the same architecture. A class that has a ``config`` of its own keeps it. ::

        @register_net("linear")
        class Linear(torch.nn.Module):
            def __init__(self, shape, bias=True): ...
            def forward(self, x, time_input): ...

    Raises :class:`ArgumentError` for a name that is taken by another class, something that is not an ``nn.Module``
    class, or a constructor with ``*args`` or ``**kwargs`` (a misspelt option would pass unseen).
    """
    if not isinstance(name, str) or not name:
        raise ArgumentError("name", repr(name), "a name for the network, such as 'my-net'")

    def register(cls: _Net) -> _Net:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ArgumentError(f"register_net({name!r})", repr(cls), "a subclass of torch.nn.Module")
        taken = _REGISTRY.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ArgumentError("name", repr(name), f"a name not taken yet; {taken.__qualname__} has it")
        signature = inspect.signature(cls)
        variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        if any(parameter.kind in variadic for parameter in signature.parameters.values()):
            raise ArgumentError(f"register_net({name!r})", f"{cls.__qualname__}{signature}", "named arguments only")
        if getattr(cls, "config", _CONFIG) is _CONFIG:
            _record_arguments(cls, name, signature)
        _REGISTRY[name] = cls
        return cls

    return register


def _record_arguments(cls: type[nn.Module], name: str, signature: inspect.Signature) -> None:
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is cls:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self._config = {"name": name, **{key: _plain(key, value) for key, value in bound.arguments.items()}}

    cls.__init__ = __init__
    cls.config = _CONFIG


def _registry() -> dict[str, type[nn.Module]]:
    """Return the registry, with the package's own networks in it."""
    for module in _OWN:
        import_module(f"scoresde.nets.{module}")
    return _REGISTRY


def net_names() -> tuple[str, ...]:
    """The names that :func:`build_net` knows, in order of registration."""
    return tuple(_registry())


def net_options(name: str) -> dict[str, inspect.Parameter]:
    """The constructor arguments of the network called ``name``, with their defaults and annotations.

    Raises :class:`UnknownNameError` for a name that is not registered.
    """
    if name not in _registry():
        raise UnknownNameError("net", name, _registry())
    return dict(inspect.signature(_registry()[name]).parameters)


def build_net(config: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """The network that ``config`` describes: ``{"name": "unet", "shape": [1, 8, 8], "channels": 32, ...}``.

    ``seed`` fixes the initial weights and leaves torch's global random state as it was; None draws them from the
    global state. Weights are drawn on the CPU (move the network afterwards).

    Raises :class:`UnknownNameError` (naming the nearest) for an unknown name or option, :class:`ArgumentError` for a
    missing one, and whatever the network's constructor refuses.
    """
    if not isinstance(config, Mapping) or "name" not in config:
        raise ArgumentError("config", repr(config), f"a mapping with a 'name', one of {', '.join(_registry())}")
    name, options = config["name"], {key: value for key, value in config.items() if key != "name"}
    known = net_options(name)
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of net {name!r}", key, known)
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in options]
    if missing:
        raise ArgumentError("config", f"no {', '.join(map(repr, missing))}", f"every required option of net {name!r}")
    if seed is None:
        return _registry()[name](**options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _registry()[name](**options)
