"""Accuracy in float32, inverses, and the two ends of time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.sde.tensors import log1mexp
from tests.families import EACH, FAMILIES
from tests.marks import first_fast


@EACH
def test_sigma_is_accurate_in_float32_near_the_data(sde):
    """Check that the relative error at t = 1e-6 is below 1e-6.

    A plain 1 - exp(.) is off by 100 % there.
    """
    t = torch.tensor([1e-6, 1e-6, 2.7e-6, 1e-5])
    exact = sde.sigma(t.double())
    assert ((sde.sigma(t).double() - exact).abs() / exact).max().item() < 1e-6
    level = sde.level(t, torch.zeros(4, 2))
    assert ((level.sigma.flatten().double() - exact).abs() / exact).max().item() < 1e-6


@EACH
def test_functions_are_accurate_in_float32_everywhere(sde):
    t = torch.cat([torch.logspace(-6, -1, 300), torch.linspace(0.1, 0.999, 300)])
    sigma = sde.sigma(t.double())
    assert (sde.alpha(t).double() - sde.alpha(t.double())).abs().max().item() < 1e-6
    assert ((sde.sigma(t).double() - sigma).abs() / sigma).max().item() < 2e-6


@EACH
def test_squared_diffusion_is_accurate_in_float32(sde):
    """Check g^2; piecewise processes are tested at mid-piece.

    They store their steps and do not recover them from differences.
    """
    N = 1000 if sde.times is None else len(sde.times)
    t = ((torch.arange(N) + 0.5) / N)[: N * 99 // 100]
    exact = sde.squared_diffusion(t.double())
    assert ((sde.squared_diffusion(t).double() - exact).abs() / exact).max().item() < 2e-5


@EACH
def test_log_snr_and_its_inverse(sde):
    """Check that the two are inverse to 1e-9 and that log-SNR decreases."""
    t = torch.cat([torch.logspace(-9, -1, 300), torch.linspace(0.1, 1, 300)]).double().clamp(max=1)
    log_snr = sde.log_snr(t)
    torch.testing.assert_close(sde.time_of(log_snr), t, rtol=0, atol=1e-9)
    finite = log_snr.isfinite()
    torch.testing.assert_close(sde.log_snr(sde.time_of(log_snr))[finite], log_snr[finite], rtol=1e-9, atol=1e-9)
    assert (log_snr.diff()[t.diff() > 0] < 0).all()


@given(name=st.sampled_from(sorted(FAMILIES)), value=st.floats(allow_nan=False))
def test_time_of_any_number_is_a_time(name, value):
    sde = FAMILIES[name]
    t = sde.time_of(value).item()
    assert 0 <= t <= 1
    low, high = sde.log_snr(1.0).item(), sde.log_snr(0.0).item()
    if low < value < high:
        assert sde.log_snr(t).item() == pytest.approx(value, rel=1e-9, abs=1e-9) or t < 1e-300 or 1 - t < 1e-9
    else:
        assert t == (1.0 if value <= low else 0.0) or t == pytest.approx(1.0, abs=1e-9) or t < 1e-9


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_no_nan_at_the_ends(sde, t, dtype):
    """Check that values at t = 0 and t = 1 are numbers.

    They are infinite only where the process is.
    """
    time = torch.full((2,), t, dtype=dtype)
    x = torch.ones(2, 3, dtype=dtype)
    values = [
        sde.alpha(time),
        sde.sigma(time),
        sde.log_snr(time),
        sde.drift(x, time),
        sde.diffusion(time),
        sde.log_alpha_rate(time),
        sde.log_sigma_rate(time),
        *sde.perturb(x, time, torch.Generator().manual_seed(0)),
        *sde.level(t, x)[1:3],
    ]
    for value in values:
        assert not torch.as_tensor(value).isnan().any()
    if t == 0:
        assert (sde.alpha(time) == 1).all()


@EACH
@first_fast("dtype", [torch.float32, torch.float64])
@first_fast(("s", "t"), [(0.0, 1e-6), (0.0, 0.5), (0.5, 1.0), (0.0, 1.0)])
def test_steps_from_and_to_the_ends_are_finite(sde, s, t, dtype):
    early, late = torch.full((2,), s, dtype=dtype), torch.full((2,), t, dtype=dtype)
    x = torch.ones(2, 3, dtype=dtype)
    for eta in (0.0, 0.5, 1.0):
        mean, std = sde.posterior(x, 0.3 * x, early, late, eta=eta)
        for value in (*sde.transition(early, late), *sde.posterior_coefficients(early, late, eta), mean, std):
            assert value.isfinite().all()
        if s == 0 and sde.sigma(0.0) == 0:  # the step to the data returns the predicted data, without noise
            torch.testing.assert_close(mean, 0.3 * x, rtol=0, atol=0)
            assert (std == 0).all()


def test_log1mexp_and_its_gradient():
    b = torch.tensor([1e-300, 1e-20, 1e-9, 0.1, 0.6931, 0.6932, 3.0, 700.0], dtype=torch.float64, requires_grad=True)
    value = log1mexp(b)
    (gradient,) = torch.autograd.grad(value.sum(), b)
    expected = [math.log(-math.expm1(-v)) for v in b.tolist()]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradient[:-1], (1 / torch.expm1(b.detach()))[:-1], rtol=1e-12, atol=0)
    assert log1mexp(torch.tensor([0.0, math.inf])).tolist() == [-math.inf, 0.0]
