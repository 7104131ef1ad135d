"""Training data of other libraries.

Torch datasets, iterables, and stand-ins for torchvision's and Hugging Face's.
"""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import Batches, Data, Scaling, StreamBatches, TruncatedNormal, from_dataset, stream_batches
from scoresde.errors import ArgumentError, CheckpointError, DataError
from tests.generators import generator


def pixels(n=12, colour=True):
    return np.random.default_rng(0).integers(0, 256, (n, 5, 4, 3) if colour else (n, 5, 4), dtype=np.uint8)


class Vision(torch.utils.data.Dataset):
    """A stand-in for torchvision's datasets.

    Items are (PIL image, class); the dataset passes the image through ``transform``.
    """

    def __init__(self, transform=None, colour=True):
        self.data, self.targets, self.transform = pixels(colour=colour), list(range(12)), transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        image = Image.fromarray(self.data[i])
        return (image if self.transform is None else self.transform(image)), self.targets[i]


class HuggingFace:
    """A stand-in for Hugging Face's Dataset.

    Rows are read singly or together, with PIL images under "image" or "img".
    """

    def __init__(self, key="image"):
        self.key, self.reads = key, 0

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {self.key: Image.fromarray(pixels()[i]), "label": i, "text": "unused"}

    def __getitems__(self, indices):
        self.reads += 1
        return [self[i] for i in indices]


class Streaming:
    """A stand-in for Hugging Face's IterableDataset, with ``set_epoch``."""

    def __init__(self, n=7):
        self.n, self.epoch = n, None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for i in range(self.n):
            yield {"x": torch.tensor([float(i), float(self.epoch)]), "label": i}


@pytest.mark.parametrize("data", [Vision(), HuggingFace(), HuggingFace("img")], ids=["vision", "image", "img"])
def test_images_of_other_libraries_are_dequantised(data):
    batch = next(stream_batches(data, 12, generator()))
    assert batch["x"].shape == (12, 3, 5, 4)
    raw = Scaling.for_integers(256).to_raw(batch["x"])
    assert torch.equal(raw, torch.from_numpy(pixels()[batch["label"].numpy()]).permute(0, 3, 1, 2).long())
    assert len(batch["x"].unique()) > 600  # of 720: noise in the bins
    if isinstance(data, HuggingFace):
        assert data.reads == 1


def test_gray_pictures_arrays_and_tensors():
    assert next(Batches(Vision(colour=False), 3, generator()))["x"].shape == (3, 1, 5, 4)
    assert next(Batches(list(pixels()), 3, generator()))["x"].shape == (3, 3, 5, 4)
    x = next(Batches(Vision(lambda image: torch.ones(3, 5, 4, dtype=torch.float64)), 3, generator()))["x"]
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.ones(3, 3, 5, 4))
    own = Scaling.for_integers(300)
    batch = next(Batches(Vision(), 2, generator(), scaling=own, dequantization=TruncatedNormal()))
    raw = torch.from_numpy(pixels()[batch["label"].numpy()]).permute(0, 3, 1, 2)
    assert torch.equal(batch["x"], own.bin_centres(raw))


def test_shares_make_up_the_batches_of_one():
    """Check that share i of 3 has rows i, i + 3, ... of each batch.

    Noise included: in memory, item by item, and streamed.
    """
    data = Data("d", torch.arange(12)[:, None], torch.arange(12), num_values=12)
    for make in (lambda: data, Vision, Streaming):
        whole = stream_batches(make(), 8, generator())
        shares = [stream_batches(make(), 8, generator(), share=(i, 3)) for i in range(3)]
        for _ in range(3):
            expected = next(whole)
            for i, share in enumerate(shares):
                batch = next(share)
                assert all(torch.equal(batch[key], expected[key][i::3]) for key in ("x", "label"))


class Augmented(torch.utils.data.Dataset):
    """Items with randomness from torch, NumPy and Python."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.tensor([i + 0.1 * random.random(), torch.rand(()).item(), np.random.rand()])  # noqa: NPY002


@pytest.mark.parametrize("data", [Vision(), Augmented()], ids=["pictures", "augmented"])
def test_workers_read_the_same_batches_and_resume(data):
    """Check that batches depend on the stream's state alone.

    Reading ahead does not advance the state.
    """
    before = torch.get_rng_state()
    alone, ahead = Batches(data, 5, generator()), Batches(data, 5, generator(), workers=1)
    for _ in range(4):
        assert torch.equal(next(alone)["x"], next(ahead)["x"])
    state = ahead.state_dict()
    assert {k: torch.as_tensor(v).tolist() for k, v in state.items()} == {
        k: torch.as_tensor(v).tolist() for k, v in alone.state_dict().items()
    }
    expected = [next(alone)["x"] for _ in range(3)]
    resumed = Batches(data, 5, generator(5))
    resumed.load_state_dict(state)
    ahead.load_state_dict(state)
    for x in expected:
        assert torch.equal(next(resumed)["x"], x)
        assert torch.equal(next(ahead)["x"], x)
    assert torch.equal(torch.get_rng_state(), before)  # the network may draw from torch's own generator


def test_a_stream_continues_over_epochs_and_resumes():
    stream = stream_batches(Streaming(), 5, generator())
    assert isinstance(stream, StreamBatches)
    seen = torch.cat([next(stream)["x"] for _ in range(6)])
    assert seen[:, 0].tolist() == [float(i % 7) for i in range(30)]
    assert seen[:, 1].tolist() == [float(i // 7) for i in range(30)]
    state, expected = stream.state_dict(), next(stream)
    again = stream_batches(Streaming(), 5, generator(9))
    again.load_state_dict(state)
    assert torch.equal(next(again)["x"], expected["x"])
    shorter = stream_batches(Streaming(1), 5, generator())
    shorter.load_state_dict(state)
    with pytest.raises(CheckpointError, match="at most 1 items, the length of this one, got one after 2 items"):
        next(shorter)


def test_iterators_end_and_empty_streams_are_refused():
    stream = stream_batches((torch.ones(1) for _ in range(3)), 2, generator())
    next(stream)
    with pytest.raises(DataError, match="an iterator that ended after 3 items"):
        next(stream)
    with pytest.raises(DataError, match="without items"):
        next(stream_batches(set(), 2, generator()))


def test_objects_that_are_not_datasets_are_refused():
    with pytest.raises(ArgumentError, match=r"loader\.dataset"):
        stream_batches(torch.utils.data.DataLoader(Vision()), 2, generator())
    with pytest.raises(ArgumentError, match=r"data\['train'\]"):
        stream_batches({"train": Vision(), "test": Vision()}, 2, generator())
    with pytest.raises(ArgumentError, match=r"`data` must be .*, got int"):
        stream_batches(3, 2, generator())
    with pytest.raises(ArgumentError, match=r"`workers` must be 0.*, got 1"):
        stream_batches(iter([]), 2, generator(), workers=1)
    with pytest.raises(ArgumentError, match=r"`batch_size` must be at least 3.*, got 2"):
        Batches(Vision(), 2, generator(), share=(0, 3))
    for items, message in (
        ([{"pixels": 1}], "one of the keys x, image.*, got items with the keys pixels"),
        ([torch.zeros(2), torch.zeros(3)], r"shapes \(2,\) and \(3,\)"),
        ([torch.zeros(2, dtype=torch.int64)] * 2, "8-bit integers, floats"),
        ([(torch.zeros(2), "cat")] * 2, "labels such as 'cat'"),
        ([(torch.zeros(2), 0.37), (torch.zeros(2), 2.9)], r"real numbers.*labels such as (0\.37|2\.9)"),
        ([(torch.zeros(2), torch.tensor(1.5))] * 2, r"labels such as 1\.5"),
        ([(torch.zeros(2), torch.tensor([1, 2]))] * 2, r"labels such as \[1, 2\]"),
        ([torch.zeros(2), torch.tensor([0.0, math.nan])], r"item [01] of a batch, entry \(1,\), which is item 1 of"),
        ([{"x": ["a"]}] * 2, "items of <U1"),
    ):
        with pytest.raises(DataError, match=message):
            next(Batches(items, 2, generator()))


def test_a_dataset_read_into_memory():
    data = from_dataset(Vision(), "pictures", n=5)
    assert (len(data), data.shape, data.num_values, data.is_image) == (5, (3, 5, 4), 256, True)
    assert data.labels.tolist() == list(range(5))
    assert torch.equal(data.raw[2], torch.from_numpy(pixels()[2]).permute(2, 0, 1))
    assert from_dataset([torch.rand(3) for _ in range(4)]).num_values is None
    with pytest.raises(ArgumentError, match="map-style"):
        from_dataset(Streaming())
    with pytest.raises(DataError, match="no items"):
        from_dataset([])
