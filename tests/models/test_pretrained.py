"""The bundled model: found by its name, good, with a true card."""

import configparser
import hashlib
import json
from pathlib import Path

import pytest
import torch

from scoresde import VPSDE, ResidualMLP, ScoreModel, bits_per_dim, load_data, sample
from scoresde.data.digits import load_digits
from scoresde.errors import CheckpointError
from scoresde.models.pretrained import PRETRAINED, bundled

DIGITS = PRETRAINED / "digits"


@pytest.fixture(scope="module")
def model():
    return ScoreModel.from_pretrained("digits")


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.mark.slow
def test_its_samples_belong_to_their_class(model, data):
    """Compare the samples with the nearest mean digit.

    It is that of the class for 80 % of real digits, and for more of these samples.
    """
    train, _ = data
    labels = torch.arange(10).repeat(4)
    x = sample(model, (40, 1, 8, 8), steps=12, cond={"y": labels}, generator=torch.Generator().manual_seed(0))
    raw = train.to_raw(x)
    assert raw.min() == 0
    assert raw.max() == 16
    means = torch.stack([train.raw[train.labels == k].double().mean(0) for k in range(10)])
    nearest = torch.cdist(raw.flatten(1).double(), means.flatten(1)).argmin(1)
    assert (nearest == labels).double().mean() >= 0.8


@pytest.mark.slow
def test_its_likelihood_of_held_out_digits(model, data):
    """Evaluate with the right label, without one and with a wrong one.

    Standard errors of the mean are 0.05 bits/dim.
    """
    _, held_out = data
    items = held_out.take(8)
    bits = {}
    for name, y in (("label", items.labels), ("none", None), ("wrong", (items.labels + 1) % 10)):
        cond = None if y is None else {"y": y}
        generator = torch.Generator().manual_seed(0)
        bits[name] = bits_per_dim(model, items.raw, cond=cond, steps=32, generator=generator).mean
    assert 1.5 < bits["label"] < bits["none"] < bits["wrong"], bits
    assert bits["none"] < 2.1


def test_the_card_names_the_digits_held_out(model):
    """Check that the card lists the indices in scikit-learn's order.

    The moments were measured on the other digits.
    """
    indices = torch.tensor(json.loads((DIGITS / "held_out.json").read_text()))
    digits = load_digits()
    assert len(indices) == len(indices.unique()) == 360
    _, held_out = load_data("digits")
    assert torch.equal(held_out.raw, digits.raw[indices])
    others = torch.ones(len(digits), dtype=torch.bool)
    others[indices] = False
    mean, covariance = digits.subset(others.nonzero().flatten()).moments()
    torch.testing.assert_close(model.moments.mean, mean)
    torch.testing.assert_close(model.moments.covariance, covariance)


def test_the_recipe_and_the_checksum_are_those_of_the_model(data):
    from scoresde.app import build
    from scoresde.app.config_files import load_config

    config = load_config(DIGITS / "recipe.yaml")
    untrained = build.model(config, data[0])
    shipped = json.loads((DIGITS / "config.json").read_text())
    assert set(shipped.pop("calibration")) == {"settings", "conditional"}
    # sums over the data are rounded as the machine adds
    for name in ("data_std", "data_scale"):
        assert untrained.config[name] == pytest.approx(shipped.pop(name), rel=1e-12)
    assert {
        name: value for name, value in untrained.config.items() if name not in ("data_std", "data_scale")
    } == shipped
    weights = (DIGITS / "model.safetensors").read_bytes()
    assert len(weights) < 3e6
    card = (DIGITS / "README.md").read_text()
    assert hashlib.sha256(weights).hexdigest() in card
    assert f"step-{config.train.steps:09d}" in card


def test_every_file_is_in_the_package_data():
    setup = configparser.ConfigParser()
    setup.read(PRETRAINED.parents[1] / "setup.cfg")
    patterns = setup["options.package_data"]["scoresde"].split()
    packed = {path for pattern in patterns for path in PRETRAINED.parent.glob(pattern)}
    assert {path for path in PRETRAINED.rglob("*") if path.is_file()} <= packed
    assert bundled() == ("digits",)


def test_a_local_folder_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    (Path("digits") / "0001.png").write_text("an image, say")
    assert ScoreModel.from_pretrained("digits").net.config["shape"] == [1, 8, 8]
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ScoreModel.from_pretrained(Path("digits"))  # a path is never a name
    (Path("digits") / "0001.png").unlink()
    ScoreModel(ResidualMLP((2,), width=8, blocks=1), VPSDE()).save_pretrained("digits")
    assert ScoreModel.from_pretrained("digits").net.config["shape"] == [2]
    (Path("digits") / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ScoreModel.from_pretrained("digits")  # an incomplete model is an error


@pytest.mark.parametrize("name", ["digit", "../digits", "digits/", Path("digits")])
def test_an_unknown_folder_or_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"must be .*'digits'"):
        ScoreModel.from_pretrained(name)
