"""Pictures of restored items that are not images: points and curves."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scoresde.app.plots.inputs import Array, as_floats, as_points
from scoresde.app.plots.plane import dot_size, frame, show_plane, show_points
from scoresde.app.plots.style import BLUE, DASHES, FAINT, INK, ORANGE, PALETTE, SKY, WIDTH, single_axes, styled
from scoresde.errors import ArgumentError, ShapeError

DATA_SHOWN = 2000  # points of the data


@styled
def restored_points(data: Array, truth: Array, samples: Array) -> Figure:
    """Draw points in the plane and samples given an observation of each.

    Args:
        data: ``(M, 2)``, drawn in grey.
        truth: ``(N, 2)``, at most six, drawn as crosses.
        samples: ``(N, S, 2)``, drawn as dots in the colour of their cross.
    """
    grey, crosses, dots = as_points("data", data), as_points("truth", truth), as_floats("samples", samples)
    if dots.ndim != 3 or len(dots) != len(crosses) or dots.shape[2] != 2:
        raise ShapeError("samples", f"shape {dots.shape}", f"({len(crosses)}, S, 2)")
    if len(crosses) > len(PALETTE):
        raise ArgumentError("truth", f"{len(crosses)} points", f"1 to {len(PALETTE)} points")
    figure, axes = single_axes(0.9)
    size = 1.6 * dot_size(min(DATA_SHOWN, len(grey)))
    show_points(axes, grey[:DATA_SHOWN], s=size, color=FAINT)
    for color, point, drawn in zip(PALETTE, crosses, dots, strict=False):
        show_points(axes, drawn, s=22, color=color, alpha=0.7)
        show_points(axes, point[None], s=90, color=color, marker="X", edgecolors="white", linewidths=1.2, zorder=3)
    show_plane(axes, *frame(grey, dots.reshape(-1, 2)))
    return figure


@styled
def restored_curves(truth: Array, seen: Array, mean: Array, std: Array, samples: Array) -> Figure:
    """Draw items as curves over their n entries, one panel each.

    A panel shows the truth (dashed), the observation (dots), samples (lines) and 2 std about their mean (band).

    Args:
        truth, mean, std: ``(N, n)``.
        seen: the observation ``(N, n)``, NaN where nothing was observed.
        samples: ``(N, S, n)``.
    """
    dashed, dots, middle, width, lines = (
        as_floats(name, value)
        for name, value in (("truth", truth), ("seen", seen), ("mean", mean), ("std", std), ("samples", samples))
    )
    for name, value in (("seen", dots), ("mean", middle), ("std", width), ("samples", lines[:, 0])):
        if value.shape != dashed.shape or dashed.ndim != 2:
            raise ShapeError(name, f"shape {value.shape}", f"{dashed.shape}, like `truth`, (N, n)")
    figure = Figure(figsize=(WIDTH, (0.5 + 1.5 * len(dashed))), layout="constrained")
    entry = np.arange(dashed.shape[1])
    panels = np.atleast_1d(figure.subplots(len(dashed), 1, sharex=True))
    for i, axes in enumerate(panels):
        axes.fill_between(entry, middle[i] - 2 * width[i], middle[i] + 2 * width[i], color=SKY, alpha=0.35, linewidth=0)
        axes.plot(entry, lines[i].T, color=BLUE, linewidth=0.8, alpha=0.6)
        axes.plot(entry, dashed[i], color=INK, linestyle=DASHES[1], linewidth=1.6)
        axes.plot(entry, dots[i], "o", color=ORANGE, markersize=4)
    panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[-1].set_xlabel("entry")
    return figure
