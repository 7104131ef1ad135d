"""The ``report`` command's work: one page from what a run folder holds, and pictures only the model can give."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.app import build, plots
from scoresde.app.config import RunConfig, TrainConfig
from scoresde.app.drawing import draw_samples, load_samples
from scoresde.app.report import Report
from scoresde.app.restoring import FOLDER, load_records
from scoresde.app.restoring import rows_of as rows_restored
from scoresde.app.runs import RunFolder
from scoresde.app.scoring import figure, histogram, rows_of, score
from scoresde.app.terminal import duration, progress
from scoresde.data import Data
from scoresde.errors import RunFolderError
from scoresde.likelihood import Exact, log_likelihood
from scoresde.models import ScoreModel
from scoresde.sampling import trajectory
from scoresde.sde import SDE
from scoresde.sde.grids import time_range
from scoresde.training.config import check_half_lives

SAMPLERS = {
    "pc": "predictor and corrector (the reverse SDE)",
    "ode": "the probability flow (an ODE)",
    "dpm": "the multistep solver (of the same ODE)",
    "ddim": "DDIM (the same ODE, to first order)",
}
PROCESSES = {
    "vp": "variance-preserving (VP)",
    "vp-cosine": "variance-preserving (VP) with the cosine schedule",
    "subvp": "sub-VP",
    "ve": "variance-exploding (VE)",
    "flow": "flow-matching",
}
STRIP_LOG_SNR = (6.0, 4.0, 2.5, 1.0, -0.5, -2.0, -4.0)  # the noise levels of a strip, besides both ends
STRIP_STEPS, STRIP_ROWS = 150, 4
CLASSES, A_CLASS, GUIDANCE = 20, 8, 2.0  # rows, samples in a row, and the scale where none is set
FIELD_NOISE = (0.1, 0.5, 2.0)  # sigma/alpha of the score fields
DENSITY_NODES, DENSITY_STEPS, DENSITY_CHUNK = 80, 25, 3200


def write_report(run: RunFolder, config: RunConfig, command: str = "train") -> Path:
    """Write ``report.html``; samples, and for points in the plane the held-out score, are made if there are none.

    Raises:
        CheckpointError: the run has no checkpoint yet.
        RunFolderError: a file of the run is damaged.
    """
    train, held_out = build.data(config.data)
    model = run.model(config.train.device)
    evaluation = _evaluation(run)
    held = _held_out(run, config, model, held_out, evaluation)
    page = Report(*_title(run, train))
    page.figures_of_merit(_cards(run, evaluation, held, held_out))
    _samples(page, run, config, model, train)
    if train.is_image:
        _classes(page, run, config, model, train)
        _strips(page, run, model, train)
    if train.shape == (2,):
        _plane(page, run, model, train)
    if evaluation:
        _likelihoods(page, run, evaluation)
    _restored(page, run)
    _training(page, run, config, model)
    page.section("Go on from here", "Each command can be copied as it stands; `--help` explains its options.")
    page.commands(_commands(run, config, train, evaluation))
    return page.write(run.path / "report.html")


# --- what is known ---------------------------------------------------------------------------------------------------


def _evaluation(run: RunFolder) -> dict[str, Any] | None:
    path = run.path / "evaluation.json"
    if not path.exists():
        return None
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        rows_of(evaluation)
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError("run", f"{path} ({error!r})", "a file that `scoresde evaluate` wrote") from error
    return evaluation


def _held_out(run, config, model, held_out, evaluation) -> dict[str, Any] | None:
    """Figures of the held-out data: as evaluated, or computed here where that is quick."""
    if evaluation:
        return {"unit": evaluation["unit"], **evaluation["held_out"]}
    if held_out.shape != (2,):
        return None
    scores = score(model, held_out, config, f"scoring held-out {held_out.name}")
    run.write("likelihood.csv", scores.csv())
    return {"unit": scores.unit, **scores.summary}


def _title(run: RunFolder, train: Data) -> tuple[str, str]:
    process, note = PROCESSES[run.config.sde.name], run.meta["stages"].get("train", {})
    weights = f" with {note['weights'] / 1e6:.2f} million weights" if "weights" in note else ""
    spent = f" in {duration(note['seconds'])}" if "seconds" in note else ""
    return (
        f"A score model of {train.name}",
        f"A {process} process; a network{weights}, {run.step} steps of training{spent}.",
    )


def _cards(run, evaluation, held, held_out) -> list[tuple[str, object, float | None, str, str]]:
    cards = []
    if held:
        better = "lower is better" if held["unit"] == "bits/dim" else "log-density of an item; higher is better"
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


def _samples(page: Report, run: RunFolder, config: RunConfig, model: ScoreModel, train: Data) -> None:
    drawable = train.is_image or train.shape == (2,)
    found = {name: load_samples(run, name) for name in SAMPLERS}
    if all(x is None for x in found.values()) and drawable:
        found[config.sample.sampler] = draw_samples(model, config.sample)[0]
    found = {name: x for name, x in found.items() if x is not None}
    if not found or not drawable:
        return
    page.section("Samples", "Left the data, right what the model drew from nothing but noise.")
    for name, x in found.items():
        if train.is_image:
            shown = min(64, len(x))
            picture = plots.side_by_side(
                train.to_image(train.bin_centres(train.raw[:shown])), train.to_image(x[:shown])
            )
        else:
            shown = min(2000, len(x), len(train))
            picture = plots.scatter_pair(train.raw[:shown], train.scaling.unscale(x[:shown]))
        run.picture(f"real-and-{name}", picture)
        calls = run.meta["stages"].get(f"samples-{name}", {}).get("calls")
        spent = f", {calls} network calls" if calls else ""
        page.figure(
            picture,
            f"Samples by {SAMPLERS[name]}{spent}.",
            f"{shown} items of {train.name} beside {shown} samples of the model by {name}",
        )


def _classes(page: Report, run: RunFolder, config: RunConfig, model: ScoreModel, train: Data) -> None:
    """Samples of each class, guided if the model can be; nothing for a model without classes."""
    classes = model.net.config.get("classes")
    if classes is None:
        return
    shown = min(classes, CLASSES)
    guidance = config.sample.guidance
    if guidance == 1 and config.train.label_dropout:
        guidance = GUIDANCE
    settings = replace(config.sample, guidance=guidance)
    labels = torch.arange(shown).repeat_interleave(A_CLASS)
    x = draw_samples(model, settings, labels=labels)[0].reshape(shown, A_CLASS, *train.shape)
    names = train.class_names or [str(k) for k in range(classes)]
    picture = plots.rows_of_images({str(names[k]): train.to_image(x[k]) for k in range(shown)})
    run.picture("classes", picture)
    how = "without guidance" if guidance == 1 else f"by classifier-free guidance of scale {guidance:g}"
    more = "" if shown == classes else f" The first {shown} of {classes} classes."
    page.section("Classes", "What the model draws when it is told the class: a row a class.")
    page.figure(picture, f"Samples of each class, {how}.{more}", f"{A_CLASS} samples of each of {shown} classes")


def _times(sde: SDE) -> list[float]:
    """Times of a strip, rising: 0, the noise levels of ``STRIP_LOG_SNR``, t_max."""
    low, high = 0.0, time_range(sde)[1]
    inner = [sde.time_of(value).item() for value in STRIP_LOG_SNR]
    return [low, *(t for t in inner if low < t < high), high]


def _look(train: Data, sde: SDE, x: Tensor, t: float) -> Tensor:
    """x_t as pictures, brought back to the range of the data where the process has exploded it."""
    total = float((sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt())
    return train.to_image(x.cpu().float() / max(1.0, total))


def _strips(page: Report, run: RunFolder, model: ScoreModel, train: Data) -> None:
    sde, times = model.sde, _times(model.sde)
    generator = torch.Generator().manual_seed(0)
    x0 = train.bin_centres(train.raw[:STRIP_ROWS])
    eps = torch.randn(x0.shape, generator=generator)
    forward = plots.strip(
        [(t, _look(train, sde, float(sde.alpha(t)) * x0 + float(sde.sigma(t)) * eps, t)) for t in times]
    )

    sampler, _ = build.sampler(replace(run.config.sample, sampler="pc"))
    labels = build.labels(run.config.sample, model, STRIP_ROWS)
    states = []
    with progress("drawing the paths from noise", STRIP_STEPS) as update:
        for state in trajectory(
            model, (STRIP_ROWS, *train.shape), sampler, STRIP_STEPS, cond=build.cond(model, labels), generator=generator
        ):
            states.append(state)
            update(state.step, "steps")
    chosen = [min(states, key=lambda state, t=t: abs(state.t - t)) for t in reversed(times)]
    noisy = plots.strip([(state.t, _look(train, sde, state.x, state.t)) for state in chosen])
    seen = [state for state in chosen if state.x0 is not None]
    guessed = plots.strip([(state.t, train.to_image(state.x0.cpu().float())) for state in seen])

    for name, picture in (("forward", forward), ("from-noise", noisy), ("estimates", guessed)):
        run.picture(name, picture)
    page.section(
        "From data to noise, and back",
        "The forward process drowns an image in noise as t goes from 0 to 1. The model has learned, at every t, which "
        "way the data lie (the score), and walks back.",
    )
    page.figure(forward, "Forward: images of the data at rising t.", f"{STRIP_ROWS} images turning into noise")
    page.figure(noisy, "Backward: noise becomes a sample as t falls.", f"noise turning into {STRIP_ROWS} samples")
    page.figure(
        guessed,
        "What the model takes the clean image to be at each t on the same paths: a blur of all it could be, then one.",
        "the model's estimates of the clean images, from blurred to sharp",
    )
    _curves(page, run, sde)


def _plane(page: Report, run: RunFolder, model: ScoreModel, train: Data) -> None:
    sde, generator = model.sde, torch.Generator().manual_seed(0)
    x0 = train.to_model(train.raw[:2000])
    fields = []
    for ratio in FIELD_NOISE:
        t = float(sde.time_of(-2 * float(np.log(ratio))))
        points, _ = sde.perturb(x0, t, generator)
        low, high = points.quantile(0.005, dim=0), points.quantile(0.995, dim=0)
        grid = _grid(low, high, 18)[2].to(model.device)
        labels = build.labels(run.config.sample, model, len(grid))
        with torch.no_grad():
            vectors = model(grid, t, build.cond(model, labels)).score
        fields.append((t, ratio, plots.score_field(grid, vectors, points, f"t = {t:.2g}")))

    low, high = train.raw.quantile(0.001, dim=0), train.raw.quantile(0.999, dim=0)
    margin = 0.15 * (high - low).max()
    grid_x, grid_y, nodes = _grid(low - margin, high + margin, DENSITY_NODES)
    log_p = _log_density(run, model, nodes)
    cell = float((grid_x[1] - grid_x[0]) * (grid_y[1] - grid_y[0]))
    mass = float(log_p.exp().sum()) * cell
    density = plots.density_image(grid_x, grid_y, log_p.reshape(len(grid_y), len(grid_x)))

    page.section(
        "Density and scores",
        "The density is exact: the change of variables along the probability flow with the exact trace. The arrows are "
        "the learned score, the gradient of log p_t, at three noise levels; the points are data at that level.",
    )
    run.picture("density", density)
    page.figure(
        density, f"The model's density. Over this picture it adds up to {mass:.3f}.", "the density in the plane"
    )
    for t, ratio, picture in fields:
        run.picture(f"score-{ratio:g}", picture)
        caption = f"Scores where the noise is {ratio:g} times the signal, t = {t:.2g} (model units)."
        page.figure(picture, caption, f"arrows of the score at t = {t:.2g} over noisy data")
    page.section("The forward process", f"A {PROCESSES[run.config.sde.name]} process turns the data into noise.")
    _curves(page, run, sde)


def _grid(low: Tensor, high: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The axes ``(n,)`` of a regular grid and its nodes ``(n * n, 2)``, rows along y."""
    x, y = (torch.linspace(float(a), float(b), n) for a, b in zip(low, high, strict=True))
    return x, y, torch.stack([x.repeat(n), y.repeat_interleave(n)], dim=1)


def _log_density(run: RunFolder, model: ScoreModel, nodes: Tensor) -> Tensor:
    """Exact log p at points in the units of the data; for a conditional model, of ``sample.label`` or no class."""
    x = model.scaling.to_model(nodes, dtype=model.dtype).to(model.device)
    parts = []
    with progress("computing the density", len(nodes)) as update:
        for part in x.split(DENSITY_CHUNK):
            labels = None
            if model.net.config.get("classes") is not None:
                label = run.config.sample.label
                labels = torch.full((len(part),), -1 if label is None else label)
            cond = build.cond(model, labels) if labels is not None else None
            result = log_likelihood(model, part, Exact(), method="rk4", steps=DENSITY_STEPS, cond=cond)
            parts.append(result.log_prob.cpu())
            update(sum(map(len, parts)), "points")
    return torch.cat(parts) + model.scaling.log_volume(2)


def _curves(page: Report, run: RunFolder, sde: SDE) -> None:
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    picture = plots.sde_curves(t, {run.config.sde.name: (sde.alpha(t), sde.sigma(t))})
    run.picture("process", picture)
    caption = (
        "The process: x_t = alpha(t) x_0 + sigma(t) noise. All else (drift, samplers, likelihood) follows from it."
    )
    page.figure(picture, caption, "curves of alpha and sigma over t")


def _likelihoods(page: Report, run: RunFolder, evaluation: dict[str, Any]) -> None:
    picture = histogram(evaluation)
    run.picture("likelihood", picture)
    unit = evaluation["unit"]
    bits = unit == "bits/dim"
    text = (
        "How many bits a pixel the model needs to write down an image it has never seen, from the exact likelihood by "
        "the probability flow of dequantised images: an upper bound on the discrete code length. The lower the better."
        if bits
        else "The log-density the model gives to points it has never seen. The higher the better."
    )
    page.section("Likelihood", text)
    page.table(
        ["what", unit, "N"],
        [[name, figure(figures), figures["n"]] for name, figures in rows_of(evaluation)],
        f"Means over N items ± their standard errors. Solver {evaluation['method']}, {evaluation['calls']} network "
        f"calls an item, t_min = {evaluation['t_min']:.3g}; {evaluation['offset']:+.4f} {unit} are due to the scaling.",
    )
    page.table(
        ["score model minus", unit],
        [[name, figure(figures["gap"])] for name, figures in evaluation["baselines"].items()],
        "The score model compared with each baseline, item by item.",
    )
    caption = "Each scored item; the lines are medians."
    if evaluation["corrupted"]:
        caption += " The model finds corrupted images unlikely, though it has never seen one."
    page.figure(picture, caption, f"histograms of {unit} of the scored sets")


def _restored(page: Report, run: RunFolder) -> None:
    """What ``inpaint``, ``colorize`` and ``restore`` have left in the run."""
    records = load_records(run)
    if not records:
        return
    page.section(
        "Restored",
        "Items were observed in part, with noise, and drawn back from the observation alone. If the samples are from "
        "the posterior, y - A x is as large as the noise, the squared error of a sample is nearly twice that of their "
        "mean, and the truth lies within 2 standard deviations of the mean as often as is given in brackets.",
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
        picture = plots.loss_curve(*(np.array([record[key] for record in records]) for key in ("step", "loss")))
        run.picture("loss", picture)
        page.figure(picture, "The loss per entry of the data, as trained on.", "the loss over the steps")
    c, note = config, run.meta["stages"].get("train", {})
    length = f"{c.train.steps}" if c.train.minutes is None else f"{c.train.minutes:g} minutes of steps"
    rows = [
        ["data", f"{c.data.source}, split with seed {c.data.seed}"],
        ["process", repr(build.sde(c.sde))],
        ["network", type(model.net).__name__ + (f", {note['weights']:,} weights" if "weights" in note else "")],
        ["network predicts", c.model.predicts],
        ["steps, batch", f"{length} of {c.train.batch_size} items"],
        ["optimiser", c.train.optimizer],
        ["learning rate", f"{c.train.lr:g}, {c.train.warmup} steps of warm-up, decay: {c.train.lr_decay}"],
        ["loss", f"{c.train.weighting or 'default'} weighting, times drawn {c.train.time_sampling or 'as suits it'}"],
        ["weights kept", f"moving average, half-life {_half_life(c.train)}"],
        ["seed", str(c.train.seed)],
        ["software", f"scoresde {run.meta.get('scoresde')}, torch {run.meta.get('torch')}"],
    ]
    page.table(["setting", "value"], rows, "The settings that matter most; all of them are in `config.yaml`.")
    stages = [[name, duration(stage["seconds"])] for name, stage in run.meta["stages"].items() if "seconds" in stage]
    if stages:
        page.table(["stage", "time"], stages, "Where the time went.")


def _half_life(train: TrainConfig) -> str:
    if train.minutes is not None:
        life = next(iter(check_half_lives(train.ema_half_life).values()))
        return f"{100 * life:g} % of the steps" if life < 1 else f"{round(life)} steps"
    return f"{round(next(iter(train.half_lives(train.steps).values())))} steps"


def _commands(run: RunFolder, config: RunConfig, train: Data, evaluation: dict | None) -> list[tuple[str, str]]:
    folder, source = shlex.quote(str(run.path)), shlex.quote(config.data.source)
    other = "subvp" if config.sde.name != "subvp" else "vp"
    again = shlex.quote(f"{str(run.path).rstrip('/')}-{other}")
    commands = [
        ("Draw more samples, by the probability flow:", f"scoresde sample {folder} -n 100 --sampler ode --seed 1")
    ]
    if evaluation is None:
        commands.append(("Compare with baselines:", f"scoresde evaluate {folder}"))
    if train.num_values is not None:
        commands.append(("Score images of your own (N, H, W):", f"scoresde likelihood {folder} --data images.npy"))
    if train.is_image and not (run.path / FOLDER).exists():
        commands.append(("Draw the lower half from the upper:", f"scoresde inpaint {folder} --mask half"))
    commands += [
        ("Train twice as long:", f"scoresde train --out {folder} --resume --steps {2 * config.train.steps}"),
        ("Train with another process:", f"scoresde train --data {source} --sde {other} --out {again}"),
    ]
    if train.is_image:
        commands.append(("See the whole of it in the plane:", "scoresde demo --data two-moons --out runs/two-moons"))
    return commands
