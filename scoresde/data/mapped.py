"""Arrays larger than memory, memory-mapped and read a batch at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from scoresde.argument_types import checked
from scoresde.checks import numbers, whole
from scoresde.data.arrays import NUM_VALUES, arranged, check_numbers
from scoresde.data.data_scale import DataScale
from scoresde.data.dataset import MEASURED, Data
from scoresde.data.options import Layout
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, DataError

SAMPLE, SAMPLE_BYTES = 16_384, 2**24  # most items, and most bytes, on which scale and moments are measured


@checked
class Mapped(Dataset[dict[str, Tensor]]):
    """An array ``(N, ...)`` on disk as training data.

    Each batch is read when it is needed. Layout, number of values and scale are those of
    :func:`~scoresde.data.arrays.from_array`, with two differences. Scale, shift and moments are measured on at most
    16384 evenly spaced items (or 16 MiB). NaN and integers that are not below the number of values raise an error only
    when they are read.

    Args:
        array: a ``np.memmap``, or any array that is indexed along its first axis.
        labels: class of each item ``(N,)``. None: unlabelled.
        num_values: number of values of integers. None: 256 for uint8, 2 for bool.
        name: the name that reports use.
        layout: order of the axes, see :func:`~scoresde.data.arrays.from_array`.

    Attributes:
        sample: the evenly spaced items, in memory.

    Raises:
        DTypeError: objects, strings, complex numbers.
        DataError: no items, integers without ``num_values``, labels that do not fit.
    """

    def __init__(
        self,
        array: NDArray[Any],
        labels: ArrayLike | Tensor | None = None,
        num_values: int | None = None,
        name: str = "array",
        layout: Layout | None = None,
    ):
        check_numbers(array, name)
        if array.ndim < 2 or array.size == 0:
            raise DataError(name, f"shape {array.shape}", "an array (N, *D) with N >= 1 and D of rank 1 or more")
        if array.dtype.kind != "f":
            num_values = NUM_VALUES.get(array.dtype.name) if num_values is None else num_values
        arranged(array, layout)  # refuses a layout that does not fit
        self.name, self.array, self.num_values, self.layout = name, array, num_values, layout
        self._file = _file_of(array)
        self.labels = None if labels is None else numbers("labels", labels, "one integer for each item").long()
        if self.labels is not None and self.labels.shape != (len(array),):
            expected = f"one integer for each item, ({len(array)},)"
            raise DataError("labels", f"shape {tuple(self.labels.shape)}", expected)
        measured = self._evenly_spaced(max(1, min(SAMPLE, len(array), SAMPLE_BYTES // max(1, array[0].nbytes))))
        self.sample = Data(name, self.rows(measured), self._labels_of(measured), num_values)
        self.scaling: Scaling = self.sample.scaling
        self.shape, self.is_image = self.sample.shape, self.sample.is_image
        self.classes = None if self.labels is None else int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return item ``index`` as a mapping, like :meth:`Data.__getitem__`."""
        item = {"x": self.scaling.bin_centres(self.rows(torch.tensor([index])))[0]}
        return item if self.labels is None else {**item, "label": self.labels[index]}

    def rows(self, index: Tensor) -> Tensor:
        """Read the raw items ``(len(index), *D)``.

        They are read in the order in which they lie on the disk, and returned in that of ``index``.

        Raises:
            DataError: NaN, infinity, or integers outside 0..num_values-1 among them.
        """
        ascending, back = torch.unique(index, return_inverse=True)
        chosen = arranged(self._read(ascending.tolist()), self.layout)
        if self.num_values is None:
            raw = torch.from_numpy(chosen.astype(np.float64 if chosen.dtype.itemsize > 4 else np.float32, copy=False))
            if not raw.isfinite().all():
                raise DataError(self.name, "NaN or infinity", "finite numbers")
            return raw[back]
        raw = torch.from_numpy(chosen.astype(np.uint8 if chosen.dtype.itemsize == 1 else np.int64, copy=False))
        return Scaling.for_integers(self.num_values).check_integers(raw, self.name)[back]

    def _read(self, rows: list[int]) -> NDArray[Any]:
        """Read items as they lie in the array.

        Those of a file are read from it and not through its map, whose pages would count as this process's memory.
        """
        if self._file is None:
            return np.ascontiguousarray(self.array[rows])
        name, offset = self._file
        shape, dtype = self.array.shape[1:], self.array.dtype
        chosen = np.empty((len(rows), *shape), dtype)
        try:
            with open(name, "rb", buffering=0) as file:
                for place, row in zip(chosen, rows, strict=True):
                    item = os.pread(file.fileno(), place.nbytes, offset + row * place.nbytes)
                    place[...] = np.frombuffer(item, dtype).reshape(shape)
        except (OSError, ValueError) as error:
            raise DataError(self.name, f"{name} ({error})", "a file that stays as it was") from error
        return chosen

    def _evenly_spaced(self, n: int) -> Tensor:
        """Return the numbers of ``n`` evenly spaced items."""
        return torch.arange(n) * len(self) // n

    def _labels_of(self, index: Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[index]

    def split(self, held_out: int) -> tuple[Mapped, Data]:
        """Split off the last ``held_out`` items.

        Returns:
            The other items, still on the disk, and the last ones in memory.

        Raises:
            ArgumentError: ``held_out`` is not a count from 1 to N - 1.
        """
        held_out = whole("held_out", held_out)
        if held_out >= len(self):
            raise ArgumentError("held_out", held_out, f"a count from 1 to {len(self) - 1}")
        first = len(self) - held_out
        labels = None if self.labels is None else self.labels[:first]
        rest = Mapped(self.array[:first], labels, self.num_values, self.name, self.layout)
        last = torch.arange(first, len(self))
        test = Data(self.name, self.rows(last), self._labels_of(last), self.num_values, normalize="none")
        return rest, test if self.num_values is not None else test.scaled_like(rest.sample)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the moments of the sample, see :meth:`Data.moments`."""
        return self.sample.moments()

    def few(self, most: int = MEASURED) -> Tensor:
        """Return at most ``most`` items of the sample, see :meth:`Data.few`."""
        return self.sample.few(most)

    @property
    def data_scale(self) -> DataScale | None:
        """The lengths of the sample, see :attr:`Data.data_scale`."""
        return self.sample.data_scale

    @property
    def bin_width(self) -> float:
        """Width in model space of the bin of an integer, 0 for floats."""
        return self.sample.bin_width

    def __repr__(self) -> str:
        kind = "continuous" if self.num_values is None else f"integers 0..{self.num_values - 1}"
        size = self.array.nbytes / 2**30
        return f"Mapped({self.name!r}, {len(self)} items of shape {self.shape}, {kind}, {size:.2f} GiB on disk)"


def _file_of(array: NDArray[Any]) -> tuple[str, int] | None:
    """Return the file of a memory-mapped array and the place of its data.

    None: it has no file, or does not lie in it item after item.
    """
    root: Any = array
    while isinstance(root, np.memmap) and isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or not hasattr(os, "pread"):
        return None
    if not array.flags.c_contiguous or array.strides[0] != array[0].nbytes:
        return None
    return str(root.filename), root.offset + array.ctypes.data - root.ctypes.data


@checked
def map_array(
    path: str | Path,
    labels: str | Path | None = None,
    num_values: int | None = None,
    layout: Layout | None = None,
) -> Mapped:
    """Memory-map an .npy file as :class:`Mapped`.

    Args:
        path: path of the file.
        labels: path of an .npy file with the labels ``(N,)``. None: unlabelled.
        num_values: number of values of integers. None: 256 for uint8, 2 for bool.
        layout: order of the axes, see :func:`~scoresde.data.arrays.from_array`.

    Raises:
        DataError: not an .npy file of numbers.
    """
    path = Path(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        classes = None if labels is None else np.load(labels, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError("path", f"{path} ({error})", "an intact .npy file of numbers") from error
    if not isinstance(array, np.memmap):
        raise DataError("path", f"{path}, an archive", "an .npy file: arrays in an .npz cannot be mapped")
    return Mapped(array, classes, num_values, path.stem, layout)
