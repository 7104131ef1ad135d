"""Single-step solvers: orders, the papers' loops, laws, budgets of calls."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, UnknownNameError
from tests import fake_device
from tests.generators import generator
from tests.marks import first_fast
from tests.sampling.problems import SMOOTH, normal
from tests.statistics_tools import energy_test, measured_order

MIXTURE = S.GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], [[0.05, 0.04], [0.2, 0.01], [0.1, 0.1]])
SDES = {
    "vp": S.VPSDE(),
    "subvp": S.SubVPSDE(),
    "ve": S.VESDE(),
    "cosine": S.VPSDE.cosine(),
    "flow": S.FlowSDE(),
    "ddpm": S.DDPM.linear(100),
    "ncsn": S.NCSN.geometric(0.01, 50.0, 60),
}
SOLVERS = {"2s": S.SingleStep(2), "3s": S.SingleStep(3), "heun": S.Heun(), "churn": S.Heun(20.0, 0.01, 20.0, 1.003)}


@cache
def smooth_stretch(sde):
    """Return a model, the ends of its flow, starts and the solution.

    The flow goes from lambda = -6 to 1.5.
    """
    model = SMOOTH.model(sde)
    ends = {"t_min": sde.time_of(2 * 1.5).item(), "t_max": sde.time_of(2 * -6.0).item(), "last": "none"}
    x, _ = sde.perturb(SMOOTH.sample(8, generator()), ends["t_max"], generator(1))
    return model, ends, x, S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-11, atol=1e-11, **ends), start=x)


@pytest.mark.slow
@pytest.mark.parametrize("sde", [S.VPSDE.cosine(), S.VESDE(0.01, 1e4), S.FlowSDE()])
@pytest.mark.parametrize(
    ("solver", "order", "calls"),
    [
        (lambda **ends: S.SingleStep(2, **ends), 2, 2),
        (lambda **ends: S.SingleStep(3, **ends), 3, 3),
        (lambda **ends: S.Heun(**ends), 2, 1),
        (lambda **ends: S.Heun(grid="log_snr", **ends), 2, 1),
    ],
    ids=["2s", "3s", "heun", "heun-log-snr"],
)
def test_declared_order_is_measured(sde, solver, order, calls):
    """Measure the slope of the global error against the step, within 0.2.

    ``calls``: units of ``steps`` in one step.
    """
    model, ends, x, exact = smooth_stretch(sde)
    counts = (60, 120, 240)
    errors = [
        (S.sample(model, x.shape, solver(**ends), n * calls, start=x) - exact).norm(dim=1).mean().item() for n in counts
    ]
    assert measured_order(errors, [1 / n for n in counts]) == pytest.approx(order, abs=0.2)


def test_single_steps_are_the_papers():
    """Compare with DPM-Solver-2 and 3 (Lu et al. 2022a) in x0.

    One step with r1 = 1/2 and r1 = 1/3, r2 = 2/3, with phi_1 and phi_2.
    """
    sde, lam0, lam1 = S.VPSDE(), -0.5, 0.3
    model, h = SMOOTH.model(sde), lam1 - lam0
    x = normal(0, 4, 2)

    def at(lam):
        t = sde.time_of(2 * lam).item()
        return t, sde.alpha(t).item(), sde.sigma(t).item()

    (t0, _, s0), (t1, a1, s1) = at(lam0), at(lam1)

    def x0(y, t):
        return model(y, t).x0

    def inner(r):
        t, a, s = at(lam0 + r * h)
        return t, s / s0 * x - a * np.expm1(-r * h) * m0, a

    m0 = x0(x, t0)
    phi_1, phi_2 = np.expm1(-h), np.expm1(-h) / h + 1
    t, u, _ = inner(1 / 2)
    two = s1 / s0 * x - a1 * phi_1 * m0 + 2 * a1 * phi_2 * (x0(u, t) - m0)
    t, u, _ = inner(1 / 3)
    difference = x0(u, t) - m0
    t, u, a = inner(2 / 3)
    u = u + 2 * a * (np.expm1(-2 / 3 * h) / (2 / 3 * h) + 1) * difference
    three = s1 / s0 * x - a1 * phi_1 * m0 + 1.5 * a1 * phi_2 * (x0(u, t) - m0)
    for order, expected in ((2, two), (3, three)):
        ours = S.sample(model, x.shape, S.SingleStep(order, grid=[t0, t1], last="none"), start=x)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("churn", [0.0, 6.0])
def test_heun_is_karras_loop(churn):
    """Compare with Karras et al. 2022, algorithm 2.

    On VE levels down to 0, where the last step is Euler's.
    """
    sde, s_min, s_max, s_noise = S.NCSN.geometric(0.05, 20.0, 10), 0.2, 6.0, 1.003
    model = MIXTURE.model(sde)
    x = 20 * torch.randn(5, 2, generator=generator(3), dtype=torch.float64)
    sigmas, g = [*sde.sigmas.flip(0).tolist(), 0.0], generator(4)

    def denoise(y, sigma):
        return model(y, sde.time_of(-2 * np.log(sigma)).item()).x0

    y = x
    for sigma, following in itertools.pairwise(sigmas):
        gamma = min(churn / 10, 2**0.5 - 1) if s_min <= sigma <= s_max else 0.0
        hat = sigma * (1 + gamma)
        if gamma:
            z = torch.randn(x.shape, generator=g, dtype=torch.float64)
            y = y + (hat**2 - sigma**2) ** 0.5 * s_noise * z
        d = (y - denoise(y, hat)) / hat
        after = y + (following - hat) * d
        if following:
            after = y + (following - hat) * (d + (after - denoise(after, following)) / following) / 2
        y = after
    sampler = S.Heun(churn, s_min, s_max, s_noise, grid="levels")
    *_, end = S.trajectory(model, x.shape, sampler, start=x, generator=generator(4))
    torch.testing.assert_close(end.x, y, rtol=1e-8, atol=1e-8)
    assert (end.t, end.step, end.calls) == (0.0, 10, 19)


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["vp", "subvp", "ve", "flow"])
def test_churn_keeps_the_law(sde):
    """Compare samples by the energy test at level 0.001.

    The same test rejects a noise scale far from 1.
    """
    n, model = 500, MIXTURE.model(SDES[sde])
    x = S.sample(model, (n, 2), S.Heun(40.0), 80, generator=generator(1))
    assert energy_test(x, MIXTURE.sample(n, generator(2))) > 0.001
    x = S.sample(model, (n, 2), S.Heun(40.0, s_noise=3.0), 80, generator=generator(1))
    assert energy_test(x, MIXTURE.sample(n, generator(2))) == 0.001


@pytest.mark.parametrize("sde", [S.VPSDE(), S.VESDE()])
def test_churns_variance_on_a_gaussian(sde):
    """Compare the variance of y <- k (y + noise) for data N(0, c).

    It is known. False alarm: 4 standard errors, 6e-5.
    """
    n, steps, c, churn, s_noise = 20_000, 6, 0.25, 1.5, 1.1
    times = torch.linspace(0.9, 0.2, steps + 1, dtype=torch.float64)
    rho, alpha = (sde.sigma(times) / sde.alpha(times)).tolist(), sde.alpha(times)
    v = start = c + rho[0] ** 2
    for r, end in itertools.pairwise(rho):
        hat = r * (1 + churn / steps)
        slope, slope_end = hat / (c + hat**2), end / (c + end**2)
        v += s_noise**2 * (hat**2 - r**2)
        v *= (1 + (end - hat) / 2 * (slope + slope_end * (1 + (end - hat) * slope))) ** 2
    x = alpha[0] * start**0.5 * torch.randn(n, 1, generator=generator(), dtype=torch.float64)
    model = S.GaussianMixture([[0.0]], c).model(sde)
    sampler = S.Heun(churn, s_noise=s_noise, grid=times, last="none")
    y = S.sample(model, x.shape, sampler, start=x, generator=generator(1)) / alpha[-1]
    assert abs(y.var().item() / v - 1) < 4 * (2 / n) ** 0.5


def test_churn_adds_noise_only_in_its_range():
    model, x = SMOOTH.model(S.VESDE()), 50 * normal(0, 4, 2)

    def run(sampler, seed):
        return S.sample(model, x.shape, sampler, 12, start=x, generator=generator(seed))

    assert torch.equal(run(S.Heun(10.0, s_min=60.0), 1), run(S.Heun(), 2))
    assert not torch.equal(run(S.Heun(10.0), 1), run(S.Heun(10.0), 2))
    assert S.Heun().deterministic
    assert not S.Heun(10.0).deterministic


@pytest.mark.parametrize(("order", "last"), [*itertools.product((2, 3), ("half-tweedie", "none"))])
def test_steps_are_a_budget_of_network_calls(order, last):
    model = SMOOTH.model(S.VPSDE())
    for budget in range(order + 1, 12):
        *_, end = S.trajectory(model, (3, 2), S.SingleStep(order, last=last), budget, generator=generator())
        assert budget - order < end.calls <= budget
        assert end.calls == end.steps * order + (last != "none")
    with pytest.raises(ArgumentError, match=r"`steps` must be .*, got 1"):
        S.sample(model, (3, 2), S.SingleStep(order, last=last), 1)


@first_fast("sde", SDES)
@first_fast("solver", SOLVERS)
def test_few_steps_stay_finite(sde, solver):
    for steps in (4, 5, 9):
        x = S.sample(MIXTURE.model(SDES[sde]), (4, 2), SOLVERS[solver], steps, generator=generator())
        assert x.isfinite().all()


@pytest.mark.parametrize("grid", ["time", "quadratic", "karras", "levels", "trailing", [1.0, 0.7, 0.4, 0.2, 0.05]])
def test_every_grid_runs(grid):
    model = MIXTURE.model(S.DDPM.linear(100))
    for solver, budget in ((S.SingleStep(2, grid=grid), 10), (S.Heun(grid=grid), 5)):
        steps = None if grid == "levels" or isinstance(grid, list) else budget
        assert S.sample(model, (4, 2), solver, steps, generator=generator()).isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(solver):
    model = MIXTURE.model(S.VPSDE())
    many = S.sample(model, (5, 2), SOLVERS[solver], 12, generator=[generator(i) for i in range(5)])
    one = S.sample(model, (1, 2), SOLVERS[solver], 12, generator=[generator(3)])
    torch.testing.assert_close(one[0], many[3], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_decode_with_single_steps():
    model, z = SMOOTH.model(S.VPSDE()), normal(0, 4, 2)
    exact = S.decode(model, z, S.ProbabilityFlow(rtol=1e-9, atol=1e-9))
    for solver, steps in ((S.SingleStep(3), 200), (S.Heun(), 150)):
        torch.testing.assert_close(S.decode(model, z, solver, steps), exact, rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_no_host_sync(sde):
    """Run on the meta device, where any wait for the device fails.

    See tests/fake_device.py.
    """
    with fake_device.DeviceCheck():
        model, cond = fake_device.network("noise", sde), {"y": torch.zeros(3, dtype=torch.long, device="meta")}
        for solver in SOLVERS.values():
            assert S.sample(model, (3, 1, 8, 8), solver, 4, cond=cond).device.type == "meta"


def test_bad_settings_are_refused():
    for order in (1, 4):
        with pytest.raises(ArgumentError, match="order"):
            S.SingleStep(order)
    with pytest.raises(UnknownNameError, match="grid"):
        S.SingleStep(grid="lambda")
    with pytest.raises(ArgumentError, match="have their own ends"):
        S.Heun(grid=[0.9, 0.1], t_max=0.9)
    with pytest.raises(ArgumentError, match="ends with noise"):
        S.sample(SMOOTH.model(S.VPSDE()), (2, 2), S.SingleStep(grid=[1.0, 0.5, 0.0]))
    for name, settings in {
        "churn": {"churn": -1.0},
        "s_min, s_max": {"s_min": 2.0, "s_max": 1.0},
        "s_noise": {"s_noise": 0.0},
    }.items():
        with pytest.raises(ArgumentError, match=name):
            S.Heun(**settings)
