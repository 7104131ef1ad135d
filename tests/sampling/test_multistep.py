"""The exponential multistep solver: orders, closed forms, error per call."""

import math
from functools import cache

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sampling import DPMSolver
from scoresde.sampling.exponential import exponential_weights, multistep_table
from scoresde.sampling.gaussian_start import GaussianStart
from scoresde.sde import time_grid
from tests.generators import generator
from tests.marks import first_fast
from tests.sampling.problems import SMOOTH, normal
from tests.statistics_tools import measured_order


def anisotropic(d, high, seed):
    """Return 8 Gaussians with means from N(0, I) and random axes.

    Their standard deviations lie between 0.05 and ``high``.
    """
    g = generator(seed)
    means = torch.randn(8, d, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(8, d, d, generator=g, dtype=torch.float64))[0]
    std = 0.05 * (high / 0.05) ** torch.rand(8, d, generator=g, dtype=torch.float64)
    return S.GaussianMixture(means, torch.einsum("kia,ka,kja->kij", axes, std**2, axes))


def flow(model, x, t_min=None, last="half-tweedie"):
    return S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-10, atol=1e-10, t_min=t_min, last=last), start=x)


ORDERS = [(1, False), (2, False), (3, False), (4, False), (1, True), (2, True), (3, True)]


@pytest.mark.slow
@pytest.mark.parametrize("sde", [S.VPSDE.cosine(), S.VESDE(0.01, 1e5), S.FlowSDE()])
@pytest.mark.parametrize(("order", "corrector"), ORDERS)
def test_declared_order_is_measured(sde, order, corrector):
    """Measure global order p, and p + 1 with the corrector (slope within 0.2).

    The steps are uniform in log-SNR. The first steps have fewer nodes; they lie at lambda = -8, where x0 is nearly
    constant.
    """
    model, ends, x, exact = order_problem(sde)
    counts = (241, 481, 961)
    solver = DPMSolver(order, corrector=corrector, grid="log_snr", **ends)
    errors = [(S.sample(model, x.shape, solver, n, start=x) - exact).norm(dim=1).mean().item() for n in counts]
    assert measured_order(errors, [1 / (n - 1) for n in counts]) == pytest.approx(order + corrector, abs=0.2)


@pytest.mark.slow
def test_the_midpoint_form_is_of_second_order():
    """Measure it, and check that it is another method than the integral."""
    model, ends, x, exact = order_problem(S.VPSDE.cosine())
    counts, errors = (241, 481, 961), []
    solver = DPMSolver(2, corrector=False, grid="log_snr", midpoint=True, **ends)
    for n in counts:
        errors.append((S.sample(model, x.shape, solver, n, start=x) - exact).norm(dim=1).mean().item())
    assert measured_order(errors, [1 / (n - 1) for n in counts]) == pytest.approx(2, abs=0.2)
    other = DPMSolver(2, corrector=False, grid="log_snr", **ends)
    assert not torch.allclose(*(S.sample(model, x.shape, one, 20, start=x) for one in (solver, other)))
    for settings in ({"order": 3, "corrector": False}, {"order": 2}):
        with pytest.raises(ArgumentError, match="midpoint"):
            DPMSolver(**settings, midpoint=True)


@cache
def order_problem(sde):
    """Return a model, the ends of its flow, starts and the solution.

    The flow goes from lambda = -8 to 1.5.
    """
    model = SMOOTH.model(sde)
    ends = {"t_min": sde.time_of(2 * 1.5).item(), "t_max": sde.time_of(2 * -8.0).item(), "last": "none"}
    x = SMOOTH.sample(8, generator())
    level = sde.level(ends["t_max"], x)
    x = level.alpha * x + level.sigma * torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    return model, ends, x, S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-11, atol=1e-11, **ends), start=x)


def test_D6_order_one_is_ddim():
    """Compare one node without corrector with DDIM for eta = 0.

    Both are exponential Euler's step.
    """
    model = SMOOTH.model(S.VPSDE())
    x = normal(0, 5, 2)
    ours = S.sample(model, x.shape, DPMSolver(1, corrector=False, grid="time", last="none"), 11, start=x)
    ddim = S.sample(model, x.shape, S.DDIM(last="none"), 10, start=x)
    torch.testing.assert_close(ours, ddim, rtol=1e-12, atol=1e-12)


def test_order_one_stochastic_is_the_ancestral_step():
    """Compare tau = 1 and one node with the posterior's mean and variance.

    The noise is the same.
    """
    model = SMOOTH.model(S.VPSDE())
    x = normal(0, 5, 2)
    solver = DPMSolver(1, stochastic=True, corrector=False, grid="time", last="none")
    ours = S.sample(model, x.shape, solver, 11, start=x, generator=generator(1))
    ancestral = S.sample(model, x.shape, S.DDIM(1.0, last="none"), 10, start=x, generator=generator(1))
    torch.testing.assert_close(ours, ancestral, rtol=1e-10, atol=1e-10)


def test_given_times_are_the_levels_of_the_calls():
    model = SMOOTH.model(S.VPSDE())
    x = normal(0, 5, 2)
    times = time_grid(model.sde, 10, "log_snr")
    given = S.sample(model, x.shape, DPMSolver(grid=times.tolist()), start=x)
    torch.testing.assert_close(given, S.sample(model, x.shape, DPMSolver(grid="log_snr"), 11, start=x))
    with pytest.raises(ArgumentError, match=r"`grid` must be .*, got 11 times"):
        S.sample(model, x.shape, DPMSolver(grid=times), 10, start=x)
    with pytest.raises(ArgumentError, match="with noise"):
        S.sample(model, x.shape, DPMSolver(grid=[1.0, 0.5, 0.0]), start=x)


def test_the_deterministic_solver_decodes():
    model = SMOOTH.model(S.VPSDE())
    x = normal(0, 5, 2)
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


@first_fast("sde", [S.VPSDE(), S.SubVPSDE(), S.VESDE(), S.VPSDE.cosine(), S.FlowSDE()])
def test_the_gaussian_start_is_the_flow_of_a_gaussian(sde):
    """Check that the estimate at the end then has nothing to correct."""
    gaussian = S.GaussianMixture(
        [[1.0, -2.0, 0.5]], torch.tensor([[[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]]])
    )
    model, moments = gaussian.model(sde), gaussian.moments
    x = sde.prior_sample((6, 3), generator(), dtype=torch.float64)
    t_max, t = sde.time_of(-20.0).item(), sde.time_of(0.5).item()
    start, end = sde.levels(torch.tensor([t_max, t], dtype=torch.float64))
    rho = end.sigma / end.alpha
    way = GaussianStart(x / start.alpha, start.rho, moments.gaussian(x))
    by_ode = flow(model, x, t, last="none") / end.alpha
    torch.testing.assert_close(way.flow(rho), by_ode, rtol=0, atol=1e-7)
    corrected = way.correct(model.estimate(end.alpha * by_ode, end).x0, rho)
    torch.testing.assert_close(corrected, by_ode, rtol=0, atol=1e-7)
    above = sde.levels(sde.time_of(torch.tensor([-2.0], dtype=torch.float64)))[0]
    y = way.flow(above.sigma / above.alpha)
    estimate = way.estimate(above.sigma / above.alpha)
    torch.testing.assert_close(estimate, model.estimate(above.alpha * y, above).x0, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_orders_of_the_gaussian_start():
    """Measure the error of y: rho^-2 and, corrected, rho^-3.

    In y/rho, where the flow shifts z, each order is one more.
    """
    sde = S.VESDE(0.01, 2e4)
    gm = S.GaussianMixture([[1.0, 0.5], [-0.8, 0.3], [0.2, -2.0]], [0.5, 0.1, 0.6], [0.5, 0.3, 0.2])
    model, moments = gm.model(sde), gm.moments
    start = sde.levels(torch.ones(1, dtype=torch.float64))[0]
    x = sde.prior_sample((8, 2), generator(), dtype=torch.float64)
    raw, corrected, rhos = [], [], (8.0, 16.0, 32.0)
    for rho in rhos:
        t = sde.time_of(-2 * math.log(rho)).item()
        end = sde.levels(torch.tensor([t], dtype=torch.float64))[0]
        exact = flow(model, x, t, last="none")
        way = GaussianStart(x, start.sigma, moments.gaussian(x))
        raw.append((way.flow(rho) - exact).norm(dim=1).mean().item())
        # the estimate comes from the end of the Gaussian's flow, as in the solver
        corrected.append((way.correct(model.estimate(way.flow(rho), end).x0, rho) - exact).norm(dim=1).mean().item())
    inverse = [1 / rho for rho in rhos]
    assert measured_order(raw, inverse) == pytest.approx(2, abs=0.2)
    assert measured_order(corrected, inverse) == pytest.approx(3, abs=0.3)


def test_the_table_holds_the_exponential_weights():
    """Check predictor and corrector of every step.

    With and without a node above the first level.
    """
    sde = S.VPSDE()
    lams = [-1.0, -0.4, 0.1, 0.5, 1.1]
    levels = tuple(sde.levels(sde.time_of(2 * torch.tensor(lams, dtype=torch.float64))))
    for above, tau in ((None, 0.0), (-1.6, 0.5)):
        nodes = lams if above is None else [above, *lams]
        shift = len(nodes) - len(lams)
        table = multistep_table(levels, 3, tau, corrector=True, above=above)
        assert len(table) == 4
        for i, step in enumerate(table):
            known = i + 1 + shift
            for got, first, last in (
                (step.predict, known - 3, known),
                (step.correct, known - 3, known + 1),
            ):
                expected = exponential_weights(lams[i], lams[i + 1], tuple(nodes[max(0, first) : last]), tau)
                assert got == pytest.approx([levels[i + 1].alpha * w for w in expected], rel=1e-6)
            assert (step.z > 0) == (tau > 0)
        assert not multistep_table(levels, 3, tau, corrector=False, above=above)[0].correct


#: bounds of the mean endpoint error / sqrt(d), of the default and calibrated; measured ones are smaller by 1.2 to 10
ERRORS = {
    (2, 0.4): {5: (0.05, 0.02), 10: (7e-3, 5e-3), 20: (1.4e-3, 6e-4), 50: (4e-5, 3e-5), 100: (5e-6, 2e-6)},
    (64, 1.0): {5: (0.03, 0.02), 10: (0.01, 8e-3), 20: (4e-3, 1.2e-3), 50: (3e-4, 5e-5), 100: (4e-5, 4e-6)},
}


@pytest.mark.slow
@pytest.mark.parametrize("sde", [S.VPSDE(), S.VESDE()])
@pytest.mark.parametrize(("d", "high"), ERRORS)
def test_error_per_network_call(d, high, sde):
    """Compare with dopri5 at 1e-10 from the same noise, calibrated and not.

    The mixture was not used for tuning; the noise not for the calibration.
    """
    model = anisotropic(d, high, seed=11).model(sde)
    x = sde.prior_sample((32, d), generator(3), dtype=torch.float64)
    exact = flow(model, x)
    for calibrated in (False, True):
        if calibrated:
            S.calibrate(model, generator=generator(5))
        for n, bounds in ERRORS[d, high].items():
            *_, end = S.trajectory(model, x.shape, DPMSolver(), n, start=x)
            assert end.calls == n
            assert ((end.x - exact).norm(dim=1) / math.sqrt(d)).mean() < bounds[calibrated]


class Conditional(S.Model):
    """Gaussian mixtures by index, with the moments of all of them together."""

    def __init__(self, sde, mixtures, moments):
        super().__init__()
        self.sde, self.parts, self.moments = sde, [gm.model(sde) for gm in mixtures], moments

    def estimate(self, x, level, cond=None):
        return self.parts[0 if cond is None else int(cond["part"][0])].estimate(x, level)


@pytest.mark.slow
def test_the_mean_of_all_data_does_not_move_a_class():
    """Check samples of a class whose mean is not that of all data.

    With ``cond`` the mean of all data must not decide where samples go.
    """
    left = S.GaussianMixture([[-2.0, 0.0], [-1.0, 1.0]], [0.05, 0.1])
    right = S.GaussianMixture([[2.0, 0.5], [1.0, -0.5]], [0.1, 0.02])
    both = S.GaussianMixture(torch.cat([left.means, right.means]), [0.05, 0.1, 0.1, 0.02]).moments
    for sde in (S.VPSDE(), S.VESDE()):
        x = sde.prior_sample((32, 2), generator(3), dtype=torch.float64)
        exact = flow(right.model(sde), x)
        for moments, cond, part in ((both, {"part": torch.ones(32)}, [left, right]), (None, None, [right])):
            model = Conditional(sde, part, moments)
            for n, bound in ((20, 5e-3), (50, 2e-4)):
                *_, end = S.trajectory(model, x.shape, DPMSolver(), n, start=x, cond=cond)
                assert end.calls == n
                assert (end.x - exact).norm(dim=1).mean() < bound


@first_fast("d", [2, 64])
def test_the_reverse_sdes_spread_is_the_datas(d):
    """E[|x|^2/c] - n for a Gaussian of anisotropic c is twice the NLL gap.

    By an exact propagation of the variances, the gaps at 50 calls are .0018 nats (d = 2) and .07 (d = 64), below the
    bounds. False alarms: under 1e-4 (5 standard errors).
    """
    std = torch.linspace(0.05, 0.4 if d == 2 else 1.0, d, dtype=torch.float64)
    gm = S.GaussianMixture(torch.zeros(1, d), std[None] ** 2)
    n = 20000 if d == 2 else 2000
    x = S.sample(gm.model(S.VPSDE()), (n, d), DPMSolver(stochastic=True), 50, generator=generator(4))
    gap = 0.5 * ((x / std) ** 2 - 1).sum(1).mean().item()
    assert abs(gap) < (0.01 if d == 2 else 0.35) + 5 * math.sqrt(d / 2 / n)


@first_fast("steps", [1, 2, 3, 8])
@first_fast("sde", [S.VPSDE(), S.SubVPSDE(), S.VESDE(), S.VPSDE.cosine(), S.FlowSDE(), S.DDPM.linear(50)])
@first_fast("grid", ["data", "log_snr", "time", "karras"])
def test_few_steps_stay_finite(sde, steps, grid):
    known, unknown = SMOOTH.model(sde), SMOOTH.model(sde)
    unknown.moments = None
    for model in (known, unknown):
        for stochastic in (False, True):
            solver = DPMSolver(stochastic=stochastic, grid=grid)
            *_, end = S.trajectory(model, (4, 2), solver, steps, generator=generator())
            assert end.x.isfinite().all()
            assert end.calls == steps


def test_a_sample_does_not_depend_on_its_batch():
    model = SMOOTH.model(S.VPSDE())
    for stochastic, moments in ((False, model.moments), (True, model.moments), (False, None)):
        model.moments = moments
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
