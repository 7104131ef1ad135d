"""The method "multistep": its coordinates, weights and residual.

Each is compared with its formula.
"""

import math

import pytest
import torch

import scoresde as S
from scoresde.flow.weights import gauss_legendre
from scoresde.likelihood import Exact
from scoresde.likelihood.gaussian_path import FlowProblem, conditional_mean, solve
from scoresde.likelihood.path_plan import Ends, choose_levels, make_plan
from scoresde.likelihood.trace import NoiseAndTrace, TraceIntegral

MOMENTS = S.models.Moments(torch.tensor([0.2, -0.1]), torch.tensor([[0.8, 0.2], [0.2, 0.5]]))


def plan(count=24, bottom=0.0, top=-3.5, decay=3):
    lams = torch.linspace(5.0, -3.0, count, dtype=torch.float64).tolist()
    return make_plan(tuple(lams), bottom, top, decay)


def integral(function, start, end):
    x, w = gauss_legendre()
    points = (start + end) / 2 + (end - start) / 2 * x
    return float((w * (end - start) / 2 * function(points)).sum())


def test_weights_of_the_block():
    """Compare y(rho_j) - y_0 with half the integral of g over rho^2.

    The later rounds are exact for cubics.
    """
    p = plan()
    squares = [rho**2 for rho in p.rhos[:4]]
    for power in range(4):
        for square, weights in zip(squares, p.block_implicit, strict=True):
            found = sum(w * s**power for w, s in zip(weights, squares, strict=True))
            assert found == pytest.approx(0.5 * square ** (power + 1) / (power + 1), rel=1e-9)
    assert [len(weights) for weights in p.block_explicit] == [0, 1, 2, 3]


def test_weights_of_the_trace():
    """Check degrees up to 3 of 24 levels between the levels.

    Below them tr = rho^2 (a + b rho^2 + c rho^4).
    """
    p = plan()
    for power in range(4):
        found = sum(w * lam**power for w, lam in zip(p.trace_rule, p.lams, strict=True))
        assert found == pytest.approx(integral(lambda lam, k=power: lam**k, p.lams[0], p.lams[-1]), rel=1e-9)
    for power in range(3):  # int_0^{rho_1^2} tr/(2 rho^2) d(rho^2)
        found = sum(w * rho ** (2 + 2 * power) for w, rho in zip(p.trace_below, p.rhos, strict=True))
        assert found == pytest.approx(0.5 * p.rhos[0] ** (2 + 2 * power) / (power + 1), rel=1e-9)


@pytest.mark.parametrize("decay", [2, 3])
def test_weights_above_the_last_level(decay):
    """Integrate F = rho^-decay (a + b/rho + ...) over lambda.

    To lambda = -3.5 and to infinite noise.
    """
    p = plan(decay=decay)
    for weights, end, terms in ((p.trace_above, 0.0, 2), (p.z_top, math.exp(-3.5), 3), (p.z_infinity, 0.0, 3)):
        for power in range(decay, decay + terms):  # int e^{power lambda} dlambda
            found = sum(w * rho**-power for w, rho in zip(weights, p.rhos, strict=True))
            assert found == pytest.approx((end**power - p.rhos[-1] ** -power) / power, rel=1e-9)


def test_weights_of_steps_and_slopes():
    p = plan()
    for k, (predict, correct) in enumerate(zip(p.predict, p.correct, strict=True), start=3):
        for power, weights, newest in ((2, predict, k), (3, correct, k + 1)):
            lams = p.lams[newest - len(weights) + 1 : newest + 1]
            found = sum(w * lam**power for w, lam in zip(weights, lams, strict=True))
            expected = integral(lambda lam, n=power: lam**n, p.lams[k], p.lams[k + 1])
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for k, (lo, weights) in enumerate(p.slopes):
        found = sum(w * lam**8 for w, lam in zip(weights, p.lams[lo:], strict=False))
        assert found == pytest.approx(8 * p.lams[k] ** 7, rel=1e-7, abs=1e-4)


def test_one_gaussian_needs_no_correction():
    """Check that F = 0 for N(m, C).

    With 20 calls the defect is 0 and log p exact, to 1e-8.
    """
    gm = S.GaussianMixture(MOMENTS.mean[None], MOMENTS.covariance[None])
    x = gm.sample(5, torch.Generator().manual_seed(0))
    found = S.log_likelihood(gm.model(S.VPSDE()), x, Exact(), steps=20)
    assert found.defect.abs().max() < 1e-8
    torch.testing.assert_close(found.log_prob, gm.log_prob(x), rtol=0, atol=1e-8)


def test_the_defect_is_the_plain_paths_error():
    """Compare the errors of log p with the defect, 100 points, 60 of 90 calls.

    Log p less the defect errs by the defect; log p errs by a tenth of it at most.
    """
    g = torch.Generator().manual_seed(0)
    means = torch.randn(8, 2, generator=g, dtype=torch.float64)
    gm = S.GaussianMixture(means, (0.1 + 0.3 * torch.rand(8, 2, generator=g, dtype=torch.float64)) ** 2)
    x = gm.sample(100, g)
    found = S.log_likelihood(gm.model(S.VPSDE()), x, Exact(), steps=90)
    plain, corrected = found.log_prob - found.defect - gm.log_prob(x), found.log_prob - gm.log_prob(x)
    assert corrected.abs().mean() < 0.1 * found.defect.abs().mean()
    assert (plain + found.defect).abs().mean() < 0.1 * plain.abs().mean()


def test_ends_and_calls_of_the_grid():
    """Check that the grid uses all calls.

    It begins at t_min and ends at t_max where the ends require it.
    """
    sde = S.VPSDE()
    for at_t_min, to_infinity in ((True, False), (False, True)):
        ends = Ends(1e-4, 0.9, data_at_t_min=at_t_min, noise_to_infinity=to_infinity)
        grid = choose_levels(sde, S.data.DataScale.of_moments(MOMENTS), 50, ends)
        assert len(grid.lams) + 4 * (grid.rounds - 1) == 50
        assert (grid.lams[0] == sde.log_snr(1e-4).item() / 2) == at_t_min
        assert (grid.lams[-1] == pytest.approx(sde.log_snr(0.9).item() / 2)) != to_infinity


def test_the_mean_under_a_condition():
    """Check components with equal, round covariances, whose mean is exact."""
    gm = S.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], 1e-3)
    model, k = gm.model(S.VPSDE()), torch.tensor([0, 1, 1])
    x = torch.zeros(3, 2, dtype=torch.float64)
    traces = TraceIntegral(NoiseAndTrace(model, Exact()), x, {"y": k}, None, fixed_grid=True)
    mean = conditional_mean(traces, x, model.sde, gm.moments, 1.0)
    torch.testing.assert_close(mean, gm.means[k], rtol=0, atol=0.01)


def test_without_moments_the_gaussian_is_standard():
    gm = S.GaussianMixture(torch.zeros(1, 3), 1.0)
    x = gm.sample(4, torch.Generator().manual_seed(0))
    model = gm.model(S.VPSDE())
    ends = Ends(1e-5, 1.0, data_at_t_min=False, noise_to_infinity=False)
    traces = TraceIntegral(NoiseAndTrace(model, Exact()), x, None, None, fixed_grid=True)
    path = solve(traces, x, FlowProblem(model.sde, None, None, 20, ends))
    log_prob = traces.tally.integral + path.log_det + model.sde.prior_log_prob(path.latent)
    torch.testing.assert_close(log_prob, gm.log_prob(x), rtol=0, atol=1e-6)
