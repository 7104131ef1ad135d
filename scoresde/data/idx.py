"""The idx format of MNIST and similar sets, plain or gzipped.

A file holds, in this order: two zero bytes, a type byte, the number of dimensions (one byte), the dimensions (uint32,
big-endian), and the numbers (big-endian, last dimension fastest).

References: Y. LeCun, C. Cortes, C. Burges, The MNIST database, "File formats".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from scoresde.argument_types import checked
from scoresde.data.arrays import from_array
from scoresde.data.dataset import Data
from scoresde.errors import DataError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}  # by the type byte
PARTS = ("train", "t10k")
PIECE = 2**20  # bytes that are read at a time


def is_idx(path: str | Path) -> bool:
    """Return whether the file, unpacked, begins like an idx file."""
    try:
        with _open(Path(path)) as file:
            return _is_magic(file.read(4))
    except (OSError, EOFError, zlib.error):
        return False


def _is_magic(magic: bytes) -> bool:
    return len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in DTYPES and magic[3] > 0


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def _body(file: BinaryIO, expected: int) -> tuple[bytearray, bool]:
    """Return what follows a header, and whether more follows that.

    Little more is read than is expected, so that a small packed file cannot fill the memory.
    """
    body = bytearray()
    while len(body) <= expected and (part := file.read(PIECE)):
        body += part
    return body, bool(file.read(1))


@checked
def read_idx(path: str | Path) -> NDArray[Any]:
    """Read the array of an idx file, in the machine's byte order.

    Raises:
        DataError: a missing file, one that is not idx, is cut short, or is longer than its header says.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            magic = file.read(4)
            if not _is_magic(magic):
                raise DataError("path", f"{path} beginning with bytes {magic.hex(' ')}", "an idx file: 00 00 type rank")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise DataError("path", f"{path}, cut short in its header", "an intact idx file")
            shape = struct.unpack(f">{magic[3]}I", sizes)
            dtype = np.dtype(DTYPES[magic[2]])
            expected = math.prod(shape) * dtype.itemsize
            body, more = _body(file, expected)
    except FileNotFoundError as error:
        raise DataError("path", path, "an existing idx file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("path", f"{path} ({error})", "an intact idx file, plain or gzipped") from error
    if len(body) != expected:
        got = f"{path} with {'more than ' * more}{len(body)} bytes after its header"
        raise DataError("path", got, f"an idx file with {expected} bytes, an array of shape {shape}, after its header")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


@checked
def load_idx(path: str | Path, num_values: int | None = None) -> Data:
    """Load data from an idx file.

    Images ``(N, H, W)`` become ``(N, 1, H, W)``. Labels come from a file beside it with MNIST's name:
    train-images-idx3-ubyte[.gz] goes with train-labels-idx1-ubyte[.gz].

    Args:
        path: path of the file.
        num_values: number of values of integers. None: 256 for bytes.

    Raises:
        DataError: as in :func:`read_idx`; the file itself holds labels; the labels beside it do not fit.
    """
    path = Path(path)
    array = read_idx(path)
    if array.ndim == 1:
        raise DataError("path", f"{path} of rank 1 (labels?)", "an idx file (N, ...) of items of rank 1 or more")
    beside = _labels_beside(path)
    labels = None if beside is None else read_idx(beside)
    return from_array(array, labels, num_values, path.name.removesuffix(".gz"))


def _labels_beside(path: Path) -> Path | None:
    stem = path.name.removesuffix(".gz")
    if "images" not in stem:
        return None
    stem = stem.replace("images", "labels").replace("idx3", "idx1")
    return next((p for p in (path.with_name(stem), path.with_name(stem + ".gz")) if p.is_file()), None)


def idx_files(folder: str | Path) -> dict[str, Path]:
    """Return the image files of a folder like MNIST's by part.

    The parts are "train", and "t10k" if it has a test set. The result is empty if the folder has no training images.
    """
    found = {}
    for part in PARTS:
        files = sorted(Path(folder).glob(f"{part}-images*idx[0-9]-ubyte*"))
        if files:
            found[part] = files[0]
    return found if "train" in found else {}


@checked
def load_idx_folder(folder: str | Path, num_values: int | None = None) -> tuple[Data, Data | None]:
    """Load the training set and the test set of a folder like MNIST's.

    The test set is None if the folder has none. The files are train-images-idx3-ubyte[.gz] and
    t10k-images-idx3-ubyte[.gz].

    Raises:
        DataError: the folder has no training images, or its two sets differ in shape.
    """
    files = idx_files(folder)
    if not files:
        raise DataError("folder", folder, "a folder with train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    train = load_idx(files["train"], num_values)
    test = load_idx(files["t10k"], num_values).scaled_like(train) if "t10k" in files else None
    return train, test
