"""Arrays larger than memory: a file is mapped, and read a batch at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scoresde.data.dataset import CHANNELS, Data
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, DataError, DTypeError

SAMPLE, SAMPLE_BYTES = 16_384, 2**26  # scale and moments are measured on at most so many items, and bytes of them


class Mapped(Dataset):
    """An array ``(N, ...)`` on disk as training data; batches are read when they are asked for.

    Layout, num_values and scale are those of :func:`~scoresde.data.arrays.from_array`, but that scale, shift and moments
    are measured on at most 16384 items (or 64 MiB) at equal distances, and that NaN and integers beyond the num_values are
    found when they are read.

    Args:
        array: a ``np.memmap`` (or any array that is indexed along its first axis).
        labels: class of each item ``(N,)``, or None.
        num_values: number of integer num_values; uint8 has 256.
        name: what reports call it.

    Attributes:
        sample: those items, in memory.

    Raises:
        DTypeError: objects, strings, complex numbers.
        DataError: no items, integers without num_values, labels that do not fit.
    """

    def __init__(self, array: np.ndarray, labels=None, num_values: int | None = None, name: str = "array"):
        kind = array.dtype.kind
        if kind not in "buif":
            raise DTypeError(name, f"an array of {array.dtype}", "integers or real floats")
        if array.ndim < 2 or array.size == 0:
            raise DataError(name, f"shape {array.shape}", "at least one item, (N, *D) with D of rank 1 or more")
        if kind != "f":
            num_values = {"uint8": 256, "bool": 2}.get(array.dtype.name) if num_values is None else num_values
            if array.ndim == 3:
                array = array[:, None]
            elif array.ndim == 4 and array.shape[3] in CHANNELS and array.shape[1] not in CHANNELS:
                array = array.transpose(0, 3, 1, 2)
        self.name, self.array, self.num_values = name, array, num_values
        self.labels = None if labels is None else torch.as_tensor(np.asarray(labels)).long()
        if self.labels is not None and self.labels.shape != (len(array),):
            raise DataError("labels", f"shape {tuple(self.labels.shape)}", f"one for each item, ({len(array)},)")
        self.sample = self.head(max(1, min(SAMPLE, len(array), SAMPLE_BYTES // max(1, array[0].nbytes))))
        self.scaling: Scaling = self.sample.scaling
        self.shape, self.is_image, self.classes = self.sample.shape, self.sample.is_image, None
        if self.labels is not None:
            self.classes = int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Item ``index``: "x" in model space without noise, and its "label" if there is one."""
        item = {"x": self.scaling.bin_centres(self.rows(torch.tensor([index])))[0]}
        return item if self.labels is None else {**item, "label": self.labels[index]}

    def rows(self, index: Tensor) -> Tensor:
        """Raw items ``(len(index), *D)``, read in the order in which they lie on the disk.

        Raises:
            DataError: NaN, infinity, or integers beyond the num_values among them.
        """
        ascending, back = torch.unique(index, return_inverse=True)
        chosen = np.ascontiguousarray(self.array[ascending.numpy()])
        if self.num_values is None:
            raw = torch.from_numpy(chosen.astype(np.float64 if chosen.dtype.itemsize > 4 else np.float32))
            if not raw.isfinite().all():
                raise DataError(self.name, "NaN or infinity", "finite numbers")
            return raw[back]
        raw = torch.from_numpy(chosen.astype(np.uint8 if chosen.dtype.itemsize == 1 else np.int64))
        return Scaling.for_integers(self.num_values).check_integers(raw, self.name)[back]

    def head(self, n: int) -> Data:
        """``n`` items at equal distances, in memory, with this array's scale."""
        if not 1 <= n <= len(self):
            raise ArgumentError("n", n, f"an integer from 1 to {len(self)}")
        index = torch.arange(n) * len(self) // n
        labels = None if self.labels is None else self.labels[index]
        own = getattr(self, "scaling", None)
        given = (
            {"scale": own.scale, "shift": own.shift, "normalize": "given"} if own and self.num_values is None else {}
        )
        return Data(self.name, self.rows(index), labels, self.num_values, **given)

    def split(self, held_out: int) -> tuple[Mapped, Data]:
        """The array without its last ``held_out`` items, still on the disk, and those items in memory."""
        if not 1 <= held_out < len(self):
            raise ArgumentError("held_out", held_out, f"a count from 1 to {len(self) - 1}")
        first = len(self) - held_out
        labels = (None, None) if self.labels is None else (self.labels[:first], self.labels[first:])
        rest = Mapped(self.array[:first], labels[0], self.num_values, self.name)
        test = Data(self.name, self.rows(torch.arange(first, len(self))), labels[1], self.num_values, normalize="none")
        return rest, test if self.num_values is not None else test.scaled_like(rest.sample)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x as :meth:`Data.moments` gives them, of the sample."""
        return self.sample.moments()

    def __repr__(self) -> str:
        kind = "continuous" if self.num_values is None else f"{self.num_values} num_values"
        size = self.array.nbytes / 2**30
        return f"Mapped({self.name!r}, {len(self)} items of shape {self.shape}, {kind}, {size:.2f} GiB on disk)"


def map_array(path: str | Path, labels: str | Path | None = None, num_values: int | None = None) -> Mapped:
    """A .npy file as :class:`Mapped`; ``labels``: another .npy file, ``(N,)``.

    Raises:
        DataError: not a .npy file of numbers.
    """
    path = Path(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        classes = None if labels is None else np.load(labels, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError("path", f"{path} ({error})", "a whole .npy file of numbers") from error
    if not isinstance(array, np.memmap):
        raise DataError("path", f"{path}, an archive", "a .npy file: what lies in an .npz cannot be mapped")
    return Mapped(array, classes, num_values, path.stem)
