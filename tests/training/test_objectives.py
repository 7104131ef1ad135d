"""Denoising score matching and its weightings, against closed forms."""

import itertools
import math

import pytest
import torch
from scipy.integrate import quad

import scoresde as S
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sde.grids import time_range
from scoresde.training import EDM, DDIMVariational, Levels, LogNormal, MinSNR, Sigmoid, UniformLogSNR, UniformTime
from scoresde.training.weightings import WEIGHTINGS
from tests.generators import generator
from tests.marks import first_fast
from tests.reference import edm

SDES = {"vp": S.VPSDE(), "subvp": S.SubVPSDE(), "ve": S.VESDE(), "cosine": S.VPSDE.cosine(), "ddpm": S.DDPM.linear(100)}


def closed_form(sde, variance, weight, n=2):
    """Return E over t ~ U(t_min, t_max) of weight(t) n Var(eps | x_t).

    Data are N(0, variance), the model is exact. Var(eps | x_t) = alpha^2 v / (alpha^2 v + sigma^2) per entry: the loss
    that no network can remove.
    """
    t_min, t_max = time_range(sde)

    def integrand(log_snr):  # dt = dlog_snr / rate
        t = sde.time_of(log_snr)
        rate = (2 * (sde.log_sigma_rate(t) - sde.log_alpha_rate(t))).item()
        snr = math.exp(log_snr) * variance
        return weight(rate) * snr / (1 + snr) / rate

    high, low = (sde.log_snr(t).item() for t in (t_min, t_max))
    return n * quad(integrand, low, high, limit=400)[0] / (t_max - t_min)


CASES = list(itertools.product(["simple"], ["uniform", "low-discrepancy", "log-snr"], ["vp", "subvp", "ve", "cosine"]))
# the likelihood weighting has too large a variance under uniform t, except for VE, where it is constant
CASES += [("likelihood", "log-snr", sde) for sde in ("vp", "subvp", "ve", "cosine")]
CASES += [("likelihood", "uniform", "ve"), ("likelihood", "low-discrepancy", "ve")]


@first_fast(("weighting", "sampling", "sde"), CASES)
def test_E6_mean_loss_is_the_closed_form_for_every_sampling(sde, sampling, weighting):
    """Compare the exact model's mean loss of N(0, 0.5 I) with its closed form.

    The mean of 40 batches lies within 4.5 standard errors (false alarm 7e-6 per case).
    """
    model = S.GaussianMixture(torch.zeros(1, 2), 0.5).model(SDES[sde])
    objective = S.DenoisingScoreMatching(weighting, sampling)
    g = generator(3)
    x0 = torch.randn(40, 1000, 2, generator=g) * math.sqrt(0.5)
    means = torch.stack([objective(model, x, generator=g).mean() for x in x0])
    truth = closed_form(SDES[sde], 0.5, {"simple": lambda rate: 1.0, "likelihood": lambda rate: rate}[weighting])
    assert abs(means.mean().item() - truth) < 4.5 * means.std().item() / math.sqrt(40)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 5, 7), (4, 3, 8, 8), (4, 1, 2, 2, 2)])
def test_loss_per_sample_at_any_rank(shape):
    loss = S.DenoisingScoreMatching()(Zero(S.VPSDE()), torch.zeros(shape), generator=generator())
    noise = torch.Generator().manual_seed(0)
    torch.rand(1, generator=noise)
    eps = torch.randn(shape, generator=noise)
    torch.testing.assert_close(loss, eps.reshape(4, -1).square().sum(1))


def test_P6_the_loss_is_the_same_for_every_prediction():
    """Check an exact and a wrong network in every parametrisation.

    The exact network has loss 0, the wrong one a positive loss.
    """
    x0, sde = torch.randn(8, 3, generator=generator()), S.VPSDE()
    for predicts in ("noise", "data", "velocity", "score", "flow", "edm"):

        class Oracle(torch.nn.Module):
            off = 0.0
            name = predicts

            def forward(self, x, t):
                alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
                x = x * (alpha**2 + sigma**2).sqrt() if self.name == "edm" else x  # c_in is 1 for VP, data_std = 1
                eps = (x - alpha * x0) / sigma
                p, q = S.models.prediction_row(self.name, alpha, sigma)
                return p * x0 + q * eps + self.off

        oracle = Oracle()
        model = S.ScoreModel(oracle, sde, predicts)
        objective = S.DenoisingScoreMatching(t_min=0.01)
        assert objective(model, x0, generator=generator(1)).max() < 1e-5
        oracle.off = 0.1
        assert objective(model, x0, generator=generator(1)).min() > 1e-6


# ---- weightings ------------------------------------------------------------------------------------------------------


class Zero(S.Model):
    """eps_theta = 0: the loss is w |eps|^2, whose mean is w n."""

    def __init__(self, sde):
        super().__init__()
        self.sde = sde

    def estimate(self, x, level, cond=None):
        return S.Estimate(x, torch.zeros_like(x), level)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("weighting", ["min-snr", "edm"])
def test_weights_are_those_of_the_papers_on_the_error_of_x0(name, weighting):
    """Compare with the papers' weights of |x_0 - x0_theta|^2.

    min(snr, 5), and (r^2 + s_d^2)/(r s_d)^2 at the density of log r.
    """
    sde, t = SDES[name], torch.tensor([0.0321, 0.2043, 0.5067, 0.8071])  # between the levels, where DDPM's rate jumps
    alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
    r, snr = sigma / alpha, (alpha / sigma) ** 2
    if weighting == "min-snr":
        expected = snr.clamp(max=5)
    else:
        density = torch.exp(-0.5 * ((r.log() + 1.2) / 1.2) ** 2) / (1.2 * math.sqrt(2 * math.pi))
        rate = (sde.log_snr(t.double() - 1e-6) - sde.log_snr(t.double() + 1e-6)) / 4e-6  # d log r/dt
        expected = (r**2 + 1) / r**2 * density * rate
    w = WEIGHTINGS[weighting]()(Zero(sde), t)
    torch.testing.assert_close(w / r**2, expected, rtol=1e-3, atol=0, check_dtype=False)


@pytest.mark.parametrize("name", SDES)
def test_E6_sigmoid_weights_shape_more_than_detail(name):
    sde, t = SDES[name], torch.tensor([0.0321, 0.2043, 0.5067, 0.8071])
    snr = (sde.alpha(t.double()) / sde.sigma(t.double())) ** 2
    model = Zero(sde)
    ratio = WEIGHTINGS["sigmoid"]()(model, t) / WEIGHTINGS["likelihood"]()(model, t)
    torch.testing.assert_close(ratio, 1 + 20 / (1 + snr * math.exp(-2)), rtol=1e-4, atol=0, check_dtype=False)
    assert torch.equal(Sigmoid(gain=0)(model, t), WEIGHTINGS["likelihood"]()(model, t))


def test_edm_draw_by_draw_is_the_papers_loss():
    """Compare the loss with the paper's, draw by draw.

    lambda(r) |D(x; r) - y|^2 with log r ~ N(-1.2, 1.2^2) and D as in the paper; the density cancels.
    """
    sde, g = S.VESDE.linear(80.0), generator(1)
    net = S.ResidualMLP((3,), width=16, blocks=1)
    torch.nn.init.normal_(net.head[-1].weight)
    model = S.ScoreModel(net, sde, "edm", time_input="edm", data_std=0.5)
    y = torch.randn(64, 3, generator=g) / 2
    with torch.no_grad():
        terms = S.DenoisingScoreMatching("edm").terms(model, y, generator=generator(2))
        noise = generator(2)
        torch.rand(1, generator=noise)
        n = torch.randn(64, 3, generator=noise)
        for i, t in enumerate(terms.t):
            r = 80 * t.item()
            F = net(edm.c_in(r, 0.5) * (y[i] + r * n[i])[None], torch.tensor([edm.c_noise(r)]))[0]
            D = edm.c_skip(r, 0.5) * (y[i] + r * n[i]) + edm.c_out(r, 0.5) * F
            literal = (r**2 + 0.25) / (r * 0.5) ** 2 * (D - y[i]).square().sum()
            assert terms.loss[i].item() == pytest.approx(literal.item(), rel=2e-3)


def test_edm_loss_is_equal_at_every_level_at_the_start():
    """Check the loss of a network that returns zero.

    Its target has unit variance, so unit data have a mean loss of n at every level.
    """
    model = S.ScoreModel(
        S.ResidualMLP((2,), width=8, blocks=1), S.VESDE.linear(), "edm", time_input="log_snr", data_std=0.5
    )
    x0 = torch.randn(40_000, 2, generator=generator(1)) / 2
    terms = S.DenoisingScoreMatching("edm").terms(model, x0, generator=generator(2))
    order = terms.t.argsort()
    for part in terms.loss[order].chunk(4):  # 10,000 losses of variance 4 each: 5 standard errors are 0.1
        assert part.mean().item() == pytest.approx(2, abs=0.1)


def test_E6_a_given_function_is_a_weighting():
    x0 = torch.zeros(500, 2)
    given = S.DenoisingScoreMatching(lambda model, t: 3 * torch.ones_like(t))
    simple = S.DenoisingScoreMatching()
    model = Zero(S.VPSDE())
    torch.testing.assert_close(given(model, x0, generator=generator()), 3 * simple(model, x0, generator=generator()))


def test_terms_are_losses_and_times_before_the_draws_weight():
    model, x0 = Zero(S.VPSDE()), torch.zeros(100, 2)
    objective = S.DenoisingScoreMatching("likelihood", "log-snr")
    terms = objective.terms(model, x0, generator=generator(1))
    assert torch.equal(terms.loss, objective(model, x0, generator=generator(1)))
    _, weight = objective.time_sampling.draw(100, model.sde, None, None, generator(1), "cpu")
    torch.testing.assert_close(terms.value * weight, terms.loss)
    assert ((terms.t >= 0) & (terms.t <= 1)).all()


@pytest.mark.parametrize(
    ("weighting", "sampling"),
    [
        ("simple", UniformTime),
        ("likelihood", UniformLogSNR),
        ("sigmoid", UniformLogSNR),
        ("min-snr", UniformTime),
        ("edm", LogNormal),
        ("theorem-1", Levels),
        (MinSNR(1.0), UniformTime),
        (EDM(-0.4, 1.0), LogNormal),
    ],
)
def test_each_weighting_brings_the_time_sampling_that_suits_it(weighting, sampling):
    objective = S.DenoisingScoreMatching(weighting)
    assert type(objective.time_sampling) is sampling
    assert type(S.DenoisingScoreMatching(weighting, "uniform").time_sampling) is UniformTime
    if sampling is LogNormal:
        assert objective.time_sampling.P_mean == objective.weighting.law.P_mean


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'likelihood'"):
        S.DenoisingScoreMatching("likelyhood")
    with pytest.raises(UnknownNameError, match="time_sampling"):
        S.DenoisingScoreMatching(time_sampling="sometimes")
    with pytest.raises(ArgumentError, match="gamma"):
        MinSNR(0.0)
    with pytest.raises(ArgumentError, match="gain"):
        Sigmoid(gain=-1.0)
    with pytest.raises(ArgumentError, match="bias"):
        Sigmoid(bias=math.inf)
    with pytest.raises(ArgumentError, match="data_std"):
        EDM(data_std=-1.0)
    with pytest.raises(ArgumentError, match=r"`eta` must be .*, got 1\.5"):
        DDIMVariational(1.5)
