"""The ``data`` command, and pictures of samples of every kind."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.app.drawing import picture_of
from scoresde.data import Data, from_array
from tests.app.runs_for_tests import error, invoke, train

RNG = np.random.default_rng(0)
KINDS = {
    "images": (RNG.integers(0, 256, (80, 3, 6, 5)).astype(np.uint8), "images of 6 x 5 pixels, 3 channels"),
    "table": (RNG.normal(size=(80, 4)) * [1e-3, 1, 100, 1e4], "vectors of 4"),
    "series": (RNG.normal(size=(80, 2, 50)), "series of 50, 2 channels"),
    "volumes": (RNG.normal(size=(80, 1, 4, 6, 5)), "volumes of 4 x 6 x 5, 1 channel"),
    "channels last": (RNG.normal(size=(80, 28, 28, 2)), "layout=channels-last"),
}


def size(png):
    with Image.open(io.BytesIO(png)) as image:
        return image.size


@pytest.mark.parametrize("kind", KINDS)
def test_data_are_told_before_training(tmp_path, kind):
    array, layout = KINDS[kind]
    np.save(tmp_path / "x.npy", array)
    shown = invoke("data", tmp_path / "x.npy", "--out", tmp_path / "x.png").output
    for words in ("72 items", "8 held out", layout, "classes: none", "lengths in model units: typical"):
        assert words in shown
    assert (tmp_path / "x.png").exists() == (kind != "channels last")


def test_classes_repeats_and_noise_are_told(tmp_path):
    x = np.concatenate([RNG.normal(size=(99, 2)), np.zeros((21, 2))]) * [1, 50]
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(120) % 3)
    shown = invoke("data", tmp_path / "x.npz", "--set", "data.held_out=1").output
    assert "floats, each column scaled by its std, " in shown
    counts = re.search(r"classes: 0: (\d+), 1: (\d+), 2: (\d+)", shown).groups()
    assert sorted(map(int, counts)) == [39, 40, 40]  # one is held out
    assert re.search(r"repeated items: (19|20) of 119", shown)
    assert "sde.sigma_min=" in shown
    assert "existing path" in error("data", tmp_path / "none.npy")


def test_training_tells_what_was_loaded(tmp_path):
    assert "images of 8 x 8 pixels, 1 channel; integers 0..16; 10 classes" in train(tmp_path / "run").output
    shown = invoke("sample", tmp_path / "run", "-n", 3, "--png", "--out", tmp_path / "some.npz").output
    assert f"images: {tmp_path / 'some'}" in shown
    raw = np.load(tmp_path / "some.npz")["raw"]
    for number, item in enumerate(raw):
        with Image.open(tmp_path / "some" / f"{number:05d}.png") as image:
            assert np.abs(np.asarray(image) / 255 - item[0] / 16).max() < 0.04  # a bin's half, and a rounding
    invoke("sample", tmp_path / "run", "-n", 2, "--png", "--out", tmp_path / "some.npz")
    assert len(list((tmp_path / "some").iterdir())) == 2


@pytest.mark.parametrize("kind", ["images", "table", "series", "volumes"])
def test_samples_of_every_kind_have_a_picture(kind):
    data = from_array(KINDS[kind][0])
    x = data.bin_centres(data.raw[:9])
    assert min(size(picture_of(data, x))) > 100
    assert min(size(picture_of(data, None))) > 100


def test_what_cannot_be_drawn_has_no_picture():
    data = Data("x", torch.randn(9, 8, 4, 4, 5, 2))
    assert picture_of(data, data.raw) is None
