"""The default sampler and likelihood, beside peers, on families.

Samplers: the mean distance over sqrt(d) of the end points from the flow's, from the same noise, over the typical length
of the data. A peer's figure is that of its best setting in each cell of family, seed, variant and calls. Our default
and the calibrated one are single settings.

Likelihoods: the error of log p in nats a dimension, beside its estimate and dopri5. The points are those of the data,
and others 3 standard deviations off them.

Seeds are odd by default. Even ones served to choose the defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from benchmarks import common, families, peers  # first: it sets how threads wait

# isort: split
import torch
from torch import Tensor

from benchmarks.default_networks import Eye, networks, run_network
from scoresde import (
    DDIM,
    DDPM,
    NCSN,
    SDE,
    VESDE,
    VPSDE,
    DPMSolver,
    Exact,
    FlowSDE,
    Model,
    SubVPSDE,
    calibrate,
    log_likelihood,
    sample,
)
from scoresde.errors import ToleranceError
from scoresde.models.conditions import Condition
from scoresde.sampling import Sampler

QUICK_SECONDS = 50
STARTS = 32  # start noises of a cell
REFERENCE_CALLS = 600
REFERENCE_DETAIL = 0.02  # rho of the reference's last level over the finest length
SOLVERS = ("DPM-Solver++", "UniPC", "DEIS", "dpmpp_2m", "zAB", "vAB", "xEAB", "zEAB", "REAB")
PEERS_LAST = (1e-4, 1e-3, 5e-3, 0.02, 0.05)  # last levels of peers with free levels, over the typical length
NETWORK_LAST = 1e-3  # rho of a network's last level, over the typical length
FRECHET = ("default", "calibrated", "peer")
PARTS = ("sampler", "network", "frechet", "likelihood")
DEFAULT_PARTS = "sampler,network,likelihood"
TOLERANCE = 1e-3  # of log p, in nats a dimension
PROCESSES: dict[str, Callable[[], SDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "flow": FlowSDE,
    "ddpm": lambda: DDPM.linear(1000),
    "ncsn": lambda: NCSN.geometric(0.01, 50.0, 232),
}


class Cell(NamedTuple):
    """A problem with starts at t = 1 and the ends of the flow from them."""

    name: str
    variant: str
    model: Model
    cond: Condition
    x: Tensor
    ends: Tensor
    typical: float

    def error(self, ends: Tensor) -> float:
        """Return the mean error of end points."""
        distance = (ends.double() - self.ends).flatten(1).norm(dim=1) / math.sqrt(self.x[0].numel())
        return distance.mean().item() / self.typical


class Conditioned(Model):
    """A model under one condition, which counts its calls."""

    def __init__(self, model: Model, cond: Condition):
        super().__init__()
        self.model, self.sde, self.cond, self.calls = model, model.sde, cond, 0

    def estimate(self, x, level, cond=None):
        self.calls += 1
        own = x.to(self.model.dtype)
        found = self.model.estimate(own, level, self.cond)
        return found if own is x else found._replace(x0=found.x0.to(x), eps=found.eps.to(x))


def reference(model: Model, x: Tensor, cond: Condition, last: float) -> Tensor:
    """Return the ends of the flow: order 3 in many equal steps of lambda.

    ``last`` is rho of the last level. A process that ends before it has its own last level.
    """
    sde = model.sde
    levels = sde.levels(torch.tensor([0.0, sde.time_at(lam=-math.log(last)).item()], dtype=torch.float64))
    t_min = levels[1].t if levels[0].rho < last else 0.0
    solver = DPMSolver(3, corrector=False, grid="log_snr", t_min=t_min, t_max=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sample(model, x.shape, solver, REFERENCE_CALLS, start=x, cond=cond).double()


def cells(names: list[str], variants: list[str], seeds: list[int], n: int) -> Iterator[Cell]:
    """Yield a cell for each family, seed and variant."""
    sde = VPSDE()
    for name in names:
        for seed in seeds:
            scale = families.mixture(name, seed).data_scale
            for variant in variants:
                problem = families.problem(name, seed, sde, variant)
                generator = torch.Generator().manual_seed(100 + seed)
                x = sde.prior_sample((n, *problem.shape), generator, dtype=torch.float64)
                cond = problem.cond(n)
                ends = reference(problem.model, x, cond, REFERENCE_DETAIL * scale.finest)
                yield Cell(f"{name} {seed}", variant, problem.model, cond, x, ends, scale.typical)


def network_cells(runs: list[str], n: int) -> Iterator[Cell]:
    """Yield cells of trained networks."""
    for name, variant, model, condition in networks(runs):
        assert model.moments is not None
        generator = torch.Generator().manual_seed(5)
        x = model.sde.prior_sample((n, *model.moments.mean.shape), generator, dtype=model.dtype)
        cond = condition(n)
        ends = reference(model, x, cond, NETWORK_LAST * model.moments.std)
        yield Cell(name, variant, model, cond, x, ends, model.moments.std)


def peer_solvers(modules: dict, typical: float) -> dict[str, peers.Solver]:
    """Return the peers' solvers by name and setting.

    Their last levels are shares of the typical length.
    """
    usual = peers.RHO_MIN
    peers.RHO_MIN = tuple(typical * share for share in PEERS_LAST)
    try:
        found = peers.solvers(modules, stochastic=False)
    finally:
        peers.RHO_MIN = usual
    return {f"{one.package} {one.name}, {one.setting}": one for one in found if one.name in SOLVERS}


def peers_of(cell: Cell, modules: dict, calls: int) -> tuple[float, str]:
    """Return the least error of the peers, and the setting that has it."""
    best = math.inf, ""
    for setting, solver in peer_solvers(modules, cell.typical).items():
        counted = Conditioned(cell.model, cell.cond)
        try:
            found = cell.error(solver.run(counted, cell.x, calls))
        except (ValueError, IndexError, ZeroDivisionError, TypeError, RuntimeError):  # too few calls, or no level
            continue
        if 0 < counted.calls <= calls and found < best[0]:
            best = found, setting
    return best


def sampler_rows(found: Iterable[Cell], modules: dict, budgets: list[int]) -> Iterator[dict]:
    """Yield a row for each cell and number of calls."""
    for cell in found:

        def ours(calls: int, sampler: Sampler | None = None, cell: Cell = cell) -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sampler = DPMSolver(t_max=1.0) if sampler is None else sampler
                return cell.error(sample(cell.model, cell.x.shape, sampler, calls, start=cell.x, cond=cell.cond))

        rows = []
        for calls in budgets:
            peer, setting = peers_of(cell, modules, calls)
            ddim = ours(calls - 1, DDIM(t_max=1.0))
            row = {"part": "sampler", "problem": cell.name, "variant": cell.variant, "calls": calls}
            rows.append(row | {"default": ours(calls), "ddim": ddim, "peer": peer, "peer_setting": setting})
        with contextlib.suppress(ToleranceError):  # a flow that is too hard to follow keeps the default
            generator = torch.Generator().manual_seed(1)
            calibrate(cell.model, cell.x.shape[1:], cell.cond, calls=budgets, generator=generator)
        for row in rows:
            yield row | {"calibrated": ours(row["calls"])}


def frechet_rows(folder: str, rows: list[dict], modules: dict, budgets: list[int], n: int) -> Iterator[dict]:
    """Yield the distance of images by ours and by the best peer, for a run.

    Args:
        folder: The run.
        rows: Its rows of errors, which name the best peer's setting.
        modules: The peers.
        budgets: Numbers of calls.
        n: Images.
    """
    name, _, model, _ = run_network(folder)
    eye, shape, model.calibration = Eye(folder), model.moments.mean.shape, None
    best = {row["calls"]: row["peer_setting"] for row in rows if row["problem"] == name}
    solvers = peer_solvers(modules, model.moments.std)
    figures: dict[int, dict] = {calls: {"part": "frechet", "problem": name, "calls": calls} for calls in budgets}

    def ours(x: Tensor, calls: int) -> Tensor:
        return sample(model, x.shape, DPMSolver(t_max=1.0), calls, start=x)

    for who in ("default", "calibrated"):
        if who == "calibrated":
            calibrate(model, tuple(shape), calls=budgets, generator=torch.Generator().manual_seed(1))
        for calls in budgets:
            found = eye.distance(model, lambda x, calls=calls: ours(x, calls), n)
            figures[calls] |= {who: found.value, f"{who}_stderr": found.stderr}
    for calls in budgets:
        if setting := best.get(calls):
            run, counted = solvers[setting].run, Conditioned(model, None)
            found = eye.distance(model, lambda x, run=run, it=counted, calls=calls: run(it, x, calls), n)
            figures[calls] |= {"peer": found.value, "peer_stderr": found.stderr, "peer_setting": setting}
        yield figures[calls]


def likelihood_rows(names: list[str], processes: list[str], seeds: list[int], n: int) -> Iterator[dict]:
    """Yield a row for each family, seed, process and kind of points."""
    for name in names:
        for seed in seeds:
            mixture = families.mixture(name, seed)
            d = math.prod(mixture.shape)
            generator = torch.Generator().manual_seed(seed)
            data = mixture.sample(n if d < 20 else n // 3, generator)
            noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
            points = {"data": data, "off the data": data + 3 * mixture.moments.std * noise}
            for process in processes:
                model = mixture.model(PROCESSES[process]())
                for kind, x in points.items():
                    row = {"part": "likelihood", "problem": f"{name} {seed}", "process": process, "points": kind}
                    yield row | _likelihood(model, x, mixture.log_prob(x), d)


def _likelihood(model: Model, x: Tensor, truth: Tensor, d: int) -> dict:
    """Return the figures of one set of points."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = log_likelihood(model, x, Exact())
    error = (found.log_prob - truth).abs()
    covered = error <= 3 * found.error + 1e-7 * (d + truth.abs())
    silent = (error / d > TOLERANCE) & (found.error / d <= TOLERANCE)
    row = {
        "median_error": (error / d).median().item(),
        "worst_error": (error / d).max().item(),
        "median_estimate": (found.error / d).median().item(),
        "covered": covered.double().mean().item(),
        "silent": int(silent.sum()),
        "warned": len(caught),
        "calls": found.nfe,
    }
    if not caught:
        plain = log_likelihood(model, x, Exact(), rtol=1e-5, atol=1e-5)
        worst = ((plain.log_prob - truth).abs() / d).max().item()
        row |= {"dopri5_worst": worst, "dopri5_calls": plain.nfe}
    return row


def _ratio(rows: list[dict], name: str) -> str:
    ratios = [row[name] / row["peer"] for row in rows if row["peer"] > 0 and math.isfinite(row["peer"])]
    return f"{statistics.median(ratios):.2f} ({max(ratios):.2g})" if ratios else ""


def sampler_table(rows: list[dict], budgets: list[int]) -> str:
    """Return ratios to the best peer by family, variant and calls."""
    lines = []

    def group(row: dict) -> tuple[str, str]:
        return row["problem"].rsplit(" ", 1)[0], row["variant"]

    for family, variant in [*dict.fromkeys(map(group, rows)), ("all", "")]:
        chosen = [
            r for r in rows if family == "all" or (r["problem"].rsplit(" ", 1)[0], r["variant"]) == (family, variant)
        ]
        for name in ("default", "calibrated"):
            texts = [_ratio([row for row in chosen if row["calls"] == calls], name) for calls in budgets]
            lines.append([f"{family} {variant}", name, *texts])
    return common.markdown(["problem", "ours", *map(str, budgets)], lines)


def frechet_table(rows: list[dict]) -> str:
    """Return Frechet distances with standard errors by calls."""
    lines = []
    for row in rows:
        cells = [f"{row[who]:.2f} +- {row[who + '_stderr']:.2f}" if who in row else "" for who in FRECHET]
        lines.append([row["problem"], str(row["calls"]), *cells, row.get("peer_setting", "")])
    return common.markdown(["network", "calls", *FRECHET, "its setting"], lines)


def likelihood_table(rows: list[dict]) -> str:
    """Return the figures by process and kind of points."""
    lines = []
    for process, kind in dict.fromkeys((row["process"], row["points"]) for row in rows):
        chosen = [row for row in rows if (row["process"], row["points"]) == (process, kind)]
        quiet = [row for row in chosen if not row["warned"]]
        worst = max((row["worst_error"] for row in quiet), default=math.nan)
        plain = [row for row in quiet if "dopri5_calls" in row]
        lines.append(
            [
                process,
                kind,
                f"{len(quiet)} of {len(chosen)}",
                f"{worst:.1e}",
                f"{statistics.mean(row['covered'] for row in chosen):.3f}",
                str(sum(row["silent"] for row in chosen)),
                f"{statistics.median(row['calls'] for row in chosen):.0f}",
                f"{max((row['dopri5_worst'] for row in plain), default=math.nan):.1e}",
                f"{statistics.median(row['dopri5_calls'] for row in plain):.0f}" if plain else "",
            ]
        )
    head = ["process", "points", "cells without warning", "their worst error", "covered", "silent errors", "calls"]
    return common.markdown([*head, "dopri5's worst", "its calls"], lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = common.parser("defaults", __doc__, quick="two families, fewer points and calls")
    parser.add_argument("--families", default=",".join(families.FAMILIES), help="names of families")
    parser.add_argument(
        "--variants", default="known,hidden,erring,class,guided-7.5", help="variants of a problem for samplers"
    )
    parser.add_argument("--processes", default=",".join(PROCESSES), help="processes for likelihoods")
    parser.add_argument("--seeds", default="1", help="seeds of problems; odd ones were not used for tuning")
    parser.add_argument("--calls", default="5,10,20,50,100", help="numbers of network calls")
    parser.add_argument("--parts", default=DEFAULT_PARTS, help="parts to run")
    parser.add_argument("--runs", default="", help="folders of trained runs, further networks")
    parser.add_argument("--best-of", default="", help="a record (CSV) that names the best peers' settings for frechet")
    parser.add_argument("--images", type=int, default=1000, help="images of a Frechet distance")
    parser.add_argument("--points", type=int, default=60, help="points of a likelihood's cell")
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="packages, or none")
    options = parser.parse_args(arguments)
    if options.quick:
        options.families, options.variants, options.seeds = "narrow_modes,low_rank", "known", "1"
        options.calls, options.processes, options.points = "5,10", "vp,ve", 20
        options.parts = options.parts.replace("network,", "").replace("frechet,", "")
    return options


def read_settings(path: str) -> list[dict]:
    """Return the problems, calls and best peers' settings of a record."""
    with open(path, encoding="utf-8", newline="") as file:
        return [row | {"calls": int(row["calls"])} for row in csv.DictReader(file) if row.get("peer_setting")]


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Run the parts, and write the record."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    budgets, seeds = common.wholes("--calls", options.calls), common.wholes("--seeds", options.seeds)
    names = common.names("--families", options.families, families.FAMILIES)
    variants = common.names("--variants", options.variants, families.VARIANTS)
    processes = common.names("--processes", options.processes, PROCESSES)
    parts = common.names("--parts", options.parts, PARTS)
    runs = options.runs.split(",") if options.runs else []
    modules, left_out = peers.load([] if options.peers == "none" else options.peers.split(","))
    record = common.Record(
        "defaults",
        options,
        "The defaults on families of problems",
        arguments=arguments,
        seeds=f"problems {options.seeds}; starts 100 + seed; calibration 1",
        peers=modules,
        left_out=left_out,
        variant="" if options.parts == DEFAULT_PARTS else "-".join(parts),
    )
    rows, text = [], []
    found: list[dict] = []
    if "sampler" in parts:
        found += sampler_rows(cells(names, variants, seeds, STARTS), modules, budgets)
    if "network" in parts:
        found += sampler_rows(network_cells(runs, STARTS // 2), modules, budgets)
    if found:
        rows += found
        text += ["## Samplers: error over that of the best peer's best setting, median (worst)"]
        text += [sampler_table(found, budgets)]
    if "frechet" in parts:
        known = found + (read_settings(options.best_of) if options.best_of else [])
        distances = [row for run in runs for row in frechet_rows(run, known, modules, budgets, options.images)]
        rows += distances
        text += ["## Frechet distances of images from the same start noises", frechet_table(distances)]
    if "likelihood" in parts:
        scored = list(likelihood_rows(names, processes, seeds, options.points))
        rows += scored
        text += ["## Likelihoods: errors in nats a dimension", likelihood_table(scored)]
    record.write(rows, "\n\n".join(text))


if __name__ == "__main__":
    main()
