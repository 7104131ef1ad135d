"""The table docs/equations.md: rows, functions and tests.

Every row is there once, every function resolves, and every test exists.
"""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIZES = {"P": 13, "D": 8, "S": 5, "N": 5, "E": 12}
ROWS = [f"{letter}{i}" for letter, n in SIZES.items() for i in range(1, n + 1)]
ROW = re.compile(r"[PDSNE]\d+")


@cache
def table():
    """Return ``[(row, functions, tests)]``, with None for both if missing."""
    entries = []
    for line in (ROOT / "docs" / "equations.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and ROW.fullmatch(cells[0]):
            assert len(cells) == 4, f"row {cells[0]} has {len(cells)} cells (write \\mid for a bar in a formula)"
            entries.append((cells[0], *(named(cell) for cell in cells[2:])))
    return entries


def named(cell):
    return None if cell == "*not yet*" else re.findall(r"`([^`]+)`", cell)


@cache
def names_in(path):
    if not path.exists():
        return set()
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def rows_of(test):
    """Return the rows in a test's name.

    P9 and D3 for ``test_P9_D3_ancestral_...``
    """
    rows = []
    for word in test.removeprefix("test_").split("_"):
        if not ROW.fullmatch(word):
            break
        rows.append(word)
    return rows


def resolve(name):
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def test_every_row_is_there_once():
    assert [row for row, *_ in table()] == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_right(row):
    _, functions, tests = next(entry for entry in table() if entry[0] == row)
    if functions is None:
        assert tests is None, f"{row} has tests and no function"
        named_after = [
            f"{path.relative_to(ROOT)}::{test}"
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            for test in sorted(names_in(path))
            if row in rows_of(test)
        ]
        assert not named_after, f"{row} is marked 'not yet', but these check it: {named_after}"
        return
    assert functions
    assert tests
    for name in functions:
        assert name.startswith("scoresde.")
        resolve(name)
    for name in tests:
        path, _, test = name.partition("::")
        assert test in names_in(ROOT / path), f"{row}: no test {name}"
    assert any(row in rows_of(test.partition("::")[2]) for test in tests), f"no test of {row} is named after it"


def test_a_missing_name_is_noticed():
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        resolve("scoresde.sde.base.SDE.no_such_method")
    assert rows_of("test_P9_D3_ancestral_steps") == ["P9", "D3"]
    assert rows_of("test_prior") == []
