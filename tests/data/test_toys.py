"""Toys: they lie where their formulas say, with equal density."""

import math

import pytest
import torch

from scoresde.data import TOYS, checkerboard, gaussian_grid, load_toy, rings, swiss_roll, two_moons
from scoresde.errors import ArgumentError, UnknownNameError
from tests.generators import generator


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_a_toy_is_reproducible(toy):
    x = toy(500, generator(1))
    assert (x.shape, x.dtype) == ((500, 2), torch.float32)
    assert torch.equal(x, toy(500, generator(1)))
    assert not torch.equal(x, toy(500, generator(2)))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_noise_blurs_by_its_standard_deviation(toy):
    clean, blurred = toy(20_000, generator(1), noise=0.0), toy(20_000, generator(1), noise=0.3)
    # 40,000 normals: the std has a standard error of 0.3/sqrt(80,000); six of them, false alarm 2e-9
    assert float((blurred - clean).std()) == pytest.approx(0.3, abs=6 * 0.3 / 80_000**0.5)


def test_moons_are_two_half_circles():
    x = two_moons(4000, generator(), noise=0.0)
    upper = (x.norm(dim=1) - 1).abs() < 1e-5
    lower = ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs() < 1e-5
    assert (upper | lower).all()
    assert (x[upper & ~lower, 1] >= 0).all()
    assert (x[lower & ~upper, 1] <= 0.5).all()
    assert abs(int(upper.sum()) - 2000) < 6 * 1000**0.5  # six standard deviations


def test_swiss_roll_lies_on_its_spiral():
    x = swiss_roll(4000, generator(), noise=0.0)
    theta = x.norm(dim=1) * 4.5 * math.pi / 2
    assert theta.min() >= 1.5 * math.pi - 1e-4
    assert theta.max() <= 4.5 * math.pi + 1e-4
    torch.testing.assert_close(
        x / x.norm(dim=1, keepdim=True), torch.stack([theta.cos(), theta.sin()], 1), atol=1e-4, rtol=0
    )


def test_checkerboard_fills_alternate_cells_equally():
    x = checkerboard(8000, generator())
    cell = x.floor().long()
    assert (cell.sum(1) % 2 == 0).all()
    assert x.min() >= -2
    assert x.max() <= 2
    counts = torch.bincount((cell[:, 0] + 2) * 4 + cell[:, 1] + 2, minlength=16)
    assert int((counts > 0).sum()) == 8
    assert (counts[counts > 0] - 1000).abs().max() < 6 * 875**0.5  # binomial, six standard deviations
    assert float((x - cell).mean()) == pytest.approx(0.5, abs=6 * 12**-0.5 / 16_000**0.5)


def test_rings_have_equal_density_along_them():
    x = rings(6000, generator(), noise=0.0)
    radius = 2 * x.norm(dim=1)
    assert (radius - radius.round()).abs().max() < 1e-5
    counts = torch.bincount(radius.round().long())
    assert counts.tolist() == pytest.approx([0, 1000, 2000, 3000], abs=6 * 1500**0.5)
    assert x.mean(0).abs().max() < 6 * 1.2 * 0.71 / 6000**0.5


def test_gaussian_grid_has_25_equal_modes():
    x = gaussian_grid(25_000, generator(), noise=0.01)
    centre = x.round()
    assert (x - centre).abs().max() < 0.07
    counts = torch.bincount(((centre[:, 0] + 2) * 5 + centre[:, 1] + 2).long())
    assert len(counts) == 25
    assert (counts - 1000).abs().max() < 6 * 960**0.5


def test_load_toy_draws_two_sets_on_one_scale():
    train, test = load_toy("two_moons", 300, 100, seed=2)
    assert (train.name, len(train), len(test)) == ("two-moons", 300, 100)
    assert test.scale == train.scale
    assert torch.equal(test.shift, train.shift)
    assert not set(map(tuple, train.raw.tolist())) & set(map(tuple, test.raw.tolist()))


def test_bad_toys_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'swiss-roll'"):
        load_toy("swis-roll")
    with pytest.raises(ArgumentError, match=r"`n` must be .*, got 0"):
        two_moons(0)
    with pytest.raises(ArgumentError, match=r"`noise` must be .*, got -1"):
        rings(5, noise=-1)
