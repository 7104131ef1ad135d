"""Checkpoints: damage, pickles, and the rotation of old ones."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

import scoresde as S
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, CheckpointError, CheckpointWarning, DataError, RunFolderError
from scoresde.training.checkpoints import (
    FILES,
    best_checkpoint,
    checkpoints,
    latest_checkpoint,
    load_average,
    load_checkpoint,
    sweep,
)
from scoresde.training.held_out import held_out_loss
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
        make(folder.parent).resume(folder)
    assert not trap.exists()
    with pytest.warns(CheckpointWarning, match=name.replace(".", r"\.")):
        assert make(folder.parent).resume() == 2  # the one before is whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "valid JSON, got .*training.json"),
        ("[1, 2]", "training.json, a JSON list"),
        ('{"format": "other"}', "format 'scoresde-checkpoint"),
        ('{"format": "scoresde-checkpoint-4"}', "format 'scoresde-checkpoint"),
    ],
)
def test_foreign_or_torn_json_is_refused_by_name(folder, text, message):
    (folder / "training.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        make(folder.parent).resume(folder)


def test_altered_numbers_are_refused(folder):
    path = folder / "training.json"
    content = json.loads(path.read_text())
    content["step"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"training\.json, which is altered"):
        make(folder.parent).resume(folder)


def test_a_pickle_in_place_of_weights_is_never_run(folder):
    trap = folder.parent / "trapped"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(CheckpointError, match="which is a pickle"):
        S.ScoreModel.from_pretrained(folder)
    assert not trap.exists()


def test_every_reader_looks_at_checksums(folder):
    """Flip a bit of a weight, which is still a good safetensors file."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    for read in (S.ScoreModel.from_pretrained, load_average, lambda path: make(path.parent).resume(path)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors, which is altered"):
            read(folder)


def test_without_a_whole_checkpoint_the_newest_is_named(folder):
    for one in checkpoints(folder.parent):
        (one / "training.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"{folder.name}/training\.json"):
        make(folder.parent).resume()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sde": S.VESDE()}, r"whose sde is .*vp.*, not .*ve"),
        ({"predicts": "data"}, "whose predicts is noise, not data"),
        ({"time_input": "log_snr"}, "whose time_input is .*, not log_snr"),
        ({"scaling": Scaling(2.0, 1.0)}, "whose scaling is None, not "),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(folder, change, said):
    settings = {"sde": S.VPSDE()} | change
    model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), settings.pop("sde"), **settings)
    trainer = S.Trainer(model, config=S.TrainerConfig(steps=6, batch_size=8, device="cpu"), folder=folder.parent)
    with pytest.raises(CheckpointError, match=said):
        trainer.resume()


def test_more_data_go_on_when_asked(folder):
    more = torch.cat([POINTS, POINTS + 1])
    trainer = make(folder.parent, steps=6)
    trainer.resume()
    with pytest.raises(CheckpointError, match="new_data=True"):
        trainer.fit(more)
    trainer.resume(new_data=True)
    assert [record.step for record in trainer.fit(more)] == [6]


def test_a_compiled_network_keeps_its_names(tmp_path):
    """Train one that torch.compile wraps (without compiling), and load it."""
    torch.manual_seed(0)
    net = torch.compile(S.ResidualMLP((2,), width=8, blocks=1), backend="eager")
    model = S.ScoreModel(net, S.VPSDE())
    config = S.TrainerConfig(steps=2, batch_size=8, device="cpu", ema_half_life={"a": 1.0, "b": 2.0})
    trainer = S.Trainer(model, config=config, folder=tmp_path)
    trainer.fit(POINTS)
    plain = S.ScoreModel.from_pretrained(tmp_path)
    assert set(plain.net.state_dict()) == set(S.ResidualMLP((2,), width=8, blocks=1).state_dict())
    assert torch.equal(plain(POINTS, 0.5).eps, trainer.averaged_model()(POINTS, 0.5).eps)
    slow = load_average(latest_checkpoint(tmp_path), "b")
    assert torch.equal(slow(POINTS, 0.5).eps, trainer.averaged_model("b")(POINTS, 0.5).eps)
    again = S.Trainer(S.ScoreModel(net, S.VPSDE()), config=config, folder=tmp_path)
    assert again.resume() == 2
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(S.ScoreModel.from_pretrained(tmp_path / "saved")(POINTS, 0.5).eps, model(POINTS, 0.5).eps)


def test_a_model_that_cannot_be_saved_is_refused_at_once(tmp_path):
    net = S.ResidualMLP((2,), width=8, blocks=1)
    model = S.ScoreModel(net, S.VPSDE(), time_input=lambda level, sde: level.t)
    with pytest.raises(ArgumentError, match="the name of a time input"):
        S.Trainer(model, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_of_another_scale_are_refused():
    """Train a model of a whole set on a part, whose scale differs."""
    generator = torch.Generator().manual_seed(0)
    whole = S.Data("whole", torch.randn(60, 2, generator=generator) * 3 + 5)
    train, test = whole.split(0.3)
    model = S.ScoreModel.for_data(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), whole)
    trainer = S.Trainer(model, config=S.TrainerConfig(steps=2, batch_size=8, device="cpu"))
    for data, held_out, name in ((train, None, "data"), (whole, test, "held_out")):
        with pytest.raises(DataError, match=rf"`{name}` must be .*scaled_like\(model\.scaling\)"):
            trainer.fit(data, held_out=held_out)
    trainer.fit(train.scaled_like(model.scaling), held_out=test.scaled_like(whole))
    assert trainer.step == 2


def test_a_mean_far_from_zero_hides_no_shift():
    """Move data by a tenth of their std, which is 1e-7 of their mean."""
    raw = 1e6 + torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = S.ScoreModel.for_data(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), S.Data("far", raw))
    trainer = S.Trainer(model, config=S.TrainerConfig(steps=2, batch_size=8, device="cpu"))
    with pytest.raises(DataError, match="scaled_like"):
        trainer.fit(S.Data("moved", raw + 0.1))


def test_a_run_that_dies_while_measuring_loses_nothing(tmp_path, monkeypatch):
    """Let the measuring fail after the checkpoint of step 4 is saved.

    The resumed run measures it, and its records and files are those of a run that never failed.
    """
    data = S.Data("points", POINTS, normalize="none")
    settings = {"steps": 8, "checkpoint_every": 2, "log_every": 2, "keep": 9}
    whole = make(tmp_path / "whole", **settings).fit(data, held_out=data)
    cut, records, calls = make(tmp_path / "cut", **settings), [], iter(range(9))

    def fails(*arguments, **options):
        if next(calls) == 1:
            raise MemoryError("no memory")
        return held_out_loss(*arguments, **options)

    monkeypatch.setattr("scoresde.training.trainer.held_out_loss", fails)
    with pytest.raises(MemoryError):
        cut.fit(data, records.append, held_out=data)
    assert [record.step for record in records] == [2]
    later = make(tmp_path / "cut", **settings)
    assert (later.resume(), later.unmeasured) == (4, True)
    later.fit(data, records.append, held_out=data)
    assert [(r.step, r.loss, r.held_out, r.by_level) for r in records] == [
        (r.step, r.loss, r.held_out, r.by_level) for r in whole
    ]
    for ours, theirs in zip(checkpoints(tmp_path / "cut"), checkpoints(tmp_path / "whole"), strict=True):
        left, right = (json.loads((one / "training.json").read_text()) for one in (ours, theirs))
        for key in ("held_out", "best", "waited", "unmeasured"):
            assert left[key] == right[key]
    load_checkpoint(checkpoints(tmp_path / "cut")[1])  # its checksums are right


HOLDER = """
import sys, time
from scoresde.training.folder_lock import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_process(tmp_path):
    """Refuse a second run, and take the folder when the first is killed."""
    (tmp_path / ".lock").write_text('{"host": "gone"}')  # of a process that ended: it holds nothing
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match=rf"in use by process {holder.pid} on .* since 20"):
        make(tmp_path).fit(POINTS)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / ".lock").exists()
    make(tmp_path).fit(POINTS)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000000002", "step-000000004"}


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
