"""Pictures of curves and histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scoresde.app.plots.inputs import Array, Floats, as_vector
from scoresde.app.plots.style import BLUE, DASH_OF_COLOUR, ORANGE, PALETTE, WIDTH, single_axes, styled
from scoresde.errors import ArgumentError, ShapeError

BINS = 60
LOG_LOSS = 4  # factor that positive losses must span for a logarithmic axis
LOG_SIGMA = 2  # sigma above which its axis is logarithmic (a variance-exploding process)


@styled
def loss_curve(
    steps: Array, loss: Array, ema: Array | None = None, held_out: tuple[Array, Array] | None = None
) -> Figure:
    """Draw the loss against the step: faint as recorded, strong as smoothed.

    The axis is logarithmic if positive losses span more than a factor of 4. Values that are not finite are left out.

    Args:
        steps, loss: ``(N,)``.
        ema: the smoothed loss ``(N,)``. None: an exponential average over a fortieth of the run.
        held_out: steps and losses of held-out data, both ``(M,)``. None: not drawn.
    """
    at, losses = as_vector("steps", steps), as_vector("loss", loss)
    _check_length("loss", losses, at, "step")
    smooth = smoothed(losses) if ema is None else as_vector("ema", ema)
    _check_length("ema", smooth, at, "step")
    figure, axes = single_axes(0.6)
    alone = "o" if len(at) == 1 else ""
    axes.plot(at, _finite(losses), color=BLUE, alpha=0.35, linewidth=1, marker=alone, label="each record")
    axes.plot(at, _finite(smooth), color=BLUE, linewidth=2.4, marker=alone, label="smoothed")
    measured = np.empty(0)
    if held_out is not None:
        measured_at, measured = as_vector("held_out[0]", held_out[0]), as_vector("held_out[1]", held_out[1])
        _check_length("held_out[1]", measured, measured_at, "step")
        axes.plot(measured_at, _finite(measured), "o--", color=ORANGE, linewidth=1.6, markersize=4, label="held out")
    drawn = np.concatenate([losses, smooth, measured])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and 0 < LOG_LOSS * drawn.min() < drawn.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain_log)
        axes.yaxis.set_minor_formatter(_plain_log)
        axes.tick_params(axis="y", which="minor", labelsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(loc="upper right")
    return figure


@styled
def histograms(values: Mapping[str, Array], xlabel: str) -> Figure:
    """Draw up to six sets of numbers as histograms with their medians.

    The bins are common to all sets, and heights are shares of each set, so sets of different size compare.

    Args:
        values: finite numbers ``(N,)`` by name.
        xlabel: what the numbers are.
    """
    if not 1 <= len(values) <= len(PALETTE):
        raise ArgumentError("values", f"{len(values)} sets", f"1 to {len(PALETTE)} sets")
    sets = {name: as_vector(f"values[{name!r}]", v) for name, v in values.items()}
    for name, v in sets.items():
        if not np.isfinite(v).all():
            raise ArgumentError(f"values[{name!r}]", f"{(~np.isfinite(v)).sum()} non-finite values", "finite numbers")
    everything = np.concatenate(list(sets.values()))
    low, high = everything.min(), everything.max()
    pad = 0.02 * (high - low) or max(1e-3, 1e-3 * abs(high))
    bins = np.linspace(low - pad, high + pad, BINS + 1)
    figure, axes = single_axes(0.66)
    for color, dash, (name, v) in zip(PALETTE, DASH_OF_COLOUR, sets.items(), strict=False):
        shares = np.histogram(v, bins)[0] / len(v)
        axes.stairs(shares, bins, fill=True, color=color, alpha=0.3)
        axes.stairs(shares, bins, color=color, linewidth=1.5)
        median = float(np.median(v))
        axes.axvline(median, color=color, linestyle=dash, linewidth=1.8, label=f"{name}: median {median:.3g}")
    axes.set(xlabel=xlabel, ylabel="share", ylim=(0, None), xlim=(bins[0], bins[-1]))
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=1)
    return figure


@styled
def sde_curves(t: Array, curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Draw mean scale alpha(t) and noise sigma(t) of forward processes.

    The axis of sigma is logarithmic if some sigma exceeds 2 (a variance-exploding process).

    Args:
        t: times ``(N,)``.
        curves: ``(alpha, sigma)``, both ``(N,)``, by name; up to six processes.
    """
    times = as_vector("t", t)
    if not 1 <= len(curves) <= len(PALETTE):
        raise ArgumentError("curves", f"{len(curves)} processes", f"1 to {len(PALETTE)} processes")
    figure = Figure(figsize=(WIDTH, 1.02 * WIDTH), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    largest = 0.0
    for color, dash, (name, pair) in zip(PALETTE, DASH_OF_COLOUR, curves.items(), strict=False):
        for axes, symbol, curve in zip((above, below), ("alpha", "sigma"), pair, strict=True):
            values = as_vector(f"curves[{name!r}] {symbol}", curve)
            _check_length(f"curves[{name!r}] {symbol}", values, times, "time")
            axes.plot(times, values, color=color, linestyle=dash, label=name)
        largest = max(largest, float(values.max()))
    above.set(ylabel=r"mean scale $\alpha(t)$", ylim=(-0.03, 1.05))
    below.set(ylabel=r"noise $\sigma(t)$", xlabel="t    (0: data, 1: noise)")
    if largest > LOG_SIGMA:
        below.set_yscale("log")
        below.yaxis.set_major_formatter(_plain_log)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(curves)))
    return figure


def smoothed(values: Floats) -> Floats:
    """Return the exponential average of the finite values.

    It is unbiased at the start. Its half-life is a fortieth of the record.
    """
    keep = 0.5 ** (1 / max(1.0, len(values) / 40))
    out, mean, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out[i] = mean / weight if weight else math.nan
    return out


def _check_length(name: str, values: Floats, like: Floats, what: str) -> None:
    if len(values) != len(like):
        raise ShapeError(name, f"{len(values)} values", f"{len(like)} values, one for each {what}")


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _plain_log(value: float, _: float = 0) -> str:
    """Label 1, 2 and 5 of each decade in plain figures, no other tick."""
    if value <= 0:
        return ""
    leading = value / 10 ** math.floor(math.log10(value) + 1e-9)
    return f"{value:g}" if min(abs(leading - k) for k in (1, 2, 5)) < 1e-6 else ""
