"""A report as one self-contained HTML file.

Styles are inline, pictures embedded, and there is no script.
"""

from __future__ import annotations

import base64
import html
import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from scoresde.errors import ArgumentError
from scoresde.files import write_atomically
from scoresde.version import __version__

#: label, value, its standard error, unit and note of a figure of merit
Card = tuple[str, object, float | None, str, str]


class Report:
    """A page that is built from top to bottom.

    Each method adds one block and returns the report, so calls chain. All text is escaped. In running text a blank line
    starts a paragraph and backquotes set `code`. Consecutive pictures stand side by side where there is room. The page
    reads at any width from 360 px, in light and dark, and on paper.

    Args:
        title: title of the page.
        subtitle: line below it.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self._blocks: list[tuple[str, str]] = []  # kind of block, its HTML
        self._headings: list[str] = []

    def section(self, heading: str, text: str = "") -> Self:
        """Begin a section with its heading and its opening paragraphs."""
        self._headings.append(heading)
        anchor = f"s{len(self._headings)}"
        return self._add("section", f'<h2 id="{anchor}">{_escape(heading)}</h2>\n{_paragraphs(text)}')

    def figure(self, png: bytes, caption: str, alt: str, plot: bool = False) -> Self:
        """Add a picture with its caption.

        Args:
            png: the bytes of a PNG file, two pixels a point.
            caption: text below the picture.
            alt: what the picture shows, in words, for readers who do not see it.
            plot: whether it is a drawing on white, which turns dark with the page. Images keep their colours.

        Raises:
            ArgumentError: ``png`` is not a PNG, or ``alt`` is empty.
        """
        if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
            raise ArgumentError("png", f"{len(png)} other bytes", "the bytes of a PNG file")
        if not alt.strip():
            raise ArgumentError("alt", repr(alt), "a description for readers who do not see the picture")
        width, height = struct.unpack(">II", png[16:24])
        data = base64.b64encode(png).decode("ascii")
        return self._add(
            "figure",
            f'<figure{" class=plot" if plot else ""}><img src="data:image/png;base64,{data}" alt="{_escape(alt)}" '
            f'width="{width}" height="{height}" style="max-width:{round(width / 2)}px">'
            f"<figcaption>{_inline(caption)}</figcaption></figure>",
        )

    def animation(self, gif: bytes, still: bytes, caption: str, alt: str, plot: bool = False) -> Self:
        """Add a picture that moves.

        Where the system is set to less motion, its last frame stands.

        Args:
            gif: the bytes of a GIF file.
            still: the bytes of a PNG file of the same size.
            caption, alt, plot: as for :meth:`figure`.

        Raises:
            ArgumentError: ``gif`` is not a GIF, ``still`` not a PNG, or ``alt`` is empty.
        """
        if gif[:6] not in (b"GIF87a", b"GIF89a") or len(gif) < 10:
            raise ArgumentError("gif", f"{len(gif)} other bytes", "the bytes of a GIF file")
        if still[:8] != b"\x89PNG\r\n\x1a\n":
            raise ArgumentError("still", f"{len(still)} other bytes", "the bytes of a PNG file")
        if not alt.strip():
            raise ArgumentError("alt", repr(alt), "a description for readers who do not see the picture")
        width, height = struct.unpack("<HH", gif[6:10])
        shown = f"max-width:{width}px" if plot else f"max-width:{max(width, 480)}px;image-rendering:pixelated"
        moving, last = (base64.b64encode(data).decode("ascii") for data in (gif, still))
        return self._add(
            "figure",
            f"<figure{' class=plot' if plot else ''}><picture>"
            f'<source media="(prefers-reduced-motion: reduce)" srcset="data:image/png;base64,{last}">'
            f'<img src="data:image/gif;base64,{moving}" alt="{_escape(alt)}" width="{width}" height="{height}" '
            f'style="{shown}"></picture><figcaption>{_inline(caption)}</figcaption></figure>',
        )

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]], caption: str) -> Self:
        """Add a table whose first column names its rows.

        Columns of numbers are set flush right.

        Args:
            header: headings of the columns.
            rows: cells of each row.
            caption: text above the table.

        Raises:
            ArgumentError: a row does not have as many cells as the header.
        """
        cells = [list(row) for row in rows]
        for i, row in enumerate(cells):
            if len(row) != len(header):
                raise ArgumentError(f"rows[{i}]", f"{len(row)} cells", f"{len(header)} cells, one for each heading")
        right = [bool(cells) and all(_numeric(row[j]) for row in cells) for j in range(len(header))]
        style = [' class="n"' if flush else "" for flush in right]
        head = "".join(f'<th scope="col"{style[j]}>{_inline(str(cell))}</th>' for j, cell in enumerate(header))
        body = "\n".join(
            f'<tr><th scope="row"{style[0]}>{_cell(row[0])}</th>'
            + "".join(f"<td{style[j]}>{_cell(row[j])}</td>" for j in range(1, len(row)))
            + "</tr>"
            for row in cells
        )
        i = len(self._blocks)
        return self._add(
            "table",
            f'<p class="caption" id="t{i}">{_inline(caption)}</p>'
            f'<div class="scroll" role="region" tabindex="0" aria-labelledby="t{i}"><table aria-labelledby="t{i}">'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>",
        )

    def figures_of_merit(self, figures: Iterable[Card]) -> Self:
        """Add cards of ``(label, value, stderr, unit, note)``.

        The standard error may be None, unit and note may be empty. A number is rounded to two digits of its standard
        error, or to four figures if it has none.
        """
        cards = []
        for label, value, stderr, unit, note in figures:
            figure, error = _rounded(value, stderr)
            spread = f' <span class="pm" title="standard error">&plusmn;&nbsp;{error}</span>' if error else ""
            small = f'<span class="unit">{_escape(unit)}</span>' if unit else ""
            below = f"<dd>{_inline(note)}</dd>" if note else ""
            name = f"<dt>{_inline(label)}</dt>"
            cards.append(f'<div class="card">{name}<dd class="value">{figure}{spread} {small}</dd>{below}</div>')
        return self._add("cards", f'<dl class="cards">{"".join(cards)}</dl>')

    def commands(self, commands: Iterable[tuple[str, str]]) -> Self:
        """Add a list of ``(explanation, command)`` to copy into a terminal."""
        items = "\n".join(
            f"<li><p>{_inline(explanation)}</p><pre><code>{_words(command)}</code></pre></li>"
            for explanation, command in commands
        )
        return self._add("commands", f'<ol class="commands">{items}</ol>')

    def html(self) -> str:
        """Return the whole page."""
        # sections are closed by the next one, and consecutive pictures share a box
        parts: list[str] = []
        open_section = False
        for i, (kind, block) in enumerate(self._blocks):
            before = self._blocks[i - 1][0] if i else ""
            after = self._blocks[i + 1][0] if i + 1 < len(self._blocks) else ""
            if kind == "section":
                parts.append(f"{'</section>' if open_section else ''}<section aria-labelledby={_anchor(block)}>")
                open_section = True
            if kind == "figure" and before != "figure":
                parts.append('<div class="figures">')
            parts.append(block)
            if kind == "figure" and after != "figure":
                parts.append("</div>")
        if open_section:
            parts.append("</section>")
        links = "".join(f'<li><a href="#s{i}">{_escape(h)}</a></li>' for i, h in enumerate(self._headings, 1))
        contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(self._headings) > 2 else ""
        subtitle = f'<p class="subtitle">{_inline(self.subtitle)}</p>' if self.subtitle else ""
        return _PAGE.format(
            title=_escape(self.title),
            style=_STYLE,
            subtitle=subtitle,
            contents=contents,
            body="\n".join(parts),
            version=__version__,
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to ``path``, all or nothing, and return the path."""
        return write_atomically(path, self.html())

    def _add(self, kind: str, block: str) -> Self:
        self._blocks.append((kind, block))
        return self


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))


def _paragraphs(text: str) -> str:
    return "\n".join(f"<p>{_inline(p.strip())}</p>" for p in re.split(r"\n\s*\n", text) if p.strip())


def _words(command: str) -> str:
    """Put each word in a span: lines break between words, not in ``--option``."""
    return re.sub(r"\S+", r"<span>\g<0></span>", _escape(command))


def _anchor(block: str) -> str:
    return block.split("id=", 1)[1].split(">", 1)[0]


def _numeric(cell: object) -> bool:
    """Return whether a cell is a number, starts like one, or is empty.

    "2.01 +- 0.02" and "-3 %" start like numbers.
    """
    return isinstance(cell, int | float) or bool(re.match(r"\s*(-?$|[-+\u2212]?\.?\d)", str(cell)))


def _cell(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else _inline(str(cell))


def _rounded(value: object, stderr: float | None) -> tuple[str, str]:
    """Round a float to its error: (2.01372, 0.0214) to ("2.014", "0.021").

    Any other value is returned as text.
    """
    if not isinstance(value, float) or not math.isfinite(value):
        return _escape(value), f"{stderr:.2g}" if stderr is not None else ""
    if stderr is None or not 0 < stderr < math.inf:
        return f"{value:.4g}", f"{stderr:.2g}" if stderr is not None else ""
    digits = max(0, 1 - int(f"{stderr:e}".partition("e")[2]))
    return f"{value:.{digits}f}", f"{stderr:.{digits}f}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{subtitle}
{contents}
</header>
<main>
{body}
</main>
<footer><p>Written by scoresde {version}.</p></footer>
</body>
</html>
"""

_STYLE = """
:root {
  --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --panel: #f6f8fa; --accent: #0062a3;
  --shade: #0000002e;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #12161b; --ink: #e6eaef; --soft: #9aa5b1; --line: #343b44; --panel: #1b2128; --accent: #6cb6f5;
    --shade: #000000b0; }
}
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 2.5rem) 3rem; max-width: 72rem;
  background: var(--page); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: 0; font-size: clamp(1.7rem, 4.5vw, 2.4rem); line-height: 1.2; letter-spacing: -0.015em; }
h2 { margin: 0 0 0.6rem; font-size: 1.4rem; line-height: 1.3; letter-spacing: -0.01em; }
p { margin: 0 0 0.8rem; max-width: 44rem; }
a { color: var(--accent); }
.subtitle { margin: 0.5rem 0 0; color: var(--soft); font-size: 1.08rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.3rem; margin: 1.1rem 0 0; padding: 0; list-style: none; }
nav a { display: inline-block; padding: 0.2rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { margin-top: 2.2rem; padding-top: 2rem; border-top: 1px solid var(--line); }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr)); gap: 0.9rem; margin: 1.4rem 0;
}
.card { padding: 0.9rem 1.1rem 1rem; background: var(--panel); border: 1px solid var(--line); border-radius: 0.6rem; }
.card dt { color: var(--soft); font-size: 0.93rem; line-height: 1.35; }
.card dd { margin: 0.25rem 0 0; color: var(--soft); font-size: 0.9rem; line-height: 1.4; }
.card .value {
  display: flex; flex-wrap: wrap; align-items: baseline; column-gap: 0.45rem;
  color: var(--ink); font-size: 1.75rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums;
}
.card .pm, .card .unit { color: var(--soft); font-size: 1rem; font-weight: 400; white-space: nowrap; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem; margin: 1.2rem 0;
  align-items: start;
}
.figures:has(figure:only-child) { grid-template-columns: minmax(0, 40rem); }
figure {
  margin: 0; min-width: 0; border: 1px solid var(--line); border-radius: 0.6rem; overflow: hidden;
  background: #ffffff; text-align: center;
}
figure img { width: calc(100% - 1rem); height: auto; margin: 0.5rem; vertical-align: top; }
@media screen and (prefers-color-scheme: dark) {
  figure.plot { background: var(--panel); }
  figure.plot img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
  figure:not(.plot) { background: #dfe3e8; }
}
figcaption {
  padding: 0.7rem 1rem 0.85rem; background: var(--panel); border-top: 1px solid var(--line); color: var(--soft);
  text-align: left; font-size: 0.93rem; line-height: 1.5;
}
.scroll {
  max-width: 100%; margin: 0.3rem 0 1.2rem; overflow-x: auto;
  /* a shadow at the edge behind which there is more, covered when scrolled to the end */
  background:
    linear-gradient(to right, var(--page) 40%, transparent) 0 0 / 2.5rem 100% local,
    linear-gradient(to left, var(--page) 40%, transparent) 100% 0 / 2.5rem 100% local,
    linear-gradient(to right, var(--shade), transparent) 0 0 / 0.9rem 100% scroll,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / 0.9rem 100% scroll;
  background-repeat: no-repeat;
}
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
table { border-collapse: collapse; font-size: 0.96rem; }
.caption { margin: 1.4rem 0 0; color: var(--soft); font-size: 0.93rem; }
th, td {
  padding: 0.42rem 1.1rem 0.42rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
}
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-size: 0.9rem; font-weight: 600; vertical-align: bottom; }
tbody th { min-width: 7rem; font-weight: 500; }
td:not(.n) { min-width: 10rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: 0.92em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
p code, td code, figcaption code, dd code { padding: 0.1em 0.3em; background: var(--panel); border-radius: 0.25rem; }
.commands { margin: 1rem 0; padding: 0; list-style: none; }
.commands p { margin: 0 0 0.3rem; }
pre {
  margin: 0 0 1.1rem; padding: 0.7rem 0.9rem; max-width: 100%; background: var(--panel); border: 1px solid var(--line);
  border-radius: 0.5rem; white-space: pre-wrap; overflow-wrap: anywhere;
}
pre span { display: inline-block; max-width: 100%; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.9rem; }
@media print {
  :root { --page: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --panel: #ffffff; --accent: #000000;
    --shade: transparent; }
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  nav { display: none; }
  section { margin-top: 1.2rem; padding-top: 1rem; }
  h2 { break-after: avoid; }
  figure, .card, tr, .commands li { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; }
}
"""
