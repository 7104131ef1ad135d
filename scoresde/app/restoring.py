"""The work of the commands ``inpaint``, ``colorize`` and ``restore``.

Known items are observed, y = A x_0 + noise * z, and sampled from p(x_0 | y), then shown and measured. All is in model
space, in which images run from -1 to 1 and other data have the standard deviation 1.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.app import build
from scoresde.app.config import RestoreConfig, RunConfig
from scoresde.app.observing import Problem
from scoresde.app.restored import (
    ARRAYS,
    FIGURES,
    FOLDER,
    SHEET,
    expected_coverage,
    measure,
    pack,
    peak_of,
    rows_of,
    sheet,
)
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import duration, progress, say
from scoresde.data import Data
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.files import write_atomically
from scoresde.guidance import LinearOperator, dps, gaussian_data, moment_matching, pigdm, replacement
from scoresde.models import Model, ScoreModel
from scoresde.random import spawn_generators
from scoresde.sampling import (
    DPMSolver,
    Langevin,
    Particles,
    PredictorCorrector,
    Resampling,
    ReverseDiffusion,
    Sampler,
    State,
)
from scoresde.sampling import sample as draw
from scoresde.training.distributed import Ranks, over_ranks, share_of

PARTICLES, DPS_SCALE = 8, 0.1
UNITS = {True: "in which black is near -1 and white near 1", False: "standard deviations of the data"}


class Method(NamedTuple):
    """A guidance by an observation.

    Attributes:
        guide: function of a model and an operator that returns the guided model.
        samplers: the samplers it goes with, the default first.
        noiseless: whether the noise may be 0.
    """

    guide: Callable[..., Model]
    samplers: tuple[str, ...]
    noiseless: bool = False


WEIGHED = ("particles", "dpm", "pc", "resampling")  # the guided model has weights, which particles need
UNWEIGHED = ("dpm", "pc", "resampling")
METHODS = {
    "pigdm": Method(pigdm, WEIGHED),
    "gaussian-data": Method(gaussian_data, WEIGHED),
    "moment-matching": Method(moment_matching, WEIGHED),
    "dps": Method(dps, UNWEIGHED),
    "replacement": Method(replacement, ("resampling", "dpm", "pc"), noiseless=True),
}
#: by name the sampler, from the number of particles and the corrector, and its default number of steps
SAMPLERS: dict[str, tuple[Callable[[int, Langevin], Sampler], int]] = {
    "particles": (lambda particles, _: Particles(particles), 50),
    "dpm": (lambda *_: DPMSolver(stochastic=True), 100),
    "pc": (lambda _, corrector: PredictorCorrector(ReverseDiffusion(), corrector, grid="log_snr"), 100),
    "resampling": (lambda *_: Resampling(10, grid="log_snr"), 50),
}


class Plan(NamedTuple):
    """How to sample given observations.

    Attributes:
        model: the guided model.
        sampler, steps: the sampler and its number of steps.
        title: method and sampler, in words.
    """

    model: Model
    sampler: Sampler
    steps: int
    title: str


def plan_of(
    model: ScoreModel, operator: LinearOperator, settings: RestoreConfig, corrector: Langevin | None = None
) -> Plan:
    """Return the guided model and the sampler that ``settings`` name.

    Args:
        model: the unconditional model.
        operator: A.
        settings: method, sampler and their settings.
        corrector: corrector of the sampler "pc". None: the default Langevin.

    Raises:
        UnknownNameError: an unknown method or sampler.
        ArgumentError: settings that do not fit each other.
    """
    _check_method(settings)
    name = _sampler_of(settings)
    particles = PARTICLES if settings.particles is None else settings.particles
    make, steps = SAMPLERS[name]
    extra, title = {}, settings.method
    if settings.method == "dps":
        scale = DPS_SCALE if settings.scale is None else settings.scale
        extra, title = {"scale": scale}, f"dps(scale={scale:g})"
    guided = METHODS[settings.method].guide(model, operator, **extra)
    title += f", {particles} particles" if name == "particles" else f", {name}"
    return Plan(guided, make(particles, corrector or Langevin()), settings.steps or steps, title)


def _check_method(settings: RestoreConfig) -> None:
    """Raise unless the method exists and takes the noise and the scale."""
    name, noise = settings.method, settings.noise
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    if not (0 < noise < math.inf or (noise == 0 and METHODS[name].noiseless)):
        raise ArgumentError("noise", noise, "a positive standard deviation, or 0 with the method replacement")
    if settings.scale is not None and name != "dps":
        raise ArgumentError("scale", settings.scale, f"left out for the method {name}: only dps has one")


def _sampler_of(settings: RestoreConfig) -> str:
    """Return the name of the sampler, by default that of the method."""
    method, sampler, particles = settings.method, settings.sampler, settings.particles
    known = METHODS[method].samplers
    if sampler is not None and sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    if sampler is None:
        sampler = "dpm" if known[0] == "particles" and particles == 1 else known[0]
    if sampler not in known:
        raise ArgumentError("sampler", repr(sampler), f"one of {', '.join(known)} with {method}, which has no weights")
    if sampler != "particles" and particles not in (None, 1):
        alone = f"the sampler {sampler}" if "particles" in known else f"the method {method}"
        raise ArgumentError("particles", particles, f"left out, or 1, with {alone}")
    return sampler


class Observations(NamedTuple):
    """Observations y ``(N, *E)`` and class labels ``(N,)``.

    The labels are None for a model without classes.
    """

    y: Tensor
    labels: Tensor | None


def posterior_samples(
    plan: Plan,
    model: ScoreModel,
    problem: Problem,
    observations: Observations,
    settings: RestoreConfig,
    batch: int,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """Draw S samples of each item given its observation.

    A sample depends on its own observation and number only, not on batches or on the number of items.

    Args:
        plan: how to sample.
        model: the unconditional model.
        problem: what was observed.
        observations: y and the class labels.
        settings: S and the noise.
        batch: largest number of samples, or particles, to evaluate together.
        generator: source of all noise.

    Returns:
        Samples ``(N, S, *D)`` on the CPU, and the network calls of each.
    """
    y, labels = observations
    rows = max(1, batch // (plan.sampler.particles if isinstance(plan.sampler, Particles) else 1))
    N, S = len(y), settings.samples
    calls, drawn = 0, 0

    def show(state: State) -> None:
        nonlocal calls
        calls = state.calls
        update(drawn, f"samples, step {state.step} of {state.steps}")

    def work(items: range, generator: torch.Generator | None) -> Tensor:
        nonlocal drawn
        parts = []
        for begin in range(items.start, items.stop, rows):
            of = torch.arange(begin, min(begin + rows, items.stop)) // S  # the item of each sample
            noise = torch.full((len(of),), settings.noise, device=model.device, dtype=y.dtype)
            cond = {"observation": y[of].to(model.device), "observation_noise": noise}
            cond |= build.cond(model, None if labels is None else labels[of]) or {}
            shape, generators = (len(of), *problem.operator.shape), spawn_generators(generator, len(of))
            x = draw(plan.model, shape, plan.sampler, plan.steps, cond=cond, generator=generators, callback=show)
            parts.append(x.cpu())
            drawn += len(of)
        return torch.cat(parts)

    with progress(f"restoring ({plan.title})", len(share_of(N * S, Ranks()))) as update:
        x = over_ranks(work, N * S, generator)
    return x.reshape(N, S, *problem.operator.shape), calls


def labels_of(model: ScoreModel, config: RunConfig, data: Data, label: int | None) -> Tensor | None:
    """Return the class labels ``(N,)`` on which the model is conditioned.

    They are None for a model without classes. Else they are ``label`` if it is given, else "no class" (-1) if the model
    was trained with label dropout, else the data's own.
    """
    if label is None and model.classes is not None:
        return torch.full((len(data),), -1) if config.train.label_dropout else data.labels
    return build.labels(dataclasses.replace(config.sample, label=label), model, len(data))


def restore(
    run: RunFolder, config: RunConfig, data: Data, problem: Problem, settings: RestoreConfig, out: Path | None = None
) -> Path:
    """Observe the first items, restore them, and write the results.

    Args:
        run, config: the model and its settings.
        data: the items, of which the first ``settings.limit`` are restored.
        problem: what is observed of an item.
        settings: how to restore.
        out: folder of the results. None: a folder in the run.

    Returns:
        The folder of the results.

    Raises:
        ArgumentError, ShapeError, DataError: data or settings that do not fit the model or each other.
        NonFiniteError: NaN or infinity in a sample.
    """
    model = run.model(config.train.device)
    build.check_fits(model, data)
    scaling = build.scaling(model)
    data = dataclasses.replace(
        data, scale=scaling.scale, shift=scaling.shift, num_values=scaling.num_values, normalize="given"
    )
    whole, data = data, data.take(min(settings.limit, len(data)))
    labels = labels_of(model, config, data, settings.label)

    # 1. the truth and its observations
    for_data, for_noise, for_samples = spawn_generators(torch.Generator().manual_seed(settings.seed), 3)
    if config.train.dequantization == "uniform":
        truth = scaling.to_model(data.raw, spawn_generators(for_data, len(data)), model.dtype)
    else:
        truth = scaling.bin_centres(data.raw, model.dtype)
    y = problem.operator.observe(truth, settings.noise, spawn_generators(for_noise, len(data)))

    # 2. samples given the observations
    plan = plan_of(model, problem.operator.to(model.device), settings, build.langevin(config.sample))
    begun = time.monotonic()
    found = Observations(y, labels)
    x, calls = posterior_samples(plan, model, problem, found, settings, config.sample.batch, for_samples)
    seconds = time.monotonic() - begun

    # 3. figures, picture and files
    picture, caption = sheet(problem, whole, truth, y, x)
    record = {
        "step": run.step,
        "title": problem.title,
        "data": data.name,
        "n": len(data),
        "samples": settings.samples,
        "method": plan.title,
        "calls": calls,
        "noise": settings.noise,
        "seed": settings.seed,
        "units": UNITS[scaling.num_values is not None],
        **problem.facts,
        "expected_coverage": expected_coverage(settings.samples),
        "figures": measure(problem, truth, y, x, peak_of(whole)),
        "caption": caption,
    }
    files: dict[str, str | bytes] = {
        ARRAYS: pack(problem, data, truth, y, x, record),
        SHEET: picture,
        FIGURES: json.dumps(record, indent=1) + "\n",
    }
    folder = run.path / FOLDER / problem.name if out is None else out
    if out is None:
        with run.stage(problem.name, since=seconds, calls=calls, n=len(data)):
            for name, content in files.items():
                run.write(f"{FOLDER}/{problem.name}/{name}", content)
    elif not run.read_only:
        for name, content in files.items():
            write_atomically(out / name, content)
    say(f"{len(data)} items of {data.name}, {settings.samples} samples each by {plan.title}, {calls} network calls:")
    for what, value in rows_of(record):
        say(f"  {what}: {value}")
    say(f"In {duration(seconds)}. Arrays, picture and figures: {folder}")
    return folder
