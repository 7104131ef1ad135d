"""Levels and settings of the default sampler."""

import itertools
import math

import pytest
import torch

import scoresde as S
from scoresde.data import DataScale
from scoresde.models import Calibration, SolverSettings
from scoresde.sampling import DPMSolver
from scoresde.sampling.level_plan import automatic_order, data_lambdas, default_settings, lengths, plan_levels
from tests.families import EACH
from tests.generators import generator
from tests.sampling.problems import SMOOTH

SCALE = DataScale(1.0, 2.0, 0.05)
UNKNOWN_SCALE = pytest.mark.filterwarnings("ignore:the model does not know its data's scale")


def ends(sde, first=1.0, last=1e-6):
    return sde.levels(torch.tensor([first, last], dtype=torch.float64))


def test_levels_grow_and_lie_between_the_lengths():
    sde = S.VPSDE()
    for calls in (2, 5, 20, 100):
        settings = default_settings(calls)
        plan = plan_levels(sde, SCALE, settings, *ends(sde))
        lam = [level.lam for level in plan.levels]
        assert len(lam) == calls
        assert all(a < b for a, b in itertools.pairwise(lam))
        assert plan.levels[-1].rho == pytest.approx(SCALE.finest * math.exp(settings.last), rel=1e-6)
        first = plan.levels[settings.above]
        assert first.rho == pytest.approx(SCALE.largest * math.exp(settings.first), rel=1e-6)


def test_data_lambdas_are_the_formula():
    """Compare with u + A sin(2 pi u)/(2 pi) + B sin(pi u)/pi at u = 1/4."""
    lam = data_lambdas(-1.0, 3.0, 5, bend=0.2, swell=0.3)
    expected = -1 + 4 * (0.25 + 0.3 / (2 * math.pi) + 0.2 * math.sin(math.pi / 4) / math.pi)
    assert lam[[0, 1, -1]].tolist() == pytest.approx([-1.0, expected, 3.0])


@EACH
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e3])
def test_levels_stay_within_time(sde, scale):
    """Check any scale of data under any process: levels decrease in noise."""
    start, end = ends(sde, *reversed(S.sde.time_range(sde)))
    lengths = DataScale(scale, 2 * scale, scale / 50)
    for calls in (1, 2, 5, 30, 60):
        plan = plan_levels(sde, lengths, default_settings(calls), start, end)
        rho = [level.rho for level in plan.levels]
        assert len(rho) == calls
        assert all(a > b for a, b in itertools.pairwise(rho))
        assert rho[0] <= start.rho * (1 + 1e-6)
        assert rho[-1] >= end.rho * (1 - 1e-6) or calls == 1


def test_unknown_lengths_are_those_of_unit_data():
    model = SMOOTH.model(S.VPSDE())
    assert lengths(model, 20).finest == SMOOTH.data_scale.finest
    model.data_scale = DataScale(2.0, 3.0)
    assert lengths(model, 20).finest == pytest.approx(2.0 / 30)
    model.moments = model.data_scale = None
    assert lengths(model, 5) == DataScale(1.0, 3.0, 1 / 30)
    # without moments a narrow direction is detail too
    model.data_scale = DataScale(1.0, 2.0, 0.1, 0.001)
    assert lengths(model, 20).finest == 0.001


def test_order_and_corrector_follow_calls_noise_and_guidance():
    assert [automatic_order(n) for n in (5, 7, 8, 30, 31, 1000)] == [2, 2, 3, 3, 4, 4]
    assert automatic_order(100, tau=1.0) == 3
    strong = default_settings(20, mean_known=False, guidance=7.5)
    assert (strong.order, strong.corrector, strong.jump) == (1, True, False)
    assert not default_settings(10, mean_known=False, guidance=7.5).corrector
    model = S.guidance.classifier_free_guidance(SMOOTH.model(S.VPSDE()), 7.5)
    assert DPMSolver().settings(model, 20, {"y": torch.zeros(1)}).order == 1
    assert DPMSolver(3, corrector=False).settings(model, 20, {"y": torch.zeros(1)}).order == 3


def test_calibration_interpolates_in_the_logarithm_of_calls():
    low, high = SolverSettings(10, 0.0, -1.0, 0, True, 2, True), SolverSettings(40, 2.0, -3.0, 4, False, 4, True)
    calibration = Calibration((low, high))
    default = default_settings(20)
    middle = calibration.at(20, False, default)
    assert (middle.first, middle.last) == pytest.approx((1.0, -2.0))
    assert (middle.calls, middle.order) == (20, 4)
    assert calibration.at(10, False, default) == low
    assert calibration.at(100, False, default).last == -3.0
    assert calibration.at(20, True, default) == default
    assert Calibration.from_config(calibration.config) == calibration
    with pytest.raises(S.errors.ArgumentError, match="growing"):
        Calibration((high, low))
    with pytest.raises(S.errors.ArgumentError, match="calibration"):
        Calibration.from_config({"settings": [{"calls": 3}]})


def test_flat_directions_are_exact():
    """Draw data whose second entry has a std of 1e-5 about 3.

    The last level's noise is far above it; the Gaussian of the moments is exact there.
    """
    means = torch.tensor([[-1.0, 3.0], [1.0, 3.0]])
    variances = torch.tensor([[0.04, 1e-10], [0.04, 1e-10]])
    model = S.GaussianMixture(means, variances).model(S.VPSDE())
    x = S.sample(model, (400, 2), steps=10, generator=generator())
    assert model.data_scale.finest == pytest.approx(0.2)
    assert (x[:, 1].mean() - 3).abs() < 1e-5
    assert x[:, 1].std().item() == pytest.approx(1e-5, rel=0.2)


@UNKNOWN_SCALE
def test_data_that_are_one_point():
    """Draw a point, known and unknown.

    Unknown, the width that is assumed leaves an error below half of it.
    """
    for known in (True, False):
        for sde in (S.VPSDE(), S.VESDE(), S.FlowSDE(), S.DDPM.linear(1000)):
            model = S.GaussianMixture(torch.tensor([[0.3, -0.7]]), 1e-20).model(sde)
            if not known:
                model.moments = model.data_scale = None
            for stochastic in (False, True) if known else (False,):
                x = S.sample(model, (5, 2), DPMSolver(stochastic=stochastic), generator=generator())
                assert (x - torch.tensor([0.3, -0.7])).abs().max() < (1e-6 if known else 0.5 / 30)


@UNKNOWN_SCALE
def test_one_call_leaves_no_noise():
    """Sample data of std .2 with 1 to 3 calls; one call left 75.7."""
    model = S.GaussianMixture(torch.zeros(1, 2), 0.04).model(S.VPSDE())
    for known in (True, False):
        if not known:
            model.moments = model.data_scale = None
        for calls in (1, 2, 3):
            x = S.sample(model, (200, 2), steps=calls, generator=generator())
            assert x.std() < 0.25


@UNKNOWN_SCALE
def test_discrete_grids_count_calls():
    """Use all levels, and a subsequence that ends at the data's point."""
    model = S.GaussianMixture(torch.zeros(1, 2), 1e-12).model(S.DDPM.linear(50))
    model.moments = None
    *_, end = S.trajectory(model, (3, 2), DPMSolver(grid="levels"), generator=generator())
    assert end.calls == 50
    *_, end = S.trajectory(model, (3, 2), DPMSolver(grid="trailing"), 10, generator=generator())
    assert end.calls == 10
    assert end.x.abs().max() < 1e-3
