"""Objectives and time sampling, against closed forms."""

import itertools
import math

import pytest
import torch
from scipy.integrate import quad

import scoresde as S
from scoresde.errors import UnknownNameError
from scoresde.sampling import time_range
from scoresde.training import UniformLogSNR, UniformTime

SDES = {"vp": S.VPSDE(), "subvp": S.SubVPSDE(), "ve": S.VESDE(), "cosine": S.VPSDE.cosine(), "ddpm": S.DDPM.linear(100)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def closed_form(sde, variance, weight, n=2):
    """E over t ~ U(t_min, t_max) of weight(t) n Var(eps | x_t), for data N(0, variance) and the exact model.

    Var(eps | x_t) = alpha^2 v / (alpha^2 v + sigma^2) per entry: what no network can remove.
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
# likelihood weighting under uniform t has a variance that only VE, where it is constant, can afford
CASES += [("likelihood", "log-snr", sde) for sde in ("vp", "subvp", "ve", "cosine")]
CASES += [("likelihood", "uniform", "ve"), ("likelihood", "low-discrepancy", "ve")]


@pytest.mark.parametrize(("weighting", "sampling", "sde"), CASES)
def test_E6_mean_loss_is_the_closed_form_for_every_time_sampling(sde, sampling, weighting):
    """The exact model of N(0, 0.5 I): the mean of 40 batches within 4.5 standard errors (false alarm 7e-6 a case)."""
    model = S.GaussianMixture(torch.zeros(1, 2), 0.5).model(SDES[sde])
    objective = S.DenoisingScoreMatching(weighting, sampling)
    g = generator(3)
    x0 = torch.randn(40, 1000, 2, generator=g) * math.sqrt(0.5)
    means = torch.stack([objective(model, x, generator=g).mean() for x in x0])
    truth = closed_form(SDES[sde], 0.5, {"simple": lambda rate: 1.0, "likelihood": lambda rate: rate}[weighting])
    assert abs(means.mean().item() - truth) < 4.5 * means.std().item() / math.sqrt(40)


def test_E6_importance_sampling_cuts_the_variance_of_the_likelihood_weighting():
    """Per-sample variance at the exact model, VP: uniform t against UniformLogSNR, at least ten times less."""
    model = S.GaussianMixture(torch.zeros(1, 2), 0.5).model(S.VPSDE())
    x0 = torch.randn(20_000, 2, generator=generator(1)) * math.sqrt(0.5)
    variance = {}
    for name, sampling in {"uniform": UniformTime(False), "importance": UniformLogSNR(False)}.items():
        loss = S.DenoisingScoreMatching("likelihood", sampling)(model, x0, generator=generator(2))
        variance[name] = loss.var().item()
    assert variance["importance"] < 0.1 * variance["uniform"]


def test_low_discrepancy_times_spread_a_batch_evenly():
    t, weight = UniformTime().draw(64, S.VPSDE(), 0.0, 1.0, generator(), "cpu")
    assert torch.equal(weight, torch.ones(64))
    gaps = t.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full((63,), 1 / 64))


@pytest.mark.parametrize("sde", SDES)
def test_log_snr_times_are_uniform_in_log_snr(sde):
    sde = SDES[sde]
    t, weight = UniformLogSNR().draw(101, sde, *time_range(sde), generator(), "cpu")
    low, high = (sde.log_snr(t).item() for t in reversed(time_range(sde)))
    gaps = sde.log_snr(t.double()).sort().values.diff()
    torch.testing.assert_close(gaps, torch.full((100,), (high - low) / 101).double(), rtol=2e-2, atol=1e-4)
    assert (weight > 0).all()


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 5, 7), (4, 3, 8, 8), (4, 1, 2, 2, 2)])
def test_loss_per_sample_at_any_rank(shape):
    class Zero(S.Model):
        sde = S.VPSDE()

        def estimate(self, x, level, cond=None):
            return S.Estimate(x, torch.zeros_like(x), level)

    loss = S.DenoisingScoreMatching()(Zero(), torch.zeros(shape), generator=generator())
    noise = torch.Generator().manual_seed(0)
    torch.rand(1, generator=noise)
    eps = torch.randn(shape, generator=noise)
    torch.testing.assert_close(loss, eps.reshape(4, -1).square().sum(1))


def test_P6_the_loss_is_one_number_whatever_the_network_predicts():
    """A network that knows the noise has no loss, in every parametrisation; and a wrong one has."""
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


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'likelihood'"):
        S.DenoisingScoreMatching("likelyhood")
    with pytest.raises(UnknownNameError, match="time_sampling"):
        S.DenoisingScoreMatching(time_sampling="sometimes")
