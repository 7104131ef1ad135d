"""The train command's other work, besides training.

Mapped data, sample pictures during training, TensorBoard, bad steps.
"""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest

import scoresde.training
from scoresde.app import build
from scoresde.app.config_files import load_config
from scoresde.app.runs import RunFolder
from scoresde.errors import ConfigError
from scoresde.training import TrainerConfig
from scoresde.training.checkpoints import latest_checkpoint, load_checkpoint
from tests.app.runs_for_tests import TINY, TINY_POINTS, error, invoke, train


@pytest.fixture
def images(tmp_path):
    """Return files of 60 images of 8-bit noise and of their classes."""
    g = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", g.integers(0, 256, (60, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "y.npy", np.arange(60) % 3)
    return tmp_path / "x.npy", tmp_path / "y.npy"


@pytest.mark.slow
def test_a_conditional_model_of_images_on_the_disk(tmp_path, images):
    """Train on mapped data with every option, then sample.

    Dropped labels, bin centres, pieces, sample pictures and a second average.
    """
    settings = [f"data.labels={images[1]}", "data.mmap=true", "data.held_out=10", "train.conditional=true"]
    settings += ["train.label_dropout=0.5", "train.dequantization=truncated-normal", "train.accumulate=2"]
    settings += ["train.sample_every=2", "train.ema_half_life={ema: 0.05, slow: 0.5}", "train.workers=1"]
    out = tmp_path / "run"
    shown = train(out, "--data", images[0], *(part for setting in settings for part in ("--set", setting))).output
    assert "50 items (1, 8, 8) to train on, 10 held out" in shown
    assert {path.name for path in (out / "pictures" / "training").iterdir()} == {
        "step-000000002.png",
        "step-000000004.png",
    }
    run = RunFolder.open(out)
    assert [record["held_out"] is not None for record in run.records()] == [True, True]
    assert all(record["by_level"] and record["skipped"] == [] for record in run.records())
    assert load_checkpoint(latest_checkpoint(run.checkpoints))[1]["ema"]["half_lives"] == {"ema": 1.0, "slow": 2.0}
    invoke("sample", out, "-n", 2, "--label", 1, "--out", tmp_path / "one.npz")
    assert np.load(tmp_path / "one.npz")["raw"].shape == (2, 1, 8, 8)


def test_truncated_normal_training_begins_at_full_bins(images):
    overrides = [f"data.source={images[0]}", "train.dequantization=truncated-normal", *TINY[3::2]]
    config = load_config(overrides=overrides)
    data, _ = build.data(config.data)
    trainer = build.trainer(config, build.model(config, data), images[0].parent / "none")
    t_min = trainer.objective.t_min
    assert trainer.model.sde.log_snr(t_min).item() == pytest.approx(2 * np.log(2 * 3 / (2 / 256)), abs=1e-3)
    centres = build.trainer(
        load_config(overrides=[*overrides, "train.dequantization=none"]), trainer.model, images[0].parent / "none"
    )
    assert centres.objective.t_min is None
    toys = load_config(overrides=["data.source=two-moons", "train.dequantization=none"])
    with pytest.raises(ConfigError, match="the data are continuous"):
        build.trainer(toys, build.model(toys, build.data(toys.data)[0]), images[0].parent / "none")


def test_settings_of_the_trainer_reach_it():
    """Check that every shared setting has the value of the file.

    Half-lives below 1 are fractions of the steps.
    """
    values = {"optimizer": "muon", "accumulate": 3, "precision": "bfloat16", "channels_last": True, "on_nan": "skip"}
    values |= {"keep": 5, "log_every": 7, "checkpoint_every": 11, "clip": None, "workers": 2, "steps": 50}
    overrides = [f"train.{key}={json.dumps(value)}" for key, value in values.items()]
    config = load_config(
        overrides=["data.source=two-moons", *overrides, "train.ema_half_life={ema: 0.05, slow: 0.5, fast: 3}"]
    )
    trainer = build.trainer(config, build.model(config, build.data(config.data)[0]), "none")
    assert {key: getattr(trainer.config, key) for key in values} == values
    assert trainer.ema.half_lives == {"ema": 50 * 0.05, "slow": 25.0, "fast": 3.0}
    assert type(trainer.config) is TrainerConfig
    config = load_config(overrides=["data.source=digits", "train.weighting=sigmoid", "train.sigmoid_gain=3"])
    trainer = build.trainer(config, build.model(config, build.data(config.data)[0]), "none")
    assert trainer.objective.weighting.gain == 3


def test_sliced_score_matching_is_one_setting(tmp_path):
    config = ["--data", "two-moons", "--set", "train.objective=sliced", "--set", "train.weighting=likelihood"]
    train(tmp_path / "run", *config, options=TINY_POINTS)
    assert RunFolder.open(tmp_path / "run").records()[-1]["held_out"] is not None
    overrides = ["data.source=two-moons", "train.objective=sliced"]
    config = load_config(overrides=overrides)
    trainer = build.trainer(config, build.model(config, build.data(config.data)[0]), "none")
    assert isinstance(trainer.objective, scoresde.training.SlicedScoreMatching)


def test_mapped_data_need_their_own_settings(tmp_path, images):
    mapped = ["--data", images[0], "--set", "data.mmap=true", "--set", "data.n=5"]
    assert "data.n" in error("train", "--out", tmp_path / "a", *mapped)
    assert "data.labels" in error("train", "--out", tmp_path / "a", "--set", f"data.labels={images[1]}")
    assert list(tmp_path.glob("a*")) == []


class Bad(scoresde.training.DenoisingScoreMatching):
    """An objective whose third loss is NaN."""

    calls = 0

    def terms(self, model, x0, cond=None, generator=None):
        terms = super().terms(model, x0, cond, generator)
        type(self).calls += model.training
        return terms._replace(loss=terms.loss * (float("nan") if self.calls == 3 else 1.0))


@pytest.mark.slow
def test_a_bad_step_is_skipped_and_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(build.OBJECTIVES, "denoising", Bad)
    shown = train(tmp_path / "run", "--set", "train.on_nan=skip").output
    assert "Step 3 skipped: loss or gradient NaN or infinite at t = 0." in shown
    (skip,) = RunFolder.open(tmp_path / "run").records()[-1]["skipped"]
    assert skip[0] == 3
    assert 0 < skip[1] < 1


@pytest.mark.slow
def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    """Train with TensorBoard, missing and replaced by a stand-in.

    Without the package the error names the extra; the stand-in receives every number of a record.
    """
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
        message = error("train", "--out", tmp_path / "a", *TINY, "--set", "train.tensorboard=true", code=1)
        assert "scoresde[tensorboard]" in message
        assert not (tmp_path / "a").exists()
    written, pictures = [], []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "b" / "tensorboard")

        def add_scalar(self, name, value, step):
            written.append((name, step))
            assert isinstance(value, (int, float))

        def add_images(self, name, images, step):
            pictures.append((name, tuple(images.shape), step))

        def close(self):
            written.append("closed")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: True if name == "tensorboard" else find(name, *a))
    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(tmp_path / "b", "--set", "train.tensorboard=true", "--set", "train.sample_every=4")
    assert {("loss", 2), ("loss", 4), ("held_out", 4), ("steps_per_second", 4), ("skipped", 4)} <= set(written)
    assert any(name.startswith("loss_by_log_snr/") for name, _ in written[:-1])
    assert written[-1] == "closed"
    assert pictures == [("samples", (64, 1, 8, 8), 4)]
