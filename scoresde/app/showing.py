"""Sections of a report that evaluate the model.

They show samples, paths, densities and scores.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from scoresde.app import build, plots
from scoresde.app.config import RunConfig
from scoresde.app.drawing import draw_samples, load_samples
from scoresde.app.processes import PROCESSES
from scoresde.app.report import Report
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import progress
from scoresde.data import Data
from scoresde.likelihood import Exact
from scoresde.likelihood.flow_settings import FlowSettings
from scoresde.likelihood.probability_flow import solve_likelihood
from scoresde.models import ScoreModel
from scoresde.sampling import State, trajectory
from scoresde.sde import SDE
from scoresde.sde.grids import time_range

SAMPLERS = {
    "pc": "predictor and corrector (the reverse SDE)",
    "ode": "the probability flow (an ODE)",
    "dpm": "the multistep solver (of the same ODE)",
    "ddim": "DDIM (the same ODE, to first order)",
}
IMAGES, POINTS = 64, 2000  # samples shown beside the data
STRIP_LOG_SNR = (6.0, 4.0, 2.5, 1.0, -0.5, -2.0, -4.0)  # the noise levels of a strip, besides both ends
STRIP_STEPS, STRIP_ROWS = 150, 4
MOVING_IMAGES, MOVING_POINTS, MOVING_STEPS = 36, 1000, 30
CLASSES, A_CLASS, GUIDANCE = 20, 8, 2.0  # rows, samples in a row, and the scale where none is set
FIELD_NOISE, FIELD_NODES = (0.1, 0.5, 2.0), 18  # sigma/alpha of the score fields, and arrows along an axis
DENSITY_NODES, DENSITY_CALLS, DENSITY_CHUNK = 80, 150, 3200


def show_samples(page: Report, run: RunFolder, config: RunConfig, model: ScoreModel, train: Data) -> None:
    """Show samples beside the data; draw some if the run has none."""
    drawable = train.is_image or train.shape == (2,)
    found = {name: load_samples(run, name) for name in SAMPLERS}
    if all(x is None for x in found.values()) and drawable:
        found[config.sample.sampler] = draw_samples(model, config.sample)[0]
    samples = {name: x for name, x in found.items() if x is not None}
    if not samples or not drawable:
        return
    page.section("Samples", "Below: the data left, samples that the model draws from pure noise right.")
    _show_draw(page, run, config, model, train)
    for name, x in samples.items():
        if train.is_image:
            shown = min(IMAGES, len(x))
            picture = plots.side_by_side(
                train.to_image(train.bin_centres(train.raw[:shown])), train.to_image(x[:shown])
            )
        else:
            shown = min(POINTS, len(x), len(train))
            picture = plots.scatter_pair(train.raw[:shown], train.scaling.unscale(x[:shown]))
        run.picture(f"real-and-{name}", picture)
        calls = run.meta["stages"].get(f"samples-{name}", {}).get("calls")
        spent = f", {calls} network calls" if calls else ""
        page.figure(
            picture,
            f"Samples by {SAMPLERS[name]}{spent}.",
            f"{shown} items of {train.name} beside {shown} samples of the model by {name}",
            plot=not train.is_image,
        )


def _show_draw(page: Report, run: RunFolder, config: RunConfig, model: ScoreModel, train: Data) -> None:
    """Show samples on their way from noise, as an animation."""
    sampler, _ = build.sampler(replace(config.sample, sampler="dpm"))  # one call a step, where pc takes two
    count = MOVING_IMAGES if train.is_image else MOVING_POINTS
    cond = build.cond(model, build.labels(config.sample, model, count))
    generator, sde = torch.Generator().manual_seed(0), model.sde
    frames = []
    with progress("drawing the animation", MOVING_STEPS) as update:
        for state in trajectory(model, (count, *train.shape), sampler, MOVING_STEPS, cond=cond, generator=generator):
            update(state.step, "steps")
            t = float(state.t)
            if train.is_image:
                frames.append(_look(train, sde, state.x, t))
            else:
                size = math.hypot(float(sde.alpha(t)), float(sde.sigma(t))) if t > 0 else 1.0
                frames.append(train.scaling.unscale(state.x.cpu().float() / size))
    if not all(bool(torch.isfinite(torch.as_tensor(x)).all()) for x in frames):
        return  # samples that went wrong are seen beside the data
    gif, still = plots.moving_images(frames) if train.is_image else plots.moving_points(frames)
    run.write("draw.gif", gif)
    page.animation(
        gif,
        still,
        f"{count} samples on their way from noise along the probability flow, in {MOVING_STEPS} network calls. Each "
        "frame is brought to one scale.",
        f"noise that turns into {count} samples",
        plot=not train.is_image,
    )


def show_classes(page: Report, run: RunFolder, config: RunConfig, model: ScoreModel, train: Data) -> None:
    """Show samples of each class, guided if the model can be.

    A model without classes shows nothing.
    """
    classes = model.classes
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
    page.section("Classes", "Samples conditioned on a class, one row for each class.")
    page.figure(picture, f"Samples of each class, {how}.{more}", f"{A_CLASS} samples of each of {shown} classes")


def show_paths(page: Report, run: RunFolder, model: ScoreModel, train: Data) -> None:
    """Show images on their way to noise, and samples on their way from it."""
    sde, times = model.sde, _times(model.sde)
    generator = torch.Generator().manual_seed(0)

    # 1. the forward process
    x0 = train.bin_centres(train.raw[:STRIP_ROWS])
    eps = torch.randn(x0.shape, generator=generator)
    forward = plots.strip(
        [(t, _look(train, sde, float(sde.alpha(t)) * x0 + float(sde.sigma(t)) * eps, t)) for t in times]
    )

    # 2. the reverse process, at the times nearest to those of the forward process
    sampler, _ = build.sampler(replace(run.config.sample, sampler="pc"))
    cond = build.cond(model, build.labels(run.config.sample, model, STRIP_ROWS))
    states: list[State] = []
    with progress("drawing the paths from noise", STRIP_STEPS) as update:
        shape = (STRIP_ROWS, *train.shape)
        for state in trajectory(model, shape, sampler, STRIP_STEPS, cond=cond, generator=generator):
            states.append(state)
            update(state.step, "steps")
    chosen = [_nearest(states, t) for t in reversed(times)]
    noisy = plots.strip([(state.t, _look(train, sde, state.x, state.t)) for state in chosen])
    guessed = plots.strip(
        [(state.t, train.to_image(state.x0.cpu().float())) for state in chosen if state.x0 is not None]
    )

    # 3. the page
    for name, picture in (("forward", forward), ("from-noise", noisy), ("estimates", guessed)):
        run.picture(name, picture)
    page.section(
        "From data to noise, and back",
        "The forward process turns an image into noise as t rises from 0 to 1. At every t the model has learned the "
        "score, the direction in which the density of noisy images rises. Following it turns noise into a sample.",
    )
    page.figure(forward, "Forward: images of the data at rising t.", f"{STRIP_ROWS} images turning into noise")
    page.figure(noisy, "Backward: noise becomes a sample as t falls.", f"noise turning into {STRIP_ROWS} samples")
    page.figure(
        guessed,
        "The model's estimates of the clean image along the same paths. At high noise an estimate is the blurred mean "
        "of many images; it sharpens as t falls.",
        "the model's estimates of the clean images, from blurred to sharp",
    )
    show_process(page, run, sde)


def _nearest(states: list[State], t: float) -> State:
    return min(states, key=lambda state: abs(state.t - t))


def _times(sde: SDE) -> list[float]:
    """Return the times of a strip, rising.

    They are 0, those of ``STRIP_LOG_SNR``, and t_max.
    """
    low, high = 0.0, time_range(sde)[1]
    inner = [sde.time_of(value).item() for value in STRIP_LOG_SNR]
    return [low, *(t for t in inner if low < t < high), high]


def _look(train: Data, sde: SDE, x: Tensor, t: float) -> Tensor:
    """Return x_t as images, scaled down where VE exceeds the data's range."""
    total = float((sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt())
    return train.to_image(x.cpu().float() / max(1.0, total))


def show_plane(page: Report, run: RunFolder, model: ScoreModel, train: Data) -> None:
    """Show the density and the scores of a model of points in the plane."""
    sde, generator = model.sde, torch.Generator().manual_seed(0)

    # 1. scores at some noise levels, over noisy data
    x0 = train.to_model(train.raw[:POINTS])
    fields = []
    for ratio in FIELD_NOISE:
        t = float(sde.time_of(-2 * math.log(ratio)))
        points, _ = sde.perturb(x0, t, generator)
        low, high = points.quantile(0.005, dim=0), points.quantile(0.995, dim=0)
        grid = _grid(low, high, FIELD_NODES)[2].to(model.device)
        labels = build.labels(run.config.sample, model, len(grid))
        with torch.no_grad():
            vectors = model(grid, t, build.cond(model, labels)).score
        fields.append((t, ratio, plots.score_field(grid, vectors, points, f"t = {t:.2g}")))

    # 2. the density, on a grid with a margin
    low, high = train.raw.quantile(0.001, dim=0), train.raw.quantile(0.999, dim=0)
    margin = 0.15 * (high - low).max()
    grid_x, grid_y, nodes = _grid(low - margin, high + margin, DENSITY_NODES)
    log_p, error = _log_density(run, model, nodes)
    cell = float((grid_x[1] - grid_x[0]) * (grid_y[1] - grid_y[0]))
    mass = float(log_p.exp().sum()) * cell
    density = plots.density_image(grid_x, grid_y, log_p.reshape(len(grid_y), len(grid_x)))

    # 3. the page
    page.section(
        "Density and scores",
        "The density is the model's own: the change of variables along the probability flow, with the exact trace. "
        "The arrows are the learned score, the gradient of log p_t, at three noise levels; the points are data at "
        "that level.",
    )
    run.picture("density", density)
    mean_error = float((log_p.exp() * error).sum() / log_p.exp().sum())
    caption = (
        f"The model's density. It integrates to {mass:.3f} over this picture. The solver's error of log p is about "
        f"{mean_error:.1g} nats where the mass is."
    )
    page.figure(density, caption, "the density in the plane", plot=True)
    for t, ratio, picture in fields:
        run.picture(f"score-{ratio:g}", picture)
        caption = f"Scores where the noise is {ratio:g} times the signal, t = {t:.2g} (in model space)."
        page.figure(picture, caption, f"arrows of the score at t = {t:.2g} over noisy data")
    page.section("The forward process", f"A {PROCESSES[run.config.sde.name].title} process turns the data into noise.")
    show_process(page, run, sde)


def _grid(low: Tensor, high: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the axes ``(n,)`` of a grid and its nodes ``(n * n, 2)``."""
    x, y = (torch.linspace(float(a), float(b), n) for a, b in zip(low, high, strict=True))
    return x, y, torch.stack([x.repeat(n), y.repeat_interleave(n)], dim=1)


def _log_density(run: RunFolder, model: ScoreModel, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p at points in the units of the data, and its error.

    A conditional model is conditioned on ``sample.label``, or on no class if that is not set.
    """
    scaling = build.scaling(model)
    x = scaling.to_model(nodes, dtype=model.dtype).to(model.device)
    parts: list[Tensor] = []
    settings = FlowSettings(Exact(), steps=DENSITY_CALLS)
    with progress("computing the density", len(nodes)) as update:
        for part in torch.split(x, DENSITY_CHUNK):
            cond = None
            if model.classes is not None:
                label = run.config.sample.label
                cond = build.cond(model, torch.full((len(part),), -1 if label is None else label))
            result = solve_likelihood(model, part, settings, cond=cond).likelihood
            parts.append(torch.stack([result.log_prob, result.error]).cpu())
            update(sum(found.shape[1] for found in parts), "points")
    log_p, error = torch.cat(parts, 1)
    return log_p + scaling.log_volume(2), error


def show_process(page: Report, run: RunFolder, sde: SDE) -> None:
    """Show the curves alpha(t) and sigma(t)."""
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    picture = plots.sde_curves(t, {run.config.sde.name: (sde.alpha(t), sde.sigma(t))})
    run.picture("process", picture)
    caption = (
        "The process: x_t = alpha(t) x_0 + sigma(t) noise. Drift, samplers and likelihood all follow from these two "
        "curves."
    )
    page.figure(picture, caption, "curves of alpha and sigma over t", plot=True)
