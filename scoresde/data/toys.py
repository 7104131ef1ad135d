"""Point sets in the plane.

A toy is a function ``f(n, generator=None, noise=...)`` that returns ``(n, 2)`` float32 points. It raises ArgumentError
if ``n`` is not a positive integer, or ``noise``, a standard deviation, is negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import number, whole
from scoresde.data.dataset import Data
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.random import rand


def _uniforms(n: int, columns: int, generator: torch.Generator | None) -> list[Tensor]:
    return list(rand((columns, whole("n", n)), generator, dtype=torch.float32))


def _blur(points: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    """Add N(0, noise² I)."""
    if number("noise", noise) < 0:
        raise ArgumentError("noise", noise, "a standard deviation >= 0")
    device = "cpu" if generator is None else generator.device
    return points + noise * torch.randn(points.shape, generator=generator, device=device).cpu()


@checked
def two_moons(n: int, generator: torch.Generator | None = None, noise: float = 0.05) -> Tensor:
    """Draw from half circles of radius 1 about (0, 0) and (1, 1/2)."""
    u, side = _uniforms(n, 2, generator)
    x, y = torch.cos(math.pi * u), torch.sin(math.pi * u)
    upper = side < 0.5
    points = torch.stack([torch.where(upper, x, 1 - x), torch.where(upper, y, 0.5 - y)], dim=1)
    return _blur(points, noise, generator)


@checked
def swiss_roll(n: int, generator: torch.Generator | None = None, noise: float = 0.03) -> Tensor:
    """Draw from a spiral r = 2 θ/θ_max, with θ from 3π/2 to θ_max = 9π/2."""
    (u,) = _uniforms(n, 1, generator)
    theta = math.pi * (1.5 + 3 * u)
    r = 2 * theta / (4.5 * math.pi)
    return _blur(torch.stack([r * torch.cos(theta), r * torch.sin(theta)], dim=1), noise, generator)


@checked
def checkerboard(n: int, generator: torch.Generator | None = None, noise: float = 0.0) -> Tensor:
    """Draw uniformly from the dark cells of a 4 by 4 board over [-2, 2]².

    A cell is dark if floor(x) + floor(y) is even.
    """
    u, v, cell = _uniforms(n, 3, generator)
    cell = (8 * cell).floor().clamp(max=7)
    column = (cell / 2).floor()
    row = 2 * (cell % 2) + column % 2
    return _blur(torch.stack([column + u, row + v], dim=1) - 2, noise, generator)


@checked
def rings(n: int, generator: torch.Generator | None = None, noise: float = 0.05) -> Tensor:
    """Draw uniformly from circles of radius 1/2, 1 and 3/2 about the origin."""
    u, which = _uniforms(n, 2, generator)
    radius = 0.5 + 0.5 * (which >= 1 / 6).float() + 0.5 * (which >= 1 / 2).float()
    angle = 2 * math.pi * u
    return _blur(torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1), noise, generator)


@checked
def gaussian_grid(n: int, generator: torch.Generator | None = None, noise: float = 0.1) -> Tensor:
    """Draw from 25 Gaussians N(μ, noise² I), μ the integer points of [-2, 2]²."""
    u, v = _uniforms(n, 2, generator)
    return _blur((5 * torch.stack([u, v], dim=1)).floor().clamp(max=4) - 2, noise, generator)


#: every toy by name: a function of the number of points and a generator
TOYS: dict[str, Callable[..., Tensor]] = {
    "two-moons": two_moons,
    "swiss-roll": swiss_roll,
    "checkerboard": checkerboard,
    "rings": rings,
    "gaussian-grid": gaussian_grid,
}


@checked
def load_toy(name: str, n: int = 20_000, held_out: int = 2_000, seed: int = 0) -> tuple[Data, Data]:
    """Draw a training set and a held-out set on one scale.

    Both are scaled by the training points.

    Args:
        name: key of :data:`TOYS`, with - or _.
        n, held_out: numbers of points, default 20000 and 2000.
        seed: seed of both draws.

    Raises:
        UnknownNameError: no toy has this name.
    """
    toy = TOYS.get(name.replace("_", "-"))
    if toy is None:
        raise UnknownNameError("name", name, TOYS)
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    train = Data(name.replace("_", "-"), toy(n, generator), normalize="standard")
    test = Data(train.name, toy(held_out, generator), scale=train.scale, shift=train.shift, normalize="given")
    return train, test
