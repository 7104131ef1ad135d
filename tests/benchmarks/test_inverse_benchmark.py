"""The benchmark of inverse problems: its run and its distances."""

import csv

import pytest
import torch

from benchmarks import inverse
from scoresde import GaussianMixture

pytestmark = pytest.mark.filterwarnings("ignore::scoresde.errors.SamplingWarning")


@pytest.mark.slow
def test_particles_come_nearer_than_guidance(tmp_path):
    inverse.main(["--calls", "20", "--problems", "1", "--samples", "60", "--only", "pigdm", "--out", str(tmp_path)])
    with (tmp_path / "inverse.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {"exact posterior (floor)", "prior", "pigdm", "pigdm, Particles(16)"} <= set(rows)
    assert float(rows["pigdm, Particles(16)"]["sliced_w1"]) < float(rows["prior"]["sliced_w1"])
    assert rows["pigdm"]["weighted2"] == ""
    assert "| pigdm, Particles(16) |" in (tmp_path / "inverse.md").read_text()


def test_distances_of_shifted_sets():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert inverse.sliced_w1(x, x) == 0
    shift = torch.zeros(8, dtype=torch.float64)
    shift[0] = 3.0  # E|v_1| = 0.2910 for a unit vector in 8 dimensions
    assert abs(inverse.sliced_w1(x, x + shift) - 3 * 0.291) < 0.1
    assert abs(inverse.energy(x[:250], x[250:])) < 0.05
    assert inverse.energy(x, x + shift) > 1.0


def test_the_bias_of_a_mean_is_estimated_without_bias():
    """Estimate the bias of 400 sets of 50 draws of the law itself.

    It lies within 0 to 4 standard errors; that of a shifted law does not.
    """
    law = GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], 0.3)
    g = torch.Generator().manual_seed(0)
    sets = [law.sample(50, g) for _ in range(400)]
    found = torch.tensor([inverse.squared_bias(x, law) for x in sets])
    assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / 20
    assert 0.7 < found[:, 0].std() / found[:, 1].mean() < 1.4  # the standard errors are right
    moved = torch.tensor([inverse.squared_bias(x + 0.5, law)[0] for x in sets])
    assert abs(moved.mean() - 0.5 / law.moments.covariance.trace()) < 4 * moved.std() / 20
    half = torch.cat([torch.full((50,), 0.02, dtype=torch.float64), torch.zeros(50)])
    weighted = inverse.squared_bias(torch.cat([sets[0], sets[0] + 9]), law, half)
    torch.testing.assert_close(weighted, inverse.squared_bias(sets[0], law))
