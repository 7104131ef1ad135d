"""The site: Sphinx over these pages, with the API from the docstrings.

``make site`` builds it into build/site. Formulas become MathML, which browsers draw themselves: no script, no font and
no request leaves a page.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

DOCS = Path(__file__).parent
ROOMS = ("sde", "nets", "data", "models", "guidance", "flow", "sampling", "likelihood", "training", "interop", "course")
REPOSITORY = "https://github.com/scoresde/scoresde/blob/main/"
sys.path.insert(0, str(DOCS.parent))

project, author, root_doc = "scoresde", "The scoresde authors", "index"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["figures/*"]
html_theme, html_title = "furo", "scoresde"
html_show_sourcelink = False
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


def _links(app: Any, name: str, source: list[str]) -> None:
    """Lead links out of this folder to the repository."""
    source[0] = source[0].replace("](../", f"]({REPOSITORY}")


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
    app.connect("builder-inited", _write_api)
    app.connect("source-read", _links)
    app.add_node(importlib.import_module("docutils.nodes").math, override=True, html=(_math, None))
    app.add_node(importlib.import_module("docutils.nodes").math_block, override=True, html=(_math, None))
