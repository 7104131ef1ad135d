"""Masks by name or from a file: which entries of an item are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde.data import load_mask
from scoresde.errors import ArgumentError, DataError
from scoresde.guidance.masks import check_mask, expand_mask

NAMES = ("half", "center", "random:SHARE")


def space_axes(shape: tuple[int, ...], image: bool) -> int:
    """Return how many of the last axes of an item are its space or time.

    They are 2 of an image, and all but the first, the channels, of other items.
    """
    return 2 if image else max(1, len(shape) - 1)


def mask_of(text: str, shape: tuple[int, ...], image: bool, seed: int = 0) -> Tensor:
    """Return the mask ``(*D)`` that ``--mask`` names, True where known.

    Args:
        text: "half": the first half along the first axis of space is known (the upper half of an image). "center": all
            but the middle half along each axis of space. "random:0.3": three tenths of the places, the same in all
            channels. Anything else is a file: an .npy array of bool, or of 0 and 1, that broadcasts to D; or for
            images a picture of their size, white where they are known.
        shape: D, the shape of one item.
        image: whether items are images, ``(C, H, W)`` or ``(H, W)``.
        seed: seed of a random mask.

    Raises:
        ArgumentError: values other than 0 and 1, nothing known, nothing unknown, or an invalid share.
        ShapeError: a mask that does not broadcast to D.
        DataError: a file that cannot be used, or a picture of another size or with grey values.
    """
    places = shape[len(shape) - space_axes(shape, image) :]
    name, _, value = text.partition(":")
    if text == "half":
        mask = torch.zeros(places, dtype=torch.bool)
        mask[: places[0] // 2] = True
    elif text == "center":
        mask = torch.ones(places, dtype=torch.bool)
        hidden = [max(1, size // 2) for size in places]
        mask[tuple(slice((n - h) // 2, (n - h) // 2 + h) for n, h in zip(places, hidden, strict=True))] = False
    elif name == "random" and value:
        mask = _random(value, places, seed)
    elif Path(text).suffix == ".npy":
        mask = _array(text)
    elif image and Path(text).is_file():
        mask = load_mask(text, shape)
    else:
        kinds = "an .npy file" + (" or a black and white picture" if image else "")
        raise DataError("mask", repr(text), f"{', '.join(NAMES)}, or {kinds} that exists")
    mask = expand_mask(check_mask(mask), shape)
    if bool(mask.all()):
        raise ArgumentError("mask", "1 everywhere", "0 at one or more entries, which are to be restored")
    return mask


def _random(share: str, places: tuple[int, ...], seed: int) -> Tensor:
    try:
        known = float(share)
    except ValueError:
        known = -1.0
    if not 0 < known < 1:
        raise ArgumentError("mask", repr(f"random:{share}"), "random: and the share that is known, between 0 and 1")
    n = math.prod(places)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[: max(1, round(known * n))]] = True
    return mask.reshape(places)


def _array(path: str) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError("mask", f"{path} ({error})", "an .npy file with an array of bool, or of 0 and 1") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        got = f"{path} of {getattr(values, 'dtype', 'several arrays')}"
        raise DataError("mask", got, "an array of bool, or of 0 and 1")
    return torch.from_numpy(values.astype(np.float64) if values.dtype.kind != "b" else values)
