"""Families of problems on which defaults are judged.

A family draws problems from seeds. Those of even seeds may serve to choose a setting; those of odd seeds are for
reports alone. Each problem is a Gaussian mixture, whose score, density and samples are exact.

Samplers are tried on variants of a problem too: its moments hidden, wrong moments, a condition, guidance, an error of
the network. Trained networks are further problems, without an exact density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import common  # noqa: F401  first: it sets how threads wait

# isort: split
import numpy as np
import torch
from torch import Tensor

from scoresde import SDE, GaussianMixture, Model
from scoresde.data import load_data
from scoresde.guidance import classifier_free_guidance
from scoresde.models import Estimate, Moments, Wrapper
from scoresde.models.conditions import Condition
from scoresde.sde import Level

Draw = np.random.Generator


def _means(points: object, std: float, rotation: np.ndarray | None = None) -> GaussianMixture:
    """Return a mixture of isotropic Gaussians at ``points``."""
    means = np.asarray(points, dtype=float)
    return GaussianMixture(torch.from_numpy(means if rotation is None else means @ rotation), std**2)


def _rotation(draw: Draw, d: int) -> np.ndarray:
    """Return a random rotation ``(d, d)``."""
    return np.linalg.qr(draw.standard_normal((d, d)))[0]


def narrow_modes(draw: Draw) -> GaussianMixture:
    """Draw 2 to 4 modes of std .01 to .05, at distances near 10."""
    d, k = int(draw.integers(1, 4)), int(draw.integers(2, 5))
    points = draw.standard_normal((k, d))
    points *= 10 / np.abs(points[:, None] - points[None]).sum(-1).max()
    return _means(points, draw.uniform(0.01, 0.05))


def circle(draw: Draw) -> GaussianMixture:
    """Draw 200 points on a circle, with std .01 to .05."""
    angle = np.sort(draw.uniform(0, 2 * math.pi, 200))
    return _means(np.stack([np.cos(angle), np.sin(angle)], 1), draw.uniform(0.01, 0.05))


def swiss_roll(draw: Draw) -> GaussianMixture:
    """Draw 200 points on a spiral of unit scale, with std .01 to .05."""
    angle = 1.5 * math.pi * (1 + 2 * draw.uniform(0, 1, 200))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1)
    return _means(points / points.std(), draw.uniform(0.01, 0.05))


def cube_corners(draw: Draw) -> GaussianMixture:
    """Draw the corners of a cube in 4 to 8 dimensions, with std .01 to .05."""
    d = int(draw.integers(4, 9))
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * d, indexing="ij"), -1).reshape(-1, d)
    return _means(corners, draw.uniform(0.01, 0.05), _rotation(draw, d))


def constant_coordinates(draw: Draw) -> GaussianMixture:
    """Draw 8 modes in 32 dimensions, half of which have std 1e-5 to 1e-3."""
    means, stds = np.zeros((8, 32)), np.full((8, 32), 10 ** draw.uniform(-5, -3))
    means[:, :16] = draw.standard_normal((8, 16))
    stds[:, :16] = draw.uniform(0.1, 0.5, (8, 16))
    means[:, 16:] = draw.standard_normal(16)
    return GaussianMixture(torch.from_numpy(means), torch.from_numpy(stds**2))


def low_rank(draw: Draw) -> GaussianMixture:
    """Draw 8 modes in a subspace of 4 of 32 dimensions, plus noise of std .01."""
    basis = _rotation(draw, 32)[:4]
    means = draw.standard_normal((8, 4)) @ basis
    axes = draw.uniform(0.1, 0.5, (8, 4))[..., None] * basis
    return GaussianMixture(torch.from_numpy(means), torch.from_numpy(axes.swapaxes(1, 2) @ axes + 1e-4 * np.eye(32)))


def heavy_tails(draw: Draw) -> GaussianMixture:
    """Draw a scale mixture in 1 to 16 dimensions, with stds from .05 to 5."""
    d = int(draw.choice([1, 2, 4, 16]))
    stds = np.geomspace(0.05, 5, 8)
    weights = draw.dirichlet(np.full(8, 4.0)) + 0.01
    return GaussianMixture(torch.zeros(8, d), torch.from_numpy(stds**2), torch.from_numpy(weights))


def digit_cloud(draw: Draw) -> GaussianMixture:
    """Draw 100 real digits in [-1, 1] of 64 pixels, with std .03 to .2."""
    digits, _ = load_data("digits")
    chosen = torch.from_numpy(draw.choice(len(digits.raw), 100, replace=False))
    points = digits.raw[chosen].double().reshape(100, -1)
    return _means(points / points.max() * 2 - 1, draw.uniform(0.03, 0.2))


def _anisotropic(draw: Draw, d: int, largest: float) -> GaussianMixture:
    axes = np.stack([_rotation(draw, d) for _ in range(8)])
    stds = draw.uniform(0.05, largest, (8, d))
    covariances = (axes * stds[:, None] ** 2) @ axes.swapaxes(1, 2)
    return GaussianMixture(torch.from_numpy(draw.standard_normal((8, d))), torch.from_numpy(covariances))


def mixtures(draw: Draw) -> GaussianMixture:
    """Draw 8 anisotropic Gaussians in 2 to 64 dimensions, with stds from .05."""
    d = int(draw.choice([2, 8, 64]))
    return _anisotropic(draw, d, 0.4 if d == 2 else 1.0)


def _moved(mixture: GaussianMixture, scale: float, offset: Tensor | float) -> GaussianMixture:
    values, vectors = scale**2 * mixture.values, mixture.vectors
    covariances = values if vectors is None else vectors * values[:, None] @ vectors.mT
    return GaussianMixture(scale * mixture.means + offset, covariances, mixture.weights)


def offset(draw: Draw) -> GaussianMixture:
    """Draw mixtures in 2 dimensions about a mean at distance 50."""
    return _moved(_anisotropic(draw, 2, 0.4), 1.0, torch.from_numpy(50 * _rotation(draw, 2)[0]))


def large(draw: Draw) -> GaussianMixture:
    """Draw mixtures in 2 dimensions of scale 255."""
    return _moved(_anisotropic(draw, 2, 0.4), 255.0, 0.0)


def small(draw: Draw) -> GaussianMixture:
    """Draw mixtures in 2 dimensions of scale 1e-3."""
    return _moved(_anisotropic(draw, 2, 0.4), 1e-3, 0.0)


FAMILIES: dict[str, Callable[[Draw], GaussianMixture]] = {
    family.__name__: family
    for family in (
        mixtures,
        narrow_modes,
        circle,
        swiss_roll,
        cube_corners,
        constant_coordinates,
        low_rank,
        heavy_tails,
        digit_cloud,
        offset,
        large,
        small,
    )
}


def mixture(family: str, seed: int) -> GaussianMixture:
    """Return the problem of a family with this seed."""
    number = list(FAMILIES).index(family)
    return FAMILIES[family](np.random.default_rng([seed, number]))


# ---- variants of a problem ------------------------------------------------------------------------------------------


class Unknown(Wrapper):
    """A model that tells nothing of its data, or has wrong moments."""

    def __init__(self, model: Model, moments: Moments | None = None):
        super().__init__(model)
        self.moments, self.data_scale = moments, None

    def knows_mean(self, cond: Condition = None) -> bool:
        return self.moments is not None and cond is None

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        return self.model.estimate(x, level, cond)


class Erring(Wrapper):
    """A model whose x0 has a smooth error, as a network's has.

        x0' = x0 + size s sin(W x/S + b),    S = sqrt(alpha^2 s^2 + sigma^2), s the std of the data

    The error shrinks with the noise near the data, as the x0 of a network with ``predicts="edm"`` does.
    """

    def __init__(self, model: Model, size: float, seed: int):
        super().__init__(model)
        assert model.moments is not None
        self.size, self.std, self.mean = size, model.moments.std, model.moments.mean.reshape(1, -1)
        draw, n = np.random.default_rng(seed), model.moments.mean.numel()
        self.W = torch.from_numpy(draw.standard_normal((n, n)) / math.sqrt(n))
        self.b = torch.from_numpy(draw.uniform(0, 2 * math.pi, n))

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        exact = self.model.estimate(x, level, cond)
        flat = x.reshape(len(x), -1)
        total = math.hypot(level.alpha * self.std, level.sigma)
        noise = level.sigma / total
        angle = (flat - level.alpha * self.mean.to(x)) / total @ self.W.to(x) + self.b.to(x)
        error = (self.size * noise * self.std * angle.sin()).reshape(x.shape)
        return Estimate(exact.x0 + error, exact.eps - level.alpha / level.sigma * error, level)


@dataclass(frozen=True)
class Problem:
    """A model to sample from, by a family, its seed and a variant.

    Attributes:
        name: Family, seed and variant.
        model: The model.
        shape: Shape of one sample.
        cond: Labels of ``n`` samples, or no condition.
    """

    name: str
    model: Model
    shape: tuple[int, ...]
    labelled: int = 0

    def cond(self, n: int) -> Condition:
        """Return the condition of n samples, each class in turn, or None."""
        return {"y": torch.arange(n) % self.labelled} if self.labelled else None


def _wrong_moments(model: Model, seed: int) -> Moments:
    moments = model.moments
    assert moments is not None
    draw = np.random.default_rng(seed)
    shift = torch.from_numpy(draw.standard_normal(moments.mean.shape)) * 0.3 * moments.std
    return Moments(moments.mean + shift, moments.covariance * draw.uniform(0.5, 2))


VARIANTS: dict[str, Callable[[Model, int], Model]] = {
    "known": lambda model, seed: model,
    "hidden": lambda model, seed: Unknown(model),
    "wrong": lambda model, seed: Unknown(model, _wrong_moments(model, seed)),
    "erring": lambda model, seed: Erring(model, 0.05, seed),
    "class": lambda model, seed: model,
    "guided-2": lambda model, seed: classifier_free_guidance(model, 2.0),
    "guided-5": lambda model, seed: classifier_free_guidance(model, 5.0),
    "guided-7.5": lambda model, seed: classifier_free_guidance(model, 7.5),
}
LABELLED = ("class", "guided-2", "guided-5", "guided-7.5")


def problem(family: str, seed: int, sde: SDE, variant: str = "known") -> Problem:
    """Return the problem of a family with this seed, in a variant."""
    drawn = mixture(family, seed)
    model = VARIANTS[variant](drawn.model(sde), seed)
    labelled = len(drawn.weights) if variant in LABELLED else 0
    return Problem(f"{family} {seed} {variant}", model, drawn.shape, labelled)
