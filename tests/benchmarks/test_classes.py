"""The benchmark of classes runs on its smallest settings.

It counts what it says it counts.
"""

import csv

import pytest
import torch

from benchmarks import classes
from scoresde.likelihood import Classification

# networks that are hardly trained, and few calls
pytestmark = pytest.mark.filterwarnings("ignore::scoresde.errors.ScoreSDEWarning")


@pytest.mark.slow
def test_it_writes_its_tables(tmp_path):
    before = torch.get_num_threads()
    classes.main(["--quick", "--out", str(tmp_path), "--threads", str(before)])
    with (tmp_path / "classes-quick.csv").open() as file:
        every = list(csv.DictReader(file))
    rows = [row for row in every if row["part"] == "recognised"]
    assert rows[0]["digits"] == "real, held out"
    assert float(rows[0]["recognised"]) > 0.97
    assert [row["n"] for row in rows[1:]] == ["10"] * (len(rows) - 1)
    assert {row["part"] for row in every} == {"recognised", "bayes", "reliability"}
    assert {path.name for path in tmp_path.iterdir()} == {f"classes-quick.{end}" for end in ("csv", "md", "png")}


def test_reliability_and_calibration():
    """Two answers of confidence .8, one right; two of .995, both right."""
    p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.005, 0.995], [0.995, 0.005]], dtype=torch.float64)
    found = Classification(p.log(), p.log(), torch.zeros(4, 2), torch.tensor([0, 1]))
    labels = torch.tensor([0, 1, 1, 0])
    bins = classes.reliability(found, labels)
    assert [(row["confidence"], row["n"]) for row in bins] == [("0.5 to 0.9", 2), ("0.99 to 0.999", 2)]
    assert [row["right"] for row in bins] == [0.5, 1.0]
    summary = classes.summary(found, labels)
    assert summary["accuracy"] == 0.75
    assert abs(summary["calibration_error"] - (2 * 0.3 + 2 * 0.005) / 4) < 1e-12
    assert abs(summary["nats"] + float(torch.tensor([0.8, 0.2, 0.995, 0.995]).log().mean())) < 1e-6


def test_spread_is_the_variance_within_a_class():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 5.0], [10.0, 9.0]])
    assert classes.spread(x, torch.tensor([0, 0, 1, 1])) == (1.0 + 4.0) / 2
