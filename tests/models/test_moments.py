"""Moments of data and their Gaussian in closed form.

Compared with dense linear algebra or quadrature.
"""

import math
import pickle

import pytest
import torch

from scoresde.errors import ShapeError
from scoresde.models import Gaussian, Moments

RHO, N = 0.7, 5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance():
    factor = random(N, N, seed=1)
    return factor @ factor.T + 0.1 * torch.eye(N)


@pytest.fixture(params=["full", "diagonal", "a mean each"])
def problem(request):
    """Return a Gaussian of six samples, its covariance and its means."""
    C = covariance()
    C = C if request.param == "full" else torch.diag(C.diagonal())
    moments = Moments(random(N, seed=2), C if request.param == "full" else C.diagonal())
    mean = random(6, N, seed=3) if request.param == "a mean each" else None
    m = (moments.mean if mean is None else mean).expand(6, N)
    return moments.gaussian(random(6, N), mean), C, m


def test_the_eigenbasis_is_orthonormal_and_diagonal(problem):
    gaussian, C, m = problem
    y = random(6, N)
    torch.testing.assert_close(gaussian.from_eigen(gaussian.to_eigen(y)), y)
    torch.testing.assert_close(gaussian.uncentre(gaussian.centre(y)), y)
    torch.testing.assert_close(gaussian.centre(m), torch.zeros(6, N).double())
    V = gaussian.to_eigen(torch.eye(N).double())
    torch.testing.assert_close(V.T @ C @ V, torch.diag(gaussian.values))


def test_whitening_is_by_the_covariance_of_y(problem):
    gaussian, C, m = problem
    y = random(6, N)
    z = gaussian.whiten(y, RHO)
    S = C + RHO**2 * torch.eye(N).double()
    torch.testing.assert_close(z.square().sum(1), ((y - m) * torch.linalg.solve(S, (y - m).T).T).sum(1))
    torch.testing.assert_close(gaussian.unwhiten(z, RHO), y)
    torch.testing.assert_close(gaussian.variance(RHO).prod(), torch.linalg.det(S))
    torch.testing.assert_close(gaussian.std(RHO) ** 2, gaussian.variance(RHO))


def test_log_prob_is_that_of_torch(problem):
    gaussian, C, m = problem
    x, alpha, sigma = random(6, N), 0.6, 0.8
    marginal = torch.distributions.MultivariateNormal(alpha * m, alpha**2 * C + sigma**2 * torch.eye(N).double())
    torch.testing.assert_close(gaussian.log_prob(x, alpha, sigma), marginal.log_prob(x))


def test_trace_and_log_determinant(problem):
    gaussian, C, _ = problem
    S, T = (C + rho**2 * torch.eye(N).double() for rho in (RHO, 3.0))
    assert gaussian.trace(RHO) == pytest.approx(RHO**2 * torch.linalg.inv(S).trace().item())
    expected = 0.5 * (torch.linalg.slogdet(T)[1] - torch.linalg.slogdet(S)[1]).item()
    assert gaussian.log_det(RHO, 3.0) == pytest.approx(expected)


def test_the_noise_error_is_that_of_the_exact_model(problem):
    """Compare |eps - eps_G|^2 with eps_G = rho S^-1 (y - m).

    Also its mean over eps, and its integral over log snr.
    """
    gaussian, C, m = problem
    x0, eps, snr = random(6, N), random(6, N, seed=4), RHO**-2
    S = C + RHO**2 * torch.eye(N).double()
    predicted = RHO * torch.linalg.solve(S, (x0 + RHO * eps - m).T).T
    error = gaussian.noise_error(torch.tensor(snr).double(), x0, eps)
    torch.testing.assert_close(error, (eps - predicted).square().sum(1))
    z2 = gaussian.centre(x0).square()
    both = [gaussian.noise_error(torch.tensor(snr).double(), x0, sign * eps) for sign in (1, -1)]
    fixed = sum(both) / 2  # the part linear in eps has mean zero
    spread = gaussian.noise_error(torch.tensor(snr).double(), m, eps)  # the part quadratic in eps
    gain = (snr * gaussian.values / (1 + snr * gaussian.values)).square().sum()
    torch.testing.assert_close(gaussian.mean_noise_error(snr, z2), fixed - spread + gain)
    h = 1e-5
    ends = [gaussian.integrated_noise_error(snr * math.exp(step), z2) for step in (-h, h)]
    torch.testing.assert_close(gaussian.mean_noise_error(snr, z2), (ends[1] - ends[0]) / (2 * h), rtol=1e-8, atol=1e-8)


def test_the_divergence_of_the_prior_is_that_of_torch(problem):
    gaussian, C, m = problem
    x0, alpha, sigma = random(6, N), 0.3, 0.9
    eye = torch.eye(N).double()
    q = torch.distributions.MultivariateNormal(alpha * x0, sigma**2 * eye)
    p = torch.distributions.MultivariateNormal(alpha * m, alpha**2 * C + sigma**2 * eye)
    found = gaussian.prior_kl((alpha / sigma) ** 2, gaussian.centre(x0).square())
    torch.testing.assert_close(found, torch.distributions.kl_divergence(q, p))


def test_an_isotropic_gaussian_is_a_diagonal_one():
    mean = random(6, N)
    one, other = Gaussian.isotropic(mean, 0.4), Gaussian(mean, torch.full((N,), 0.4, dtype=torch.float64))
    y = random(6, N, seed=5)
    assert torch.equal(one.whiten(y, RHO), other.whiten(y, RHO))
    assert one.trace(RHO) == other.trace(RHO)


def test_the_gaussian_follows_the_dtype():
    moments = Moments(random(2, 2), covariance()[:4, :4])
    gaussian = moments.gaussian(torch.zeros(3, 4))
    assert gaussian.whiten(torch.zeros(3, 4), RHO).dtype == torch.float32
    assert gaussian.mean.shape == (1, 4)


def test_reprs_and_pickles():
    moments = Moments(random(2, 2), torch.ones(4))
    assert repr(moments) == "Moments(shape=(2, 2), std=1, covariance=diagonal)"
    again = pickle.loads(pickle.dumps(moments))
    assert torch.equal(again.mean, moments.mean)
    assert torch.equal(again.values, moments.values)
    assert "along the axes" in repr(moments.gaussian(torch.zeros(1)))


def test_a_covariance_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="`covariance` must be"):
        Moments(torch.zeros(3), torch.ones(2))
