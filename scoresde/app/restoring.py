"""The work of ``inpaint``, ``colorize`` and ``restore``: draws from p(x_0 | y), shown, measured against the truth.

Known items are observed, y = A x_0 + noise z, and drawn back from y alone. All is in the units of the model, in which
images run from -1 to 1 and other data have the standard deviation 1.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.app import build, plots
from scoresde.app.config import RestoreConfig, RunConfig
from scoresde.app.masks import mask_of, space_axes
from scoresde.app.runs import RunFolder
from scoresde.app.scoring import figure, mean_and_error
from scoresde.app.terminal import duration, progress, say
from scoresde.data import Data
from scoresde.errors import ArgumentError, RunFolderError, UnknownNameError
from scoresde.files import write_atomically
from scoresde.guidance import (
    Blur,
    Colorize,
    Downsample,
    Inpainting,
    LinearOperator,
    Matrix,
    PartialFourier,
    dps,
    gaussian_data,
    gaussian_kernel,
    moment_matching,
    pigdm,
    radial_mask,
    replacement,
)
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

FOLDER = "restored"  # of a run
METHODS = {
    "pigdm": pigdm,
    "gaussian-data": gaussian_data,
    "moment-matching": moment_matching,
    "dps": dps,
    "replacement": replacement,
}
WEIGHED = ("pigdm", "gaussian-data", "moment-matching")  # those that particles can weigh
PARTICLES, DPS_SCALE = 8, 0.1
#: by name the sampler, from the particles and the signal-to-noise ratio of the corrector, and its default steps
SAMPLERS: dict[str, tuple[Callable[[int, float], Sampler], int]] = {
    "particles": (lambda particles, _: Particles(particles), 50),
    "dpm": (lambda *_: DPMSolver(stochastic=True), 100),
    "pc": (lambda _, snr: PredictorCorrector(ReverseDiffusion(), Langevin(snr), grid="log_snr"), 100),
    "resampling": (lambda *_: Resampling(10, grid="log_snr"), 50),
}
#: by name the setting that a task has
TASKS = {
    "superresolution": "factor",
    "bicubic": "factor",
    "deblur": "width",
    "projection": "factor",
    "tomography": "lines",
}
SHOWN, ROWS = 3, 12  # samples an item and items on a sheet
UNITS = {True: "in which black is near -1 and white near 1", False: "standard deviations of the data"}
FILES = ("arrays.npz", "sheet.png", "figures.json")


class Problem(NamedTuple):
    """What is seen of an item.

    Attributes:
        name: of the folder with the results.
        title: in words.
        operator: A.
        look: y ``(B, *E)`` as something of the shape of x, to be looked at; NaN where nothing was seen.
        seen: how many numbers of y are an observation.
        unknown: which entries of x are to be found, ``(*D)`` of bool.
        facts: what the operator was made of, as JSON-able values.
    """

    name: str
    title: str
    operator: LinearOperator
    look: Callable[[Tensor], Tensor]
    seen: int
    unknown: Tensor
    facts: dict[str, Any]


# --- what is seen ----------------------------------------------------------------------------------------------------


def inpainting(data: Data, mask: str, seed: int = 0) -> Problem:
    """Some entries of each item, by a mask as in :func:`~scoresde.app.masks.mask_of`."""
    known = mask_of(mask, data.shape, data.is_image, seed)
    share = known.double().mean().item()

    def look(y: Tensor) -> Tensor:
        return torch.where(known, y, math.nan)

    name = f"inpaint-{Path(mask).stem if Path(mask).is_file() else mask.replace(':', '-')}"
    title = f"Inpainting, {100 * share:.0f} % known ({mask})"
    return Problem(name, title, Inpainting(known), look, int(known.sum()), ~known, {"mask": mask, "known": share})


def colorization(data: Data) -> Problem:
    """The mean of the three channels.

    Raises:
        ArgumentError: not images of three channels.
    """
    if not data.is_image or data.shape[0] != 3:
        raise ArgumentError("run", f"a model of items {data.shape}", "colour images, (3, H, W)")
    operator = Colorize(data.shape)
    return _whole("colorize", "Colouring", operator, lambda y: y.expand(len(y), *data.shape), {})


def restoration(
    data: Data, task: str, factor: int | None = None, width: float | None = None, lines: int | None = None, seed=0
) -> Problem:
    """A task by its name.

    ``superresolution`` (means of blocks) and ``bicubic`` see an item at 1/``factor`` of its resolution, ``deblur``
    under a Gaussian of standard deviation ``width`` pixels, with periodic borders and cut off at 3 widths or at the
    size of the item, ``projection`` sees one random projection for each ``factor`` entries, drawn with ``seed``, and
    ``tomography`` the Fourier coefficients of an image along ``lines`` lines.

    Raises:
        UnknownNameError: another task. ArgumentError: a setting that the task does not have, or that cannot be.
    """
    given = {"factor": factor, "width": width, "lines": lines}
    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    for name, value in given.items():
        if value is not None and name != TASKS[task]:
            raise ArgumentError(name, value, f"nothing with the task {task}, which has a {TASKS[task]}")
    shape, axes = data.shape, space_axes(data.shape, data.is_image)
    if task in ("superresolution", "bicubic"):
        factor = 2 if factor is None else factor
        kernel = "box" if task == "superresolution" else task
        operator = Downsample(shape, factor, kernel, axes)
        name, title = f"{task}-{factor}", f"Super-resolution by {factor} ({kernel} kernel)"

        def enlarge(y: Tensor) -> Tensor:
            for axis in range(y.ndim - axes, y.ndim):
                y = y.repeat_interleave(factor, axis)
            return y

        return _whole(name, title, operator, enlarge, {"factor": factor, "kernel": kernel})
    if task == "deblur":
        width = 1.0 if width is None else width
        if not 0 < width < math.inf:
            raise ArgumentError("width", width, "a positive number of pixels")
        radius = min(math.ceil(3 * width), (min(shape[-axes:]) - 1) // 2)
        operator = Blur(shape, gaussian_kernel(width, axes, radius))
        return _whole(f"deblur-{width:g}", f"Deblurring, width {width:g}", operator, lambda y: y, {"width": width})
    if task == "projection":
        factor, n = 2 if factor is None else factor, math.prod(shape)
        if not 1 <= factor <= n:
            raise ArgumentError("factor", factor, f"a whole number from 1 to {n}, the entries of an item")
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(n // factor, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        operator = Matrix(matrix, shape)
        title = f"{len(matrix)} random projections of {n} entries"
        return _whole(f"projection-{factor}", title, operator, operator.pinv, {"factor": factor})
    if not data.is_image:
        raise ArgumentError("task", task, f"another one for items {shape}, which are no images")
    lines = 8 if lines is None else lines
    operator = PartialFourier(radial_mask(shape[-2:], lines), shape)
    problem = _whole(
        f"tomography-{lines}", f"Tomography along {lines} lines", operator, operator.pinv, {"lines": lines}
    )
    return problem._replace(seen=int(operator.mask.expand(shape).sum()))


def _whole(name: str, title: str, operator: LinearOperator, look: Callable, facts: dict[str, Any]) -> Problem:
    """A problem that leaves no entry of x as it was."""
    seen, unknown = math.prod(operator.y_shape), torch.ones(operator.shape, dtype=torch.bool)
    return Problem(name, title, operator, look, seen, unknown, facts)


# --- drawing ---------------------------------------------------------------------------------------------------------


def guided_sampler(
    model: ScoreModel, operator: LinearOperator, settings: RestoreConfig, snr: float = 0.16
) -> tuple[Model, Sampler, int, str]:
    """``(guided model, sampler, steps, what they are called)``.

    Raises:
        UnknownNameError: a method or sampler by another name. ArgumentError: settings that do not fit each other.
    """
    method, sampler, noise = settings.method, settings.sampler, settings.noise
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if sampler is not None and sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    if not (0 <= noise < math.inf if method == "replacement" else 0 < noise < math.inf):
        raise ArgumentError("noise", noise, "a positive standard deviation, or 0 with the method replacement")
    if settings.scale is not None and method != "dps":
        raise ArgumentError("scale", settings.scale, f"nothing with the method {method}, only with dps")
    if sampler is None:
        alone = "resampling" if method == "replacement" else "dpm"
        sampler = "particles" if method in WEIGHED and settings.particles != 1 else alone
    if sampler == "particles" and method not in WEIGHED:
        raise ArgumentError("sampler", repr(sampler), f"another one with {method}, which gives no weights")
    if sampler != "particles" and settings.particles not in (None, 1):
        reason = f"no particles with the sampler {sampler}" if method in WEIGHED else f"none with the method {method}"
        raise ArgumentError("particles", settings.particles, reason)
    particles = PARTICLES if settings.particles is None else settings.particles
    make, steps = SAMPLERS[sampler]
    extra, called = {}, method
    if method == "dps":
        scale = DPS_SCALE if settings.scale is None else settings.scale
        extra, called = {"scale": scale}, f"dps(scale={scale:g})"
    guided = METHODS[method](model, operator, **extra)
    called += f", {particles} particles" if sampler == "particles" else f", {sampler}"
    return guided, make(particles, snr), settings.steps or steps, called


def restored(
    model: ScoreModel, problem: Problem, y: Tensor, labels: Tensor | None, settings: RestoreConfig, config: RunConfig,
    generator: torch.Generator,
) -> tuple[Tensor, int, str]:  # fmt: skip
    """``(x, calls, method)``: samples ``(N, S, *D)`` on the CPU given observations y ``(N, *E)``, network calls each.

    Samples depend on their own observation and number only, not on batches or on how many items there are.
    """
    guided, sampler, steps, called = guided_sampler(
        model, problem.operator.to(model.device), settings, build.langevin(config.sample).snr
    )
    rows = max(1, config.sample.batch // (sampler.particles if isinstance(sampler, Particles) else 1))
    N, S = len(y), settings.samples
    calls, drawn = 0, 0

    def show(state: State) -> None:
        nonlocal calls
        calls = state.calls
        update(drawn, f"samples, step {state.step} of {state.steps}")

    def work(items: range, generator: torch.Generator) -> Tensor:
        nonlocal drawn
        parts = []
        for begin in range(items.start, items.stop, rows):
            of = torch.arange(begin, min(begin + rows, items.stop)) // S  # the item of each sample
            noise = torch.full((len(of),), settings.noise, device=model.device, dtype=y.dtype)
            cond = {"observation": y[of].to(model.device), "observation_noise": noise}
            cond |= build.cond(model, None if labels is None else labels[of]) or {}
            shape, generators = (len(of), *problem.operator.shape), spawn_generators(generator, len(of))
            parts.append(draw(guided, shape, sampler, steps, cond=cond, generator=generators, callback=show).cpu())
            drawn += len(of)
        return torch.cat(parts)

    with progress(f"restoring ({called})", len(share_of(N * S, Ranks()))) as update:
        x = over_ranks(work, N * S, generator)
    return x.reshape(N, S, *problem.operator.shape), calls, called


def classes_told(model: ScoreModel, config: RunConfig, data: Data, label: int | None) -> Tensor | None:
    """The classes ``(N,)`` that a conditional model is told: ``label``, none if it knows that, else the data's own."""
    if label is None and model.net.config.get("classes") is not None:
        return torch.full((len(data),), -1) if config.train.label_dropout else data.labels
    return build.labels(dataclasses.replace(config.sample, label=label), model, len(data))


def restore(
    run: RunFolder, config: RunConfig, data: Data, problem: Problem, settings: RestoreConfig, out: Path | None = None
) -> Path:
    """Observe the first ``limit`` items, restore them, and write arrays, a picture and figures; returns the folder.

    Raises:
        ArgumentError, ShapeError, DataError: data or settings that do not fit the model or each other.
        NonFiniteError: NaN or infinity in a sample.
    """
    model = run.model(config.train.device)
    build.check_fits(model, data)
    scale, shift, num_values = model.scaling
    data = dataclasses.replace(data, scale=scale, shift=shift, num_values=num_values, normalize="given")
    whole, data = data, data.take(min(settings.limit, len(data)))
    labels = classes_told(model, config, data, settings.label)
    for_data, for_noise, for_samples = spawn_generators(torch.Generator().manual_seed(settings.seed), 3)
    if config.train.dequantization == "uniform":
        truth = model.scaling.to_model(data.raw, spawn_generators(for_data, len(data)), model.dtype)
    else:
        truth = model.scaling.bin_centres(data.raw, model.dtype)
    y = problem.operator.observe(truth, settings.noise, spawn_generators(for_noise, len(data)))
    begun = time.monotonic()
    x, calls, called = restored(model, problem, y, labels, settings, config, for_samples)
    seconds = time.monotonic() - begun

    picture, caption = sheet(problem, whole, truth, y, x)
    record = {
        "step": run.step,
        "title": problem.title,
        "data": data.name,
        "n": len(data),
        "samples": settings.samples,
        "method": called,
        "calls": calls,
        "noise": settings.noise,
        "seed": settings.seed,
        "units": UNITS[model.scaling.num_values is not None],
        **problem.facts,
        "expected_coverage": expected_coverage(settings.samples),
        "figures": measure(problem, truth, y, x, peak_of(whole)),
        "caption": caption,
    }
    contents = (_packed(problem, data, model, truth, y, x, record), picture, json.dumps(record, indent=1) + "\n")
    folder = run.path / FOLDER / problem.name if out is None else out
    if out is None:
        with run.stage(problem.name, since=seconds, calls=calls, n=len(data)):
            for name, content in zip(FILES, contents, strict=True):
                run.write(f"{FOLDER}/{problem.name}/{name}", content)
    elif not run.read_only:
        for name, content in zip(FILES, contents, strict=True):
            write_atomically(out / name, content)
    say(f"{len(data)} items of {data.name}, {settings.samples} samples each by {called}, {calls} network calls:")
    for what, value in rows_of(record):
        say(f"  {what}: {value}")
    say(f"In {duration(seconds)}. Arrays, picture and figures: {folder}")
    return folder


def peak_of(data: Data) -> float | None:
    """The range of images in the model's units, from black to white or from their least to their greatest value."""
    if not data.is_image:
        return None
    return data.scale * (
        data.num_values - 1.0 if data.num_values is not None else (data.raw.max() - data.raw.min()).item()
    )


def _packed(problem: Problem, data: Data, model: ScoreModel, truth, y, x, record) -> bytes:
    arrays = {"truth": truth, "observation": y, "samples": x, "mean": x.mean(1), "std": x.std(1)}
    arrays |= {"raw": data.raw, "samples_raw": model.scaling.to_raw(x).to(data.raw.dtype), "unknown": problem.unknown}
    with io.BytesIO() as file:
        np.savez_compressed(file, **{k: v.numpy() for k, v in arrays.items()}, config=np.array(json.dumps(record)))
        return file.getvalue()


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(problem: Problem, truth: Tensor, y: Tensor, x: Tensor, peak: float | None) -> dict[str, dict[str, Any]]:
    """Figures by name, each a mean over the items with its standard error.

    ``residual`` is the root mean square of y - A x: that of the noise, if the samples are from p(x_0 | y). ``rmse`` and
    ``psnr`` are of the unknown entries, ``coverage`` is the share of them within 2 standard deviations of the mean.

    Args:
        truth, y, x: ``(N, *D)``, ``(N, *E)``, ``(N, S, *D)``.
        peak: the range of x, for the PSNR in dB; None leaves it out.
    """
    N, S = x.shape[:2]
    operator = problem.operator.cpu()
    truth, y, x = truth.double(), y.double(), x.double()
    r = operator.residual(y.repeat_interleave(S, 0), x.flatten(0, 1))
    residual = (r.reshape(N, -1).square().sum(1) / (S * problem.seen)).sqrt()
    mean, std = x.mean(1)[:, problem.unknown], x.std(1)[:, problem.unknown]
    of_mean = (mean - truth[:, problem.unknown]).square().mean(1).sqrt()
    of_samples = (x - truth[:, None])[:, :, problem.unknown].square().mean((1, 2)).sqrt()
    covered = ((mean - truth[:, problem.unknown]).abs() <= 2 * std).double().mean(1)
    values = {"residual": residual, "rmse of the mean": of_mean, "rmse of a sample": of_samples}
    if peak is not None:
        values |= {f"psnr of {w}": 20 * torch.log10(peak / values[f"rmse of {w}"]) for w in ("the mean", "a sample")}
    return {name: mean_and_error(value) for name, value in (values | {"coverage": covered}).items()}


def expected_coverage(samples: int) -> float:
    """The coverage of 2 standard deviations for a Gaussian posterior whose mean and deviation come from S draws.

    (truth - mean)/std is then sqrt(1 + 1/S) times Student's t with S - 1 degrees of freedom.
    """
    from scipy.stats import t

    return float(2 * t.cdf(2 / math.sqrt(1 + 1 / samples), samples - 1) - 1)


def rows_of(record: dict[str, Any], sign: str = "+-") -> list[tuple[str, str]]:
    """``(what, value)`` of a record in the order of reading."""
    found = {name: figure(values, sign) for name, values in record["figures"].items()}
    return [
        (f"rms of y - A x (noise {record['noise']:g})", found["residual"]),
        *((f"{name.replace('rmse', 'RMSE')}, unknown entries", found[name]) for name in found if name[:4] == "rmse"),
        *((f"{name.replace('psnr', 'PSNR')} (dB)", found[name]) for name in found if name[:4] == "psnr"),
        (f"within 2 std (a Gaussian posterior: {record['expected_coverage']:.3f})", found["coverage"]),
    ]


def load_records(run: RunFolder) -> list[tuple[dict[str, Any], bytes]]:
    """What was restored: ``(record, picture)`` by name.

    Raises:
        RunFolderError: a damaged file.
    """
    found = []
    for path in sorted((run.path / FOLDER).glob(f"*/{FILES[2]}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            rows_of(record)
            found.append((record, path.with_name(FILES[1]).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError("run", f"{path} ({error!r})", "a file that `scoresde restore` wrote") from error
    return found


# --- looking ---------------------------------------------------------------------------------------------------------


def sheet(problem: Problem, data: Data, truth: Tensor, y: Tensor, x: Tensor) -> tuple[bytes, str]:
    """``(picture, caption)`` of the first items: images in rows, points in the plane, anything else as curves."""
    few = slice(ROWS if data.is_image else 6)
    truth, seen, x = truth[few].float(), problem.look(y[few].float()), x[few].float()
    mean, std, shown = x.mean(1), x.std(1), x[:, :SHOWN]
    if data.is_image:
        top = std.max().item() or 1.0
        spread = (std / top).reshape(len(std), -1, *data.shape[-2:])
        columns = {
            "truth": [data.to_image(truth)],
            "seen": [data.to_image(seen)],
            "samples": [data.to_image(shown[:, i]) for i in range(shown.shape[1])],
            "mean": [data.to_image(mean)],
            "std": [spread],
        }
        text = f"White in the column std is {100 * top / peak_of(data):.0f} % of the range from black to white."
        return plots.columns_of_images(columns), text + (" Blue was not seen." if seen.isnan().any() else "")
    if data.shape == (2,):
        scaled = [data.scaling.unscale(value) for value in (truth, x)]
        return plots.restored_points(data.raw, *scaled), "Crosses: the truth. Dots: draws from p(x_0 | y). Grey: data."
    flat = [value.flatten(1) for value in (truth, seen, mean, std)]
    text = "Dashed the truth, dots what was seen, thin lines samples, the band the mean and 2 standard deviations."
    return plots.restored_curves(*flat, shown.flatten(2)), text
