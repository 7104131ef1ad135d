"""Variational bounds: the paper's loop, closed forms, tightness.

They are tight where the model is exact.
"""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import scoresde as S
from scoresde.errors import ArgumentError, DataError, DTypeError, NonFiniteError, ShapeError, UnknownNameError
from scoresde.likelihood import variational_bound
from scoresde.models.kernels import ddim_weight, discretised_gaussian, step_kl
from scoresde.random import spawn_generators
from tests.families import FAMILIES
from tests.generators import generator
from tests.marks import first_fast
from tests.reference import bound as reference

SDES = {
    "vp": S.VPSDE(),
    "subvp": S.SubVPSDE(),
    "ve": S.VESDE(),
    "cosine": S.VPSDE.cosine(),
    "flow": S.FlowSDE(),
    "ddpm": S.DDPM.linear(100),
    "ncsn": S.NCSN.geometric(0.01, 50.0, 60),
}
SHORT = S.DDPM([0.1, 0.3, 0.2, 0.5, 0.4, 0.6, 0.7])


def mixture(d=2, K=3):
    g = generator(3)
    return S.GaussianMixture(torch.randn(K, d, generator=g), 0.02 + 0.3 * torch.rand(K, d, generator=g))


class Learned(S.Model):
    """A model with variances: v = sigmoid(x + t), between beta~ and beta."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde, self.moments = inner, inner.sde, inner.moments

    def estimate(self, x, level, cond=None):
        return self.inner.estimate(x, level, cond)._replace(v=torch.sigmoid(x + level.t))


# ---- the terms -------------------------------------------------------------------------------------------------------


@first_fast("family", FAMILIES)
def test_P4_P5_a_step_is_a_divergence_of_gaussians(family):
    """Compare q(x_s | x_t, x_0) and the model's step by torch.distributions.

    For each variance and for times per sample.
    """
    sde, g = FAMILIES[family], generator()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    s = t - torch.tensor([0.15, 0.01, 0.3], dtype=torch.float64)
    x0, eps, error = (torch.randn(3, 2, 2, generator=g, dtype=torch.float64) for _ in range(3))
    eps_theta = eps + 0.3 * error
    level = sde.level(t, x0)
    x_t = level.alpha * x0 + level.sigma * eps
    x0_theta = x0 + level.sigma / level.alpha * (eps - eps_theta)
    for v in (0.0, 1.0, 0.3, torch.rand(x0.shape, generator=g, dtype=torch.float64)):
        mean, std = sde.posterior(x_t, x0, s, t)
        variance = sde.posterior_variance(torch.as_tensor(v, dtype=torch.float64).expand_as(x0), s, t)
        closed = kl_divergence(
            Normal(mean, std.expand_as(x0)), Normal(sde.posterior(x_t, x0_theta, s, t)[0], variance.sqrt())
        )
        torch.testing.assert_close(
            step_kl(sde, s, t, eps, eps_theta, v), closed.flatten(1).sum(1), rtol=1e-8, atol=1e-8
        )
    one = step_kl(sde, s[1].item(), t[1].item(), eps, eps_theta)
    torch.testing.assert_close(one[1], step_kl(sde, s, t, eps, eps_theta)[1], rtol=1e-9, atol=1e-9)


def test_P5_a_step_is_a_weighted_noise_error():
    """Compare with the paper's coefficient for s_i^2 = beta_i and beta~_i.

    beta_i^2/(2 s_i^2 (1-beta_i)(1-abar_i))
    """
    i, eps = 4, torch.randn(1, 5, generator=generator(), dtype=torch.float64)
    beta, abar = SHORT.betas[i - 1], SHORT.alphas_bar
    small = beta * (1 - abar[i - 2]) / (1 - abar[i - 1])
    for v, s2 in ((0.0, small), (1.0, beta)):
        terms = step_kl(SHORT, SHORT.time(i - 1), SHORT.time(i), eps, 0.5 * eps, v)
        constant = step_kl(SHORT, SHORT.time(i - 1), SHORT.time(i), eps, eps, v)
        weight = beta**2 / (2 * s2 * (1 - beta) * (1 - abar[i - 1]))
        torch.testing.assert_close(terms - constant, weight * (0.5 * eps).square().sum(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", ["vp", "subvp", "ve", "vp-cosine", "flow", "ddpm", "ncsn"])
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_D4_every_eta_has_a_weighted_noise_error(family, eta):
    """Check theorem 1.

    KL(q_eta(x_s | x_t, x_0) || q_eta(x_s | x_t, x0_theta)) = gamma |eps - eps_theta|^2
    """
    sde, (s, t) = FAMILIES[family], (0.3, 0.5)
    x0, eps, eps_theta = torch.randn(3, 4, 3, generator=generator(), dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x_t = alpha * x0 + sigma * eps
    (mean, std), (mean_theta, _) = (
        sde.posterior(x_t, data, s, t, eta) for data in (x0, x0 + sigma / alpha * (eps - eps_theta))
    )
    closed = ((mean - mean_theta) ** 2 / (2 * std**2)).sum(1)
    gamma = ddim_weight(sde, s, t, eta)
    torch.testing.assert_close(gamma * (eps - eps_theta).square().sum(1), closed, rtol=1e-7, atol=0)
    if eta == 1.0:
        torch.testing.assert_close(step_kl(sde, s, t, eps, eps_theta), closed, rtol=1e-7, atol=0)


def test_P4_masses_of_the_bins():
    """Check that the masses sum to 1 over the bins.

    They equal differences of the cdf and are accurate far from the mean.
    """
    K = 16
    scaling, raw = S.data.Scaling.for_integers(K), torch.arange(K)[:, None]
    for mean, std in ((0.1, 0.2), (-0.9, 0.03), (3.0, 0.5)):
        nll = discretised_gaussian(raw, torch.full((K, 1), mean, dtype=torch.float64), std, scaling)
        assert torch.exp(-nll).sum().item() == pytest.approx(1, abs=1e-12)
        with np.errstate(divide="ignore"):
            exact = reference.discretised_log_likelihood(raw[:, 0].numpy(), mean, std**2, K)
        near = exact > -30  # where differences of cdfs do not cancel
        np.testing.assert_allclose(-nll.numpy()[near], exact[near], rtol=0, atol=1e-3)
        np.testing.assert_allclose(-nll.numpy()[exact > -8], exact[exact > -8], rtol=0, atol=1e-10)
    # a bin from 999.95 to 1000.05 standard deviations away: all its mass is at the near edge
    scaling = S.data.Scaling(1e-4, 0.0, 2**14)
    mean = scaling.bin_centres(torch.tensor([[5000]]), torch.float64) - 1.0
    tail = 0.5 * 999.95**2 + 0.5 * math.log(2 * math.pi) + math.log(999.95)
    assert discretised_gaussian(torch.tensor([[5000]]), mean, 1e-3, scaling).item() == pytest.approx(tail, abs=1e-4)
    mean = torch.full((K, 1), 0.3, dtype=torch.float64, requires_grad=True)
    discretised_gaussian(raw, mean, 0.01, S.data.Scaling.for_integers(K)).sum().backward()
    assert mean.grad.isfinite().all()


# ---- the discrete bound ----------------------------------------------------------------------------------------------


@first_fast("variance", ["posterior", "forward", "learned"])
def test_P4_terms_are_the_papers_loop(variance):
    """Compare each L_{i-1}, L_0 and L_T with NumPy's loop over the levels.

    Two draws are averaged, with the same noise.
    """
    K, T = 8, SHORT.N
    gm = mixture(d=3)
    model = Learned(gm.model(SHORT)) if variance == "learned" else gm.model(SHORT)
    raw = torch.randint(0, K, (2, 3), generator=generator())
    scaling = S.data.Scaling.for_integers(K)
    settings = {"control": False, "prior": "sde", "variance": None if variance == "learned" else variance}
    result = variational_bound(model.double(), raw, scaling=scaling, generator=generator(5), **settings)
    assert (result.variance, result.kind, result.decoder, result.calls) == (variance, "discrete", "discretised", 2 * T)

    def noise_model(x, i):
        return model(torch.from_numpy(np.float64(x))[None], SHORT.time(i)).eps[0].numpy()

    def exponent(x, i):
        if variance != "learned":
            return {"posterior": 0.0, "forward": 1.0}[variance]
        return model(torch.from_numpy(np.float64(x))[None], SHORT.time(i)).v[0].numpy()

    for b, g in enumerate(spawn_generators(generator(5), 2)):
        torch.rand((T - 1, 2), generator=g, dtype=torch.float64)
        levels = [*range(2, T + 1), 1]
        draws = torch.stack([torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in levels]).numpy()
        draws = torch.from_numpy(draws)
        loops = []
        for k in range(2):
            noises = {i: draws[j, k].numpy() for j, i in enumerate(levels)}
            loops.append(reference.terms(raw[b].numpy(), K, noise_model, exponent, SHORT.betas.numpy(), noises))
        L_T, steps, L_0 = (np.mean([np.float64(loop[j]) for loop in loops], axis=0) for j in range(3))
        assert result.prior[b].item() == pytest.approx(float(L_T), abs=1e-10)
        np.testing.assert_allclose(result.diffusion[b].numpy(), steps, rtol=1e-9)
        assert result.reconstruction[b].item() == pytest.approx(float(L_0), rel=1e-9)
        spread = [np.sum(np.float64(loop[1])) + np.float64(loop[2]) for loop in loops]
        assert result.bound[b].item() == pytest.approx(np.mean(spread) + float(L_T), rel=1e-9)


def test_P4_is_tight_for_white_data():
    """Check that the bound is -log p(x_0) at each point for x_0 ~ N(0, I).

    Under VP every step back is N(., beta) exactly.
    """
    white = S.GaussianMixture(torch.zeros(1, 4), 1.0)
    x = white.sample(5, generator())
    result = variational_bound(white.model(SHORT), x, variance="forward", generator=generator())
    torch.testing.assert_close(result.bound, -white.log_prob(x), rtol=0, atol=1e-9)
    assert result.stderr.max() < 1e-9
    assert (result.unit, result.diffusion.shape) == ("nats", (5, 6))
    assert (variational_bound(white.model(SHORT), x, generator=generator()).bound > -white.log_prob(x) + 0.1).all()


@first_fast("control", [True, False])
@first_fast("variance", ["posterior", "forward"])
@first_fast("sde", [SHORT, S.NCSN([0.1, 0.4, 1.0, 3.0])], ids=["ddpm", "ncsn"])
def test_P4_on_gaussian_data_is_the_closed_form(sde, variance, control):
    """Compare with E of each KL by hand, for N(m, c) and the exact score.

    Without control variate the mean over 200 equal items is within 4.5 standard errors (false alarm 7e-6 each of 4).
    The bound holds for the chain's own density, which is Gaussian.
    """
    m, c, x0 = 0.5, 0.3, 1.2
    gm = S.GaussianMixture([[m]], c)
    items = torch.full((1 if control else 200, 1), x0, dtype=torch.float64)
    result = variational_bound(
        gm.model(sde), items, variance=variance, control=control, prior="sde", generator=generator(1)
    )
    alpha, sigma2 = sde.alpha(sde.times), sde.sigma(sde.times) ** 2
    total = alpha**2 * c + sigma2
    # x0 - x0_theta = A (x0 - m) - B eps
    A, B = sigma2 / total, alpha * c * sigma2.sqrt() / total
    square = (A * (x0 - m)) ** 2 + B**2
    prior = kl_divergence(
        Normal(alpha[-1] * x0, sigma2[-1].sqrt()), Normal(torch.zeros(()), torch.tensor(sde.prior_std))
    ).item()
    expected, density = [], (0.0, sde.prior_std**2)
    for i in range(len(sde.times) - 1, 0, -1):
        s, t = sde.times[i - 1].item(), sde.times[i].item()
        c_x0, c_eps, std = (v.item() for v in sde.posterior_coefficients(s, t))
        s2 = std**2 if variance == "posterior" else sde.transition(s, t)[1].item() ** 2
        slope = c_x0 - c_eps * alpha[i] / sigma2[i].sqrt()  # d mean / d x0 at fixed x_t
        kl = 0.5 * (math.log(s2 / std**2) + std**2 / s2 - 1 + slope**2 * square[i] / s2)
        expected.append(kl.item())
        mean_x0 = (m * A[i], alpha[i] * c / total[i])  # x0_theta = first + second x_t
        eps = (-alpha[i] * mean_x0[0] / sigma2[i].sqrt(), (1 - alpha[i] * mean_x0[1]) / sigma2[i].sqrt())
        shift, gain = (c_x0 * mean_x0[k] + c_eps * eps[k] for k in range(2))
        density = (shift + gain * density[0], gain**2 * density[1] + s2)
    beta1 = sigma2[0].item()
    last = beta1 if variance == "forward" else sde.posterior_coefficients(*sde.times[:2].tolist())[2].item() ** 2
    decoder = 0.5 * math.log(2 * math.pi * last) + 0.5 * square[0].item() / last
    gain = alpha[0] * c / total[0]
    density = (m * A[0] + gain * density[0], gain**2 * density[1] + last)
    exact = prior + sum(expected) + decoder
    chain = -Normal(density[0], density[1].sqrt()).log_prob(torch.tensor(x0, dtype=torch.float64)).item()
    assert exact > chain
    if control:
        torch.testing.assert_close(
            result.diffusion[0], torch.tensor(expected[::-1], dtype=torch.float64), rtol=1e-9, atol=1e-12
        )
        assert result.bound.item() == pytest.approx(exact, abs=1e-9)
    else:
        assert abs(result.mean - exact) < 4.5 * result.mean_stderr
        assert result.stderr.square().mean().sqrt().item() / result.bound.std().item() == pytest.approx(1, abs=0.25)


@pytest.mark.slow
def test_P4_bounds_the_probability_of_integers():
    """Compare the bound with -log P of a distribution on 8 values.

    With the exact score it lies 0 to .15 nats above on average (false alarm 7e-6).
    """
    K, g = 8, generator()
    P = torch.tensor([0.3, 0.05, 0.1, 0.2, 0.05, 0.1, 0.15, 0.05], dtype=torch.float64)
    scaling = S.data.Scaling.for_integers(K)
    centres = scaling.bin_centres(torch.arange(K)[:, None], torch.float64)
    model = S.GaussianMixture(centres, 1e-6, P).model(S.DDPM.linear(1000))
    raw = torch.multinomial(P, 400, replacement=True, generator=g)[:, None]
    result = variational_bound(model, raw, scaling=scaling, levels=40, generator=g)
    gap = result.bound + P.log()[raw[:, 0]]
    assert result.unit == "bits/dim"
    assert result.mean == pytest.approx(result.bits.mean().item())
    stderr = gap.std().item() / 20
    assert -4.5 * stderr < gap.mean().item() < 0.15 + 4.5 * stderr


@pytest.mark.slow
def test_P4_levels_drawn_and_all_agree():
    """Compare 8 of 60 levels in 4 strata with all 60.

    They agree within 4.5 standard errors (false alarm 7e-6).
    """
    gm = mixture()
    x, model = gm.sample(60, generator()), gm.model(S.DDPM.linear(60))
    every = variational_bound(model, x, generator=generator(1))
    for control in (True, False):
        drawn = variational_bound(model, x, levels=8, control=control, generator=generator(2))
        assert (drawn.diffusion.shape, drawn.calls) == ((60, 4), 10)
        difference = drawn.bound - every.bound
        stderr = (drawn.stderr.square() + every.stderr.square()).sum().sqrt() / 60
        assert abs(difference.mean()) < 4.5 * stderr


# ---- the continuous bound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES)
def test_E12_is_minus_log_p_of_a_gaussian(sde):
    """Compare with -log p(x_0) at each point for the exact model of N(m, C).

    C is full; there is no noise.
    """
    root = torch.randn(3, 3, generator=generator(), dtype=torch.float64)
    gm = S.GaussianMixture([[1.0, 0.0, -2.0]], (0.2 * root @ root.T + 0.05 * torch.eye(3))[None])
    x = gm.sample(6, generator(1))
    result = variational_bound(gm.model(SDES[sde]), x, levels=6, continuous=True, generator=generator(2))
    torch.testing.assert_close(result.bound, -gm.log_prob(x), rtol=0, atol=1e-5)
    assert result.stderr.max() < 1e-9
    assert (result.kind, result.variance, result.diffusion.shape) == ("continuous", None, (6, 3))


@first_fast("control", [True, False])
@first_fast("sde", ["vp", "subvp", "ve", "cosine", "flow"])
def test_E12_is_tight_for_the_exact_score(sde, control):
    """Compare the mean of bound + log p with 0.

    120 points with 32 levels each: it is within 4.5 standard errors (false alarm 7e-6).
    """
    gm = mixture()
    x = gm.sample(120, generator())
    result = variational_bound(gm.model(SDES[sde]), x, levels=32, control=control, generator=generator(1))
    gap = result.bound + gm.log_prob(x)
    assert abs(gap.mean()) < 4.5 * gap.std() / math.sqrt(120)
    assert gap.std() / math.sqrt(120) < (0.2 if control else 0.4)
    assert 0.75 < result.stderr.square().mean().sqrt() / gap.std() < 1.33


def test_E12_is_above_minus_log_p_for_a_wrong_score():
    """Evaluate the score of another mixture.

    The bound is above -log p of the data by more than the noise.
    """
    gm = mixture()
    x = gm.sample(200, generator())
    wrong = S.GaussianMixture(gm.means + 0.3, gm.values).model(S.VPSDE())
    gap = variational_bound(wrong, x, levels=16, generator=generator(1)).bound + gm.log_prob(x)
    assert gap.mean() > 6 * gap.std() / math.sqrt(200)


def test_the_control_variate_cuts_the_variance():
    """Check that less than a third of the variance is left.

    On a mixture in 16 dimensions.
    """
    gm = mixture(d=16)
    x, model = gm.sample(60, generator()), gm.model(S.VPSDE())
    with_it, without = (
        variational_bound(model, x, levels=16, control=control, generator=generator()).stderr.square().mean()
        for control in (True, False)
    )
    assert with_it < without / 3


@pytest.mark.slow
def test_no_control_variate_where_the_bins_show():
    """Check the exact score of bin centres, not Gaussian at low noise.

    The control variate still cuts the variance.
    """
    P = torch.tensor([0.3, 0.05, 0.1, 0.2, 0.05, 0.1, 0.15, 0.05], dtype=torch.float64)
    scaling = S.data.Scaling.for_integers(8)
    raw = torch.multinomial(P, 200, replacement=True, generator=generator())[:, None]
    centres = scaling.bin_centres(torch.arange(8)[:, None], torch.float64)
    model = S.GaussianMixture(centres, 1e-6, P).model(S.DDPM.linear(1000))
    with_it, without = (
        variational_bound(model, raw, scaling=scaling, levels=20, control=control, generator=generator(1))
        for control in (True, False)
    )
    assert with_it.stderr.square().mean() < 0.8 * without.stderr.square().mean()


def test_E12_of_integers_is_that_of_dequantised_data():
    """Compare with E_u[-log p(x)] - n log(scale) over uniform noise.

    For Gaussian data, in closed form, without noise.
    """
    K, c = 17, 0.2
    gm = S.GaussianMixture(torch.full((1, 1, 2, 2), 0.1), c)
    raw, scaling = torch.randint(0, K, (4, 1, 2, 2), generator=generator()), S.data.Scaling.for_integers(K)
    result = variational_bound(gm.model(S.VPSDE()), raw, scaling=scaling, levels=4, generator=generator())
    z2 = (scaling.bin_centres(raw, torch.float64) - 0.1) ** 2 + (2 / K) ** 2 / 12
    closed = (0.5 * z2 / c + 0.5 * math.log(2 * math.pi * c) - math.log(2 / K)).flatten(1).sum(1)
    torch.testing.assert_close(result.bound, closed, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.bits, closed / (4 * math.log(2)), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_E12_bounds_integers_from_bin_centres():
    """Compare with -log P plus the 0.3 % cut off.

    The score is that of a distribution on 8 values, exactly, from the t_min of TruncatedNormal.
    """
    P = torch.tensor([0.3, 0.05, 0.1, 0.2, 0.05, 0.1, 0.15, 0.05], dtype=torch.float64)
    scaling, g = S.data.Scaling.for_integers(8), generator()
    centres = scaling.bin_centres(torch.arange(8)[:, None], torch.float64)
    model = S.GaussianMixture(centres, 1e-6, P).model(S.VPSDE())
    raw = torch.multinomial(P, 400, replacement=True, generator=g)[:, None]
    result = variational_bound(model, raw, scaling=scaling, reconstruction="discretised", levels=32, generator=g)
    assert model.sde.log_snr(result.t_min).item() == pytest.approx(2 * math.log(3 * 8), rel=1e-6)
    gap = result.bound + P.log()[raw[:, 0]]
    assert -4.5 * gap.std() / 20 < gap.mean() < 0.02 + 4.5 * gap.std() / 20


def test_the_priors_term_is_a_divergence_of_gaussians():
    """Compare L_T with torch.distributions.

    The priors are N(0, prior_std^2 I) and the matched Gaussian.
    """
    gm = S.GaussianMixture([[3.0, 0.0]], [[0.1, 2.0]])
    sde, x = S.VESDE(sigma_max=5.0), gm.sample(3, generator())
    for prior, mean, variance in (("sde", 0.0, 25.0), ("matched", gm.means, gm.values + 25.0)):
        closed = kl_divergence(Normal(x, 5.0), Normal(mean, torch.as_tensor(variance).sqrt())).sum(1)
        result = variational_bound(gm.model(sde), x, prior=prior, levels=2)
        torch.testing.assert_close(result.prior, closed, rtol=1e-9, atol=1e-12)


def test_the_gaussians_terms_are_its_models():
    """Compare |eps - eps_G|^2, its mean and its integral with a model's.

    The model is the exact one of the Gaussian.
    """
    gm = S.GaussianMixture([[1.0, -1.0]], [[[0.5, 0.2], [0.2, 0.3]]])
    sde = S.VPSDE()
    gaussian = gm.moments.gaussian(torch.empty(0, dtype=torch.float64))
    x0, eps = torch.randn(2, 5, 2, generator=generator(), dtype=torch.float64)
    level = sde.level(0.3, x0)
    estimate = gm.model(sde).estimate(level.alpha * x0 + level.sigma * eps, level)
    snr = torch.tensor(level.log_snr, dtype=torch.float64).exp()
    torch.testing.assert_close(gaussian.noise_error(snr, x0, eps), (eps - estimate.eps).square().sum(1))
    z2 = gaussian.centre(x0).square()
    many = torch.randn(200_000, 2, generator=generator(), dtype=torch.float64)
    errors = gaussian.noise_error(snr, x0[:1].expand(200_000, -1), many)
    assert abs(errors.mean() - gaussian.mean_noise_error(snr.item(), z2)[0]) < 4.5 * errors.std() / math.sqrt(200_000)
    h, at = 1e-4, level.log_snr
    slope = gaussian.integrated_noise_error(math.exp(at + h), z2) - gaussian.integrated_noise_error(
        math.exp(at - h), z2
    )
    torch.testing.assert_close(slope / (2 * h), gaussian.mean_noise_error(snr.item(), z2), rtol=1e-6, atol=0)


# ---- results and refusals --------------------------------------------------------------------------------------------


@first_fast("continuous", [True, None])
def test_bounds_are_independent_of_the_batch(continuous):
    gm = mixture()
    x, model = gm.sample(7, generator()), gm.model(S.DDPM.cosine(20))
    whole, some = (
        variational_bound(model, x, levels=6, continuous=continuous, batch=batch, generator=generator(4))
        for batch in (7, 3)
    )
    torch.testing.assert_close(some.bound, whole.bound, rtol=0, atol=1e-9)
    again, other = (
        variational_bound(model, x, levels=6, continuous=continuous, generator=generator(seed)) for seed in (4, 5)
    )
    assert torch.equal(again.bound, whole.bound)
    assert not torch.equal(other.bound, whole.bound)
    assert again.seed == 4


def test_the_terms_add_up_and_are_stated():
    gm, seen = mixture(), []
    x = gm.sample(5, generator())
    result = variational_bound(
        gm.model(S.VPSDE()),
        x,
        levels=4,
        generator=generator(),
        batch=2,
        callback=lambda done, n: seen.append((done, n)),
    )
    torch.testing.assert_close(result.prior + result.diffusion.sum(1) + result.reconstruction, result.bound)
    assert sum(mean for mean, _ in result.terms().values()) == pytest.approx(result.mean)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert "nats" in str(result)
    assert "6 calls" in str(result)
    assert result.log_snr.tolist() == sorted(result.log_snr.tolist(), reverse=True)


def test_conditions_and_learned_variances():
    """Evaluate a float32 U-Net with classes, variances and 17 grey values.

    The bits are finite, and the learned variance is the default.
    """
    net = S.UNet((1, 8, 8), channels=8, multipliers=(1,), attention=(), classes=3, out_channels=2)
    model = S.ScoreModel(
        net, S.DDPM.cosine(6), learned_variance=True, scaling=S.data.Scaling.for_integers(17), time_input="ddpm"
    )
    images = torch.randint(0, 17, (3, 1, 8, 8), generator=generator())
    cond = {"y": torch.tensor([0, 1, 2])}
    result = variational_bound(model, images, cond=cond, generator=generator(), batch=2)
    assert result.variance == "learned"
    assert result.bits.isfinite().all()
    assert (result.diffusion.shape, result.calls) == ((3, 5), 12)


def test_bad_input_is_refused_and_named():
    gm = mixture()
    model, x = gm.model(S.VPSDE()), gm.sample(3, generator())
    images, scaling = torch.tensor([[0, 3], [5, 8], [1, 7]]), S.data.Scaling.for_integers(9)
    with pytest.raises(ArgumentError, match=r"`levels` must be .*, got 3"):
        variational_bound(model, x, levels=3)
    with pytest.raises(ArgumentError, match="continuous"):
        variational_bound(model, x, continuous=False)
    with pytest.raises(ArgumentError, match="t_min, t_max"):
        variational_bound(gm.model(SHORT), x, t_min=0.1)
    with pytest.raises(ArgumentError, match="sigma"):
        variational_bound(model, x, t_min=0.0)
    with pytest.raises(ArgumentError, match="alpha"):
        variational_bound(gm.model(S.FlowSDE()), x, t_max=1.0)
    with pytest.raises(ArgumentError, match="no learned variances"):
        variational_bound(gm.model(SHORT), x, variance="learned")
    with pytest.raises(ArgumentError, match="reconstruction"):
        variational_bound(model, x, reconstruction="discretised")
    with pytest.raises(ArgumentError, match="scaling"):
        variational_bound(model, images)
    with pytest.raises(DataError, match=r"`images` must be integers 0\.\.8, got values"):
        variational_bound(model, images + 1, scaling=scaling)
    with pytest.raises(ShapeError, match="x0"):
        variational_bound(model, torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="images"):
        variational_bound(model, torch.zeros(3, 4, dtype=torch.uint8), scaling=scaling)
    with pytest.raises(UnknownNameError, match="did you mean 'forward'"):
        variational_bound(gm.model(SHORT), x, variance="forwards")
    with pytest.raises(UnknownNameError, match="prior"):
        variational_bound(model, x, prior="gaussian")
    with pytest.raises(UnknownNameError, match="reconstruction"):
        variational_bound(model, x, reconstruction="discrete")
    with pytest.raises(NonFiniteError, match=r"\(1\)"):
        variational_bound(model, torch.where(torch.arange(3)[:, None] == 1, torch.nan, x))
    with pytest.raises(DTypeError, match="x0"):
        variational_bound(model, x.to(torch.complex64))
    with pytest.raises(ArgumentError, match="eta"):
        ddim_weight(S.VPSDE(), 0.1, 0.2, eta=0.0)
    with pytest.raises(ArgumentError, match="eta"):
        ddim_weight(S.VPSDE(), 0.1, 0.9, eta=1.5)


def test_a_chain_of_one_level():
    """Go from x_0 ~ N(0, I) to x_1 ~ N(0, I) and back.

    The bound is tight with drawn levels and with all. It has no steps.
    """
    white = S.GaussianMixture(torch.zeros(1, 2), 1.0)
    x = white.sample(3, generator())
    for levels in (None, 4):
        result = variational_bound(white.model(S.DDPM([0.9])), x, levels=levels, generator=generator())
        torch.testing.assert_close(result.bound, -white.log_prob(x), rtol=0, atol=1e-9)
        assert (result.diffusion.shape, result.calls) == ((3, 0), 2)


def test_the_model_is_evaluated_in_evaluation_mode():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, time_input):
            return self.net(x)

    model = S.ScoreModel(Net(), S.VPSDE())
    x = torch.randn(4, 2, generator=generator())
    first, again = (variational_bound(model, x, levels=4, generator=generator(1)).bound for _ in range(2))
    assert torch.equal(first, again)
    assert model.training
    assert net.training
