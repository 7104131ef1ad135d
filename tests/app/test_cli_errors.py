"""Bad input and failures: one clear line and the right exit code.

Nothing is lost.
"""

import errno
import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from scoresde.app.runs import RunFolder
from tests.app.runs_for_tests import TINY, error, invoke, train


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    train(out)
    return out


@pytest.fixture
def run(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "run")


def test_unknown_names_offer_the_nearest(tmp_path):
    out = tmp_path / "run"
    assert "'train'" in error("trian")
    assert "--steps" in error("train", "--stpes", 3)
    assert "did you mean 'train.steps'" in error("train", "--out", out, "--set", "train.stpes=3")
    assert "did you mean 'subvp'" in error("train", "--out", out, "--sde", "sub-vp")
    assert "did you mean 'two-moons'" in error("train", "--out", out, "--data", "two-mons")
    assert "did you mean 'channels'" in error("train", "--out", tmp_path / "b", "--set", "net.options.chanels=3")
    assert list(tmp_path.iterdir()) == []  # nothing is left in the way of a second try


def test_values_name_their_key(tmp_path):
    assert "`train.steps` must be a positive integer, got 0" in error("train", "--out", tmp_path / "run", "--steps", 0)
    assert "override" in error("train", "--out", tmp_path / "run", "--set", "steps")
    assert os.strerror(errno.ENOENT) in error("train", "--out", tmp_path / "run", "-c", tmp_path / "none.yaml")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_nothing_is_overwritten(run, tmp_path):
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    assert "--resume" in error("train", "--out", run)
    assert "--resume" in error("demo", "--out", run)
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "not empty" in error("train", "--out", tmp_path / "mine")
    assert "not empty" in error("train", "--out", tmp_path / "mine" / "thesis.txt")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", ["sample", "likelihood", "evaluate", "report", "colorize", "classifier"])
def test_a_folder_without_a_run_is_refused(tmp_path, digits, command):
    assert "does not exist" in error(command, tmp_path / "nothing")
    assert "no config.yaml" in error(command, tmp_path)
    assert str(digits) in error(command, digits / "checkpoints" / "step-000000004")


def test_a_run_folder_with_foreign_meta(run):
    (run / "meta.json").write_text("{}")
    assert "format" in error("sample", run)
    (run / "meta.json").unlink()
    assert "meta.json" in error("sample", run)


def test_resume_needs_a_run_and_keeps_its_settings(run, tmp_path):
    assert "does not exist" in error("train", "--out", tmp_path / "none", "--resume")
    assert "--out" in error("train", "--resume")
    assert "begun with" in error("train", "--out", run, "--resume", "--sde", "ve")
    assert "--set" in error("train", "--out", run, "--resume", "-c", "x.yaml")
    assert RunFolder.open(run).config.sde.name == "vp"


def newest(run, name):
    return run / "checkpoints" / "step-000000004" / name


def test_truncated_and_foreign_checkpoints(run):
    model = newest(run, "model.safetensors")
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in error("sample", run)
    model.write_bytes(pickle.dumps({"weights": [1, 2]}))
    assert "pickle" in error("likelihood", run)
    model.write_bytes(whole)
    newest(run, "config.json").write_text(json.dumps({"format": "another program's"}))
    assert "save_pretrained" in error("report", run)
    shutil.rmtree(run / "checkpoints")
    assert "at least one checkpoint" in error("sample", run)


def test_a_run_goes_on_from_its_newest_whole_checkpoint(run):
    newest(run, "model.safetensors").write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        went_on = invoke("train", "--out", run, "--resume", "--steps", 6)
    assert "model.safetensors, which is altered or truncated" in went_on.output
    assert "Continuing from step 2" in went_on.output


def test_one_line_begins_a_run_or_goes_on(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "meta.json").write_text(json.dumps({"format": "scoresde-run-1"}))  # of a process that was killed at once
    assert "Continuing" not in train(out, "--resume", "auto").output
    assert "already trained for 4 steps" in train(out, "--resume", "auto").output
    assert "Continuing from step 4" in train(out, "--resume", "auto", steps=6).output
    assert "begun with" in error("train", "--out", out, "--resume", "auto", "--sde", "ve")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "not empty" in error("train", "--data", "digits", "--out", tmp_path / "mine", "--resume", "auto")


def test_the_size_of_images_and_classes_have_options(tmp_path):
    for name, value in (("a/1.png", 10), ("a/2.png", 90), ("b/1.png", 50), ("b/2.png", 200)):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24), value, np.uint8)).save(tmp_path / "pictures" / name)
    settings = ["--steps", 1, "--batch-size", 2, "--set", "sample.calibration_paths=0", "--set", "data.held_out=1"]
    shown = invoke(
        "train", "--data", tmp_path / "pictures", "--out", tmp_path / "r", "--size", 8, "--classes", *settings
    )
    assert "images of 8 x 8 pixels, 1 channel; integers 0..255; 2 classes" in shown.output
    assert "32 channels times [1, 2] from fine to coarse" in shown.output
    config = RunFolder.open(tmp_path / "r").config
    assert (config.data.size, config.train.conditional, config.train.label_dropout) == (8, True, 0.1)


def test_a_damaged_settings_file(run):
    (run / "config.yaml").write_text("train: {steps: [}")
    assert "malformed YAML on line 1" in error("sample", run)


def test_bad_data(run, tmp_path):
    images = np.zeros((3, 9, 9), np.uint8)
    images[0, 0, 0] = 3
    np.save(tmp_path / "large.npy", images)
    message = error("likelihood", run, "--data", tmp_path / "large.npy")
    assert "(1, 9, 9)" in message
    assert "(1, 8, 8)" in message
    np.save(tmp_path / "floats.npy", np.random.default_rng(0).normal(size=(3, 1, 8, 8)))
    assert "continuous" in error("likelihood", run, "--data", tmp_path / "floats.npy")
    np.save(tmp_path / "bright.npy", np.full((3, 8, 8), 200, np.uint8))
    assert "200" in error("likelihood", run, "--data", tmp_path / "bright.npy")
    values = np.random.default_rng(0).normal(size=(30, 2))
    values[4, 1] = np.nan
    np.save(tmp_path / "nan.npy", values)
    assert "NaN" in error("train", "--data", tmp_path / "nan.npy", "--out", tmp_path / "out")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    assert "pickle" in error("train", "--data", tmp_path / "objects.npy", "--out", tmp_path / "out2")
    (tmp_path / "empty").mkdir()
    assert "empty" in error("train", "--data", tmp_path / "empty", "--out", tmp_path / "out3")


def test_settings_of_a_model_cannot_be_changed_afterwards(run):
    assert "begun with" in error("sample", run, "--set", "sde.name=ve")
    assert "begun with" in error("report", run, "--set", "data.seed=3")


def test_options_that_do_not_fit_the_model(run, tmp_path):
    assert "without labels" in error("sample", run, "--label", 3)
    assert "sample.sampler" in error("sample", run, "--sampler", "odd")
    assert "rk4" in error("sample", run, "--sampler", "ode", "--steps", 5, "--set", "sample.method=dopri5")
    assert "did you mean 'dopri5'" in error("sample", run, "--sampler", "ode", "--set", "sample.method=dorpi5")
    conditional = ["--data", "two-moons", "--set", "train.conditional=true"]
    assert "labelled" in error("train", "--out", tmp_path / "out", *conditional)


@pytest.mark.slow
def test_a_loss_that_turns_nan_keeps_the_last_good_checkpoint(tmp_path):
    out = tmp_path / "run"
    train(out, steps=2)
    message = error("train", "--out", out, "--resume", "--steps", 40, "--set", "train.lr=1e30", code=1)
    assert "NaN or infinite at step" in message
    step = RunFolder.open(out).step
    assert f"the last good checkpoint is step {step}" in message
    RunFolder.open(out).model()
    assert (out / "checkpoints" / "step-000000002").is_dir()


@pytest.mark.slow
def test_a_full_disk_is_reported_and_leaves_the_checkpoints(tmp_path, monkeypatch):
    from scoresde.training import checkpoints

    save, calls = checkpoints.save_tensors, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpoints, "save_tensors", full)
    message = error("train", "--out", tmp_path / "run", "--steps", 6, *TINY, code=1)
    assert "No space left on device" in message
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000002"]
    monkeypatch.setattr(checkpoints, "save_tensors", save)
    assert "from step 2" in invoke("train", "--out", tmp_path / "run", "--resume").output


def test_debug_shows_the_traceback(tmp_path):
    from click.testing import CliRunner

    from scoresde.app.cli import main
    from scoresde.errors import RunFolderError

    result = CliRunner().invoke(main, ["sample", str(tmp_path), "--debug"])
    assert isinstance(result.exception, RunFolderError)
