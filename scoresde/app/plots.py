"""Pictures of data, samples, scores and training, each returned as the bytes of a PNG.

Every function takes NumPy arrays or tensors, draws on its own matplotlib figure (no pyplot, no global state kept) and
is sized to be read at the width of a phone: the figure is 5.4 inches wide with 13-point type. Images are enlarged by
whole factors, so that a pixel of the data is a square of the picture. Colours are Okabe and Ito's (2008), told apart
by colour-blind readers; lines that may coincide also differ in their dashes.

Bad shapes raise ``ShapeError``, values that cannot be drawn ``ArgumentError``; both name the argument.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scoresde.errors import ArgumentError, ShapeError

BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
INK, FAINT = "#24292f", "#d0d7de"
NOTHING = (0.72, 0.85, 0.96)  # where an image has no pixels
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#d6e6f4", "#6baed6", "#2171b5", "#08306b"])

WIDTH, DPI = 5.4, 200  # inches, dots per inch
STYLE = {
    "font.size": 13,
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

Array = Any  # a NumPy array, a tensor on any device, or nested sequences of numbers


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return file.getvalue()


def _styled(draw: Callable[..., Figure]) -> Callable[..., bytes]:
    """Draw under ``STYLE`` and return the PNG; matplotlib's settings are as before afterwards."""

    @wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> bytes:
        with matplotlib.rc_context(STYLE):
            return png(draw(*args, **kwargs))

    wrapper.__annotations__ = {**draw.__annotations__, "return": "bytes"}
    return wrapper


# --- images ----------------------------------------------------------------------------------------------------------


@_styled
def image_grid(images: Array, columns: int | None = None, captions: Sequence[str] | None = None) -> Figure:
    """Images ``(N, C, H, W)`` with values in [0, 1] (C = 1, 3 or 4) in rows of ``columns`` (None: about a square).

    ``captions`` are N short texts, one under each image. Values outside [0, 1] are clipped.
    """
    images = _images("images", images)
    columns = _columns(columns, len(images))
    if captions is not None and len(captions) != len(images):
        raise ArgumentError("captions", f"{len(captions)} texts", f"{len(images)}, one an image")
    page = _Page(images.shape[1:3], columns, math.ceil(len(images) / columns), below=0 if captions is None else 1)
    for i, image in enumerate(images):
        page.put(image, i // columns, i % columns, caption=captions[i] if captions is not None else None)
    return page.figure()


@_styled
def side_by_side(
    real: Array, samples: Array, columns: int | None = None, names: tuple[str, str] = ("real", "samples")
) -> Figure:
    """Two blocks of images ``(N, C, H, W)`` with their names above: the data's left, the model's right.

    Both blocks show as many images as the smaller set has, in rows of ``columns`` (None: about a square).
    """
    real, samples = _images("real", real), _images("samples", samples)
    if real.shape[1:3] != samples.shape[1:3]:
        raise ShapeError("samples", f"images of {samples.shape[1:3]} pixels", f"{real.shape[1:3]}, like the real ones")
    n = min(len(real), len(samples))
    columns = _columns(columns, n)
    page = _Page(real.shape[1:3], 2 * columns, math.ceil(n / columns), above=1.3, split=columns)
    for block, (name, images) in enumerate(zip(names, (real, samples), strict=True)):
        page.head(name, block * columns, columns)
        for i in range(n):
            page.put(images[i], i // columns, block * columns + i % columns)
    return page.figure()


@_styled
def strip(states: Sequence[tuple[float, Array]]) -> Figure:
    """Paths through time: one row a sample, one column a state ``(t, images)``, t written above the column.

    All ``images`` are ``(N, C, H, W)`` in [0, 1], the same N samples at each t. Serves the forward process (t rising)
    and sampling (t falling) alike.
    """
    if not states:
        raise ArgumentError("states", "none", "at least one pair (t, images)")
    frames = [_images(f"states[{i}]", images) for i, (_, images) in enumerate(states)]
    for i, frame in enumerate(frames):
        if frame.shape[:3] != frames[0].shape[:3]:
            raise ShapeError(f"states[{i}]", f"shape {frame.shape[:3]}", f"{frames[0].shape[:3]}, like the first state")
    page = _Page(frames[0].shape[1:3], len(frames), len(frames[0]), above=1.3)
    times = [f"{float(t):.2g}" for t, _ in states]
    labels = [f"t = {times[0]}", *times[1:]] if len(times) <= 5 else times
    for column, (label, frame) in enumerate(zip(labels, frames, strict=True)):
        page.head(label, column, 1)
        for row, image in enumerate(frame):
            page.put(image, row, column)
    return page.figure("" if len(times) <= 5 else "t")


@_styled
def columns_of_images(blocks: Mapping[str, Sequence[Array]]) -> Figure:
    """Images ``(N, C, H, W)`` in [0, 1], a row an item: blocks of columns side by side with their names above.

    Pixels that are NaN are drawn in light blue: there is nothing there.
    """
    stacks = {name: [_with_gaps(f"blocks[{name!r}]", images) for images in stack] for name, stack in blocks.items()}
    every = [images for stack in stacks.values() for images in stack]
    if not every:
        raise ArgumentError("blocks", "none", "at least one block of images")
    for images in every:
        if images.shape != every[0].shape:
            raise ShapeError("blocks", f"images {images.shape[:3]}", f"{every[0].shape[:3]}, like the first")
    page = _Page(every[0].shape[1:3], len(every), len(every[0]), above=1.3)
    column = 0
    for name, stack in stacks.items():
        page.head(name, column, len(stack))
        for images in stack:
            for row, image in enumerate(images):
                page.put(image, row, column)
            column += 1
    return page.figure()


@_styled
def rows_of_images(rows: Mapping[str, Array]) -> Figure:
    """Images ``(N, C, H, W)`` in [0, 1]: a row for each name, which is written left of it."""
    stacks = {name: _images(f"rows[{name!r}]", images) for name, images in rows.items()}
    if not stacks:
        raise ArgumentError("rows", "none", "at least one row of images")
    first = next(iter(stacks.values()))
    for name, images in stacks.items():
        if images.shape != first.shape:
            raise ShapeError(f"rows[{name!r}]", f"images {images.shape[:3]}", f"{first.shape[:3]}, like the first")
    page = _Page(first.shape[1:3], len(first), len(stacks))
    for row, (name, images) in enumerate(stacks.items()):
        page.label(name, row)
        for column, image in enumerate(images):
            page.put(image, row, column)
    return page.figure()


def _with_gaps(name: str, images: Array) -> np.ndarray:
    """Images as :func:`_images` gives them, NaN in light blue."""
    images = _array(name, images)
    missing = np.isnan(images).any(axis=1) if images.ndim == 4 else False
    images = _images(name, np.nan_to_num(images, nan=0.0)).copy()
    images[missing] = NOTHING
    return images


class _Page:
    """A sheet of ``rows`` x ``columns`` images laid out in whole pixels, with lines of type above, below or between.

    ``above`` (once, at the top) and ``below`` (under every row) are heights in lines of type; a wider gap opens before
    column ``split``. The sheet is ``WIDTH`` inches wide however many pixels it has.
    """

    def __init__(
        self, size: tuple[int, int], columns: int, rows: int, above: float = 0, below: float = 0, split: int = 0
    ):
        target = WIDTH * DPI
        self.zoom = max(1, round(target / max(columns, 3) / size[1]))
        self.height, self.width = size[0] * self.zoom, size[1] * self.zoom
        self.gap = max(2, round(0.006 * max(target, columns * self.width)))
        self.split, self.columns = split, columns
        self.sheet_width = self._left(columns - 1) + self.width
        self.dpi = max(self.sheet_width, target) / WIDTH  # a sheet narrower than the page keeps the size of its type
        self.line = 1.35 * STYLE["font.size"] * self.dpi / 72
        self.top, self.row = round(above * self.line), self.height + self.gap + round(below * self.line)
        self.sheet = np.ones((self.top + rows * self.row - self.gap, self.sheet_width, 3))
        self.texts: list[tuple[float, float, float, str]] = []  # x and y of the middle, room, text
        self.labels: list[tuple[float, str]] = []  # y of the middle and text, left of the rows

    def _left(self, column: int) -> int:
        return column * (self.width + self.gap) + (4 * self.gap if self.split and column >= self.split else 0)

    def put(self, image: np.ndarray, row: int, column: int, caption: str | None = None) -> None:
        top, left = self.top + row * self.row, self._left(column)
        block = image.repeat(self.zoom, axis=0).repeat(self.zoom, axis=1)
        self.sheet[top : top + self.height, left : left + self.width] = block
        if caption is not None:
            middle = left + self.width / 2
            self.texts.append((middle, top + self.height + 0.5 * self.line, self.width + self.gap, caption))

    def head(self, text: str, column: int, span: int) -> None:
        left, right = self._left(column), self._left(column + span - 1) + self.width
        self.texts.append(((left + right) / 2, self.top - 0.65 * self.line, right - left + self.gap, text))

    def label(self, text: str, row: int) -> None:
        self.labels.append((self.top + row * self.row + self.height / 2, text))

    def figure(self, corner: str = "") -> Figure:
        """The finished sheet; ``corner`` is written left of the headings."""
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
        # one size for all the type: the largest at which every text fits the room it has
        room = min((space / max(1, len(text)) for _, _, space, text in self.texts), default=math.inf)
        points = max(6.0, min(STYLE["font.size"], room / 0.58 * 72 / self.dpi))
        for x, y, _, text in self.texts:
            axes.text(left + x, pad + y, text, ha="center", va="center", fontsize=points)
        for y, text in self.labels:
            axes.text(left - 2 * self.gap, pad + y, text, ha="right", va="center", fontsize=points)
        if corner:
            axes.text(pad, pad + self.top - 0.65 * self.line, corner, ha="left", va="center", fontsize=points)
        return figure


# --- curves ----------------------------------------------------------------------------------------------------------


@_styled
def loss_curve(steps: Array, loss: Array, ema: Array | None = None) -> Figure:
    """The loss against the step: faint as it came, strong as smoothed.

    ``steps``, ``loss`` and ``ema`` are ``(N,)``; ``ema`` None takes an exponential average over a fortieth of the run.
    The axis is logarithmic where positive losses span more than a factor of 4. Values that are not finite are left out.
    """
    steps, loss = _vector("steps", steps), _vector("loss", loss)
    if len(steps) != len(loss):
        raise ShapeError("loss", f"{len(loss)} values", f"{len(steps)}, one a step")
    smooth = _smoothed(loss) if ema is None else _vector("ema", ema)
    if len(smooth) != len(steps):
        raise ShapeError("ema", f"{len(smooth)} values", f"{len(steps)}, one a step")
    figure, axes = _axes(0.6)
    alone = "o" if len(steps) == 1 else ""
    axes.plot(steps, _finite(loss), color=BLUE, alpha=0.35, linewidth=1, marker=alone, label="each record")
    axes.plot(steps, _finite(smooth), color=BLUE, linewidth=2.4, marker=alone, label="smoothed")
    drawn = np.concatenate([loss, smooth])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and 0 < 4 * drawn.min() < drawn.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain_log)
        axes.yaxis.set_minor_formatter(_plain_log)
        axes.tick_params(axis="y", which="minor", labelsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(loc="upper right")
    return figure


@_styled
def histograms(values: Mapping[str, Array], xlabel: str) -> Figure:
    """Several sets of numbers ``{name: (N,)}`` as overlaid histograms with common bins, their medians marked.

    Heights are shares of each set, so sets of different size compare. At most six sets.
    """
    if not 1 <= len(values) <= len(PALETTE):
        raise ArgumentError("values", f"{len(values)} sets", f"1 to {len(PALETTE)}")
    sets = {name: _vector(f"values[{name!r}]", v) for name, v in values.items()}
    for name, v in sets.items():
        if not np.isfinite(v).all():
            raise ArgumentError(f"values[{name!r}]", f"{(~np.isfinite(v)).sum()} non-finite values", "finite numbers")
    everything = np.concatenate(list(sets.values()))
    low, high = everything.min(), everything.max()
    pad = 0.02 * (high - low) or max(1e-3, 1e-3 * abs(high))
    bins = np.linspace(low - pad, high + pad, 61)
    figure, axes = _axes(0.66)
    for color, dash, (name, v) in zip(PALETTE, _cycle(DASHES), sets.items(), strict=False):
        shares = np.histogram(v, bins)[0] / len(v)
        axes.stairs(shares, bins, fill=True, color=color, alpha=0.3)
        axes.stairs(shares, bins, color=color, linewidth=1.5)
        median = float(np.median(v))
        axes.axvline(median, color=color, linestyle=dash, linewidth=1.8, label=f"{name}: median {_number(median)}")
    axes.set(xlabel=xlabel, ylabel="share", ylim=(0, None), xlim=(bins[0], bins[-1]))
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=1)
    return figure


@_styled
def sde_curves(t: Array, curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    """The mean scale alpha(t) and the noise sigma(t) of forward processes ``{name: (alpha, sigma)}``, all ``(N,)``.

    The axis of sigma is logarithmic when some sigma exceeds 2 (a variance-exploding process).
    """
    t = _vector("t", t)
    if not 1 <= len(curves) <= len(PALETTE):
        raise ArgumentError("curves", f"{len(curves)} processes", f"1 to {len(PALETTE)}")
    figure = Figure(figsize=(WIDTH, 1.02 * WIDTH), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    largest = 0.0
    for color, dash, (name, pair) in zip(PALETTE, _cycle(DASHES), curves.items(), strict=False):
        for axes, symbol, values in zip((above, below), ("alpha", "sigma"), pair, strict=True):
            values = _vector(f"curves[{name!r}] {symbol}", values)
            if len(values) != len(t):
                raise ShapeError(f"curves[{name!r}] {symbol}", f"{len(values)} values", f"{len(t)}, one a time")
            axes.plot(t, values, color=color, linestyle=dash, label=name)
        largest = max(largest, float(values.max()))
    above.set(ylabel=r"mean scale $\alpha(t)$", ylim=(-0.03, 1.05))
    below.set(ylabel=r"noise $\sigma(t)$", xlabel="t    (0: data, 1: noise)")
    if largest > 2:
        below.set_yscale("log")
        below.yaxis.set_major_formatter(_plain_log)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(curves)))
    return figure


# --- points and fields in the plane ----------------------------------------------------------------------------------


@_styled
def scatter_pair(real: Array, samples: Array, names: tuple[str, str] = ("real", "samples")) -> Figure:
    """Two sets of points ``(N, 2)`` beside each other on the same axes.

    The frame holds the real points and a margin of a quarter at most, so that a stray sample does not shrink the rest;
    samples outside it, or not finite, are not drawn.
    """
    real, samples = _points("real", real), _array("samples", samples)
    if samples.ndim != 2 or samples.shape[1] != 2:
        raise ShapeError("samples", f"shape {samples.shape}", "(N, 2)")
    samples = samples[np.isfinite(samples).all(axis=1)]
    figure = Figure(figsize=(WIDTH, 0.58 * WIDTH), layout="constrained")
    limits = _frame(real, samples)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, points, name, color in zip(panels, (real, samples), names, (INK, BLUE), strict=True):
        axes.scatter(*points.T, s=_dot(len(points)), color=color, alpha=0.5, linewidths=0)
        axes.set_title(name)
        _plane(axes, *limits)
    return figure


@_styled
def restored_points(data: Array, truth: Array, samples: Array) -> Figure:
    """Points in the plane and what was drawn given an observation of each, over data ``(M, 2)`` in grey.

    ``truth (N, 2)`` are crosses, ``samples (N, S, 2)`` dots of the same colour; at most six points.
    """
    data, truth, samples = _points("data", data), _points("truth", truth), _array("samples", samples)
    if samples.ndim != 3 or len(samples) != len(truth) or samples.shape[2] != 2:
        raise ShapeError("samples", f"shape {samples.shape}", f"({len(truth)}, S, 2)")
    if len(truth) > len(PALETTE):
        raise ArgumentError("truth", f"{len(truth)} points", f"1 to {len(PALETTE)}")
    figure, axes = _axes(0.9)
    axes.scatter(*data[:2000].T, s=1.6 * _dot(min(2000, len(data))), color=FAINT, linewidths=0)
    for color, point, drawn in zip(PALETTE, truth, samples, strict=False):
        axes.scatter(*drawn.T, s=22, color=color, alpha=0.7, linewidths=0)
        axes.scatter(*point, s=90, color=color, marker="X", edgecolors="white", linewidths=1.2, zorder=3)
    _plane(axes, *_frame(data, samples.reshape(-1, 2)))
    return figure


@_styled
def restored_curves(truth: Array, seen: Array, mean: Array, std: Array, samples: Array) -> Figure:
    """Items as curves over their n entries, one panel each: the truth, what was seen, and draws given that.

    ``truth``, ``seen`` (NaN where nothing was), ``mean`` and ``std`` are ``(N, n)``, ``samples`` ``(N, S, n)``.
    """
    truth, seen, mean, std, samples = (
        _array(name, value)
        for name, value in (("truth", truth), ("seen", seen), ("mean", mean), ("std", std), ("samples", samples))
    )
    for name, value in (("seen", seen), ("mean", mean), ("std", std), ("samples", samples[:, 0])):
        if value.shape != truth.shape or truth.ndim != 2:
            raise ShapeError(name, f"shape {value.shape}", f"{truth.shape}, like the truth, (N, n)")
    figure = Figure(figsize=(WIDTH, (0.5 + 1.5 * len(truth))), layout="constrained")
    entry = np.arange(truth.shape[1])
    panels = np.atleast_1d(figure.subplots(len(truth), 1, sharex=True))
    for i, axes in enumerate(panels):
        axes.fill_between(entry, mean[i] - 2 * std[i], mean[i] + 2 * std[i], color=SKY, alpha=0.35, linewidth=0)
        axes.plot(entry, samples[i].T, color=BLUE, linewidth=0.8, alpha=0.6)
        axes.plot(entry, truth[i], color=INK, linestyle=DASHES[1], linewidth=1.6)
        axes.plot(entry, seen[i], "o", color=ORANGE, markersize=4)
    panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[-1].set_xlabel("entry")
    return figure


@_styled
def score_field(
    points: Array, vectors: Array, background: Array | tuple[Array, Array, Array] | None = None, title: str = ""
) -> Figure:
    """Arrows ``vectors (N, 2)`` of a score at ``points (N, 2)``, over samples or a density.

    ``background`` is a set of points ``(M, 2)`` or a triple ``(grid_x, grid_y, log_density)`` as in ``density_image``.
    Scores span orders of magnitude, so an arrow's length is |s| / (|s| + median |s|): it tells direction and rank.
    """
    points, vectors = _points("points", points), _points("vectors", vectors)
    if points.shape != vectors.shape:
        raise ShapeError("vectors", f"shape {vectors.shape}", f"{points.shape}, one a point")
    figure, axes = _axes(0.95)
    if isinstance(background, tuple):
        _density(axes, *background)
    elif background is not None:
        samples = _points("background", background)
        axes.scatter(*samples.T, s=1.6 * _dot(len(samples)), color=AMBER, alpha=0.55, linewidths=0)
    length = np.linalg.norm(vectors, axis=1)
    scale = 1 / (length + max(float(np.median(length)), 1e-30))
    side = float(np.ptp(points, axis=0).max()) or 1.0
    spacing = side / max(1.0, math.sqrt(len(points)))
    arrows = vectors * scale[:, None] * 1.25 * spacing
    axes.quiver(*points.T, *arrows.T, color=INK, angles="xy", scale_units="xy", scale=1, width=0.0042, headwidth=4.2)
    margin = 0.6 * spacing
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    _plane(axes, low, high)
    figure.set_figheight(WIDTH * float(np.clip(0.9 * (high[1] - low[1]) / (high[0] - low[0]) + 0.12, 0.4, 1.4)))
    axes.set_title(title)
    return figure


@_styled
def density_image(
    grid_x: Array, grid_y: Array, log_density: Array, points: Array | None = None, title: str = ""
) -> Figure:
    """A density in the plane as shades of blue, with ``points (N, 2)`` over it.

    ``log_density (H, W)``, in nats, is given on the regular grid ``grid_y (H,)`` x ``grid_x (W,)``. The scale ends at
    the 99.8th percentile, so that one peak does not hide the rest.
    """
    figure, axes = _axes(0.88)
    image = _density(axes, grid_x, grid_y, log_density)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    figure.set_figheight(WIDTH * float(np.clip(0.78 * (top - bottom) / (right - left) + 0.1, 0.4, 1.4)))
    if points is not None:
        points = _points("points", points)
        axes.scatter(*points.T, s=_dot(len(points)), color=ORANGE, alpha=0.6, linewidths=0)
    bar = figure.colorbar(image, ax=axes, aspect=24, pad=0.03, extend="max")
    bar.set_label("density")
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    axes.set_title(title)
    return figure


def _density(axes: Axes, grid_x: Array, grid_y: Array, log_density: Array) -> Any:
    x, y, log_p = _vector("grid_x", grid_x), _vector("grid_y", grid_y), _array("log_density", log_density)
    if log_p.shape != (len(y), len(x)):
        raise ShapeError("log_density", f"shape {log_p.shape}", f"{(len(y), len(x))}, rows along grid_y")
    if np.isnan(log_p).any() or np.isposinf(log_p).any():
        raise ArgumentError("log_density", "NaN or +inf", "finite log-densities, or -inf where there is no mass")
    if len(x) < 2 or len(y) < 2:
        raise ShapeError("grid_x, grid_y", f"{len(x)} and {len(y)} nodes", "at least 2 each")
    p = np.exp(log_p)
    half_x, half_y = (x[-1] - x[0]) / (len(x) - 1) / 2, (y[-1] - y[0]) / (len(y) - 1) / 2
    extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
    top = float(np.quantile(p, 0.998)) or float(p.max()) or 1.0
    image = axes.imshow(p, extent=extent, origin="lower", cmap=DENSITY, vmin=0, vmax=top, interpolation="bilinear")
    _plane(axes, np.array([extent[0], extent[2]]), np.array([extent[1], extent[3]]))
    return image


# --- small helpers ---------------------------------------------------------------------------------------------------


def _array(name: str, values: Array) -> np.ndarray:
    """A float64 array from an array, a tensor on any device and of any float type, or numbers."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(name, type(values).__name__, "an array or tensor of numbers") from None


def _vector(name: str, values: Array) -> np.ndarray:
    values = _array(name, values)
    if values.ndim != 1 or not len(values):
        raise ShapeError(name, f"shape {values.shape}", "(N,) with N >= 1")
    return values


def _points(name: str, values: Array) -> np.ndarray:
    values = _array(name, values)
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise ShapeError(name, f"shape {values.shape}", "(N, 2) with N >= 1")
    if not np.isfinite(values).all():
        raise ArgumentError(name, f"{(~np.isfinite(values)).sum()} non-finite values", "finite coordinates")
    return values


def _images(name: str, values: Array) -> np.ndarray:
    """(N, C, H, W) in [0, 1] as RGB images (N, H, W, 3), an alpha channel laid on white."""
    values = _array(name, values)
    if values.ndim != 4 or values.shape[1] not in (1, 3, 4) or 0 in values.shape:
        raise ShapeError(name, f"shape {values.shape}", "(N, C, H, W) with C = 1, 3 or 4 and N, H, W >= 1")
    if not np.isfinite(values).all():
        raise ArgumentError(name, f"{(~np.isfinite(values)).sum()} non-finite values", "numbers in [0, 1]")
    values = np.moveaxis(values.clip(0, 1), 1, -1)
    if values.shape[-1] == 4:
        return values[..., :3] * values[..., 3:] + 1 - values[..., 3:]
    return np.broadcast_to(values, (*values.shape[:3], 3))


def _columns(columns: int | None, n: int) -> int:
    if columns is not None and columns < 1:
        raise ArgumentError("columns", columns, "a whole number >= 1")
    return min(n, columns or math.ceil(math.sqrt(n)))


def _axes(aspect: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, aspect * WIDTH), layout="constrained")
    return figure, figure.add_subplot()


def _plane(axes: Axes, low: np.ndarray, high: np.ndarray) -> None:
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _frame(real: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the square that holds the real points, and samples up to a quarter of their range beyond."""
    low, high = real.min(axis=0), real.max(axis=0)
    reach = 0.25 * (high - low)
    if len(samples):
        low, high = (
            np.minimum(low, np.maximum(samples.min(axis=0), low - reach)),
            np.maximum(high, np.minimum(samples.max(axis=0), high + reach)),
        )
    centre, half = (low + high) / 2, 0.53 * max(float((high - low).max()), 1e-6)
    return centre - half, centre + half


def _dot(n: int) -> float:
    return float(np.clip(4000 / max(n, 1), 1.5, 14))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential average of the finite values, unbiased at the start; its half-life is a fortieth of the record."""
    keep = 0.5 ** (1 / max(1.0, len(values) / 40))
    out, mean, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out[i] = mean / weight if weight else math.nan
    return out


def _number(value: float) -> str:
    return f"{value:.3g}"


def _cycle(items: Sequence[Any]) -> Sequence[Any]:
    return [items[i % len(items)] for i in range(len(PALETTE))]


def _plain_log(value: float, _: int = 0) -> str:
    """Labels 1, 2 and 5 of each decade in plain figures, where the axis spans little; others stay unlabelled."""
    if value <= 0:
        return ""
    leading = value / 10 ** math.floor(math.log10(value) + 1e-9)
    return f"{value:g}" if min(abs(leading - k) for k in (1, 2, 5)) < 1e-6 else ""
