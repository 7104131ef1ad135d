"""Datasets of other libraries, and how their items become tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.data.arrays import channels_first
from scoresde.data.dataset import Data
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, DataError, DataWarning, ShapeError, warn

X_KEYS = ("x", "image", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "y")
MASK_KEY = "observed"
FINITE = "finite numbers"


class MapStyle(Protocol):
    """A dataset whose items are read by number.

    Map-style datasets of torch, torchvision and Hugging Face are such datasets, and so are lists.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def x_and_label(item: object) -> tuple[object, object]:
    """Return ``(x, label)`` of an item; label is None if it has none.

    Args:
        item: x itself (a tensor, an array or a PIL image); (x,) or (x, label); or a mapping with one of the keys "x",
            "image", "img", "pixel_values", and perhaps one of "label", "labels", "y".

    Raises:
        DataError: any other item.
    """
    if isinstance(item, Mapping):
        x, label = (next((key for key in keys if key in item), None) for keys in (X_KEYS, LABEL_KEYS))
        if x is None:
            expected = f"items with one of the keys {', '.join(X_KEYS)}"
            raise DataError("data", f"items with the keys {', '.join(map(str, item))}", expected)
        return item[x], None if label is None else item[label]
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2:
        return item[0], item[1] if len(item) == 2 else None
    if isinstance(item, Tensor) or hasattr(item, "__array__") or hasattr(item, "__array_interface__"):
        return item, None
    raise DataError("data", f"items of type {type(item).__name__}", "tensors x, pairs (x, label) or mappings")


def as_tensor(x: Any) -> Tensor:
    """Return one item as a tensor: floats as float32, integers as integers.

    Images ``(H, W)`` and ``(H, W, C)`` of integers become channels first. A tensor keeps its layout.

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
    array = channels_first(array[None])[0]
    return torch.from_numpy(np.array(array, np.uint8 if array.dtype.itemsize == 1 else np.int64))


def collate(items: Sequence[object], rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the items as tensors: x, labels and what is observed.

    x is ``(B, *D)``, the labels ``(B,)`` int64; they are None if an item has none. ``observed`` ``(B, *D)`` is True
    where values are known, and x is 0 elsewhere. It is None if no item has such a mask.

    Args:
        items: The items.
        rows: Their numbers in the dataset, which messages name. None: unknown.

    Raises:
        DataError: items of different shapes, NaN or infinity, labels that are not integers.
    """
    xs, labels = zip(*map(x_and_label, items), strict=True)
    tensors = [as_tensor(x) for x in xs]
    shapes = sorted({tuple(x.shape) for x in tensors})
    if len(shapes) > 1:
        raise DataError("data", f"items of shapes {shapes[0]} and {shapes[1]}", "items of one shape")
    raw, observed = torch.stack(tensors), _masks(items, tensors[0].shape)
    if observed is not None:
        raw = torch.where(observed, raw, torch.zeros_like(raw))
    if raw.is_floating_point() and not bool(raw.isfinite().all()):
        place = tuple((~raw.isfinite()).nonzero()[0].tolist())
        number = "" if rows is None else f", which is item {rows[place[0]]} of the data"
        raise DataError("data", f"NaN or infinity in item {place[0]} of a batch, entry {place[1:]}{number}", FINITE)
    if any(label is None for label in labels):
        return raw, None, observed
    return raw, torch.tensor([_class(label) for label in labels]), observed


def _masks(items: Sequence[object], shape: torch.Size) -> Tensor | None:
    """Return the masks of mapping items, ``(B, *D)``. None: no item has one.

    Raises:
        DataError: some items without a mask, or masks that are not truth values in the shape of x.
    """
    found = [item[MASK_KEY] if isinstance(item, Mapping) and MASK_KEY in item else None for item in items]
    if all(mask is None for mask in found):
        return None
    masks = [None if mask is None else torch.as_tensor(mask) for mask in found]
    for mask in masks:
        if mask is None or mask.shape != shape or mask.dtype != torch.bool:
            got = "no mask in some items" if mask is None else f"{tuple(mask.shape)} of {mask.dtype}"
            raise DataError(MASK_KEY, got, f"truth values of the shape of x, {tuple(shape)}, in every item")
    return torch.stack([mask for mask in masks if mask is not None])


def further_entry(items: Sequence[object], name: str) -> Tensor:
    """Return an entry of mapping items as a tensor ``(B, ...)``.

    Floats become float32; integers, such as tokens, become int64.

    Raises:
        DataError: items without the entry, or of different shapes, NaN or infinity in it.
    """
    if name in (*X_KEYS, *LABEL_KEYS):
        raise DataError("conditions", repr(name), "names of further entries; labels need conditional=True")
    values = []
    for item in items:
        if not isinstance(item, Mapping) or name not in item:
            got = f"a mapping of {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
            raise DataError("data", f"an item that is {got}", f"items with the entry {name!r} that `conditions` names")
        value = as_tensor(item[name])
        values.append(value if value.is_floating_point() else value.long())
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise DataError("data", f"{name!r} of shapes {shapes[0]} and {shapes[1]}", "entries of one shape")
    stacked = torch.stack(values)
    if not bool(stacked.isfinite().all()):
        raise DataError("data", f"NaN or infinity in {name!r}", FINITE)
    return stacked


def say_unused(item: object, used: Sequence[str]) -> None:
    """Warn of numbers in an item that reach neither the loss nor the network."""
    if not isinstance(item, Mapping):
        return
    known = {*X_KEYS, *LABEL_KEYS, MASK_KEY, *used}
    unused = [str(key) for key in item if key not in known and isinstance(item[key], (Tensor, np.ndarray, float))]
    if unused:
        text = f"the entries {', '.join(unused)} of the items are not used: TrainerConfig(conditions={{name: 0.0}})"
        warn(f"{text} hands them to the network by name.", DataWarning, stacklevel=2)


def _class(label: object) -> int:
    """Return a label as the number of a class; real numbers are none."""
    if isinstance(label, Tensor):
        label = label.item() if label.numel() == 1 else label.tolist()
    elif isinstance(label, np.ndarray):
        label = label.item() if label.size == 1 else label.tolist()
    try:
        return operator.index(label)  # type: ignore[arg-type]  # of any other type it is an error
    except TypeError as error:
        expected = "labelled with classes 0, 1, ..., which are integers (targets that are real numbers are no classes)"
        raise DataError("data", f"labels such as {label!r}", expected) from error


def scaling_of(raw: Tensor, known: Scaling | None) -> Scaling | None:
    """Return the map of integer items to model space. None: floats.

    It is ``known``, if that has a number of values, and else that of 8-bit integers. Floats are taken to be in model
    space already.

    Raises:
        DataError: integers other than 8-bit whose number of values is not known.
    """
    if raw.is_floating_point():
        return None
    if known is not None and known.num_values is not None:
        return known
    if raw.dtype == torch.uint8:
        return Scaling.for_integers(256)
    raise DataError("data", f"items of {raw.dtype}", "8-bit integers, floats, or have a model that knows num_values")


def is_map_style(data: object) -> TypeGuard[MapStyle]:
    """Return whether the items of ``data`` are read by number.

    Raises:
        ArgumentError: a DataLoader, a table of pandas, a mapping of several datasets, or an object without items.
    """
    if isinstance(data, DataLoader):
        expected = "the loader's dataset (loader.dataset), so that the stream of batches can be resumed"
        raise ArgumentError("data", "a DataLoader", expected)
    if isinstance(data, Tensor) and (data.is_meta or data.ndim == 0):
        raise ArgumentError("data", f"a tensor {'without values (meta)' if data.is_meta else '()'}", "items (N, *D)")
    if hasattr(data, "iloc"):
        expected = "items; from_frame(frame) reads a table"
        raise ArgumentError("data", f"a {type(data).__name__} of pandas", expected)
    if isinstance(data, Mapping):
        raise ArgumentError("data", f"a mapping of {', '.join(map(str, data))}", "one dataset, such as data['train']")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (str, bytes, type)):
        return getattr(data, "ndim", 1) > 0
    if not isinstance(data, Iterable):
        raise ArgumentError("data", type(data).__name__, "a map-style dataset, or an iterable of items")
    return False


@checked
def from_dataset(dataset: MapStyle, name: str = "dataset", num_values: int | None = None, n: int | None = None) -> Data:
    """Read a dataset of another library into memory as :class:`Data`.

    Args:
        dataset: torchvision's, Hugging Face's, a list, ...
        name: the name that reports use.
        num_values: number of values of integer items. None: 256 for 8-bit ones.
        n: read the first n items only. None: all.

    Raises:
        ArgumentError, DataError: not a map-style dataset, or items that do not fit together.
    """
    if not is_map_style(dataset):
        raise ArgumentError("dataset", type(dataset).__name__, "a map-style dataset, with a length")
    count = len(dataset) if n is None else min(whole("n", n), len(dataset))
    if count == 0:
        raise DataError("dataset", "no items", "a dataset of at least one item")
    raw, labels, observed = collate([dataset[i] for i in range(count)])
    if observed is not None:
        if not raw.is_floating_point():
            raise DataError(
                "dataset", f"{raw.dtype} items with missing values", "floats, or Trainer.fit(dataset) itself"
            )
        raw = torch.where(observed, raw, torch.nan)
    if raw.ndim < 2:
        raise ShapeError("dataset", "items that are single numbers", "items (*D) with D of rank 1 or more")
    if num_values is None and raw.dtype == torch.uint8:
        num_values = 256
    return Data(name, raw, labels, num_values, missing=observed is not None)
