"""Arrays on the disk give the same batches as arrays in memory."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.data import Batches, Mapped, from_array, map_array
from scoresde.errors import DataError, DTypeError
from scoresde.models import ScoreModel
from scoresde.nets import ResidualMLP
from scoresde.sde import VPSDE
from tests.generators import generator

ARRAYS = {
    "colour": np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8),
    "gray": np.random.default_rng(0).integers(0, 256, (30, 5, 4), dtype=np.uint8),
    "vectors": np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_batches_are_those_of_the_array_in_memory(tmp_path, kind):
    np.save(tmp_path / "x.npy", ARRAYS[kind])
    np.save(tmp_path / "y.npy", np.arange(30) % 4)
    mapped, memory = map_array(tmp_path / "x.npy", tmp_path / "y.npy"), from_array(ARRAYS[kind], np.arange(30) % 4)
    assert (mapped.shape, mapped.num_values, mapped.is_image, mapped.classes, len(mapped)) == (
        memory.shape,
        memory.num_values,
        memory.is_image,
        4,
        30,
    )
    torch.testing.assert_close(mapped.scaling.scale, memory.scaling.scale)
    for a, b in zip(mapped.moments(), memory.moments(), strict=True):
        assert torch.allclose(a, b)
    streams = Batches(mapped, 7, generator()), Batches(memory, 7, generator())
    for _ in range(9):
        a, b = map(next, streams)
        assert torch.allclose(a["x"], b["x"], rtol=0, atol=1e-6)
        assert torch.equal(a["label"], b["label"])
    assert torch.allclose(mapped[3]["x"], memory[3]["x"], atol=1e-6)
    assert mapped[3]["label"] == 3


def own_memory():
    """Return the bytes of this process's memory, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def test_a_part_of_a_file_is_read_from_its_place(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["gray"])
    part = np.load(tmp_path / "x.npy", mmap_mode="r")[5:][2:20]
    assert torch.equal(Mapped(part).rows(torch.tensor([3, 0])), from_array(ARRAYS["gray"][[10, 7]]).raw)
    every_other = Mapped(np.load(tmp_path / "x.npy", mmap_mode="r")[::2])
    assert torch.equal(every_other.rows(torch.tensor([3])), from_array(ARRAYS["gray"][[6]]).raw)
    data = map_array(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"short")
    with pytest.raises(DataError, match="a file that stays as it was"):
        data.rows(torch.tensor([0]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_array(tmp_path):
    """Read an array of half a gigabyte (a sparse file).

    The process grows by a sixth of it at most.
    """
    shape = (2**19, 32, 32)
    np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
    before = own_memory()
    data = map_array(tmp_path / "big.npy")
    batches = Batches(data, 64, generator())
    for _ in range(200):
        assert next(batches)["x"].shape == (64, 1, 32, 32)
    assert own_memory() - before < 2**29 / 6


def test_held_out_items_are_the_last_ones_and_in_memory():
    train, test = Mapped(ARRAYS["vectors"], np.arange(30)).split(5)
    assert (len(train), len(test)) == (25, 5)
    assert torch.equal(test.raw, torch.from_numpy(ARRAYS["vectors"][25:]))
    assert test.labels.tolist() == [25, 26, 27, 28, 29]
    for scaling in (test.scaling, from_array(ARRAYS["vectors"][:25]).scaling):
        assert torch.equal(scaling.scale, train.scaling.scale)
    model = ScoreModel.for_data(ResidualMLP((3,), width=8, blocks=1), VPSDE(), train)
    assert model.moments.mean.shape == (3,)


def test_bad_arrays_and_bad_items_are_refused(tmp_path):
    with pytest.raises(DTypeError, match="complex"):
        Mapped(np.zeros((3, 2), complex))
    with pytest.raises(DataError, match="N >= 1"):
        Mapped(np.zeros((0, 2)))
    with pytest.raises(DataError, match="labels"):
        Mapped(ARRAYS["gray"], np.arange(3))
    array = np.random.default_rng(0).normal(size=(40_000, 2))
    array[1] = np.nan
    data = Mapped(array)
    with pytest.raises(DataError, match="NaN or infinity"):
        data.rows(torch.tensor([0, 1]))
    integers = np.zeros((40_000, 2), np.int16)
    integers[1] = 9
    with pytest.raises(DataError, match=r"values 0\.\.9"):
        Mapped(integers, num_values=4).rows(torch.tensor([1, 0]))
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(DataError, match="cannot be mapped"):
        map_array(tmp_path / "x.npz")
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"an intact \.npy file"):
        map_array(tmp_path / "x.npy")
