"""Pictures of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from scoresde.app.plots.inputs import Array, Floats, as_floats, as_images
from scoresde.app.plots.sheet import Sheet
from scoresde.app.plots.style import MISSING, styled
from scoresde.checks import whole
from scoresde.errors import ArgumentError, ShapeError

HEADING = 1.3  # height of a line of headings, in lines of type
SHORT_STRIP = 5  # columns of a strip that leave room for "t = " in the first heading


@styled
def image_grid(images: Array, columns: int | None = None, captions: Sequence[str] | None = None) -> Figure:
    """Draw images in rows.

    Args:
        images: ``(N, C, H, W)`` with C = 1, 3 or 4; values outside [0, 1] are clipped.
        columns: number of images in a row. None: about a square.
        captions: N short texts, one under each image. None: no text.
    """
    shown = as_images("images", images)
    columns = _columns(columns, len(shown))
    if captions is not None and len(captions) != len(shown):
        raise ArgumentError("captions", f"{len(captions)} texts", f"{len(shown)} texts, one for each image")
    sheet = Sheet(_size(shown), columns, math.ceil(len(shown) / columns), below=0 if captions is None else 1)
    for i, image in enumerate(shown):
        sheet.put(image, i // columns, i % columns, caption=captions[i] if captions is not None else None)
    return sheet.figure()


@styled
def side_by_side(
    real: Array, samples: Array, columns: int | None = None, names: tuple[str, str] = ("real", "samples")
) -> Figure:
    """Draw two blocks of images, the data left and the samples right.

    Both blocks show as many images as the smaller set has.

    Args:
        real, samples: images ``(N, C, H, W)``.
        columns: number of images in a row of a block. None: about a square.
        names: headings of the blocks.
    """
    left, right = as_images("real", real), as_images("samples", samples)
    if _size(left) != _size(right):
        raise ShapeError("samples", f"images of {_size(right)} pixels", f"images of {_size(left)} pixels, as in `real`")
    n = min(len(left), len(right))
    columns = _columns(columns, n)
    sheet = Sheet(_size(left), 2 * columns, math.ceil(n / columns), above=HEADING, split=columns)
    for block, (name, images) in enumerate(zip(names, (left, right), strict=True)):
        sheet.head(name, block * columns, columns)
        for i in range(n):
            sheet.put(images[i], i // columns, block * columns + i % columns)
    return sheet.figure()


@styled
def strip(states: Sequence[tuple[float, Array]]) -> Figure:
    """Draw paths through time: a row for each sample, a column for each state.

    Args:
        states: pairs ``(t, images)`` of the forward process (t rising) or of sampling (t falling). The images are
            ``(N, C, H, W)`` in [0, 1], the same N samples at each t; t is written above the column.
    """
    if not states:
        raise ArgumentError("states", "none", "one or more pairs (t, images)")
    frames = [as_images(f"states[{i}]", images) for i, (_, images) in enumerate(states)]
    for i, frame in enumerate(frames):
        _check_like(f"states[{i}]", frame, frames[0])
    sheet = Sheet(_size(frames[0]), len(frames), len(frames[0]), above=HEADING)
    times = [f"{float(t):.2g}" for t, _ in states]
    short = len(times) <= SHORT_STRIP
    labels = [f"t = {times[0]}", *times[1:]] if short else times
    for column, (label, frame) in enumerate(zip(labels, frames, strict=True)):
        sheet.head(label, column, 1)
        for row, image in enumerate(frame):
            sheet.put(image, row, column)
    return sheet.figure("" if short else "t")


@styled
def columns_of_images(blocks: Mapping[str, Sequence[Array]]) -> Figure:
    """Draw blocks of columns of images side by side, a row for each item.

    Args:
        blocks: columns ``(N, C, H, W)`` in [0, 1] by heading. Pixels that are NaN are drawn in light blue.
    """
    stacks = {name: [_with_gaps(f"blocks[{name!r}]", images) for images in stack] for name, stack in blocks.items()}
    every = [images for stack in stacks.values() for images in stack]
    if not every:
        raise ArgumentError("blocks", "none", "one or more blocks of images")
    for images in every:
        _check_like("blocks", images, every[0])
    sheet = Sheet(_size(every[0]), len(every), len(every[0]), above=HEADING)
    column = 0
    for name, stack in stacks.items():
        sheet.head(name, column, len(stack))
        for images in stack:
            for row, image in enumerate(images):
                sheet.put(image, row, column)
            column += 1
    return sheet.figure()


@styled
def rows_of_images(rows: Mapping[str, Array]) -> Figure:
    """Draw rows of images with their names left of them.

    Args:
        rows: images ``(N, C, H, W)`` in [0, 1] by name.
    """
    stacks = {name: as_images(f"rows[{name!r}]", images) for name, images in rows.items()}
    if not stacks:
        raise ArgumentError("rows", "none", "one or more rows of images")
    first = next(iter(stacks.values()))
    for name, images in stacks.items():
        _check_like(f"rows[{name!r}]", images, first)
    sheet = Sheet(_size(first), len(first), len(stacks))
    for row, (name, images) in enumerate(stacks.items()):
        sheet.label(name, row)
        for column, image in enumerate(images):
            sheet.put(image, row, column)
    return sheet.figure()


def _with_gaps(name: str, images: Array) -> Floats:
    """Return RGB images in which NaN pixels are light blue."""
    found = as_floats(name, images)
    missing = np.isnan(found).any(axis=1) if found.ndim == 4 else False
    drawn = as_images(name, np.nan_to_num(found, nan=0.0)).copy()
    drawn[missing] = MISSING
    return drawn


def _size(images: Floats) -> tuple[int, int]:
    """Return (height, width) of RGB images ``(N, H, W, 3)``."""
    return images.shape[1], images.shape[2]


def _check_like(name: str, images: Floats, first: Floats) -> None:
    """Raise ShapeError unless there are as many images, of the same size."""
    if images.shape != first.shape:
        got, expected = (f"{len(some)} images of {_size(some)} pixels" for some in (images, first))
        raise ShapeError(name, got, f"{expected}, like the first")


def _columns(columns: int | None, n: int) -> int:
    return min(n, math.ceil(math.sqrt(n)) if columns is None else whole("columns", columns))
