"""Pictures of series and of tables."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from scoresde.app.plots.inputs import Array, Floats, as_floats
from scoresde.app.plots.style import BLUE, INK, PALETTE, WIDTH, styled
from scoresde.errors import ShapeError

LINES, COLUMNS, BINS = 6, 12, 40  # series and channels in a picture, columns of a table, bins of a histogram


@styled
def series(real: Array, samples: Array | None = None) -> Figure:
    """Draw series as lines: the first few of the data beside those drawn.

    Args:
        real, samples: series ``(N, C, L)``, a colour for each channel. None: the data alone.
    """
    sets = {"data": real} if samples is None else {"data": real, "samples": samples}
    checked = {name: _of_rank(name, values, 3, "(N, C, L)")[:LINES] for name, values in sets.items()}
    rows = max(map(len, checked.values()))
    figure = Figure(figsize=(WIDTH, 0.4 + 0.9 * rows), layout="constrained")
    panels = figure.subplots(rows, len(sets), sharex=True, sharey=True, squeeze=False)
    for column, (name, values) in enumerate(checked.items()):
        panels[0, column].set_title(name)
        for axes, item in zip(panels[:, column], values, strict=False):
            for color, line in zip(PALETTE, item, strict=False):
                axes.plot(line, color=color, linewidth=0.9)
    return figure


@styled
def features(real: Array, samples: Array | None = None) -> Figure:
    """Draw a histogram for each of the first 12 columns of a table.

    The bins are those of the data, widened by a tenth; samples outside are not drawn.

    Args:
        real, samples: tables ``(N, D)``, the data gray and the samples blue. None: the data alone.
    """
    data = _of_rank("real", real, 2, "(N, D)")
    drawn = None if samples is None else _of_rank("samples", samples, 2, "(N, D)")
    n = min(data.shape[1], COLUMNS)
    columns = min(3, n)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(WIDTH, 0.3 + 1.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, axes in enumerate(panels):
        axes.set_axis_off() if i >= n else axes.set_title(f"column {i}", fontsize=11)
        if i >= n:
            continue
        low, high = data[:, i].min(), data[:, i].max()
        pad = 0.1 * (high - low) or max(1e-3, 1e-3 * abs(high))
        bins = np.linspace(low - pad, high + pad, BINS + 1)
        axes.stairs(np.histogram(data[:, i], bins)[0] / len(data), bins, fill=True, color=INK, alpha=0.25)
        if drawn is not None:
            axes.stairs(np.histogram(drawn[:, i], bins)[0] / len(drawn), bins, color=BLUE, linewidth=1.4)
        axes.set(yticks=[])
        axes.tick_params(axis="x", labelsize=8)
    return figure


def _of_rank(name: str, values: Array, rank: int, expected: str) -> Floats:
    """Return finite numbers of a rank, at least one item."""
    array = as_floats(name, values)
    if array.ndim != rank or not len(array):
        raise ShapeError(name, f"shape {array.shape}", expected)
    return array[np.isfinite(array.reshape(len(array), -1)).all(1)]
