"""Masks from image files: which pixels of an image are known."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import wholes
from scoresde.errors import DataError, ShapeError


@checked
def load_mask(path: str | Path, shape: tuple[int, ...]) -> Tensor:
    """Load a mask ``(H, W)`` of bool from an image file.

    White pixels are known, black ones unknown.

    Args:
        path: A file that Pillow reads.
        shape: Shape of one item of the data, ``(C, H, W)`` or ``(H, W)``.

    Raises:
        DataError: The file is missing, is no image, has another size, holds grey values (as a mask saved as JPEG), or
            is black everywhere.
    """
    from PIL import Image, UnidentifiedImageError

    if len(wholes("shape", shape)) < 2:
        raise ShapeError("shape", tuple(shape), "(C, H, W) or (H, W)")
    H, W = shape[-2:]
    try:
        with Image.open(path) as image:
            size, grey = image.size, image.convert("L")
            values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).reshape(size[1], size[0])
    except (OSError, UnidentifiedImageError) as error:
        raise DataError("mask", f"{path} ({error})", "an image file") from None
    if (size[1], size[0]) != (H, W):
        raise DataError("mask", f"{path} of {size[0]}x{size[1]} pixels", f"an image of {W}x{H} pixels, as the data")
    if not bool(((values == 0) | (values == 255)).all()):
        wrong = values[(values > 0) & (values < 255)][0].item()
        raise DataError("mask", f"{path} with a grey value {wrong}", "an image of black (0) and white (255)")
    if not bool(values.any()):
        raise DataError("mask", f"{path}, black everywhere", "an image with a white pixel at each known place")
    return values == 255
