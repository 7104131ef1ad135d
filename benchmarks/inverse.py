"""Inverse problems with known posteriors: how far each method is off.

The data are the mixtures of benchmarks/quality.py in 8 dimensions, and y = A x + 0.1 n with a random 4 x 8 matrix A.
Each method gets the exact score and the same number of network calls. Its samples are compared with equally many exact
draws of p(x_0 | y). One distance is the sliced Wasserstein-1 distance. The other is the energy distance, whose unbiased
estimate may be negative. The floor is a second set of exact draws; the prior draws of p(x_0) are shown too.

``bias`` is |E x - E[x_0 | y]| over the posterior's standard deviation, the root of its covariance's trace. The prior's
bias is 1.5 to 4. The square of the bias is estimated without bias, by subtracting the variance of a sample mean; it may
be negative. The table shows the root of the mean over the problems, with one standard error either way. ``weighted`` is
the same for the mean with the weights of :class:`scoresde.sampling.Particles`. ``rows`` counts the network's rows for
each call and sample.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

from benchmarks import common  # first: it sets how threads wait
from benchmarks.quality import SDES as QUALITY_SDES
from benchmarks.quality import mixture

# isort: split
import torch
from torch import Tensor

from scoresde import SDE, Ancestral, DPMSolver, GaussianMixture, Langevin, PredictorCorrector, SubVPSDE, trajectory
from scoresde.guidance import Matrix, dps, gaussian_data, moment_matching, pigdm, replacement
from scoresde.sampling import Particles, Resampling, Sampler

SDES = QUALITY_SDES | {"subvp": SubVPSDE}
D, SEEN, NOISE = 8, 4, 0.1
LARGEST_DRAWN = 1e3  # in floors; larger distances are not drawn
QUICK_SECONDS = 30
DISTANCES = {"sliced_w1": "sliced W1 (floors)", "energy": "energy"}
BIASES = {"bias2": "bias, %", "weighted2": "weighted, %"}  # squares
#: name: (method, sampler, steps for a number of calls, rows of the network a call and sample)
Method = tuple[Callable, Sampler, Callable[[int], int], int]


def methods() -> dict[str, Method]:
    """Return the methods that the table compares."""
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


def problem(seed: int) -> tuple[GaussianMixture, Matrix, Tensor, GaussianMixture]:
    """Return ``(mixture, operator, y, posterior)`` of a seed."""
    prior, g = mixture(D, seed), torch.Generator().manual_seed(seed)
    operator = Matrix(torch.randn(SEEN, D, generator=g, dtype=torch.float64) / math.sqrt(D))
    y = operator.observe(prior.sample(1, g), NOISE, g)[0]
    return prior, operator, y, prior.posterior(operator, y, NOISE)


def sliced_w1(x: Tensor, y: Tensor, directions: int = 200) -> float:
    """Return the sliced Wasserstein-1 distance of x and y ``(N, n)``.

    The random directions are the same for all methods.
    """
    g = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[1], directions, generator=g, dtype=x.dtype)
    v = v / v.norm(dim=0)
    return ((x @ v).sort(0)[0] - (y @ v).sort(0)[0]).abs().mean().item()


def energy(x: Tensor, y: Tensor) -> float:
    """Return the unbiased energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|."""

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


def squared_bias(x: Tensor, posterior: GaussianMixture, w: Tensor | None = None) -> tuple[float, float]:
    """Return |E x - mean|^2 over the posterior's variance, and its stderr.

    The estimate is unbiased. ``w`` are weights ``(N,)`` of the samples.
    """
    moments = posterior.moments
    w = torch.full((len(x),), 1 / len(x), dtype=x.dtype) if w is None else w
    error, spread = w @ x - moments.mean, w[:, None] * (x - w @ x)
    covariance, variance = spread.T @ spread, moments.covariance.trace()  # of the mean; of the posterior
    own = (covariance @ covariance).trace()
    of_square = 2 * own + 4 * (error @ covariance @ error - own).clamp(min=0)
    return ((error @ error - covariance.trace()) / variance).item(), (of_square.sqrt() / variance).item()


def distances(x: Tensor, exact: Tensor, posterior: GaussianMixture, log_w: Tensor | None = None) -> dict[str, float]:
    """Return one row's measurements.

    With the log-weights of the samples, the row also has those of their weighted mean.
    """
    row = {"sliced_w1": sliced_w1(x, exact), "energy": energy(x[:2000], exact[:2000])}
    for name, w in (("bias2", None), ("weighted2", log_w)):
        if name == "bias2" or w is not None:
            row[name], row[f"{name}_error"] = squared_bias(x, posterior, None if w is None else w.softmax(0))
    return row


def measure(sde: SDE, calls: int, seeds: list[int], n: int, which: str = "") -> list[dict]:
    """Return one row per method and problem.

    ``which`` selects the methods whose name contains it.
    """
    rows = []
    for seed in seeds:
        prior, operator, y, posterior = problem(seed)
        exact = posterior.sample(n, torch.Generator().manual_seed(seed + 1))
        for k, (name, law) in enumerate((("exact posterior (floor)", posterior), ("prior", prior)), start=2):
            x = law.sample(n, torch.Generator().manual_seed(seed + k))
            rows.append(
                {"method": name, "problem": seed, "rows": None, **distances(x, exact, posterior), "seconds": 0.0}
            )
        for name, (method, sampler, steps, batch) in methods().items():
            if which not in name:
                continue
            model, g = method(prior.model(sde), operator, y, NOISE), torch.Generator().manual_seed(seed + 4)
            begun = time.perf_counter()
            *_, last = trajectory(model, (n, D), sampler, steps(calls), generator=g, dtype=torch.float64)
            seconds = time.perf_counter() - begun
            found = distances(last.x, exact, posterior, last.log_weight)
            rows.append({"method": name, "problem": seed, "rows": batch, **found, "seconds": seconds})
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Return each method's means and standard errors.

    Distances are also given over the floor's.
    """
    lines, floor = [], {}
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        line = {"method": name, "rows": mine[0]["rows"]}
        for key, column in DISTANCES.items():
            values = torch.tensor([row[key] for row in mine], dtype=torch.float64)
            error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
            floor.setdefault(key, values.mean().item())
            times = f" ({values.mean().item() / floor[key]:.3g})" if key == "sliced_w1" else ""
            line[column] = f"{values.mean().item():.3g} ± {error:.1g}{times}"
        for key, column in BIASES.items():
            line[column] = None
            if key in mine[0]:
                square = sum(row[key] for row in mine) / len(mine)
                error = math.sqrt(sum(row[f"{key}_error"] ** 2 for row in mine)) / len(mine)
                low, high = math.sqrt(max(0.0, square - error)), math.sqrt(max(0.0, square) + error)
                line[column] = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append(line | {"s": round(sum(row["seconds"] for row in mine))})
    return lines


def picture(rows: list[dict], title: str):
    """Draw the sliced Wasserstein distances in units of the floor.

    Each problem is a dot.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["method"] for row in rows))
    floor = [row["sliced_w1"] for row in rows if row["method"] == names[0]]
    figure = Figure(figsize=(7, 0.6 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(names):
        values = [row["sliced_w1"] * len(floor) / sum(floor) for row in rows if row["method"] == name]
        values = [value for value in values if value < LARGEST_DRAWN]
        axes.plot(values, [k] * len(values), "o", ms=4, alpha=0.6, color="#0072B2")
    axes.axvline(1, color="0.6", lw=1)
    axes.set(xscale="log", xlabel="sliced Wasserstein distance, in floors", yticks=range(len(names)), title=title)
    axes.set_yticklabels(names)
    axes.invert_yaxis()
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.parser("inverse", __doc__, quick="one problem, 100 samples, 50 calls")
    parser.add_argument("--sde", choices=SDES, default="vp")
    parser.add_argument("--calls", type=int, default=200, help="network calls (default: 200)")
    parser.add_argument("--problems", type=int, default=10, help="mixtures, each with an observation (default: 10)")
    parser.add_argument("--samples", type=int, default=1000, help="samples a problem (default: 1000)")
    parser.add_argument("--only", default="", help="methods whose name has this")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure; write the table, a figure and a CSV file to the output folder."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    calls, problems, n = (50, 1, 100) if options.quick else (options.calls, options.problems, options.samples)
    sde = SDES[options.sde]()
    record = common.Record(
        "inverse",
        options,
        f"Inverse problems, {calls} calls, {sde!r}",
        arguments=arguments,
        seeds=f"0 to {problems - 1}, of the problems",
        variant="" if options.sde == "vp" else options.sde,
    )
    record.notes["problems"] = f"{problems}, {n} samples each; A {SEEN}x{D}, noise {NOISE}"
    rows = measure(sde, calls, list(range(problems)), n, options.only)
    record.write(rows, common.table(summary(rows)), picture(rows, f"{calls} calls, {options.sde}"))


if __name__ == "__main__":
    main()
