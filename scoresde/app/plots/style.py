"""The look of all pictures, and the decorator that applies it.

A picture is to be read at the width of a phone: it is 5.4 inches wide with 13-point type. The colours are those of
Okabe and Ito (2008), which colour-blind readers can tell apart. Lines that may coincide also differ in their dashes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from itertools import cycle, islice
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
INK, FAINT = "#24292f", "#d0d7de"
MISSING = (0.72, 0.85, 0.96)  # where an image has no pixels
Dash = str | tuple[int, tuple[float, ...]]
DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
DASH_OF_COLOUR = tuple(islice(cycle(DASHES), len(PALETTE)))
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#d6e6f4", "#6baed6", "#2171b5", "#08306b"])

WIDTH, TYPE, DPI = 5.4, 13, 200  # inches, points, dots per inch
STYLE: dict[Any, Any] = {
    "font.size": TYPE,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2.0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
}

P = ParamSpec("P")


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return file.getvalue()


def styled(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """Draw under ``STYLE``, restore matplotlib's settings, return the PNG."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with matplotlib.rc_context(STYLE):
            return png(draw(*args, **kwargs))

    wrapper.__annotations__ = {**draw.__annotations__, "return": "bytes"}
    return wrapper


def single_axes(aspect: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; ``aspect`` is height over width."""
    figure = Figure(figsize=(WIDTH, aspect * WIDTH), layout="constrained")
    return figure, figure.add_subplot()
