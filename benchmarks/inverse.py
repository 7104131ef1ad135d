"""Inverse problems on Gaussian mixtures, whose posteriors are known: how far each method's samples are from them.

For data of 8 dimensions (the mixtures of benchmarks/quality.py) and y = A x + 0.1 n with a random A of 4 x 8, each
method is given the exact score and the same number of network calls. Distances to as many exact draws of p(x_0 | y):
the sliced Wasserstein-1 distance; the energy distance (its unbiased estimate, which may be negative); the distance of
the mean, over the posterior's standard deviation (the root of its covariance's trace). The floor is a second set of
exact draws, the prior draws of p(x_0). ``rows`` are the rows of the network that a call and sample take.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import common  # first: it sets how threads wait
from benchmarks.quality import SDES, mixture

# isort: split
import torch
from torch import Tensor

from scoresde import (
    SDE,
    Ancestral,
    DPMSolver,
    GaussianMixture,
    Langevin,
    Matrix,
    Particles,
    PredictorCorrector,
    Resampling,
    dps,
    gaussian_data,
    moment_matching,
    pigdm,
    replacement,
    sample,
)
from scoresde.sampling import Sampler

D, SEEN, NOISE = 8, 4, 0.1
COLUMNS = {"sliced_w1": "sliced W1", "energy": "energy", "mean": "mean / std"}
#: name: (method, sampler, steps for so many calls, rows of the network a call and sample)
Method = tuple[Callable, Sampler, Callable[[int], int], int]


def methods() -> dict[str, Method]:
    """What the table compares."""
    stochastic, every = DPMSolver(stochastic=True), lambda calls: calls

    def ancestral(calls: int) -> int:
        return calls - 1

    table: dict[str, Method] = {
        "replacement": (replacement, stochastic, every, 1),
        "replacement, resampled 10 times": (
            replacement,
            Resampling(10, grid="log_snr"),
            lambda calls: max(1, (calls - 1) // 10),
            1,
        ),
        "dps": (dps, PredictorCorrector(Ancestral(), grid="log_snr"), ancestral, 1),
        "dps(scale=0.1)": (
            lambda *problem: dps(*problem, scale=0.1),
            PredictorCorrector(Ancestral(), grid="log_snr"),
            ancestral,
            1,
        ),
    }
    for method in (pigdm, gaussian_data, moment_matching):
        table[method.__name__] = (method, stochastic, every, 1)
    table["moment_matching, PC"] = (
        moment_matching,
        PredictorCorrector(Ancestral(), Langevin(0.16), grid="log_snr"),
        lambda calls: (calls - 1) // 2,
        1,
    )
    for method in (pigdm, gaussian_data):
        for particles in (4, 16, 32):
            name = f"{method.__name__}, Particles({particles})"
            table[name] = (method, Particles(particles), lambda calls: calls - 2, particles)
    return table


def problem(seed: int, n: int) -> tuple[GaussianMixture, Matrix, Tensor, GaussianMixture]:
    """``(mixture, operator, y, posterior)`` of a seed."""
    prior, g = mixture(D, seed), torch.Generator().manual_seed(seed)
    operator = Matrix(torch.randn(SEEN, D, generator=g, dtype=torch.float64) / math.sqrt(D))
    y = operator.observe(prior.sample(1, g), NOISE, g)[0]
    return prior, operator, y, prior.posterior(operator, y, NOISE)


def sliced_w1(x: Tensor, y: Tensor, directions: int = 200) -> float:
    """The mean Wasserstein-1 distance of x and y ``(N, n)`` along random directions, the same for all."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[1], directions, generator=g, dtype=x.dtype)
    v = v / v.norm(dim=0)
    return ((x @ v).sort(0)[0] - (y @ v).sort(0)[0]).abs().mean().item()


def energy(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, without bias."""

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


def distances(x: Tensor, exact: Tensor, posterior: GaussianMixture) -> dict[str, float]:
    """The columns of the table."""
    moments = posterior.moments
    mean = (x.mean(0) - moments.mean).norm() / moments.covariance.trace().sqrt()
    return {"sliced_w1": sliced_w1(x, exact), "energy": energy(x, exact), "mean": mean.item()}


def measure(sde: SDE, calls: int, seeds: list[int], n: int, which: str = "") -> list[dict]:
    """A row for each method and problem; ``which`` picks the methods whose name has it."""
    rows = []
    for seed in seeds:
        prior, operator, y, posterior = problem(seed, n)
        exact = posterior.sample(n, torch.Generator().manual_seed(seed + 1))

        def row(name: str, x: Tensor, batch: int, seconds: float, seed=seed, exact=exact, posterior=posterior):
            found = distances(x, exact, posterior)
            rows.append({"method": name, "seed": seed, "rows": batch, **found, "seconds": round(seconds, 2)})

        row("exact posterior (floor)", posterior.sample(n, torch.Generator().manual_seed(seed + 2)), 0, 0.0)
        row("prior", prior.sample(n, torch.Generator().manual_seed(seed + 3)), 0, 0.0)
        for name, (method, sampler, steps, batch) in methods().items():
            if which not in name:
                continue
            model, g = method(prior.model(sde), operator, y, NOISE), torch.Generator().manual_seed(seed + 4)
            begun = time.perf_counter()
            x = sample(model, (n, D), sampler, steps(calls), generator=g, dtype=torch.float64)
            row(name, x, batch, time.perf_counter() - begun)
    return rows


def table(rows: list[dict]) -> str:
    """Means over the problems, with their standard errors, and in units of the floor's mean."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    lines, floor = [], {}
    for name in names:
        mine, cells = [row for row in rows if row["method"] == name], [name]
        for key in COLUMNS:
            values = torch.tensor([row[key] for row in mine], dtype=torch.float64)
            error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
            floor.setdefault(key, values.mean().item())
            times = f" ({values.mean().item() / floor[key]:.3g})" if key != "energy" else ""
            cells.append(f"{values.mean().item():.3g} ± {error:.1g}{times}")
        lines.append([*cells, str(mine[0]["rows"] or ""), f"{sum(row['seconds'] for row in mine):.0f}"])
    return common.markdown(["method", *(f"{v} (floors)" for v in COLUMNS.values()), "rows", "s"], lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sde", choices=SDES, default="vp")
    parser.add_argument("--calls", type=int, default=200, help="network calls (default: 200)")
    parser.add_argument("--problems", type=int, default=10, help="mixtures, each with an observation (default: 10)")
    parser.add_argument("--samples", type=int, default=1000, help="samples a problem (default: 1000)")
    parser.add_argument("--only", default="", help="methods whose name has this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write it and a CSV file to the output folder."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    sde = SDES[options.sde]()
    rows = measure(sde, options.calls, list(range(options.problems)), options.samples, options.only)
    title = f"# Inverse problems, {options.calls} calls, {sde!r}"
    sizes = f"- {options.problems} problems, seeds from 0, {options.samples} samples each; A {SEEN}x{D}, noise {NOISE}"
    text = [title, "", *(f"- {name}: {value}" for name, value in common.environment().items()), sizes, "", table(rows)]
    common.write_csv(options.out / f"inverse_{options.sde}.csv", rows)
    (options.out / f"inverse_{options.sde}.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
