"""The model that comes with the package: found by its name, good, and what its card says of it."""

import configparser
import hashlib
import json
from pathlib import Path

import pytest
import torch

from scoresde import VPSDE, ResidualMLP, ScoreModel, bits_per_dim, load_data, sample
from scoresde.data.digits import load_digits
from scoresde.errors import CheckpointError
from scoresde.models.score_model import PRETRAINED, shipped

DIGITS = PRETRAINED / "digits"


@pytest.fixture(scope="module")
def model():
    return ScoreModel.from_pretrained("digits")


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


def test_its_samples_are_digits_of_the_class_they_are_asked_for(model, data):
    """The nearest of the mean digits is that of the class: for 80 % of real digits, and here for more."""
    train, _ = data
    labels = torch.arange(10).repeat(4)
    x = sample(model, (40, 1, 8, 8), steps=12, cond={"y": labels}, generator=torch.Generator().manual_seed(0))
    raw = train.to_raw(x)
    assert raw.min() == 0
    assert raw.max() == 16
    means = torch.stack([train.raw[train.labels == k].double().mean(0) for k in range(10)])
    nearest = torch.cdist(raw.flatten(1).double(), means.flatten(1)).argmin(1)
    assert (nearest == labels).double().mean() >= 0.8


def test_its_likelihood_of_digits_it_was_not_trained_on(model, data):
    """With the label, without one, and with a wrong one; standard errors of the mean are 0.05 bits/dim."""
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
    """By their places in scikit-learn's order, whatever a split by seed may become; nothing was measured on them."""
    places = torch.tensor(json.loads((DIGITS / "held_out.json").read_text()))
    digits = load_digits()
    assert len(places) == len(places.unique()) == 360
    _, held_out = load_data("digits")
    assert torch.equal(held_out.raw, digits.raw[places])
    others = torch.ones(len(digits), dtype=torch.bool)
    others[places] = False
    mean, covariance = digits.subset(others.nonzero().flatten()).moments()
    torch.testing.assert_close(model.moments.mean, mean)
    torch.testing.assert_close(model.moments.covariance, covariance)


def test_the_recipe_builds_this_very_model_and_the_card_has_its_checksum(data):
    from scoresde.app import build
    from scoresde.app.config_files import load_config

    config = load_config(DIGITS / "recipe.yaml")
    untrained = build.model(config, data[0])
    assert untrained.config == json.loads((DIGITS / "config.json").read_text())
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
    assert shipped() == ("digits",)


def test_a_saved_model_of_that_name_is_the_one_that_is_loaded(tmp_path, monkeypatch):
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
        ScoreModel.from_pretrained("digits")  # half a model is not passed over in silence


@pytest.mark.parametrize("name", ["digit", "../digits", "digits/", Path("digits")])
def test_what_is_neither_a_folder_nor_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected .*'digits'"):
        ScoreModel.from_pretrained(name)
