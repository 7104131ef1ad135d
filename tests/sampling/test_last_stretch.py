"""The last stretch: weights, and Gaussians of any width."""

import math

import pytest
import torch
from scipy.integrate import quad

import scoresde as S
from scoresde.sampling.last_stretch import end_weights, to_data
from tests.generators import generator


@pytest.mark.parametrize("width", [1e-6, 0.05, 0.3, 40.0])
def test_weights_integrate_polynomials(width):
    """Compare with s/2 int rho^(2 p) (s^2 + rho^2)^(-3/2) d(rho^2)."""
    rhos = (0.5, 0.4, 0.3, 0.2)
    v, weights = end_weights(rhos, width)
    assert v == pytest.approx(width / math.hypot(width, 0.2), rel=1e-12)
    assert v + sum(weights) == pytest.approx(1.0, rel=1e-12)
    for power in range(4):
        exact = sum(
            quad(lambda r, p=power: width * r ** (2 * p + 1) * (width**2 + r**2) ** -1.5, *piece, epsrel=1e-12)[0]
            for piece in ((0, min(0.1, 10 * width)), (min(0.1, 10 * width), 0.2))
        )
        assert sum(w * r ** (2 * power) for w, r in zip(weights, rhos, strict=True)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("std", [1e-4, 0.01, 0.3])
def test_exact_on_gaussians_of_that_width(std):
    """Go from rho = .1 to the data.

    The flow is y_0 = m + s (y - m)/sqrt(s^2 + rho^2).
    """
    sde = S.VESDE(1e-5, 10.0)
    gaussian = S.GaussianMixture(torch.tensor([[0.5, -1.0]]), std**2)
    model = gaussian.model(sde)
    levels = sde.levels(sde.time_at(lam=-torch.tensor([0.2, 0.1], dtype=torch.float64).log()))
    m, z = gaussian.means, torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    xs = [m + math.hypot(std, level.rho) * z for level in levels]
    x0s = [model.estimate(x, level).x0 for x, level in zip(xs, levels, strict=True)]
    torch.testing.assert_close(to_data(levels, xs, x0s, std, None), m + std * z, rtol=0, atol=1e-12)
    # a larger width is cut to the data's where the moments tell it
    known = gaussian.moments.gaussian(xs[0])
    torch.testing.assert_close(to_data(levels, xs, x0s, 0.7, known), m + std * z, rtol=0, atol=1e-12)
    error = (to_data(levels, xs, x0s, 0.7, None) - m - std * z).abs().max()
    assert error > 1e-3 or std > 0.1
