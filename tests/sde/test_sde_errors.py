"""Bad input raises a typed error that names the argument."""

import itertools
import math

import numpy as np
import pytest
import torch

from scoresde import DDPM, NCSN, VESDE, VPSDE
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ScoreSDEError, ShapeError, UnknownNameError
from scoresde.sde import build_sde, register_sde
from tests.families import EACH, FAMILIES, UserSDE
from tests.marks import first_fast

X = torch.zeros(3, 2)
SDE = VPSDE()


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_betas_lie_strictly_between_zero_and_one(beta):
    with pytest.raises(ArgumentError, match=r"`betas\[1\]` must be .* strictly between 0 and 1 .*, got"):
        DDPM([0.1, beta, 0.2])


@pytest.mark.parametrize("betas", [[], [[0.1, 0.2]], 0.1])
def test_betas_are_a_vector(betas):
    with pytest.raises(ShapeError, match="betas"):
        DDPM(betas)


@pytest.mark.parametrize(
    "alphas_bar", [[0.9, 0.9], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0, 0.0], [0.5, -0.1], [0.5, math.nan]]
)
def test_alphas_bar_decrease_within_zero_and_one(alphas_bar):
    with pytest.raises(ArgumentError, match="alphas_bar"):
        DDPM.from_alphas_bar(alphas_bar)


@pytest.mark.parametrize("sigmas", [[1.0, 1.0], [1.0, 3.0, 2.0], [0.0, 1.0], [-1.0, 1.0], [1.0, math.inf], [math.nan]])
def test_sigmas_are_positive_and_monotone(sigmas):
    with pytest.raises(ArgumentError, match="sigmas"):
        NCSN(sigmas)


@EACH
@pytest.mark.parametrize("kind", [float, lambda t: torch.tensor([0.5, t, 0.1]), np.float64])
def test_times_lie_in_zero_one(sde, kind):
    calls = [sde.alpha, sde.sigma, sde.log_snr, sde.diffusion]
    calls += [lambda t: sde.drift(X, t), lambda t: sde.perturb(X, t), lambda t: sde.level(t, X)]
    for call, t in itertools.product(calls, (-0.01, 1.01, math.nan, math.inf)):
        with pytest.raises(ArgumentError, match=r"`t` must be .*, got"):
            call(kind(t))


@pytest.mark.parametrize("t", [torch.tensor(1), torch.tensor([0, 1, 1]), "0.5", None, torch.tensor([True, True, True])])
def test_times_are_floating_point(t):
    with pytest.raises(DTypeError, match=r"`t` must be .*, got"):
        SDE.drift(X, t)


@EACH
@first_fast("shape", [(3, 1), (1,), (2,), (4,), (3, 2), (1, 3), (3, 1, 1)])
def test_a_time_of_another_shape_is_never_broadcast(sde, shape):
    t = torch.full(shape, 0.5)
    calls = [
        lambda: sde.drift(X, t),
        lambda: sde.perturb(X, t),
        lambda: sde.level(t, X),
        lambda: sde.posterior(X, X, 0.1, t),
        lambda: sde.posterior(X, X, t, 0.9),
        lambda: sde.posterior_variance(X, 0.1, t),
        lambda: sde.transition(t, torch.full((3,), 0.9)),
        lambda: sde.posterior(X, X, torch.full((3,), 0.1), t),
    ]
    for call in calls:
        with pytest.raises(ShapeError, match=r"`(t|s)` must be .*, got"):
            call()


def test_a_square_batch_does_not_hide_a_wrong_time():
    """Check times (2, 1) and (1, 2) for data (2, 2).

    They would broadcast along the data axis.
    """
    for shape in ((2, 1), (1, 2), (2, 2)):
        with pytest.raises(ShapeError):
            SDE.drift(torch.zeros(2, 2), torch.full(shape, 0.5))


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5), (1.0, 0.0), (torch.tensor([0.1, 0.6]), 0.5)])
def test_s_comes_before_t(s, t):
    x = torch.zeros(2, 3)
    for call in (lambda: SDE.transition(s, t), lambda: SDE.posterior(x, x, s, t)):
        with pytest.raises(ArgumentError, match=r"`s` must be earlier than t"):
            call()


@pytest.mark.parametrize("eta", [-0.1, 50.0, math.nan])
def test_eta_is_refused_where_no_variance_fits(eta):
    with pytest.raises(ArgumentError, match="eta"):
        SDE.posterior(X, X, 0.3, 0.5, eta=eta)


def test_devices_must_match():
    """Let torch's meta device stand in for a second one."""
    there, t, t_there = X.to("meta"), torch.full((3,), 0.5), torch.full((3,), 0.5, device="meta")
    calls = [
        lambda: SDE.drift(there, t),
        lambda: SDE.drift(X, t_there),
        lambda: SDE.drift(X, torch.tensor(0.5, device="meta")),
        lambda: SDE.perturb(X, t_there),
        lambda: SDE.posterior(X, there, 0.1, 0.5),
        lambda: SDE.posterior(there, there, 0.1, t),
        lambda: SDE.transition(t_there, t),
        lambda: SDE.level(t_there, X),
    ]
    for call in calls:
        with pytest.raises(DeviceError):
            call()


def test_a_scalar_time_fits_every_device():
    there = X.to("meta")
    assert SDE.drift(there, 0.5).device.type == "meta"
    assert SDE.drift(there, torch.tensor(0.5)).device.type == "meta"
    assert SDE.posterior(there, there, 0.1, 0.5)[0].device.type == "meta"


def test_dtypes_must_match():
    calls = [
        lambda: SDE.posterior(X, X.double(), 0.1, 0.5),
        lambda: SDE.posterior(X.long(), X.long(), 0.1, 0.5),
        lambda: SDE.perturb(X.long(), 0.5),
    ]
    for call in calls:
        with pytest.raises(DTypeError):
            call()


def test_shapes_must_match():
    with pytest.raises(ShapeError, match="x0"):
        SDE.posterior(X, X[:2], 0.1, 0.5)
    with pytest.raises(ArgumentError, match="generator"):
        SDE.perturb(X, 0.5, [torch.Generator()])


@pytest.mark.parametrize(
    "indices", [[], [0], [1, 1], [2, 1], [11], [0, 11], [-1, 2], [1.0, 2.0], [True, True], [[1, 2]], np.array([])]
)
def test_subsequences_are_increasing_levels(indices):
    with pytest.raises(ArgumentError, match="indices"):
        DDPM.linear(10, 1e-4, 0.02).respace(indices)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VPSDE(0.0, 1.0),
        lambda: VPSDE(2.0, 1.0),
        lambda: VPSDE(math.nan, 1.0),
        lambda: VPSDE(beta_min=True, beta_max=20.0),
        lambda: VPSDE.cosine(-1),
        lambda: VPSDE.from_beta(lambda t: t - 0.5),
        lambda: VPSDE.from_beta(lambda t: 5.0),
        lambda: VESDE(1.0, 1.0),
        lambda: VESDE(-1.0, 1.0),
        lambda: VESDE.linear(math.inf),
        lambda: DDPM.linear(0),
        lambda: DDPM.linear(2.5),
        lambda: DDPM.cosine(N=True),
        lambda: NCSN.geometric(1.0, 0.5, 10),
        lambda: NCSN.geometric(0.1, 0.5, 0),
        lambda: NCSN([1.0, 2.0]).time(3),
        lambda: DDPM([0.1]).time(-1),
        lambda: DDPM([0.1]).time(0.5),
        lambda: VPSDE().time_of(math.nan),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ArgumentError):
        make()


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'subvp'"):
        build_sde({"name": "subvpp"})
    with pytest.raises(UnknownNameError, match="beta_min"):
        build_sde({"name": "vp", "beta_mim": 0.1})
    with pytest.raises(ArgumentError, match="taken"):
        register_sde("vp", VPSDE)
    with pytest.raises(ScoreSDEError, match="config"):
        _ = UserSDE().config


@pytest.mark.parametrize(
    "name", ["vp", "vp-cosine", "subvp", "subvp-cosine", "ve", "ve-linear", "flow", "ddpm", "ncsn"]
)
def test_a_process_is_rebuilt_from_its_config(name):
    sde = FAMILIES[name]
    again = build_sde(sde.config)
    assert repr(again) == repr(sde)
    t = torch.linspace(0.01, 0.99, 57, dtype=torch.float64)
    torch.testing.assert_close(again.alpha(t), sde.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(again.sigma(t), sde.sigma(t), rtol=1e-12, atol=0)
