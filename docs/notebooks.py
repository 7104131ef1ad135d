"""The pages as notebooks, with their outputs and figures.

    python docs/notebooks.py FOLDER [PAGE ...]

The outputs are those that a page shows, which the tests compare with what its code prints. So nothing has to be run.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
SETUP = '%matplotlib inline\n# elsewhere: %pip install -q "scoresde @ git+https://github.com/scoresde/scoresde"'
COLAB = "https://colab.research.google.com/github/scoresde/scoresde/blob/gh-pages/notebooks/"
SITE = "https://github.com/scoresde/scoresde/blob/main/docs/"


def _build() -> Any:
    """Return docs/build.py as a module."""
    specification = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules.get("docs_build") or importlib.util.module_from_spec(specification)
    if "docs_build" not in sys.modules:
        sys.modules["docs_build"] = module
        specification.loader.exec_module(module)
    return module


def notebook(page: Path) -> dict[str, Any]:
    """Return a page as a notebook."""
    text, end = page.read_text(encoding="utf-8"), 0
    title = text.split("\n", 1)[0]
    cells = [_markdown(f"{title}\n\n[Open in Colab]({COLAB}{page.stem}.ipynb)"), _code(SETUP, [])]
    for block in _build().blocks(text):
        cells.append(_markdown(text[end : block.span[0]].removeprefix(title)))
        outputs = [{"output_type": "stream", "name": "stdout", "text": block.output}] if block.output else []
        code = block.code.rstrip()
        if block.figure:
            kind = Path(block.figure).suffix[1:]
            data = base64.b64encode((DOCS / "figures" / block.figure).read_bytes()).decode("ascii")
            outputs.append({"output_type": "display_data", "data": {f"image/{kind}": data}, "metadata": {}})
            code += "\nfigure" if kind == "png" else ""
        cells.append(_code(code, outputs))
        end = block.span[1]
    cells.append(_markdown(text[end:]))
    cells = [cell for cell in cells if cell["source"]]
    for k, cell in enumerate(cells):
        cell["id"] = f"{page.stem[:40]}-{k}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _code(source: str, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": outputs, "execution_count": None, "metadata": {}}


def _markdown(text: str) -> dict[str, Any]:
    """Return a cell of text, without the figures, which are outputs."""
    text = re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$`(.+?)`\$", r"$\1$", text)
    text = re.sub(r"^!\[[^\]]*\]\(figures/[^)]+\)\s*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({SITE}\1)", text)
    return {"cell_type": "markdown", "source": text.strip(), "metadata": {}}


def write(folder: Path, pages: list[Path] | None = None) -> list[Path]:
    """Write pages, all those with code by default, as notebooks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for page in pages or _build().pages():
        path = folder / f"{page.stem}.ipynb"
        path.write_text(json.dumps(notebook(page), indent=1) + "\n", encoding="utf-8")
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> None:
    """Write the notebooks."""
    parser = argparse.ArgumentParser(description="Write the pages as notebooks, with their outputs and figures.")
    parser.add_argument("folder", type=Path, help="where to write them")
    parser.add_argument("page", nargs="*", type=Path, help="pages, such as docs/your_own_sde.md (all by default)")
    options = parser.parse_args(arguments)
    for path in write(options.folder, options.page):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
