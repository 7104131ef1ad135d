"""The labs as notebooks, with blanks and with solutions."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scoresde.argument_types import checked
from scoresde.course.checks import task_of
from scoresde.errors import ArgumentError
from scoresde.files import write_atomically

LABS = Path(__file__).parent / "labs"
_CELL = re.compile(r"^```python(?P<solution> solution)?\n(?P<code>.*?)^```\n", re.MULTILINE | re.DOTALL)

Kind = Literal["text", "code", "solution"]


class Cell(NamedTuple):
    """A part of a lab: text, given code, or a solution that students write."""

    kind: Kind
    source: str


def lab_files() -> dict[int, Path]:
    """Return the files of the labs by their numbers."""
    return {int(path.name[:2]): path for path in sorted(LABS.glob("[0-9][0-9]-*.md"))}


def cells(path: Path) -> Iterator[Cell]:
    """Yield the cells of a lab's file."""
    text, end = path.read_text(encoding="utf-8"), 0
    for match in _CELL.finditer(text):
        if before := text[end : match.start()].strip():
            yield Cell("text", before)
        yield Cell("solution" if match["solution"] else "code", match["code"].rstrip())
        end = match.end()
    if rest := text[end:].strip():
        yield Cell("text", rest)


def blank(code: str) -> str:
    """Return a function with its head and docstring, and no body."""
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef)
    first = function.body[0]
    head = code.splitlines()[: first.end_lineno]
    return "\n".join([*head, "    raise NotImplementedError  # your code"])


def notebook(lab: int, *, solved: bool) -> dict[str, Any]:
    """Return a lab as the content of an .ipynb file.

    Args:
        lab: Number of the lab.
        solved: Whether the functions are filled in.
    """
    found: list[dict[str, Any]] = []
    for cell in cells(lab_files()[lab]):
        if cell.kind == "text":
            text = re.sub(r"\$`([^`]*)`\$", r"$\1$", cell.source)  # Jupyter draws formulas without the backticks
            found.append({"cell_type": "markdown", "metadata": {}, "source": text})
            continue
        code = cell.source
        if cell.kind == "solution":
            name = re.findall(r"^def (\w+)", code, re.MULTILINE)[0]
            found.append(_code(code if solved else blank(code)))
            code = f"check({lab}, {task_of(lab, name).name})"
        found.append(_code(code))
    for number, one in enumerate(found):
        one["id"] = f"lab{lab:02}-{number:02}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _code(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


@checked
def start(folder: str | Path, *, solutions: bool = False) -> list[Path]:
    """Write the labs as notebooks into a folder.

    Args:
        folder: A new or an empty folder.
        solutions: Whether to write the solutions too, into its folder ``solutions``. Default False.

    Returns:
        The notebooks.

    Raises:
        ArgumentError: The folder holds files: nothing of a student is overwritten.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError("folder", f"{folder}, which is there and not empty", "a new or an empty folder")
    written = []
    for lab, path in lab_files().items():
        for place, solved in ((folder, False), *([(folder / "solutions", True)] if solutions else [])):
            content = json.dumps(notebook(lab, solved=solved), indent=1) + "\n"
            written.append(write_atomically(place / f"{path.stem}.ipynb", content))
    return written
