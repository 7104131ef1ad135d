"""The ``sample`` command: draw samples, show them, keep them."""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Callable
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
from scoresde.models import ScoreModel
from scoresde.random import spawn_generators
from scoresde.sampling import DDIM, DPMSolver, Sampler
from scoresde.sampling import sample as draw
from scoresde.training.distributed import Ranks, over_ranks, share_of

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


def sample(run: RunFolder, config: RunConfig, out: Path | None = None, stochastic: bool = False) -> Path:
    """Draw samples and write them with a picture.

    Args:
        run, config: the model and its settings.
        out: the .npz file to write; the picture lies beside it. None: ``samples-SAMPLER.npz`` in the run.
        stochastic: whether to use the sampler's stochastic variant.

    Returns:
        The path of the .npz file.
    """
    settings = config.sample
    name = f"samples-{settings.sampler}" + ("-stochastic" if stochastic else "")
    model = run.model(config.train.device)
    begun = time.monotonic()
    x, labels, calls = draw_samples(model, settings, stochastic)
    seconds = time.monotonic() - begun
    scaling = build.scaling(model)
    raw = scaling.to_raw(x)
    if scaling.num_values is not None and scaling.num_values <= 256:
        raw = raw.to(torch.uint8)
    arrays: dict[str, Any] = {"x": x.numpy(), "raw": raw.numpy(), "seed": np.array(settings.seed)}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)
        content = file.getvalue()
    # the picture, which needs the training data
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
            if picture and shown:
                write_atomically(shown, picture)
    say(f"{settings.n} samples by {settings.sampler} in {duration(seconds)}, {calls} network calls each: {path}")
    if shown is not None:
        say(f"  picture: {shown}")
    return path


def show(train: Data, x: Tensor) -> bytes | None:
    """Return a picture of samples. None: they cannot be drawn.

    Images stand in rows, points in the plane beside the data.
    """
    if train.is_image:
        return plots.image_grid(train.to_image(x[:256]))
    if train.shape == (2,):
        return plots.scatter_pair(train.raw[: len(x)], train.scaling.unscale(x))
    return None


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
