"""The exponential multistep solver: measured orders, closed forms, and its error per network call."""

import math
from functools import cache

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sampling import DPMSolver
from scoresde.sampling.multistep import data_levels, end_weights, exponential_weights, gaussian_flow
from tests.statistics_tools import measured_order

SMOOTH = S.GaussianMixture([[1.0, 0.5], [-0.8, 0.3], [0.2, -1.0]], [0.5, 0.4, 0.6])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def anisotropic(d, high, seed):
    """8 Gaussians with means from N(0, I) and standard deviations from 0.05 to ``high`` along axes of their own."""
    g = generator(seed)
    means = torch.randn(8, d, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(8, d, d, generator=g, dtype=torch.float64))[0]
    std = 0.05 * (high / 0.05) ** torch.rand(8, d, generator=g, dtype=torch.float64)
    return S.GaussianMixture(means, torch.einsum("kia,ka,kja->kij", axes, std**2, axes))


def flow(model, x, t_min=None, last="half-tweedie"):
    return S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-10, atol=1e-10, t_min=t_min, last=last), start=x)


ORDERS = [(1, False), (2, False), (3, False), (4, False), (1, True), (2, True), (3, True)]


@pytest.mark.parametrize("sde", [S.VPSDE.cosine(), S.VESDE(0.01, 1e5), S.FlowSDE()])
@pytest.mark.parametrize(("order", "corrector"), ORDERS)
def test_declared_order_is_measured(sde, order, corrector):
    """Global order p, and p + 1 with the corrector, uniform in log-SNR (slope within 0.2).

    The first steps have fewer nodes; they lie at lambda = -8, where x0 is nearly constant.
    """
    model, ends, x, exact = order_problem(sde)
    counts = (241, 481, 961)
    solver = DPMSolver(order, corrector=corrector, grid="log_snr", **ends)
    errors = [(S.sample(model, x.shape, solver, n, start=x) - exact).norm(dim=1).mean().item() for n in counts]
    assert measured_order(errors, [1 / (n - 1) for n in counts]) == pytest.approx(order + corrector, abs=0.2)


@cache
def order_problem(sde):
    """A smooth stretch of the flow, from lambda = -8 to 1.5, and its solution."""
    model = SMOOTH.model(sde)
    ends = {"t_min": sde.time_of(2 * 1.5).item(), "t_max": sde.time_of(2 * -8.0).item(), "last": "none"}
    x = SMOOTH.sample(8, generator())
    level = sde.level(ends["t_max"], x)
    x = level.alpha * x + level.sigma * torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    return model, ends, x, S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-11, atol=1e-11, **ends), start=x)


def test_D6_order_one_is_ddim():
    """One node and no corrector: the exponential Euler step, DDIM's with eta = 0, on the same levels."""
    model = SMOOTH.model(S.VPSDE())
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    ours = S.sample(model, x.shape, DPMSolver(1, corrector=False, grid="time", last="none"), 11, start=x)
    ddim = S.sample(model, x.shape, S.DDIM(last="none"), 10, start=x)
    torch.testing.assert_close(ours, ddim, rtol=1e-12, atol=1e-12)


def test_order_one_stochastic_is_the_ancestral_step():
    """tau = 1 and one node: the posterior's mean and variance, with the same noise."""
    model = SMOOTH.model(S.VPSDE())
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    solver = DPMSolver(1, stochastic=True, corrector=False, grid="time", last="none")
    ours = S.sample(model, x.shape, solver, 11, start=x, generator=generator(1))
    ancestral = S.sample(model, x.shape, S.DDIM(1.0, last="none"), 10, start=x, generator=generator(1))
    torch.testing.assert_close(ours, ancestral, rtol=1e-10, atol=1e-10)


def test_given_times_are_the_levels_of_the_calls():
    model = SMOOTH.model(S.VPSDE())
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    times = S.sampling.time_grid(model.sde, 10, "log_snr")
    given = S.sample(model, x.shape, DPMSolver(grid=times.tolist()), start=x)
    torch.testing.assert_close(given, S.sample(model, x.shape, DPMSolver(grid="log_snr"), 11, start=x))
    with pytest.raises(ArgumentError, match="grid: got 11 times"):
        S.sample(model, x.shape, DPMSolver(grid=times), 10, start=x)
    with pytest.raises(ArgumentError, match="with noise"):
        S.sample(model, x.shape, DPMSolver(grid=[1.0, 0.5, 0.0]), start=x)


def test_the_deterministic_solver_decodes():
    model = SMOOTH.model(S.VPSDE())
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    assert torch.equal(S.decode(model, x, DPMSolver(), 10), S.sample(model, x.shape, DPMSolver(), 10, start=x))
    with pytest.raises(ArgumentError, match="deterministic"):
        S.decode(model, x, DPMSolver(stochastic=True), 10)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_weights_integrate_polynomials_exactly(tau):
    nodes, a, b, rate = (-1.0, -0.4, 0.1, 0.5), 0.5, 1.1, 1 + tau**2
    weights = exponential_weights(a, b, nodes, tau)
    assert sum(weights) == pytest.approx(-math.expm1(-rate * (b - a)), rel=1e-13)
    # int rate e^{-rate (b - l)} l dl, by parts
    first = b - a * math.exp(-rate * (b - a)) + math.expm1(-rate * (b - a)) / rate
    assert sum(w * n for w, n in zip(weights, nodes, strict=True)) == pytest.approx(first, rel=1e-12)


def test_end_weights_are_half_tweedie_and_exact_for_polynomials():
    assert end_weights([0.3]) == [pytest.approx(0.045)]
    rhos = [0.5, 0.4, 0.3, 0.2]
    weights = end_weights(rhos)
    for power in range(4):  # eps/rho = rho^(2 power): the integral of rho^(2 power) / 2 over rho^2
        expected = 0.5 * 0.2 ** (2 * power + 2) / (power + 1)
        assert sum(w * r ** (2 * power) for w, r in zip(weights, rhos, strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("sde", [S.VPSDE(), S.SubVPSDE(), S.VESDE(), S.VPSDE.cosine(), S.FlowSDE()])
def test_the_gaussian_flow_is_the_flow_of_a_gaussian(sde):
    gaussian = S.GaussianMixture(
        [[1.0, -2.0, 0.5]], torch.tensor([[[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]]])
    )
    model = gaussian.model(sde)
    x = sde.prior_sample((6, 3), generator(), dtype=torch.float64)
    t_max, t = sde.time_of(-20.0).item(), sde.time_of(0.5).item()
    start, end = sde.levels(torch.tensor([t_max, t], dtype=torch.float64))
    by_ode = flow(model, x, t, last="none")
    torch.testing.assert_close(gaussian_flow(gaussian.moments, x, start, end), by_ode, rtol=0, atol=1e-7)


#: mean endpoint error / sqrt(d), measured over other mixtures with a margin of about a half
ERRORS = {
    (2, 0.4): {5: 0.05, 10: 7e-3, 20: 1.4e-3, 50: 4e-5, 100: 5e-6},
    (64, 1.0): {5: 0.09, 10: 0.02, 20: 2.7e-3, 50: 1.2e-4, 100: 8e-6},
}


@pytest.mark.parametrize("sde", [S.VPSDE(), S.VESDE()])
@pytest.mark.parametrize(("d", "high"), ERRORS)
def test_default_error_per_network_call(d, high, sde):
    """The default solver on a mixture it was not tuned on, against dopri5 at 1e-10 from the same noise."""
    gm = anisotropic(d, high, seed=11)
    model = gm.model(sde)
    x = sde.prior_sample((32, d), generator(3), dtype=torch.float64)
    exact = flow(model, x)
    for n, bound in ERRORS[d, high].items():
        *_, end = S.trajectory(model, x.shape, DPMSolver(), n, start=x)
        assert end.calls == n
        ours = end.x
        assert ((ours - exact).norm(dim=1) / math.sqrt(d)).mean() < bound


def test_levels_grow_and_widen_with_the_calls():
    moments = SMOOTH.moments
    for n in (1, 2, 5, 50):
        assert len(data_levels(moments, n)) == n
        assert (data_levels(moments, n)[1:] > data_levels(moments, n)[:-1]).all()
    assert (
        data_levels(moments, 50)[0]
        < data_levels(moments, 5)[0]
        < data_levels(moments, 5)[-1]
        < data_levels(moments, 50)[-1]
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("sde", [S.VPSDE(), S.SubVPSDE(), S.VESDE(), S.VPSDE.cosine(), S.FlowSDE(), S.DDPM.linear(50)])
@pytest.mark.parametrize("grid", ["data", "log_snr", "time", "karras"])
def test_few_steps_stay_finite(sde, steps, grid):
    for stochastic in (False, True):
        x = S.sample(
            SMOOTH.model(sde), (4, 2), DPMSolver(stochastic=stochastic, grid=grid), steps, generator=generator()
        )
        assert x.isfinite().all()


def test_a_sample_does_not_depend_on_its_batch():
    model = SMOOTH.model(S.VPSDE())
    for stochastic in (False, True):
        generators = [generator(i) for i in range(5)]
        many = S.sample(model, (5, 2), DPMSolver(stochastic=stochastic), 12, generator=generators)
        one = S.sample(model, (1, 2), DPMSolver(stochastic=stochastic), 12, generator=[generator(3)])
        torch.testing.assert_close(one[0], many[3], rtol=1e-10, atol=1e-10)


def test_bad_settings_are_refused():
    with pytest.raises(ArgumentError, match="order"):
        DPMSolver(order=6)
    with pytest.raises(ArgumentError, match="stochastic"):
        DPMSolver(stochastic=-0.5)
    with pytest.raises(UnknownNameError, match="grid"):
        DPMSolver(grid="levels of data")
    with pytest.raises(UnknownNameError, match="last"):
        DPMSolver(last="denoise")
