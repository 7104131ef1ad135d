"""Log p by the probability flow, against known densities."""

import math
import warnings

import pytest
import torch

import scoresde as S
from scoresde.errors import (
    ArgumentError,
    DataError,
    DTypeError,
    LikelihoodWarning,
    NonFiniteError,
    ShapeError,
    ToleranceError,
    UnknownNameError,
)
from scoresde.likelihood import Hutchinson, HutchPP
from tests.generators import generator
from tests.marks import first_fast

FEW_CALLS = pytest.mark.filterwarnings("ignore::scoresde.errors.LikelihoodWarning")  # with fewer calls than log p needs


def mixture(d=2, K=8, low=0.05, seed=0):
    """Return K anisotropic Gaussians with means from N(0, I).

    Their stds lie between ``low`` and 0.4.
    """
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(K, d, generator=g, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(K, d, d, generator=g, dtype=torch.float64))[0]
    std = low * (0.4 / low) ** torch.rand(K, d, generator=g, dtype=torch.float64)
    return S.GaussianMixture(means, torch.einsum("kia,ka,kja->kij", vectors, std**2, vectors))


SDES = {
    "vp": S.VPSDE(),
    "subvp": S.SubVPSDE(),
    "ve": S.VESDE(),
    "ve-linear": S.VESDE.linear(),
    "cosine": S.VPSDE.cosine(),
    "flow": S.FlowSDE(),
    "ddpm": S.DDPM.linear(1000),
    "ncsn": S.NCSN.geometric(0.01, 50.0, 232),
}


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES)
def test_E9_exact_trace_gives_the_mixtures_density(sde):
    """Compare 40 points in 2 dimensions, with stds from 0.05.

    Each is within 1e-4 nats, 1.5e-5 on average.
    """
    gm = mixture()
    x = gm.sample(40, generator())
    result = S.log_likelihood(gm.model(SDES[sde]), x, S.Exact())
    error = (result.log_prob - gm.log_prob(x)).abs()
    assert error.max() < 1e-4
    assert error.mean() < 1.5e-5
    assert (error < 3 * result.error).all()
    assert (result.error < 2e-3).all()
    assert torch.equal(result.stderr, torch.zeros(40, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_E9_exact_trace_in_64_dimensions(sde):
    """Compare at 150 calls: within 5e-4 nats."""
    gm = mixture(d=64, seed=11)
    x = gm.sample(3, generator())
    result = S.log_likelihood(gm.model(SDES[sde]), x, S.Exact(chunk=64), steps=150)
    assert (result.log_prob - gm.log_prob(x)).abs().max() < 5e-4


@pytest.mark.slow
def test_E9_multistep_converges_fast():
    """Check that the mean error falls more than 64 times from 40 to 80 calls.

    This is order 6, due to the correction.
    """
    gm = mixture(low=0.1)
    x, model = gm.sample(100, generator()), gm.model(S.VPSDE())
    coarse, fine = (
        (S.log_likelihood(model, x, S.Exact(), steps=calls).log_prob - gm.log_prob(x)).abs().mean()
        for calls in (40, 80)
    )
    assert fine < coarse / 64


@pytest.mark.slow
def test_E9_multistep_solves_a_networks_own_flow():
    """Compare a network's log p with that of a reference solver.

    A network's score is no gradient, and its moments need not be those of its density. They agree to 2e-5 nats at 200
    calls, and to 2e-3 for a model without moments.
    """
    torch.manual_seed(0)
    net = S.ResidualMLP((3,), width=16, blocks=2).double()
    for parameter in net.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    moments = S.models.Moments(torch.full((3,), 0.2), torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(3, 3, generator=generator(), dtype=torch.float64)
    for known, atol in ((moments, 2e-5), (None, 2e-3)):
        model = S.ScoreModel(net, S.VPSDE(), "edm", moments=known, time_input="log_snr")
        reference = S.log_likelihood(model, x, S.Exact(), 1e-8, 1e-8, end="none", prior="sde")
        ours = S.log_likelihood(model, x, S.Exact(), steps=200, end="none", prior="sde")
        torch.testing.assert_close(ours.log_prob, reference.log_prob, rtol=0, atol=atol)
        torch.testing.assert_close(ours.latent, reference.latent, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["vp", "ve", "flow"])
def test_E9_E10_the_density_under_a_condition(sde):
    """Compare log p(x | y) of a mixture's components.

    The prior has their mean. The mean of all data would err by .1.
    """
    gm = mixture(K=4, low=0.1)
    x, k = gm.sample(30, generator(), return_component=True)
    shifted = x - gm.means[k]
    z = torch.einsum("bi,bij->bj", shifted, gm.vectors[k]) / gm.values[k].sqrt()
    exact = -0.5 * (z.square() + gm.values[k].log() + math.log(2 * math.pi)).sum(1)
    model = gm.model(SDES[sde])
    for settings, atol in (({}, 5e-4), ({"method": "rk4", "steps": 60}, 6e-3)):
        found = S.log_likelihood(model, x, S.Exact(), cond={"y": k}, **settings)
        torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=atol)
    with pytest.raises(ArgumentError, match=r"`steps` must be 19 calls or more.*, got 18"):
        S.log_likelihood(model, x, S.Exact(), cond={"y": k}, steps=18)


@first_fast("shape", [(3,), (1,), (2, 3), (1, 2, 2), (1, 2, 2, 2)])
def test_E9_density_of_one_gaussian_at_any_rank(shape):
    n = math.prod(shape)
    gm = S.GaussianMixture(torch.ones(1, *shape), 0.3)
    x = gm.sample(3, generator())
    closed = -0.5 * ((x - 1) ** 2 / 0.3).flatten(1).sum(1) - 0.5 * n * math.log(2 * math.pi * 0.3)
    torch.testing.assert_close(S.log_likelihood(gm.model(S.VPSDE()), x).log_prob, closed, rtol=0, atol=1e-4 * n)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["multistep", "bosh3", "dopri8", "rk4", "heun", "RK45", "DOP853"])
def test_E9_methods_agree(method):
    gm = mixture(low=0.2)
    x = gm.sample(4, generator())
    steps = {"rk4": 60, "heun": 600}.get(method)
    result = S.log_likelihood(gm.model(S.VPSDE()), x, S.Exact(), 1e-6, 1e-6, method, steps=steps)
    assert (result.log_prob - gm.log_prob(x)).abs().max() < 3e-4


@pytest.mark.slow
def test_the_end_counts():
    """Check VE from sigma_min = 0.01, with stds from 0.05.

    Each order of the end divides the error by more than five.
    """
    gm = mixture()
    x, model = gm.sample(40, generator()), gm.model(S.VESDE())
    second, first, none = (
        (S.log_likelihood(model, x, S.Exact(), 1e-7, 1e-7, end=end).log_prob - gm.log_prob(x)).abs().mean()
        for end in ("heun", "half-tweedie", "none")
    )
    assert second < 0.2 * first
    assert first < 0.2 * none
    t0 = S.log_likelihood(model, x, S.Exact(), end="none")
    torch.testing.assert_close(t0.log_prob, model.log_prob(x, t0.t_min), rtol=0, atol=2e-4)


@pytest.mark.slow
def test_the_matched_prior_counts():
    """Compare VE's prior with the matched one, which has no error.

    N(0, sigma_max^2 I) ignores the data's spread, an error of some 1e-3 nats.
    """
    gm = S.GaussianMixture([[3.0, 0.0], [-1.0, 2.0]], [[0.1, 0.2], [0.3, 0.1]])
    x = gm.sample(40, generator())
    matched, plain = (
        S.log_likelihood(gm.model(S.VESDE(sigma_max=20.0)), x, S.Exact(), prior=prior).log_prob - gm.log_prob(x)
        for prior in ("matched", "sde")
    )
    assert matched.abs().mean() < 2e-4
    assert plain.abs().mean() > 3e-3


@pytest.mark.slow
def test_the_ends_are_reported():
    """Check the ends for N(0, c I) under VE.

    The stretch below t_min adds n/2 log((c + sigma_min^2)/c); the priors differ as stated.
    """
    gm, sde = S.GaussianMixture(torch.zeros(1, 3), 0.01), S.VESDE(0.01, 10.0)
    x = gm.sample(4, generator())
    below = torch.full((4,), 1.5 * math.log((0.01 + 0.01**2) / 0.01), dtype=torch.float64)
    for method, atol in (("multistep", 5e-5), ("rk4", 1e-4), ("dopri5", 1e-4)):
        matched, own = (
            S.log_likelihood(gm.model(sde), x, S.Exact(), method=method, prior=prior) for prior in ("matched", "sde")
        )
        torch.testing.assert_close(matched.below, below, rtol=0, atol=atol)
        torch.testing.assert_close(matched.log_prob - own.log_prob, matched.prior_gap, rtol=0, atol=5e-5)
        assert matched.t_min == 0
        assert matched.method == method
        stop = S.log_likelihood(gm.model(sde), x, S.Exact(), method=method, end="none")
        assert torch.equal(stop.below, torch.zeros(4, dtype=torch.float64))
    unknown = gm.model(sde)
    unknown.moments = None
    assert S.log_likelihood(unknown, x, S.Exact()).prior_gap.isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("method", ["multistep", "rk4", "dopri5"])
def test_E9_hutchinson_and_its_standard_error(method, distribution):
    """Compare 200 repeats of 4 probes with the exact trace.

    The repeats are rows of one batch, with a generator each. The mean is within 4.5 standard errors (false alarm 7e-6),
    the reported standard error within 25 % of the repeats' spread.
    """
    gm = mixture(d=6, K=3, low=0.2)
    x, model = gm.sample(1, generator()).expand(200, -1), gm.model(S.VPSDE())
    settings = {"method": method, "rtol": 1e-4, "atol": 1e-4, "steps": 20}
    exact = S.log_likelihood(model, x[:1], S.Exact(), **settings).log_prob
    generators = [generator(i) for i in range(200)]
    run = S.log_likelihood(model, x, Hutchinson(4, distribution), generator=generators, **settings)
    spread = run.log_prob.std().item()
    assert abs(run.log_prob.mean().item() - exact.item()) < 4.5 * spread / math.sqrt(200) + 1e-3
    assert run.stderr.square().mean().sqrt().item() / spread == pytest.approx(1, abs=0.25)


@pytest.mark.slow
def test_E9_one_orthogonal_probe_a_stage():
    """Check 300 repeats in 40 dimensions at 120 calls.

    Unbiased: 4.5 standard errors, false alarm 7e-6. Intervals of 1.96 standard errors cover the exact trace's log p in
    95 % of cases, within 4 binomial deviations (1e-3). Orthogonal probes have less than .8 of the standard deviation of
    independent ones.
    """
    gm = mixture(d=40, K=3, low=0.05)
    x, model = gm.sample(1, generator()), gm.model(S.VPSDE())
    exact = S.log_likelihood(model, x, S.Exact(chunk=40), steps=120).log_prob
    x = x.expand(300, -1)
    run = S.log_likelihood(model, x, Hutchinson(1), steps=120, generator=generator(1))
    error, spread = run.log_prob - exact, run.log_prob.std().item()
    assert error.mean().abs() < 4.5 * spread / math.sqrt(300)
    covered = (error.abs() < 1.96 * run.stderr).double().mean().item()
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 300)
    other = S.log_likelihood(model, x, Hutchinson(1, orthogonal=False), steps=120, generator=generator(1))
    assert spread < 0.8 * other.log_prob.std()


@pytest.mark.slow
def test_E9_hutchpp_is_unbiased_and_exact_at_full_rank():
    gm = mixture(d=6, K=3, low=0.2)
    x, model = gm.sample(1, generator()).expand(200, -1), gm.model(S.VPSDE())
    exact = S.log_likelihood(model, x[:1], S.Exact(), steps=40).log_prob
    for rank in (2, 6):
        run = S.log_likelihood(model, x, HutchPP(rank, 1), generator=generator(), steps=40)
        error, spread = run.log_prob - exact, run.log_prob.std().item()
        assert error.mean().abs() < 4.5 * spread / math.sqrt(200) + 1e-9
        if rank == 6:
            assert spread < 1e-9
        else:
            assert run.stderr.square().mean().sqrt().item() / spread == pytest.approx(1, abs=0.25)


@pytest.mark.slow
def test_fresh_probes_average_out_along_the_path():
    """Compare fresh probes with one draw for the whole path.

    On a fixed grid they have less than half the spread.
    """
    gm = mixture(d=6, K=3, low=0.2)
    x, model = gm.sample(1, generator()).expand(200, -1), gm.model(S.VPSDE())
    for method in ("multistep", "rk4"):
        steps = {"multistep": 100, "rk4": 25}[method]
        fresh, frozen = (
            S.log_likelihood(model, x, Hutchinson(1, fresh=fresh), method=method, steps=steps, generator=generator())
            for fresh in (True, False)
        )
        assert fresh.log_prob.std() < 0.5 * frozen.log_prob.std()
        assert frozen.stderr.isnan().all()
        assert fresh.stderr.isfinite().all()


def test_one_frozen_probe_has_no_standard_error():
    gm = mixture(low=0.2)
    model, x = gm.model(S.VPSDE()), gm.sample(3, generator())
    result = S.log_likelihood(model, x, Hutchinson(1), 1e-4, 1e-4, "dopri5", generator())
    assert result.stderr.isnan().all()
    assert result.log_prob.isfinite().all()


@FEW_CALLS
@pytest.mark.slow
@pytest.mark.parametrize("method", ["multistep", "dopri5", "bosh3", "rk4"])
def test_densities_are_independent_of_the_batch(method):
    gm = mixture(d=40, K=3, low=0.2)
    x, model = gm.sample(6, generator()), gm.model(S.VESDE())
    for divergence in (S.Exact(), Hutchinson(2), HutchPP()):
        generators = [generator(i) for i in range(6)]
        settings = {"method": method, "steps": 18, "rtol": 1e-3, "atol": 1e-3}
        together = S.log_likelihood(model, x, divergence, generator=generators, **settings)
        for i in (0, 5):
            alone = S.log_likelihood(model, x[i : i + 1], divergence, generator=[generator(i)], **settings)
            torch.testing.assert_close(alone.log_prob[0], together.log_prob[i], rtol=0, atol=1e-6)
            torch.testing.assert_close(alone.stderr[0], together.stderr[i], rtol=1e-6, atol=1e-6, equal_nan=True)


class Watched(S.Model):
    """A mixture's model that records its calls.

    It keeps their batch sizes and counts backward passes through its eps.
    """

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde, self.moments = inner, inner.sde, inner.moments
        self.sizes, self.backward = [], 0

    def estimate(self, x, level, cond=None):
        self.sizes.append(len(x))
        estimate = self.inner.estimate(x, level, cond)
        if estimate.eps.requires_grad:
            estimate.eps.register_hook(self._count)
        return estimate

    def _count(self, gradient):
        self.backward += 1


@FEW_CALLS
@pytest.mark.slow
@pytest.mark.parametrize("method", ["multistep", "rk4", "dopri5"])
def test_chunks_change_nothing(method):
    gm = mixture(d=40, K=3, low=0.2)
    x, model = gm.sample(5, generator()), Watched(gm.model(S.VPSDE()))
    settings = {"method": method, "steps": 18, "rtol": 1e-3, "atol": 1e-3}
    for divergence in (S.Exact(), Hutchinson(2), HutchPP()):
        whole, parts = (
            S.log_likelihood(model, x, divergence, generator=generator(), chunk=chunk, **settings)
            for chunk in (None, 2)
        )
        torch.testing.assert_close(parts.log_prob, whole.log_prob, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parts.stderr, whole.stderr, rtol=1e-9, atol=1e-9)
    model.sizes.clear()
    S.log_likelihood(model, x, Hutchinson(2), generator=generator(), chunk=2, **settings)
    assert max(model.sizes) == 2


@FEW_CALLS
def test_one_call_and_one_product_a_level():
    """Check that each call has one vector-Jacobian product.

    The 16 calls of the coarse solution and the first rounds over four levels are exceptions.
    """
    gm = mixture(low=0.2)
    for sde, untraced in ((S.VPSDE(), 4), (S.VESDE(0.05), 12)):
        model = Watched(gm.model(sde))
        assert S.log_likelihood(model, gm.sample(2, generator()), Hutchinson(1), steps=50).nfe == 50
        assert len(model.sizes) == 50
        assert model.backward == 34 - untraced


@FEW_CALLS
def test_the_models_mode_is_restored():
    net = S.ResidualMLP((2,), width=8, blocks=1, dropout=0.5)
    for parameter in net.parameters():
        parameter.data += 0.1
    frozen = next(net.parameters())
    frozen.requires_grad_(requires_grad=False)
    model = S.ScoreModel(net, S.VPSDE(), "edm").train()
    x = torch.randn(3, 2, generator=generator())
    first, again = (S.log_likelihood(model, x, S.Exact(), steps=18).log_prob for _ in range(2))
    assert torch.equal(first, again)
    with torch.inference_mode():
        inside = S.log_likelihood(model, x.clone(), S.Exact(), steps=18).log_prob
    torch.testing.assert_close(inside, first)
    with pytest.raises(NonFiniteError):
        S.log_likelihood(model, x * 1e30, S.Exact(), steps=18)
    assert model.training
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in net.parameters()] == [p is not frozen for p in net.parameters()]


@pytest.mark.slow
def test_equal_seeds_give_equal_densities():
    gm = mixture(d=20)
    x, model = gm.sample(3, generator()), gm.model(S.VPSDE())
    first, again, other = (S.log_likelihood(model, x, method="rk4", generator=generator(s)).log_prob for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_the_latent_is_the_start_of_the_flow():
    """Decode x_1 of the likelihood by the probability flow (E11).

    The result is x_0.
    """
    gm = mixture(low=0.2)
    x, model = gm.sample(5, generator()), gm.model(S.VPSDE())
    latent = S.log_likelihood(model, x, S.Exact(), 1e-8, 1e-8).latent
    again = S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-8, atol=1e-8), start=latent)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-6)


class Spoiled(S.Model):
    """A mixture's model that gives NaN for some samples.

    Those whose first entry is above 100.
    """

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde, self.moments = inner, inner.sde, inner.moments

    def estimate(self, x, level, cond=None):
        estimate = self.inner.estimate(x, level, cond)
        return estimate._replace(eps=torch.where(x[:, :1] > 100, torch.nan, estimate.eps))


class Rough(Spoiled):
    """A model with noise in its eps, for which no step is small enough."""

    def estimate(self, x, level, cond=None):
        estimate = self.inner.estimate(x, level, cond)
        return estimate._replace(eps=estimate.eps + torch.rand_like(x))


def test_bad_input_is_refused_and_named():
    gm = mixture(low=0.2)
    model = gm.model(S.VPSDE())
    x = gm.sample(3, generator())
    with pytest.raises(DTypeError, match="use bits_per_dim"):
        S.log_likelihood(model, torch.zeros(3, 2, dtype=torch.uint8))
    with pytest.raises(NonFiniteError, match=r"x0: NaN or infinity in 1 of 3 samples \(1\)"):
        S.log_likelihood(model, torch.where(torch.arange(3)[:, None] == 1, torch.nan, x))
    for method in ("multistep", "rk4", "dopri5"):
        with pytest.raises(NonFiniteError, match=r"estimate at t = \S+: NaN or infinity in 1 of 3 samples \(2\)"):
            S.log_likelihood(Spoiled(model), torch.where(torch.arange(3)[:, None] == 2, 1000.0, x), method=method)
    with pytest.raises(ShapeError, match="x"):
        S.log_likelihood(model, torch.zeros(3, 5))
    with pytest.raises(ShapeError, match=r"`x0` must be \(B, 2\).*, got \(3,\)"):
        S.log_likelihood(model, torch.zeros(3))
    with pytest.raises(ToleranceError, match=r"at t = \S+ with a step of .*calls"):
        S.log_likelihood(Rough(model), x, S.Exact(), 1e-30, 1e-30)
    with pytest.raises(ArgumentError, match="steps"):
        S.log_likelihood(model, x, steps=8)
    with pytest.raises(ArgumentError, match="chunk"):
        S.log_likelihood(model, x, chunk=0)
    with pytest.raises(ArgumentError, match=r"`end` must be .*, got 'half-tweedie'"):
        S.log_likelihood(model, x, end="half-tweedie")
    with pytest.raises(UnknownNameError, match="did you mean 'multistep'"):
        S.log_likelihood(model, x, method="multi-step")
    with pytest.raises(UnknownNameError, match="differentiable"):
        S.log_likelihood(model, x, differentiable="yes")
    with pytest.raises(ArgumentError, match="fixed grid"):
        S.log_likelihood(model, x, method="dopri5", differentiable="direct")
    with pytest.raises(UnknownNameError, match="prior"):
        S.log_likelihood(model, x, prior="gaussian")
    with pytest.raises(UnknownNameError, match="end"):
        S.log_likelihood(model, x, end="tweedie")
    with pytest.raises(ArgumentError, match="probes"):
        Hutchinson(0)
    with pytest.raises(UnknownNameError, match="did you mean 'rademacher'"):
        Hutchinson(1, "radmacher")
    net = S.ResidualMLP((2,), width=8, blocks=1)
    quantised = S.ScoreModel(net, S.VPSDE(), scaling=S.data.Scaling.for_integers(17))
    centres = S.data.Scaling.for_integers(17).bin_centres(torch.tensor([[0, 3], [16, 5]]))
    with pytest.raises(DataError, match="17 exact grey values"):
        S.log_likelihood(quantised, centres)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [30, 60, 120, None])
def test_the_estimated_error_is_honest(steps):
    """Compare the error of log p with its estimate.

    16 peaks a 46th of the data's standard deviation wide, and points beside them. The model does not know how narrow
    they are. The error is at most 3 times the estimate in 99 % of the samples, and the default is within its tolerance
    or warns.
    """
    peaks = S.GaussianMixture(torch.linspace(-1.7, 1.7, 16).double()[:, None], (1 / 46) ** 2)
    model = peaks.model(S.VPSDE())
    model.data_scale = None
    g = torch.Generator().manual_seed(0)
    x = peaks.sample(200, g)
    x = x + 0.1 * torch.rand(x.shape, generator=g, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = S.log_likelihood(model, x, steps=steps)
    error = (found.log_prob - peaks.log_prob(x)).abs()
    assert (error <= 3 * found.error).double().mean() >= 0.99
    assert bool(caught) == bool((found.error > 1e-3).any())
    if steps is None:
        assert error.median() < 1e-4


#: inputs on which the default was wrong by .01 to 5e13 nats without a word: means, variances, points, process
ONCE_WRONG = {
    "narrow": ([[50.0]], 1e-6, [[50.001]], S.VPSDE()),
    "narrow-ve": ([[50.0]], 1e-6, [[50.001]], S.VESDE()),
    "anisotropic-ve": ([[0.0, 0.0]], [[1.0, 1e-4]], [[0.5, 0.01], [-1.0, -0.02]], S.VESDE()),
    "anisotropic": ([[0.0, 0.0]], [[1.0, 1e-6]], [[0.5, 0.001], [-1.0, -0.002]], S.VPSDE()),
    "flat-pixels": ([[0.0] * 8], [[1e-8] * 3 + [0.25] * 5], [[1e-4, -1e-4, 0.0, 0.5, -0.5, 1.0, 0.0, 0.2]], S.VPSDE()),
    "table": ([[3.0, -2.0]], [[1e4, 1.0]], [[100.0, -1.0], [-50.0, -3.0]], S.VESDE(0.01, 2000.0)),
}


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_narrow_and_flat_data_are_exact(name):
    """Compare with the Gaussian's density, to 1e-3 nats, without a warning."""
    means, variances, points, sde = ONCE_WRONG[name]
    gm = S.GaussianMixture(torch.tensor(means), torch.tensor(variances, dtype=torch.float64))
    x = torch.tensor(points, dtype=torch.float64)
    found = S.log_likelihood(gm.model(sde), x, S.Exact())
    torch.testing.assert_close(found.log_prob, gm.log_prob(x), rtol=0, atol=1e-3)


def cloud(std, d=2, n=200, scale=1.0):
    """Return n points of std 1, each with a Gaussian of the given width."""
    points = torch.randn(n, d, generator=generator(), dtype=torch.float64)
    return S.GaussianMixture(scale * points, (scale * std) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixture", "sde", "cause"),
    [
        (cloud(0.003), S.VPSDE(), None),
        (cloud(0.03), S.VESDE(), "t_min"),
        (cloud(0.01), S.VESDE(), "t_min"),
        (cloud(0.01, d=8, n=64), S.VPSDE(), None),
        (cloud(0.1, scale=255.0), S.VPSDE(), "before the data are Gaussian"),
        (cloud(0.1, scale=255.0), S.VESDE(), "before the data are Gaussian"),
    ],
)
def test_the_default_is_right_or_says_why_not(mixture, sde, cause):
    """Draw 60 points of clouds.

    Log p is within 1e-3 nats a dimension, or a warning names the cause.
    """
    x = mixture.sample(60, generator(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = S.log_likelihood(mixture.model(sde), x, S.Exact())
    error = (found.log_prob - mixture.log_prob(x)).abs() / x.shape[1]
    assert len(caught) <= 1
    if cause is None:
        assert error.max() < 1e-3
        assert not caught
    else:
        assert cause in str(caught[0].message)
        assert issubclass(caught[0].category, LikelihoodWarning)
        wrong = error > 1e-3
        assert (found.error[wrong] > 1e-3 * x.shape[1]).double().mean() > 0.9


@pytest.mark.slow
def test_the_plane_of_two_moons_has_mass_one():
    """Integrate exp(log p) over 900 points, most of them off the data.

    The sum was 3488; points between the moons were more probable than any datum.
    """
    angle = torch.linspace(0, math.pi, 100, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    moons = torch.cat([upper, torch.tensor([1.0, 0.5]) - upper])
    gm = S.GaussianMixture((moons - moons.mean(0)) / moons.std(), 0.05**2)
    axis = torch.linspace(-2.2, 2.2, 30, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with pytest.warns(LikelihoodWarning, match="far from the data"):
        found = S.log_likelihood(gm.model(S.VPSDE()), grid, S.Exact())
    exact = gm.log_prob(grid)
    assert found.log_prob.exp().sum().item() == pytest.approx(exact.exp().sum().item(), rel=1e-3)
    assert (found.log_prob - exact).abs().max() < 0.05


def test_absurdly_few_calls_are_refused_or_warned_of():
    gm = mixture(low=0.05)
    model, x = gm.model(S.VPSDE()), gm.sample(20, generator())
    with pytest.raises(ArgumentError, match=r"`steps` must be 18 calls or more, got 9"):
        S.log_likelihood(model, x, S.Exact(), steps=9)
    with pytest.warns(LikelihoodWarning, match=r"of 20 samples may be off by more than 0\.001 nats a dimension"):
        S.log_likelihood(model, x, S.Exact(), steps=18)
    with pytest.warns(LikelihoodWarning):
        found = S.log_likelihood(model, x, S.Exact(), method="rk4")
    error = (found.log_prob - gm.log_prob(x)).abs()
    assert (error <= 3 * found.error).all()
    with pytest.raises(ArgumentError, match="rtol"):
        S.log_likelihood(model, x, S.Exact(), rtol=0.0)


def test_the_tolerance_is_that_of_atol():
    gm = mixture(low=0.1)
    model, x = gm.model(S.VPSDE()), gm.sample(20, generator())
    loose, tight = (S.log_likelihood(model, x, S.Exact(), atol=atol) for atol in (1e-1, 1e-5))
    assert loose.nfe == 100
    assert tight.nfe > 200
    assert (tight.error < 2e-5).all()
