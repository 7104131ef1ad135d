"""The site: Sphinx over these pages, with the API from the docstrings.

``make site`` builds it into build/site. Formulas become MathML, which browsers draw themselves: no script, no font and
no request leaves a page.
"""

from __future__ import annotations

import functools
import html
import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

DOCS = Path(__file__).parent
ROOMS = ("sde", "nets", "data", "models", "guidance", "flow", "sampling", "likelihood", "training", "interop", "course")
REPOSITORY = "https://github.com/scoresde/scoresde/blob/main/"
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import notebooks  # noqa: E402 - beside this file
import slides  # noqa: E402

project, author, root_doc = "scoresde", "The scoresde authors", "index"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["figures/*", "slides/*"]
html_theme, html_title = "furo", "scoresde"
html_show_sourcelink = False
html_static_path, html_css_files = ["_static"], ["site.css"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
autodoc_typehints, autodoc_member_order = "none", "bysource"
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # attributes of one name in two classes


def _bars(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape bars, which reStructuredText would take for substitutions."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`[^`]*`)", line)
        lines[i] = "".join(part if k % 2 else part.replace("|", "\\|") for k, part in enumerate(parts))


def _equations(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Add the formulas of the rows that the object computes."""
    place = f"{getattr(obj, '__module__', '')}.{getattr(obj, '__qualname__', '')}"
    if rows := _computed().get(place):
        lines += ["", ".. rubric:: Equations", ""]
    for row, text in rows or ():
        lines += [f"`{row} <../equations.html#{row}>`__: {text}", ""]


@functools.cache
def _computed() -> dict[str, list[tuple[str, str]]]:
    """Return the rows by the code that computes them."""
    found: dict[str, list[tuple[str, str]]] = {}
    table = (DOCS / "equations.md").read_text(encoding="utf-8")
    for row, text, code in re.findall(r"^\| ([PDSNE]\d+) \| (.*?) \| (`scoresde.*?) \|", table, re.MULTILINE):
        parts = re.split(r"(\$`[^`]+`\$|\$[^$]+\$|`[^`]+`)", text)
        for i in range(1, len(parts), 2):
            part = parts[i]
            parts[i] = f"\\ :math:`{part.strip('$`')}`\\ " if part.startswith("$") else f"``{part[1:-1]}``"
        for i in range(0, len(parts), 2):
            parts[i] = parts[i].replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
        for place in re.findall(r"`([^`]+)`", code):
            found.setdefault(place, []).append((row, "".join(parts)))
    return found


def _links(app: Any, name: str, source: list[str]) -> None:
    """Lead links to their places on the site or in the repository."""
    text = source[0].replace("](../", f"]({REPOSITORY}").replace("](slides/slides.md)", "](slides.html)")
    text = re.sub(r"\[([^\]]+)\]\(((?:interactive|slides)\.html)\)", r'<a href="\2">\1</a>', text)
    if not name.startswith("api/") and name != "index":
        text = _linked(text, name)
        if "\n```python" in text:
            title, rest = text.split("\n", 1)
            download = f'<a href="notebooks/{name}.ipynb" download>Notebook</a>'
            colab = f'<a href="{notebooks.COLAB}{name}.ipynb">open in Colab</a>'
            text = f"{title}\n\n{download} · {colab}\n{rest}"
    source[0] = text


#: what is not running text: fences, headings, formulas, links, code
_APART = re.compile(
    r"(^```.*?^```|^#[^\n]*|\$`[^`]+`\$|\$[^$]+\$|!?\[[^\]]*\]\([^)]*\)|`[^`\n]+`)", re.MULTILINE | re.DOTALL
)


def _linked(text: str, page: str) -> str:
    """Lead names of rows (P1) to the table, and code to its reference."""
    parts = _APART.split(text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            if page == "equations":
                parts[i] = re.sub(r"^\| ([PDSNE]\d+) \|", r'| <a id="\1"></a>\1 |', part, flags=re.MULTILINE)
            else:
                parts[i] = re.sub(r"\b([PDSNE]\d+)\b", _row, part)
        elif part.startswith("`") and not part.startswith("```"):
            parts[i] = _code(part[1:-1]) or part
    return "".join(parts)


def _row(match: re.Match[str]) -> str:
    """Return a link to a row, if there is one of that name."""
    name = match[1]
    return f'<a href="equations.html#{name}">{name}</a>' if name in _rows() else name


@functools.cache
def _rows() -> frozenset[str]:
    return frozenset(
        re.findall(r"^\| ([PDSNE]\d+) \|", (DOCS / "equations.md").read_text(encoding="utf-8"), re.MULTILINE)
    )


@functools.cache
def _places() -> dict[str, str]:
    """Return the address of every public name."""
    places = {}
    for room in ROOMS:
        module = importlib.import_module(f"scoresde.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                address = f"api/{room}.html#scoresde.{room}.{name}"
                places[name] = places[f"{value.__module__}.{name}"] = address
                if isinstance(value, type):
                    for method, member in vars(value).items():
                        if not method.startswith("_") and inspect.getdoc(getattr(value, method, None)) and member:
                            places[f"{value.__module__}.{name}.{method}"] = f"{address}.{method}"
    return places


def _code(code: str) -> str | None:
    """Return code with a link to the reference or the repository, if any."""
    start = re.match(r"(?:S\.)?([A-Za-z_][\w.]*)", code)
    place = _places().get(start[1]) if start else None
    if place is None and (test := re.fullmatch(r"(tests/[\w/]+\.py)::\w+", code)):
        place = REPOSITORY + test[1]
    if place is None and re.fullmatch(r"scoresde(\.\w+)+", code):
        parts = code.split(".")
        while parts and not (DOCS.parent / "/".join(parts)).with_suffix(".py").exists():
            parts.pop()
        place = REPOSITORY + "/".join(parts) + ".py" if parts else None
    return f'<a href="{place}"><code>{html.escape(code)}</code></a>' if place else None


def _write_extras(app: Any, error: Exception | None) -> None:
    """Write the notebooks and the slides, and copy the interactive page."""
    if error is None and app.builder.format == "html":
        notebooks.write(Path(app.outdir) / "notebooks")
        slides.write(Path(app.outdir) / "slides.html")
        shutil.copy(DOCS / "interactive.html", app.outdir)


def _math(self: Any, node: Any) -> None:
    """Write a formula as MathML."""
    from docutils import nodes

    block = node.tagname == "math_block"
    text = re.sub(r"\\tag\{(.*?)\}", r"\\qquad(\1)", node.astext())
    self.body.append(convert(text, display="block" if block else "inline"))
    raise nodes.SkipNode


def _write_index() -> None:
    """Write the index, with the pages in the order of README.md."""
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    named = list(dict.fromkeys(re.findall(r"\]\((\w+)\.md", text)))
    learn = [name for name in named if name in re.findall(r"^\d+\. \[[^\]]+\]\((\w+)\.md", text, re.MULTILINE)]
    groups = {
        "Learn": learn,
        "Guides": [name for name in named if name not in learn and name != "equations"],
        "Reference": ["equations", *(f"api/{room}" for room in ROOMS)],
    }
    lines = ["scoresde", "========", "", "Score-based generative models in continuous time, on PyTorch.", ""]
    lines += [".. toctree::", "   :hidden:", "", "   README", ""]
    for caption, pages in groups.items():
        lines += [
            ".. toctree::",
            f"   :caption: {caption}",
            "   :maxdepth: 1",
            "",
            *(f"   {page}" for page in pages),
            "",
        ]
    (DOCS / "index.rst").write_text("\n".join(lines), encoding="utf-8")


def _write_api(app: Any) -> None:
    """Write the index, and a page for each room with all of its public names."""
    _write_index()
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    for room in ROOMS:
        module = importlib.import_module(f"scoresde.{room}")
        lines = [f"scoresde.{room}", "=" * (9 + len(room)), "", f".. automodule:: scoresde.{room}", ""]
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if callable(value):
                kind = "autoclass" if isinstance(value, type) else "autofunction"
                lines += [f".. {kind}:: scoresde.{room}.{name}", *(["   :members:"] if kind == "autoclass" else []), ""]
        (folder / f"{room}.rst").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app: Any) -> None:
    """Connect what is above."""
    app.connect("autodoc-process-docstring", _bars, priority=100)
    app.connect("autodoc-process-docstring", _equations, priority=900)
    app.connect("builder-inited", _write_api)
    app.connect("source-read", _links)
    app.connect("build-finished", _write_extras)
    app.add_node(importlib.import_module("docutils.nodes").math, override=True, html=(_math, None))
    app.add_node(importlib.import_module("docutils.nodes").math_block, override=True, html=(_math, None))
