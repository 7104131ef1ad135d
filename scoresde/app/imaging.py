"""Samples and data as images for other libraries' metrics."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from scoresde.app import build
from scoresde.app.config import RunConfig
from scoresde.app.drawing import draw_samples
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import say, table
from scoresde.data import Data
from scoresde.errors import ConfigError
from scoresde.interop import image_metrics, write_adm_npz, write_png_folder

FOLDER = "images"


def eight_bits(data: Data, x: Tensor) -> Tensor:
    """Return items in model space as 8-bit images ``(N, C, H, W)``."""
    return data.to_image(x).mul(255).round().clamp(0, 255).to(torch.uint8)


def write_images(run: RunFolder, config: RunConfig, n: int, metrics: bool) -> dict[str, float]:
    """Draw samples, and write them and data in the layouts of other libraries.

    The folder ``images`` of the run gets ``samples/`` and ``data/`` of PNG files, and ``samples.npz`` and ``data.npz``
    with ``arr_0`` ``(N, H, W, 3)``.

    Args:
        run, config: The model and its settings.
        n: Number of samples; of the training data, as many at most.
        metrics: Whether to compute the metrics of torch-fidelity.

    Returns:
        The metrics, which ``images/metrics.json`` has too.

    Raises:
        ConfigError: The data are not images of one or three channels.
        MissingExtraError: ``metrics`` without torch-fidelity.
    """
    train, _ = build.complete_data(config.data)
    if not train.is_image or train.shape[0] not in (1, 3):
        raise ConfigError("images", f"{n} of items {train.shape}", "left out: the samples are not images")
    with run.stage(FOLDER, n=n):
        model = run.model(config.train.device)
        drawn = eight_bits(train, draw_samples(model, replace(config.sample, n=n))[0])
        few = train.take(min(n, len(train)))
        real = eight_bits(few, few.bin_centres(few.raw))
        folder = run.path / FOLDER
        for name, images in (("samples", drawn), ("data", real)):
            write_png_folder(images, folder / name)
            write_adm_npz(images, folder / f"{name}.npz")
        say(f"{len(drawn)} samples and {len(real)} items of the data: {folder}")
        if not metrics:
            return {}
        found = image_metrics(drawn, real, subset=min(1000, len(real)), device=model.device, seed=config.sample.seed)
        run.write(f"{FOLDER}/metrics.json", json.dumps({"samples": len(drawn), "data": len(real), **found}) + "\n")
    table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in found.items()])
    return found
