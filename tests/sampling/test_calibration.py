"""Calibration: what it stores, what it gains, what it refuses."""

import json

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, ToleranceError
from tests.generators import generator

ANGLES = torch.linspace(0, 2 * torch.pi, 41, dtype=torch.float64)[:-1]
CIRCLE = S.GaussianMixture(torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.02**2)
CALLS = (5, 10, 20)


def errors(model, cond=None):
    """Return the mean errors of 16 end points at each number of calls.

    The reference is dopri5 at 1e-9 from the same starts.
    """
    x = model.sde.prior_sample((16, 2), generator(7), dtype=torch.float64)
    t_min = model.sde.time_at(lam=torch.tensor(7.0)).item()
    flow = S.ProbabilityFlow(rtol=1e-9, atol=1e-9, t_min=t_min)
    ends = S.sample(model, x.shape, flow, start=x, cond=cond)
    return [(S.sample(model, x.shape, steps=n, start=x, cond=cond) - ends).norm(dim=1).mean() for n in CALLS]


def test_calibration_lowers_the_error_on_other_starts():
    """Hide all lengths of points on a circle; the gain is 2 to 5 times."""
    model = CIRCLE.model(S.VPSDE())
    model.moments = model.data_scale = None
    before = errors(model)
    assert S.calibrate(model, (2,), calls=CALLS, generator=generator()) is model
    after = errors(model)
    assert all(b < 0.5 * a for a, b in zip(before, after, strict=True))
    assert [one.calls for one in model.calibration.settings] == list(CALLS)
    assert model.calibration.conditional == ()


def test_conditions_have_their_settings():
    model = S.guidance.classifier_free_guidance(CIRCLE.model(S.VPSDE()), 5.0)
    assert model.calibration is None
    cond = {"y": torch.arange(16) % 40}
    before = errors(model, cond)
    S.calibrate(model, cond={"y": torch.arange(40)}, calls=CALLS, generator=generator())
    assert len(model.calibration.conditional) == 3
    assert sum(errors(model, cond)) < 0.7 * sum(before)


def test_wrappers_of_the_same_flow_keep_it():
    model = S.calibrate(CIRCLE.model(S.VPSDE()), calls=(5,), generator=generator())
    assert S.models.chunked(model, 3).calibration is model.calibration
    assert model.with_sde(S.VESDE(0.001, 100.0)).calibration is model.calibration
    assert S.guidance.classifier_free_guidance(model, 2.0).calibration is None


def test_calibration_is_saved(tmp_path):
    net = S.ResidualMLP((2,), width=8, blocks=1)
    model = S.ScoreModel(net, S.VPSDE(), moments=CIRCLE.moments)
    model.save_pretrained(tmp_path / "plain")
    assert S.ScoreModel.from_pretrained(tmp_path / "plain").calibration is None
    model.calibration = S.calibrate(CIRCLE.model(S.VPSDE()), calls=(5, 10), generator=generator()).calibration
    model.save_pretrained(tmp_path / "model")
    assert S.ScoreModel.from_pretrained(tmp_path / "model").calibration == model.calibration
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["calibration"]["settings"][0]["calls"] = 20
    file.write_text(json.dumps(config))
    with pytest.raises(S.errors.CheckpointError, match="growing"):
        S.ScoreModel.from_pretrained(tmp_path / "model")


def test_bad_calibrations_are_refused():
    model = CIRCLE.model(S.VPSDE())
    with pytest.raises(ArgumentError, match="calls"):
        S.calibrate(model, calls=(10, 5))
    with pytest.raises(ArgumentError, match="paths"):
        S.calibrate(model, paths=2)
    with pytest.raises(ToleranceError, match="larger `reference`"):
        S.calibrate(model, reference=8, generator=generator())
    assert model.calibration is None
    model.moments = None
    with pytest.raises(ArgumentError, match="shape"):
        S.calibrate(model)
