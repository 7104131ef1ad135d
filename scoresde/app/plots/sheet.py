"""The layout of images on a page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from scoresde.app.plots.inputs import Floats
from scoresde.app.plots.style import STYLE, TYPE, WIDTH


@dataclass(frozen=True)
class _Text:
    """A line of type: its middle (x, y) and its greatest width, in pixels."""

    x: float
    y: float
    width: float
    text: str


class Sheet:
    """A page of ``rows`` x ``columns`` images.

    Lines of type stand above, below or left of them. Images are enlarged by a whole factor, so a pixel of the data is a
    square of the picture. The sheet is ``WIDTH`` inches wide however many pixels it has.

    Args:
        size: (height, width) of an image, in pixels.
        columns, rows: numbers of images.
        above, below: heights above the first row and under every row, in lines of type.
        split: column before which a wider gap opens, 0 for none.
    """

    def __init__(
        self, size: tuple[int, int], columns: int, rows: int, above: float = 0, below: float = 0, split: int = 0
    ):
        target = WIDTH * float(STYLE["figure.dpi"])
        self.zoom = max(1, round(target / max(columns, 3) / size[1]))
        self.height, self.width = size[0] * self.zoom, size[1] * self.zoom
        self.gap = max(2, round(0.006 * max(target, columns * self.width)))
        self.split, self.columns = split, columns
        self.sheet_width = self._left(columns - 1) + self.width
        self.dpi = max(self.sheet_width, target) / WIDTH  # a sheet narrower than the page keeps the size of its type
        self.line = 1.35 * TYPE * self.dpi / 72
        self.top, self.row = round(above * self.line), self.height + self.gap + round(below * self.line)
        self.sheet = np.ones((self.top + rows * self.row - self.gap, self.sheet_width, 3))
        self.texts: list[_Text] = []
        self.labels: list[tuple[float, str]] = []  # y of the middle and text, left of the rows

    def _left(self, column: int) -> int:
        return column * (self.width + self.gap) + (4 * self.gap if self.split and column >= self.split else 0)

    def put(self, image: Floats, row: int, column: int, caption: str | None = None) -> None:
        """Put an image ``(H, W, 3)`` in its place, with a caption under it."""
        top, left = self.top + row * self.row, self._left(column)
        block = image.repeat(self.zoom, axis=0).repeat(self.zoom, axis=1)
        self.sheet[top : top + self.height, left : left + self.width] = block
        if caption is not None:
            middle, under = left + self.width / 2, top + self.height + 0.5 * self.line
            self.texts.append(_Text(middle, under, self.width + self.gap, caption))

    def head(self, text: str, column: int, span: int) -> None:
        """Write a heading above ``span`` columns."""
        left, right = self._left(column), self._left(column + span - 1) + self.width
        self.texts.append(_Text((left + right) / 2, self._heading, right - left + self.gap, text))

    def label(self, text: str, row: int) -> None:
        """Write a label left of a row."""
        self.labels.append((self.top + row * self.row + self.height / 2, text))

    @property
    def _heading(self) -> float:
        return self.top - 0.65 * self.line

    def figure(self, corner: str = "") -> Figure:
        """Return the finished sheet; ``corner`` is written left of the headings."""
        # 1. the sheet, with a margin for what is written left of it
        margin = round(0.9 * self.line) if corner else 0
        if self.labels:
            margin = round((0.5 + 0.45 * max(len(text) for _, text in self.labels)) * self.line)
        pad = self.gap
        height, width = self.sheet.shape[0] + 2 * pad, self.sheet_width + margin + 2 * pad
        figure = Figure(figsize=(width / self.dpi, height / self.dpi), dpi=self.dpi)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        left = pad + margin
        extent = (left, left + self.sheet_width, height - pad, pad)
        axes.imshow(self.sheet, extent=extent, interpolation="nearest", aspect="auto")

        # 2. one size for all the type: the largest at which every text fits its width
        room = min((text.width / max(1, len(text.text)) for text in self.texts), default=math.inf)
        points = max(6.0, min(TYPE, room / 0.58 * 72 / self.dpi))

        # 3. the texts
        for text in self.texts:
            axes.text(left + text.x, pad + text.y, text.text, ha="center", va="center", fontsize=points)
        for y, label in self.labels:
            axes.text(left - 2 * self.gap, pad + y, label, ha="right", va="center", fontsize=points)
        if corner:
            axes.text(pad, pad + self._heading, corner, ha="left", va="center", fontsize=points)
        return figure
