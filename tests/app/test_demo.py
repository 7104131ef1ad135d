"""The demo from data to page, with few steps.

Every stage and picture, and resuming after a stop.
"""

import re
import shutil

import pytest

from scoresde.app import baselines, showing
from scoresde.app.runs import RunFolder
from tests.app.runs_for_tests import QUICK_SCORES, TINY, TINY_POINTS, error, invoke

pytestmark = pytest.mark.slow


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(showing, "STRIP_STEPS", 10)
    monkeypatch.setattr(showing, "DENSITY_NODES", 12)
    monkeypatch.setattr(showing, "DENSITY_CALLS", 18)
    monkeypatch.setattr(baselines, "COMPONENTS", 5)


FEW = ["--set", "sample.n=4", "--set", "likelihood.n=6"]
NAMES = {
    "digits": {"real-and-pc", "real-and-ode", "forward", "from-noise", "estimates", "process", "likelihood", "loss"},
    "two-moons": {"real-and-pc", "real-and-ode", "density", "score-0.1", "score-0.5", "score-2", "process", "loss"},
}


@pytest.mark.parametrize(("data", "tiny"), [("digits", TINY), ("two-moons", TINY_POINTS)])
def test_demo_writes_a_page_with_every_picture(tmp_path, quick, data, tiny):
    out = tmp_path / "demo"
    result = invoke("demo", "--data", data, "--out", out, "--steps", 4, *tiny, *QUICK_SCORES, *FEW)
    assert f"Open {out / 'report.html'} in a browser" in result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert NAMES[data] <= {path.stem for path in (out / "pictures").iterdir()}
    assert page.count("<img ") == len(NAMES[data] | {"likelihood"}) + 1  # and the animation
    assert page.count("data:image/gif;base64,") == 1
    assert not re.search(r"https?://", page)
    unit = "bits/dim" if data == "digits" else "nats"
    for words in (f"held-out {data}", "mixture of", "under a Gaussian", unit, "±", "scoresde sample", "--resume"):
        assert words in re.sub("</?span>", "", page)
    assert ("shuffled-pixels" in page) == (data == "digits")
    stages = RunFolder.open(out).meta["stages"]
    assert list(stages) == ["train", "samples-pc", "samples-ode", "evaluate", "report"]

    assert "--resume" in error("demo", "--out", out)
    shutil.rmtree(out / "pictures")
    invoke("report", out)
    assert NAMES[data] <= {path.stem for path in (out / "pictures").iterdir()}


def test_report_of_points_needs_only_a_trained_model(tmp_path, quick):
    invoke("train", "--data", "rings", "--out", tmp_path / "run", "--steps", 3, *TINY_POINTS, *QUICK_SCORES, *FEW)
    invoke("report", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "held-out rings" in page
    assert "scoresde evaluate" in re.sub("</?span>", "", page)
    assert (tmp_path / "run" / "likelihood.csv").is_file()


def test_a_damaged_result_is_named(tmp_path, quick):
    run = tmp_path / "run"
    invoke("train", "--out", run, "--steps", 2, *TINY)
    (run / "evaluation.json").write_text('{"unit": 1}')
    assert "evaluation.json" in error("report", run)
    (run / "evaluation.json").unlink()
    (run / "samples-pc.npz").write_bytes(b"PK\x03\x04")
    assert "samples-pc.npz" in error("report", run)


def test_ctrl_c_after_training_resumes_after_it(tmp_path, quick, monkeypatch):
    out = tmp_path / "demo"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scoresde.app.demo.evaluate", interrupted)
        stopped = invoke("demo", "--out", out, "--steps", 2, *TINY, *QUICK_SCORES, *FEW, code=130)
    assert f"scoresde demo --out {out} --resume" in stopped.output
    assert not (out / "report.html").exists()
    drawn = (out / "samples-pc.npz").stat().st_mtime_ns
    invoke("demo", "--out", out, "--resume")
    assert (out / "report.html").is_file()
    assert (out / "samples-pc.npz").stat().st_mtime_ns == drawn
