"""EDM's augmentation of images."""

import math

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, ShapeError
from scoresde.training.augmentation import augmented


def gaussian_image(n=1, h=33, w=33, centre=(0.0, 0.0), std=4.0):
    """Return smooth blobs, their centres in pixels from the middle."""
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    return torch.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * std**2)).expand(n, 1, h, w).double()


def draw(x, probability=1.0, seed=0):
    return augmented(x, probability, torch.Generator().manual_seed(seed))


def test_nothing_happens_at_probability_0():
    x = torch.randn(8, 3, 6, 5)
    new, labels = draw(x, 0.0)
    assert torch.equal(new, x)
    assert not labels.any()


def test_shares_are_those_of_the_probability():
    """Count over 20,000 images; five standard deviations are at most .013."""
    labels = draw(torch.zeros(20_000, 1, 2, 2), 0.3)[1]
    shares = (labels != 0).double().mean(0)
    assert torch.allclose(shares[[2, 3, 4, 5, 6, 7, 8]], torch.tensor(0.3).double(), atol=0.017)
    assert torch.allclose(shares[:2], torch.tensor(0.15).double(), atol=0.013)
    assert labels[labels[:, 2] != 0, 2].std() == pytest.approx(1, abs=0.05)
    assert labels[labels[:, 7] != 0, 7].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("sides", [(41, 41), (41, 61)])
def test_a_point_goes_where_the_labels_say(sides):
    """Undo nothing: map a blob's centre by the labels, and look there.

    The order is mirror, scale, rotation, stretch, shift.
    """
    h, w = sides
    start = torch.tensor([3.0, -4.0], dtype=torch.float64)
    x = gaussian_image(200, h, w, start.tolist(), std=2.0)
    new, labels = draw(x, 0.4)
    place = start.expand(200, 2).clone()
    place *= 1 - 2 * labels[:, :2]
    place *= 2 ** (0.2 * labels[:, 2:3])
    cos, sin = labels[:, 3] + 1, labels[:, 4]
    place = torch.stack([cos * place[:, 0] - sin * place[:, 1], sin * place[:, 0] + cos * place[:, 1]], dim=1)
    amount = labels[:, 5:7].norm(dim=1)
    along = torch.atan2(labels[:, 6], labels[:, 5]) / 2
    axis = torch.stack([torch.cos(along), torch.sin(along)], dim=1)
    parallel = (place * axis).sum(1, keepdim=True) * axis
    stretched = parallel * 2 ** (0.2 * amount)[:, None] + (place - parallel) * 2 ** (-0.2 * amount)[:, None]
    place = torch.where(amount[:, None] > 0, stretched, place)
    place += labels[:, 7:] * 0.125 * torch.tensor([w, h])
    column, row = (place + torch.tensor([w - 1, h - 1]) / 2).round().long().T
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    assert int(inside.sum()) > 150
    there = new[torch.arange(200)[inside], 0, row[inside], column[inside]]
    assert there.min() > 0.6  # at most half a pixel off in a narrow blob; 3 pixels away it is below .3
    assert labels.any(0).all()


def test_mirrors_are_exact():
    x = torch.randn(60, 2, 5, 6, dtype=torch.float64)
    new, labels = draw(x, 0.3)
    only = (labels[:, 2:] == 0).all(1) & labels[:, 0].bool() & ~labels[:, 1].bool()
    assert only.any()
    assert torch.allclose(new[only], x[only].flip(3), atol=1e-12)


def net(**options):
    torch.manual_seed(0)
    return S.UNet((1, 8, 8), channels=8, num_groups=4, attention=[], **options)


IMAGES = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_tells_the_network(accumulate, tmp_path):
    seen = []

    def trained(folder=None, stop=None):
        made = net(augmented=True)
        made.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs.get("augment")), with_kwargs=True)
        config = S.TrainerConfig(steps=6, batch_size=8, augment=0.5, accumulate=accumulate, device="cpu", warmup=1)
        trainer = S.Trainer(S.ScoreModel(made, S.VPSDE()), config=config, folder=folder)
        if stop:
            trainer.every(stop, lambda trainer: trainer.stop())
        return trainer

    whole = trained()
    whole.fit(IMAGES)
    assert {tuple(labels.shape) for labels in seen if labels is not None} == {(8 // accumulate, 9)}
    assert torch.cat(seen).any()
    trained(tmp_path, 3).fit(IMAGES)
    later = trained(tmp_path)
    assert later.resume() == 3
    later.fit(IMAGES)
    for a, b in zip(whole.parameters, later.parameters, strict=True):
        assert torch.equal(a, b)
    x = S.sample(whole.averaged_model(), (2, 1, 8, 8), steps=3)
    assert x.isfinite().all()


def test_a_network_without_labels_is_refused():
    config = S.TrainerConfig(steps=1, batch_size=4, augment=0.5, device="cpu")
    with pytest.raises(ArgumentError, match="augmented"):
        S.Trainer(S.ScoreModel(net(), S.VPSDE()), config=config).fit(IMAGES)
    points = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE())
    with pytest.raises(ShapeError, match="images"):
        S.Trainer(points, config=config).fit(torch.zeros(8, 2))
    with pytest.raises(ShapeError, match="augment"):
        net(augmented=True)(IMAGES[:2], torch.zeros(2), augment=torch.zeros(2, 3))
    told = S.DiT((1, 8, 8), width=16, blocks=1, heads=2, augmented=True)
    torch.nn.init.normal_(told.conditioning.augmentations.weight)
    assert told(IMAGES[:2], torch.zeros(2), augment=torch.ones(2, 9)).shape == (2, 1, 8, 8)
    assert math.isfinite(float(told(IMAGES[:2], torch.zeros(2)).sum()))
