"""NumPy arrays, from memory or from .npy and .npz files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import CHANNELS, Data
from scoresde.errors import ArgumentError, DataError, DTypeError, UnknownNameError

LABEL_KEYS = ("labels", "y")


def from_array(
    array: np.ndarray, labels: np.ndarray | None = None, num_values: int | None = None, name: str = "array"
) -> Data:
    """An array ``(N, ...)`` as data.

    Floats are continuous and keep their layout. Integers have ``num_values`` num_values (uint8: 256, bool: 2 unless given), and
    images come channels first: ``(N, H, W)`` becomes ``(N, 1, H, W)``, and ``(N, H, W, C)`` with C = 1, 3 or 4 becomes
    ``(N, C, H, W)``. A plain ``(N,)`` array becomes ``(N, 1)``.

    Raises:
        DTypeError: objects, strings, complex numbers, dates.
        DataError: see :class:`~scoresde.data.dataset.Data`.
    """
    if array.dtype.kind not in "buif":
        raise DTypeError(name, f"an array of {array.dtype}", "integers or real floats")
    if array.ndim == 1:
        array = array[:, None]
    if array.dtype.kind == "f":
        dtype = np.float64 if array.dtype.itemsize > 4 else np.float32
        return Data(name, torch.from_numpy(np.array(array, dtype)), _labels(labels), num_values)
    if num_values is None:
        num_values = {"uint8": 256, "bool": 2}.get(array.dtype.name)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in CHANNELS and array.shape[1] not in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    return Data(name, _integers(name, array), _labels(labels), num_values)


def _integers(name: str, array: np.ndarray) -> Tensor:
    """The array as a tensor, narrow where it can be; values that int64 cannot hold are refused."""
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(name, f"a value of {array.max()}", "integers below the number of num_values")
    return torch.from_numpy(np.array(array, np.uint8 if array.dtype in (np.uint8, np.bool_) else np.int64))


def _labels(labels: np.ndarray | None) -> Tensor | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "bui":
        raise DataError("labels", f"an array of {labels.dtype}", "integers")
    return torch.from_numpy(labels.astype(np.int64))


def load_array(path: str | Path, key: str | None = None, num_values: int | None = None) -> Data:
    """Data from a .npy or .npz file, read without pickle.

    Args:
        path: the file.
        key: which array of an .npz; not needed where only one is not labels. Labels are read from "labels" or "y".
        num_values: number of integer num_values, see :func:`from_array`.

    Raises:
        DataError: no such file, a file NumPy cannot read, pickled objects, no array or several to choose from.
        UnknownNameError: no array is called ``key``.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                array, labels = loaded, None
                if key is not None:
                    raise DataError("key", repr(key), f"None: {path} holds one array, without a name")
            else:
                array, labels = _choose(loaded, key, path)
    except ArgumentError:
        raise
    except FileNotFoundError as error:
        raise DataError("path", path, "an existing .npy or .npz file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError("path", f"{path} ({error})", "a whole .npy or .npz file of numbers, without pickles") from error
    return from_array(array, labels, num_values, path.stem)


def _choose(archive: np.lib.npyio.NpzFile, key: str | None, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    names = [name for name in archive.files if name not in LABEL_KEYS]
    if key is None:
        if len(names) != 1:
            raise DataError("key", f"None for {path}", f"one of its arrays: {', '.join(names) or 'it has none'}")
        key = names[0]
    elif key not in archive.files:
        raise UnknownNameError("key", key, archive.files)
    label = next((name for name in LABEL_KEYS if name in archive.files and name != key), None)
    return archive[key], None if label is None else archive[label]
