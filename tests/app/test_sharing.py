"""Samples for other libraries' metrics, and models for the hub."""

import json

import numpy as np
import pytest
from PIL import Image

from scoresde import ScoreModel
from tests.app.runs_for_tests import QUICK_SCORES, TINY_POINTS, error, invoke, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(folder)
    return folder


def test_images_for_other_libraries(run):
    output = invoke("evaluate", run, "--images", 5).output
    assert "5 samples and 5 items" in output
    for name in ("samples", "data"):
        files = sorted((run / "images" / name).iterdir())
        assert len(files) == 5
        assert np.asarray(Image.open(files[0])).dtype == np.uint8
        with np.load(run / "images" / f"{name}.npz") as arrays:
            assert arrays["arr_0"].shape == (5, 8, 8, 3)


def test_metrics_are_written(run, monkeypatch):
    monkeypatch.setattr("scoresde.app.imaging.image_metrics", lambda samples, reference, **settings: {"fid": 3.5})
    assert "3.5" in invoke("evaluate", run, "--images", 4, "--metrics").output
    assert json.loads((run / "images" / "metrics.json").read_text()) == {"samples": 4, "data": 4, "fid": 3.5}


def test_metrics_need_images(run, tmp_path):
    assert "--images" in error("evaluate", run, "--metrics")
    points = tmp_path / "points"
    train(points, "--data", "two-moons", options=TINY_POINTS)
    assert "not images" in error("evaluate", points, "--images", 3)


def test_a_card_of_a_run(run, tmp_path):
    invoke("sample", run, "-n", 4, "--steps", 2)
    invoke("evaluate", run, "-n", 3, "--corrupted", 0, *QUICK_SCORES)
    output = invoke("push", run, "me/digits", "--license", "mit", "--out", tmp_path / "card").output
    assert "me/digits" in output
    text = (tmp_path / "card" / "README.md").read_text()
    for part in ("license: mit", "- digits", "bits/dim (3 held-out items", "| steps | 4 |", "![samples"):
        assert part in text, part
    assert ScoreModel.from_pretrained(tmp_path / "card").scaling is not None
    assert "empty folder" in error("push", run, "me/digits", "--out", tmp_path / "card")


def test_an_upload_that_fails_is_one_line(run):
    assert "me/digits" in error("push", run, "me/digits", code=1)
