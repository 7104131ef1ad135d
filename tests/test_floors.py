"""Imports of rooms: lower floors only, no circles, and fast.

Rooms import only from lower floors, and the files of a room in no circle.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scoresde"
#: from the ground up; rooms of one floor do not import each other
FLOORS = (
    {"errors", "version"},
    {"checks", "random", "files", "extras"},
    {"settings", "argument_types"},
    {"sde", "nets", "data"},
    {"models"},
    {"guidance", "flow"},
    {"sampling", "likelihood", "training"},
    {"interop", "course"},
    {"app"},
    {"__main__"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
#: the class methods of ScoreModel for other libraries, which import the room above when called
DOORS = PACKAGE / "models" / "doors.py"
#: what modules below app may import at their top; functions import all else themselves
LIGHT = {"torch", "numpy", "lazy_loader", "scoresde"} | set(sys.stdlib_module_names)
HEAVY = ("matplotlib", "scipy", "sklearn", "PIL", "yaml", "rich", "click", "torchdiffeq", "safetensors")


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def nodes(path):
    """Return the nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imported(path):
    """Yield the full names that a module imports, and their nodes.

    Imports inside functions count too.
    """
    package = ("scoresde", *path.relative_to(PACKAGE).parts[:-1])
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, *filter(None, [node.module])))
            names = [alias.name for alias in node.names] if source == "scoresde" else [None]
            yield from ((".".join(filter(None, (source, name))), node) for name in names)


def test_rooms_import_only_from_lower_floors():
    wrong = []
    for path in modules():
        room = room_of(path)
        assert room in FLOOR, f"{room} has no floor: give it one in FLOORS"
        for name, node in imported(path):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top != "scoresde" or (room in {"app", "__main__"} and other not in FLOOR):
                continue  # the application uses the public face
            if other not in FLOOR:
                wrong.append(f"{path}:{node.lineno} imports {name}, the public face")
            elif path == DOORS and other == "interop" and node.col_offset:
                continue
            elif other != room and FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{path}:{node.lineno}: {room} imports {name}")
    assert not wrong, "\n".join(wrong)


def face(room):
    """Return the names that a room shows, and the file of each."""
    stub = PACKAGE / room / "__init__.pyi"
    tree = ast.parse(stub.read_text() if stub.exists() else "")
    return {alias.name: node.module for node in tree.body for alias in node.names}


def files_of(room):
    """Return the files of a room and its folders.

    dotted name within the room -> path
    """
    paths = sorted((PACKAGE / room).rglob("*.py"))
    names = [".".join(path.relative_to(PACKAGE / room).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports_within(room):
    """Return for every file of a room the room's files that it imports.

    Imports inside functions count too.
    """
    shown, files, graph = face(room), files_of(room), {}
    for name, path in files.items():
        targets = graph.setdefault(name, set())
        for node in nodes(path):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(f"scoresde.{room}"):
                continue
            module = node.module.removeprefix(f"scoresde.{room}").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")  # the name may be that of a file
                targets.add(inner if inner in files else module or shown[alias.name])
    return graph


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_the_files_of_a_room_import_in_no_circle(room):
    TopologicalSorter(imports_within(room)).prepare()  # a CycleError names the circle


def test_a_circle_is_seen():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_no_file_has_the_name_of_a_public_object(room):
    """Check names: importing such a file would replace the name by the module."""
    assert not set(face(room)) & {path.stem for path in (PACKAGE / room).glob("*.py")}


def test_top_level_imports_are_light():
    wrong = []
    for path in modules():
        if room_of(path) in {"app", "__main__"}:
            continue
        inside = {node for f in nodes(path) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
        for name, node in imported(path):
            if node not in inside and name.partition(".")[0] not in LIGHT:
                wrong.append(f"{path}:{node.lineno} imports {name} at the top")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_importing_the_package_imports_nothing_heavy():
    code = f"""
import sys, torch, numpy
before = set(sys.modules)
import scoresde
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new & set({HEAVY!r})))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
