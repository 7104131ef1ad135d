"""Corrupted copies of a data set, which a likelihood should tell apart.

They keep the values of the data but not their structure.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.data.dataset import Data
from scoresde.errors import DataError, UnknownNameError
from scoresde.random import rand

#: the kinds of corruption that `corrupt` knows
CORRUPTIONS = ("shuffled-pixels", "inverted", "rows-shuffled")


@checked
def corrupt(data: Data, kind: str, generator: torch.Generator | None = None) -> Data:
    """Return the same items, corrupted.

    Scale, number of values and labels stay.

    Args:
        data: integer images ``(C, H, W)`` or ``(H, W)``.
        kind: "shuffled-pixels": a random permutation of the pixels of each image, the same in all channels;
            "rows-shuffled": a random permutation of the rows of each image; "inverted": k becomes K - 1 - k.
        generator: source of the permutations. None: torch's default.

    Raises:
        UnknownNameError: an unknown ``kind``.
        DataError: the items are not images of integers.
    """
    if kind not in CORRUPTIONS:
        raise UnknownNameError("kind", kind, CORRUPTIONS)
    if not data.is_image or data.num_values is None:
        raise DataError("data", repr(data), "images of integers")
    raw = data.raw
    N, H, W = len(raw), *raw.shape[-2:]
    if kind == "inverted":
        corrupted = data.num_values - 1 - raw
    elif kind == "rows-shuffled":
        rows = raw.reshape(N, -1, H, W).transpose(1, 2)  # (N, H, C, W)
        corrupted = _permute(rows, generator).transpose(1, 2)
    else:
        pixels = raw.reshape(N, -1, H * W).transpose(1, 2)  # (N, HW, C)
        corrupted = _permute(pixels, generator).transpose(1, 2)
    return dataclasses.replace(data, name=f"{data.name}, {kind}", raw=corrupted.reshape(raw.shape))


def _permute(parts: Tensor, generator: torch.Generator | None) -> Tensor:
    """Permute the P parts of each item of ``(N, P, ...)`` independently."""
    order = rand(parts.shape[:2], generator, dtype=torch.float64).argsort(dim=1)
    return parts[torch.arange(len(parts))[:, None], order]
