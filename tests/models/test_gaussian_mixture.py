"""Exact scores, denoisers and densities of Gaussian mixtures."""

import math

import pytest
import torch
from scipy import stats

from scoresde import VPSDE, GaussianMixture
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.models import Moments
from tests.families import EACH
from tests.generators import generator
from tests.marks import first_fast

MIXTURES = pytest.mark.parametrize("name", ["mixture_2d", "mixture_16d"])


def torch_mixture(mixture, alpha=1.0, sigma=0.0):
    """Return the same density by torch.distributions."""
    n = mixture.means.shape[1]
    covariances = mixture.vectors @ torch.diag_embed(mixture.values) @ mixture.vectors.mT
    covariances = alpha**2 * covariances + sigma**2 * torch.eye(n, dtype=torch.float64)
    components = torch.distributions.MultivariateNormal(alpha * mixture.means, covariances)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), components)


@MIXTURES
def test_density_is_that_of_torch(name, request, generator):
    mixture = request.getfixturevalue(name)
    x = 2 * torch.randn(50, *mixture.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_prob(x), torch_mixture(mixture).log_prob(x), rtol=1e-10, atol=1e-9)
    model = mixture.model(VPSDE())
    for t in (0.1, 0.8):
        alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
        expected = torch_mixture(mixture, alpha, sigma).log_prob(x)
        torch.testing.assert_close(model.log_prob(x, t), expected, rtol=1e-10, atol=1e-9)


@EACH
@MIXTURES
def test_P11_score_is_the_gradient_of_the_density(sde, name, request, generator):
    mixture = request.getfixturevalue(name)
    model = mixture.model(sde)
    t = torch.linspace(0.02, 0.98, 30, dtype=torch.float64)
    x = sde.perturb(mixture.sample(30, generator), t, generator)[0].requires_grad_()
    expected = torch.autograd.grad(model.log_prob(x, t).sum(), x)[0]
    estimate = model(x, t)
    torch.testing.assert_close(estimate.score, expected, rtol=1e-9, atol=1e-9)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x, rtol=1e-11, atol=1e-11)


@EACH
@first_fast("shape", [(4,), (4, 1)])
def test_P11_x0_is_the_posterior_mean_by_quadrature(sde, shape):
    """Integrate E[x_0 | x_t] of a mixture on the line on a grid.

    Data have shape () or (1,).
    """
    means, stds, weights = torch.tensor([-1.0, 0.2, 0.9]).double(), torch.tensor([0.1, 0.3, 0.05]), [0.2, 0.5, 0.3]
    model = GaussianMixture(means.reshape(3, *shape[1:]), stds.double() ** 2, weights).model(sde)
    grid = torch.linspace(-4, 4, 160_001, dtype=torch.float64)
    prior = model.log_prob(grid.reshape(-1, *shape[1:]), None)
    for t in (0.1, 0.5, 0.95):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x = alpha * torch.tensor([-1.1, 0.0, 0.5, 1.2], dtype=torch.float64) + 0.3 * sigma
        weight = (prior - 0.5 * ((x[:, None] - alpha * grid) / sigma) ** 2).softmax(1)
        expected = (weight @ grid).reshape(shape)
        torch.testing.assert_close(model(x.reshape(shape), t).x0, expected, rtol=1e-7, atol=1e-7)


@EACH
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_estimates_are_finite_at_the_ends(sde, t, mixture_2d, generator):
    x = mixture_2d.sample(8, generator) if t == 0 else sde.prior_sample((8, 2), generator, dtype=torch.float64)
    estimate = mixture_2d.model(sde)(x, t)
    assert estimate.x0.isfinite().all()
    assert estimate.eps.isfinite().all()
    if sde.sigma(t) == 0:
        torch.testing.assert_close(estimate.x0, x, rtol=1e-12, atol=1e-12)
    if sde.alpha(t) == 0:
        torch.testing.assert_close(estimate.x0, mixture_2d.moments.mean.expand(8, 2), rtol=1e-10, atol=1e-10)


@EACH
def test_full_diagonal_and_isotropic_covariances_agree(sde, generator):
    means = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    variances = 0.05 + torch.rand(4, generator=generator, dtype=torch.float64)
    diagonal = variances[:, None].expand(4, 3)
    mixtures = [GaussianMixture(means, c) for c in (variances, diagonal, torch.diag_embed(diagonal))]
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    x = sde.perturb(mixtures[0].sample(10, generator), t, generator)[0]
    models = [mixture.model(sde) for mixture in mixtures]
    for model in models[1:]:
        ours, other = models[0](x, t), model(x, t)
        torch.testing.assert_close(ours.x0, other.x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.eps, other.eps, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(models[0].log_prob(x, t), model.log_prob(x, t), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(models[0].moments.covariance, model.moments.covariance, rtol=1e-10, atol=1e-12)
    one = GaussianMixture(means, 0.3)
    torch.testing.assert_close(one.log_prob(x), GaussianMixture(means, torch.full((4,), 0.3)).log_prob(x))


def test_events_of_any_rank(generator):
    """Compare a mixture over images with the mixture over their entries."""
    means, t = torch.randn(3, 2, 1, 3, generator=generator), torch.linspace(0.1, 0.9, 5)
    factor = torch.randn(3, 6, 6, generator=generator)
    covariances = factor @ factor.mT + 0.1 * torch.eye(6)
    image, flat = GaussianMixture(means, covariances), GaussianMixture(means.flatten(1), covariances)
    x = torch.randn(5, 2, 1, 3, generator=generator, dtype=torch.float64)
    ours, other = image.model(VPSDE())(x, t), flat.model(VPSDE())(x.flatten(1), t)
    assert image.sample(4, generator).shape == (4, 2, 1, 3)
    assert ours.score.shape == x.shape
    torch.testing.assert_close(ours.score.flatten(1), other.score)
    torch.testing.assert_close(image.log_prob(x), flat.log_prob(x.flatten(1)))
    assert image.moments.mean.shape == (2, 1, 3)


@MIXTURES
def test_float32_is_close_to_float64(name, request, generator):
    mixture = request.getfixturevalue(name)
    model, sde = mixture.model(VPSDE()), VPSDE()
    t = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    x = sde.perturb(mixture.sample(64, generator), t, generator)[0]
    exact, single = model(x, t), model(x.float(), t.float())
    assert single.x0.dtype == torch.float32
    torch.testing.assert_close(single.x0.double(), exact.x0, rtol=0, atol=2e-5)
    torch.testing.assert_close(single.eps.double(), exact.eps, rtol=0, atol=2e-4)
    torch.testing.assert_close(model.log_prob(x.float(), t.float()).double(), model.log_prob(x, t), rtol=0, atol=1e-3)


@MIXTURES
def test_samples_have_the_law_of_the_mixture(name, request, generator):
    """Test the components by chi-square, the distances by Kolmogorov-Smirnov.

    Component counts and Mahalanobis distances; 1e-4 false alarms each.
    """
    mixture, n = request.getfixturevalue(name), 20_000
    x, k = mixture.sample(n, generator, return_component=True)
    counts = torch.bincount(k, minlength=len(mixture.weights)).double()
    assert stats.chisquare(counts, n * mixture.weights).pvalue > 1e-4
    z = torch.einsum("nij,ni->nj", mixture.vectors[k], x - mixture.means[k]) / mixture.values[k].sqrt()
    distance = z.square().sum(1)
    assert stats.kstest(distance, stats.chi2(x.shape[1]).cdf).pvalue > 1e-4
    assert stats.kstest(z.flatten(), stats.norm.cdf).pvalue > 1e-4


@MIXTURES
def test_moments_are_those_of_samples(name, request, generator):
    """Compare every entry of mean and covariance with samples.

    Within 6 standard errors: at most 6e-7 false alarms for 16 dimensions.
    """
    mixture, n = request.getfixturevalue(name), 50_000
    x = mixture.sample(n, generator)
    centred = x - mixture.moments.mean
    products = centred[:, :, None] * centred[:, None]
    assert ((x.mean(0) - mixture.moments.mean).abs() < 6 * x.std(0) / math.sqrt(n)).all()
    error = (products.mean(0) - mixture.moments.covariance).abs()
    assert (error < 6 * products.std(0) / math.sqrt(n)).all()


@EACH
def test_moments_give_the_gaussian_of_the_marginal(sde, generator):
    """Compare the moments' density with p_t of a single Gaussian."""
    factor = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(1, 3), (factor @ factor.T + 0.1 * torch.eye(3))[None])
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    model = mixture.model(sde)
    for t in (0.2, 1.0):
        value = mixture.moments.log_prob(x, sde.alpha(t).item(), sde.sigma(t).item())
        torch.testing.assert_close(value, model.log_prob(x, t), rtol=1e-10, atol=1e-10)


def test_moments_of_data_of_any_rank(generator):
    for shape in ((200,), (200, 2), (200, 2, 3)):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        full, diagonal = Moments.of(x), Moments.of(x, diagonal=True)
        assert full.mean.shape == shape[1:]
        torch.testing.assert_close(full.covariance.diagonal(), diagonal.covariance)
        assert full.log_prob(x, 0.5, 1.0).shape == (200,)
        torch.testing.assert_close(full.std**2, diagonal.std**2)


def test_draws_follow_the_generator(mixture_2d):
    draws = [mixture_2d.sample(5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.5, 1.0), "means"),
        ((torch.zeros(0, 2), 1.0), "means"),
        ((torch.tensor([[math.nan, 0.0]]), 1.0), "means"),
        ((torch.zeros(2, 3), torch.ones(3)), "covariances"),
        ((torch.zeros(2, 3), torch.ones(2, 2)), "covariances"),
        ((torch.zeros(2, 3), torch.tensor([1.0, 0.0])), "covariances"),
        ((torch.zeros(2, 3), -1.0), "covariances"),
        ((torch.zeros(2, 3), math.nan), "covariances"),
        ((torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])), "covariances"),
        ((torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])), "covariances"),
        ((torch.zeros(1, 2), torch.full((1, 2, 2), math.nan)), "covariances"),
        ((torch.zeros(2, 3), 1.0, [1.0]), "weights"),
        ((torch.zeros(2, 3), 1.0, [1.0, 0.0]), "weights"),
        ((torch.zeros(2, 3), 1.0, [1.0, math.nan]), "weights"),
    ],
)
def test_bad_mixtures_are_refused(arguments, name):
    with pytest.raises(ArgumentError, match=f"`{name}` must be .*, got"):
        GaussianMixture(*arguments)


def test_bad_calls_are_refused(mixture_2d):
    with pytest.raises(ShapeError, match=r"`x` must be .*, got"):
        mixture_2d.log_prob(torch.zeros(4, 3))
    with pytest.raises(DTypeError, match=r"`x` must be .*, got"):
        mixture_2d.log_prob(torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"`t` must be .*, got"):
        mixture_2d.model(VPSDE())(torch.zeros(4, 2), torch.full((4, 1), 0.5))


def test_lengths_of_a_mixture():
    """Check narrow modes, heavy tails, and a direction narrow as a whole."""
    narrow = GaussianMixture([[-5.0, 0.0], [5.0, 0.0]], 0.02**2).data_scale
    assert narrow.finest == pytest.approx(0.02)
    tails = GaussianMixture([[0.0], [0.0]], [0.05**2, 5.0**2]).data_scale
    assert (tails.finest, tails.largest) == pytest.approx((0.05, 5.0))
    flat = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [[0.04, 1e-8], [0.04, 1e-8]]).data_scale
    assert (flat.finest, flat.least) == pytest.approx((0.2, 1e-4))
    turned = torch.linalg.qr(torch.randn(2, 2, generator=generator(), dtype=torch.float64))[0]
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64) @ turned
    covariance = turned.T @ torch.diag(torch.tensor([0.04, 1e-8], dtype=torch.float64)) @ turned
    assert GaussianMixture(means, covariance.expand(2, 2, 2)).data_scale.finest == pytest.approx(0.2)
    single = GaussianMixture([[1.0, 2.0]], [[4.0, 0.01]]).data_scale
    assert single.finest == single.largest == pytest.approx(2.0)
