"""Quality per network call of scoresde and its peers.

The problems are Gaussian mixtures with exact scores; all solvers start from the same noise. The measures are:

- ODE solvers: mean distance over sqrt(d) of the end points from the probability flow's, solved to 1e-10 in float64
  from the same start noise;
- SDE solvers: mean of -log p over the samples minus the mixture's entropy (positive: too wide; negative: contracted).

Calls are counted at the model. Every row of the table is one solver. For a peer, each column shows the best of its
usual settings (order, levels, last level). This favours the peers, as ours are single settings. The CSV has all
settings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import common, peers  # first: it sets how threads wait

# isort: split
import torch
from torch import Tensor

from scoresde import (
    DDIM,
    SDE,
    VESDE,
    VPSDE,
    Ancestral,
    DPMSolver,
    GaussianMixture,
    Heun,
    Langevin,
    Model,
    PredictorCorrector,
    ProbabilityFlow,
    SingleStep,
    sample,
)
from scoresde.sampling import Sampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_SECONDS = 60
SDES: dict[str, Callable[[], SDE]] = {"vp": lambda: VPSDE(0.1, 20.0), "ve": lambda: VESDE(0.01, 50.0)}
LARGEST_DRAWN = 30.0  # upper end of the plot's axis of errors
LARGEST_STD = {2: 0.4}  # of the mixtures' stds, which begin at .05; 1 in other dimensions


class Ours:
    """One of our samplers.

    ``steps`` returns the number of steps for a number of calls.
    """

    def __init__(self, sampler: Sampler, steps: Callable[[int], int]):
        self.sampler, self.steps = sampler, steps

    def __call__(self, model: Model, x: Tensor, calls: int) -> Tensor:
        generator = torch.Generator().manual_seed(calls)
        return sample(model, x.shape, self.sampler, self.steps(calls), start=x, generator=generator)


def _every(calls: int) -> int:
    return calls


def _but_last(calls: int) -> int:
    return calls - 1


def ours(stochastic: bool) -> list[peers.Solver]:
    """Return our samplers, the default first, each with one setting."""
    if stochastic:
        table = [
            ("DPMSolver(stochastic=True)", DPMSolver(stochastic=True), _every),
            ("DDIM(eta=1)", DDIM(eta=1.0), _but_last),
            ("PredictorCorrector()", PredictorCorrector(), _but_last),
            (
                "PredictorCorrector(Ancestral(), Langevin())",
                PredictorCorrector(Ancestral(), Langevin()),
                lambda calls: (calls - 1) // 2,
            ),
        ]
    else:
        table = [
            ("DPMSolver()", DPMSolver(), _every),
            ("DPMSolver(order=2, grid='log_snr')", DPMSolver(order=2, grid="log_snr"), _every),
            ("DPMSolver(order=3, grid='log_snr')", DPMSolver(order=3, grid="log_snr"), _every),
            ("SingleStep(order=3)", SingleStep(order=3), _every),
            ("Heun()", Heun(), lambda calls: (calls - 1) // 2),
            ("DDIM()", DDIM(), _but_last),
            ("ProbabilityFlow('rk4')", ProbabilityFlow("rk4"), lambda calls: (calls - 1) // 4),
        ]
    return [peers.Solver("scoresde", name, "", Ours(sampler, steps)) for name, sampler, steps in table]


class Counted(Model):
    """A model that counts its calls."""

    def __init__(self, model: Model):
        super().__init__()
        self.model, self.sde, self.moments, self.calls = model, model.sde, model.moments, 0

    def estimate(self, x, level, cond=None):
        self.calls += 1
        return self.model.estimate(x, level, cond)


def mixture(d: int, seed: int) -> GaussianMixture:
    """Return a mixture of 8 Gaussians with random axes.

    Means are from N(0, I), stds uniform in [.05, .4] (d = 2) or [.05, 1].
    """
    g = torch.Generator().manual_seed(1000 * d + seed)
    draw = partial(torch.randn, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(draw(8, d, d))[0]
    stds = 0.05 + (LARGEST_STD.get(d, 1.0) - 0.05) * torch.rand(8, d, generator=g, dtype=torch.float64)
    return GaussianMixture(draw(8, d), axes * stds[:, None].square() @ axes.mT)


def run(solver: peers.Solver, model: Model, x: Tensor, calls: int) -> tuple[Tensor, int] | None:
    """Return the end points in float64 and the calls spent.

    The result is None if the solver cannot run with this few calls.
    """
    counted = Counted(model)
    torch.manual_seed(calls)  # the peers' noise
    try:
        end = solver.run(counted, x, calls)
    except (ValueError, IndexError, ZeroDivisionError, TypeError):  # too few calls for a step or a grid
        return None
    return (end.double(), counted.calls) if 0 < counted.calls <= calls else None


def ode_errors(
    solvers: list[peers.Solver], sde: SDE, d: int, calls: list[int], seeds: list[int], n: int
) -> Iterable[dict]:
    """Yield a row for each solver, setting and number of calls.

    The row has the error's mean and maximum over the mixtures. In many dimensions with few calls, a few samples
    end in another Gaussian than the flow and dominate the mean. The CSV therefore has the median too.
    """
    problems = []
    for seed in seeds:
        model = mixture(d, seed).model(sde)
        x = sde.prior_sample((n, d), torch.Generator().manual_seed(seed), dtype=torch.float64)
        truth = sample(model, x.shape, ProbabilityFlow("dopri8", rtol=1e-10, atol=1e-10), start=x)
        problems.append((model, x, truth))
    for solver in solvers:
        for budget in calls:
            runs = [(run(solver, model, x, budget), truth) for model, x, truth in problems]
            if all(ran is not None for ran, _ in runs):
                errors = [(end - truth).norm(dim=1) / math.sqrt(d) for (end, _), truth in runs]
                means = [e.mean().item() for e in errors]
                yield {
                    "d": d,
                    "package": solver.package,
                    "solver": solver.name,
                    "setting": solver.setting,
                    "calls": budget,
                    "calls_spent": runs[0][0][1],
                    "mean": sum(means) / len(means),
                    "worst": max(means),
                    "stderr": math.sqrt(sum(e.var().item() / n for e in errors)) / len(errors),
                    "median": torch.cat(errors).median().item(),
                }


def nll_gaps(
    solvers: list[peers.Solver], sde: SDE, d: int, calls: list[int], seeds: list[int], n: int
) -> Iterable[dict]:
    """Yield a row for each solver, setting and number of calls.

    The row has the NLL gap in nats and its standard error. Mean and worst are over the mixtures. The standard error is
    that of the mean, from the samples and the entropy.
    """
    problems = []
    for seed in seeds:
        truth = mixture(d, seed)
        g = torch.Generator().manual_seed(seed)
        x = sde.prior_sample((n, d), g, dtype=torch.float64)
        nll = torch.cat([-truth.log_prob(truth.sample(4 * n, g)) for _ in range(5)])
        problems.append((truth, truth.model(sde), x, nll.mean().item(), nll.var().item() / len(nll)))
    for solver in solvers:
        for budget in calls:
            runs = [(run(solver, model, x, budget), truth, h, v) for truth, model, x, h, v in problems]
            if all(ran is not None for ran, *_ in runs):
                nlls = [(-truth.log_prob(end), h, v) for (end, _), truth, h, v in runs]
                gaps = [(nll.mean() - h).item() for nll, h, _ in nlls]
                variances = [nll.var().item() / n + v for nll, _, v in nlls]
                yield {
                    "d": d,
                    "package": solver.package,
                    "solver": solver.name,
                    "setting": solver.setting,
                    "calls": budget,
                    "calls_spent": runs[0][0][1],
                    "mean": sum(gaps) / len(gaps),
                    "worst": max(gaps, key=abs),
                    "stderr": math.sqrt(sum(variances)) / len(variances),
                }


def best(rows: list[dict]) -> dict[tuple[str, str, int], dict]:
    """Return the best setting by package, solver and calls.

    It is the row with the smallest absolute mean.
    """
    chosen: dict[tuple[str, str, int], dict] = {}
    for row in rows:
        key, value = (row["package"], row["solver"], row["calls"]), abs(row["mean"])
        if math.isfinite(value) and (key not in chosen or value < abs(chosen[key]["mean"])):
            chosen[key] = row
    return chosen


def table(rows: list[dict], calls: list[int], text: Callable[[dict], str], left_out: dict[str, str]) -> str:
    """Return a Markdown table: solvers by numbers of calls.

    The last lines are the best peer of each column, and the reasons why peers are left out.
    """
    chosen = best(rows)
    lines = []
    for package, name in dict.fromkeys((row["package"], row["solver"]) for row in rows):
        cells = [text(chosen[package, name, n]) if (package, name, n) in chosen else "" for n in calls]
        lines.append([package, name, *cells])
    cells = []
    for n in calls:
        found = [row for (package, _, k), row in chosen.items() if package != "scoresde" and k == n]
        cells.append(text(min(found, key=lambda row: abs(row["mean"]))) if found else "")
    if any(cells):
        lines.append(["best peer", "of each column", *cells])
    lines += [[package, reason] for package, reason in left_out.items()]
    return common.markdown(["package", "solver", *map(str, calls)], lines)


def settings(rows: list[dict], calls: list[int]) -> str:
    """Return a Markdown table of the peers' settings, as in :func:`table`."""
    chosen = best(rows)
    solvers = dict.fromkeys((row["package"], row["solver"]) for row in rows if row["setting"])
    lines = [[*key, *(chosen[*key, n]["setting"] if (*key, n) in chosen else "" for n in calls)] for key in solvers]
    return common.markdown(["package", "solver", *map(str, calls)], lines) if lines else ""


def figure_of(rows: list[dict]) -> Figure:
    """Draw error against calls.

    A row of panels is a kind of solver, a column a dimension; peers are grey.
    """
    from matplotlib.figure import Figure

    kinds, dims = (list(dict.fromkeys(row[name] for row in rows)) for name in ("part", "d"))
    figure = Figure(figsize=(3 + 3.6 * len(dims), 3.4 * len(kinds)), layout="constrained")
    for line, kind in zip(figure.subplots(len(kinds), len(dims), squeeze=False), kinds, strict=True):
        for axes, d in zip(line, dims, strict=True):
            draw(axes, best([row for row in rows if (row["part"], row["d"]) == (kind, d)]))
            axes.set(title=f"d = {d}", ylabel=KINDS[kind].title)
        line[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def draw(axes, chosen: dict[tuple[str, str, int], dict]) -> None:
    """Draw one panel."""
    drawn = 0
    names = list(dict.fromkeys((package, name) for package, name, _ in chosen))
    for package, name in names:
        points = sorted((n, abs(r["mean"])) for (p, s, n), r in chosen.items() if (p, s) == (package, name))
        own = package == "scoresde"
        style = {"color": f"C{drawn}", "lw": 2, "marker": "o"} if own else {"color": "0.65", "lw": 1, "marker": "."}
        drawn += own
        axes.loglog(*zip(*points, strict=True), label=name if own else None, zorder=3 if own else 2, **style)
    if len(names) > drawn:
        axes.plot([], [], color="0.65", marker=".", label="peers (best setting of each)")
    numbers = sorted({n for _, _, n in chosen})
    axes.set(xlabel="network calls", xticks=numbers, xticklabels=numbers)
    axes.minorticks_off()
    axes.set_ylim(top=min(axes.get_ylim()[1], LARGEST_DRAWN))
    axes.grid(alpha=0.3)


def _error(row: dict) -> str:
    return f"{row['mean']:.1e} ± {row['stderr']:.0e} ({row['worst']:.1e})"


def _gap(row: dict) -> str:
    return f"{row['mean']:+.3f} ± {row['stderr']:.3f} ({row['worst']:+.3f})"


class Kind(NamedTuple):
    """A kind of solver.

    It has a measure, the measure's name, and the text of a table's cell.
    """

    measure: Callable[..., Iterable[dict]]
    title: str
    cell: Callable[[dict], str]


KINDS = {"ode": Kind(ode_errors, "endpoint error / sqrt(d)", _error), "sde": Kind(nll_gaps, "NLL gap, nats", _gap)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = common.parser("quality", __doc__, quick="fewer mixtures, samples and calls")
    parser.add_argument("--sde", choices=SDES, default="vp")
    parser.add_argument("--dims", default="2,64", help="dimensions of the data")
    parser.add_argument("--calls", help="numbers of network calls (default 5,10,20,50,100)")
    parser.add_argument("--seeds", type=int, help="number of mixtures, seeds 0, 1, ...")
    parser.add_argument("--samples", type=int, help="end points a mixture")
    parser.add_argument("--nll-samples", type=int, help="samples a mixture for the NLL gap in d = 2; a tenth in others")
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="packages, or none")
    parser.add_argument("--skip", choices=KINDS, help="leave out a kind of solver")
    options = parser.parse_args(arguments)
    defaults = ("5,10,20", 1, 60, 2000) if options.quick else ("5,10,20,50,100", 4, 200, 40000)
    for name, value in zip(("calls", "seeds", "samples", "nll_samples"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Measure each kind of solver in each dimension, and write the record."""
    options = parse(arguments)
    dims, calls = common.wholes("--dims", options.dims), common.wholes("--calls", options.calls)
    seeds = list(range(options.seeds))
    torch.set_num_threads(options.threads)
    sde = SDES[options.sde]()
    modules, left_out = peers.load([] if options.peers == "none" else options.peers.split(","))
    record = common.Record(
        "quality",
        options,
        f"Quality per network call, {sde!r}",
        arguments=arguments,
        seeds=f"mixtures {seeds[0]} to {seeds[-1]}; start noise by the mixture's seed, the same for all",
        peers=modules,
        left_out=left_out,
        variant="" if options.sde == "vp" else options.sde,
    )
    rows, text = [], []
    for part, kind in KINDS.items():
        if part == options.skip:
            continue
        solvers = [*ours(part == "sde"), *peers.solvers(modules, part == "sde")]
        for d in dims:
            n = options.samples if part == "ode" else options.nll_samples if d == 2 else options.nll_samples // 10
            found = [{"part": part, **row} for row in kind.measure(solvers, sde, d, calls, seeds, n)]
            rows += found
            text.append(f"## {kind.title[0].upper()}{kind.title[1:]}, d = {d}")
            text.append(f"Mean ± standard error (worst mean) over {len(seeds)} mixtures, {n} samples each.")
            text.append(table(found, calls, kind.cell, left_out))
            if modules:
                text += ["Settings of the peers in the table:", settings(found, calls)]
    record.write(rows, "\n\n".join(text), figure_of(rows))


if __name__ == "__main__":
    main()
