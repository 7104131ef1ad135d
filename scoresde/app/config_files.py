"""Read and write settings as YAML."""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, get_origin

import yaml

from scoresde.app.config import SECTIONS, DataConfig, RunConfig, in_yaml, keys
from scoresde.app.presets import preset_for, preset_settings
from scoresde.errors import ArgumentError, ConfigError
from scoresde.files import write_atomically
from scoresde.settings import Setting, Settings, settings_of

MOST_ENTRIES, MOST_LEVELS = 100_000, 100  # of a YAML text


def load_config(
    path: str | os.PathLike[str] | None = None, preset: str | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Resolve a run's settings: defaults < preset < YAML file < overrides.

    ``net.options`` of the file replaces the preset's as a whole, an override adds to what is there. A preset's network
    gives way to another ``net.name``.

    Args:
        path: YAML file with a mapping for each section. None: no file.
        preset: name of a preset, see :func:`~scoresde.app.presets.preset_settings`; ``"none"`` takes none. None: the
            preset of ``data.source``.
        overrides: texts such as ``"train.steps=100"``, their values read as YAML.

    Raises:
        ConfigError: an unreadable or malformed file (names the line), an unknown key (names the nearest one), a value
            of the wrong type or out of range.
        UnknownNameError: an unknown preset.
    """
    # 1. what the user gives
    given = _read(path) if path is not None else {}
    patch: dict[str, Any] = {}
    for override in overrides:
        _apply(patch, override)
    explicit = _merge(copy.deepcopy(given), patch)

    # 2. the preset below it
    source = (explicit.get("data") or {}).get("source", DataConfig().source)
    if preset is None:
        preset = preset_for(source) if isinstance(source, str) else None
    base = preset_settings(preset)
    net, chosen = base.get("net", {}), (explicit.get("net") or {}).get("name")
    if chosen is not None and chosen != net.get("name"):
        base.pop("net", None)
    elif "options" in (given.get("net") or {}):
        net.pop("options", None)

    # 3. all of it together, checked
    values = _merge(_merge(base, given), patch)
    sections: dict[str, Any] = {section: _section(section, block) for section, block in values.items()}
    return RunConfig(**sections)


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> Path:
    """Write every setting with its explanation, as YAML; return the path.

    :func:`load_config` reads the file back unchanged. The file is written completely or not at all.
    """
    lines = ["# All settings of this run, each with what it means."]
    for section, cls in SECTIONS.items():
        lines += ["", f"{section}:  # {summary(cls)}"]
        for one in settings_of(cls):
            entry = f"  {one.name}: {to_yaml(getattr(getattr(config, section), one.name))}"
            lines.append(f"{entry:<36}  # {in_yaml(one.text)}")
    return write_atomically(path, "\n".join(lines) + "\n")


def to_yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def summary(section: type[Settings]) -> str:
    """Return the one line that says what a section is about."""
    return (section.__doc__ or section.__name__).splitlines()[0]


# --- reading ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-4`` as a number and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, what: str) -> Any:
    """Return the value of a YAML text; ``what`` names it in a ConfigError."""
    depth = accumulate((char in "[{") - (char in "]}") for char in text if char in "[]{}")
    try:
        if max(depth, default=0) > MOST_LEVELS:  # the parser's time grows with their square
            raise RecursionError
        value = yaml.load(text, Loader=_Loader)
        if _entries(value, {}) > MOST_ENTRIES:
            raise ConfigError(what, "aliases that stand for too much", f"YAML of at most {MOST_ENTRIES} entries")
        return value
    except RecursionError:
        raise ConfigError(what, "YAML in too many levels, or inside itself", "well-formed YAML") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        where = f" on line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(what, f"malformed YAML{where} ({problem})", "well-formed YAML") from None


def _entries(value: Any, known: dict[int, int]) -> int:
    """Return the number of entries of a YAML value, its aliases written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_entries(part, known) for part in parts)
    return known[id(value)]


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the sections in a YAML file, their keys checked."""
    what = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else f"an error ({error.strerror})"
        raise ConfigError(what, reason, "a readable YAML file") from None
    values = _parse(text, what)
    if values is not None and not isinstance(values, dict):
        raise ConfigError(what, _kind(values), f"a mapping with the sections {_listed(SECTIONS)}")
    return _checked(values or {})


def _apply(patch: dict[str, Any], override: str) -> None:
    """Add an override such as ``train.steps=100`` to ``patch``."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError("override", repr(override), "section.key=value, such as train.steps=100")
    value = _parse(text, key)
    for name in reversed(key.split(".")):
        value = {name: value}
    _merge(patch, _checked(value))


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``over`` into ``base`` in place, key by key, and return ``base``."""
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            _merge(old, value)
        else:
            base[key] = copy.deepcopy(value)
    return base


# --- checking --------------------------------------------------------------------------------------------------------


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` without empty sections.

    Raises:
        ConfigError: an unknown key, or a section that is no mapping.
    """
    for section, block in values.items():
        if section not in SECTIONS:
            raise _unknown(f"{section}.{next(iter(block))}" if isinstance(block, dict) and block else str(section))
        known = {one.name: one for one in settings_of(SECTIONS[section])}
        if block is not None and not isinstance(block, dict):
            raise ConfigError(section, _kind(block), f"a section with the keys {_listed(known)}")
        for key, value in (block or {}).items():
            if key not in known:
                raise _unknown(f"{section}.{key}")
            if isinstance(value, dict) and not _takes_mapping(known[key]):
                raise ConfigError(f"{section}.{key}", _kind(value), in_yaml(known[key].accepts))
    return {section: block for section, block in values.items() if block is not None}


def _takes_mapping(setting: Setting) -> bool:
    return any(get_origin(option) in (dict, Mapping) for option in setting.options)


def _section(section: str, block: Mapping[str, Any]) -> Settings:
    """Return a section with the values of ``block``.

    Raises:
        ConfigError: a value that does not fit; names the key.
    """
    try:
        return SECTIONS[section](**block)
    except ArgumentError as error:
        raise ConfigError(f"{section}.{error.argument}", error.got, in_yaml(error.expected)) from None


def _unknown(key: str) -> ConfigError:
    """Return the error for an unknown key, with the nearest known one."""
    known = [one.key for one in keys()]
    section, _, leaf = key.rpartition(".")
    if section in SECTIONS:
        pool = [name for name in known if name.startswith(f"{section}.")]
        expected = f"a key of {section}: {_listed(name.removeprefix(f'{section}.') for name in pool)}"
        near = difflib.get_close_matches(key, pool, n=1, cutoff=0.8)  # a misspelling in the right section
    else:
        expected = f"a key of a section: {_listed(SECTIONS)}"
        near = difflib.get_close_matches(key, known if section else SECTIONS, n=1, cutoff=0.8)
    near = near or [name for name in known if name.endswith(f".{leaf}")]  # the right name in the wrong section
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return ConfigError(key, "an unknown key" + (f" (did you mean {near[0]!r}?)" if near else ""), expected)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
