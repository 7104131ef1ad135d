"""A folder of image files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole, wholes
from scoresde.data.dataset import Data
from scoresde.data.options import LabelsFrom
from scoresde.errors import ArgumentError, DataError, UnknownNameError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # whatever a file is called
GRAY_MODES = ("1", "L", "LA")  # and those of wide integers, which begin with I
BYTE = 256


@checked
def load_images(
    folder: str | Path,
    size: int | tuple[int, int] | None = None,
    grayscale: bool = False,
    num_values: int | None = None,
    labels_from: LabelsFrom = "folders",
) -> Data:
    """Load all images under a folder as integers ``(N, C, H, W)``.

    They come in the order of their paths. C is 1 if every file is gray and 3 otherwise. Transparent pixels are composed
    with white, an animation gives its first frame, and orientation tags are applied. Gray of 16 bits keeps its values,
    and needs ``num_values``; colour of 16 bits and images of floats are refused.

    Args:
        folder: searched with its sub-folders; hidden files are skipped.
        size: side or (height, width) in pixels, to which each image is cropped about its centre and resized. None: the
            images have one size already.
        grayscale: whether to convert colour to gray.
        num_values: number of gray values, such as 4096 of 12 bits or 65536 of 16. None: 256, of 8-bit images.
        labels_from: "folders": the names of the sub-folders are the classes, if there are several and every image lies
            in one. "names": the files' names up to the first digit, "-" or "_", such as dog of dog_12.png. "none":
            no labels.

    Raises:
        DataError: a missing folder, no images in it, an unreadable file, different sizes while ``size`` is None, files
            of more bits than ``num_values`` says or of both kinds.
        ArgumentError: ``size`` is not made of positive integers.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("folder", folder, "an existing folder")
    if labels_from not in get_args(LabelsFrom):
        raise UnknownNameError("labels_from", labels_from, get_args(LabelsFrom))
    wanted = None if size is None else sides(size)
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and _visible(f, folder) and f.is_file())
    if not files:
        raise DataError("folder", f"{folder}, without images", f"a folder with image files ({', '.join(SUFFIXES)})")

    pictures = [_read(file, wanted, grayscale, num_values) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            (h, w), (H, W) = picture.shape[:2], pictures[0].shape[:2]
            expected = "a folder of images of one size (or size= must be given, to crop and resize to)"
            raise DataError("folder", f"{files[0]} of {W}x{H} and {file} of {w}x{h} pixels", expected)

    wide = [picture.dtype != np.uint8 for picture in pictures]
    if any(wide) != all(wide) or (num_values is not None and num_values > BYTE and not any(wide)):
        expected = f"files of 16-bit gray alone with num_values={num_values}"
        raise DataError("folder", f"the 8-bit image {files[wide.index(False)]}", expected)

    # one gray and one colour image make a set of colour images
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [p if p.ndim == 3 else np.repeat(p[:, :, None], 3, axis=2) for p in pictures]
    raw = torch.from_numpy(np.stack(pictures))  # uint8, or int64
    raw = raw[:, None] if raw.ndim == 3 else raw.permute(0, 3, 1, 2).contiguous()
    labels, names = _classes([_class(file, folder, labels_from) for file in files], labels_from)
    K = BYTE if num_values is None else num_values
    return Data(folder.resolve().name, raw, labels, num_values=K, class_names=names, image=True)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``size`` as (height, width)."""
    found = wholes("size", size) if isinstance(size, Iterable) else 2 * (whole("size", size),)
    if len(found) != 2:
        raise ArgumentError("size", repr(size), "a side or (height, width), in pixels")
    return found[0], found[1]


def _visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _class(file: Path, folder: Path, labels_from: LabelsFrom) -> str | None:
    """Return the name of a file's class, None if it has none."""
    parts = file.relative_to(folder).parts
    if labels_from == "folders":
        return parts[0] if len(parts) == 2 else None
    return re.split(r"[\d_-]", file.stem)[0] or None if labels_from == "names" else None


def _classes(found: list[str | None], labels_from: LabelsFrom) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Return the labels ``(N,)``, and the names of the classes.

    Raises:
        DataError: file names that are to name the classes, and do not.
    """
    names = sorted({name for name in found if name is not None})
    if len(names) < 2 or None in found:
        if labels_from == "names":
            got = f"{found.count(None)} without one, and the classes {', '.join(names) or 'none'}"
            raise DataError("labels_from", got, "'names' for files such as dog_1.png and cat_1.png")
        return None, None
    numbers = {name: i for i, name in enumerate(names)}
    return torch.tensor([numbers[name] for name in found if name is not None]), tuple(names)


def _read(file: Path, size: tuple[int, int] | None, grayscale: bool, num_values: int | None) -> NDArray[Any]:
    """Read one image, ``(H, W)`` if gray, else ``(H, W, 3)``.

    It is uint8, or int64 if the file has more than 8 bits.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=FORMATS) as opened:
            _check_depth(file, opened.mode, str(opened.tile), num_values)
            image: Any = ImageOps.exif_transpose(opened)
            wide = image.mode.startswith("I")
            if wide:
                image = Image.fromarray(np.asarray(image, np.float32))  # exact below 2^24; it can be resized
            elif "A" in image.getbands() or "transparency" in image.info:
                gray = image.mode in GRAY_MODES
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                image = image.convert("L" if gray or grayscale else "RGB")
            else:
                image = image.convert("L" if image.mode in GRAY_MODES or grayscale else "RGB")
            if size is not None:
                image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
            if not wide:
                return np.array(image, np.uint8)
            values: NDArray[Any] = np.rint(np.array(image)).astype(np.int64)
            return values if size is None else values.clip(0, (num_values or BYTE) - 1)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            "folder", f"{file}, which cannot be read ({error})", "a folder of intact image files"
        ) from error


def _check_depth(file: Path, mode: str, tile: str, num_values: int | None) -> None:
    """Raise a DataError for an image that would lose bits."""
    if mode == "F":
        raise DataError("folder", f"{file}, an image of floats", "images of integers; from_array takes floats")
    if mode.startswith("I") and num_values is None:
        expected = "the number of gray values (65536 of 16 bits, 4096 of 12)"
        raise DataError("num_values", f"None for {file}, which has more than 8 bits", expected)
    if not mode.startswith("I") and ";16" in tile:
        raise DataError("folder", f"{file}, colour of 16 bits", "images of 8-bit colour or 16-bit gray")
