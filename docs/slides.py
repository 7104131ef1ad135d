"""The slides: docs/slides/slides.md as one page without other files.

    python docs/slides.py FILE

A line ``---`` begins a slide. The arrow keys, the space bar and swiping turn them; printing gives one slide a sheet.
"""

from __future__ import annotations

import argparse
import base64
import html
import re
from pathlib import Path

from latex2mathml.converter import convert

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS / "slides" / "slides.md"

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>scoresde: ten lectures</title><style>
:root {{ color-scheme: light dark; }}
html {{ scroll-snap-type: y mandatory; }}
body {{ margin: 0; font: clamp(16px, 2.3vw, 30px)/1.4 system-ui, sans-serif; }}
section {{ box-sizing: border-box; min-height: 100vh; padding: 4vh 6vw; scroll-snap-align: start; display: flex;
  flex-direction: column; justify-content: center; }}
img {{ max-width: 100%; max-height: 55vh; align-self: center; background: #fff; }}
h1, h2 {{ font-weight: 600; margin: 0 0 .5em; }}
math[display=block] {{ margin: .5em 0; font-size: 1.15em; overflow-x: auto; }}
p, ul {{ margin: .3em 0; }}
@media print {{ section {{ break-after: page; min-height: 0; }} }}
</style></head><body>
{slides}
<script>
const slides = [...document.querySelectorAll("section")];
addEventListener("keydown", event => {{
  const move = {{ArrowRight: 1, ArrowDown: 1, " ": 1, PageDown: 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1}}[event.key];
  if (!move) return;
  event.preventDefault();
  const now = Math.round(scrollY / innerHeight), next = slides[Math.min(slides.length - 1, Math.max(0, now + move))];
  next.scrollIntoView();
}});
</script></body></html>
"""


def slides() -> list[str]:
    """Return the slides as HTML."""
    return [_slide(text) for text in re.split(r"^---$", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE)]


def _slide(text: str) -> str:
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("```math"):
            blocks.append(convert(block.strip("`").removeprefix("math").strip(), display="block"))
        elif picture := re.fullmatch(r"!\[(.*?)\]\((.*?)\)", block, re.DOTALL):
            path = SOURCE.parent / picture[2]
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            address = f"data:image/{path.suffix[1:]};base64,{data}"
            blocks.append(f'<img src="{address}" alt="{html.escape(picture[1])}">')
        elif heading := re.match(r"(#+) (.*)", block):
            rank = len(heading[1])
            blocks.append(f"<h{rank}>{_inline(heading[2])}</h{rank}>")
        elif block.startswith("- "):
            items = "".join(f"<li>{_inline(item)}</li>" for item in re.split(r"^- ", block, flags=re.MULTILINE)[1:])
            blocks.append(f"<ul>{items}</ul>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    return "<section>" + "\n".join(blocks) + "</section>"


def _inline(text: str) -> str:
    parts = re.split(r"\$`(.+?)`\$|\$(.+?)\$", text.strip())
    out = ""
    for i in range(0, len(parts), 3):
        out += re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(parts[i], quote=False))
        if i + 1 < len(parts):
            out += convert(parts[i + 1] or parts[i + 2])
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", out)


def write(path: Path) -> Path:
    """Write the slides to a file."""
    path.write_text(_PAGE.format(slides="\n".join(slides())), encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> None:
    """Write the slides."""
    parser = argparse.ArgumentParser(description="Write the slides of the ten lectures as one page.")
    parser.add_argument("file", type=Path, help="where to write them")
    write(parser.parse_args(arguments).file)


if __name__ == "__main__":
    main()
