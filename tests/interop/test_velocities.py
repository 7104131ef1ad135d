"""Velocity networks of other libraries: their own loops give what ours do."""

import itertools

import pytest
import torch

from scoresde.errors import ArgumentError
from scoresde.interop.velocities import from_flow_matching, from_torchcfm
from scoresde.models import GaussianMixture
from scoresde.sampling import DDIM, ProbabilityFlow, encode, sample
from scoresde.sde import VESDE
from tests.interop.libraries import library
from tests.interop.test_denoisers import Backbone


@pytest.fixture
def start():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_flow_matching(start):
    solver = library("flow_matching", "solver.ode_solver")
    net = Backbone().double()
    with torch.no_grad():
        theirs = solver.ODESolver(velocity_model=net).sample(start, step_size=0.1, method="euler")
    grid = torch.linspace(1, 0, 11, dtype=torch.float64).tolist()
    ours = sample(from_flow_matching(net), (6, 4), DDIM(grid=grid), start=start)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["CosineScheduler", "VPScheduler", "LinearVPScheduler"])
def test_other_paths_of_flow_matching_have_their_score(name):
    """Compare estimates from a mixture's velocity with the mixture's."""
    scheduler = getattr(library("flow_matching", "path.scheduler.scheduler"), name)()
    mixture = GaussianMixture(
        torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).double(), 0.1 * torch.eye(2).double().expand(2, 2, 2)
    )
    exact = mixture.model(VESDE.linear(1e4))

    def velocity(x, t):
        found = scheduler(t)
        alpha, sigma, up, down = (v.reshape(-1, 1) for v in found.__dict__.values())
        level = exact.sde.level(exact.sde.time_of(-2 * (sigma / alpha).log()).reshape(-1), x)
        estimate = exact.estimate(x / alpha, level)
        return up * estimate.x0 + down * estimate.eps

    model = from_flow_matching(velocity, scheduler)
    rho = torch.tensor([0.05, 0.3, 2.0, 20.0], dtype=torch.float64)
    y = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * (1 + rho[:, None])
    ours = model(y, model.sde.time_of(-2 * rho.log()))
    truth = exact(y, exact.sde.time_of(-2 * rho.log()))
    torch.testing.assert_close(ours.x0, truth.x0, rtol=1e-6, atol=1e-6)


def test_torchcfm(start):
    models = library("torchcfm", "models.models")
    torch.manual_seed(0)
    net = models.MLP(4, time_varying=True).double()
    model = from_torchcfm(net, order="joined")
    x, times = start, torch.linspace(0, 1, 11, dtype=torch.float64)
    with torch.no_grad():
        for t, after in itertools.pairwise(times):
            x = x + (after - t) * net(torch.cat([x, t.expand(6, 1)], dim=1))
    ours = sample(model, (6, 4), DDIM(grid=(1 - times).tolist()), start=start)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)


def test_the_noise_of_torchcfms_paths_is_counted():
    """Compare with a Gaussian on x_t = t x_0 + (1 - t) eps + sigma eps'."""
    sigma, std = 0.2, 0.7

    def velocity(t, x):  # E[x_0 - eps | x_t] for x_0 ~ N(1, std^2)
        t = t.reshape(-1, 1)
        variance = t**2 * std**2 + (1 - t) ** 2 + sigma**2
        return 1 + (t * std**2 - (1 - t)) / variance * (x - t)

    model = from_torchcfm(velocity, sigma)
    rho = torch.tensor([0.25, 1.0, 5.0], dtype=torch.float64)
    y = torch.tensor([[0.5], [2.0], [-3.0]], dtype=torch.float64)
    expected = (rho[:, None] ** 2 + std**2 * y) / (rho[:, None] ** 2 + std**2)
    torch.testing.assert_close(model(y, model.sde.time_of(-2 * rho.log())).x0, expected, rtol=1e-9, atol=1e-9)


def test_an_encoded_sample_decodes_to_itself(start):
    model = from_flow_matching(Backbone().double())
    flow = ProbabilityFlow(rtol=1e-9, atol=1e-9)
    x = sample(model, (6, 4), flow, start=start)
    torch.testing.assert_close(encode(model, x, flow), start, rtol=0, atol=1e-5)


def test_wrong_orders_and_paths_are_refused():
    with pytest.raises(ArgumentError, match="'tx' or 'xt' or 'joined'"):
        from_torchcfm(Backbone(), order="t")

    class Back:
        def __call__(self, t):
            return type("Found", (), {"alpha_t": 1 - t, "sigma_t": t, "d_alpha_t": -(t**0), "d_sigma_t": t**0})

    with pytest.raises(ArgumentError, match="does not grow"):
        from_flow_matching(Backbone(), Back())
