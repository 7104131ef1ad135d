"""The work of the commands ``likelihood`` and ``evaluate``.

They score held-out data by log p, and compare them with other data, other models and baselines.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.app import build, plots
from scoresde.app.baselines import fit_baselines
from scoresde.app.comparing import Measured, auroc, paired_difference
from scoresde.app.config import CORRUPTED, RunConfig
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import Update, progress, say, table
from scoresde.data import Data, Dequantization, TruncatedNormal, Uniform, corrupt
from scoresde.data.corruptions import CORRUPTIONS
from scoresde.errors import ArgumentError, LikelihoodWarning
from scoresde.likelihood import bits_per_dim
from scoresde.likelihood.flow_settings import FlowSettings
from scoresde.likelihood.probability_flow import solve_likelihood
from scoresde.likelihood.refinement import warn_of
from scoresde.models import ScoreModel
from scoresde.models.conditions import condition_rows
from scoresde.random import spawn_generators
from scoresde.training.distributed import Ranks, over_ranks, share_of

COMPARED = ("shuffled-pixels", "inverted")  # corruptions with which held-out images are compared


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of a set of items, and how they were computed.

    Attributes:
        name: name of the set.
        nats: log p of each item ``(N,)``, in nats, in the units of the raw data.
        values: the reported values ``(N,)`` in ``unit``: bits/dim (lower is better) or nats (higher is better).
        errors: standard error of each value ``(N,)``, NaN where it is unknown.
        solver_errors: estimated error of each value from the solver ``(N,)``, NaN where it is unknown.
        unit: "bits/dim" for integer data, "nats" for continuous data.
        calls: network calls of an item.
        method: solver.
        t_min: time at which the flow ends.
        offset: contribution of the scaling to each value.
    """

    name: str
    nats: Tensor
    values: Tensor
    errors: Tensor
    solver_errors: Tensor
    unit: str
    calls: int
    method: str
    t_min: float
    offset: float

    @property
    def summary(self) -> dict[str, Any]:
        """Mean, standard error, number and values, as JSON-able numbers."""
        found = {"solver_error": self.solver_error, "largest_solver_error": self.solver_errors.max().item()}
        solver = {name: None if math.isnan(value) else value for name, value in found.items()}
        return {**mean_and_error(self.values), **solver, "values": [round(v, 5) for v in self.values.tolist()]}

    @property
    def solver_error(self) -> float:
        """The solver's estimated error of the mean, at most."""
        return self.solver_errors.mean().item()

    def csv(self) -> str:
        """Return the values as CSV, one line for each item."""
        with io.StringIO(newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            bits = self.unit == "bits/dim"
            unit = "bits_per_dim" if bits else "nats"
            value_column = (unit,) if bits else ()
            writer.writerow(("index", "nats", *value_column, f"stderr_{unit}", f"solver_error_{unit}"))
            columns = (self.nats, self.values, self.errors, self.solver_errors)
            for i, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
                nats, value, *errors = row
                shown = ("" if math.isnan(error) else f"{error:.6g}" for error in errors)
                writer.writerow([i, f"{nats:.6f}", *([f"{value:.6f}"] if bits else []), *shown])
            return file.getvalue()


def mean_and_error(values: Tensor) -> dict[str, Any]:
    """Return "mean", "stderr" and "n" of the values; stderr is None for one."""
    error = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "stderr": error, "n": len(values)}


def in_unit(nats: Tensor, data: Data) -> Tensor:
    """Convert nats to bits/dim for integer data; leave them for others."""
    return nats if data.num_values is None else -nats / (math.prod(data.shape) * math.log(2))


def score(model: ScoreModel, data: Data, config: RunConfig, what: str = "scoring") -> Scores:
    """Compute log-likelihoods of items by the probability flow.

    Integers are dequantised as in training.

    Args:
        model: the model.
        data: the items, of which the first ``likelihood.n`` are scored.
        config: the settings.
        what: what the progress line says.

    Raises:
        ShapeError, ArgumentError: the data do not fit the model.
    """
    build.check_fits(model, data)
    n, seed = config.likelihood.n, config.likelihood.seed
    if n is not None and n < len(data):
        data = data.take(n)
    ranks, own = Ranks(), list[Scores]()

    def work(items: range, generator: torch.Generator | None) -> Tensor:
        part = data if len(items) == len(data) else data.subset(torch.arange(items.start, items.stop))
        own.append(_score(model, part, config, generator, update))
        mine = own[0]
        columns = (mine.nats, mine.values, mine.errors, mine.solver_errors, torch.full((len(part),), mine.calls))
        return torch.stack([column.double() for column in columns], 1)

    with progress(what, len(share_of(len(data), ranks))) as update, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LikelihoodWarning)
        rows = over_ranks(work, len(data), torch.Generator().manual_seed(seed))
    warned = []
    for message in (warning.message for warning in caught):
        if isinstance(message, LikelihoodWarning):
            warned.append(message)
        else:
            warnings.warn(message, stacklevel=2)
    draws = 1 if data.num_values is None else config.likelihood.dequantizations or 1
    if warned := [warning for some in ranks.gather_objects(warned) for warning in some]:
        say(f"Warning, {data.name}: {warned[0].joined(warned[1:], draws * len(data))}")
    nats, values, errors, solver_errors, calls = rows.T.contiguous()
    facts = ranks.on_first(lambda: json.dumps([own[0].unit, own[0].method, own[0].t_min, own[0].offset]))
    unit, method, t_min, offset = json.loads(facts)
    return Scores(data.name, nats, values, errors, solver_errors, unit, int(calls.max()), method, t_min, offset)


def _score(
    model: ScoreModel, data: Data, run_config: RunConfig, generator: torch.Generator | None, update: Update
) -> Scores:
    """Compute the scores of all of ``data`` in this process."""
    n, config, scaling = math.prod(data.shape), run_config.likelihood, build.scaling(model)
    dequantization: type[Dequantization] = (
        TruncatedNormal if run_config.train.dequantization == "truncated-normal" else Uniform
    )
    cond = build.cond(model, data.labels)
    settings: dict[str, Any] = {
        "divergence": build.divergence(config, n),
        "method": config.method,
        "steps": config.steps,
        "rtol": config.rtol,
        "atol": config.atol,
        "t_min": config.t_min,
    }
    # 1. integers: bits/dim, dequantised
    if scaling.num_values is not None:
        result = bits_per_dim(
            model,
            data.raw,
            dequantization(**build.given(samples=config.dequantizations)),
            cond=cond,
            batch=config.batch,
            callback=lambda done, _: update(done, "items"),
            generator=generator,
            **settings,
        )
        return Scores(
            name=data.name,
            nats=result.nats,
            values=result.bits,
            errors=result.stderr,
            solver_errors=result.error.cpu().double(),
            unit="bits/dim",
            calls=result.nfe,
            method=result.method,
            t_min=result.t_min,
            offset=result.offset,
        )
    # 2. continuous data: log p in the units of the raw data
    parts, flow = [], FlowSettings(**settings)
    for begin in range(0, len(data), config.batch):
        part = slice(begin, begin + config.batch)
        x = scaling.to_model(data.raw[part], dtype=model.dtype).to(model.device)
        some = condition_rows(cond, part)
        parts.append(solve_likelihood(model, x, flow, spawn_generators(generator, len(x)), some))
        update(min(begin + config.batch, len(data)), "items")
    warn_of(parts)
    results = [part.likelihood for part in parts]
    volume = scaling.log_volume(n)
    nats, errors, solver_errors = (
        torch.cat([getattr(result, name) for result in results]).cpu().double()
        for name in ("log_prob", "stderr", "error")
    )
    calls, first, nats = max(result.nfe for result in results), results[0], nats + volume
    return Scores(data.name, nats, nats, errors, solver_errors, "nats", calls, first.method, first.t_min, volume)


def other_data(config: RunConfig, source: str, corrupting: Data | None = None) -> Data:
    """Load the data of a name or path, or corrupt data.

    Args:
        config: the settings.
        source: a name or path, or a kind of corruption.
        corrupting: the data to corrupt. None: ``source`` is a name or path.
    """
    if corrupting is None or source not in CORRUPTIONS:
        return build.other_data(config, source)
    n = config.likelihood.n
    few = corrupting if n is None or n >= len(corrupting) else corrupting.take(n)
    return corrupt(few, source, torch.Generator().manual_seed(config.likelihood.seed))


def likelihood(run: RunFolder, config: RunConfig, data: Data, name: str = "likelihood") -> Scores:
    """Score ``data``, write ``name.csv`` and a histogram, report the mean."""
    with run.stage(name):
        scores = score(run.model(config.train.device), data, config, f"scoring {data.name}")
        path = run.write(f"{name}.csv", scores.csv())
        run.picture(f"{name}-histogram", plots.histograms({scores.name: scores.values}, _axis(scores.unit)))
    _say(scores)
    say(f"  each item: {path}")
    return scores


def against(run: RunFolder, config: RunConfig, scores: Scores, other: Data, name: str) -> Measured:
    """Score a second set, and report how well log p tells both apart.

    The scores are written to ``name.csv`` with a histogram of both sets.
    """
    with run.stage(name):
        others = score(run.model(config.train.device), other, config, f"scoring {other.name}")
        path = run.write(f"{name}.csv", others.csv())
        sets = {scores.name: scores.values, others.name: others.values}
        picture = run.picture(f"{name}-histogram", plots.histograms(sets, _axis(scores.unit)))
        area = auroc(scores.nats, others.nats)
    _say(others)
    say(f"  AUROC of log p, {scores.name} against {others.name}: {area}  (.5: not told apart, 1: always)")
    say(f"  each item: {path}; both: {picture}")
    return area


def paired(run: RunFolder, config: RunConfig, scores: Scores, data: Data, other: RunFolder, name: str) -> Measured:
    """Score ``data`` under another run's model, and report the difference.

    Noise and probes are the same. Both scores of each item are written to ``name.csv``.

    Raises:
        ArgumentError: the other model has another number of values.
    """
    model = other.model(config.train.device)
    K = build.scaling(model).num_values
    if data.num_values != K:
        got = f"{other.path}, a model with num_values {K}"
        raise ArgumentError("--paired", got, f"a model with num_values {data.num_values}")
    with run.stage(name):
        others = score(model, data, config, f"scoring {data.name} under {other.path}")
        difference = paired_difference(scores.values, others.values)
        rows = ["index,run,other,difference"]
        for i, (a, b) in enumerate(zip(scores.values.tolist(), others.values.tolist(), strict=True)):
            rows.append(f"{i},{a:.6f},{b:.6f},{a - b:.6f}")
        path = run.write(f"{name}.csv", "\n".join(rows) + "\n")
    say(f"{other.path}:")
    _say(others)
    say(f"  {run.path} minus {other.path}: {difference} {scores.unit}, item by item on the same noise and probes")
    say(f"  each item: {path}")
    return difference


def _say(scores: Scores) -> None:
    figures = mean_and_error(scores.values)
    say(f"{scores.name}: {figure(figures, '+-')} {scores.unit}  (N = {figures['n']}, mean +- standard error)")
    say(
        f"  {scores.method}, {scores.calls} network calls an item, t_min = {scores.t_min:.3g}, "
        f"{scores.offset:+.4f} {scores.unit} due to the scaling"
    )
    if not math.isnan(scores.solver_error):
        most = scores.solver_errors.max().item()
        say(f"  estimated error of the solver: {scores.solver_error:.2g} {scores.unit} on average, at most {most:.2g}")


def _axis(unit: str) -> str:
    return f"{unit}  ({'lower' if unit == 'bits/dim' else 'higher'} is better)"


def evaluate(run: RunFolder, config: RunConfig, corrupted: int = CORRUPTED) -> dict[str, Any]:
    """Compare held-out data with corrupted copies and baselines.

    Args:
        run, config: the model and its settings.
        corrupted: number of images of each corruption.

    Returns:
        What is written to ``evaluation.json``.
    """
    with run.stage("evaluate"):
        settings = config.likelihood
        train, held_out = build.complete_data(config.data)
        if settings.n is not None and settings.n < len(held_out):
            held_out = held_out.take(settings.n)
        model = run.model(config.train.device)
        scores = score(model, held_out, config, f"scoring held-out {held_out.name}")
        run.write("likelihood.csv", scores.csv())
        # 1. corrupted copies
        corrupted_scores: dict[str, Scores] = {}
        if held_out.is_image and held_out.num_values is not None and corrupted:
            few = held_out.take(min(corrupted, len(held_out)))
            for i, kind in enumerate(COMPARED):
                other = corrupt(few, kind, torch.Generator().manual_seed(settings.seed + i))
                corrupted_scores[kind] = score(model, other, config, f"scoring {kind}")
        # 2. baselines, compared with the model item by item
        say("fitting baselines")
        fitted = fit_baselines(train, held_out, settings.seed)
        baselines = {}
        for baseline in fitted:
            values = in_unit(baseline.log_prob, held_out)
            gap = mean_and_error(scores.values - values)
            baselines[baseline.name] = {**mean_and_error(values), "note": baseline.note, "gap": gap}
        # 3. the record
        evaluation: dict[str, Any] = {
            "step": run.step,
            "data": held_out.name,
            "unit": scores.unit,
            "held_out": scores.summary,
            "corrupted": {kind: s.summary for kind, s in corrupted_scores.items()},
            "baselines": baselines,
            "method": scores.method,
            "calls": scores.calls,
            "t_min": scores.t_min,
            "offset": scores.offset,
        }
        run.write("evaluation.json", json.dumps(evaluation, indent=1) + "\n")
        run.picture("likelihood", histogram(evaluation))
    rows = [[name, figure(figures, "+-"), figures["n"]] for name, figures in rows_of(evaluation)]
    table(["", evaluation["unit"], "N"], rows)
    return evaluation


def rows_of(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return ``(name, figures)`` for each scored set, in reading order."""
    data = evaluation["data"]
    rows = [(f"held-out {data}", evaluation["held_out"])]
    rows += [(f"{data}, {kind}", figures) for kind, figures in evaluation["corrupted"].items()]
    rows += [(f"held-out {data} under a {name}", figures) for name, figures in evaluation["baselines"].items()]
    return rows


def histogram(evaluation: dict[str, Any]) -> bytes:
    """Draw the values of all scored sets."""
    sets = {"held-out": evaluation["held_out"]["values"]}
    sets |= {kind: figures["values"] for kind, figures in evaluation["corrupted"].items()}
    return plots.histograms(sets, _axis(evaluation["unit"]))


def figure(figures: dict[str, Any], sign: str = "±") -> str:
    """Return figures as ``1.933 ± 0.011``."""
    error = figures["stderr"]
    return f"{figures['mean']:.3f}" + ("" if error is None else f" {sign} {error:.3f}")
