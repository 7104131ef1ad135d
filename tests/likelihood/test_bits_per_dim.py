"""Bits per dimension: the offset is derived, every image counts, and integers are dequantised."""

import math

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, DataError, DTypeError
from scoresde.sde.times import streams


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


K = 17
SCALING = S.Scaling.for_levels(K)
GAUSSIAN = S.GaussianMixture(torch.zeros(1, 1, 2, 3), 0.2)
MODEL = GAUSSIAN.model(S.VPSDE())
IMAGES = torch.randint(0, K, (11, 1, 2, 3), generator=generator())


def test_bits_per_dim_is_the_closed_form():
    """-log2 of the density of raw + u, the Gaussian's own, scaled: no other term."""
    result = S.bits_per_dim(
        MODEL, IMAGES, scaling=SCALING, divergence=S.Exact(), steps=60, generator=generator(1), batch=11
    )
    u = [torch.rand(IMAGES.shape[1:], generator=g, dtype=torch.float64) for g in streams(generator(1), 11)]
    raw = IMAGES + torch.stack(u)
    x = 2 * raw / K - 1
    per_entry = -0.5 * x.square() / 0.2 - 0.5 * math.log(2 * math.pi * 0.2) + math.log(2 / K)
    torch.testing.assert_close(result.bits, -per_entry.mean((1, 2, 3)) / math.log(2), rtol=0, atol=2e-4)
    assert result.mean == pytest.approx(result.bits.mean().item())
    assert result.mean_stderr == pytest.approx((result.bits.std() / math.sqrt(11)).item())
    assert result.offset == pytest.approx(-math.log2(2 / K))
    assert (result.n, result.dims) == (11, 6)


def test_the_offset_takes_the_scale_out():
    """A model of data scaled twice as wide states the same bits/dim: the scaling is accounted for, whatever it is."""
    wide = S.Scaling(2 * SCALING.scale, 2 * SCALING.shift, K)
    other = S.GaussianMixture(torch.zeros(1, 1, 2, 3), 4 * 0.2).model(S.VPSDE())
    settings = {"divergence": S.Exact(), "steps": 60}
    first = S.bits_per_dim(MODEL, IMAGES, scaling=SCALING, generator=generator(1), **settings)
    again = S.bits_per_dim(other, IMAGES, scaling=wide, generator=generator(1), **settings)
    torch.testing.assert_close(first.bits, again.bits, rtol=0, atol=2e-4)


def test_the_last_batch_counts_and_batches_are_counted():
    seen = []
    result = S.bits_per_dim(
        MODEL, IMAGES, scaling=SCALING, generator=generator(), batch=4, callback=lambda done, n: seen.append((done, n))
    )
    assert result.bits.shape == (11,)
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_the_batch_does_not_change_the_results():
    """Dequantisation and probes belong to the image: batches of 11, 4 and 1 agree to 1e-6, with Hutchinson's probes."""
    settings = {"scaling": SCALING, "divergence": S.Hutchinson(2), "steps": 8}
    whole, some, single = (
        S.bits_per_dim(MODEL, IMAGES, generator=generator(), batch=batch, **settings).bits for batch in (11, 4, 1)
    )
    torch.testing.assert_close(some, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-6)


def test_several_draws_give_a_standard_error_that_holds():
    """One image 300 times, 4 draws each: the reported standard error is within 20 % of the spread of the means."""
    settings = {"scaling": SCALING, "divergence": S.Exact(), "steps": 12, "batch": 300}
    result = S.bits_per_dim(MODEL, IMAGES[:1].expand(300, -1, -1, -1), S.Uniform(4), generator=generator(), **settings)
    reported = result.stderr.square().mean().sqrt()
    assert (reported / result.bits.std()).item() == pytest.approx(1, abs=0.2)


def test_the_models_own_scaling_is_used():
    net = S.UNet((1, 4, 4), channels=8, multipliers=(1,), attention=())
    model = S.ScoreModel(net, S.VPSDE(), scaling=SCALING)
    images = torch.randint(0, K, (3, 1, 4, 4), generator=generator())
    own = S.bits_per_dim(model, images, generator=generator(), steps=5)
    given = S.bits_per_dim(model, images, scaling=SCALING, generator=generator(), steps=5)
    assert torch.equal(own.bits, given.bits)


def test_bad_input_is_refused():
    with pytest.raises(DTypeError, match="images"):
        S.bits_per_dim(MODEL, IMAGES.float(), scaling=SCALING)
    with pytest.raises(DataError, match=r"values 0\.\.17|17"):
        S.bits_per_dim(MODEL, IMAGES + 1, scaling=SCALING)
    with pytest.raises(ArgumentError, match="scaling"):
        S.bits_per_dim(MODEL, IMAGES)
    with pytest.raises(ArgumentError, match="scaling"):
        S.bits_per_dim(MODEL, IMAGES, scaling=S.Scaling(2.0, 1.0))
    with pytest.raises(ArgumentError, match="samples"):
        S.Uniform(0)
