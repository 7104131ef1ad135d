"""Data from names and paths."""

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import SOURCES, load_data
from scoresde.errors import ArgumentError, DataError, UnknownNameError

rng = np.random.default_rng(0)


def write_idx(path, array):
    path.write_bytes(
        gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())
    )


def test_digits_by_default():
    train, test = load_data("digits")
    assert (len(train), len(test), train.num_values) == (1437, 360, 17)
    assert torch.equal(test.raw, load_data("digits")[1].raw)
    assert not torch.equal(test.raw, load_data("digits", seed=1)[1].raw)
    assert len(load_data("digits", 100)[1]) == 100
    few, same = load_data("digits", n=50)
    assert len(few) == 50
    assert torch.equal(same.raw, test.raw)


@pytest.mark.parametrize("name", ["two-moons", "two_moons", "swiss-roll", "checkerboard", "rings", "gaussian_grid"])
def test_toys(name):
    train, test = load_data(name)
    assert (len(train), len(test), train.shape) == (20_000, 2_000, (2,))
    train, test = load_data(name, 0.5, n=100)
    assert (len(train), len(test)) == (100, 50)


def test_array_files(tmp_path):
    np.save(tmp_path / "a.npy", rng.standard_normal((50, 3)))
    train, test = load_data(str(tmp_path / "a.npy"))
    assert (len(train), len(test), test.scale) == (45, 5, train.scale)
    np.savez(tmp_path / "a.npz", one=np.zeros((20, 4, 4), np.int32), two=np.ones(3))
    train, _ = load_data(tmp_path / "a.npz", key="one", num_values=5)
    assert (len(train), train.shape, train.num_values) == (18, (1, 4, 4), 5)


def test_idx_file_and_folder(tmp_path):
    # sorted by their first pixel: n must not pick the first ones
    pictures = np.arange(200, dtype=np.uint8)[:, None, None].repeat(3, 1).repeat(3, 2)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pictures)
    assert [len(d) for d in load_data(tmp_path / "train-images-idx3-ubyte.gz")] == [180, 20]
    assert [len(d) for d in load_data(tmp_path)] == [180, 20]
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", pictures[:40])
    train, test = load_data(tmp_path)
    assert (len(train), len(test), train.name) == (200, 40, tmp_path.name)
    train, test = load_data(tmp_path, 7, n=20)
    assert (len(train), len(test)) == (20, 7)
    assert int(train.raw.max()) > 60
    assert int(test.raw.max()) < 40


def test_image_folder(tmp_path):
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (6, 6 + i, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    train, test = load_data(tmp_path, size=4, grayscale=True)
    assert (len(train), len(test), train.shape) == (9, 1, (1, 4, 4))


@pytest.mark.parametrize(("source", "near"), [("two-moon", "two-moons"), ("digit", "digits"), ("ringz", "rings")])
def test_unknown_names_offer_the_nearest(source, near):
    with pytest.raises(
        UnknownNameError, match=f"`source` must be one of .*, got '{source}' .did you mean '{near}'"
    ) as e:
        load_data(source)
    assert all(name in str(e.value) for name in SOURCES)


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.npy, which does not exist"):
        load_data(tmp_path / "none.npy")
    (tmp_path / "a.txt").write_text("1,2,3")
    with pytest.raises(DataError, match=r"an .npy, .npz, .csv, .parquet or idx file .*, got .*a.txt"):
        load_data(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty, without images"):
        load_data(tmp_path / "empty")
    with pytest.raises(ArgumentError, match=r"`num_values` must be left out for digits.*, got 4"):
        load_data("digits", num_values=4)
    with pytest.raises(ArgumentError, match=r"`size` must be .*, got 8"):
        load_data("rings", size=8)
    with pytest.raises(ArgumentError, match=r"`held_out` must be .*, got 0"):
        load_data("rings", 0)
    with pytest.raises(ArgumentError, match=r"`n` must be an integer from 1 to 1437.*, got 5000"):
        load_data("digits", n=5000)


@pytest.mark.slow
def test_importing_the_room_imports_no_heavy_library():
    code = (
        "import sys, scoresde.data; print([m for m in ('sklearn', 'PIL', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
