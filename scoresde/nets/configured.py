"""The ``config`` of a network: its name and the arguments that made it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from scoresde.errors import ArgumentError

Net = TypeVar("Net", bound=type[nn.Module])


def _recorded(net: nn.Module) -> dict[str, Any]:
    """Return the arguments that made a network.

    Raises:
        AttributeError: The network is of a subclass, with other arguments.
    """
    found: dict[str, Any] | None = vars(net).get("_config")
    if found is None:
        raise AttributeError(f"{type(net).__name__} is not registered (register_net), and has no configuration")
    return copy.deepcopy(found)


_CONFIG = property(
    _recorded,
    doc="What :func:`scoresde.nets.build_net` needs to rebuild the network.",
)


def plain(argument: str, value: Any) -> Any:
    """Return ``value`` in the types of JSON, tuples as lists.

    Raises:
        ArgumentError: A value that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(argument, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(argument, item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numbers of NumPy and torch
        return plain(argument, value.tolist())
    raise ArgumentError(argument, repr(value), "a value that JSON can hold, so that the network can be rebuilt")


def configured(name: str) -> Callable[[Net], Net]:
    """Give a network class a ``config`` property (class decorator).

    ``net.config`` holds ``"name"`` and every constructor argument, defaults included, in the types of JSON. A class
    that defines its own ``config`` keeps it.

    Args:
        name: The name in :func:`scoresde.nets.build_net`.

    Raises:
        ArgumentError: Not a subclass of ``nn.Module``, or a constructor with ``*args`` or ``**kwargs``, which would
            accept a misspelt option.
    """

    def decorate(cls: Net) -> Net:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ArgumentError(f"register_net({name!r})", repr(cls), "a subclass of torch.nn.Module")
        signature = inspect.signature(cls)
        variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        if any(parameter.kind in variadic for parameter in signature.parameters.values()):
            got = f"{cls.__qualname__}{signature}"
            raise ArgumentError(f"register_net({name!r})", got, "a class with named arguments only")
        if getattr(cls, "config", _CONFIG) is _CONFIG:
            _record_arguments(cls, name, signature)
        return cls

    return decorate


def _record_arguments(cls: type[nn.Module], name: str, signature: inspect.Signature) -> None:
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is cls:  # a subclass has its own name and arguments
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = {key: plain(key, value) for key, value in bound.arguments.items()}
            self.__dict__["_config"] = {"name": name, **arguments}

    setattr(cls, "__init__", __init__)  # noqa: B010  # type checkers refuse to assign a method
    setattr(cls, "config", _CONFIG)  # noqa: B010  # not an attribute of nn.Module
