"""Algebra, derivatives and laws of every forward process.

Statements for all inputs are property-based.
"""

import copy
import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from scoresde import DDPM, NCSN, VESDE, VPSDE, FlowSDE, ScoreModel, SubVPSDE
from scoresde import sde as package
from scoresde.errors import ArgumentError
from scoresde.sampling import EulerMaruyama
from scoresde.sde import build_sde, schedules, time_grid
from scoresde.sde.schedules import (
    AnyRate,
    CosineRate,
    GeometricNoise,
    LinearNoise,
    LinearRate,
    PiecewiseNoise,
    PiecewiseRate,
)
from tests.families import DISCRETE, EACH, FAMILIES, SMOOTH
from tests.marks import first_fast
from tests.reference import song_sde

names = st.sampled_from(sorted(FAMILIES))
times = st.floats(0.0, 1.0)
SHAPES = [(6,), (6, 2), (6, 5, 7), (6, 3, 8, 8), (6, 1, 4, 4, 4)]
PAPER = {"vp": (VPSDE(), song_sde.VP()), "subvp": (SubVPSDE(), song_sde.SubVP()), "ve": (VESDE(), song_sde.VE())}


def inside(sde, n=50, low=1e-3, high=0.97):
    """Return times away from both ends and from a piecewise process's corners."""
    t = torch.linspace(low, high, n, dtype=torch.float64)
    N = 1 if sde.times is None else len(sde.times)
    return (torch.floor(t * N) + 0.3 + 0.4 * (t * N).frac()) / N if N > 1 else t


def slope(function, t, N=1):
    """Return the derivative by central differences of fourth order."""
    h = 1e-3 * t.clamp(max=0.1) * (1 - t) / N
    near, far = (function(t + k * h) - function(t - k * h) for k in (1, 2))
    return (8 * near - far) / (12 * h)


# ---- E1: coefficients and laws --------------------------------------------------------------------------------------


@EACH
def test_E1_drift_and_diffusion_are_derivatives(sde):
    """Compare f = alpha'/alpha and g^2 = (sigma^2)' - 2 f sigma^2.

    By finite differences and by automatic differentiation.
    """
    t = inside(sde)
    N = 1 if sde.times is None else len(sde.times)
    f, g2 = sde.drift(torch.ones(len(t), 3, dtype=t.dtype), t)[:, 1], sde.diffusion(t) ** 2
    torch.testing.assert_close(f, slope(sde.alpha, t, N) / sde.alpha(t), rtol=1e-6, atol=1e-6)
    finite = slope(lambda t: sde.sigma(t) ** 2, t, N) - 2 * f * sde.sigma(t) ** 2
    torch.testing.assert_close(g2, finite, rtol=1e-5, atol=1e-6)

    t = t.requires_grad_()
    log_alpha_rate = _grad(sde.log_alpha(t), t)
    variance_rate = _grad(sde.sigma(t) ** 2, t)
    torch.testing.assert_close(f, log_alpha_rate, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(g2, variance_rate - 2 * log_alpha_rate * sde.sigma(t).detach() ** 2, rtol=1e-9, atol=0)


def _grad(value, t):
    return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


@first_fast("name", ["vp", "vp-cosine", "subvp", "ve-linear", "flow", "user", "ddpm-short", "ncsn-short"])
def test_E1_euler_maruyama_forward_has_the_moments(name, generator):
    """Simulate dx = f dt + g dW from one point, 400 steps to t = 0.6.

    Mean and variance of 10 000 paths at 6 standard errors (4e-9 false alarms per case) and 1 % for the steps.
    """
    sde, n, steps, x_0 = FAMILIES[name], 10_000, 400, 0.8
    x = torch.full((n, 1), x_0, dtype=torch.float64)
    grid = 0.6 * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if name == "ve":
        x = x + sde.sigma(0.0) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    for t, h in zip((grid[:-1] + grid[1:]) / 2, grid.diff(), strict=True):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + sde.drift(x, t) * h + sde.diffusion(t) * h.sqrt() * z
    alpha, sigma = sde.alpha(0.6).item(), sde.sigma(0.6).item()
    assert abs(x.mean().item() - alpha * x_0) < 6 * sigma / math.sqrt(n) + 0.01 * alpha * x_0
    assert abs(x.var().item() / sigma**2 - 1) < 6 * math.sqrt(2 / n) + 0.01


@EACH
def test_E1_transitions_have_the_law_of_one_perturbation(sde, generator):
    """Compare nine uneven transitions with p(x_t | x_0).

    Means and variances at 6 standard errors: 4e-9 false alarms each.
    """
    n, x_0, t = 40_000, 0.8, [0.0, 0.013, 0.02, 0.1, 0.3, 0.31, 0.5, 0.7, 0.93, 1.0]
    x = x_0 + sde.sigma(0.0) * torch.randn(n, generator=generator, dtype=torch.float64)
    for a, b in itertools.pairwise(t):
        scale, std = sde.transition(a, b)
        x = scale * x + std * torch.randn(n, generator=generator, dtype=torch.float64)
    direct, eps = sde.perturb(torch.full((n,), x_0, dtype=torch.float64), 1.0, generator)
    alpha, sigma = sde.alpha(1.0).item(), sde.sigma(1.0).item()
    for law in (x, direct):
        assert abs(law.mean().item() - alpha * x_0) < 6 * sigma / math.sqrt(n)
        assert abs(law.var().item() / sigma**2 - 1) < 6 * math.sqrt(2 / n)
    torch.testing.assert_close(direct, alpha * x_0 + sigma * eps)


@pytest.mark.slow
@given(name=names, t=st.tuples(times, times, times))
def test_E1_transitions_compose(name, t):
    """Check Chapman-Kolmogorov.

    p(x_t | x_r) is the convolution of p(x_t | x_s) and p(x_s | x_r).
    """
    sde, (r, s, t) = FAMILIES[name], sorted(t)
    assume(r + 1e-9 < s and s + 1e-9 < t)
    (a, b), (c, d), (whole, std) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
    torch.testing.assert_close(whole, a * c, rtol=1e-10, atol=1e-300)
    torch.testing.assert_close(std**2, (c * b) ** 2 + d**2, rtol=1e-10, atol=1e-300)


@pytest.mark.slow
@given(name=names, t=st.tuples(times, times))
def test_E1_marginals_compose(name, t):
    """Compare p(x_t | x_0) with the same law through x_s.

    alpha_t = alpha_{t|s} alpha_s, sigma_t^2 = alpha_{t|s}^2 sigma_s^2 + sigma_{t|s}^2
    """
    sde, (s, t) = FAMILIES[name], sorted(t)
    assume(s + 1e-9 < t)
    scale, std = sde.transition(s, t)
    torch.testing.assert_close(sde.alpha(t), scale * sde.alpha(s), rtol=1e-10, atol=1e-300)
    torch.testing.assert_close(sde.sigma(t) ** 2, (scale * sde.sigma(s)) ** 2 + std**2, rtol=1e-10, atol=1e-300)


@pytest.mark.slow
@given(name=names, t=st.tuples(times, times), eta=st.floats(0.0, 1.0))
def test_D1_every_eta_keeps_every_marginal(name, t, eta):
    sde, (s, t) = FAMILIES[name], sorted(t)
    assume(s + 1e-9 < t)
    c_x0, c_eps, std = sde.posterior_coefficients(s, t, eta)
    assert c_x0 == sde.alpha(s)
    torch.testing.assert_close(c_eps**2 + std**2, sde.sigma(s) ** 2, rtol=1e-9, atol=1e-300)
    assert sde.posterior_coefficients(s, t, 0.0)[2] == 0


@EACH
@pytest.mark.parametrize("eta", [0.3, 0.8, 1.0])
def test_D7_the_forward_step_is_bayes_rule(sde, eta):
    """Multiply both orders of the joint law of x_s and x_t given x_0."""
    s, t, x0 = 0.3, 0.6, torch.tensor([[0.7]], dtype=torch.float64)
    c_x0, k, std = sde.forward_coefficients(s, t, eta)
    for x_s, x_t in ((0.1, 0.5), (-1.0, 0.4), (2.0, 1.7)):
        x_s, x_t = (torch.tensor([[v]], dtype=torch.float64) for v in (x_s, x_t))
        normal = torch.distributions.Normal
        forward = normal(c_x0 * x0 + k * x_s, std).log_prob(x_t) + normal(sde.alpha(s) * x0, sde.sigma(s)).log_prob(x_s)
        backward = normal(*sde.posterior(x_t, x0, s, t, eta)).log_prob(x_s)
        backward = backward + normal(sde.alpha(t) * x0, sde.sigma(t)).log_prob(x_t)
        torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-9)


@EACH
def test_D7_only_eta_one_is_markov(sde):
    alpha_ts, sigma_ts = sde.transition(0.3, 0.6)
    c_x0, k, std = sde.forward_coefficients(0.3, 0.6, 1.0)
    torch.testing.assert_close(
        torch.stack([c_x0, k, std]), torch.stack([0 * k, alpha_ts, sigma_ts]), rtol=1e-9, atol=1e-12
    )
    weights = [sde.forward_coefficients(0.3, 0.6, eta)[0].abs().item() for eta in (0.9, 0.5, 0.0)]
    assert 1e-3 < weights[0] < weights[1] < weights[2]
    with pytest.raises(ArgumentError, match="noise"):
        VPSDE().forward_coefficients(0.0, 0.5)


@EACH
@first_fast(("s", "t"), [(0.05, 0.2), (0.3, 0.45), (0.1, 0.95), (0.4, 1.0)])
def test_P3_posterior_is_bayes_rule_by_quadrature(sde, s, t):
    """Normalise p(x_t | x_s) p(x_s | x_0) on a grid.

    It is p(x_s | x_t, x_0).
    """
    x_0, (scale, std) = 0.7, (v.item() for v in sde.transition(s, t))
    x_t = (sde.alpha(t) * x_0 + 1.3 * sde.sigma(t)).item()
    prior = sde.alpha(s).item() * x_0, sde.sigma(s).item()
    both = torch.tensor([[x_t], [x_0]], dtype=torch.float64)
    mean, deviation = sde.posterior(*both, s, t)
    width = 12 * deviation.item()
    x = np.linspace(mean.item() - width, mean.item() + width, 40_001)
    log_density = -0.5 * ((x_t - scale * x) / std) ** 2 - 0.5 * ((x - prior[0]) / prior[1]) ** 2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    expected = (density * x).sum()
    assert mean.item() == pytest.approx(expected, rel=1e-8, abs=1e-8)
    assert deviation.item() == pytest.approx(math.sqrt((density * (x - expected) ** 2).sum()), rel=1e-6)


@pytest.mark.parametrize("name", PAPER)
def test_E1_E3_E4_E5_marginals_and_coefficients_are_the_papers(name):
    sde, paper = PAPER[name]
    for t in (1e-3, 0.02, 0.3, 0.7, 1.0):
        alpha, sigma = paper.marginal(t)
        f, g = paper.coefficients(t)
        assert sde.alpha(t).item() == pytest.approx(alpha, rel=1e-12)
        assert sde.sigma(t).item() == pytest.approx(sigma, rel=1e-9)
        assert sde.drift(torch.ones(1).double(), t).item() == pytest.approx(f, rel=1e-12)
        assert sde.diffusion(t).item() == pytest.approx(g, rel=1e-9)


@pytest.mark.parametrize(
    "sde",
    [SubVPSDE(), SubVPSDE.cosine(), SubVPSDE.from_beta(lambda t: 1 + t)],
    ids=["linear", "cosine", "any rate"],
)
def test_E5_sub_vp(sde):
    """Check the definition of sub-VP.

    g^2 = beta (1 - exp(-2B)), f as in VP, sigma = 1 - alpha^2 and never above VP's sigma.
    """
    vp = VPSDE(schedule=sde.schedule)
    t = torch.linspace(0.001, 0.99, 60, dtype=torch.float64)
    integral = -2 * sde.log_alpha(t)
    torch.testing.assert_close(sde.diffusion(t) ** 2, sde.beta(t) * (1 - torch.exp(-2 * integral)), rtol=1e-11, atol=0)
    torch.testing.assert_close(sde.sigma(t), 1 - sde.alpha(t) ** 2, rtol=1e-11, atol=0)
    assert torch.equal(sde.alpha(t), vp.alpha(t))
    assert (sde.sigma(t) <= vp.sigma(t)).all()


def test_E4_any_rate_by_quadrature():
    """Compare rates given as functions with their integrals.

    The linear rate, and an oscillating one.
    """
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    linear, any_rate = VPSDE(0.1, 20.0), VPSDE.from_beta(lambda t: 0.1 + 19.9 * t)
    torch.testing.assert_close(any_rate.alpha(t), linear.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(any_rate.sigma(t), linear.sigma(t), rtol=1e-12, atol=0)
    wave = VPSDE.from_beta(lambda t: 4 + 3 * torch.sin(9 * t))
    torch.testing.assert_close(wave.log_alpha(t), -0.5 * (4 * t + (1 - torch.cos(9 * t)) / 3), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["vp", "vp-cosine", "ddpm", "ddpm-short", "vp-any"])
def test_E4_variance_is_preserved(name):
    t = torch.linspace(0, 1, 333, dtype=torch.float64)
    total = FAMILIES[name].alpha(t) ** 2 + FAMILIES[name].sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-14)


# ---- densities on a mixture -----------------------------------------------------------------------------------------


def derivatives(model, x, t):
    """Return x, t, and three derivatives of log p_t.

    They are d/dt, the gradient (the score) and the Laplacian, by automatic differentiation.
    """
    x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
    log_p = model.log_prob(x, t)
    rate, score = torch.autograd.grad(log_p.sum(), (t, x), create_graph=True)
    return x, t, rate, score, divergence(score, x)


def divergence(field, x):
    return sum(torch.autograd.grad(field[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1]))


def points(sde, mixture, generator):
    t = inside(sde, 200, 0.02, 0.9)
    return sde.perturb(mixture.sample(200, generator), t, generator)[0], t


@EACH
def test_E8_continuity_equation_on_a_mixture(sde, mixture_2d, generator):
    """Check the continuity equation d/dt p + div(v p) = 0, divided by p.

    The velocity is v = alpha' x0 + sigma' eps = f - g^2 score / 2, with the drift f.
    """
    model = mixture_2d.model(sde)
    x, t, rate, score, _ = derivatives(model, *points(sde, mixture_2d, generator))
    estimate = model(x, t)
    alpha_rate, sigma_rate = sde.log_alpha_rate(t) * sde.alpha(t), sde.log_sigma_rate(t) * sde.sigma(t)
    v = alpha_rate[:, None] * estimate.x0 + sigma_rate[:, None] * estimate.eps
    terms = rate, divergence(v, x), (v * score).sum(1)
    scale = 1 + max(term.abs().max().item() for term in terms)
    assert sum(terms).abs().max().item() < 1e-9 * scale
    flow = sde.drift(x, t) - 0.5 * sde.diffusion(t)[:, None] ** 2 * estimate.score
    torch.testing.assert_close(v, flow, rtol=1e-8, atol=1e-8)


@EACH
def test_E2_reverse_sde_carries_the_same_densities(sde, mixture_2d, generator):
    """Check the reverse Kolmogorov equation.

    d/dt p = -div(b p) - g^2/2 Laplace p, with b = f - g^2 score. The reverse Euler-Maruyama step gives b and g.
    """
    model, h = mixture_2d.model(sde), 2.0**-30
    x, t, rate, score, laplacian = derivatives(model, *points(sde, mixture_2d, generator))
    row = EulerMaruyama().coefficients(sde, t.detach(), t.detach() - h)
    eps = -score * sde.sigma(t)[:, None]
    b = ((1 - row.x)[:, None] * x - row.eps[:, None] * eps) / h
    g2 = row.z**2 / h
    assert (row.x0 == 0).all()
    terms = rate, divergence(b, x), (b * score).sum(1), 0.5 * g2 * (laplacian + (score**2).sum(1))
    scale = 1 + max(term.abs().max().item() for term in terms)
    assert sum(terms).abs().max().item() < 1e-6 * scale
    expected = sde.drift(x, t) - sde.diffusion(t)[:, None] ** 2 * score
    torch.testing.assert_close(b, expected, rtol=1e-5, atol=1e-5)


@EACH
def test_E6_the_target_is_the_score_of_the_perturbation(sde, generator):
    """Check grad log p(x_t | x_0) = -eps/sigma.

    Also g^2/sigma^2 = -d log_snr/dt, the likelihood weighting's density of t.
    """
    t = inside(sde, 64, 0.01, 0.95)
    x_0 = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    x, eps = sde.perturb(x_0, t, generator)
    x = x.requires_grad_()
    law = torch.distributions.Normal(sde.alpha(t)[:, None] * x_0, sde.sigma(t)[:, None])
    score = torch.autograd.grad(law.log_prob(x).sum(), x)[0]
    torch.testing.assert_close(score, -eps / sde.sigma(t)[:, None], rtol=1e-9, atol=1e-9)
    rate = _grad(sde.log_snr(t.requires_grad_()), t)
    torch.testing.assert_close((sde.diffusion(t) / sde.sigma(t)).detach() ** 2, -rate, rtol=1e-9, atol=0)


# ---- shapes ---------------------------------------------------------------------------------------------------------


@EACH
@first_fast("shape", SHAPES, ids=str)
@first_fast("dtype", [torch.float32, torch.float64])
def test_any_rank_works_and_samples_do_not_mix(sde, shape, dtype):
    """Compare a batch at times (B,) with its samples at scalar times.

    They agree at every rank and in the dtype of the data.
    """
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    t = torch.linspace(0.2003, 0.9004, 6, dtype=dtype)
    s = t / 2
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    whole = [
        sde.drift(x, t),
        *sde.perturb(x, t, generators),
        sde.posterior(x, 0.5 * x, s, t)[0],
        sde.posterior(x, 0.5 * x, s, t)[1].expand(shape),
        sde.posterior_variance(torch.full_like(x, 0.3), s, t),
        ScoreModel(lambda x, time_input: 0.1 * x, sde, predicts="velocity")(x, t).x0,
    ]
    assert sde.prior_log_prob(x).shape == (6,)
    for result in whole:
        assert result.shape == shape
        assert result.dtype == dtype
    for i in range(6):
        row, now, before = x[i : i + 1], t[i].item(), s[i].item()
        mean, std = sde.posterior(row, 0.5 * row, before, now)
        one = [
            sde.drift(row, now),
            *sde.perturb(row, now, [torch.Generator().manual_seed(i)]),
            mean,
            std.expand(row.shape),
            sde.posterior_variance(torch.full_like(row, 0.3), before, now),
            ScoreModel(lambda x, time_input: 0.1 * x, sde, predicts="velocity")(row, now).x0,
        ]
        for batch, single in zip(whole, one, strict=True):
            tolerance = {"rtol": 2e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
            torch.testing.assert_close(batch[i : i + 1], single, **tolerance)


@given(name=st.sampled_from(sorted(SMOOTH)), rank=st.integers(0, 3), t=st.floats(0.001, 0.999))
def test_functions_of_time_keep_any_shape(name, rank, t):
    sde, shape = FAMILIES[name], (2, 1, 3)[:rank]
    time = torch.full(shape, t, dtype=torch.float64)
    for function in (sde.alpha, sde.sigma, sde.log_snr, sde.diffusion, sde.log_alpha_rate, sde.log_sigma_rate):
        assert function(time).shape == shape
    assert sde.time_of(sde.log_snr(time)).shape == shape
    assert sde.alpha(t).dtype == torch.float64


@EACH
def test_prior(sde):
    """Compare the deviation of draws with the stated one.

    6 standard errors: 2e-9 false alarms. The density is normal at any rank.
    """
    x = sde.prior_sample((20_000, 2), torch.Generator().manual_seed(3), dtype=torch.float64)
    assert abs(x.std().item() / sde.prior_std - 1) < 6 / math.sqrt(2 * x.numel())
    law = torch.distributions.Normal(*torch.tensor([0.0, sde.prior_std], dtype=torch.float64))
    expected = law.log_prob(x[:4]).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x[:4]), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sde.prior_log_prob(x[:4].reshape(4, 1, 2, 1)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"vp-any", "ddpm-short"}))
def test_prior_is_close_to_the_last_marginal(name):
    assert FAMILIES[name].sigma(1.0).item() == pytest.approx(FAMILIES[name].prior_std, rel=5e-5)


def test_levels_are_floats_or_shaped_for_samples():
    for sde in DISCRETE.values():
        x = torch.zeros(3, 2, 2)
        host, sample = sde.level(0.5, x), sde.level(torch.tensor([0.5, 0.5, 0.5]), x)
        assert all(isinstance(v, float) for v in host)
        assert sample.alpha.shape == (3, 1, 1)
        assert sample.sigma.flatten()[0].item() == pytest.approx(host.sigma, rel=1e-5)


# ---- processes and schedules as settings ----------------------------------------------------------------------------


def top_level_rate(t):
    return 0.1 + 9.9 * t**2


SCHEDULES = [
    LinearRate(0.1, 20),
    CosineRate(),
    CosineRate(0.02),
    PiecewiseRate([0.1, 0.3, 0.2]),
    AnyRate(top_level_rate),
    GeometricNoise(0.01, 50.0),
    LinearNoise(80),
    PiecewiseNoise([0.1, 0.5, 2.0]),
]
NAMES = {name: getattr(schedules, name) for name in dir(schedules)} | {
    name: getattr(package, name) for name in dir(package)
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedules_are_settings(schedule):
    if not isinstance(schedule, AnyRate):  # a function has no repr that evaluates
        assert eval(repr(schedule), NAMES) == schedule
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert all(other != schedule for other in SCHEDULES if other is not schedule)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for name in ("integral", "rate", "log_sigma", "variance_rate"):
        if hasattr(schedule, name):
            assert torch.equal(getattr(again, name)(t), getattr(schedule, name)(t))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 1.0)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"vp-any", "user"}))
def test_processes_are_settings(name):
    sde = FAMILIES[name]
    again, copied = pickle.loads(pickle.dumps(sde)), copy.deepcopy(sde)
    assert again == copied == sde
    assert hash(again) == hash(sde)
    assert repr(again) == repr(sde)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert torch.equal(again.log_snr(t), sde.log_snr(t))
    if len(repr(sde)) < 100 and "N=" not in repr(sde) and "L=" not in repr(sde):
        assert eval(repr(sde), NAMES) == sde
    assert all(other != sde for key, other in FAMILIES.items() if key != name)
    if hasattr(sde, "schedule"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            sde.schedule = None


def test_processes_are_equal_if_their_settings_are():
    assert VPSDE() == VPSDE(0.1, 20) != VPSDE(0.1, 19.0)
    assert VPSDE.cosine() == VPSDE.cosine(0.008) != SubVPSDE.cosine()
    assert DDPM.linear(100) == DDPM.linear(100) != DDPM.linear(101)
    assert NCSN([0.1, 1.0]) == NCSN([1.0, 0.1])
    made = DDPM.from_alphas_bar([0.9, 0.7, 0.3, 0.1])
    assert eval(repr(made), NAMES) == build_sde(made.config) == made
    assert len({VPSDE(), VPSDE(), FlowSDE(), FlowSDE(), VESDE(), VESDE.linear()}) == 4


def test_reprs_of_processes():
    assert repr(VPSDE(0.1, 20.0)) == "VPSDE(beta_min=0.1, beta_max=20)"
    assert repr(VPSDE(0.1234567891, 20.0)) == "VPSDE(beta_min=0.1234567891, beta_max=20)"
    assert repr(VESDE.linear()) == "VESDE.linear(sigma_max=80)"
    assert repr(DDPM([0.5, 0.25])) == "DDPM([0.5, 0.25])"
    assert repr(DDPM.linear()) == "DDPM(N=1000, beta_1=0.0001, beta_N=0.02)"


def test_a_rate_that_cannot_be_pickled_says_so():
    sde = VPSDE.from_beta(lambda t: 1 + t)
    assert copy.deepcopy(sde) == sde
    with pytest.raises(ArgumentError, match=r"`beta` must be a function at the top level of a module"):
        pickle.dumps(sde)
    assert pickle.loads(pickle.dumps(VPSDE.from_beta(top_level_rate))) == VPSDE.from_beta(top_level_rate)


def test_pickles_hold_no_casts():
    sde = DDPM.linear(50)
    size = len(pickle.dumps(sde))
    sde.alpha(torch.rand(3))
    assert len(pickle.dumps(sde)) == size


@pytest.mark.parametrize("whole", [np.int64, torch.tensor])
def test_integers_of_other_libraries_are_accepted(whole):
    ddpm = DDPM.linear(100)
    assert DDPM.linear(whole(100)) == ddpm
    assert NCSN.geometric(L=whole(4)) == NCSN.geometric(L=4)
    assert ddpm.respace([whole(1), whole(7)]) == ddpm.respace((1, 7))
    assert ddpm.respace(np.array([0, 1, 7])) == ddpm.respace(torch.tensor([1, 7]))
    assert ddpm.time(whole(3)) == 0.03
    assert torch.equal(time_grid(VPSDE(), whole(5)), time_grid(VPSDE(), 5))
