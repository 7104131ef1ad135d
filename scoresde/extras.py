"""Optional packages, the extras of scoresde, imported when used."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from scoresde.errors import MissingExtraError


def check_installed(package: str, extra: str | None = None) -> None:
    """Refuse to go on without a package.

    Args:
        package: Its name as it is imported.
        extra: Extra of scoresde that installs it. None: the extra has its name.

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra or package)


def optional(module: str, extra: str | None = None) -> Any:
    """Return an optional package, or a module of it.

    Args:
        module: Its name as it is imported.
        extra: Extra of scoresde that installs it. None: the extra has the package's name.

    Raises:
        MissingExtraError: It is not installed, or lacks a package that it needs.
    """
    package = module.split(".", maxsplit=1)[0]
    check_installed(package, extra)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # of what it needs itself
        raise MissingExtraError((error.name or package).split(".", maxsplit=1)[0], extra or package) from error
