"""Discrete NCSN as a VE SDE, and the choice of its levels."""

import math

import numpy as np
import pytest
import torch

from scoresde import NCSN, VESDE, VPSDE
from scoresde.errors import ArgumentError
from scoresde.sde import (
    langevin_step_size,
    largest_sigma,
    level_ratio,
    ncsn_for,
    number_of_levels,
    variance_ratio,
    vesde_for,
)
from tests.reference import ncsn as paper
from tests.reference import song_sde
from tests.statistics_tools import measured_order


@pytest.mark.parametrize("L", [1, 2, 10, 232])
def test_N1_levels_are_geometric(L):
    ncsn = NCSN.geometric(0.01, 50.0, L)
    np.testing.assert_allclose(ncsn.sigmas.flip(0), paper.levels(50.0, 0.01, L), rtol=1e-12)
    np.testing.assert_allclose(ncsn.sigma(ncsn.times), ncsn.sigmas, rtol=1e-12)
    assert (ncsn.alpha(ncsn.times) == 1).all()
    assert ncsn.L == L
    assert torch.equal(NCSN(ncsn.sigmas.flip(0)).sigmas, ncsn.sigmas)  # either order


def test_E3_ncsn_interpolates_the_variances_of_its_levels():
    ncsn = NCSN.geometric(0.01, 50.0, 232)
    variance = np.concatenate([[0], ncsn.sigmas.numpy() ** 2])
    t = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.interp(t.numpy(), np.arange(233) / 232, variance)
    np.testing.assert_allclose(ncsn.sigma(t) ** 2, expected, rtol=1e-9)
    np.testing.assert_allclose(ncsn.diffusion(ncsn.times) ** 2, 232 * np.diff(variance), rtol=1e-9)


def test_E3_song_sde_discretises_to_an_ncsn():
    song = song_sde.VE(N=100)
    ncsn = NCSN(song.discrete_sigmas)
    for i in (1, 2, 50, 100):
        scale, std = ncsn.transition(ncsn.time(i - 1), ncsn.time(i))
        f, g = song.discretised(i)
        assert scale.item() - 1 == f
        assert std.item() == pytest.approx(g, rel=1e-10)


def test_E3_ncsn_approaches_ve_at_rate_one_over_L():
    """Check the largest error of log sigma, log(5000)/L.

    The error of g^2 is that of a chain with the SDE's marginals.
    """
    sde, sizes = VESDE(0.01, 50.0), [100, 1000, 10_000, 100_000]
    levels, rates = [], []
    for L in sizes:
        ncsn = NCSN.geometric(0.01, 50.0, L)
        levels.append((ncsn.sigma(ncsn.times).log() - sde.sigma(ncsn.times).log()).abs().max().item())
        chain = NCSN.from_sde(sde, L)
        ratio = chain.squared_diffusion(chain.times[1:]) / sde.squared_diffusion(chain.times[1:])
        rates.append((ratio - 1).abs().max().item())
    assert measured_order(levels, sizes) == pytest.approx(-1, abs=0.05)
    assert measured_order(rates, sizes) == pytest.approx(-1, abs=0.05)
    assert levels == pytest.approx([math.log(5000) / L for L in sizes], rel=1e-8)
    assert rates == pytest.approx([8.05e-2, 8.47e-3, 8.51e-4, 8.52e-5], rel=0.01)


def test_E3_an_ncsn_made_from_an_sde_has_its_marginals():
    for sde in (VESDE(), VESDE.linear(80.0)):
        ncsn = NCSN.from_sde(sde, 50)
        torch.testing.assert_close(ncsn.sigma(ncsn.times), sde.sigma(ncsn.times), rtol=1e-12, atol=0)
    with pytest.raises(ArgumentError, match=r"`sde` must be .*, got"):
        NCSN.from_sde(VPSDE(), 10)


# ---- N5 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint8])
def test_N5_largest_sigma_is_the_largest_distance(kind):
    data = (np.random.default_rng(0).random((61, 2, 3)) * 200).astype(kind)
    expected = paper.largest_distance(data)
    for chunk in (1, 7, 60, 61, 1024):
        assert largest_sigma(data, chunk) == pytest.approx(expected, rel=1e-6)
    assert largest_sigma(torch.from_numpy(data)) == pytest.approx(expected, rel=1e-6)


def test_N5_largest_sigma_does_not_depend_on_an_offset():
    data = np.random.default_rng(1).random((300, 8)).astype(np.float32)
    far = data + np.float32(4096)  # a power of two: only the sum is rounded
    expected = paper.largest_distance(far)
    assert largest_sigma(far, chunk=64) == pytest.approx(expected, rel=1e-5)


def test_N5_number_of_levels_for_cifar10():
    """Check that CIFAR-10 needs 220 levels at overlap 1/2.

    The published 232 are denser, with overlap .567.
    """
    gamma = level_ratio(3072)
    assert paper.overlap(gamma, 3072) == pytest.approx(0.5, abs=1e-10)
    L = number_of_levels(3072, 0.01, 50.0)
    assert L == 220
    finer, coarser = (5000 ** (1 / (n - 1)) for n in (L, L - 1))
    assert finer <= gamma < coarser
    assert paper.overlap(5000 ** (1 / 231), 3072) == pytest.approx(0.567, abs=5e-4)
    assert number_of_levels(3072, 0.01, 50.0, overlap=0.567) in (231, 232, 233)


def test_N5_step_size_for_cifar10_is_the_published_one():
    """Compare with Song & Ermon 2020: L = 232, T = 5, e = 6.2e-6."""
    gamma = 5000 ** (1 / 231)
    e = langevin_step_size(0.01, gamma, steps=5)
    assert e == pytest.approx(6.2e-6, abs=5e-8)
    ratio = variance_ratio(e / 0.01**2, gamma, 5)
    assert ratio == pytest.approx(paper.variance_ratio(e, 0.01, gamma, 5), rel=1e-9)
    for other in (0.9, 0.99, 1.01, 1.1):
        assert ratio < variance_ratio(other * e / 0.01**2, gamma, 5)


@pytest.mark.parametrize(("r", "gamma", "steps"), [(0.062, 5000 ** (1 / 231), 5), (0.3, 1.4, 3)])
def test_N5_variance_ratio_is_that_of_a_simulation(r, gamma, steps, generator):
    """Simulate x <- x + a s(x) + sqrt(2a) z from the previous level.

    The variance lies within 5 sigma (false alarm 6e-7).
    """
    sigma, n = 0.7, 200_000
    a = r * sigma**2
    x = gamma * sigma * torch.randn(n, generator=generator, dtype=torch.float64)
    for _ in range(steps):
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        x = x - a * x / sigma**2 + math.sqrt(2 * a) * z
    expected = variance_ratio(r, gamma, steps)
    assert abs(x.square().mean().item() / sigma**2 - expected) < 5 * expected * math.sqrt(2 / n)


def test_N5_levels_chosen_for_data():
    data = np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32)
    ncsn, sde = ncsn_for(data, 0.02), vesde_for(data, 0.02)
    assert ncsn.sigmas[-1].item() == pytest.approx(paper.largest_distance(data), rel=1e-6)
    assert ncsn.sigmas[0].item() == pytest.approx(0.02)
    assert sde.sigma(1.0).item() == pytest.approx(ncsn.sigmas[-1].item())
    neighbours = (ncsn.sigmas[1:] / ncsn.sigmas[:-1]).max().item()
    assert neighbours <= level_ratio(64) + 1e-9


@pytest.mark.parametrize(
    "call",
    [
        lambda: largest_sigma(np.zeros((1, 3))),
        lambda: largest_sigma(np.full((4, 2), np.nan)),
        lambda: largest_sigma(np.zeros((4, 2)), chunk=0),
        lambda: level_ratio(0),
        lambda: level_ratio(10, overlap=1.0),
        lambda: level_ratio(2),
        lambda: number_of_levels(10, 1.0, 0.5),
        lambda: langevin_step_size(0.01, 1.0, 5),
        lambda: langevin_step_size(0.01, 1.1, 0),
        lambda: langevin_step_size(-1, 1.1, 5),
    ],
)
def test_N5_bad_arguments_are_refused(call):
    with pytest.raises(ArgumentError):
        call()
