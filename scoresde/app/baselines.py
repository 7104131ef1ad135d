"""What a score model has to beat: densities that are fitted in seconds, scored on the same held-out items."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoresde.data import Data
from scoresde.models import Moments

COMPONENTS = 60
FIT_ON = 4000  # training items at most


@dataclass(frozen=True)
class Baseline:
    """A fitted density.

    Attributes:
        name: what it is.
        log_prob: nats an item ``(N,)`` of the held-out data, in the units of the raw data.
        note: how it was fitted.
    """

    name: str
    log_prob: Tensor
    note: str


def fit_baselines(train: Data, held_out: Data, seed: int = 0) -> list[Baseline]:
    """One Gaussian and a mixture of 60, fitted to (dequantised) training data, on (dequantised) held-out data."""
    generator = torch.Generator().manual_seed(seed)
    x = train.to_model(train.raw, generator, torch.float64).flatten(1)
    y = held_out.to_model(held_out.raw, generator, torch.float64)
    gaussian = Moments(*train.moments())
    log_prob = gaussian.log_prob(y, 1.0, 0.0) + held_out.log_volume
    note = "diagonal covariance" if gaussian.is_diagonal else "full covariance"
    return [Baseline("Gaussian", log_prob, note), _mixture(x.numpy(), y.flatten(1).numpy(), held_out.log_volume, seed)]


def _mixture(x: np.ndarray, y: np.ndarray, log_volume: float, seed: int) -> Baseline:
    """A Gaussian mixture: full covariances where ten items speak for each of their rows, diagonal ones elsewhere."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = x[np.random.default_rng(seed).permutation(len(x))[:FIT_ON]]
    components = max(1, min(COMPONENTS, len(x) // 10))
    kind = "full" if len(x) >= 10 * components * x.shape[1] else "diag"
    mixture = GaussianMixture(
        components, covariance_type=kind, reg_covar=1e-5 * float(x.var(0).mean()), random_state=seed, max_iter=50
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x)
    word = {"diag": "diagonal", "full": "full"}[kind]
    log_prob = torch.from_numpy(mixture.score_samples(y)) + log_volume
    return Baseline(f"mixture of {components} Gaussians", log_prob, f"{word} covariances, by expectation maximisation")
