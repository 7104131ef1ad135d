"""Checkpoints: damage, pickles, and the rotation of old ones."""

import json
import os
import pickle

import pytest
import torch

import scoresde as S
from scoresde.errors import CheckpointError
from scoresde.training.checkpoints import FILES, best_checkpoint, checkpoints, latest_checkpoint, load_average, sweep
from tests.marks import first_fast

POINTS = S.GaussianMixture([[2.0, 0.0], [-1.0, 1.0]], [0.1, 0.3]).sample(64, torch.Generator().manual_seed(0)).float()


def make(folder, width=8, **settings):
    torch.manual_seed(0)
    model = S.ScoreModel(S.ResidualMLP((2,), width=width, blocks=1), S.VPSDE())
    settings = {"steps": 4, "batch_size": 8, "checkpoint_every": 2, "device": "cpu"} | settings
    return S.Trainer(model, config=S.TrainerConfig(**settings), folder=folder)


@pytest.fixture
def folder(tmp_path):
    """Return the newest of two checkpoints."""
    make(tmp_path).fit(POINTS)
    return latest_checkpoint(tmp_path)


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@first_fast("name", FILES)
@pytest.mark.parametrize("harm", ["truncated", "flipped", "pickle", "missing"])
def test_damaged_files_are_refused_by_name(folder, name, harm):
    file = folder / name
    content = bytearray(file.read_bytes())
    trap = folder.parent / "trapped"
    match harm:
        case "truncated":
            file.write_bytes(content[:-7])
        case "flipped":
            content[-10] ^= 4
            file.write_bytes(content)
        case "pickle":
            file.write_bytes(pickle.dumps(Trap(trap)))
        case "missing":
            file.unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        make(folder.parent).resume()
    assert not trap.exists()
    assert make(folder.parent).resume(checkpoints(folder.parent)[0]) == 2  # the previous one is whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "valid JSON, got .*training.json"),
        ("[1, 2]", "training.json, a JSON list"),
        ('{"format": "other"}', "format 'scoresde-checkpoint"),
        ('{"format": "scoresde-checkpoint-2"}', "format 'scoresde-checkpoint"),
    ],
)
def test_foreign_or_torn_json_is_refused_by_name(folder, text, message):
    (folder / "training.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        make(folder.parent).resume()


def test_altered_numbers_are_refused(folder):
    path = folder / "training.json"
    content = json.loads(path.read_text())
    content["step"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"training\.json, which is altered"):
        make(folder.parent).resume()


def test_a_pickle_in_place_of_weights_is_never_run(folder):
    trap = folder.parent / "trapped"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(CheckpointError, match="which is a pickle"):
        S.ScoreModel.from_pretrained(folder)
    assert not trap.exists()


def test_a_checkpoint_of_another_network_or_none_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="this model"):
        make(folder.parent, width=16).resume()
    with pytest.raises(CheckpointError, match="at least one"):
        make(tmp_path / "empty").resume()
    with pytest.raises(CheckpointError, match=r"training\.json"):
        make(folder.parent).resume(tmp_path)


def test_remains_of_a_killed_process_are_removed(folder):
    """Remove half-written and half-removed checkpoints.

    A checkpoint that was about to be replaced comes back.
    """
    root = folder.parent
    for kind in ("new", "gone"):
        (root / f".step-000000006.0123abcd.{kind}").mkdir()
        (root / f".step-000000006.0123abcd.{kind}" / "model.safetensors").write_bytes(b"half")
    os.rename(folder, root / ".step-000000004.0123abcd.old")
    (root / ".mine").mkdir()
    (root / "step-by-step").mkdir()
    sweep(root)
    assert {path.name for path in root.iterdir()} == {"step-000000002", "step-000000004", ".mine", "step-by-step"}
    assert make(root).resume() == 4


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    def pretend(folder, loss):
        folder.mkdir()
        (folder / "training.json").write_text(json.dumps({"held_out": loss}))

    for step, loss in ((1, 0.5), (2, 0.1), (3, None), (1000000000, 0.3)):
        pretend(tmp_path / f"step-{step:09d}", loss)
    assert best_checkpoint(tmp_path).name == "step-000000002"
    assert latest_checkpoint(tmp_path).name == "step-1000000000"
    assert best_checkpoint(tmp_path / "none") is None


def test_an_average_of_a_checkpoint(folder):
    assert load_average(folder).net.stem.weight.equal(S.ScoreModel.from_pretrained(folder).net.stem.weight)
