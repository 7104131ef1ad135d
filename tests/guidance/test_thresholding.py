"""Clipping and dynamic thresholding, sample by sample.

x = alpha x0 + sigma eps holds.
"""

import numpy as np
import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError

WIDE = S.GaussianMixture([[1.0, 0.5, 0.0], [-0.8, 0.3, 2.0]], [0.9, 2.5])
LIMITS = {
    "clipped": lambda model: S.guidance.clipped(model, -0.7, 0.9),
    "dynamic": lambda model: S.guidance.dynamic_threshold(model, 60.0, 0.8),
}


def draw(n=40, seed=0, dtype=torch.float64):
    return 2 * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("sde", [S.VPSDE(), S.VESDE(), S.FlowSDE()])
@pytest.mark.parametrize("t", [0.05, 0.6, "per sample"])
def test_x_is_still_alpha_x0_plus_sigma_eps(limit, sde, t):
    x, model = draw(), LIMITS[limit](WIDE.model(sde))
    t = torch.linspace(0.02, 0.98, len(x), dtype=torch.float64) if t == "per sample" else t
    estimate, plain = model(x, t), WIDE.model(sde)(x, t)
    assert not torch.allclose(estimate.x0, plain.x0)
    torch.testing.assert_close(estimate.level.alpha * estimate.x0 + estimate.level.sigma * estimate.eps, x)
    torch.testing.assert_close(estimate.score, -estimate.eps / estimate.level.sigma)


@pytest.mark.parametrize("t", [0.3, 1e-4])
def test_clipping_clips_and_leaves_the_rest_bit_for_bit(t):
    x, model = draw(dtype=torch.float32), WIDE.model(S.VPSDE())
    plain, estimate = model(x, t), S.guidance.clipped(model, -0.7, 0.9)(x, t)
    torch.testing.assert_close(estimate.x0, plain.x0.clamp(-0.7, 0.9), rtol=0, atol=0)
    inside = (plain.x0 >= -0.7) & (plain.x0 <= 0.9)
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(estimate.eps[inside], plain.eps[inside])


def test_dynamic_threshold_is_that_of_the_paper():
    """Compare with Saharia et al. 2022: clip(x0, -s, s)/s.

    s is the percentile of |x0| of a sample, at least 1.
    """
    x, model = draw(), WIDE.model(S.VPSDE())
    x0 = model(x, 0.4).x0.numpy()
    s = np.maximum(np.percentile(np.abs(x0), 60.0, axis=1, keepdims=True), 1.0)
    assert (s == 1).any()
    assert (s > 1).any()
    ours = S.guidance.dynamic_threshold(model, 60.0)(x, 0.4).x0
    np.testing.assert_allclose(ours.numpy(), np.clip(x0, -s, s) / s, rtol=1e-12)
    most = np.minimum(s, 1.2)
    assert (s > 1.2).any()
    ours = S.guidance.dynamic_threshold(model, 60.0, largest=1.2)(x, 0.4).x0
    np.testing.assert_allclose(ours.numpy(), np.clip(x0, -most, most) / most, rtol=1e-12)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_sample_does_not_depend_on_its_batch(limit):
    x, model = draw(), LIMITS[limit](WIDE.model(S.VPSDE()))
    many, one = model(x, 0.4), model(x[7:8], 0.4)
    torch.testing.assert_close(one.x0[0], many.x0[7], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.eps[0], many.eps[7], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", LIMITS)
def test_samples_end_within_the_range(limit):
    model = LIMITS[limit](WIDE.model(S.VPSDE()))
    assert model.moments is WIDE.moments
    g = torch.Generator().manual_seed(0)
    for sampler in (S.DDIM(last="tweedie"), S.PredictorCorrector(S.Ancestral(), last="tweedie")):
        x = S.sample(model, (20, 3), sampler, 20, generator=g)
        assert x.min() >= -0.8
        assert x.max() <= 0.9


@pytest.mark.parametrize("t", [0.0, torch.tensor([0.0, 0.5])])
def test_without_noise_eps_is_left_as_it_is(t):
    x, model = torch.full((2, 3), 5.0, dtype=torch.float64), WIDE.model(S.VPSDE())
    t = t.double() if isinstance(t, torch.Tensor) else t
    estimate = S.guidance.clipped(model)(x, t)
    assert estimate.eps.isfinite().all()
    assert torch.equal(estimate.eps[0], model(x, t).eps[0])
    assert estimate.x0.max() == 1.0


def test_bad_ranges_are_refused():
    model = WIDE.model(S.VPSDE())
    with pytest.raises(ArgumentError, match="low < high"):
        S.guidance.clipped(model, 1.0, 1.0)
    for percentile in (0.0, 100.1):
        with pytest.raises(ArgumentError, match="percentile"):
            S.guidance.dynamic_threshold(model, percentile)
    with pytest.raises(ArgumentError, match="bound"):
        S.guidance.dynamic_threshold(model, 99.0, 0.0)
    with pytest.raises(ArgumentError, match="largest"):
        S.guidance.dynamic_threshold(model, 99.0, 1.0, largest=0.5)


@pytest.mark.parametrize("limit", LIMITS)
def test_keep_eps_is_the_default_of_diffusers(limit):
    """Take a DDIM step by its own formula, with the network's eps kept."""
    make = {
        "clipped": lambda model: S.guidance.clipped(model, -0.7, 0.9, keep_eps=True),
        "dynamic": lambda model: S.guidance.dynamic_threshold(model, 60.0, 0.8, keep_eps=True),
    }[limit]
    model, x = WIDE.model(S.VPSDE()), draw()
    kept, limited, plain = make(model)(x, 0.6), LIMITS[limit](model)(x, 0.6), model(x, 0.6)
    assert torch.equal(kept.eps, plain.eps)
    assert torch.equal(kept.x0, limited.x0)
    assert not torch.equal(limited.eps, plain.eps)
    sampler = S.DDIM(grid=(0.6, 0.4), last="none")
    x_s = S.sample(make(model), x.shape, sampler, start=x)
    alpha, sigma = model.sde.alpha(0.4), model.sde.sigma(0.4)
    torch.testing.assert_close(x_s, alpha * limited.x0 + sigma * plain.eps)
