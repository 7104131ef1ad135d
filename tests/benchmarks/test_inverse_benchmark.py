"""The benchmark of inverse problems runs, and its distances are distances."""

import csv

import torch

from benchmarks import inverse


def test_particles_come_nearer_than_guidance(tmp_path):
    inverse.main(["--calls", "20", "--problems", "1", "--samples", "60", "--only", "pigdm", "--out", str(tmp_path)])
    with (tmp_path / "inverse_vp.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {"exact posterior (floor)", "prior", "pigdm", "pigdm, Particles(16)"} <= set(rows)
    assert float(rows["pigdm, Particles(16)"]["sliced_w1"]) < float(rows["prior"]["sliced_w1"])
    assert "| pigdm, Particles(16) |" in (tmp_path / "inverse_vp.md").read_text()


def test_distances_of_shifted_sets():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert inverse.sliced_w1(x, x) == 0
    shift = torch.zeros(8, dtype=torch.float64)
    shift[0] = 3.0  # E|v_1| of a unit vector in 8 dimensions is 0.2910
    assert abs(inverse.sliced_w1(x, x + shift) - 3 * 0.291) < 0.1
    assert abs(inverse.energy(x[:250], x[250:])) < 0.05
    assert inverse.energy(x, x + shift) > 1.0
