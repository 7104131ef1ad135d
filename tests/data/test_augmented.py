"""Augmentation by a transform."""

import importlib.util

import pytest
import torch

import scoresde as S
from scoresde.data import Augmented
from scoresde.data.batches import Batches
from scoresde.errors import DataError, DTypeError

PIXELS = torch.randint(0, 256, (20, 1, 6, 6), generator=torch.Generator().manual_seed(0)).byte()
IMAGES = S.Data("images", PIXELS, torch.arange(20) % 3, num_values=256)


def shifted(x):
    return torch.roll(x, int(torch.randint(6, ())), -1)


def test_items_come_through_the_transform():
    seen = []
    data = Augmented(IMAGES, lambda x: seen.append(x) or x.flip(-1))
    assert len(data) == 20
    assert torch.equal(data[3]["x"], PIXELS[3].flip(-1))
    assert (seen[0].dtype, data[3]["label"].item()) == (torch.uint8, 0)
    points = S.Data("points", torch.randn(9, 2, generator=torch.Generator().manual_seed(0)) * 5)
    assert torch.allclose(Augmented(points, torch.neg)[4]["x"], -points.bin_centres(points.raw[4]))


def test_its_randomness_is_the_streams():
    def batches(state=None):
        stream = Batches(Augmented(IMAGES, shifted), 8, torch.Generator().manual_seed(3))
        if state is not None:
            stream.load_state_dict(state)
        return stream

    first = batches()
    early = [next(first)["x"] for _ in range(2)]
    state = first.state_dict()
    later = next(first)["x"]
    assert torch.equal(next(batches())["x"], early[0])
    assert torch.equal(next(batches(state))["x"], later)
    assert not torch.equal(*early)


def test_a_training_takes_it():
    model = S.ScoreModel.for_data(S.UNet((1, 6, 6), channels=8, num_groups=4, multipliers=(1,)), S.VPSDE(), IMAGES)
    config = S.TrainerConfig(steps=2, batch_size=4, device="cpu", log_every=1)
    assert len(S.Trainer(model, config=config).fit(Augmented(IMAGES, shifted), held_out=IMAGES)) == 2
    points = S.Data("points", torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))
    model = S.ScoreModel.for_data(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), points)
    moved = S.Data("moved", points.raw + 3)
    with pytest.raises(DataError, match="scaled_like"):
        S.Trainer(model, config=config).fit(Augmented(moved, torch.neg))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_torchvision_transforms():
    from torchvision.transforms import v2

    data = Augmented(IMAGES, v2.Compose([v2.RandomCrop(4, padding=1), v2.RandomHorizontalFlip()]))
    assert next(Batches(data, 5, torch.Generator()))["x"].shape == (5, 1, 4, 4)


def test_what_it_cannot_take_is_refused():
    with pytest.raises(DTypeError, match="its own transforms"):
        Augmented([1, 2], torch.neg)
    with pytest.raises(DTypeError, match="transform"):
        Augmented(IMAGES, 3)
    with pytest.raises(DataError, match=r"torch\.uint8"):
        Augmented(IMAGES, torch.Tensor.float)[0]
    with pytest.raises(DataError, match="NoneType"):
        Augmented(IMAGES, lambda x: None)[0]
