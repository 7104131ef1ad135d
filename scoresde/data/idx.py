"""The idx format of MNIST and its kin, plain or gzipped.

A file is: two zero bytes, a type byte, the number of dimensions, the dimensions (uint32, big-endian), the numbers
(big-endian, last dimension fastest). Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database, "File formats".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from scoresde.data.arrays import from_array
from scoresde.data.dataset import Data
from scoresde.errors import DataError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PARTS = ("train", "t10k")


def is_idx(path: str | Path) -> bool:
    """Whether the file begins as an idx file does, after unpacking."""
    try:
        with _open(Path(path)) as file:
            magic = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in DTYPES and magic[3] > 0


def _open(path: Path):
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an idx file, in the machine's byte order.

    Raises:
        DataError: no such file, not idx, cut short, or longer than its header says.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or magic[3] == 0:
                raise DataError("path", f"{path} beginning with bytes {magic.hex(' ')}", "an idx file: 00 00 type rank")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise DataError("path", f"{path}, cut short in its header", "a whole idx file")
            shape = struct.unpack(f">{magic[3]}I", sizes)
            dtype = np.dtype(DTYPES[magic[2]])
            expected = math.prod(shape) * dtype.itemsize
            body = file.read()
    except FileNotFoundError as error:
        raise DataError("path", path, "an existing idx file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("path", f"{path} ({error})", "a whole idx file, plain or gzipped") from error
    if len(body) != expected:
        got = f"{path} with {len(body)} bytes after its header"
        raise DataError("path", got, f"{expected} bytes, an array of shape {shape}")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def load_idx(path: str | Path, num_values: int | None = None) -> Data:
    """Data from an idx file; bytes have 256 num_values, ``(N, H, W)`` becomes ``(N, 1, H, W)``.

    Labels come from the file beside it that is named the MNIST way: train-images-idx3-ubyte[.gz] goes with
    train-labels-idx1-ubyte[.gz].

    Raises:
        DataError: as :func:`read_idx`; the file holds labels; the labels beside it do not fit.
    """
    path = Path(path)
    array = read_idx(path)
    if array.ndim == 1:
        raise DataError("path", f"{path}, an idx file of rank 1 (labels?)", "items of rank 1 or more, (N, ...)")
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
    """The image files of an MNIST-like folder: "train", and "t10k" where there is a test set; empty if it is none."""
    found = {}
    for part in PARTS:
        files = sorted(Path(folder).glob(f"{part}-images*idx[0-9]-ubyte*"))
        if files:
            found[part] = files[0]
    return found if "train" in found else {}


def load_idx_folder(folder: str | Path, num_values: int | None = None) -> tuple[Data, Data | None]:
    """(training set, test set or None) of a folder with train-images-idx3-ubyte[.gz] and perhaps t10k-images-...

    Raises:
        DataError: the folder has no training images, or its two sets differ in shape.
    """
    files = idx_files(folder)
    if not files:
        raise DataError("folder", folder, "a folder with train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    train = load_idx(files["train"], num_values)
    test = load_idx(files["t10k"], num_values).scaled_like(train) if "t10k" in files else None
    return train, test
