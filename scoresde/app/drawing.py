"""The ``sample`` command: draw samples, show them, keep them."""

from __future__ import annotations

import csv
import io
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.app import build, plots
from scoresde.app.config import RunConfig, SampleConfig
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import duration, progress, say
from scoresde.data import Data
from scoresde.errors import ConfigError, RunFolderError
from scoresde.files import write_atomically
from scoresde.interop import write_png_folder
from scoresde.models import ScoreModel
from scoresde.random import spawn_generators
from scoresde.sampling import DDIM, DPMSolver, Sampler
from scoresde.sampling import sample as draw
from scoresde.training.distributed import Ranks, over_ranks, share_of

IMAGES, SHOWN = 256, 2000  # images, and other items, in a picture
#: stochastic variants of deterministic samplers
STOCHASTIC: dict[str, Callable[[], Sampler]] = {
    "dpm": lambda: DPMSolver(stochastic=True),
    "ddim": lambda: DDIM(eta=1.0),
}


def draw_samples(
    model: ScoreModel, config: SampleConfig, stochastic: bool = False, labels: Tensor | None = None
) -> tuple[Tensor, Tensor | None, int]:
    """Draw samples as the settings say.

    Args:
        model: the model.
        config: sampler, seed, number of samples and so on.
        stochastic: whether to use the sampler's stochastic variant.
        labels: class labels ``(n,)``. None: those of the settings.

    Returns:
        Samples ``(n, *D)`` on the CPU, their labels, and the network calls of a sample.

    Raises:
        ConfigError: ``stochastic`` with a sampler without a stochastic variant.
        NonFiniteError: NaN or infinity in a sample.
    """
    sampler, steps = build.sampler(config)
    if stochastic:
        if config.sampler not in STOCHASTIC:
            raise ConfigError("sample.sampler", repr(config.sampler), "'dpm' or 'ddim' with --stochastic")
        sampler = STOCHASTIC[config.sampler]()
    classifier = build.classifier(config, model)
    labels = build.labels(config, model, config.n, classifier) if labels is None else labels
    n, guided = config.n if labels is None else len(labels), build.guided(config, model, classifier)
    shape = build.item_shape(model)
    generator = torch.Generator().manual_seed(config.seed)
    batches, calls, drawn = 0, 0, 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        update(drawn, f"samples, {calls} network calls")

    def work(items: range, generator: torch.Generator | None) -> Tensor:
        nonlocal batches, drawn
        parts = []
        for begin in range(items.start, items.stop, config.batch):
            size = min(config.batch, items.stop - begin)
            some = None if labels is None else labels[begin : begin + size]
            cond = build.cond(model, some, classifier)
            generators = spawn_generators(generator, size)
            parts.append(draw(guided, (size, *shape), sampler, steps, cond=cond, generator=generators).cpu())
            batches, drawn = batches + 1, drawn + size
            update(drawn, f"samples, {calls} network calls")
        return torch.cat(parts)

    # the hook counts the network's calls, guidance included
    hook = model.net.register_forward_hook(count)
    try:
        with progress(f"sampling ({config.sampler})", len(share_of(n, Ranks()))) as update:
            x = over_ranks(work, n, generator)
    finally:
        hook.remove()
    return x, labels, calls // max(1, batches)


def sample(
    run: RunFolder, config: RunConfig, out: Path | None = None, stochastic: bool = False, png: bool = False
) -> Path:
    """Draw samples and write them with a picture.

    Args:
        run, config: the model and its settings.
        out: the .npz file to write; the picture lies beside it. None: ``samples-SAMPLER.npz`` in the run.
        stochastic: whether to use the sampler's stochastic variant.
        png: whether to write each image into a folder beside the .npz file, too.

    Returns:
        The path of the .npz file.

    Raises:
        ConfigError: ``png`` for data that are not images.
    """
    settings = config.sample
    train, _ = build.data(config.data)
    if png and not train.is_image:
        raise ConfigError("png", f"True for items {train.shape}", "left out: the samples are not images")
    # 1. draw
    name = f"samples-{settings.sampler}" + ("-stochastic" if stochastic else "")
    model = run.model(config.train.device)
    begun = time.monotonic()
    x, labels, calls = draw_samples(model, settings, stochastic)
    seconds = time.monotonic() - begun
    scaling = build.scaling(model)
    raw = scaling.to_raw(x)
    if scaling.num_values is not None and scaling.num_values <= 256:
        raw = raw.to(torch.uint8)
    # 2. the file, in both units
    arrays: dict[str, Any] = {"x": x.numpy(), "raw": raw.numpy(), "seed": np.array(settings.seed)}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)
        content = file.getvalue()
    files = {".npz": content, **_table(train.columns, raw)}
    # 3. the picture, and where all of them go
    picture = picture_of(train, x)
    if out is None:
        with run.stage(name, since=seconds, calls=calls, n=settings.n):
            paths = [run.write(f"{name}{suffix}", part) for suffix, part in files.items()]
            shown = run.picture(name, picture) if picture else None
    else:
        paths = [out, *(out.with_suffix(suffix) for suffix in list(files)[1:])]
        shown = out.with_suffix(".png") if picture else None
        drawn = {} if shown is None else {shown: picture or b""}
        for file_path, part in () if run.read_only else (*zip(paths, files.values(), strict=True), *drawn.items()):
            write_atomically(file_path, part)
    path = paths[0]
    say(f"{settings.n} samples by {settings.sampler} in {duration(seconds)}, {calls} network calls each: {path}")
    for table in paths[1:]:
        say(f"  table: {table}")
    if shown is not None:
        say(f"  picture: {shown}")
    if png and not run.read_only:
        pixels = train.to_image(x).mul(255).round().to(torch.uint8)
        say(f"  images: {write_png_folder(pixels, path.with_suffix(''))}")
    return path


def _table(columns: Sequence[str] | None, raw: Tensor) -> dict[str, str | bytes]:
    """Return samples with named columns as a .csv file, by its suffix."""
    if columns is None:
        return {}
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(raw.tolist())
        return {".csv": file.getvalue()}


def picture_of(data: Data, x: Tensor | None) -> bytes | None:
    """Return a picture of samples, or of data. None: they cannot be drawn.

    Images stand in rows, and so do the middle slices of volumes. Points in the plane, tables and series stand beside
    the data.

    Args:
        data: the data, which say what the numbers are.
        x: samples in model space. None: the data alone.
    """
    shape, n = data.shape, SHOWN if x is None else len(x)
    if data.is_image or len(shape) == 4:
        shown = (data.bin_centres(data.raw[:IMAGES]) if x is None else x)[:IMAGES]
        return plots.image_grid(data.to_image(shown) if data.is_image else _slices(shown))
    if data.missing and not bool(data.raw.flatten(1).isfinite().all(1).any()):
        return None
    data = data.complete
    real, drawn = data.raw[:n].double(), None if x is None else data.scaling.unscale(x)
    if shape == (2,) and drawn is not None:
        return plots.scatter_pair(data.raw[:n], drawn)
    if len(shape) == 1:
        return plots.features(real, drawn)
    return plots.series(real, drawn) if len(shape) == 2 else None


def _slices(x: Tensor) -> Tensor:
    """Return the middle slices of volumes, first channel, as gray images.

    Each is shown from its least to its greatest value.
    """
    middle = x[:, :1, x.shape[2] // 2].double()
    low, high = (middle.flatten(1).quantile(q, 1)[:, None, None, None] for q in (0.0, 1.0))
    return (middle - low) / (high - low).clamp(min=1e-12)


def load_samples(run: RunFolder, sampler: str) -> Tensor | None:
    """Return the samples drawn before, in model space. None: no samples.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = run.path / f"samples-{sampler}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["x"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunFolderError("run", f"{path} ({error})", "an intact file of `scoresde sample`") from error
