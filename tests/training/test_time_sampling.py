"""Time samplings: unbiased, of their declared law, with less variance."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

import scoresde as S
from scoresde.errors import ArgumentError, CheckpointError, UnknownNameError
from scoresde.sde.grids import time_range
from scoresde.training import (
    FixedTime,
    Levels,
    LogNormal,
    LossAware,
    UniformLogSNR,
    UniformTime,
)
from scoresde.training.named_time_samplings import resolve_time_sampling
from tests.families import DISCRETE, FAMILIES, SMOOTH
from tests.generators import generator
from tests.marks import first_fast
from tests.reference.score_matching import LossSecondMoment


def batches(sampling, sde, count, size, seed=1):
    """Return ``(t, weight)``, each ``(count, size)``."""
    g = generator(seed)
    draws = [sampling.draw(size, sde, None, None, g, "cpu") for _ in range(count)]
    return tuple(torch.stack(part) for part in zip(*draws, strict=True))


def density(sde, t):
    return LogNormal().density(sde, torch.as_tensor(t, dtype=torch.float64))


@first_fast("low_discrepancy", [False, True])
@first_fast("kind", [UniformTime, UniformLogSNR, LogNormal])
@first_fast("name", SMOOTH)
def test_weighted_means_are_means_over_uniform_time(name, kind, low_discrepancy):
    """Compare E[weight h(t)] with quadrature.

    h is the density of a log-normal sigma/alpha, which every proposal covers. 40 batches of 500 agree within 4.5
    standard errors (false alarm 6e-5 per case at 39 degrees of freedom).
    """
    sde = SMOOTH[name]
    t, weight = batches(kind(low_discrepancy=low_discrepancy), sde, 40, 500)
    means = (weight * density(sde, t)).mean(1)
    low, high = (sde.log_snr(t).item() for t in reversed(time_range(sde)))
    z = [(-s / 2 + 1.2) / 1.2 / math.sqrt(2) for s in (high, low)]
    truth = (math.erf(z[1]) - math.erf(z[0])) / 2 / (time_range(sde)[1] - time_range(sde)[0])
    assert abs(means.mean().item() - truth) < 4.5 * means.std().item() / math.sqrt(40) + 2e-4 * truth
    assert ((t >= 0) & (t <= 1) & (weight > 0)).all()


def test_low_discrepancy_times_spread_a_batch_evenly():
    t, weight = UniformTime().draw(64, S.VPSDE(), 0.0, 1.0, generator(), "cpu")
    assert torch.equal(weight, torch.ones(64))
    torch.testing.assert_close(t.sort().values.diff(), torch.full((63,), 1 / 64))


@pytest.mark.parametrize("name", SMOOTH)
def test_log_snr_times_are_uniform_in_log_snr(name):
    sde = SMOOTH[name]
    t, weight = UniformLogSNR().draw(101, sde, None, None, generator(), "cpu")
    low, high = (sde.log_snr(t).item() for t in reversed(time_range(sde)))
    gaps = sde.log_snr(t.double()).sort().values.diff()
    torch.testing.assert_close(gaps, torch.full((100,), (high - low) / 101).double(), rtol=2e-2, atol=1e-4)
    assert (weight > 0).all()


def test_E6_importance_sampling_has_its_closed_form():
    """Compare the times of importance sampling with their closed form.

    VP: B(t) = ln(1 + e^v (e^{B_eps} - 1)), v uniform; VE: uniform in t. The weight times g^2/sigma^2 is constant.
    """
    sde, u = S.VPSDE(), torch.rand(1, generator=generator(4)).item()
    t, weight = UniformLogSNR(low_discrepancy=False).draw(1, sde, 1e-3, 1.0, generator(4), "cpu")
    B_eps, B_1 = (sde.schedule.integral(torch.tensor(s, dtype=torch.float64)).item() for s in (1e-3, 1.0))
    v = (1 - u) * (math.log(math.expm1(B_1)) - math.log(math.expm1(B_eps)))
    B = math.log1p(math.exp(v) * math.expm1(B_eps))
    assert sde.schedule.integral(t.double()).item() == pytest.approx(B, rel=1e-5)
    for sde in FAMILIES.values():
        t, weight = UniformLogSNR().draw(200, sde, None, None, generator(), "cpu")
        contribution = weight * 2 * (sde.log_sigma_rate(t) - sde.log_alpha_rate(t))
        torch.testing.assert_close(contribution, contribution[0].expand(200))
    t, weight = UniformLogSNR().draw(100, S.VESDE(), 0.1, 0.9, generator(), "cpu")
    torch.testing.assert_close(t.sort().values.diff(), torch.full((99,), 0.008), rtol=1e-3, atol=0)
    torch.testing.assert_close(weight, torch.ones(100), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["vp", "ve-linear", "flow"])
def test_log_normal_times_are_the_papers_law(name):
    """Test log(sigma/alpha) of 4000 independent draws against the paper's law.

    By the Kolmogorov-Smirnov test (false alarm 1e-4 per case).
    """
    sde = SMOOTH[name]
    t, _ = LogNormal(-0.8, 1.1, low_discrepancy=False).draw(4000, sde, None, None, generator(2), "cpu")
    assert kstest((-sde.log_snr(t) / 2).numpy(), "norm", args=(-0.8, 1.1)).pvalue > 1e-4


def test_log_normal_times_stay_between_the_ends():
    sde = S.VPSDE()
    t, weight = LogNormal(-1.2, 5.0).draw(5000, sde, 0.2, 0.6, generator(), "cpu")
    assert t.min() >= 0.2
    assert t.max() <= 0.6
    assert weight.mean().item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", DISCRETE)
def test_levels_are_those_of_the_process_and_equally_likely(name):
    sde = DISCRETE[name]
    N = len(sde.times)
    t, weight = Levels().draw(3 * N, sde, None, None, generator(), "cpu")
    assert torch.equal(weight, torch.ones(3 * N))
    values, counts = t.double().unique(return_counts=True)
    torch.testing.assert_close(values, sde.times, rtol=1e-6, atol=0)
    assert (counts - 3).abs().max() <= 1  # spread evenly, to the rounding of u
    torch.testing.assert_close(sde.sigma(values.float()).double(), sde.sigma(sde.times), rtol=2e-5, atol=0)


def test_levels_between_the_ends_and_on_a_continuous_process():
    t, _ = Levels().draw(400, S.DDPM.cosine(10), 0.3, 0.7, generator(), "cpu")
    torch.testing.assert_close(t.unique(), torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7]))
    t, _ = Levels(4).draw(400, S.VPSDE(), None, None, generator(), "cpu")
    torch.testing.assert_close(t.unique(), torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert len(Levels().draw(20_000, S.VPSDE(), None, None, generator(), "cpu")[0].unique()) == 1000
    with pytest.raises(ArgumentError, match=r"`count` must be None, or 10.*, got 3"):
        Levels(3).draw(4, S.DDPM.cosine(10), None, None, None, "cpu")
    with pytest.raises(ArgumentError, match="levels between them"):
        Levels().draw(4, S.DDPM.cosine(10), 0.31, 0.39, None, "cpu")


def test_P8_loss_aware_levels_are_the_papers():
    """Compare with the paper's sampler, written out literally.

    Batches repeat levels and hold more than ten losses of one level.
    """
    sde, draws, literal = S.DDPM.cosine(6), LossAware().begin(), LossSecondMoment(6)
    grid, g = draws.sampling.grid(sde), generator(3)
    for step in range(30):
        torch.testing.assert_close(
            draws.probabilities(grid, "cpu").double(), torch.from_numpy(literal.probabilities()), rtol=1e-5, atol=0
        )
        t, weight = draws.draw(40 if step % 7 == 3 else 9, sde, None, None, g, "cpu")
        i = grid.index_of(t)
        p = torch.from_numpy(literal.probabilities()).float()
        torch.testing.assert_close(weight, 1 / (6 * p[i - 1]), rtol=1e-5, atol=0)
        loss = torch.rand(len(t), generator=g) * i**2
        draws.observe(t, loss)
        literal.update((i - 1).tolist(), loss.tolist())
    assert literal.probabilities().max() > 0.3  # no longer uniform, as it was at the start


def test_P8_loss_aware_means_stay_unbiased():
    """Compare the means of 40 batches of 500, within 4.5 standard errors.

    The false-alarm rate is 6e-5. The variance is below that of equally likely levels.
    """
    sde, draws = S.DDPM.linear(50), LossAware(low_discrepancy=False).begin()
    grid, h = draws.sampling.grid(sde), lambda t: torch.exp(-8 * t)
    for _ in range(10):
        t = grid.time(torch.arange(1, 51))
        draws.draw(1, sde, None, None, generator(), "cpu")
        draws.observe(t, h(t))
    t, weight = batches(draws, sde, 40, 500)
    means, truth = (weight * h(t)).mean(1), h(sde.times).mean().item()
    assert abs(means.mean().item() - truth) < 4.5 * means.std().item() / math.sqrt(40)
    flat = h(batches(Levels(low_discrepancy=False), sde, 40, 500)[0]).mean(1)
    assert means.std() < 0.1 * flat.std()


def test_loss_aware_sampling_continues_from_its_state():
    sde, first, second = S.DDPM.cosine(5), LossAware().begin(), LossAware().begin()
    g = generator(1)
    for _ in range(20):
        t, _ = first.draw(8, sde, None, None, g, "cpu")
        first.observe(t, torch.exp(3 * t))
    second.load_state_dict(first.state_dict())
    for draws in (first, second):  # states are copied on the way out and in
        draws.observe(draws.draw(8, sde, None, None, generator(9), "cpu")[0], torch.ones(8))
    for a, b in zip(*(s.draw(50, sde, None, None, generator(2), "cpu") for s in (first, second)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="state"):
        LossAware(history=4).begin().load_state_dict(first.state_dict())
    with pytest.raises(CheckpointError, match="nothing here learns"):
        UniformTime().begin().load_state_dict(first.state_dict())
    with pytest.raises(ArgumentError, match=r"`count` must be .*, got 7"):
        second.draw(3, S.DDPM.cosine(7), None, None, None, "cpu")


def test_loss_aware_sampling_survives_a_bad_loss():
    sde, draws = S.DDPM.cosine(4), LossAware(history=2).begin()
    grid = draws.sampling.grid(sde)
    t = grid.time(torch.arange(1, 5).repeat(2))
    draws.draw(1, sde, None, None, generator(), "cpu")
    draws.observe(t, torch.ones(8))
    draws.observe(t, torch.tensor([math.nan, math.inf, -math.inf, 1.0]).repeat(2))
    torch.testing.assert_close(draws.probabilities(grid, "cpu"), torch.full((4,), 0.25))


class Wrong(S.Model):
    """The exact model of a mixture plus an error like a network's.

    The error is a tenth of the noise and smooth in x.
    """

    def __init__(self, exact, error=0.1):
        super().__init__()
        self.exact, self.sde, self.error = exact, exact.sde, error

    def estimate(self, x, level, cond=None):
        estimate = self.exact.estimate(x, level, cond)
        return S.Estimate(estimate.x0, estimate.eps + self.error * torch.sin(3 * x), level)


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_E6_importance_sampling_cuts_the_variance(mixture_2d, error):
    """Check that the per-sample variance falls at least tenfold.

    Likelihood weighting under VP's defaults, over t and noise, against uniform t. The model is exact for the mixture,
    or has an error of 0.1 sin(3x) in its noise.
    """
    model = Wrong(mixture_2d.model(S.VPSDE()), error)
    x0 = mixture_2d.sample(20_000, generator(1)).float()
    variance = {}
    for name, sampling in {
        "uniform": UniformTime(low_discrepancy=False),
        "importance": UniformLogSNR(low_discrepancy=False),
    }.items():
        loss = S.DenoisingScoreMatching("likelihood", sampling)(model, x0, generator=generator(2))
        variance[name] = loss.var().item()
    assert variance["importance"] < 0.1 * variance["uniform"]


@pytest.mark.parametrize("name", ["uniform", "low-discrepancy", "log-snr", "log-normal", "levels", "loss-aware"])
def test_times_from_own_generators_ignore_the_batch(name):
    sde, sampling = S.DDPM.linear(50), resolve_time_sampling(name)

    def draw(seeds):
        return sampling.draw(len(seeds), sde, None, None, [generator(s) for s in seeds], "cpu")[0]

    assert torch.equal(draw([3, 5, 7])[1:], draw([5, 7]))
    with pytest.raises(ArgumentError, match="a list of 2"):
        sampling.draw(3, sde, None, None, [generator(), generator()], "cpu")


def test_one_fixed_time():
    t, weight = resolve_time_sampling(0.25).draw(3, S.VPSDE(), None, None, None, "cpu")
    assert t.tolist() == [0.25] * 3
    assert weight.tolist() == [1] * 3
    assert FixedTime(1).t == 1.0
    with pytest.raises(ArgumentError, match=r"`t` must be .*, got 1\.5"):
        resolve_time_sampling(1.5)


def test_bad_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'log-normal'"):
        resolve_time_sampling("lognormal")
    with pytest.raises(ArgumentError, match="P_std"):
        LogNormal(P_std=0)
    with pytest.raises(ArgumentError, match="uniform_share"):
        LossAware(uniform_share=0)
    with pytest.raises(ArgumentError, match="log-SNR of VPSDE"):
        UniformLogSNR().draw(3, S.VPSDE(), 0.0, None, None, "cpu")


def test_closed_form_of_the_log_normal_density():
    """Integrate the density over t to 1, less the 1.7e-6 above sigma_max."""
    sde = S.VESDE.linear()
    total = quad(lambda s: (density(sde, math.exp(s)) * math.exp(s)).item(), -14, 0, limit=200)[0]
    assert total == pytest.approx(1, abs=3e-6)
