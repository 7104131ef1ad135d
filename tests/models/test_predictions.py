"""Predictions of networks: every row of the table, EDM's preconditioning.

Rows are tested for every process, level and rank.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import DDPM, VESDE, VPSDE, FlowSDE, ScoreModel
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError, UnknownNameError
from scoresde.models import PREDICTIONS, prediction_row, subsequence_weights
from scoresde.models.predictions import solve
from scoresde.nets import ResidualMLP, UNet
from tests.families import EACH
from tests.marks import first_fast
from tests.reference import edm

ROWS = pytest.mark.parametrize("predicts", PREDICTIONS)
SHAPES = [(5,), (5, 2), (5, 5, 7), (5, 3, 8, 8), (5, 1, 4, 4, 4)]

# F by the formula of each source, to compare with the table's (p, q)
SOURCES = {
    "noise": lambda x0, eps, alpha, sigma: eps,
    "data": lambda x0, eps, alpha, sigma: x0,
    "velocity": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "score": lambda x0, eps, alpha, sigma: -eps / sigma,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
}


def draw(shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=dtype), torch.randn(shape, generator=g, dtype=dtype)


def constant(F):
    """Return a network whose output is always F."""
    return lambda x, time_input: F


@EACH
@ROWS
@first_fast("t", [0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])
def test_P11_round_trip_in_float64(sde, predicts, t):
    """Check x0 and eps to 1e-12 from F = p x0 + q eps.

    Also at both ends where F determines them. Below alpha or sigma = 1e-3, x contains less of x0 or eps, and the bound
    grows in proportion.
    """
    x0, eps = draw((5, 3))
    level = sde.level(t, x0)
    alpha, sigma = level.alpha, level.sigma
    x = alpha * x0 + sigma * eps
    undetermined = {"noise": alpha == 0, "data": sigma == 0, "score": sigma == 0 or alpha == 0}
    if undetermined.get(predicts, False):
        with pytest.raises(ArgumentError, match="determines both x0 and eps"):
            ScoreModel(constant(x), sde, predicts)(x, t)
        return
    p, q = prediction_row(predicts, alpha, sigma, 0.6)
    estimate = ScoreModel(constant(p * x0 + q * eps), sde, predicts, data_std=0.6)(x, t)
    growth = max(1.0, *(1e-3 / v for v in (alpha, sigma) if v > 0))
    scale = max(1.0, alpha, sigma)
    torch.testing.assert_close(estimate.x0, x0, rtol=0, atol=1e-12 * growth * scale)
    torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=1e-12 * growth)
    back = p * estimate.x0 + q * estimate.eps, alpha * estimate.x0 + sigma * estimate.eps
    for value, expected in zip(back, (p * x0 + q * eps, x), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.slow
@given(
    alpha=st.floats(1e-3, 1.0),
    sigma=st.floats(1e-3, 100.0),
    names=st.tuples(*2 * [st.sampled_from(sorted(PREDICTIONS))]),
    data_std=st.floats(0.1, 10.0),
)
def test_P11_any_row_converts_to_any_other(alpha, sigma, names, data_std):
    """Convert F -> (x0, eps) -> F' -> (x0, eps) at any level of any process."""
    x0, eps = draw((4, 2))
    x = alpha * x0 + sigma * eps
    for name in names:
        p, q = prediction_row(name, alpha, sigma, data_std)
        x0_again, eps_again = solve(p * x0 + q * eps, x, alpha, sigma, p, q)
        condition = max(alpha, sigma) ** 2 / min(alpha, sigma) ** 2
        torch.testing.assert_close(x0_again, x0, rtol=0, atol=1e-13 * (10 + condition))
        torch.testing.assert_close(eps_again, eps, rtol=0, atol=1e-13 * (10 + condition))


@pytest.mark.parametrize("predicts", SOURCES)
@EACH
def test_P11_rows_are_the_sources_formulas(sde, predicts):
    """Read one network under five names.

    Each gives the same x0, eps and score.
    """
    x0, eps = draw((5, 2))
    t = torch.linspace(0.1003, 0.9004, 5, dtype=torch.float64)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    F = SOURCES[predicts](x0, eps, alpha, sigma)
    estimate = ScoreModel(constant(F), sde, predicts)(alpha * x0 + sigma * eps, t)
    for value, expected in zip((estimate.x0, estimate.eps, estimate.score), (x0, eps, -eps / sigma), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


@ROWS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_P11_any_rank_and_dtype(predicts, shape, dtype):
    sde, (x0, eps) = VPSDE(), draw(shape, dtype=dtype)
    t = torch.linspace(0.1, 0.9, 5, dtype=dtype)
    level = sde.level(t, x0)
    p, q = prediction_row(predicts, level.alpha, level.sigma)
    x = level.alpha * x0 + level.sigma * eps
    estimate = ScoreModel(constant(p * x0 + q * eps), sde, predicts)(x, t)
    # x0 is a difference of numbers of the size of x, divided by alpha, and eps one divided by sigma
    rounding = 4 * torch.finfo(dtype).eps * x.abs().max()
    assert estimate.x0.dtype == estimate.score.dtype == dtype
    torch.testing.assert_close(estimate.x0, x0, rtol=0, atol=float(rounding / level.alpha.min()))
    torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=float(rounding / level.sigma.min()))


@pytest.mark.parametrize("data_std", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sde", [VESDE.linear(80.0), VESDE(0.002, 80.0)], ids=repr)
def test_edm_preconditioning_is_the_papers(sde, data_std):
    """Check D(x) = c_skip x + c_out F(c_in x, c_noise).

    A network records its inputs.
    """
    seen = {}

    def probe(x, time_input):
        seen.update(x=x, time_input=time_input)
        return torch.sin(x) + time_input[:, None]

    model = ScoreModel(probe, sde, "edm", time_input="edm", data_std=data_std)
    x = draw((4, 3))[0]
    for t in (0.01, 0.3, 1.0):
        sigma = sde.sigma(t).item()
        x0 = model(sigma * x, t).x0
        given = edm.c_in(sigma, data_std) * sigma * x
        torch.testing.assert_close(seen["x"], given, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(seen["time_input"], torch.full((4,), edm.c_noise(sigma)).double(), rtol=0, atol=1e-6)
        answer = torch.sin(given) + edm.c_noise(sigma)
        expected = edm.c_skip(sigma, data_std) * sigma * x + edm.c_out(sigma, data_std) * answer
        torch.testing.assert_close(x0, expected, rtol=1e-11, atol=1e-12)


def test_edm_under_another_process_is_edm_in_its_coordinates():
    """Compare EDM under two processes at equal sigma/alpha.

    The denoiser is the same function of x/alpha, and the time_input the same number.
    """
    inputs = []

    def probe(x, time_input):
        inputs.append(time_input)
        return torch.sin(x)

    x, ve, vp = draw((4, 3))[0], VESDE.linear(80.0), VPSDE()
    t = 0.4
    alpha, ratio = vp.alpha(t).item(), (vp.sigma(t) / vp.alpha(t)).item()
    models = [ScoreModel(probe, sde, "edm", time_input="edm", data_std=0.5) for sde in (ve, vp)]
    expected, value = models[0](x, ratio / 80.0).x0, models[1](alpha * x, t).x0
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*inputs, rtol=1e-12, atol=1e-12)


def test_scale_input_can_be_chosen():
    sde, x = VPSDE(), draw((4, 3))[0]
    seen = []
    for scale_input in (None, True):
        ScoreModel(lambda x, time_input: seen.append(x) or x, sde, data_std=2.0, scale_input=scale_input)(x, 0.3)
    S = (4 * sde.alpha(0.3) ** 2 + sde.sigma(0.3) ** 2).sqrt()
    torch.testing.assert_close(seen[0], x)
    torch.testing.assert_close(seen[1], x / S)


def test_P7_learned_variance_is_a_second_set_of_channels():
    """Read v from the second half u of the channels.

    u lies in [-1, 1]; v = (u + 1)/2 is the exponent of beta.
    """
    ddpm, (x, u) = DDPM.linear(1000), draw((4, 3, 2, 2))
    model = ScoreModel(lambda x, time_input: torch.cat([torch.sin(x), u], 1), ddpm, learned_variance=True)
    estimate = model(x, 0.5)
    torch.testing.assert_close(estimate.v, (u + 1) / 2)
    torch.testing.assert_close(estimate.eps, torch.sin(x))
    s, t = ddpm.time(499), ddpm.time(500)
    log_large, log_small = (ddpm.posterior_variance(v, s, t).log() for v in (1.0, 0.0))
    expected = torch.exp(estimate.v * log_large + (1 - estimate.v) * log_small)
    torch.testing.assert_close(ddpm.posterior_variance(estimate.v, s, t), expected, rtol=1e-12, atol=0)
    with pytest.raises(ShapeError, match="learned variances"):
        ScoreModel(lambda x, time_input: x, ddpm, learned_variance=True)(x[:, 0, 0, 0], 0.5)


@pytest.mark.parametrize("net", [UNet([1, 8, 8], channels=8), ResidualMLP([1, 8, 8], width=16, blocks=1)])
def test_networks_of_the_toolkit_plug_in(net):
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for predicts in PREDICTIONS:
        estimate = ScoreModel(net, VPSDE(), predicts)(x, torch.tensor([0.1, 0.5, 0.9]))
        torch.testing.assert_close(0 * x + estimate.x0.isfinite(), torch.ones_like(x))


# ---- bad input ------------------------------------------------------------------------------------------------------


def model(net=lambda x, time_input: x, **options):
    return ScoreModel(net, VPSDE(), **options)


def test_unknown_names_are_refused_when_the_model_is_made():
    with pytest.raises(UnknownNameError, match="did you mean 'velocity'"):
        model(predicts="velocty")
    with pytest.raises(UnknownNameError, match="did you mean 'ddpm'"):
        model(time_input="dppm")
    for data_std in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="data_std"):
            model(data_std=data_std)


@pytest.mark.parametrize("shape", [(3, 1), (1,), (4,), (2, 3)])
def test_a_time_of_another_shape_is_refused(shape):
    with pytest.raises(ShapeError, match=r"`t` must be .*, got"):
        model()(torch.zeros(3, 2), torch.full(shape, 0.5))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: model()(torch.zeros(3, 2), 1.5), ArgumentError),
        (lambda: model()(torch.zeros(3, 2), float("nan")), ArgumentError),
        (lambda: model()(torch.zeros(3, 2, dtype=torch.long), 0.5), DTypeError),
        (lambda: model()(np.zeros((3, 2)), 0.5), DTypeError),
        (lambda: model()(torch.zeros(3, 2), torch.full((3,), 0.5, device="meta")), DeviceError),
        (lambda: model()(torch.zeros(3, 2), 0.5, cond=torch.zeros(3)), ArgumentError),
        (lambda: model(lambda x, time_input: x[:, :1])(torch.zeros(3, 2), 0.5), ShapeError),
        (lambda: model(learned_variance=True)(torch.zeros(3, 2), 0.5), ShapeError),
        (lambda: ScoreModel(lambda x, time_input: x, FlowSDE(), "noise")(torch.zeros(3, 2), 1.0), ArgumentError),
        (lambda: model(predicts="data")(torch.zeros(3, 2), 0.0), ArgumentError),
    ],
)
def test_bad_calls_are_refused(call, error):
    with pytest.raises(error):
        call()


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_D8_the_objective_of_a_subsequence(eta):
    """Compare with J computed factor by factor, for two networks.

    The difference of the two is free of the constant C.
    """
    ddpm, tau, std = DDPM.cosine(6), [2, 3, 6], 0.7
    weights = subsequence_weights(ddpm, tau, eta, std)
    draw = torch.Generator().manual_seed(0)
    x0 = torch.randn(4, generator=draw, dtype=torch.float64)
    noises = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    errors = torch.randn(2, 6, 4, generator=draw, dtype=torch.float64)  # eps_theta - eps of two networks

    def literal(error):
        total = 0.0
        for level in range(1, 7):
            alpha, sigma = ddpm.alpha(ddpm.time(level)), ddpm.sigma(ddpm.time(level))
            x = alpha * x0 + sigma * noises[level - 1]
            guess = (x - sigma * (noises[level - 1] + error[level - 1])) / alpha
            if level in tau[1:]:
                before = tau[tau.index(level) - 1]
                (mean, deviation), (other, _) = (ddpm.posterior(x, y, before / 6, level / 6, eta) for y in (x0, guess))
                total += ((mean - other) ** 2).sum() / (2 * deviation**2)
            else:  # -log N(x_0; guess, std^2), the levels that hang on x_0 and the last step
                total += ((x0 - guess) ** 2).sum() / (2 * std**2)
        return total

    expected = literal(errors[0]) - literal(errors[1])
    ours = (weights * (errors[0] ** 2 - errors[1] ** 2).sum(1)).sum()
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert (weights > 0).all()
    for wrong in ([3, 2, 6], [2, 3], [0, 6], []):
        with pytest.raises(ArgumentError, match="steps"):
            subsequence_weights(ddpm, wrong)
