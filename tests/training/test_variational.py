"""The variational objectives (P4, P7, P8) and one network for every eta."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import scoresde as S
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.training import DDIMVariational, Levels, LossAware
from tests.families import FAMILIES
from tests.generators import generator
from tests.marks import first_fast
from tests.reference.ddpm import products
from tests.reference.score_matching import ddim_objective, vlb_terms

BETAS = [0.1, 0.3, 0.2, 0.5, 0.4]


class Polynomial(S.Model):
    """eps_theta = a x + b t + c x^3 and v = 1/(1 + e^-x), in float64.

    NumPy can evaluate the same network.
    """

    def __init__(self, sde, theta=(0.7, 0.2, 0.05), learned=True):
        super().__init__()
        self.sde, self.learned = sde, learned
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def estimate(self, x, level, cond=None):
        a, b, c = self.theta
        t = level.t.to(x).reshape(-1, *(1,) * (x.ndim - 1)) if isinstance(level.t, torch.Tensor) else level.t
        eps = a * x + b * t + c * x**3
        return S.Estimate((x - level.sigma * eps) / level.alpha, eps, level, torch.sigmoid(x) if self.learned else None)

    def noise(self, x, i):
        """Return the same noise in NumPy, at level i."""
        a, b, c = self.theta.tolist()
        return a * x + b * i / len(BETAS) + c * x**3


def every_level(objective, model, x0, seed=1):
    """Return the terms and the noise with each level once per row of x0.

    x0 is ``(N, n)``; the terms are sorted by level.
    """
    levels = len(BETAS)
    assert len(x0) == levels
    terms = objective.terms(model, x0, generator=generator(seed))
    g = generator(seed)
    torch.rand(1, generator=g)
    eps = torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    order = terms.t.argsort()
    torch.testing.assert_close(terms.t[order], torch.arange(1, levels + 1) / levels)
    return terms.loss[order], eps[order].numpy()


@pytest.fixture
def x0():
    return torch.randn(1, 3, generator=generator(5), dtype=torch.float64).expand(len(BETAS), 3)


# ---- D4 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.1])
def test_D4_every_variational_objective_is_a_simple_loss(eta, x0):
    """Compare J, computed literally KL by KL, with the weighted simple loss.

    J = sum gamma_i |eps - eps_theta|^2 + C, with one C for all networks.
    """
    objective = S.DenoisingScoreMatching(DDIMVariational(eta))
    constants = []
    for theta in ((0.7, 0.2, 0.05), (0.0, 0.0, 0.0), (-0.3, 1.0, 0.1)):
        model = Polynomial(S.DDPM(BETAS), theta)
        loss, noises = every_level(objective, model, x0)
        J = ddim_objective(model.noise, x0[0].numpy(), BETAS, eta, noises)
        constants.append(J.sum() - loss.mean().item())
        torch.testing.assert_close(loss[1:].detach() / len(BETAS), torch.from_numpy(J[1:]), rtol=1e-5, atol=1e-8)
    C = 1.5 * math.log(2 * math.pi * eta**2 * BETAS[0])  # of -log N(x_0; f, s_1^2)
    np.testing.assert_allclose(constants, C, rtol=1e-5, atol=1e-4)


def test_D4_one_network_serves_every_eta():
    """Find each objective's minimum literally: it is that of L_simple.

    The levels share no parameters.
    """
    ddpm, g = S.DDPM(BETAS), np.random.default_rng(0)
    abar, i, N = products(BETAS).astype(float), 3, 4000
    x_0 = g.standard_normal(N) * 0.5 + 0.3
    eps = g.standard_normal(N)
    x_i = np.sqrt(abar[i]) * x_0 + np.sqrt(1 - abar[i]) * eps

    def J(a, b, eta):  # one level of the literal objective, eps_theta = a x + b, for all samples at once
        s2 = eta**2 * (1 - abar[i - 1]) / (1 - abar[i]) * (1 - abar[i] / abar[i - 1])
        f = (x_i - np.sqrt(1 - abar[i]) * (a * x_i + b)) / np.sqrt(abar[i])

        def mean(x0):
            direction = (x_i - np.sqrt(abar[i]) * x0) / np.sqrt(1 - abar[i])
            return np.sqrt(abar[i - 1]) * x0 + np.sqrt(1 - abar[i - 1] - s2) * direction

        return np.mean((mean(x_0) - mean(f)) ** 2) / (2 * s2)

    def minimum(loss):  # minimum of a quadratic function of (a, b), by Newton's method with differences
        at = {(p, q): loss(p, q) for p, q in itertools.product((-1.0, 0.0, 1.0), repeat=2)}
        gradient = [(at[1.0, 0.0] - at[-1.0, 0.0]) / 2, (at[0.0, 1.0] - at[0.0, -1.0]) / 2]
        cross = (at[1.0, 1.0] - at[1.0, -1.0] - at[-1.0, 1.0] + at[-1.0, -1.0]) / 4
        second = [at[1.0, 0.0] + at[-1.0, 0.0] - 2 * at[0.0, 0.0], at[0.0, 1.0] + at[0.0, -1.0] - 2 * at[0.0, 0.0]]
        return np.linalg.solve([[second[0], cross], [cross, second[1]]], np.negative(gradient))

    simple = np.linalg.lstsq(np.stack([x_i, np.ones(N)], 1), eps, rcond=None)[0]
    for eta in (1.0, 0.5, 0.1):
        np.testing.assert_allclose(minimum(lambda a, b, eta=eta: J(a, b, eta)), simple, rtol=1e-6)
    assert (DDIMVariational(0.5).gamma(ddpm) > 0).all()


def test_D4_P5_gamma_at_eta_one_is_the_mean_parametrisations():
    """Compare gamma at eta = 1 with the mean parametrisation's weights.

    beta_i^2 / (2 beta~_i (1 - beta_i)(1 - abar_i)), and gamma_1 = 1/(2 abar_1).
    """
    ddpm = S.DDPM.linear(1000)
    abar, beta = products(ddpm.betas.numpy()), ddpm.betas.numpy().astype(np.longdouble)
    small = (1 - abar[1:-1]) / (1 - abar[2:]) * beta[1:]
    expected = beta[1:] ** 2 / (2 * small * (1 - beta[1:]) * (1 - abar[2:]))
    gamma = DDIMVariational().gamma(ddpm).numpy()
    np.testing.assert_allclose(gamma[1:], expected.astype(float), rtol=1e-9)
    assert gamma[0] == pytest.approx(1 / (2 * float(abar[1])), rel=1e-12)


# ---- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["learned", "posterior", "forward"])
def test_P4_P7_every_term_of_the_bound_is_the_papers(variance, x0):
    model = Polynomial(S.DDPM(BETAS))
    loss, noises = every_level(S.VLB(variance, Levels()), model, x0)
    abar = products(BETAS).astype(float)
    for i in range(1, len(BETAS) + 1):
        x_i = np.sqrt(abar[i]) * x0[0].numpy() + np.sqrt(1 - abar[i]) * noises[i - 1]
        v = {"learned": 1 / (1 + np.exp(-x_i)), "posterior": 0.0, "forward": 1.0}[variance]
        expected = len(BETAS) * vlb_terms(model.noise, v, x0[0].numpy(), BETAS, noises)[i - 1]
        assert loss[i - 1].item() == pytest.approx(float(expected), rel=1e-5), i


def test_P4_the_first_term_of_integers_is_their_bins_mass():
    """Compare with the normal distribution function, bin by bin.

    The first and last bins reach to infinity.
    """
    model = Polynomial(S.DDPM(BETAS), learned=False)
    model.scaling = S.data.Scaling.for_integers(4)
    raw = torch.tensor([[0, 1, 2, 3]]).expand(5, 4)
    x0 = model.scaling.bin_centres(raw, torch.float64)
    loss, noises = every_level(S.VLB(time_sampling="levels"), model, x0)
    abar = products(BETAS).astype(float)
    x_1 = np.sqrt(abar[1]) * x0[0].numpy() + np.sqrt(1 - abar[1]) * noises[0]
    f = (x_1 - np.sqrt(1 - abar[1]) * model.noise(x_1, 1)) / np.sqrt(abar[1])
    std = math.sqrt((1 - abar[1]) / (1 - abar[2]) * BETAS[1])
    edges = [-math.inf, -0.5, 0.0, 0.5, math.inf]
    phi = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
    mass = phi((np.array(edges[1:]) - f) / std) - phi((np.array(edges[:-1]) - f) / std)
    assert loss[0].item() == pytest.approx(-5 * np.log(mass).sum(), rel=1e-5)


def test_P8_the_hybrid_loss_is_the_sum_and_detaches_the_mean(x0):
    """Compare the hybrid loss and its gradients with L_simple + w L_vlb.

    The gradient of the mean is that of L_simple alone, that of the variances that of w L_vlb.
    """

    class Two(Polynomial):
        def __init__(self, sde):
            super().__init__(sde)
            self.slope = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def estimate(self, x, level, cond=None):
            return super().estimate(x, level)._replace(v=torch.sigmoid(self.slope * x))

    model = Two(S.DDPM(BETAS))
    objectives = {
        "hybrid": S.HybridVLB(0.01),
        "simple": S.DenoisingScoreMatching(time_sampling="levels"),
        "vlb": S.VLB("learned", "levels"),
    }
    losses = {name: every_level(objective, model, x0)[0] for name, objective in objectives.items()}
    torch.testing.assert_close(losses["hybrid"], losses["simple"] + 0.01 * losses["vlb"], rtol=1e-9, atol=0)
    grads = {}
    for name, loss in losses.items():
        grads[name] = torch.autograd.grad(loss.sum(), [model.theta, model.slope], allow_unused=True)
    torch.testing.assert_close(grads["hybrid"][0], grads["simple"][0], rtol=1e-9, atol=0)
    torch.testing.assert_close(grads["hybrid"][1], 0.01 * grads["vlb"][1], rtol=1e-9, atol=0)
    assert grads["simple"][1] is None


def test_P8_loss_aware_sampling_cuts_the_variance_of_the_bound(mixture_2d):
    """Measure the variance over levels for a network with a known error.

    The error is 0.1 in the noise at every level, under a DDPM of 100 levels. The sampling learns the levels' scale from
    its own losses and stays unbiased: the means agree within 4.5 standard errors.
    """
    exact = mixture_2d.model(S.DDPM.linear(100))

    class Off(S.Model):
        sde = exact.sde

        def estimate(self, x, level, cond=None):
            return S.Estimate(x, exact.estimate(x, level).eps + 0.1, level)

    x0, g, losses = mixture_2d.sample(4000, generator(1)), generator(2), {}
    for name, sampling in {"levels": Levels(low_discrepancy=False), "aware": LossAware(low_discrepancy=False)}.items():
        objective = S.VLB(time_sampling=sampling)
        for _ in range(4):  # ten losses of each level
            objective(Off(), x0, generator=g)
        losses[name] = objective(Off(), x0, generator=g)
    variance = {name: loss.var().item() for name, loss in losses.items()}
    assert variance["aware"] < 0.5 * variance["levels"], variance
    difference = losses["aware"].mean() - losses["levels"].mean()
    assert difference.abs() < 4.5 * math.sqrt(sum(variance.values()) / 4000)


def test_P8_learned_variances_find_the_best_constant():
    """Minimise L_vlb for data whose best variance is known.

    White data: beta (v = 1); a point: beta~ (v = 0).
    """
    sde = S.DDPM(BETAS)

    class Constant(S.Model):
        def __init__(self, spread):
            super().__init__()
            self.sde = sde
            self.u = nn.Parameter(torch.zeros(()))
            self.exact = S.GaussianMixture(torch.zeros(1, 2), spread).model(sde)

        def estimate(self, x, level, cond=None):
            return self.exact.estimate(x, level)._replace(v=torch.sigmoid(self.u) * torch.ones_like(x))

    for spread, towards in ((1.0, 1), (1e-4, -1)):
        model = Constant(spread)
        x0 = math.sqrt(spread) * torch.randn(2000, 2, generator=generator(1))
        loss = S.HybridVLB(time_sampling=Levels())(model, x0, generator=generator(2)).mean()
        (gradient,) = torch.autograd.grad(loss, model.u)
        assert gradient.item() * towards < 0


@first_fast("sde", FAMILIES)
def test_every_process_any_rank_and_every_loss_is_finite(sde):
    """Check losses and gradients of every process at any rank.

    Discrete processes have their own levels, the others a thousand.
    """
    net = S.UNet((1, 4, 4), channels=4, num_groups=2, heads=2, out_channels=2, classes=3, zero_init=False)
    model = S.ScoreModel(net, FAMILIES[sde], "edm", time_input="log_snr", learned_variance=True)
    model.scaling = S.data.Scaling.for_integers(8)
    x0 = model.scaling.to_model(torch.randint(0, 8, (16, 1, 4, 4), generator=generator(1)), generator(2))
    y = torch.arange(16) % 3
    for objective in (S.HybridVLB(), S.VLB(), S.VLB("forward", "levels")):
        loss = objective(model, x0, {"y": y}, generator(3))
        assert loss.shape == (16,)
        assert loss.isfinite().all()
        grads = torch.autograd.grad(loss.mean(), list(net.parameters()), allow_unused=True)
        assert all(g.isfinite().all() for g in grads if g is not None)


@first_fast("sde", FAMILIES)
def test_the_first_term_is_finite_however_wrong_the_network(sde):
    """Place means a hundred deviations off the bin, at level 1 only.

    Loss and gradient are finite.
    """
    torch.manual_seed(0)
    net = S.ResidualMLP((2,), width=16, blocks=1, out_channels=4)
    nn.init.normal_(net.head[-1].weight, std=3.0)
    scaling = S.data.Scaling.for_integers(256)
    model = S.ScoreModel(net, FAMILIES[sde], "data", time_input="log_snr", learned_variance=True, scaling=scaling)
    x0 = scaling.to_model(torch.randint(0, 256, (64, 2), generator=generator(1)), generator(2))
    grid = Levels().grid(FAMILIES[sde])
    objective = S.VLB(time_sampling="levels")
    objective.draws.draw = lambda n, *_: (torch.full((n,), grid.end / grid.count), torch.ones(n))
    loss = objective(model, x0)
    assert loss.isfinite().all()
    assert loss.max() > 100
    grads = torch.autograd.grad(loss.mean(), list(net.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in grads if g is not None)


def test_a_chain_of_one_level():
    loss = S.VLB(time_sampling=Levels())(Polynomial(S.DDPM([0.5])), torch.ones(3, 2, dtype=torch.float64))
    assert loss.isfinite().all()


def test_the_objective_carries_its_state(x0):
    model, first, second = Polynomial(S.DDPM(BETAS)), S.VLB(), S.VLB()
    for i in range(30):
        first(model, x0, generator=generator(i))
    second.load_state_dict(first.state_dict())
    assert first.state_dict()["seen"].sum() == 150
    assert torch.equal(first(model, x0, generator=generator(99)), second(model, x0, generator=generator(99)))
    with torch.no_grad():  # an evaluation changes no state
        before = first.state_dict()["seen"]
        first(model, x0, generator=generator(1))
    assert torch.equal(first.state_dict()["seen"], before)


def test_bad_arguments_are_refused(x0):
    plain = Polynomial(S.DDPM(BETAS), learned=False)
    with pytest.raises(ArgumentError, match="learned_variance=True"):
        S.HybridVLB()(plain, x0)
    with pytest.raises(ArgumentError, match=r"`weight` must be .*, got 0"):
        S.HybridVLB(0)
    with pytest.raises(UnknownNameError, match="variance"):
        S.VLB("large")
    with pytest.raises(UnknownNameError, match="time_sampling"):
        S.VLB(time_sampling="uniform")
    with pytest.raises(ArgumentError, match="eta"):
        DDIMVariational(0.0)
