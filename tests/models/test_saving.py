"""Saving and loading: models come back exactly.

A broken folder is refused, and nothing is lost.
"""

import json
import pickle
from pathlib import Path

import pytest
import torch

from scoresde import DDPM, NCSN, VESDE, VPSDE, FlowSDE, ResidualMLP, ScoreModel, SubVPSDE, UNet
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, CheckpointError
from scoresde.models import Moments
from tests.families import UserSDE

SDES = [
    VPSDE(0.2, 15.0),
    VPSDE.cosine(0.01),
    SubVPSDE(),
    SubVPSDE.cosine(),
    VESDE(0.02, 20.0),
    VESDE.linear(60.0),
    FlowSDE(),
    DDPM.linear(50, 1e-3, 0.2),
    NCSN.geometric(0.01, 10.0, 12),
]


def net(seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    result = ResidualMLP([1, 2, 2], width=8, blocks=1, **options)
    with torch.no_grad():
        for p in result.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return result


def same(a, b):
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([0.1, 0.5, 0.9])
    ours, theirs = a(x, t), b(x, t)
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.eps, theirs.eps, rtol=1e-6, atol=1e-6)
    return ours, theirs


@pytest.fixture
def saved(tmp_path):
    model = ScoreModel(net().eval(), VPSDE(), "velocity")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_every_process_comes_back(sde, tmp_path):
    time_input = "ddpm" if isinstance(sde, DDPM) else "time"
    model = ScoreModel(net().eval(), sde, "edm", time_input=time_input, data_std=0.4)
    model.save_pretrained(tmp_path / "a" / "b")
    again = ScoreModel.from_pretrained(tmp_path / "a" / "b")
    assert repr(again.sde) == repr(sde)
    assert again.config == model.config
    assert not again.training
    same(model, again)


def test_every_setting_comes_back(tmp_path):
    x = torch.randn(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model = ScoreModel(
        net(out_channels=2).eval(),
        VPSDE(),
        "data",
        time_input="log_snr",
        scale_input=True,
        learned_variance=True,
        moments=Moments.of(x),
        scaling=Scaling.for_integers(17),
    )
    model.save_pretrained(tmp_path / "model")
    again = ScoreModel.from_pretrained(tmp_path / "model")
    ours, theirs = same(model, again)
    assert torch.equal(ours.v, theirs.v)
    assert torch.equal(again.moments.covariance, model.moments.covariance)
    assert again.moments.mean.shape == (1, 2, 2)
    assert again.scaling == model.scaling
    assert again.config == model.config


def test_a_unet_comes_back_bit_for_bit(tmp_path):
    model = ScoreModel(UNet([1, 8, 8], channels=8, zero_init=False).eval(), VPSDE())
    model.save_pretrained(tmp_path / "model")
    again = ScoreModel.from_pretrained(tmp_path / "model")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x, 0.5).eps, again(x, 0.5).eps)


def test_saving_again_replaces_the_model(saved):
    _, folder = saved
    other = ScoreModel(net(seed=1).eval(), VESDE(), "score")
    other.save_pretrained(folder)
    same(other, ScoreModel.from_pretrained(folder))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_folder_with_other_files_is_not_replaced(saved, tmp_path):
    model, _ = saved
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("ten months of work")
    with pytest.raises(CheckpointError, match=r"chapter1\.tex"):
        model.save_pretrained(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "ten months of work"


@pytest.mark.parametrize("victim", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_keeps_the_old_model(saved, monkeypatch, victim, error):
    """Fill the disk, or interrupt, half way through either file."""
    _, folder = saved
    before = contents(folder)
    for name in ("write_text", "write_bytes"):
        write = getattr(Path, name)

        def fail(path, data, *rest, write=write):
            if path.name == victim:
                write(path, data[:20])
                raise error
            return write(path, data, *rest)

        monkeypatch.setattr(Path, name, fail)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        ScoreModel(net(seed=1), VESDE()).save_pretrained(folder)
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_failed_rename_restores_the_old_folder(saved, monkeypatch):
    _, folder = saved
    before, rename = contents(folder), Path.rename

    def fail(path, target):
        if path.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        ScoreModel(net(seed=1), VESDE()).save_pretrained(folder)
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_model_without_a_description_is_not_saved(tmp_path):
    for model, name in (
        (ScoreModel(lambda x, t: x, VPSDE()), "net"),
        (ScoreModel(net(), UserSDE()), "sde"),
        (ScoreModel(net(), VPSDE(), time_input=lambda level, sde: level.t), "time_input"),
    ):
        with pytest.raises(ArgumentError, match=f"`{name}` must be .*, got"):
            model.save_pretrained(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


def edit(folder, change):
    """Apply a change to the configuration in a model's folder."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


WEIGHTS = "model.safetensors"
DAMAGES = {
    "no config": lambda f: (f / "config.json").unlink(),
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "config cut short": lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:50]),
    "config of another kind": lambda f: (f / "config.json").write_text("[1, 2]"),
    "config of binary": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00\x01"),
    "foreign": lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
    "weights cut short": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]),
    "weights of nonsense": lambda f: (f / WEIGHTS).write_bytes(b"nonsense" * 10),
    "empty weights": lambda f: (f / WEIGHTS).write_bytes(b""),
    "a pickle": lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": 1})),
    "torch's zip": lambda f: torch.save({"a": 1}, f / WEIGHTS),
    "another net": lambda f: edit(f, lambda c: c["net"].update(width=16)),
    "an unknown net": lambda f: edit(f, lambda c: c["net"].update(name="transformer")),
    "an unknown option": lambda f: edit(f, lambda c: c["net"].update(depth=3)),
    "an unknown sde": lambda f: edit(f, lambda c: c["sde"].update(name="vvp")),
    "a bad sde": lambda f: edit(f, lambda c: c["sde"].update(beta_min=-1)),
    "no sde": lambda f: edit(f, lambda c: c.pop("sde")),
    "sde of another kind": lambda f: edit(f, lambda c: c.update(sde="vp")),
    "an unknown prediction": lambda f: edit(f, lambda c: c.update(predicts="nois")),
    "an unknown key": lambda f: edit(f, lambda c: c.update(temperature=1)),
    "data_std of another kind": lambda f: edit(f, lambda c: c.update(data_std="wide")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_broken_folders_are_refused(saved, damage):
    _, folder = saved
    damage(folder)
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"(?s)must be .*, got "):
        ScoreModel.from_pretrained(folder)
    assert contents(folder) == before


def test_moments_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = ScoreModel(net(), VPSDE(), moments=Moments(torch.zeros(1, 2, 2), torch.eye(4)))
    for change in (lambda t: t.pop("moments.covariance"), lambda t: t.update({"moments.covariance": torch.eye(3)})):
        model.save_pretrained(tmp_path / "model")
        tensors = load_file(tmp_path / "model" / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model" / "model.safetensors")
        with pytest.raises(CheckpointError):
            ScoreModel.from_pretrained(tmp_path / "model")


def test_a_missing_folder_is_named():
    with pytest.raises(CheckpointError, match="nowhere"):
        ScoreModel.from_pretrained("nowhere/at/all")


def test_a_pickle_is_never_run(saved, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    _, folder = saved
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="pickle"):
        ScoreModel.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()
