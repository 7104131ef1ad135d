"""The ``sample`` command's work: draw samples, show them, keep them."""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from pathlib import Path

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
from scoresde.models import ScoreModel
from scoresde.random import spawn_generators
from scoresde.sampling import DDIM, DPMSolver
from scoresde.sampling import sample as draw
from scoresde.training.distributed import Ranks, over_ranks, share_of

#: of the samplers without noise the ones with it
STOCHASTIC = {"dpm": lambda: DPMSolver(stochastic=True), "ddim": lambda: DDIM(eta=1.0)}


def draw_samples(
    model: ScoreModel, config: SampleConfig, stochastic: bool = False, labels: Tensor | None = None
) -> tuple[Tensor, Tensor | None, int]:
    """``(x, labels, calls)``: samples ``(n, *D)`` on the CPU, their classes, and network calls a sample.

    ``labels`` ``(n,)``, if given, are drawn instead of those of the settings, and n is their number.

    Raises:
        ConfigError: ``stochastic`` with a sampler that is so, or cannot be.
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
    shape = tuple(model.net.config["shape"])
    generator = torch.Generator().manual_seed(config.seed)
    batches, calls, drawn = 0, 0, 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1
        update(drawn, f"samples, {calls} network calls")

    def work(items: range, generator: torch.Generator) -> Tensor:
        nonlocal batches, drawn
        parts = []
        for begin in range(items.start, items.stop, config.batch):
            size = min(config.batch, items.stop - begin)
            some = None if labels is None else labels[begin : begin + size]
            cond = build.cond(model, some, classifier)
            parts.append(
                draw(
                    guided, (size, *shape), sampler, steps, cond=cond, generator=spawn_generators(generator, size)
                ).cpu()
            )
            batches, drawn = batches + 1, drawn + size
            update(drawn, f"samples, {calls} network calls")
        return torch.cat(parts)

    hook = model.net.register_forward_hook(count)
    try:
        with progress(f"sampling ({config.sampler})", len(share_of(n, Ranks()))) as update:
            x = over_ranks(work, n, generator)
    finally:
        hook.remove()
    return x, labels, calls // max(1, batches)


def sample(run: RunFolder, config: RunConfig, out: Path | None = None, stochastic: bool = False) -> Path:
    """Draw, and write ``samples-SAMPLER.npz`` with a picture; or ``out`` and a picture beside it."""
    settings = config.sample
    name = f"samples-{settings.sampler}" + ("-stochastic" if stochastic else "")
    model = run.model(config.train.device)
    begun = time.monotonic()
    x, labels, calls = draw_samples(model, settings, stochastic)
    seconds = time.monotonic() - begun
    raw = model.scaling.to_raw(x)
    if raw.dtype == torch.int64 and model.scaling.num_values <= 256:
        raw = raw.to(torch.uint8)
    arrays = {"x": x.numpy(), "raw": raw.numpy(), "seed": np.array(settings.seed)}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)
        content = file.getvalue()
    train, _ = build.data(config.data)
    picture = show(train, x)
    if out is None:
        with run.stage(name, since=seconds, calls=calls, n=settings.n):
            path = run.write(f"{name}.npz", content)
            shown = run.picture(name, picture) if picture else None
    else:
        path, shown = out, out.with_suffix(".png") if picture else None
        if not run.read_only:
            write_atomically(out, content)
            if picture:
                write_atomically(shown, picture)
    say(f"{settings.n} samples by {settings.sampler} in {duration(seconds)}, {calls} network calls each: {path}")
    if shown is not None:
        say(f"  picture: {shown}")
    return path


def show(train: Data, x: Tensor) -> bytes | None:
    """A picture of samples: images in rows, points in the plane beside the data; None for anything else."""
    if train.is_image:
        return plots.image_grid(train.to_image(x[:256]))
    if train.shape == (2,):
        return plots.scatter_pair(train.raw[: len(x)], train.scaling.unscale(x))
    return None


def load_samples(run: RunFolder, sampler: str) -> Tensor | None:
    """Samples drawn before, in model units, or None.

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
        raise RunFolderError("run", f"{path} ({error})", "a file that `scoresde sample` wrote") from error
