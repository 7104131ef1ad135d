"""Streams of batches: complete epochs, full batches, exact resuming."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from scoresde.data import Batches, Data, from_array
from scoresde.errors import ArgumentError, CheckpointError, DataError
from tests.generators import generator


def counted(n=23):
    return Data("count", torch.arange(n)[:, None], torch.arange(n), num_values=n)


def labels(batches, count):
    return torch.cat([next(batches)["label"] for _ in range(count)])


@pytest.mark.parametrize("size", [1, 5, 23, 60])
def test_each_epoch_holds_every_item_once(size):
    batches = Batches(counted(), size, generator())
    seen = labels(batches, -(-23 * 4 // size))[: 23 * 4].reshape(4, 23)
    assert (seen.sort(1)[0] == torch.arange(23)).all()
    assert len({tuple(row) for row in seen.tolist()}) == 4


@pytest.mark.parametrize("size", [1, 5, 23, 60])
def test_batches_are_always_full_and_their_labels_fit(size):
    data = counted()
    batches = Batches(data, size, generator())
    for _ in range(8):
        batch = next(batches)
        assert batch["x"].shape == (size, 1)
        assert batch["x"].dtype == torch.float32
        assert torch.equal(data.to_raw(batch["x"])[:, 0].long(), batch["label"])


def test_dequantisation_is_fresh_each_time():
    batches = Batches(Data("one", torch.tensor([[3]]), num_values=4), 1, generator())
    assert len({float(next(batches)["x"]) for _ in range(50)}) > 45


@pytest.mark.parametrize("before", [0, 1, 3, 4, 5, 9, 14])
def test_a_stream_resumes_bit_for_bit(before):
    batches = Batches(counted(20), 5, generator(7))
    for _ in range(before):
        next(batches)
    state = copy.deepcopy(batches.state_dict())
    expected = [next(batches) for _ in range(12)]
    resumed = Batches(counted(20), 5, generator(99))
    resumed.load_state_dict(state)
    for batch in expected:
        again = next(resumed)
        assert torch.equal(again["x"], batch["x"])
        assert torch.equal(again["label"], batch["label"])
    assert resumed.epoch == batches.epoch


def test_a_state_is_a_snapshot():
    batches = Batches(counted(), 5, generator())
    next(batches)
    state = batches.state_dict()
    before = copy.deepcopy(state)
    labels(batches, 20)
    assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(before[k])) for k in before)


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.arange(6.0)[:, None], torch.arange(6)),
        [{"x": torch.tensor([float(i)]), "label": i} for i in range(6)],
    ],
    ids=["pairs", "mappings"],
)
def test_other_datasets(dataset):
    batch = next(Batches(dataset, 6, generator()))
    assert sorted(batch["label"].tolist()) == list(range(6))
    assert torch.equal(batch["x"][:, 0], batch["label"].float())


def test_plain_tensors_have_no_labels():
    assert set(next(Batches([torch.zeros(2)] * 3, 2, generator()))) == {"x"}
    assert set(next(Batches(Data("a", torch.rand(3, 2)), 2, generator()))) == {"x"}


def test_data_also_suits_a_data_loader():
    batch = next(iter(DataLoader(counted(), batch_size=4)))
    assert batch["x"].shape == (4, 1)
    assert batch["label"].tolist() == [0, 1, 2, 3]


def test_bad_arguments_are_refused():
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ArgumentError, match=r"`batch_size` must be .*, got"):
            Batches(counted(), bad, generator())
    with pytest.raises(ArgumentError, match=r"`generator` must be .*, got int"):
        Batches(counted(), 2, 7)
    with pytest.raises(DataError, match="an empty dataset"):
        Batches([], 2, generator())
    with pytest.raises(DataError, match="items of type str"):
        next(Batches(["a"], 1, generator()))
    with pytest.raises(CheckpointError, match=r"a stream over 9 items.*, got one over 23 items"):
        Batches(counted(9), 2, generator()).load_state_dict(Batches(counted(), 2, generator()).state_dict())
    with pytest.raises(CheckpointError, match="without items, shuffled"):
        Batches(counted(), 2, generator()).load_state_dict({"generator": 0, "epoch": 0, "position": 0})


def test_flip_mirrors_half_of_the_images():
    raw = torch.arange(24, dtype=torch.uint8).reshape(4, 1, 2, 3)
    data = from_array(raw.numpy(), num_values=24)

    def batches(**settings):
        return Batches(data, 64, torch.Generator().manual_seed(0), **settings)

    plain, flipped = next(batches())["x"], next(batches(flip=True))["x"]
    same = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48  # 64 fair coins: false alarm 4e-5
    shares = [next(batches(flip=True, share=(i, 2)))["x"] for i in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), flipped)
    with pytest.raises(ArgumentError, match="flip"):
        Batches([1.0, 2.0], 2, torch.Generator(), flip=True)
