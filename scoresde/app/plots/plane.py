"""Pictures of points, densities and vector fields in the plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from scoresde.app.plots.inputs import Array, Floats, as_floats, as_points, as_vector
from scoresde.app.plots.style import AMBER, BLUE, DENSITY, FAINT, INK, ORANGE, WIDTH, single_axes, styled
from scoresde.errors import ArgumentError, ShapeError

TOP = 0.998  # quantile of a density at which its colours end


@styled
def scatter_pair(real: Array, samples: Array, names: tuple[str, str] = ("real", "samples")) -> Figure:
    """Draw two sets of points side by side on the same axes.

    The frame holds the real points and a margin of at most a quarter, so a stray sample does not shrink the rest.
    Samples outside it, or not finite, are not drawn.

    Args:
        real, samples: points ``(N, 2)``.
        names: titles.
    """
    left, right = as_points("real", real), as_floats("samples", samples)
    if right.ndim != 2 or right.shape[1] != 2:
        raise ShapeError("samples", f"shape {right.shape}", "(N, 2)")
    right = right[np.isfinite(right).all(axis=1)]
    figure = Figure(figsize=(WIDTH, 0.58 * WIDTH), layout="constrained")
    limits = frame(left, right)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, points, name, color in zip(panels, (left, right), names, (INK, BLUE), strict=True):
        show_points(axes, points, s=dot_size(len(points)), color=color, alpha=0.5)
        axes.set_title(name)
        show_plane(axes, *limits)
    return figure


@styled
def score_field(
    points: Array, vectors: Array, background: Array | tuple[Array, Array, Array] | None = None, title: str = ""
) -> Figure:
    """Draw the arrows of a score over samples or a density.

    Scores s span orders of magnitude, so an arrow has the length |s| / (|s| + median |s|): it shows direction and rank.

    Args:
        points, vectors: tails of the arrows and scores, both ``(N, 2)``.
        background: points ``(M, 2)``, or ``(grid_x, grid_y, log_density)`` as in :func:`density_image`. None: white.
        title: title of the picture.
    """
    tails, scores = as_points("points", points), as_points("vectors", vectors)
    if tails.shape != scores.shape:
        raise ShapeError("vectors", f"shape {scores.shape}", f"{tails.shape}, one for each point")

    # 1. the background
    figure, axes = single_axes(0.95)
    if isinstance(background, tuple):
        _show_density(axes, *background)
    elif background is not None:
        samples = as_points("background", background)
        show_points(axes, samples, s=1.6 * dot_size(len(samples)), color=AMBER, alpha=0.55)

    # 2. the arrows, of a length near the spacing of their tails
    length = np.linalg.norm(scores, axis=1)
    scale = 1 / (length + max(float(np.median(length)), 1e-30))
    side = float(np.ptp(tails, axis=0).max()) or 1.0
    spacing = side / max(1.0, math.sqrt(len(tails)))
    arrows = scores * scale[:, None] * 1.25 * spacing
    axes.quiver(*tails.T, *arrows.T, color=INK, angles="xy", scale_units="xy", scale=1, width=0.0042, headwidth=4.2)

    # 3. the frame
    margin = 0.6 * spacing
    low, high = tails.min(axis=0) - margin, tails.max(axis=0) + margin
    show_plane(axes, low, high)
    figure.set_figheight(WIDTH * float(np.clip(0.9 * (high[1] - low[1]) / (high[0] - low[0]) + 0.12, 0.4, 1.4)))
    axes.set_title(title)
    return figure


@styled
def density_image(
    grid_x: Array, grid_y: Array, log_density: Array, points: Array | None = None, title: str = ""
) -> Figure:
    """Draw a density in the plane as shades of blue.

    The scale ends at the 99.8th percentile, so one peak does not hide the rest.

    Args:
        grid_x, grid_y: regular grids ``(W,)`` and ``(H,)``.
        log_density: ``(H, W)``, in nats; -inf where there is no mass.
        points: ``(N, 2)``, drawn over the density. None: no points.
        title: title of the picture.
    """
    figure, axes = single_axes(0.88)
    image = _show_density(axes, grid_x, grid_y, log_density)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    figure.set_figheight(WIDTH * float(np.clip(0.78 * (top - bottom) / (right - left) + 0.1, 0.4, 1.4)))
    if points is not None:
        over = as_points("points", points)
        show_points(axes, over, s=dot_size(len(over)), color=ORANGE, alpha=0.6)
    bar = figure.colorbar(image, ax=axes, aspect=24, pad=0.03, extend="max")
    bar.set_label("density")
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    axes.set_title(title)
    return figure


def _show_density(axes: Axes, grid_x: Array, grid_y: Array, log_density: Array) -> AxesImage:
    x, y, log_p = as_vector("grid_x", grid_x), as_vector("grid_y", grid_y), as_floats("log_density", log_density)
    if log_p.shape != (len(y), len(x)):
        raise ShapeError("log_density", f"shape {log_p.shape}", f"{(len(y), len(x))}, rows along grid_y")
    if np.isnan(log_p).any() or np.isposinf(log_p).any():
        raise ArgumentError("log_density", "NaN or +inf", "finite, or -inf where there is no mass")
    if len(x) < 2 or len(y) < 2:
        raise ShapeError("grid_x, grid_y", f"{len(x)} and {len(y)} nodes", "at least 2 nodes each")
    p = np.exp(log_p)
    half_x, half_y = (x[-1] - x[0]) / (len(x) - 1) / 2, (y[-1] - y[0]) / (len(y) - 1) / 2
    extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
    top = float(np.quantile(p, TOP)) or float(p.max()) or 1.0
    image = axes.imshow(p, extent=extent, origin="lower", cmap=DENSITY, vmin=0, vmax=top, interpolation="bilinear")
    show_plane(axes, np.array([extent[0], extent[2]]), np.array([extent[1], extent[3]]))
    return image


def show_points(axes: Axes, points: Floats, **look: Any) -> None:
    """Draw points ``(N, 2)`` as dots without outlines."""
    axes.scatter(points[:, 0], points[:, 1], **{"linewidths": 0, **look})


def show_plane(axes: Axes, low: Floats, high: Floats) -> None:
    """Give axes the look of a plane between the corners ``low`` and ``high``."""
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def frame(real: Floats, samples: Floats) -> tuple[Floats, Floats]:
    """Return the corners of the square that frames the real points.

    It also holds samples that lie at most a quarter of the real points' range outside.
    """
    low, high = real.min(axis=0), real.max(axis=0)
    reach = 0.25 * (high - low)
    if len(samples):
        low, high = (
            np.minimum(low, np.maximum(samples.min(axis=0), low - reach)),
            np.maximum(high, np.minimum(samples.max(axis=0), high + reach)),
        )
    centre, half = (low + high) / 2, 0.53 * max(float((high - low).max()), 1e-6)
    return centre - half, centre + half


def dot_size(n: int) -> float:
    """Return the area of a dot among ``n``, in square points."""
    return float(np.clip(4000 / max(n, 1), 1.5, 14))
