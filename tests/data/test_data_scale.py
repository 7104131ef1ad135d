"""Lengths of the data: measured on samples, kept, saved."""

import pytest
import torch

import scoresde as S
from scoresde.data import DataScale
from scoresde.errors import ArgumentError
from tests.generators import generator


def circle(n, std):
    angle = 6.283 * torch.rand(n, generator=generator(), dtype=torch.float64)
    noise = std * torch.randn(n, 2, generator=generator(1), dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1) + noise


def modes(n, std, d):
    centres = 5 * torch.randn(3, d, generator=generator(2), dtype=torch.float64)
    k = torch.arange(n) % 3
    return centres[k] + std * torch.randn(n, d, generator=generator(3), dtype=torch.float64)


@pytest.mark.parametrize("n", [1000, 5000])
@pytest.mark.parametrize("std", [0.02, 0.1])
def test_the_finest_length_is_that_of_the_detail(n, std):
    """Compare with the width of a circle and of narrow modes.

    The measured length is half an average one. It is between .3 and 1.5 of the width; in eight dimensions, where the
    modes are narrow in six of them, up to 3.
    """
    for x in (circle(n, std), modes(n, std, 1), modes(n, std, 2)):
        assert 0.3 * std < DataScale.of(x).finest < 1.5 * std
    assert 0.3 * std < DataScale.of(modes(n, std, 8)).finest < 3 * std


def test_one_gaussian_has_no_detail():
    """Check that a Gaussian's finest length is half its own, any shape."""
    x = torch.randn(4000, 3, generator=generator(), dtype=torch.float64)
    scale = DataScale.of(100 + 2 * x)
    assert scale.finest == pytest.approx(1.0, rel=0.2)
    assert (scale.typical, scale.largest, scale.least) == pytest.approx((2.0, 2.0, 2.0), rel=0.05)
    images = torch.randn(300, 3, 16, 16, generator=generator())
    assert 0.4 < DataScale.of(images).finest < 1.0  # few samples for 768 dimensions


def test_flat_directions_do_not_count():
    x = torch.cat([circle(4000, 0.05), 3 + 1e-5 * torch.randn(4000, 6, generator=generator(4), dtype=torch.float64)], 1)
    scale = DataScale.of(x)
    assert 0.3 * 0.05 < scale.finest < 1.5 * 0.05
    assert scale.least == pytest.approx(1e-5, rel=0.05)


def test_heavy_tails_are_the_largest_length():
    """Check a scale mixture of stds .1 and 5, whose std is 1.6."""
    x = torch.randn(8000, 4, generator=generator(), dtype=torch.float64)
    x[:800] *= 5
    x[800:] *= 0.1
    scale = DataScale.of(x)
    assert 3 < scale.largest < 6
    assert 0.03 < scale.finest < 0.2


def test_few_points_constant_data_and_bins():
    assert DataScale.of(torch.ones(10, 2)) is None
    assert DataScale.of(circle(40, 0.1)).finest is None
    assert DataScale.of(circle(4000, 0.001), bin_width=0.5).finest == pytest.approx(0.5 / 12**0.5)
    assert DataScale.of(circle(200, 0.05).repeat(20, 1)).finest > 0.01  # repeated points are one


def test_a_model_for_data_knows_and_keeps_them(tmp_path):
    train, _ = S.load_data("two-moons")
    model = S.ScoreModel.for_data(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), train)
    every = -(-len(train) // 8192)
    assert model.data_scale == DataScale.of(train.scaling.to_model(train.raw[::every], dtype=torch.float64))
    model.save_pretrained(tmp_path / "model")
    again = S.ScoreModel.from_pretrained(tmp_path / "model")
    assert again.data_scale == model.data_scale
    given = DataScale(1.0, 2.0, 0.1)
    model = S.ScoreModel.for_data(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), train, data_scale=given)
    assert model.data_scale is given
    for wrapper in (S.models.chunked(model, 3), S.models.autocast(model, torch.bfloat16), model.with_sde(S.VESDE())):
        assert wrapper.known_scale() == given
    guided = S.guidance.classifier_free_guidance(model, 2.0)
    assert guided.known_scale() == given
    seen = S.guidance.pigdm(model, S.guidance.Inpainting(torch.tensor([True, False])), torch.zeros(2), 0.1)
    assert seen.known_scale() == given
    assert seen.moments is None


def test_impossible_lengths_are_refused():
    for lengths in ((0.0, 1.0), (1.0, -1.0), (1.0, 1.0, 2.0), (1.0, 1.0, 0.1, -1.0)):
        with pytest.raises(ArgumentError):
            DataScale(*lengths)
