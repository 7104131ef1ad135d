"""Tables through the command line: scales and densities."""

import json

import numpy as np
import pytest

from tests.app.runs_for_tests import invoke

OPTIONS = ["--batch-size", "256", "--seed", "0", "--set", "train.lr=3e-3", "--set", "train.checkpoint_every=1000"]
NET = ["--set", "net.options={width: 32, blocks: 1}", "--set", "train.device=cpu", "--set", "train.warmup=20"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Write a table with columns of std 100 and 1, far from 0."""
    noise = np.random.default_rng(0).normal(size=(3000, 2))
    path = tmp_path_factory.mktemp("table") / "table.npy"
    np.save(path, [1e5, -3.0] + noise * [100.0, 1.0])
    return path


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_the_density_of_a_table_is_that_of_its_units(table, tmp_path, sde):
    """Compare the mean log p with -sum log(std sqrt(2 pi e)).

    The table's own rows have a standard error of 1/sqrt(300); the network's error is of the order of .01.
    """
    run = tmp_path / "run"
    invoke("train", "--data", table, "--out", run, "--sde", sde, "--steps", 400, *OPTIONS, *NET)
    invoke("likelihood", run, "-n", 300)
    nats = np.genfromtxt(run / "likelihood.csv", delimiter=",", names=True)["nats"]
    truth = -np.log(100.0) - np.log(2 * np.pi * np.e)
    assert nats.mean() == pytest.approx(truth, abs=0.25)
    invoke("sample", run, "-n", 500)
    with np.load(next(run.glob("samples-*.npz"))) as samples:
        raw = samples["raw"]
    assert raw.dtype == np.float64
    assert raw.std(0) == pytest.approx([100.0, 1.0], rel=0.15)
    assert raw.mean(0) == pytest.approx([1e5, -3.0], abs=20)
    if sde == "ve":
        model = json.loads(next(run.glob("**/config.json")).read_text())
        assert model["sde"]["sigma_min"] == pytest.approx(0.05, rel=0.3)  # a tenth of a Gaussian's finest length
        assert model["sde"]["sigma_max"] == pytest.approx(20.0, rel=0.1)
