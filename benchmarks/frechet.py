"""The Frechet distance of two sets of images in a classifier's features.

The Inception network of the usual distance knows photographs. For grey images of 28 x 28 pixels, the 64 penultimate
features of a classifier trained on the labels say more. Such a classifier takes a minute to train. Distances are
comparable under one classifier only: save it (:meth:`Classifier.save`) and use it for every model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import Data
from scoresde.errors import CheckpointError, DataError, ShapeError
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors

FEATURES = 64
EPOCHS = 4
NOISE = 16.0  # standard deviation of the noise in :func:`noisy`, in the units of 8-bit images
Update = Callable[[int, int], None]


class Classifier(nn.Module):
    """Three convolutions and two linear maps.

    The features are the input of the last map, after its ReLU.

    Args:
        shape: shape (C, H, W) of an image, sides of 4 or more.
        classes: number of classes.
        num_values: number of grey values; raw images are divided by num_values - 1.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, num_values: int = 256):
        super().__init__()
        C, H, W = shape
        self.config = {"shape": list(shape), "classes": classes, "num_values": num_values}
        self.body = nn.Sequential(
            nn.Conv2d(C, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (H // 4) * (W // 4), FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, raw: Tensor) -> Tensor:
        """Return features ``(B, 64)`` of raw integer images ``(B, C, H, W)``."""
        return self.body(raw.to(self.head.weight) / (self.config["num_values"] - 1))

    def forward(self, raw: Tensor) -> Tensor:
        """Return logits ``(B, classes)``."""
        return self.head(self.features(raw))

    def save(self, folder: str | Path, **facts) -> None:
        """Write weights, architecture and facts on the training to ``folder``."""
        with atomic_folder(folder) as new:
            save_tensors(self.state_dict(), new / "classifier.safetensors")
            (new / "classifier.json").write_text(json.dumps({"config": self.config, **facts}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> tuple[Classifier, dict]:
        """Return a saved classifier and the facts saved with it.

        Raises:
            CheckpointError: the folder holds no classifier, or a damaged one.
        """
        folder = Path(folder)
        facts = read_json(folder / "classifier.json", "classifier")
        try:
            classifier = cls(**facts.pop("config"))
            classifier.load_state_dict(load_tensors(folder / "classifier.safetensors"))
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError("classifier", f"{folder} ({error})", "a folder written by Classifier.save") from error
        return classifier.eval().requires_grad_(False), facts


def fit_classifier(
    train: Data,
    *,
    epochs: int = EPOCHS,
    batch: int = 128,
    lr: float = 3e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    callback: Update | None = None,
) -> Classifier:
    """Train a classifier by Adam on cross-entropy.

    The learning rate rises for a tenth of the steps and then falls as a cosine. The result depends only on the
    arguments and on the number of threads.

    Args:
        train: labelled images of integers.
        epochs: passes over them.
        batch, lr, seed: batch size, largest learning rate, seed of weights and batches.
        callback: function of (images seen, images in all), called after each batch.

    Raises:
        DataError: there are no labels, or the data are not images of integers.
    """
    if train.labels is None or train.num_values is None or len(train.shape) != 3:
        raise DataError("train", repr(train), "labelled images (C, H, W) of integer num_values")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        classifier = Classifier(train.shape, train.classes, train.num_values).to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
    steps, step, total = epochs * math.ceil(len(train) / batch), 0, epochs * len(train)
    for epoch in range(epochs):
        seen = epoch * len(train)
        for rows in torch.randperm(len(train), generator=generator).split(batch):
            past = step / steps
            optimizer.param_groups[0]["lr"] = lr * min(10 * past + 1 / steps, 0.5 * (1 + math.cos(math.pi * past)))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(classifier(train.raw[rows].to(device)), train.labels[rows].to(device)).backward()
            optimizer.step()
            step, seen = step + 1, seen + len(rows)
            if callback is not None:
                callback(seen, total)
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(classifier: Classifier, data: Data, batch: int = 500) -> tuple[float, float]:
    """Return the share of images classified correctly, and its standard error."""
    device = classifier.head.weight.device
    right = [
        classifier(raw.to(device)).argmax(1).cpu() == labels
        for raw, labels in zip(data.raw.split(batch), data.labels.split(batch), strict=True)
    ]
    share = torch.cat(right).double().mean().item()
    return share, math.sqrt(share * (1 - share) / len(data))


@torch.no_grad()
def features(classifier: Classifier, raw: Tensor, batch: int = 500) -> Tensor:
    """Return features ``(N, 64)`` of raw images ``(N, C, H, W)``."""
    device = classifier.head.weight.device
    return torch.cat([classifier.features(part.to(device)).cpu().double() for part in raw.split(batch)])


class Gaussian(NamedTuple):
    """A Gaussian fitted to a set of features.

    It has their mean ``(d,)``, covariance ``(d, d)`` and number.
    """

    mean: Tensor
    covariance: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Return the Gaussian of features ``(N, d)``, N >= 2.

        The covariance is divided by N - 1.

        Raises:
            ShapeError: another shape, or a single row.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ShapeError("features", tuple(features.shape), "(N, d) with N >= 2")
        features = features.double()
        return cls(features.mean(0), features.T.cov(), len(features))

    @property
    def spread(self) -> float:
        """Return tr C, the mean squared distance from the mean."""
        return self.covariance.trace().item()


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians.

        |m_p - m_q|^2 + tr(C_p + C_q - 2 (C_p^{1/2} C_q C_p^{1/2})^{1/2})

    References: Dowson & Landau 1982; Heusel et al. 2017, eq. 6.
    """
    values, vectors = torch.linalg.eigh(p.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ q.covariance @ root).clamp(min=0).sqrt().sum()
    return ((p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * cross).item()


class Distance(NamedTuple):
    """The Frechet distance of ``n`` images from a reference.

    Attributes:
        value: computed distance. It is too large: its expectation falls to the limit as 1/n.
        stderr: standard error by bootstrap over the images.
        bias: estimate of ``value`` minus the limit of many images. It is the mean distance of the two halves of the
            images, whose bias is twice as large, minus ``value``. The reference is taken as exact.
        n: number of images.
    """

    value: float
    stderr: float
    bias: float
    n: int

    def __str__(self):
        return f"{self.value:.2f} +- {self.stderr:.2f} (n = {self.n}, of it bias {self.bias:.2f})"


def distance(features: Tensor, reference: Gaussian, *, resamples: int = 100, seed: int = 0) -> Distance:
    """Return the Frechet distance of features from a reference.

    Args:
        features: features ``(n, d)``, n >= 4.
        reference: Gaussian of the reference's features.
        resamples: bootstrap resamples, drawn with ``seed``.
        seed: seed of the bootstrap.

    Raises:
        ShapeError: there are fewer than 4 rows.
    """
    n = len(features)
    if features.ndim != 2 or n < 4:
        raise ShapeError("features", tuple(features.shape), "(n, d) with n >= 4")
    generator = torch.Generator().manual_seed(seed)

    def of(rows: Tensor) -> float:
        return frechet_distance(Gaussian.of(features[rows]), reference)

    value = of(torch.arange(n))
    halves = torch.randperm(n, generator=generator)[: 2 * (n // 2)].chunk(2)
    drawn = [of(torch.randint(n, (n,), generator=generator)) for _ in range(resamples)]
    stderr = torch.tensor(drawn, dtype=torch.float64).std().item()
    return Distance(value, stderr, sum(map(of, halves)) / 2 - value, n)


def noisy(raw: Tensor, num_values: int = 256, std: float = NOISE, seed: int = 0) -> Tensor:
    """Return images with Gaussian noise, rounded and clamped.

    ``std`` is the noise's standard deviation in grey values, which run from 0 to num_values - 1.
    """
    noise = torch.randn(raw.shape, generator=torch.Generator().manual_seed(seed))
    return (raw + std * noise).round().clamp(0, num_values - 1).to(raw.dtype)


def blurred(raw: Tensor) -> Tensor:
    """Return images ``(N, C, H, W)`` blurred by a 3 x 3 mean, rounded.

    At the border the mean is over the pixels that exist.
    """
    return F.avg_pool2d(raw.float(), 3, 1, 1, count_include_pad=False).round().to(raw.dtype)
