"""The benchmark of training runs on its smallest settings.

Its hand-written loop trains as the trainer does.
"""

import csv

import pytest
import torch

from benchmarks import training
from scoresde.errors import UnknownNameError


@pytest.mark.slow
def test_it_writes_its_tables(tmp_path, monkeypatch):
    name = "MLP, 2-D points"
    monkeypatch.setattr(training, "NETS", {name: {"name": "mlp", "shape": [2], "width": 8, "blocks": 1}})
    monkeypatch.setattr(training, "BATCHES", {name: 16})
    monkeypatch.setattr(training, "memory", lambda *_: 1.0)
    threads = torch.get_num_threads()
    variants = "float32;bfloat16;float32, 4 pieces"
    options = {"--rounds": 2, "--device": "cpu", "--variants": variants, "--threads": threads, "--out": tmp_path}
    training.main(["--quick", *(str(part) for pair in options.items() for part in pair)])
    with (tmp_path / "training-quick.csv").open() as file:
        hand, trainer, *rows = csv.DictReader(file)
    assert [hand["network"], hand["variant"], float(hand["ratio"])] == [name, "by hand", 1.0]
    assert trainer["variant"] == "trainer"
    assert 0.2 < float(trainer["ratio"]) < 5
    assert [row["variant"] for row in rows] == variants.split(";")
    assert "speed / by hand" in (tmp_path / "training-quick.md").read_text()


@pytest.mark.slow
def test_presets_are_measured_by_name(tmp_path):
    common = ["--device", "cpu", "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    common += ["--quick", "--rounds", "1", "--steps", "1", "--variants", "none"]
    training.main([*common, "--nets", "digits-unet"])
    with (tmp_path / "training-quick.csv").open() as file:
        assert [(row["network"], row["batch"]) for row in csv.DictReader(file)] == [("digits-unet", "64")] * 2
    with pytest.raises(UnknownNameError, match="did you mean 'digits-unet'"):
        training.main([*common, "--nets", "digit-unet"])
    assert training.network("cifar10-ddpm")[1] == 128


def test_peak_memory_is_that_of_a_network(monkeypatch):
    assert training.peak("MLP, 2-D points", "float32", torch.device("cpu")) > 50


@pytest.mark.parametrize("variant", training.VARIANTS)
def test_variants_are_settings_of_the_trainer(variant):
    from scoresde import TrainerConfig

    TrainerConfig(**training.VARIANTS[variant])
