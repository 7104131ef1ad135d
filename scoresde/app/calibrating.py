"""Fit the default sampler to a run's model, at the end of its training."""

from __future__ import annotations

import json
import time

import torch

from scoresde.app import build
from scoresde.app.config import RunConfig
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import say
from scoresde.errors import ToleranceError
from scoresde.sampling import calibrate
from scoresde.training.distributed import Ranks

CALLS = (5, 10, 20, 50)


def calibrate_run(run: RunFolder, config: RunConfig, ranks: Ranks) -> None:
    """Fit the default sampler on the first rank, and keep the result.

    A network with classes is fitted for runs with a label and without, each class in turn. The other ranks wait.
    """
    if config.sample.calibration_paths:
        say(ranks.on_first(lambda: _calibrate(run, config)))


def _calibrate(run: RunFolder, config: RunConfig) -> str:
    """Fit the sampler; return what to say of it."""
    begun = time.monotonic()
    with run.stage("calibrate"):
        model, paths = run.model(config.train.device), config.sample.calibration_paths
        cond = None
        if model.classes is not None:
            cond = build.cond(model, torch.arange(paths) % (model.classes + 1) - 1)
        generator = torch.Generator(model.device).manual_seed(config.sample.seed)
        try:
            calibrate(model, cond=cond, calls=CALLS, paths=paths, generator=generator)
        except ToleranceError as error:
            return f"The default sampler was not fitted to the model: {error}"
        assert model.calibration is not None
        run.write("calibration.json", json.dumps({"step": run.step, **model.calibration.config}, indent=1) + "\n")
    return f"The default sampler was fitted to the model in {time.monotonic() - begun:.0f} s."
