"""The benchmark of the defaults, and its families of problems."""

import csv
import math

import pytest
import torch

from benchmarks import defaults, families
from scoresde import VPSDE


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_problems_follow_from_their_seed(family):
    """Check that a seed gives one problem, another seed another.

    Its finest length is at most its largest.
    """
    first, again, other = (families.mixture(family, seed) for seed in (0, 0, 1))
    assert torch.equal(first.means, again.means)
    assert (first.means.shape, first.moments.std) != (other.means.shape, other.moments.std)
    scale = first.data_scale
    assert 0 < scale.finest <= scale.largest


def test_variants_of_a_problem():
    plain = families.problem("mixtures", 0, VPSDE())
    x = torch.randn(6, *plain.shape, dtype=torch.float64)
    assert plain.cond(6) is None
    hidden = families.problem("mixtures", 0, VPSDE(), "hidden")
    assert hidden.model.known_scale() is None
    assert torch.equal(hidden.model(x, 0.5).x0, plain.model(x, 0.5).x0)
    erring = families.problem("mixtures", 0, VPSDE(), "erring").model(x, 0.5)
    assert 0 < (erring.x0 - plain.model(x, 0.5).x0).abs().max() < 0.1 * plain.model.moments.std
    t = torch.tensor(0.5)
    torch.testing.assert_close(VPSDE().alpha(t) * erring.x0 + VPSDE().sigma(t) * erring.eps, x)
    guided = families.problem("mixtures", 0, VPSDE(), "guided-5")
    assert guided.cond(6)["y"].tolist() == [0, 1, 2, 3, 4, 5]
    assert guided.model.guidance == 5.0


def test_settings_of_a_record_are_read(tmp_path):
    text = "part,problem,calls,peer_setting\nsampler,moons network,5,a\nfrechet,moons network,5,\n"
    (tmp_path / "r.csv").write_text(text)
    (row,) = defaults.read_settings(str(tmp_path / "r.csv"))
    assert (row["problem"], row["calls"], row["peer_setting"]) == ("moons network", 5, "a")


@pytest.mark.slow
def test_it_writes_its_tables(tmp_path):
    settings = ["--families", "narrow_modes", "--variants", "known", "--calls", "5,10", "--processes", "vp"]
    defaults.main(
        [*settings, "--parts", "sampler,likelihood", "--peers", "none", "--points", "10", "--out", str(tmp_path)]
    )
    with (tmp_path / "defaults_sampler-likelihood.csv").open() as file:
        rows = list(csv.DictReader(file))
    samplers = [row for row in rows if row["part"] == "sampler"]
    assert [row["calls"] for row in samplers] == ["5", "10"]
    assert all(float(row["default"]) < float(row["ddim"]) for row in samplers)
    assert all(math.isinf(float(row["peer"])) for row in samplers)
    likelihoods = {row["points"]: row for row in rows if row["part"] == "likelihood"}
    assert float(likelihoods["data"]["worst_error"]) < 1e-3
    assert likelihoods["data"]["silent"] == likelihoods["off the data"]["silent"] == "0"
