"""Loggers: what each of them writes."""

import csv
import importlib.util
import sys
import types

import pytest
import torch

from scoresde.errors import ArgumentError, MissingExtraError
from scoresde.training import CSVLog, MLflow, Record, TensorBoard, WandB
from scoresde.training.loggers import numbers_of
from scoresde.training.records import Skip


def record(step, levels=((-1.5, 2.0), (3.0, 4.0)), **more):
    known = {"loss": 0.5, "grad_norm": 1.0, "lr": 1e-3, "steps_per_second": 2.0, "seconds_left": 3.0}
    return Record(step, 10, **known, by_level=levels, **more)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_have_the_names_of_the_record():
    numbers = numbers_of(record(4, skipped=(Skip(3, None, None),), held_out=0.25))
    assert numbers["loss_by_log_snr/-1.5"] == 2.0
    assert (numbers["held_out"], numbers["skipped"]) == (0.25, 1.0)
    assert "held_out" not in numbers_of(record(4))


def test_a_csv_file_is_one_table_whatever_comes(tmp_path):
    """Add columns in the middle of a run, cut the last row, and continue."""
    path = tmp_path / "log.csv"
    with CSVLog(path) as log:
        log(record(2))
        log(record(4, ((0.5, 1.0),), held_out=0.25))
    first, second = rows(path)
    assert list(first)[:2] == ["step", "loss"]
    assert [key for key in first if "/" in key] == [
        "loss_by_log_snr/-1.5",
        "loss_by_log_snr/+0.5",
        "loss_by_log_snr/+3.0",
    ]
    assert (first["held_out"], second["held_out"], second["loss_by_log_snr/+3.0"]) == ("", "0.25", "")
    path.write_text(path.read_text() + "6,0.")
    with CSVLog(path, before=9) as log:
        log(record(8))
    assert [row["step"] for row in rows(path)] == ["2", "4", "8"]
    with CSVLog(path, before=2) as log:
        log(record(4))
    assert [row["step"] for row in rows(path)] == ["2", "4"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArgumentError, match="CSV log of a training"):
        CSVLog(tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(("logger", "package"), [(TensorBoard, "tensorboard"), (WandB, "wandb"), (MLflow, "mlflow")])
def test_what_is_not_installed_names_its_extra(logger, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    with pytest.raises(MissingExtraError, match=rf"scoresde\[{package}\]"):
        logger(**({"folder": "x"} if logger is TensorBoard else {}))


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that puts an object in the place of a package."""
    find = importlib.util.find_spec

    def put(package, **names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: name == package or find(name, *a))
        monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(**names))

    return put


def test_weights_and_biases_get_numbers_and_pictures(stand_in):
    logged, begun = [], {}

    class Run:
        def log(self, values, step):
            logged.append((values, step))

        def finish(self):
            logged.append("finished")

    stand_in("wandb", init=lambda **options: begun.update(options) or Run(), Image=lambda image: image.shape)
    with WandB(project="p", mode="offline") as log:
        log(record(4))
        log.images("samples", torch.rand(2, 1, 4, 5), 4)
        log.images("more", torch.rand(1, 4, 4, 5), 4)
    assert begun == {"project": "p", "mode": "offline"}
    assert logged[0] == (numbers_of(record(4)), 4)
    assert logged[1:] == [({"samples": [(4, 5), (4, 5)]}, 4), ({"more": [(4, 5, 3)]}, 4), "finished"]


def test_mlflow_gets_its_run_again(stand_in):
    calls = []
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

    def noted(name, answer=None):
        return lambda *arguments, **options: calls.append((name, arguments, options)) or answer

    names = ("log_params", "log_metrics", "log_image", "end_run")
    stand_in("mlflow", start_run=noted("start_run", run), **{name: noted(name) for name in names})
    with MLflow({"lr": 1e-3}, run_name="r") as log:
        log(record(4))
        log.images("samples", torch.ones(1, 3, 4, 5), 4)
    with MLflow({"lr": 1e-3}, run_id=log.run_id):
        pass
    assert [name for name, *_ in calls] == [
        *("start_run", "log_params", "log_metrics", "log_image", "end_run"),
        *("start_run", "end_run"),
    ]
    assert all("+" not in name for name in calls[2][1][0])  # a name that MLflow refuses
    assert calls[2][2] == {"step": 4, "run_id": "abc"}
    assert calls[3][1][0].min() == 255
    assert calls[5][2] == {"run_id": "abc"}
