"""What data are: the line of a training, and the ``data`` command."""

from __future__ import annotations

from pathlib import Path

import torch

from scoresde.app import build
from scoresde.app.config import RunConfig
from scoresde.app.drawing import picture_of
from scoresde.app.terminal import say
from scoresde.data import Data, Mapped
from scoresde.data.dataset import CHANNELS
from scoresde.errors import DataError
from scoresde.files import write_atomically
from scoresde.sde import VESDE

CLASSES = 12  # that are counted by name


def layout_of(data: Data | Mapped) -> str:
    """Return how the axes of an item are understood."""
    shape = data.shape
    channels = f"{shape[0]} channel{'s' * (shape[0] > 1)}"
    if data.is_image and len(shape) == 3:
        return f"images of {shape[1]} x {shape[2]} pixels, {channels}"
    if len(shape) == 1:
        return f"vectors of {shape[0]}"
    if len(shape) == 2:
        return f"series of {shape[1]}, {channels}"
    hint = "" if shape[0] in CHANNELS else " (another order: --set data.layout=channels-last)"
    kind = "volumes" if len(shape) == 4 else "images"
    return f"{kind} of {' x '.join(map(str, shape[1:]))}, {channels}{hint}"


def values_of(data: Data | Mapped) -> str:
    """Return what numbers the data hold."""
    if data.num_values is not None:
        return f"integers 0..{data.num_values - 1}"
    items = data.sample if isinstance(data, Mapped) else data
    std = 1 / torch.as_tensor(items.scaling.scale, dtype=torch.float64)
    if std.ndim:
        return f"floats, each column scaled by its std, {std.min():.3g} to {std.max():.3g}"
    return f"floats of mean {items.raw.double().nanmean():.4g}, scaled by 1/{std:.4g}"


def described(data: Data | Mapped) -> str:
    """Return one line on what was loaded."""
    classes = "no labels" if data.classes is None else f"{data.classes} classes"
    return f"{layout_of(data)}; {values_of(data)}; {classes}"


def describe(config: RunConfig, out: Path | None) -> None:
    """Print what would be learned from the data, and draw some of them.

    Args:
        config: the settings that name the data.
        out: PNG file to write, if the items can be drawn. None: no picture.
    """
    train, held_out = build.mapped(config.data) if config.data.mmap else build.data(config.data)
    items = train.sample if isinstance(train, Mapped) else train
    say(f"{train.name}: {len(train)} items {train.shape} to train on, {len(held_out)} held out")
    say(f"  layout: {layout_of(train)}")
    say(f"  values: {values_of(train)}")
    say(f"  classes: {_classes(items)}")
    same = len(items.raw) - len(torch.unique(items.raw.flatten(1), dim=0))
    if same:
        say(f"  repeated items: {same} of {len(items.raw)}")
    if items.missing:
        say(f"  missing values: {100 * items.raw.isnan().double().mean():.3g} %")
    _say_lengths(train)
    if out is not None and (picture := picture_of(items, None)) is not None:
        write_atomically(out, picture)
        say(f"  picture: {out}")


def _classes(data: Data) -> str:
    if data.labels is None:
        return "none"
    counts = torch.bincount(data.labels, minlength=data.classes or 0).tolist()
    names = data.class_names or tuple(map(str, range(len(counts))))
    pairs = [f"{name}: {count}" for name, count in zip(names, counts, strict=True)]
    more = "" if len(pairs) <= CLASSES else f", ... ({len(pairs)} classes)"
    return ", ".join(pairs[:CLASSES]) + more


def _say_lengths(data: Data | Mapped) -> None:
    """Print the lengths of the data, and the noise levels that suit them."""
    scale = data.data_scale
    if scale is None:
        say("  scale: the items are all the same")
        return
    finest = "unknown (too few different items)" if scale.finest is None else f"{scale.finest:.3g}"
    bins = f", a bin {data.bin_width:.3g}" if data.bin_width else ""
    say(f"  lengths in model units: typical {scale.typical:.3g}, largest {scale.largest:.3g}, finest {finest}{bins}")
    try:
        sde = VESDE.for_data(data)
    except DataError:
        return
    low, high = (float(sde.sigma(torch.tensor(t, dtype=torch.float64))) for t in (0.0, 1.0))
    say(f"  noise that suits them (ve): sde.sigma_min={low:.2g}, sde.sigma_max={high:.3g}")
