"""log p by the probability flow, against densities that are known."""

import math

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, DataError, DTypeError, NonFiniteError, ShapeError, UnknownNameError
from scoresde.likelihood import Hutchinson


def mixture(d=2, K=8, low=0.05, seed=0):
    """K anisotropic Gaussians with stds from ``low`` to 0.4, means from N(0, I)."""
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


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sde", SDES)
def test_E9_exact_trace_gives_the_density_of_the_mixture(sde):
    """2-D, stds from 0.05: every one of 40 points within 2e-4 nats of the truth, 2e-5 on average."""
    gm = mixture()
    x = gm.sample(40, generator())
    result = S.log_likelihood(gm.model(SDES[sde]), x, S.Exact())
    error = (result.log_prob - gm.log_prob(x)).abs()
    assert error.max() < 2e-4
    assert error.mean() < 2e-5
    assert torch.equal(result.stderr, torch.zeros(40, dtype=torch.float64))


def test_E9_density_of_one_gaussian_at_any_rank():
    for shape in [(1,), (3,), (2, 3), (1, 2, 2), (1, 2, 2, 2)]:
        n = math.prod(shape)
        gm = S.GaussianMixture(torch.ones(1, *shape), 0.3)
        x = gm.sample(3, generator())
        closed = -0.5 * ((x - 1) ** 2 / 0.3).flatten(1).sum(1) - 0.5 * n * math.log(2 * math.pi * 0.3)
        torch.testing.assert_close(S.log_likelihood(gm.model(S.VPSDE()), x).log_prob, closed, rtol=0, atol=1e-4 * n)


@pytest.mark.parametrize("method", ["bosh3", "dopri8", "rk4", "heun", "RK45", "DOP853"])
def test_E9_methods_agree(method):
    gm = mixture(low=0.2)
    x = gm.sample(4, generator())
    steps = {"rk4": 60, "heun": 600}.get(method)
    result = S.log_likelihood(gm.model(S.VPSDE()), x, S.Exact(), 1e-6, 1e-6, method, steps=steps)
    assert (result.log_prob - gm.log_prob(x)).abs().max() < 3e-4


def test_the_end_counts():
    """VE from sigma_min = 0.01, stds from 0.05: each order of the end takes more than five times off the error."""
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


def test_the_matched_prior_counts():
    """VE's N(0, sigma_max^2 I) ignores the data's own spread: an error of some 1e-3 nats, which matching mends."""
    gm = S.GaussianMixture([[3.0, 0.0], [-1.0, 2.0]], [[0.1, 0.2], [0.3, 0.1]])
    x = gm.sample(40, generator())
    matched, plain = (
        S.log_likelihood(gm.model(S.VESDE(sigma_max=20.0)), x, S.Exact(), prior=prior).log_prob - gm.log_prob(x)
        for prior in ("matched", "sde")
    )
    assert matched.abs().mean() < 2e-4
    assert plain.abs().mean() > 3e-3


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_E9_hutchinson_is_unbiased_and_its_standard_error_is_right(method, distribution):
    """200 repeats of 4 probes, as rows of one batch with generators of their own: the mean is within 4.5 standard
    errors of the exact trace (false alarm 7e-6), the reported standard error within 25 % of the repeats' spread."""
    gm = mixture(d=6, K=3, low=0.2)
    x, model = gm.sample(1, generator()).expand(200, -1), gm.model(S.VPSDE())
    settings = {"method": method, "rtol": 1e-4, "atol": 1e-4, "steps": 20}
    exact = S.log_likelihood(model, x[:1], S.Exact(), **settings).log_prob
    generators = [generator(i) for i in range(200)]
    run = S.log_likelihood(model, x, Hutchinson(4, distribution), generator=generators, **settings)
    spread = run.log_prob.std().item()
    assert abs(run.log_prob.mean().item() - exact.item()) < 4.5 * spread / math.sqrt(200) + 1e-3
    assert run.stderr.square().mean().sqrt().item() / spread == pytest.approx(1, abs=0.25)


def test_fresh_probes_average_out_along_the_path():
    """On a fixed grid a draw at every stage gives less than half the spread of one draw for the whole path."""
    gm = mixture(d=6, K=3, low=0.2)
    x, model = gm.sample(1, generator()).expand(200, -1), gm.model(S.VPSDE())
    fresh, frozen = (
        S.log_likelihood(model, x, Hutchinson(1, fresh=fresh), method="rk4", generator=generator()).log_prob.std()
        for fresh in (True, False)
    )
    assert fresh < 0.5 * frozen


def test_one_probe_gives_no_standard_error():
    gm = mixture(low=0.2)
    result = S.log_likelihood(gm.model(S.VPSDE()), gm.sample(3, generator()), Hutchinson(1), generator=generator())
    assert result.stderr.isnan().all()
    assert result.log_prob.isfinite().all()


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
def test_a_samples_density_does_not_depend_on_its_batch(method):
    gm = mixture()
    x, model = gm.sample(6, generator()), gm.model(S.VESDE())
    for divergence in (S.Exact(), Hutchinson(2)):
        generators = [generator(i) for i in range(6)]
        together = S.log_likelihood(model, x, divergence, method=method, generator=generators, steps=20)
        for i in (0, 5):
            alone = S.log_likelihood(model, x[i : i + 1], divergence, method=method, generator=[generator(i)], steps=20)
            torch.testing.assert_close(alone.log_prob[0], together.log_prob[i], rtol=0, atol=1e-6)


def test_equal_seeds_give_equal_densities_bit_for_bit():
    gm = mixture(d=20)
    x, model = gm.sample(3, generator()), gm.model(S.VPSDE())
    first, again, other = (S.log_likelihood(model, x, method="rk4", generator=generator(s)).log_prob for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_latent_is_the_start_of_the_flow():
    """x_1 of the likelihood, decoded by the probability flow, is x_0 again (E11)."""
    gm = mixture(low=0.2)
    x, model = gm.sample(5, generator()), gm.model(S.VPSDE())
    latent = S.log_likelihood(model, x, S.Exact(), 1e-8, 1e-8).latent
    again = S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-8, atol=1e-8), start=latent)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-6)


class Spoiled(S.Model):
    """A mixture's model that gives NaN for samples whose first entry is above 100."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde, self.moments = inner, inner.sde, inner.moments

    def estimate(self, x, level, cond=None):
        estimate = self.inner.estimate(x, level, cond)
        return estimate._replace(eps=torch.where(x[:, :1] > 100, torch.nan, estimate.eps))


def test_bad_input_is_refused_and_named():
    gm = mixture(low=0.2)
    model = gm.model(S.VPSDE())
    x = gm.sample(3, generator())
    with pytest.raises(DTypeError, match="use bits_per_dim"):
        S.log_likelihood(model, torch.zeros(3, 2, dtype=torch.uint8))
    with pytest.raises(NonFiniteError, match=r"x0: NaN or infinity in 1 of 3 samples \(1\)"):
        S.log_likelihood(model, torch.where(torch.arange(3)[:, None] == 1, torch.nan, x))
    with pytest.raises(NonFiniteError, match=r"in 1 of 3 samples \(2\)"):
        S.log_likelihood(Spoiled(model), torch.where(torch.arange(3)[:, None] == 2, 1000.0, x))
    with pytest.raises(ShapeError, match="x"):
        S.log_likelihood(model, torch.zeros(3, 5))
    with pytest.raises(UnknownNameError, match="prior"):
        S.log_likelihood(model, x, prior="gaussian")
    with pytest.raises(UnknownNameError, match="end"):
        S.log_likelihood(model, x, end="tweedie")
    with pytest.raises(ArgumentError, match="probes"):
        Hutchinson(0)
    with pytest.raises(UnknownNameError, match="did you mean 'rademacher'"):
        Hutchinson(1, "radmacher")
    net = S.ResidualMLP((2,), width=8, blocks=1)
    quantised = S.ScoreModel(net, S.VPSDE(), scaling=S.Scaling.for_levels(17))
    levels = S.Scaling.for_levels(17).bin_centres(torch.tensor([[0, 3], [16, 5]]))
    with pytest.raises(DataError, match="17 exact levels"):
        S.log_likelihood(quantised, levels)
