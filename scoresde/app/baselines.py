"""Baselines that a score model has to beat.

They are densities that are fitted in seconds and scored on the same held-out items.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.data import Data
from scoresde.models import Moments

COMPONENTS = 60
FIT_ON = 4000  # training items at most
ITEMS_A_ROW = 10  # items that a component needs, and for full covariances each row of one


@dataclass(frozen=True)
class Baseline:
    """A fitted density.

    Attributes:
        name: name of the density.
        log_prob: log p of the held-out items ``(N,)``, in nats, in the units of the raw data.
        note: how it was fitted.
    """

    name: str
    log_prob: Tensor
    note: str


def fit_baselines(train: Data, held_out: Data, seed: int = 0) -> list[Baseline]:
    """Fit a Gaussian and a mixture of 60 Gaussians, and score them.

    Both are fitted to training data and scored on held-out data, dequantised if they are integers.

    Args:
        train, held_out: the data.
        seed: seed of dequantisation and fit.
    """
    generator = torch.Generator().manual_seed(seed)
    x = train.to_model(train.raw, generator, torch.float64).flatten(1)
    y = held_out.to_model(held_out.raw, generator, torch.float64)
    gaussian = Moments(*train.moments())
    log_prob = gaussian.log_prob(y, 1.0, 0.0) + held_out.log_volume
    note = "full covariance" if gaussian.vectors is not None else "diagonal covariance"
    return [Baseline("Gaussian", log_prob, note), _mixture(x.numpy(), y.flatten(1).numpy(), held_out.log_volume, seed)]


def _mixture(x: NDArray[Any], y: NDArray[Any], log_volume: float, seed: int) -> Baseline:
    """Fit a Gaussian mixture to x and score y.

    Covariances are full if there are ten items for each row of one, and diagonal otherwise.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = x[np.random.default_rng(seed).permutation(len(x))[:FIT_ON]]
    components = max(1, min(COMPONENTS, len(x) // ITEMS_A_ROW))
    kind = "full" if len(x) >= ITEMS_A_ROW * components * x.shape[1] else "diag"
    mixture = GaussianMixture(
        components, covariance_type=kind, reg_covar=1e-5 * float(x.var(0).mean()), random_state=seed, max_iter=50
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x)
    word = {"diag": "diagonal", "full": "full"}[kind]
    log_prob = torch.from_numpy(mixture.score_samples(y)) + log_volume
    return Baseline(f"mixture of {components} Gaussians", log_prob, f"{word} covariances, by expectation maximisation")
