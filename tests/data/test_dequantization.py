"""Dequantisation noise: it stays in its bin and has its stated density."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

from scoresde.data import Scaling, TruncatedNormal, Uniform
from scoresde.errors import ArgumentError, DTypeError
from scoresde.sde import VESDE, VPSDE
from tests.generators import generator

K = 32
SCALING = Scaling.for_integers(K)
RAW = torch.randint(0, K, (6, 1, 2, 3), generator=torch.Generator().manual_seed(0))


def level(dequantization, sde=None):
    sde = VPSDE() if sde is None else sde
    return sde.levels(sde.time_of(dequantization.log_snr(SCALING)).reshape(1))[0]


def test_uniform_noise_is_that_of_the_scaling():
    x, log_weight = Uniform().draw(RAW, SCALING, 1.0, 0.0, generator(1), torch.float64)
    assert torch.equal(x, SCALING.to_model(RAW, generator(1), torch.float64))
    assert torch.equal(SCALING.to_raw(x), RAW)
    torch.testing.assert_close(log_weight, torch.full((6,), 6 * math.log(2 / K), dtype=torch.float64))
    assert Uniform().log_snr(SCALING) is None
    assert torch.equal(Uniform().training_data(RAW, SCALING, generator(1)), SCALING.to_model(RAW, generator(1)))


@pytest.mark.parametrize("tau", [0.5, 3.0, 12.0])
def test_truncated_noise_has_its_law_within_its_bin(tau):
    """Compare 50 000 draws of u with quadrature.

    They stay within the bin. Mean, variance and fourth moment lie within 5 standard errors (false alarm 6e-7 each).
    """
    dequantization = TruncatedNormal(tau=tau)
    at = level(dequantization)
    assert at.alpha / at.sigma * SCALING.scale / 2 == pytest.approx(tau, rel=1e-6)
    raw = torch.full((50_000, 1), 7)
    x, log_weight = dequantization.draw(raw, SCALING, at.alpha, at.sigma, generator(), torch.float64)
    assert torch.equal(SCALING.to_raw(x / at.alpha), raw)
    u = (x - at.alpha * SCALING.bin_centres(raw, torch.float64)) / at.sigma
    grid = torch.linspace(-tau, tau, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * grid**2)
    density = density / torch.trapezoid(density, grid)
    for power in (1, 2, 4):
        moment = torch.trapezoid(density * grid**power, grid).item()
        stderr = (u**power).std().item() / math.sqrt(50_000)
        assert abs((u**power).mean().item() - moment) < 5 * stderr
    at_u = torch.searchsorted(grid, u[:5].contiguous().reshape(-1))
    torch.testing.assert_close(log_weight[:5], math.log(at.sigma) - density[at_u].log(), rtol=0, atol=1e-3)


def test_the_weight_makes_the_mass_of_the_bin():
    """Compare E[p(x) exp(log_weight)] with the mass of the bin under p.

    Here p is a slope over the bin; 200 000 draws agree within 5 standard errors (false alarm 6e-7).
    """
    raw = torch.full((200_000, 1), 20)
    c = SCALING.bin_centres(raw[:1], torch.float64).item()
    at = level(TruncatedNormal(tau=1.0))
    for dequantization, alpha, sigma in ((Uniform(), 1.0, 0.0), (TruncatedNormal(tau=1.0), at.alpha, at.sigma)):
        x, log_weight = dequantization.draw(raw, SCALING, alpha, sigma, generator(), torch.float64)
        p = (1 + 10 * (x[:, 0] / alpha - c)) / alpha  # per unit of x, so that the mass is the width of the bin
        masses = p * torch.exp(log_weight)
        assert abs(masses.mean().item() - SCALING.scale) < 5 * masses.std().item() / math.sqrt(200_000)


def test_three_std_of_256_values_begin_at_the_published_log_snr():
    """Compare with Kingma et al. (2021) and Zheng et al. (2023): about 13.3."""
    assert TruncatedNormal().log_snr(Scaling.for_integers(256)) == pytest.approx(13.3, abs=0.02)


def test_a_process_with_more_noise_truncates_more():
    """Check VE from sigma_min = 0.05: t_min is 0 and tau is 0.625.

    u stays in the bin.
    """
    at = level(TruncatedNormal(), VESDE(sigma_min=0.05))
    assert at.t == 0
    x, _ = TruncatedNormal().draw(RAW, SCALING, at.alpha, at.sigma, generator(), torch.float64)
    assert torch.equal(SCALING.to_raw(x), RAW)


def test_training_data_are_bin_centres():
    assert torch.equal(TruncatedNormal().training_data(RAW, SCALING), SCALING.bin_centres(RAW))


def test_noise_of_an_image_does_not_depend_on_the_batch():
    """Give each image its generator, alone and in a batch.

    Its draw does not depend on the batch.
    """
    for dequantization in (Uniform(), TruncatedNormal()):
        at = level(TruncatedNormal())
        whole, weights = dequantization.draw(RAW, SCALING, at.alpha, at.sigma, [generator(i) for i in range(6)])
        one, weight = dequantization.draw(RAW[4:5], SCALING, at.alpha, at.sigma, [generator(4)])
        assert torch.equal(one[0], whole[4])
        assert weight[0] == weights[4]
        assert whole.dtype == torch.float32


def test_bad_settings_are_refused():
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match="samples"):
            Uniform(bad)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ArgumentError, match="tau"):
            TruncatedNormal(tau=bad)
    with pytest.raises(ArgumentError, match="t_min"):
        TruncatedNormal().draw(RAW, SCALING, 1.0, 0.0, generator())
    with pytest.raises(DTypeError):
        TruncatedNormal().draw(RAW.float(), SCALING, 1.0, 0.1, generator())


SETTINGS = [Uniform(), Uniform(3), TruncatedNormal(), TruncatedNormal(2, tau=1.5)]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_settings_are_values(settings):
    assert eval(repr(settings)) == settings
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings
    assert hash(settings) == hash(copy.deepcopy(settings))
    assert [other == settings for other in SETTINGS].count(True) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.samples = 4


def test_settings_accept_numpy_numbers():
    assert repr(TruncatedNormal(np.int64(2), tau=np.float32(1.5))) == "TruncatedNormal(samples=2, tau=1.5)"
