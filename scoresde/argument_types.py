"""Errors that name an argument of the wrong type.

A public callable is decorated with :func:`checked`. Its own checks come first, as they know more: ranges, shapes, what
to do instead. What they let through, and what would end in a raw error of Python or torch, is compared with the
annotation here.
"""

from __future__ import annotations

import collections.abc
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import numpy as np
import torch

from scoresde.checks import LARGEST
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ScoreSDEError

T = TypeVar("T", bound=Callable[..., Any])

NUMBERS = "buifc"  # kinds of arrays of numbers
#: raw errors that a wrong argument can end in
RAW = (TypeError, AttributeError, KeyError, IndexError, ValueError, RuntimeError, ArithmeticError, AssertionError)

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "text",
    type(None): "None",
    torch.Tensor: "a tensor",
    np.ndarray: "an array of NumPy",
    Path: "a path",
    torch.dtype: "a dtype of torch",
    torch.device: "a device",
    torch.Generator: "a torch.Generator",
}


def checked(target: T) -> T:
    """Decorate a public callable, so that wrong types have a typed error.

    A function's arguments are compared with the annotations if a raw error comes out of it. Those of a class, and of a
    function that returns a model, are also compared when the object has been made, as it keeps them for later.

    Raises:
        DTypeError: by the decorated callable; names the argument, what came and what was expected.
    """
    if not isinstance(target, type):
        return cast(T, _guarded(target, target.__module__, keeps=False))
    name = "__new__" if issubclass(target, tuple) else "__init__"
    setattr(target, name, _guarded(getattr(target, name), target.__module__, keeps=True))
    return target


def _guarded(function: Any, module: str, keeps: bool) -> Any:
    """Return a function that explains its raw errors."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            made = function(*args, **kwargs)
        except ScoreSDEError:
            raise
        except RAW as error:
            _explain(function, module, args, kwargs, error)
            raise
        if keeps or isinstance(made, (torch.nn.Module, types.GeneratorType)):
            _explain(function, module, args, kwargs, None)
        return made

    return guarded


def _explain(
    function: Any, module: str, args: tuple[Any, ...], kwargs: dict[str, Any], cause: Exception | None
) -> None:
    """Raise an error for the first argument that does not fit."""
    signature, hints = _read(function, module)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # a missing or unknown argument, which Python names itself
    for name, value in given.items():
        if name in hints and not fits(value, hints[name]):
            raise DTypeError(name, shown(value), said(hints[name])) from cause
    for name, value in given.items():
        if cause is not None and isinstance(value, torch.Tensor) and value.is_meta:
            raise DeviceError(name, "meta", "a tensor with values, on another device") from cause
        if isinstance(value, np.ndarray) and value.dtype.kind not in NUMBERS:
            raise DTypeError(name, shown(value), "an array of numbers") from cause
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ArgumentError(name, value, "a number between -2^63 and 2^63") from cause


@cache
def _read(function: Any, module: str) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return a function's signature, and its annotations, evaluated."""
    signature = inspect.signature(function)
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {p.name: p.annotation for p in signature.parameters.values() if p.kind in plain}
    names = vars(sys.modules[module])
    known = {name: hint for name, hint in found.items() if hint is not inspect.Parameter.empty}
    return signature, {name: _evaluated(hint, names) for name, hint in known.items()}


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    """Return an annotation; one whose names only a type checker knows is Any."""
    text = hint.__forward_arg__ if hasattr(hint, "__forward_arg__") else hint
    try:
        return eval(text, names) if isinstance(text, str) else text
    except (NameError, TypeError, AttributeError):
        return Any


def fits(value: object, hint: Any) -> bool:
    """Return whether a value can be what an annotation says.

    Whatever can stand for it can: an integer for a number, a tensor of one entry too, a list or an array for a
    sequence, a text for a path. An annotation that says nothing about values, such as a protocol, fits all.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint in (None, type(None), Any):
        return hint is Any or value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if hint in (int, float, bool):
        return _is_number(value, hint)
    if hint is Path:
        return isinstance(value, (str, os.PathLike))
    if origin in (tuple, collections.abc.Sequence, collections.abc.Iterable, list):
        return _fits_sequence(value, origin, parts)
    if origin in (collections.abc.Mapping, dict):
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    kind = origin or hint
    known = isinstance(kind, type) and not getattr(kind, "_is_protocol", False)
    return not known or isinstance(value, kind)


def _is_number(value: object, kind: type) -> bool:
    """Return whether a value can be an integer, a number, or a truth value."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        real = not value.is_complex() if isinstance(value, torch.Tensor) else value.dtype.kind in "buif"
        whole = not value.is_floating_point() if isinstance(value, torch.Tensor) else value.dtype.kind in "bui"
        return real and tuple(value.shape) == () and (kind is float or whole)
    if kind is bool:
        return isinstance(value, (bool, np.bool_))
    if isinstance(value, (bool, np.bool_, str, bytes, type)):
        return False
    return hasattr(value, "__index__") or (kind is float and hasattr(value, "__float__"))


def _fits_sequence(value: object, origin: Any, parts: tuple[Any, ...]) -> bool:
    """Return whether a value can be a sequence."""
    if origin is collections.abc.Iterable:
        return hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    fixed = origin is tuple and (not parts or parts[-1] is not ...)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        flat = bool(parts) and parts[0] in (int, float)
        return (value.ndim == 1 if flat else value.ndim > 0) and (not fixed or len(value) == len(parts))
    if isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Sequence):
        return False
    if fixed:
        return len(value) == len(parts) and all(fits(one, part) for one, part in zip(value, parts, strict=True))
    return all(fits(one, parts[0]) for one in value) if parts else True


def said(hint: Any) -> str:
    """Return an annotation in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(said(part) for part in parts))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is tuple and parts and parts[-1] is not ...:
        return f"{len(parts)} entries ({', '.join(said(part) for part in parts)})"
    if origin in (tuple, collections.abc.Sequence, collections.abc.Iterable, list):
        return f"a sequence (each {said(parts[0])})" if parts else "a sequence"
    if origin in (collections.abc.Mapping, dict):
        return "a mapping of names"
    if origin is collections.abc.Callable:
        return "a function"
    kind = origin or hint
    return _WORDS.get(kind, f"a {kind.__name__}" if isinstance(kind, type) else "an object")


def shown(value: object) -> str:
    """Return a value as messages show it, a long one by its type."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"a {type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    plain = isinstance(value, (int, float, complex, str, bytes, type(None), list, tuple, type))
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= 60 else type(value).__name__
