"""The benchmarks run on their smallest settings, without peers.

They count what they say they count.
"""

import csv

import pytest
import torch

from benchmarks import common, overhead, peers, quality
from scoresde import VPSDE
from scoresde.errors import UnknownNameError

# networks that are hardly trained, and few calls
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::scoresde.errors.ScoreSDEWarning")]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the folder of one run of the smallest size."""
    out = tmp_path_factory.mktemp("results")
    sizes = ["--dims", "2", "--calls", "6,24", "--seeds", "1", "--samples", "16", "--nll-samples", "200"]
    quality.main([*sizes, "--peers", "none", "--out", str(out)])
    return out


def test_quality_writes_its_tables(results):
    written = {path.name for path in results.iterdir()}
    assert written == {f"quality.{end}" for end in ("csv", "md", "png")}
    assert (results / "quality.png").stat().st_size < 80_000
    text = (results / "quality.md").read_text()
    assert text.startswith("# Quality per network call, VPSDE(")
    assert "| scoresde | DPMSolver() |" in text
    assert "- seeds: mixtures 0 to 0" in text


def test_more_calls_err_less_and_budgets_are_kept(results):
    rows = [row for row in rows_of(results / "quality.csv") if row["part"] == "ode"]
    errors = {}
    for row in rows:
        assert 0 < int(row["calls_spent"]) <= int(row["calls"])
        errors.setdefault(row["solver"], []).append(float(row["mean"]))
    assert all(before > after for before, after in errors.values()), errors
    assert len(errors) == len(quality.ours(stochastic=False))


def test_the_yardstick_is_the_exact_flow():
    """Compare the reference with the known flow of one Gaussian.

    x_0 = mean + std/sqrt(std^2 + rho^2) (y - mean); DDIM has the expected error.
    """
    from scoresde import GaussianMixture, ProbabilityFlow, sample

    sde, mean, std = VPSDE(), torch.tensor([0.5, -1.0], dtype=torch.float64), 0.2
    model = GaussianMixture(mean[None], std**2).model(sde)
    x = sde.prior_sample((8, 2), torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = sde.alpha(1.0), sde.sigma(1.0)
    exact = mean + std * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()
    truth = sample(model, x.shape, ProbabilityFlow("dopri8", rtol=1e-10, atol=1e-10), start=x)
    assert (truth - exact).abs().max() < 1e-7


def test_the_denoiser_given_to_peers_is_the_models_own():
    """Compare D(y; rho) at rho = sigma/alpha with x0 at t.

    The betas for diffusers have the levels of the process.
    """
    sde = VPSDE()
    model = quality.mixture(2, 0).model(sde)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = model(x, 0.3)
    rho = estimate.level.sigma / estimate.level.alpha
    x0, eps = peers.Denoiser(model)(x / estimate.level.alpha, rho)
    assert torch.allclose(x0, estimate.x0, rtol=1e-8, atol=1e-10)
    assert torch.allclose(eps, estimate.eps, rtol=1e-8, atol=1e-10)
    betas = torch.tensor(peers.discrete_betas(sde, 100), dtype=torch.float64)
    assert torch.allclose((1 - betas).prod(), sde.alpha(1.0) ** 2, rtol=1e-9)


def test_a_peer_that_does_not_import_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "azula", (lambda: __import__("no_such_package"), peers.azula_solvers))
    monkeypatch.setattr(common, "version", lambda package: "1.0")
    modules, left_out = peers.load(["azula"])
    assert modules == {}
    assert left_out["azula"] == "does not import: ModuleNotFoundError: No module named 'no_such_package'"
    row = {"package": "scoresde", "solver": "DDIM()", "calls": 5, "mean": 1.0, "setting": ""}
    table = quality.table([row], [5], lambda row: "1", left_out)
    assert table.splitlines()[-1] == f"| azula | {left_out['azula']} |  |"
    with pytest.raises(UnknownNameError, match="did you mean 'azula'"):
        peers.load(["azula2"])


def test_overhead_measures_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "LENGTHS", (4, 8))
    before = torch.get_num_threads()
    overhead.main(["--rounds", "1", "--peers", "none", "--out", str(tmp_path), "--threads", str(before)])
    every = rows_of(tmp_path / "overhead.csv")
    rows, shares = ([row for row in every if row["part"] == part] for part in ("16 x 2", "U-Net"))
    assert {row["package"] for row in rows} == {"", "scoresde"}
    assert all(float(row["a_call"]) > 0 for row in rows)
    assert {row["sampler"] for row in shares} == {row["sampler"] for row in rows} - {"the network alone"}
    assert all(float(row["share_of_unet"]) < 1 for row in shares)
