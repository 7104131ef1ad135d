"""The benchmark of likelihoods runs on its smallest settings.

It runs without peers and counts what it says it counts.
"""

import csv
import math

import pytest
import torch

from benchmarks import common, likelihood
from benchmarks.quality import Counted, mixture
from scoresde import VPSDE, ResidualMLP, ScoreModel
from scoresde.data import Scaling
from scoresde.errors import UnknownNameError
from scoresde.models import Moments

# networks that are hardly trained, and few calls
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::scoresde.errors.ScoreSDEWarning")]


def rows_of(results, part):
    with (results / "likelihood.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["part"] == part]


def stub(*_):
    """Return an untrained network and images of 2 x 2 pixels, 16 grey values."""
    g = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 16, (40, 1, 2, 2), generator=g)
    scaling = Scaling.for_integers(16)
    torch.manual_seed(0)
    net = ResidualMLP((1, 2, 2), width=8, blocks=1)
    return ScoreModel(
        net, VPSDE(), "edm", moments=Moments.of(scaling.bin_centres(raw)), scaling=scaling, data_std=0.6
    ), raw


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the results of one run of every part, smallest size."""
    out = tmp_path_factory.mktemp("results")
    sizes = {
        "--dims": "2",
        "--seeds": 1,
        "--points": 25,
        "--repeats": 2,
        "--images": 2,
        "--rounds": 1,
        "--converged": 40,
    }
    sizes |= {"--peers": "none", "--threads": torch.get_num_threads(), "--out": out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "trained", stub)
        patch.setattr(likelihood, "TOLERANCES", (1e-3, 1e-4))
        patch.setattr(likelihood, "ESTIMATED_TOLERANCES", (1e-3,))
        likelihood.main([str(part) for pair in sizes.items() for part in pair])
    return out


def test_it_writes_its_tables(results):
    written = {path.name for path in results.iterdir()}
    assert written == {"likelihood.csv", "likelihood.md", "likelihood.png"}
    text = (results / "likelihood.md").read_text()
    assert "1 mixtures, 25 points each" in text


def test_more_calls_err_less_and_ours_errs_least(results):
    ours, recipe = (
        [row for row in rows_of(results, "exact") if row["package"] == name] for name in ("scoresde", "torchdiffeq")
    )
    assert [int(row["calls"]) for row in ours] == [int(row["setting"]) for row in ours]
    errors = [float(row["mean_error"]) for row in ours]
    assert errors == sorted(errors, reverse=True)
    within = [float(row["mean_error"]) for row in recipe if int(row["calls"]) <= 105]
    assert errors[-1] < 1e-5 < min(within)
    matched, usual = (
        min(float(row["mean_error"]) for row in recipe if name in row["method"]) for name in ("matched", "N(0, I)")
    )
    assert matched < usual


def test_a_frozen_probe_has_more_noise(results):
    rows = rows_of(results, "estimated")
    ours = [row for row in rows if row["package"] == "scoresde"]
    (frozen,) = [row for row in rows if row["package"] == "score_sde recipe"]
    assert all(int(row["calls"]) == int(row["setting"]) <= 200 for row in ours)
    assert float(ours[-1]["sd"]) < 0.5 * float(frozen["sd"])
    assert frozen["coverage"] == ""
    assert all(0 <= float(row["coverage"]) <= 1 for row in ours)


def test_costs_of_a_network(results):
    costs = {row["package"]: row for row in rows_of(results, "network cost")}
    assert set(costs) == {"scoresde", "score_sde recipe"}
    assert all(float(row["forwards"]) > 0 and float(row["memory"]) > 1 for row in costs.values())
    for row in rows_of(results, "network error"):
        if row["package"] == "scoresde":
            assert float(row["evaluations"]) == int(row["setting"])
        cost = float(row["evaluations"]) * float(costs[row["package"]]["forwards"])
        assert math.isclose(float(row["cost_in_forwards"]), cost, rel_tol=1e-9)


def test_peak_memory_is_the_most_bytes_alive_at_once():
    kilo = torch.zeros(256)  # 1024 bytes, allocated outside: not counted
    with likelihood.PeakMemory() as memory:
        a = kilo + 1
        b = a * 2  # 2048 alive
        view = b[:3].reshape(3, 1)  # allocates nothing
        del a
        c = torch.cat([b, b])  # 1024 + 2048
        del b
        assert memory.now == 3 * 1024  # the view keeps b alive
        del view
        c += 1
    assert (memory.peak, memory.now) == (3 * 1024, 2 * 1024)


def test_peak_memory_counts_what_a_backward_pass_needs():
    """Check y = exp(exp(x)): 3 arrays are alive at its end.

    exp keeps its results, so the gradient adds to both.
    """
    x = torch.zeros(1000, requires_grad=True)
    with likelihood.PeakMemory() as memory:
        y = x.exp().exp()
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert 4 * 4000 <= memory.peak <= 5 * 4000
    del y, gradient
    assert memory.now == 0


def test_the_recipe_calls_twice_and_is_right_with_exact_traces():
    truth = mixture(2, 0)
    x = truth.sample(4, torch.Generator().manual_seed(0))
    model = Counted(truth.model(VPSDE()))
    g = torch.Generator().manual_seed(0)
    field = likelihood.score_sde_field(model, x, g)
    field(0.3, likelihood.score_sde_start(x))
    assert model.calls == 2
    log_p, _ = likelihood.score_sde(model, x, 1e-6, g, exact=True)
    assert (log_p - truth.log_prob(x)).abs().max() < 0.02  # due to its ends


def test_velocity_is_the_flows():
    model = mixture(2, 0).model(VPSDE())
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.4
    expected = model.sde.drift(x, t) - 0.5 * model.sde.diffusion(t) ** 2 * model(x, t).score
    torch.testing.assert_close(likelihood.velocity(model, x, t), expected, rtol=1e-9, atol=1e-9)


def test_the_best_setting_within_a_budget():
    rows = [
        {"package": "a", "method": "m", "calls": calls, "error": error}
        for calls, error in ((10, 3.0), (20, 2.0), (300, 1.0), (30, math.nan))
    ]
    assert [row["calls"] for row in likelihood._best(rows, "error", 100)] == [20]


def test_missing_peers_are_left_out_and_unknown_ones_refused(monkeypatch):
    monkeypatch.setitem(likelihood.PEERS, "no-such-peer", lambda: __import__("no_such_peer"))
    assert likelihood.load(["no-such-peer"]) == ({}, {"no-such-peer": common.NOT_INSTALLED})
    with pytest.raises(UnknownNameError, match="did you mean 'flow_matching'"):
        likelihood.load(["flow_match"])
