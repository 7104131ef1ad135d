"""Augmentation: items through a random transform, such as torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scoresde.argument_types import checked
from scoresde.data.dataset import Data
from scoresde.data.mapped import Mapped
from scoresde.errors import DataError, DTypeError


@checked
class Augmented(Dataset[dict[str, Tensor]]):
    """Items of data through a random transform, drawn each time they are read.

    Any function of a tensor will do, and so will the transforms of ``torchvision.transforms.v2`` (the extra
    ``augment``), such as ``v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])``. Their randomness
    follows the training's seed, as that of every dataset does. What is augmented is learned: a model of mirrored digits
    draws mirrored digits.

    Args:
        data: the items. Integers reach the transform as they are, ``(C, H, W)`` of 8 bits for most images; floats reach
            it in model units.
        transform: function from an item to one of the same dtype; all results have one shape.

    Raises:
        DTypeError: other data, or a transform that is no function.
        DataError: when read, the transform returns no tensor of the item's dtype.
    """

    def __init__(self, data: Data | Mapped, transform: Callable[[Tensor], Tensor]):
        if not isinstance(data, (Data, Mapped)):
            expected = "Data or a Mapped array; a dataset of another library has its own transforms"
            raise DTypeError("data", type(data).__name__, expected)
        if not callable(transform):
            raise DTypeError("transform", type(transform).__name__, "a function of an item")
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        data, rows = self.data, torch.tensor([index])
        raw = (data.rows(rows) if isinstance(data, Mapped) else data.raw[rows])[0]
        before = raw if data.num_values is not None else data.scaling.bin_centres(raw, torch.float32)
        x = self.transform(before)
        if not isinstance(x, Tensor) or x.dtype != before.dtype:
            got = f"a {type(x).__name__}{f' of {x.dtype}' if isinstance(x, Tensor) else ''}"
            raise DataError("transform", got, f"a tensor of {before.dtype}, as the item is")
        return {"x": x} if data.labels is None else {"x": x, "label": data.labels[index]}
