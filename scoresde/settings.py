"""Settings: frozen dataclasses with ranges and explanations of fields.

:func:`setting` declares a field. Its type is the annotation, and choices are a ``Literal``. Everything else is read off
the fields: the checks, the docstring, the keys of a YAML file, the help of the command line. ::

    @explained
    @dataclass(frozen=True)
    class Walk(Settings):
        \"""How to walk.\"""

        steps: int = setting(10, "steps in all", ge=1)
        pace: Literal["slow", "fast"] = setting("slow", "how fast")
"""

from __future__ import annotations

import math
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from operator import index
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from scoresde.checks import number
from scoresde.errors import ArgumentError, UnknownNameError

T = TypeVar("T")

_WORDS: dict[type, str] = {int: "an integer", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}
_SHORT: dict[tuple[str, tuple[str, ...]], str] = {
    ("an integer", (">= 1",)): "a positive integer",
    ("a number", ("> 0",)): "a positive number",
}


def setting(
    default: Any,
    text: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare a field of a :class:`Settings` class.

    Args:
        default: value if none is given.
        text: one line on what the setting means, a phrase without a full stop.
        ge, gt, le, lt: bounds (>=, >, <=, <) of every number in the value.
    """
    bounds = {sign: bound for sign, bound in ((">=", ge), (">", gt), ("<=", le), ("<", lt)) if bound is not None}
    metadata = {"text": text, "bounds": bounds}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class, as checks, files and help texts read it."""

    name: str
    type: Any
    default: Any
    text: str
    bounds: Mapping[str, float]

    @property
    def options(self) -> tuple[Any, ...]:
        """The types that a value may have."""
        union = get_origin(self.type) in (Union, types.UnionType)
        return get_args(self.type) if union else (self.type,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The names to choose from; empty if the setting is not a choice."""
        return next((get_args(option) for option in self.options if get_origin(option) is Literal), ())

    @property
    def accepts(self) -> str:
        """What the setting accepts, in words: type, range, and None if allowed."""
        kinds = [option for option in self.options if option is not type(None)]
        if int in kinds and float in kinds:
            kinds.remove(int)
        words = " or ".join(self._words(kind) for kind in kinds)
        return f"{words}, or None" if type(None) in self.options else words

    def _words(self, kind: Any) -> str:
        """Return the words for one type with the setting's bounds."""
        if get_origin(kind) is Literal:
            return f"one of {', '.join(map(repr, get_args(kind)))}"
        bounds = tuple(f"{sign} {bound:g}" for sign, bound in self.bounds.items())
        limits = f" {' and '.join(bounds)}" if bounds else ""
        if get_origin(kind) is tuple:
            return f"{len(get_args(kind))} numbers{limits}"
        if get_origin(kind) is Mapping:
            return f"a mapping of names to numbers{limits}"
        word = _WORDS[get_origin(kind) or kind]
        if kind not in (int, float):
            return word
        return _SHORT.get((word, bounds), word + limits)

    def check(self, value: object) -> Any:
        """Return ``value`` as the setting's type.

        Raises:
            UnknownNameError: a name that is not among the choices.
            ArgumentError: a value of another type or out of range.
        """
        for option in self.options:
            try:
                return self._convert(option, value)
            except (TypeError, ValueError):
                continue
        if self.choices:
            raise UnknownNameError(self.name, value, self.choices)
        raise ArgumentError(self.name, _shown(value), self.accepts)

    def _convert(self, kind: Any, value: Any) -> Any:
        """Return ``value`` as one type, or raise a TypeError or ValueError."""
        origin = get_origin(kind) or kind
        if kind is Any or _is_plain(kind, value):
            return value
        if origin in (int, float) and not isinstance(value, bool):
            return self._in_range(index(value) if origin is int else number(self.name, value))
        if origin is tuple:
            if isinstance(value, list | tuple):
                pairs = zip(get_args(kind), value, strict=True)
                return tuple(self._convert(part, entry) for part, entry in pairs)
            raise TypeError
        if (
            origin not in (dict, Mapping)
            or not isinstance(value, Mapping)
            or not all(isinstance(name, str) for name in value)
        ):
            raise TypeError
        return {name: self._convert(get_args(kind)[1], entry) for name, entry in value.items()}

    def _in_range(self, value: Any) -> Any:
        inside = {">=": value >= self.bounds.get(">=", -math.inf), ">": value > self.bounds.get(">", -math.inf)}
        inside |= {"<=": value <= self.bounds.get("<=", math.inf), "<": value < self.bounds.get("<", math.inf)}
        if not all(inside.values()):
            raise ValueError
        return value


class Settings:
    """Base of settings classes: checks every field when an object is made.

    Numbers become ``int`` or ``float`` as annotated, sequences become tuples.

    Raises:
        UnknownNameError: a name that is not among the choices.
        ArgumentError: a value of another type or out of range.
    """

    def __post_init__(self) -> None:
        for one in settings_of(type(self)):
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))


def settings_of(cls: type) -> tuple[Setting, ...]:
    """Return the settings that a class declares by :func:`setting`, in order."""
    return _settings_of(cls)


@cache
def _settings_of(cls: Any) -> tuple[Setting, ...]:
    hints = get_type_hints(cls)
    found: list[Field[Any]] = [one for one in fields(cls) if "text" in one.metadata]
    return tuple(
        Setting(
            one.name,
            hints[one.name],
            one.default_factory() if one.default_factory is not MISSING else one.default,
            one.metadata["text"],
            one.metadata["bounds"],
        )
        for one in found
    )


def explained(cls: type[T]) -> type[T]:
    """Append a list of the settings to the docstring of a class."""
    lines = []
    for one in settings_of(cls):
        line = f"{one.name}: {one.text}. {one.accepts[0].upper()}{one.accepts[1:]}; default {one.default!r}."
        lines += textwrap.wrap(line, 112, initial_indent="    ", subsequent_indent="        ")
    cls.__doc__ = f"{(cls.__doc__ or cls.__name__).rstrip()}\n\nAttributes:\n" + "\n".join(lines) + "\n"
    return cls


def _is_plain(kind: Any, value: object) -> bool:
    """Return whether ``value`` is of a type with no range, such as text."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    return kind in (bool, str, type(None)) and isinstance(value, kind) and value != ""


def _shown(value: object) -> str:
    """Return a value as messages show it."""
    if isinstance(value, Mapping):
        return "a mapping"
    return repr(value)
