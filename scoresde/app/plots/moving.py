"""Pictures that move: samples on their way from noise, as a GIF.

Each function also returns its last frame as a PNG, for systems that are set to less motion.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from scoresde.app.plots.inputs import Array, as_images, as_points
from scoresde.app.plots.plane import dot_size, frame, show_plane, show_points
from scoresde.app.plots.style import BLUE, STYLE, png
from scoresde.errors import ArgumentError

FRAME_MS, END_MS = 90, 2500  # how long a frame and the last one stay
SIDE, COLOURS = 200, 16  # pixels of a moving sheet of images (a page enlarges them), and its colours
SMALL_DPI = 90


def moving_images(states: Sequence[Array], columns: int | None = None) -> tuple[bytes, bytes]:
    """Draw images in rows, frame by frame.

    Args:
        states: the same images ``(N, C, H, W)`` in [0, 1] at each frame.
        columns: number of images in a row. None: about a square.

    Returns:
        the GIF and its last frame as a PNG.
    """
    frames = [_tiled(as_images(f"states[{i}]", images), columns) for i, images in enumerate(states)]
    return gif(frames)


def moving_points(states: Sequence[Array]) -> tuple[bytes, bytes]:
    """Draw points in the plane, frame by frame, on the axes of the last one.

    Args:
        states: the same points ``(N, 2)`` at each frame.

    Returns:
        the GIF and its last frame as a PNG.
    """
    points = [as_points(f"states[{i}]", x) for i, x in enumerate(states)]
    if not points:
        raise ArgumentError("states", "none", "one frame or more")
    limits = frame(points[-1], points[-1])
    frames = []
    with matplotlib.rc_context(STYLE):
        for x in points:
            figure = Figure(figsize=(4, 4), layout="constrained", dpi=SMALL_DPI)
            axes = figure.add_subplot()
            show_points(axes, x, s=dot_size(len(x)), color=BLUE, alpha=0.5)
            show_plane(axes, *limits)
            frames.append(Image.open(io.BytesIO(png(figure))).convert("RGB"))
    return gif(frames)


def _tiled(images: np.ndarray, columns: int | None) -> Image.Image:
    """Return images ``(N, H, W, channels)`` in rows, enlarged."""
    n, height, width = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, SIDE // (columns * (width + 1)))
    sheet = np.ones((rows * (height * scale + scale), columns * (width * scale + scale), 3))
    for i, image in enumerate(images):
        tile = np.broadcast_to(image[..., :3], (height, width, 3)).repeat(scale, 0).repeat(scale, 1)
        top, left = i // columns * (height + 1) * scale, i % columns * (width + 1) * scale
        sheet[top : top + height * scale, left : left + width * scale] = tile
    return Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))


def gif(frames: list[Image.Image]) -> tuple[bytes, bytes]:
    """Return frames as a GIF that waits at its end, and the last as a PNG.

    Raises:
        ArgumentError: there is no frame.
    """
    if not frames:
        raise ArgumentError("states", "none", "one frame or more")
    # few colours, those of the last frame and of the middle: the first is noise
    sheet = Image.new("RGB", (frames[0].width, 2 * frames[0].height))
    sheet.paste(frames[-1], (0, 0))
    sheet.paste(frames[len(frames) // 2], (0, frames[0].height))
    palette = sheet.quantize(COLOURS, dither=Image.Dither.NONE)
    shown = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
    waits = [FRAME_MS] * (len(shown) - 1) + [END_MS]
    with io.BytesIO() as moving, io.BytesIO() as still:
        shown[0].save(moving, "GIF", save_all=True, append_images=shown[1:], duration=waits, loop=0, optimize=True)
        shown[-1].save(still, "PNG", optimize=True)
        return moving.getvalue(), still.getvalue()
