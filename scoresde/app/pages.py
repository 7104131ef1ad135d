"""The ``report`` command: one page of what a run folder holds.

Pictures that need the model are in :mod:`scoresde.app.showing`.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.app import build, plots
from scoresde.app.config import RunConfig, TrainConfig
from scoresde.app.processes import PROCESSES
from scoresde.app.report import Card, Report
from scoresde.app.restored import FOLDER, load_records
from scoresde.app.restored import rows_of as rows_restored
from scoresde.app.runs import RunFolder
from scoresde.app.scoring import figure, histogram, rows_of, score
from scoresde.app.showing import show_classes, show_paths, show_plane, show_samples
from scoresde.app.terminal import duration
from scoresde.data import Data
from scoresde.errors import RunFolderError
from scoresde.models import ScoreModel
from scoresde.training.config import check_half_lives


def write_report(run: RunFolder, config: RunConfig) -> Path:
    """Write ``report.html`` and return its path.

    Samples, and for points in the plane the held-out score, are computed if the run has none.

    Args:
        run, config: the model and its settings.

    Raises:
        CheckpointError: the run has no checkpoint yet.
        RunFolderError: a file of the run is damaged.
    """
    train, held_out = build.complete_data(config.data)
    model = run.model(config.train.device)
    evaluation = _evaluation(run)
    held = _held_out(run, config, model, held_out, evaluation)
    page = Report(*_title(run, train))
    show_samples(page, run, config, model, train)
    page.section("In numbers")
    page.figures_of_merit(_cards(run, evaluation, held, held_out))
    if train.is_image:
        show_classes(page, run, config, model, train)
        show_paths(page, run, model, train)
    if train.shape == (2,):
        show_plane(page, run, model, train)
    if evaluation:
        _likelihoods(page, run, evaluation)
    _restored(page, run)
    _training(page, run, config, model)
    page.section("Next steps", "Copy a command into a terminal; `--help` explains its options.")
    page.commands(_commands(run, config, train, evaluation))
    return page.write(run.path / "report.html")


# --- what is known ---------------------------------------------------------------------------------------------------


def _evaluation(run: RunFolder) -> dict[str, Any] | None:
    path = run.path / "evaluation.json"
    if not path.exists():
        return None
    try:
        evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows_of(evaluation)
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            "run", f"{path} ({error!r})", "a run with an intact evaluation.json of `scoresde evaluate`"
        ) from error
    return evaluation


def _held_out(
    run: RunFolder, config: RunConfig, model: ScoreModel, held_out: Data, evaluation: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return figures of the held-out data, computed if that is quick."""
    if evaluation:
        return {"unit": evaluation["unit"], **evaluation["held_out"]}
    if held_out.shape != (2,):
        return None
    scores = score(model, held_out, config, f"scoring held-out {held_out.name}")
    run.write("likelihood.csv", scores.csv())
    return {"unit": scores.unit, **scores.summary}


def _title(run: RunFolder, train: Data) -> tuple[str, str]:
    process, note = PROCESSES[run.config.sde.name].title, run.meta["stages"].get("train", {})
    weights = f" with {note['weights'] / 1e6:.2f} million weights" if "weights" in note else ""
    spent = f" in {duration(note['seconds'])}" if "seconds" in note else ""
    return (
        f"A score model of {train.name}",
        f"A {process} process, and a network{weights} after {run.step} steps of training{spent}.",
    )


def _cards(
    run: RunFolder, evaluation: dict[str, Any] | None, held: dict[str, Any] | None, held_out: Data
) -> list[Card]:
    cards: list[Card] = []
    if held:
        better = "lower is better" if held["unit"] == "bits/dim" else "log-density of an item, higher is better"
        cards.append(
            (f"held-out {held_out.name}", held["mean"], held["stderr"], held["unit"], f"{held['n']} items; {better}")
        )
    if evaluation:
        for name, figures in evaluation["baselines"].items():
            cards.append(
                (f"the same under a {name}", figures["mean"], figures["stderr"], evaluation["unit"], figures["note"])
            )
        for kind, figures in evaluation["corrupted"].items():
            cards.append(
                (kind, figures["mean"], figures["stderr"], evaluation["unit"], f"{figures['n']} corrupted items")
            )
    if "train" in run.meta["stages"]:
        note = run.meta["stages"]["train"]
        cards.append(("training", duration(note["seconds"]), None, "", f"{run.step} steps on {note['device']}"))
    return cards


# --- sections --------------------------------------------------------------------------------------------------------


def _likelihoods(page: Report, run: RunFolder, evaluation: dict[str, Any]) -> None:
    picture = histogram(evaluation)
    run.picture("likelihood", picture)
    unit = evaluation["unit"]
    bits = unit == "bits/dim"
    text = (
        "The number of bits per dimension that the model needs to encode an image it has never seen; lower is better. "
        "It follows from the exact likelihood of dequantised images by the probability flow, which bounds the code "
        "length of the images from above."
        if bits
        else "The log-density that the model assigns to points it has never seen; higher is better."
    )
    page.section("Likelihood", text)
    page.table(
        ["scored", unit, "N"],
        [[name, figure(figures), figures["n"]] for name, figures in rows_of(evaluation)],
        f"Means over N items ± their standard errors. Solver {evaluation['method']}, {evaluation['calls']} network "
        f"calls an item, t_min = {evaluation['t_min']:.3g}. The scaling contributes {evaluation['offset']:+.4f} "
        f"{unit}.",
    )
    page.table(
        ["score model minus", unit],
        [[name, figure(figures["gap"])] for name, figures in evaluation["baselines"].items()],
        "Differences between the score model and each baseline, item by item: means ± their standard errors.",
    )
    caption = "Histograms of all scored items; the lines are medians."
    if evaluation["corrupted"]:
        caption += " Corrupted images score worse, although the model has never seen one."
    page.figure(picture, caption, f"histograms of {unit} of the scored sets", plot=True)


def _restored(page: Report, run: RunFolder) -> None:
    """Show what ``inpaint``, ``colorize`` and ``restore`` left in the run."""
    records = load_records(run)
    if not records:
        return
    page.section(
        "Restored items",
        "Items were observed in part, with noise, and sampled from the observation alone. If the samples come from the "
        "posterior, three things hold. The residual y - A x is as large as the noise. The squared error of a sample is "
        "nearly twice that of the samples' mean. The truth lies within 2 standard deviations of that mean as often as "
        "stated in brackets.",
    )
    for record, picture in records:
        what = f"{record['title']} of {record['data']}"
        page.figure(picture, f"{what}, by {record['method']}. {record['caption']}", f"{what}: truth, seen and restored")
        page.table(
            ["figure", "mean"],
            rows_restored(record, "±"),
            f"{what}: means over {record['n']} items ± their standard errors; {record['samples']} samples each by "
            f"{record['method']}, {record['calls']} network calls. Model units, {record['units']}.",
        )


def _training(page: Report, run: RunFolder, config: RunConfig, model: ScoreModel) -> None:
    page.section("Training")
    records = [record for record in run.records() if {"step", "loss"} <= record.keys()]
    if records:
        steps, losses = (np.array([record[key] for record in records]) for key in ("step", "loss"))
        measured = _held_out_losses(records)
        picture = plots.loss_curve(steps, losses, held_out=measured)
        run.picture("loss", picture)
        more = "" if measured is None else " Orange: that of held-out data, with the averaged weights."
        page.figure(picture, f"The training loss per entry of the data.{more}", "the loss over the steps", plot=True)
    c, note = config, run.meta["stages"].get("train", {})
    length = f"{c.train.steps} steps" if c.train.minutes is None else f"{c.train.minutes:g} minutes"
    rows = [
        ["data", f"{c.data.source}, split with seed {c.data.seed}"],
        ["process", repr(model.sde)],
        ["network", type(model.net).__name__ + (f", {note['weights']:,} weights" if "weights" in note else "")],
        ["network predicts", c.model.predicts],
        ["length", f"{length}, {c.train.batch_size} items a step"],
        ["optimiser", c.train.optimizer],
        ["learning rate", f"{c.train.lr:g}, {c.train.warmup} steps of warm-up, decay: {c.train.lr_decay}"],
        ["loss", f"{c.train.weighting or 'default'} weighting, {c.train.time_sampling or 'default'} time sampling"],
        ["averaged weights", f"moving average, half-life {_half_life(c.train)}"],
        ["seed", str(c.train.seed)],
        ["software", f"scoresde {run.meta.get('scoresde')}, torch {run.meta.get('torch')}"],
    ]
    page.table(["setting", "value"], rows, "The most important settings; all of them are in `config.yaml`.")
    stages = [[name, duration(stage["seconds"])] for name, stage in run.meta["stages"].items() if "seconds" in stage]
    if stages:
        page.table(["stage", "time"], stages, "Time spent in each stage.")


def _held_out_losses(records: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the steps where the held-out loss was measured, and the losses."""
    found: list[tuple[int, float]] = []
    for record in records:
        loss = record.get("held_out")
        if loss is not None and (not found or found[-1][1] != loss):
            found.append((record["step"], loss))
    return (np.array([step for step, _ in found]), np.array([loss for _, loss in found])) if found else None


def _half_life(train: TrainConfig) -> str:
    if train.minutes is not None:
        life = next(iter(check_half_lives(train.ema_half_life).values()))
        return f"{100 * life:g} % of the steps" if life < 1 else f"{round(life)} steps"
    return f"{round(next(iter(train.half_lives(train.steps).values())))} steps"


def _commands(
    run: RunFolder, config: RunConfig, train: Data, evaluation: dict[str, Any] | None
) -> list[tuple[str, str]]:
    folder, source = shlex.quote(str(run.path)), shlex.quote(config.data.source)
    other = "subvp" if config.sde.name != "subvp" else "vp"
    again = shlex.quote(f"{str(run.path).rstrip('/')}-{other}")
    commands = [
        ("Draw more samples, by the probability flow:", f"scoresde sample {folder} -n 100 --sampler ode --seed 1")
    ]
    if evaluation is None:
        commands.append(("Compare with baselines:", f"scoresde evaluate {folder}"))
    if train.num_values is not None:
        commands.append(("Score your own images (N, H, W):", f"scoresde likelihood {folder} --data images.npy"))
    if train.is_image and not (run.path / FOLDER).exists():
        commands.append(("Restore the lower half of images from the upper:", f"scoresde inpaint {folder} --mask half"))
    commands += [
        ("Train twice as long:", f"scoresde train --out {folder} --resume --steps {2 * config.train.steps}"),
        ("Train with another process:", f"scoresde train --data {source} --sde {other} --out {again}"),
    ]
    if train.is_image:
        commands.append(
            (
                "Follow the same method in the plane, where densities can be drawn:",
                "scoresde demo --data two-moons --out runs/two-moons",
            )
        )
    return commands
