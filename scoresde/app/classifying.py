"""The ``classifier`` command: a noise-aware classifier of the run's data."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import torch

from scoresde.app import build
from scoresde.app.config import RunConfig
from scoresde.app.processes import make_sde
from scoresde.app.runs import RunFolder
from scoresde.app.scoring import figure, mean_and_error
from scoresde.app.terminal import progress, say, table
from scoresde.data import Data
from scoresde.random import spawn_generators
from scoresde.training import NoiseAwareClassifier, fit_classifier
from scoresde.training.devices import pick_device

LOG_SNRS = (6.0, 2.0, 0.0, -2.0, -4.0)  # where the classifier is tested


def train_classifier(
    run: RunFolder, config: RunConfig, out: Path | None, *, steps: int, batch_size: int, lr: float, seed: int
) -> Path:
    """Train a classifier for guidance, save it, and report its accuracy.

    Args:
        run, config: the run on whose labelled data it is trained.
        out: folder of the classifier. None: ``RUN/classifier``.
        steps, batch_size, lr, seed: settings of the training.

    Returns:
        The folder of the classifier.

    Raises:
        DataError: data without labels.
        ArgumentError: numbers out of range.
        CheckpointError: a folder that cannot be written, or that holds anything else.
        NonFiniteError: the loss turned NaN or infinite.
    """
    train, held_out = build.complete_data(config.data)
    sde, device, folder = make_sde(config.sde, train), pick_device(config.train.device), out or run.path / "classifier"
    with run.stage("classifier"):
        with progress("training a classifier", steps) as update:
            classifier = fit_classifier(
                sde,
                train,
                steps=steps,
                batch_size=batch_size,
                lr=lr,
                device=device,
                generator=torch.Generator().manual_seed(seed),
                callback=lambda step, loss: update(step, f"loss {loss:.4f}"),
            )
        if not run.read_only:
            classifier.save_pretrained(folder)
    table(
        ["log-SNR", "sigma/alpha", f"accuracy on {len(held_out)} held-out items"],
        _accuracies(classifier, held_out, seed),
    )
    run_name, name = shlex.quote(str(run.path)), shlex.quote(str(folder))
    say(f"Classifier: {folder}. Go on with: scoresde sample {run_name} --classifier {name} --label 0")
    return folder


def _accuracies(classifier: NoiseAwareClassifier, data: Data, seed: int) -> list[tuple[str, ...]]:
    """Return the share of items that are classified right, at rising noise."""
    device = next(classifier.parameters()).device
    generators = spawn_generators(torch.Generator().manual_seed(seed), len(data))
    x0 = data.to_model(data.raw, generators).to(device)
    rows: list[tuple[str, ...]] = []
    for log_snr in LOG_SNRS:
        t = classifier.sde.time_of(log_snr).item()
        with torch.no_grad():
            found = classifier(classifier.sde.perturb(x0, t, generators)[0], t).argmax(1).cpu()
        share = figure(mean_and_error((found == data.labels).double()), "+-")
        rows.append((f"{log_snr:g}", f"{math.exp(-log_snr / 2):.3g}", share))
    return rows
