"""A folder of image files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.checks import whole, wholes
from scoresde.data.dataset import Data
from scoresde.errors import ArgumentError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B")


def load_images(folder: str | Path, size: int | tuple[int, int] | None = None, grayscale: bool = False) -> Data:
    """Load all images under a folder as 8-bit data ``(N, C, H, W)``.

    They come in the order of their paths. If every image lies in a sub-folder of ``folder``, and there are several
    sub-folders, their names are the classes. C is 1 if every file is gray and 3 otherwise. Transparent pixels are
    composed with white, 16-bit gray is reduced to 8 bits, an animation gives its first frame, and orientation tags are
    applied.

    Args:
        folder: searched with its sub-folders; hidden files are skipped.
        size: side or (height, width) in pixels, to which each image is cropped about its centre and resized. None: the
            images have one size already.
        grayscale: whether to convert colour to gray.

    Raises:
        DataError: a missing folder, no images in it, an unreadable file, different sizes while ``size`` is None.
        ArgumentError: ``size`` is not made of positive integers.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("folder", folder, "an existing folder")
    sides = None if size is None else _sides(size)
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and _visible(f, folder) and f.is_file())
    if not files:
        raise DataError("folder", f"{folder}, without images", f"a folder with image files ({', '.join(SUFFIXES)})")

    pictures = [_read(file, sides, grayscale) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            (h, w), (H, W) = picture.shape[:2], pictures[0].shape[:2]
            expected = "a folder of images of one size (or size= must be given, to crop and resize to)"
            raise DataError("folder", f"{files[0]} of {W}x{H} and {file} of {w}x{h} pixels", expected)

    # one gray and one colour image make a set of colour images
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [p if p.ndim == 3 else np.repeat(p[:, :, None], 3, axis=2) for p in pictures]
    raw = torch.from_numpy(np.stack(pictures))
    raw = raw[:, None] if raw.ndim == 3 else raw.permute(0, 3, 1, 2).contiguous()
    labels, names = _classes(files, folder)
    return Data(folder.resolve().name, raw, labels, num_values=256, class_names=names, image=True)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``size`` as (height, width)."""
    sides = wholes("size", size) if isinstance(size, Iterable) else 2 * (whole("size", size),)
    if len(sides) != 2:
        raise ArgumentError("size", repr(size), "a side or (height, width), in pixels")
    return sides[0], sides[1]


def _visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _classes(files: list[Path], folder: Path) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Return the labels ``(N,)``, and the names of the sub-folders."""
    parts = [file.relative_to(folder).parts for file in files]
    names = sorted({p[0] for p in parts})
    if len(names) < 2 or any(len(p) != 2 for p in parts):
        return None, None
    return torch.tensor([names.index(p[0]) for p in parts]), tuple(names)


def _read(file: Path, size: tuple[int, int] | None, grayscale: bool) -> NDArray[np.uint8]:
    """Read one image as uint8, ``(H, W)`` if gray, else ``(H, W, 3)``."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image: Any = ImageOps.exif_transpose(opened)
            gray = image.mode in GRAY_MODES
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
            elif "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if gray or grayscale else "RGB")
            if size is not None:
                image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
            return np.array(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            "folder", f"{file}, which cannot be read ({error})", "a folder of intact image files"
        ) from error
