"""Point sets in the plane. Each is ``f(n, generator=None, noise=...)`` and gives ``(n, 2)`` float32 points."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.data.dataset import Data
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.random import rand


def _uniforms(n: int, columns: int, generator: torch.Generator | None) -> list[Tensor]:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ArgumentError("n", n, "a number of points, 1 or more")
    return list(rand((columns, n), generator, dtype=torch.float32))


def _blur(points: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    """Add N(0, noise² I)."""
    if not (math.isfinite(noise) and noise >= 0):
        raise ArgumentError("noise", noise, "a standard deviation, 0 or more")
    device = "cpu" if generator is None else generator.device
    return points + noise * torch.randn(points.shape, generator=generator, device=device).cpu()


def two_moons(n: int, generator: torch.Generator | None = None, noise: float = 0.05) -> Tensor:
    """Two interleaved half circles of radius 1, about (0, 0) and (1, 1/2)."""
    u, side = _uniforms(n, 2, generator)
    x, y = torch.cos(math.pi * u), torch.sin(math.pi * u)
    upper = side < 0.5
    points = torch.stack([torch.where(upper, x, 1 - x), torch.where(upper, y, 0.5 - y)], dim=1)
    return _blur(points, noise, generator)


def swiss_roll(n: int, generator: torch.Generator | None = None, noise: float = 0.03) -> Tensor:
    """A spiral r = 2 θ/θ_max, with θ from 3π/2 to θ_max = 9π/2."""
    (u,) = _uniforms(n, 1, generator)
    theta = math.pi * (1.5 + 3 * u)
    r = 2 * theta / (4.5 * math.pi)
    return _blur(torch.stack([r * torch.cos(theta), r * torch.sin(theta)], dim=1), noise, generator)


def checkerboard(n: int, generator: torch.Generator | None = None, noise: float = 0.0) -> Tensor:
    """Uniform on the dark cells of a 4 by 4 board over [-2, 2]²: floor(x) + floor(y) is even."""
    u, v, cell = _uniforms(n, 3, generator)
    cell = (8 * cell).floor().clamp(max=7)
    column = (cell / 2).floor()
    row = 2 * (cell % 2) + column % 2
    return _blur(torch.stack([column + u, row + v], dim=1) - 2, noise, generator)


def rings(n: int, generator: torch.Generator | None = None, noise: float = 0.05) -> Tensor:
    """Three circles about the origin, of radius 1/2, 1 and 3/2, chosen in proportion to their length."""
    u, which = _uniforms(n, 2, generator)
    radius = 0.5 + 0.5 * (which >= 1 / 6).float() + 0.5 * (which >= 1 / 2).float()
    angle = 2 * math.pi * u
    return _blur(torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1), noise, generator)


def gaussian_grid(n: int, generator: torch.Generator | None = None, noise: float = 0.1) -> Tensor:
    """Twenty-five Gaussians N(μ, noise² I) of equal weight, μ on the integer points of [-2, 2]²."""
    u, v = _uniforms(n, 2, generator)
    return _blur((5 * torch.stack([u, v], dim=1)).floor().clamp(max=4) - 2, noise, generator)


TOYS: dict[str, Callable[..., Tensor]] = {
    "two-moons": two_moons,
    "swiss-roll": swiss_roll,
    "checkerboard": checkerboard,
    "rings": rings,
    "gaussian-grid": gaussian_grid,
}


def load_toy(name: str, n: int = 20_000, held_out: int = 2_000, seed: int = 0) -> tuple[Data, Data]:
    """Fresh draws of a toy: ``n`` points to train on, then ``held_out`` more, scaled by the training points.

    Raises:
        UnknownNameError: no toy has this name.
    """
    toy = TOYS.get(name.replace("_", "-"))
    if toy is None:
        raise UnknownNameError("name", name, TOYS)
    generator = torch.Generator().manual_seed(seed)
    train = Data(name.replace("_", "-"), toy(n, generator))
    test = Data(train.name, toy(held_out, generator), scale=train.scale, shift=train.shift, normalize="given")
    return train, test
