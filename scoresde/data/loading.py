"""Items of any dataset as batches of tensors: what a trainer may be given, and how it is read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scoresde.data.dataset import CHANNELS, Data
from scoresde.data.dequantization import Dequantization, Uniform
from scoresde.data.mapped import Mapped
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, DataError, ShapeError

X_KEYS = ("x", "image", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "y")


def parts(item: object) -> tuple[object, object]:
    """``(x, label)`` of an item: a tensor, an array or a picture x; (x,), (x, label); or a mapping with such keys.

    Raises:
        DataError: another kind of item.
    """
    if isinstance(item, Mapping):
        x, label = (next((key for key in keys if key in item), None) for keys in (X_KEYS, LABEL_KEYS))
        if x is None:
            raise DataError("data", f"items with the keys {', '.join(map(str, item))}", f"one of {', '.join(X_KEYS)}")
        return item[x], None if label is None else item[label]
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2:
        return item[0], item[1] if len(item) == 2 else None
    if isinstance(item, Tensor) or hasattr(item, "__array__") or hasattr(item, "__array_interface__"):
        return item, None
    raise DataError("data", f"items of type {type(item).__name__}", "a tensor x, a pair (x, label) or a mapping")


def as_tensor(x: object) -> Tensor:
    """One item as a tensor: floats as float32, integers as they are; pictures (H, W, C) and (H, W) channels first.

    What is a tensor already keeps its layout.

    Raises:
        DataError: strings, objects, lists of unequal lengths.
    """
    if isinstance(x, Tensor):
        return x.float() if x.is_floating_point() else x
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DataError("data", f"an item that is no array ({error})", "numbers, all items of one shape") from error
    if array.dtype.kind not in "buif":
        raise DataError("data", f"items of {array.dtype}", "integers or real floats")
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, np.float32))
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[2] in CHANNELS and array.shape[0] not in CHANNELS:
        array = array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(array, np.uint8 if array.dtype.itemsize == 1 else np.int64))


def collate(items: Sequence[object]) -> tuple[Tensor, Tensor | None]:
    """``(raw, labels)``: the items' x as one tensor ``(B, *D)``, and their labels ``(B,)`` int64 where they have them.

    Raises:
        DataError: items of different shapes, labels that are no whole numbers.
    """
    xs, labels = zip(*map(parts, items), strict=True)
    tensors = [as_tensor(x) for x in xs]
    shapes = sorted({tuple(x.shape) for x in tensors})
    if len(shapes) > 1:
        raise DataError("data", f"items of shapes {shapes[0]} and {shapes[1]}", "items of one shape")
    raw = torch.stack(tensors)
    if any(label is None for label in labels):
        return raw, None
    try:
        return raw, torch.tensor([int(label) for label in labels])
    except (TypeError, ValueError) as error:
        raise DataError("data", f"labels such as {labels[0]!r}", "classes 0, 1, ...") from error


def scaling_of(raw: Tensor, known: Scaling | None) -> Scaling | None:
    """The map of items to model space: None for floats, which are in it; for integers the known one, or 8-bit.

    Raises:
        DataError: integers of another kind, with nothing known of their num_values.
    """
    if raw.is_floating_point():
        return None
    if known is not None and known.num_values is not None:
        return known
    if raw.dtype == torch.uint8:
        return Scaling.for_integers(256)
    raise DataError("data", f"items of {raw.dtype}", "8-bit integers, floats, or a model whose scaling has num_values")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Chance inside a dataset (augmentations) fixed by ``seed``, and the global generators left as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


class Reader:
    """Reads batches of items and brings them into model space, a pure function of which items and a seed.

    Args:
        data: a :class:`Data`, a :class:`Mapped`, or any map-style dataset.
        share: ``(index, count)``: of each batch keep the items index, index + count, ... The noise of dequantisation is
            that of the whole batch.
        dequantization: the law of the noise that integers get; default :class:`Uniform`.
        scaling: the map to model space for a foreign dataset's integers (:func:`scaling_of`).
        flip: mirror half of the items at random, along their last axis.

    Raises:
        ArgumentError: ``flip`` for a foreign dataset, whose augmentation is its own.
    """

    def __init__(
        self,
        data,
        share: tuple[int, int] = (0, 1),
        dequantization: Dequantization | None = None,
        scaling: Scaling | None = None,
        flip: bool = False,
    ):
        self.data, self.share, self.scaling, self.flip = data, share, scaling, flip
        if flip and not isinstance(data, (Data, Mapped)):
            raise ArgumentError("flip", flip, "False for a foreign dataset: its own transforms augment it")
        self.dequantization = Uniform() if dequantization is None else dequantization

    def __call__(self, rows: Tensor, seed: int) -> dict[str, Tensor]:
        """The batch ``{"x": (B, *D), "label": (B,)}`` of the items ``rows`` (of the whole batch)."""
        index, count = self.share
        if isinstance(self.data, (Data, Mapped)):
            raw = self.data.rows(rows) if isinstance(self.data, Mapped) else self.data.raw[rows]
            generator = torch.Generator().manual_seed(seed)
            x = self.dequantization.training_data(raw, self.data.scaling, generator)
            if self.flip:
                mirrored = torch.rand(len(x), generator=generator) < 0.5
                x = torch.where(mirrored.reshape(-1, *(1,) * (x.ndim - 1)), x.flip(-1), x)
            x = x[index::count]
            return {"x": x} if self.data.labels is None else {"x": x, "label": self.data.labels[rows][index::count]}
        own = rows[index::count].tolist()
        with _seeded(seed + index):
            several = getattr(self.data, "__getitems__", None)
            items = [self.data[i] for i in own] if several is None else several(own)
        return self.to_model(items, seed)

    def to_model(self, items: Sequence[object], seed: int) -> dict[str, Tensor]:
        """Items of this share as a batch."""
        raw, labels = collate(items)
        scaling = scaling_of(raw, self.scaling)
        if scaling is not None:
            index, count = self.share
            streams = [torch.Generator().manual_seed(seed + index + count * i) for i in range(len(raw))]
            raw = self.dequantization.training_data(scaling.check_integers(raw), scaling, streams)
        return {"x": raw} if labels is None else {"x": raw, "label": labels}


def is_map_style(data: object) -> bool:
    """Whether the items of ``data`` can be asked for by number.

    Raises:
        ArgumentError: a DataLoader, a mapping of several datasets, or nothing that has items.
    """
    if isinstance(data, DataLoader):
        raise ArgumentError("data", "a DataLoader", "its dataset (loader.dataset): batches are cut here, to be resumed")
    if isinstance(data, Mapping):
        raise ArgumentError("data", f"a mapping of {', '.join(map(str, data))}", "one dataset, such as data['train']")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return True
    if not isinstance(data, Iterable):
        raise ArgumentError("data", type(data).__name__, "a dataset: map-style, or an iterable of items")
    return False


def from_dataset(dataset, name: str = "dataset", num_values: int | None = None, n: int | None = None) -> Data:
    """A foreign dataset (torchvision's, Hugging Face's, any that is map-style) read into memory as :class:`Data`.

    Args:
        num_values: number of num_values of integer items; 8-bit ones have 256.
        n: read the first n items only.

    Raises:
        ArgumentError, DataError: not a map-style dataset, or items that do not fit together.
    """
    if not is_map_style(dataset):
        raise ArgumentError("dataset", type(dataset).__name__, "a map-style dataset, with a length")
    count = len(dataset) if n is None else min(n, len(dataset))
    if count == 0:
        raise DataError("dataset", "no items", "at least one item")
    raw, labels = collate([dataset[i] for i in range(count)])
    if raw.ndim < 2:
        raise ShapeError("dataset", "items that are single numbers", "items (*D) with D of rank 1 or more")
    return Data(name, raw, labels, 256 if num_values is None and raw.dtype == torch.uint8 else num_values)
