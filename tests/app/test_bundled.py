"""The bundled model and runs, by name."""

import pytest
import torch

import scoresde as S
from scoresde.app import opening
from scoresde.app.opening import open_run
from scoresde.errors import CheckpointError
from tests.app.runs_for_tests import error, invoke, train


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "BUNDLED", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_bundled_model_takes_the_commands(runs):
    output = invoke("sample", "digits", "-n", 3, "--steps", 3, "--label", 7).output
    folder = runs / "bundled-digits"
    assert f"The bundled model 'digits', as a run: {folder}" in output
    assert (folder / "samples-dpm.npz").exists()
    assert "The bundled model" not in invoke("sample", "digits", "-n", 2, "--steps", 3).output
    invoke("inpaint", "digits", "--mask", "half", "--limit", 1, "--samples", 2, "--steps", 3, "--method", "replacement")
    assert "bits/dim" in invoke("likelihood", "digits", "-n", 2, "--set", "likelihood.steps=20").output


def test_a_run_of_the_bundled_model_is_that_model(runs):
    shipped, model = S.ScoreModel.from_pretrained("digits"), open_run("digits").model()
    assert model.config == shipped.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), shipped.parameters(), strict=True))
    assert "or the name of a bundled model: 'digits'" in error("sample", "digit")


def test_a_run_is_a_saved_model(tmp_path):
    train(tmp_path / "run", "--set", "sample.calibration_paths=3")
    found = S.ScoreModel.from_pretrained(tmp_path / "run")
    newest = S.ScoreModel.from_pretrained(tmp_path / "run" / "checkpoints" / "step-000000004")
    older = S.ScoreModel.from_pretrained(tmp_path / "run" / "checkpoints" / "step-000000002")
    assert found.calibration is not None
    assert found.config == newest.config
    assert older.calibration is None
    assert torch.equal(next(found.parameters()), next(newest.parameters()))
    assert not torch.equal(next(found.parameters()), next(older.parameters()))
    inside = S.ScoreModel.from_pretrained(tmp_path / "run" / "checkpoints")
    assert torch.equal(next(inside.parameters()), next(newest.parameters()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        S.ScoreModel.from_pretrained(tmp_path / "empty")
