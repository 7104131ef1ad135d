"""Other libraries for tests, without what of them needs torchvision."""

import sys
import types
from importlib import import_module, util
from unittest.mock import MagicMock

import pytest


def library(package, module=None, stubs=()):
    """Return a module of a library, or skip the test by its name.

    Args:
        package: The library.
        module: The module in it. None: the package. With a module, the package's own ``__init__`` does not run.
        stubs: Modules that it imports for other purposes, such as torchvision, and that may be absent.
    """
    spec = util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    if module is None:
        return pytest.importorskip(package)
    name = f"{package}.{module}"
    if name in sys.modules:
        return sys.modules[name]
    absent = [stub for stub in stubs if stub not in sys.modules and util.find_spec(stub.split(".")[0]) is None]
    added = {stub: MagicMock() for stub in absent}
    if package not in sys.modules:
        added[package] = types.ModuleType(package)
        added[package].__path__ = list(spec.submodule_search_locations)
    before = set(sys.modules)
    sys.modules.update(added)
    try:
        return import_module(name)
    finally:
        for stub in added:
            del sys.modules[stub]
        for other in set(sys.modules) - before:
            if other.startswith(package) and other != name:
                del sys.modules[other]
