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
FULL_COVARIANCE = 256  # dimensions up to which full covariances are tried


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
    note = "full covariance" if gaussian.vectors is not None else "diagonal covariance"
    return [Baseline("Gaussian", log_prob, note), _mixture(x.numpy(), y.flatten(1).numpy(), held_out.log_volume, seed)]


def _mixture(x: np.ndarray, y: np.ndarray, log_volume: float, seed: int) -> Baseline:
    """A Gaussian mixture whose covariances and regularisation are those that score best on a fifth of ``x``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = x[np.random.default_rng(seed).permutation(len(x))[:FIT_ON]]
    variance, dimensions = float(x.var(0).mean()), x.shape[1]
    components = max(1, min(COMPONENTS, len(x) // 10))
    fifth = max(1, len(x) // 5)

    def fit(kind: str, share: float, points: np.ndarray) -> GaussianMixture:
        mixture = GaussianMixture(
            components, covariance_type=kind, reg_covar=share * variance, random_state=seed, max_iter=50
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return mixture.fit(points)

    choices = [("diag", 1e-5)]
    if dimensions <= FULL_COVARIANCE:
        choices.insert(0, ("full", 1e-4 if dimensions <= 8 else 3e-2))
    if len(choices) > 1 and len(x) - fifth > components:
        choices.sort(key=lambda choice: fit(*choice, x[fifth:]).score(x[:fifth]))
    kind, share = choices[-1]
    best = fit(kind, share, x)
    word = {"diag": "diagonal", "full": "full"}[kind]
    log_prob = torch.from_numpy(best.score_samples(y)) + log_volume
    return Baseline(f"mixture of {components} Gaussians", log_prob, f"{word} covariances, by expectation maximisation")
