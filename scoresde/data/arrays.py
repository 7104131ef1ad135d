"""NumPy arrays, from memory or from .npy and .npz files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.data.dataset import CHANNELS, Data
from scoresde.data.options import Layout
from scoresde.errors import ArgumentError, DataError, DTypeError, UnknownNameError

BOMB_BYTES, BOMB_RATIO = 2**26, 200  # a packed array that is larger, and grows more, is refused
NPZ_LABELS = ("labels", "y")  # names of the labels in an .npz
NUM_VALUES = {"uint8": 256, "bool": 2}  # of the dtypes that imply it


@checked
def from_array(
    array: NDArray[Any],
    labels: NDArray[Any] | None = None,
    num_values: int | None = None,
    name: str = "array",
    layout: Layout | None = None,
    missing: bool = False,
) -> Data:
    """Return an array ``(N, ...)`` as data.

    Networks take channels first: images ``(C, H, W)``, series ``(C, L)``, volumes ``(C, D, H, W)``. Without a layout,
    ``(N, H, W, C)`` with C = 1, 3 or 4 becomes ``(N, C, H, W)``, and integers ``(N, H, W)`` become ``(N, 1, H, W)``.
    Any other array is taken to be channels first already. A plain ``(N,)`` array becomes ``(N, 1)``.

    Args:
        array: numbers ``(N, ...)``.
        labels: class of each item, integers ``(N,)``. None: unlabelled.
        num_values: number of values of integers. None: 256 for uint8, 2 for bool.
        name: the name that reports use.
        layout: "channels-first", "channels-last" such as ``(N, L, C)``, or "no-channels" such as ``(N, H, W)``, which
            get one channel. None: as above.
        missing: whether NaN are missing values, see :class:`~scoresde.data.dataset.Data`.

    Raises:
        DTypeError: objects, strings, complex numbers, dates.
        ArgumentError: a layout that the shape cannot have, or none where the shape has two readings.
        DataError: see :class:`~scoresde.data.dataset.Data`.
    """
    check_numbers(array, name)
    if array.ndim == 1:
        array = array[:, None]
    array = arranged(array, layout)
    if array.dtype.kind == "f":
        dtype = np.float64 if array.dtype.itemsize > 4 else np.float32
        return Data(name, torch.from_numpy(np.array(array, dtype)), _labels(labels), num_values, missing=missing)
    if missing:
        raise DataError(name, f"an array of {array.dtype} with missing=True", "floats, of which NaN are missing")
    if num_values is None:
        num_values = NUM_VALUES.get(array.dtype.name)
    return Data(name, _integers(name, array), _labels(labels), num_values)


def check_numbers(array: NDArray[Any], name: str) -> None:
    """Raise DTypeError unless ``array`` holds integers or real floats."""
    if array.dtype.kind not in "buif":
        raise DTypeError(name, f"an array of {array.dtype}", "integers or real floats")


def arranged(array: NDArray[Any], layout: Layout | None) -> NDArray[Any]:
    """Return an array with its channels first, see :func:`from_array`."""
    if layout is None:
        if array.ndim == 4 and array.shape[3] in CHANNELS and array.shape[1] in CHANNELS and array.shape[2] > 8:
            expected = "'channels-first' or 'channels-last', as both ends could be channels"
            raise ArgumentError("layout", f"None for shape {array.shape}", expected)
        return array if array.dtype.kind == "f" and array.ndim == 3 else channels_first(array)
    if layout not in get_args(Layout):
        raise UnknownNameError("layout", layout, get_args(Layout))
    if array.ndim < 3:
        raise ArgumentError("layout", repr(layout), f"None for vectors, shape {array.shape}")
    if layout == "no-channels":
        return array[:, None]
    return array if layout == "channels-first" else np.moveaxis(array, -1, 1)


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """Return images ``(N, H, W)`` or ``(N, H, W, C)`` as ``(N, C, H, W)``.

    C is 1, 3 or 4. Any other array is returned as it is.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in CHANNELS and images.shape[1] not in CHANNELS:
        return images.transpose(0, 3, 1, 2)
    return images


def _integers(name: str, array: NDArray[Any]) -> Tensor:
    """Return the array as uint8 if it is uint8 or bool, else as int64."""
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(name, f"a value of {array.max()}", "integers below num_values")
    return torch.from_numpy(np.array(array, np.uint8 if array.dtype in (np.uint8, np.bool_) else np.int64))


def _labels(labels: NDArray[Any] | None) -> Tensor | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "bui":
        raise DataError("labels", f"an array of {labels.dtype}", "integers")
    return torch.from_numpy(labels.astype(np.int64))


@checked
def load_array(
    path: str | Path,
    key: str | None = None,
    num_values: int | None = None,
    layout: Layout | None = None,
    missing: bool = False,
) -> Data:
    """Load data from an .npy or .npz file, without pickle.

    An .npz keeps its labels under "labels" or "y".

    Args:
        path: path of the file.
        key: name of the array in an .npz. None: its only array besides the labels.
        num_values, layout, missing: number of values of integers, order of the axes, and whether NaN are missing
            values, see :func:`from_array`.

    Raises:
        DataError: a missing file, one that NumPy cannot read, pickled objects, no array or several to choose from.
        UnknownNameError: the .npz has no array ``key``.
    """
    path = Path(path)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header that promises more is refused
        if isinstance(loaded, np.ndarray):
            array, labels = loaded, None
            if key is not None:
                raise DataError("key", repr(key), f"None for {path}, which holds one array without a name")
        else:
            with loaded:
                array, labels = _choose(loaded, key, path)
    except ArgumentError:
        raise
    except FileNotFoundError as error:
        raise DataError("path", path, "an existing .npy or .npz file") from error
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            "path", f"{path} ({error})", "an intact .npy or .npz file of numbers, without pickles"
        ) from error
    return from_array(array, labels, num_values, path.stem, layout, missing)


def _choose(archive: np.lib.npyio.NpzFile, key: str | None, path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the array and the labels of an .npz."""
    for member in archive.zip.infolist() if archive.zip is not None else ():
        if member.file_size > max(BOMB_BYTES, BOMB_RATIO * member.compress_size):
            got = f"{path}, where {member.compress_size} bytes of {member.filename} become {member.file_size}"
            raise DataError("path", got, f"an .npz that grows by {BOMB_RATIO} times at most; save this one as .npy")
    names = [name for name in archive.files if name not in NPZ_LABELS]
    if key is None:
        if len(names) != 1:
            found = f"one of its arrays: {', '.join(names)}" if names else "the name of an array, of which it has none"
            raise DataError("key", f"None for {path}", found)
        key = names[0]
    elif key not in archive.files:
        raise UnknownNameError("key", key, archive.files)
    label = next((name for name in NPZ_LABELS if name in archive.files and name != key), None)
    return archive[key], None if label is None else archive[label]
