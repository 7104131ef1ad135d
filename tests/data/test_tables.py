"""Tables with named columns."""

import importlib.util
import sys

import numpy as np
import pandas
import pytest
import torch

import scoresde as S
from scoresde.app import build
from scoresde.app.config import DataConfig, RunConfig, TrainConfig
from scoresde.app.drawing import picture_of
from scoresde.app.runs import RunFolder
from scoresde.data import from_frame, load_table
from scoresde.errors import ArgumentError, ConfigError, DataError, DTypeError, MissingExtraError, UnknownNameError
from tests.app.runs_for_tests import invoke


def frame(n=40):
    generator = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "height": generator.normal(170, 10, n),
            "weight": generator.normal(70, 5, n),
            "age": generator.integers(20, 60, n),
            "kind": np.where(np.arange(n) % 3 == 0, "cat", "dog"),
        }
    )


def test_a_file_keeps_its_columns_and_classes(tmp_path):
    frame().to_csv(tmp_path / "people.csv", index=False)
    data = load_table(tmp_path / "people.csv", label_column="kind")
    assert data.columns == ("height", "weight", "age")
    assert (data.class_names, data.labels[:4].tolist()) == (("cat", "dog"), [0, 1, 1, 0])
    assert torch.equal(data.raw, torch.from_numpy(frame()[["height", "weight", "age"]].to_numpy(np.float64)))
    assert torch.allclose((data.raw * data.scale + data.shift).std(0, correction=0), torch.ones(3).double())
    chosen = load_table(tmp_path / "people.csv", "age, height")
    assert (chosen.columns, chosen.labels, chosen.shape) == (("age", "height"), None, (2,))
    train, test = S.load_data(tmp_path / "people.csv", 10, columns="height,age")
    assert (len(train), len(test), train.columns, test.columns) == (30, 10, ("height", "age"), ("height", "age"))


def test_parquet_is_read(tmp_path):
    frame().to_parquet(tmp_path / "people.parquet")
    data = load_table(tmp_path / "people.parquet", label_column="kind")
    assert torch.equal(data.raw, from_frame(frame(), label_column="kind").raw)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"intact \.parquet"):
        load_table(tmp_path / "bad.parquet")


def test_a_parquet_that_grows_without_bounds_is_refused(tmp_path):
    """Write one value 12 million times, which takes a few hundred bytes."""
    pandas.DataFrame({"a": np.zeros(12_000_000)}).to_parquet(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match="12000000 cells"):
        load_table(tmp_path / "bomb.parquet")


def test_labels_are_classes():
    assert from_frame(frame(), "height", label_column="age").labels.tolist() == frame()["age"].tolist()
    with pytest.raises(DataError, match="'weight' of float64"):
        from_frame(frame(), "height", label_column="weight")
    gaps = frame().assign(kind=lambda f: f["kind"].where(f.index != 5))
    with pytest.raises(DataError, match="empty cell in row 5 of 'kind'"):
        from_frame(gaps, "height", label_column="kind")


def test_empty_cells_are_errors_or_missing():
    gaps = frame().assign(weight=lambda f: f["weight"].where(f.index != 7))
    with pytest.raises(DataError, match=r"missing=True.*row 7 of 'weight'"):
        from_frame(gaps, "height,weight")
    data = from_frame(gaps, "height,weight", missing=True)
    assert data.missing
    assert data.raw.isnan().nonzero().tolist() == [[7, 1]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((frame(),), DataError, r"columns='height,weight,age' .*label_column.*column 'kind'"),
        ((frame(), "height,wieght"), UnknownNameError, "did you mean 'weight'"),
        ((frame(), None, "knid"), UnknownNameError, "label_column.*did you mean 'kind'"),
        ((frame()[:0], "height"), DataError, "0 rows"),
        ((frame()[["height", "height"]],), DataError, "columns of one name"),
        (([1, 2],), DTypeError, "DataFrame"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        from_frame(*arguments)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="existing"):
        load_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        load_table(tmp_path / "x.xlsx")
    (tmp_path / "bad.csv").write_bytes(b"a,b\n1,2,3,4\n1\n\xff\xfe,")
    with pytest.raises(DataError):
        load_table(tmp_path / "bad.csv")
    (tmp_path / "numbers.csv").write_text("1,2,3\n4,5,6\n7,8,9\n")
    with pytest.raises(DataError, match=r"first line names the columns, got .*first line is 1, 2, 3"):
        load_table(tmp_path / "numbers.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="intact"):
        load_table(tmp_path / "empty.csv")
    with pytest.raises(ArgumentError, match="columns"):
        S.load_data("two-moons", columns="a")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pandas" else find(name, *a))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"scoresde\[tables\]"):
        load_table(tmp_path / "bad.csv")


@pytest.mark.slow
def test_a_run_on_a_table_samples_a_table(tmp_path):
    """Train, sample and score a table with missing values by commands."""
    table = frame().assign(weight=lambda f: f["weight"].where(f.index % 5 != 0))
    table.to_csv(tmp_path / "people.csv", index=False)
    settings = ["data.label_column=kind", "data.missing=true", "data.held_out=10", "train.log_every=2"]
    settings += ["net.options={width: 8, blocks: 1}", "sample.calibration_paths=0", "sample.steps=3", "sample.n=5"]
    options = [part for setting in settings for part in ("--set", setting)]
    shown = invoke("data", tmp_path / "people.csv", *options).output
    assert "missing values: " in shown
    assert "cat: " in shown
    run = tmp_path / "run"
    invoke("train", "--data", tmp_path / "people.csv", "--out", run, "--steps", 4, "--batch-size", 8, *options)
    assert RunFolder.open(run).records()[-1]["held_out"] is not None
    invoke("sample", run)
    drawn = pandas.read_csv(run / "samples-dpm.csv")
    assert list(drawn.columns) == ["height", "weight", "age"]
    assert len(drawn) == 5
    with np.load(run / "samples-dpm.npz") as arrays:
        assert np.allclose(arrays["raw"], drawn.to_numpy())
    assert "held-out items have missing values: left out" in invoke("likelihood", run).output
    table[["weight", "height", "age", "kind"]].to_csv(tmp_path / "swapped.csv", index=False)
    shown = invoke("likelihood", run, "--data", tmp_path / "swapped.csv", code=2).output
    assert "height, weight, age, as in training" in shown
    in_order = ("--set", "data.columns=height,weight,age")
    invoke("likelihood", run, "--data", tmp_path / "swapped.csv", *in_order)


def test_classes_of_another_table_have_the_numbers_of_training(tmp_path):
    frame().to_csv(tmp_path / "people.csv", index=False)
    frame().query("kind == 'dog'").to_csv(tmp_path / "dogs.csv", index=False)
    frame().assign(kind="cow").to_csv(tmp_path / "cows.csv", index=False)
    own = DataConfig(source=str(tmp_path / "people.csv"), label_column="kind")
    config = RunConfig(data=own, train=TrainConfig(conditional=True))
    dogs = build.other_data(config, str(tmp_path / "dogs.csv"))
    assert set(dogs.labels.tolist()) == {1}
    assert dogs.class_names == ("cat", "dog")
    with pytest.raises(ConfigError, match="'cow'"):
        build.other_data(config, str(tmp_path / "cows.csv"))


def test_a_table_without_a_complete_row_has_no_picture():
    gaps = frame().assign(weight=lambda f: f["weight"].where(f.index % 2 == 0), age=np.nan)
    gaps["age"] = gaps["age"].where(gaps.index % 2 == 0, 30.0)
    data = from_frame(gaps, "weight,age", missing=True)
    assert picture_of(data, torch.zeros(4, 2)) is None
