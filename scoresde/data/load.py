"""From a name or a path to training and held-out data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scoresde.data.arrays import load_array
from scoresde.data.dataset import Data, count_of
from scoresde.data.digits import load_digits
from scoresde.data.idx import idx_files, is_idx, load_idx, load_idx_folder
from scoresde.data.images import load_images
from scoresde.data.toys import TOYS, load_toy
from scoresde.errors import ArgumentError, DataError, UnknownNameError

SOURCES = ("digits", *TOYS)
DIGITS_HELD_OUT = 360
TOY_POINTS, TOY_HELD_OUT = 20_000, 2_000
HELD_OUT = 0.1


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
) -> tuple[Data, Data]:
    """(training data, held-out data) from a name or a path.

    Args:
        source: "digits", the name of a toy (two-moons, swiss-roll, checkerboard, rings, gaussian-grid; - or _), or the
            path of an .npy or .npz file, an idx file (plain or .gz), a folder of images, or a folder of idx files.
        held_out: how many items to hold out, a count or a fraction in (0, 1). None: 360 digits, 2000 points of a toy
            (drawn afresh), the whole t10k set of a folder that has one, 10 % of anything else. With a t10k set, a count
            or a fraction is of that set.
        seed: of the split and of the toys' draws.
        n: train on this many items, chosen by ``seed`` (None: 20000 points of a toy, all there are of anything else).
            What is held out does not change.
        num_values: number of integer num_values, for arrays and idx files.
        size: side or (height, width) that a folder's images are cropped and resized to.
        key: which array of an .npz.
        grayscale: a folder's images in gray.

    Raises:
        UnknownNameError: ``source`` is no known name and no path; names the nearest.
        ArgumentError: an option the source has no use for, or a count that does not fit.
        DataError: the source cannot be used.
    """
    name = str(source).replace("_", "-")
    options = {"num_values": num_values, "size": size, "key": key, "grayscale": grayscale}
    if name in SOURCES:
        _refuse(options, source, ())
    if name in TOYS:
        points = TOY_POINTS if n is None else n
        return load_toy(name, points, TOY_HELD_OUT if held_out is None else count_of(held_out, points), seed)

    if name == "digits":
        data, test, held_out = load_digits(), None, DIGITS_HELD_OUT if held_out is None else held_out
    else:
        data, test = _read(source, **options)

    if test is None:
        train, test = data.split(HELD_OUT if held_out is None else held_out, seed)
    else:
        train, test = data, dataclasses.replace(test, name=data.name)
        if held_out is not None and count_of(held_out, len(test)) != len(test):
            test = test.split(held_out, seed)[1]
    return train if n is None else train.take(n, seed), test


def load_whole(
    source: str | Path,
    *,
    num_values: int | None = None,
    size: int | tuple[int, int] | None = None,
    key: str | None = None,
    grayscale: bool = False,
) -> Data:
    """All items of a file or folder, in their own order and not split; of a folder of idx files, the training set.

    Arguments and errors are those of :func:`load_data`.
    """
    return _read(source, num_values, size, key, grayscale)[0]


def _read(source: str | Path, num_values, size, key, grayscale) -> tuple[Data, Data | None]:
    """The items of a file or folder, and the t10k set where there is one."""
    path = Path(source)
    options = {"num_values": num_values, "size": size, "key": key, "grayscale": grayscale}
    if path.is_dir() and idx_files(path):
        _refuse(options, source, ("num_values",))
        data, test = load_idx_folder(path, num_values)
        return dataclasses.replace(data, name=path.resolve().name), test
    if path.is_dir():
        _refuse(options, source, ("size", "grayscale"))
        return load_images(path, size, grayscale), None
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        _refuse(options, source, ("key", "num_values"))
        return load_array(path, key, num_values), None
    if path.is_file() and is_idx(path):
        _refuse(options, source, ("num_values",))
        return load_idx(path, num_values), None
    if path.is_file():
        raise DataError("source", path, "an .npy or .npz file, an idx file (plain or .gz), or a folder")
    if path.suffix or len(path.parts) > 1:
        raise DataError("source", f"{path}, which does not exist", f"an existing path, or one of {', '.join(SOURCES)}")
    raise UnknownNameError("source", str(source), SOURCES)


def _refuse(options: dict[str, object], source: str | Path, used: tuple[str, ...]) -> None:
    for option, value in options.items():
        if value is not None and value is not False and option not in used:
            raise ArgumentError(option, repr(value), f"nothing: {source} has no such option")
