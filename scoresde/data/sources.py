"""Training and held-out data from a name or a path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scoresde.argument_types import checked
from scoresde.data.arrays import load_array
from scoresde.data.dataset import Data, count_of
from scoresde.data.digits import load_digits
from scoresde.data.hosted import is_hosted, load_hosted
from scoresde.data.idx import idx_files, is_idx, load_idx, load_idx_folder
from scoresde.data.images import load_images, sides
from scoresde.data.options import LabelsFrom, Layout
from scoresde.data.tables import SUFFIXES, load_table
from scoresde.data.toys import TOYS, load_toy
from scoresde.errors import ArgumentError, DataError, DTypeError, UnknownNameError

#: the names that `load_data` knows, beside paths
SOURCES = ("digits", *TOYS)
DIGITS_HELD_OUT = 360
TOY_POINTS, TOY_HELD_OUT = 20_000, 2_000
HELD_OUT = 0.1


@checked
def load_data(
    source: str | Path,
    held_out: int | float | None = None,
    seed: int = 0,
    *,
    n: int | None = None,
    num_values: int | None = None,
    size: int | tuple[int, int] | None = None,
    key: str | None = None,
    grayscale: bool = False,
    layout: Layout | None = None,
    labels_from: LabelsFrom | None = None,
    columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    missing: bool = False,
) -> tuple[Data, Data]:
    """Load training data and held-out data from a name or a path.

    Args:
        source: "digits", or the name of a toy (two-moons, swiss-roll, checkerboard, rings, gaussian-grid; - or _). Or
            "hf:mnist" and "torchvision:CIFAR10", names of datasets that these libraries have (extra ``datasets``). Or a
            path: an .npy or .npz file, a .csv or .parquet table, an idx file (plain or .gz), a folder of images or of
            idx files.
        held_out: size of the held-out part, a count or a fraction in (0, 1), of the t10k set if the folder has one.
            None: 360 digits, 2000 new points of a toy, the whole test set of a named dataset or folder, 10 % of
            anything else.
        seed: seed of the split and of the toys' draws.
        n: size of the training part, chosen by ``seed``; the held-out part does not change. None: 20000 points of a
            toy, everything that is not held out of anything else.
        num_values: number of values of integers, for arrays, idx files and images.
        size: side or (height, width) to which the images of a folder or a named dataset are cropped and resized.
        key: name of the array in an .npz.
        grayscale: whether to convert the images of a folder or a named dataset to gray.
        layout: order of the axes of an array, see :func:`from_array`.
        labels_from: where the classes of a folder of images come from: "folders", "names" or "none", see
            :func:`load_images`. None: "folders".
        columns, label_column: columns of a table to learn, and that of its classes, see :func:`from_frame`.
        missing: whether NaN and empty cells of arrays and tables are missing values, see :class:`Data`.

    Raises:
        MissingExtraError: the library of a named dataset is not installed.
        UnknownNameError: ``source`` is neither a known name nor a path; the message offers the nearest name.
        ArgumentError: an option that the source does not have, or a count that does not fit.
        DataError: the source cannot be used.
    """
    name = str(source).replace("_", "-")
    options = _Options(num_values, size, key, grayscale, layout, labels_from, columns, label_column, missing)
    if name in SOURCES:
        options.check(source)
    if name in TOYS:
        points = TOY_POINTS if n is None else n
        return load_toy(name, points, TOY_HELD_OUT if held_out is None else count_of(held_out, points), seed)

    # 1. all items, and a test set if the source has one
    if name == "digits":
        data, test, held_out = load_digits(), None, DIGITS_HELD_OUT if held_out is None else held_out
    else:
        data, test = _read(source, options)

    # 2. the held-out part: of the test set, or of all items
    if test is None:
        train, test = data.split(HELD_OUT if held_out is None else held_out, seed)
    else:
        train, test = data, dataclasses.replace(test, name=data.name)
        if held_out is not None and count_of(held_out, len(test)) != len(test):
            test = test.split(held_out, seed)[1]
    return train if n is None else train.take(n, seed), test


@checked
def load_whole(
    source: str | Path,
    *,
    num_values: int | None = None,
    size: int | tuple[int, int] | None = None,
    key: str | None = None,
    grayscale: bool = False,
    layout: Layout | None = None,
    labels_from: LabelsFrom | None = None,
    columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    missing: bool = False,
) -> Data:
    """Load all items of a file or folder in their own order.

    A folder of idx files gives its training set. Arguments and errors are those of :func:`load_data`.
    """
    options = _Options(num_values, size, key, grayscale, layout, labels_from, columns, label_column, missing)
    return _read(source, options)[0]


class _Options(NamedTuple):
    """The options that some sources have and others have not."""

    num_values: int | None
    size: int | tuple[int, int] | None
    key: str | None
    grayscale: bool
    layout: Layout | None
    labels_from: LabelsFrom | None
    columns: str | Sequence[str] | None
    label_column: str | None
    missing: bool

    def check(self, source: str | Path, *used: str) -> None:
        """Raise ArgumentError for a given option that is not in ``used``."""
        for option, value in self._asdict().items():
            if value is not None and value is not False and option not in used:
                raise ArgumentError(option, repr(value), f"left out for {source}, which does not have this option")


def _read(source: str | Path, options: _Options) -> tuple[Data, Data | None]:
    """Return the items of a file or folder, and its t10k set if it has one."""
    if not isinstance(source, (str, Path)):
        raise DTypeError("source", type(source).__name__, "a name or a path; from_array(array) takes arrays")
    path = Path(source)
    if is_hosted(source) and not path.exists():
        options.check(source, "size", "grayscale")
        return load_hosted(str(source), None if options.size is None else sides(options.size), options.grayscale)
    if path.is_dir() and idx_files(path):
        options.check(source, "num_values")
        data, test = load_idx_folder(path, options.num_values)
        return dataclasses.replace(data, name=path.resolve().name), test
    if path.is_dir():
        options.check(source, "size", "grayscale", "num_values", "labels_from")
        labels_from = options.labels_from or "folders"
        return load_images(path, options.size, options.grayscale, options.num_values, labels_from), None
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        options.check(source, "key", "num_values", "layout", "missing")
        return load_array(path, options.key, options.num_values, options.layout, options.missing), None
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        options.check(source, "columns", "label_column", "missing")
        return load_table(path, options.columns, options.label_column, options.missing), None
    if path.is_file() and is_idx(path):
        options.check(source, "num_values")
        return load_idx(path, options.num_values), None
    if path.is_file():
        raise DataError("source", path, "an .npy, .npz, .csv, .parquet or idx file (plain or .gz), or a folder")
    if path.suffix or len(path.parts) > 1 or str(source).endswith("/"):
        raise DataError("source", f"{path}, which does not exist", f"an existing path, or one of {', '.join(SOURCES)}")
    raise UnknownNameError("source", str(source), (*SOURCES, "the path of a file or folder"))
