"""Trained networks on which the default sampler is judged, beside peers.

Two are small and trained on the spot, in seconds: one of points in the plane, and one under VE. The shipped model of
the digits is the third. Runs of the command line are more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import common  # noqa: F401  first: it sets how threads wait

# isort: split
import torch
from torch import Tensor

from benchmarks.frechet import Distance, Gaussian, distance, features, fit_classifier
from scoresde import (
    SDE,
    VESDE,
    VPSDE,
    Data,
    DenoisingScoreMatching,
    Model,
    ResidualMLP,
    ScoreModel,
    Trainer,
    TrainerConfig,
    load_data,
)
from scoresde.app import build
from scoresde.app.runs import RunFolder
from scoresde.models.conditions import Condition

STEPS = 3000  # of the training of points
CLASSES = 10  # of the digits
CHUNK = 100  # images that are drawn at a time


class Network(NamedTuple):
    """A model, and the condition of ``n`` of its samples."""

    name: str
    variant: str
    model: ScoreModel
    cond: Callable[[int], Condition]


def _unconditional(n: int) -> None:
    return None


def _points(source: str, sde: Callable[[Data], SDE]) -> ScoreModel:
    """Train a model of points in the plane, and return it in float64."""
    train, _ = load_data(source)
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(0)
        model = ScoreModel.for_data(ResidualMLP((2,), width=128, blocks=3), sde(train), train)
        config = TrainerConfig(steps=STEPS, batch_size=512, lr=2e-3, warmup=100, device="cpu")
        trainer = Trainer(model, DenoisingScoreMatching("likelihood", time_sampling="log-snr"), config)
        trainer.fit(train)
        return trainer.averaged_model().double()


def networks(runs: list[str]) -> Iterator[Network]:
    """Yield the networks, last those of the folders ``runs``, in float32."""
    digits = ScoreModel.from_pretrained("digits").double()
    yield Network("moons network", "known", _points("two-moons", lambda _: VPSDE()), _unconditional)
    yield Network("swiss roll network, VE", "known", _points("swiss-roll", VESDE.for_data), _unconditional)
    yield Network("digits network", "known", digits, _unconditional)
    yield Network("digits network", "class", digits, lambda n: {"y": torch.arange(n) % CLASSES})
    yield from map(run_network, runs)


def run_network(folder: str) -> Network:
    """Return the network of a run."""
    run = RunFolder.open(folder)
    return Network(f"{run.config.data.source.rsplit('/', 1)[-1]} network", "known", run.model("cpu"), _unconditional)


# ---- Frechet distances ----------------------------------------------------------------------------------------------


class Eye:
    """A classifier of a run's images, and its features of the held-out ones."""

    def __init__(self, folder: str):
        train, self.test = build.data(RunFolder.open(folder).config.data)
        with torch.enable_grad():
            self.classifier = fit_classifier(train)
        self.reference = Gaussian.of(features(self.classifier, self.test.raw))

    def distance(self, model: Model, draw: Callable[[Tensor], Tensor], n: int) -> Distance:
        """Return the distance of ``n`` images drawn from the same start noises.

        Args:
            model: The model, whose units the images have.
            draw: Function from noise ``(B, *D)`` at t = 1 to images.
            n: Number of images.
        """
        generator = torch.Generator().manual_seed(11)
        raw = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for begin in range(0, n, CHUNK):
                shape = (min(CHUNK, n - begin), *self.test.shape)
                raw.append(model.to_data(draw(model.sde.prior_sample(shape, generator, dtype=model.dtype)).float()))
        return distance(features(self.classifier, torch.cat(raw)), self.reference)
