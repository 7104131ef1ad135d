"""The experiments on training: runs, kept results and paired comparisons."""

import csv
import json

import pytest
import torch

from benchmarks import experiments
from scoresde.app.config_files import load_config
from scoresde.errors import ArgumentError, UnknownNameError
from tests.benchmarks.test_real import fashion  # noqa: F401 - a fixture

SMALL = {"net.options.channels": 8, "net.options.multipliers": [1], "train.batch_size": 4}


@pytest.mark.slow
def test_variants_are_trained_once_and_compared_in_pairs(fashion, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(experiments, "BASE", {**experiments.BASE, **SMALL})
    threads = str(torch.get_num_threads())
    arguments = ["--quick", "--threads", threads, "--data", str(fashion), "--out", str(tmp_path), "sigmoid"]
    arguments += ["--work", str(tmp_path / "work")]
    experiments.main(arguments)
    with (tmp_path / "experiments-quick.csv").open() as file:
        base, other = csv.DictReader(file)
    assert (base["variant"], other["variant"], base["to base"]) == ("base", "sigmoid", "")
    found = [
        json.loads((tmp_path / "work" / "quick" / name / "result.json").read_text()) for name in ("base", "sigmoid")
    ]
    difference = torch.tensor(found[1]["bits"]) - torch.tensor(found[0]["bits"])
    assert float(other["to base"]) == pytest.approx(difference.mean().item(), abs=1e-5)
    before = (tmp_path / "work" / "quick" / "base" / "model.safetensors").read_bytes()
    experiments.main(arguments)
    assert (tmp_path / "work" / "quick" / "base" / "model.safetensors").read_bytes() == before
    with pytest.raises(ArgumentError, match=r"`--minutes` must be 0\.02.*, got 1\.0"):
        experiments.main([*arguments[1:-1], str(tmp_path / "work" / "quick"), "--minutes", "1"])


def test_unknown_variants_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'sigmoid'"):
        experiments.main(["--work", str(tmp_path), "sigmoids"])


@pytest.mark.parametrize("name", experiments.VARIANTS)
def test_each_variant_is_a_setting(name):
    changes = {**experiments.BASE, **experiments.VARIANTS[name]}
    load_config(preset="none", overrides=[f"{key}={json.dumps(value)}" for key, value in changes.items()])
