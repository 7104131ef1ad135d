"""Spoiled copies of a data set that keep its values but not its structure: what a likelihood should tell apart."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from scoresde.data.dataset import Data
from scoresde.errors import DataError, UnknownNameError
from scoresde.random import rand

CORRUPTIONS = ("shuffled-pixels", "inverted", "rows-shuffled")


def corrupt(data: Data, kind: str, generator: torch.Generator | None = None) -> Data:
    """The same items, spoiled; scale, num_values and labels stay.

    Args:
        data: images ``(C, H, W)`` or ``(H, W)``, with num_values.
        kind: "shuffled-pixels": the pixels of each image permuted, each image in its own way, channels together;
            "rows-shuffled": its rows permuted likewise; "inverted": level k becomes K - 1 - k.
        generator: where the permutations are drawn (None: torch's own generator).

    Raises:
        UnknownNameError: no such kind.
        DataError: the items are not images with num_values.
    """
    if kind not in CORRUPTIONS:
        raise UnknownNameError("kind", kind, CORRUPTIONS)
    if not data.is_image or data.num_values is None:
        raise DataError("data", repr(data), "images with integer num_values")
    raw = data.raw
    N, H, W = len(raw), *raw.shape[-2:]
    if kind == "inverted":
        spoiled = data.num_values - 1 - raw
    elif kind == "rows-shuffled":
        rows = raw.reshape(N, -1, H, W).transpose(1, 2)  # (N, H, C, W)
        spoiled = _permute(rows, generator).transpose(1, 2)
    else:
        pixels = raw.reshape(N, -1, H * W).transpose(1, 2)  # (N, HW, C)
        spoiled = _permute(pixels, generator).transpose(1, 2)
    return dataclasses.replace(data, name=f"{data.name}, {kind}", raw=spoiled.reshape(raw.shape))


def _permute(parts: Tensor, generator: torch.Generator | None) -> Tensor:
    """``(N, P, ...)`` with the P parts of each item in an order of its own."""
    order = rand(parts.shape[:2], generator, dtype=torch.float64).argsort(dim=1)
    return parts[torch.arange(len(parts))[:, None], order]
