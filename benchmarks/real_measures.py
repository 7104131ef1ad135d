"""Measures of a model of images, for benchmarks/real.py.

They are bits/dim, samples, Frechet distances and nearest neighbours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# isort: split
import torch
from torch import Tensor

from benchmarks.frechet import (
    NOISE,
    Classifier,
    Distance,
    Gaussian,
    accuracy,
    blurred,
    distance,
    features,
    fit_classifier,
    noisy,
)
from scoresde import Data, Hutchinson, Model, bits_per_dim, load_data, sample
from scoresde.app.comparing import Measured, auroc
from scoresde.app.terminal import progress
from scoresde.data import Scaling
from scoresde.data.idx import idx_files
from scoresde.errors import DataError
from scoresde.likelihood import BitsPerDim
from scoresde.random import spawn_generators
from scoresde.sampling import Sampler

if TYPE_CHECKING:
    pass

FASHION = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"  # Debian's
SEED = 0  # of dequantisation, probes, samples and resampling; not of the training
BATCH = 64  # images in a network call of a likelihood; the gradient holds all activations
NEAR = 0.01  # quantile of the test images' distances below which a sample counts as near


def load(folder: str | Path) -> tuple[Data, Data]:
    """Return training and test images of a folder of idx files, with labels.

    The order is that of the files.

    Raises:
        DataError: there are none, or no test images; says where they come from.
    """
    found = idx_files(folder)
    if "t10k" not in found:
        what = "which has no test images" if found else "which holds no idx files"
        where = f"the idx files of Fashion-MNIST (Debian: apt install {PACKAGE}, {FASHION}), or --data FOLDER"
        raise DataError("data", f"{folder}, {what}", where)
    return load_data(folder)


def likelihood(
    model: Model,
    raw: Tensor,
    *,
    calls: int = 100,
    probes: int = 1,
    scaling: Scaling | None = None,
    batch: int = BATCH,
    seed: int = SEED,
    what: str = "bits/dim",
) -> BitsPerDim:
    """Return bits/dim of raw images ``(N, C, H, W)`` by the multistep flow.

    Each image has one uniform dequantisation. Image i has the same dequantisation and the same stream of probes for
    every model, ``calls``, N and ``batch``. Results for the same images are therefore paired.

    Args:
        model: a score model.
        raw: raw integer images ``(N, C, H, W)``.
        calls: network calls per image, each with ``probes`` vector-Jacobian products.
        probes: random probes per call.
        scaling: map from raw images to the model's space. None: the model's own.
        batch: images per network call.
        seed: seed of dequantisation and probes.
        what: text shown with the progress.
    """
    with progress(what, len(raw)) as update:
        return bits_per_dim(
            model,
            raw,
            scaling=scaling,
            divergence=Hutchinson(probes),
            steps=calls,
            generator=torch.Generator().manual_seed(seed),
            batch=batch,
            callback=lambda done, _: update(done, "images"),
        )


def draw(
    model: Model,
    n: int,
    shape: Sequence[int],
    calls: int,
    *,
    sampler: Sampler | None = None,
    scaling: Scaling | None = None,
    autocast: torch.dtype | None = None,
    batch: int = 250,
    seed: int = SEED,
) -> tuple[Tensor, float]:
    """Draw ``n`` raw images ``(n, *shape)`` in uint8, and time it.

    Sample i starts from the same noise for every model, ``calls``, n and ``batch``.

    Args:
        model: a score model.
        n: number of samples.
        shape: shape of an image.
        calls: steps of the sampler; the default sampler makes one network call per step.
        sampler: the sampler. None: the default of :func:`scoresde.sample`.
        scaling: map between raw images and the model's space. None: the model's own.
        autocast: low precision for the network, such as ``torch.bfloat16``. None: its own.
        batch: samples per network call.
        seed: seed of the noise.

    Returns:
        The images and the seconds they took.
    """
    scaling = model.scaling if scaling is None else scaling
    generator, drawn, begun = torch.Generator().manual_seed(seed), [], time.perf_counter()
    with progress(f"samples by {calls} calls", n) as update:
        for begin in range(0, n, batch):
            size = min(batch, n - begin)
            x = sample(
                model, (size, *shape), sampler, calls, generator=spawn_generators(generator, size), autocast=autocast
            )
            drawn.append(scaling.to_raw(x).to("cpu", torch.uint8))
            update(begin + size, "samples")
    return torch.cat(drawn), time.perf_counter() - begun


def classifier_in(folder: str | Path, train: Data, test: Data, epochs: int) -> tuple[Classifier, dict[str, Any]]:
    """Return the classifier saved in ``folder``, and facts about it.

    If there is none, train one and save it there. The facts are ``epochs``, ``trained_on`` (images), ``seconds``,
    ``accuracy`` and its ``stderr`` on the test images.
    """
    if (Path(folder) / "classifier.json").is_file():
        return Classifier.load(folder)
    begun = time.perf_counter()
    with progress("classifier", epochs * len(train)) as update:
        made = fit_classifier(train, epochs=epochs, callback=lambda done, _: update(done, "images"))
    share, error = accuracy(made, test)
    facts = {"epochs": epochs, "trained_on": len(train), "seconds": time.perf_counter() - begun}
    made.save(folder, **facts, accuracy=share, stderr=error)
    return Classifier.load(folder)


def yardsticks(classifier: Classifier, train: Data, test: Data, n: int) -> dict[str, Distance]:
    """Return distances of ``n`` real images from the test images, by kind.

    The images are whole, noisy and blurred training images. ``"test images"`` compares n of the test images (at most
    half) with the others: a perfect model would get this distance.
    """
    reference = Gaussian.of(features(classifier, test.raw))
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))
    some, others = order[: min(n, len(test) // 2)], order[min(n, len(test) // 2) :]
    real = train.take(min(n, len(train)), SEED).raw
    own = distance(features(classifier, test.raw[some]), Gaussian.of(features(classifier, test.raw[others])))
    sets = {
        "training images": real,
        f"training images, noise of sd {NOISE:g}": noisy(real, train.num_values),
        "training images, 3x3 blur": blurred(real),
    }
    found = {name: distance(features(classifier, raw), reference) for name, raw in sets.items()}
    return {"test images": own, **found}


def nearest(queries: Tensor, items: Tensor, chunk: int = 500) -> tuple[Tensor, Tensor]:
    """Return the distance of each query to its nearest item, and the index.

    Distances ``(n,)`` are Euclidean, in float64; queries are ``(n, d)``, items ``(N, d)``.
    """
    items = items.flatten(1).float()
    half, found = items.square().sum(1) / 2, []
    for part in queries.flatten(1).float().split(chunk):
        index = (half - part @ items.T).argmin(1)
        found.append(((part.double() - items[index].double()).square().sum(1).sqrt(), index))
    return tuple(map(torch.cat, zip(*found, strict=True)))


class Memory(NamedTuple):
    """Whether samples are nearer to training images than test images are.

    Attributes:
        near: share of the samples that are nearer than the 1st percentile of the test images' distances; 1 % for fresh
            images.
        area: probability that a test image is farther from the training images than a sample; 1/2 for fresh images. In
            pixels, blurred images are nearer too.
    """

    near: Measured
    area: Measured


def memory(samples: Tensor, test: Tensor) -> Memory:
    """Compare distances to the nearest training image.

    They are those of samples ``(n,)`` and of test images ``(m,)``.
    """
    share = (samples < test.quantile(NEAR)).double().mean().item()
    # the percentile is itself known to sqrt(q (1 - q) / m)
    error = math.sqrt(share * (1 - share) / len(samples) + NEAR * (1 - NEAR) / len(test))
    return Memory(Measured(share, error), auroc(test, samples))


def cost(model: Model, shape: Sequence[int], batch: int, gradient: bool) -> float:
    """Return seconds per image of a network call, optionally with a gradient."""
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0)).to(model.device)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        with torch.set_grad_enabled(gradient):
            eps = model(x.requires_grad_(gradient), 0.5).eps
            if gradient:
                torch.autograd.grad(eps.sum(), x)
        times.append(time.perf_counter() - begun)
    return min(times) / batch
