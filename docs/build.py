"""Run the code of the teaching pages; write their outputs and figures.

    python docs/build.py [PAGE ...]

runs the pages (all by default), rewrites the ``text`` blocks with the output of the code and writes the figures to
docs/figures. tests/docs runs the same code and compares.

The ``python`` blocks of a page run in order in one namespace. The output of a block stands in the ``text`` block that
follows it. A block opened by ``python figure=NAME.png`` leaves a matplotlib figure in the variable ``figure``, by
``NAME.gif`` a list of them, the frames of an animation. One opened by ``python needs=PACKAGE`` is left out, with its
output as it stands, where the package is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS / "figures"
DPI, COLOURS = 150, 64  # of the figures: wide enough for a sharp page, small enough for the repository
FRAME_DPI = 70  # of the animations

_BLOCK = re.compile(
    r"^```python(?:[ ]figure=(?P<figure>[\w-]+\.(?:png|gif)))?(?:[ ]needs=(?P<needs>\w+))?\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A ``python`` block and its place in the page.

    ``output`` is the text shown below it, None without a ``text`` block.
    """

    code: str
    output: str | None
    figure: str | None
    needs: str | None  # a package
    line: int  # of the page, of the first line of code
    span: tuple[int, int]

    @property
    def missing(self) -> bool:
        """Whether the package that it needs is not installed."""
        return self.needs is not None and importlib.util.find_spec(self.needs) is None


class Result(NamedTuple):
    """A block and what it printed."""

    block: Block
    printed: str


def pages() -> list[Path]:
    """Return the pages with code, by name."""
    return sorted(path for path in DOCS.glob("*.md") if "\n```python" in path.read_text())


def blocks(text: str) -> Iterator[Block]:
    """Yield the ``python`` blocks of a page."""
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(match["code"], match["output"], match["figure"], match["needs"], line, match.span())


def run(page: Path, figures: Path) -> list[Result]:
    """Run the code of ``page``; write its figures into a folder.

    Raises:
        RuntimeError: a block failed; names the page and the line of the block.
    """
    namespace: dict = {"__name__": page.stem}
    results = []
    for block in blocks(page.read_text()):
        if block.missing:
            results.append(Result(block, block.output or ""))
            continue
        # the blank lines make a traceback speak of the page's own line numbers
        program = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        try:
            with redirect_stdout(io.StringIO()) as printed:
                _execute(program, namespace, figures, block.figure)
        except Exception as error:
            raise RuntimeError(f"{page.name}, the block at line {block.line}: {error!r}") from error
        results.append(Result(block, printed.getvalue()))
    return results


def _execute(program, namespace: dict, figures: Path, name: str | None) -> None:
    if name is None:
        exec(program, namespace)
        return
    import matplotlib

    from scoresde.app.plots import STYLE

    namespace.pop("figure", None)
    with matplotlib.rc_context(STYLE):
        exec(program, namespace)
        figure = namespace["figure"]
        if name.endswith(".gif"):
            _save_frames(figure, figures / name)
        else:
            _save(figure, figures / name)


def _save(figure, path: Path) -> None:
    """Save the figure as a PNG of few colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    FigureCanvasAgg(figure)
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=DPI)
        Image.open(file).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _save_frames(frames: list, path: Path) -> None:
    """Save the figures as the frames of a GIF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    from scoresde.app.plots import gif

    images = []
    for frame in frames:
        FigureCanvasAgg(frame)
        with io.BytesIO() as file:
            frame.savefig(file, format="png", dpi=FRAME_DPI)
            images.append(Image.open(file).convert("RGB"))
    path.write_bytes(gif(images)[0])


def rewritten(text: str, results: list[Result]) -> str:
    """Return the page with every ``text`` block as its code printed it."""
    parts, end = [], 0
    for block, printed in results:
        figure = (f" figure={block.figure}" if block.figure else "") + (f" needs={block.needs}" if block.needs else "")
        output = f"\n```text\n{printed}```\n" if printed else ""
        parts += [text[end : block.span[0]], f"```python{figure}\n{block.code}```\n{output}"]
        end = block.span[1]
    return "".join([*parts, text[end:]])


def main(arguments: list[str] | None = None) -> None:
    """Rewrite pages and figures."""
    parser = argparse.ArgumentParser(description="Run the code of the pages; rewrite their outputs and figures.")
    parser.add_argument("page", nargs="*", type=Path, help="pages, such as docs/your_own_sde.md (all by default)")
    FIGURES.mkdir(exist_ok=True)
    for page in parser.parse_args(arguments).page or pages():
        results = run(page, FIGURES)
        page.write_text(rewritten(page.read_text(), results))
        sys.stdout.write(f"{page.name}: {len(results)} blocks\n")


if __name__ == "__main__":
    main()
