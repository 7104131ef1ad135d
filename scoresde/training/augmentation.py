"""EDM's augmentation of images, with labels that keep it from leaking.

A network that knows how its input was transformed learns from the transformed images and draws plain ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scoresde.errors import ShapeError
from scoresde.nets.embeddings import AUGMENTATIONS
from scoresde.random import Generators, rand, randn

SCALE, SHIFT = 0.2, 0.125  # standard deviations: of log2 of a scale, and of a shift in sides of the image


def augmented(x0: Tensor, probability: float, generator: Generators = None) -> tuple[Tensor, Tensor]:
    """Return images, each transformed at random, and what was done to them.

    Each of six transformations happens with the given probability: mirroring left to right and top to bottom (these in
    half of the cases), scaling, rotation, stretching along a direction, and shifting. Pixels between others are
    interpolated by bicubic convolution, those outside are reflected.

    Args:
        x0: images ``(B, C, H, W)``.
        probability: that of each transformation, in [0, 1].
        generator: source of the draws.

    Returns:
        Images ``(B, C, H, W)`` and labels ``(B, 9)``, which are 0 where nothing was done. That of a stretch has the
        double of its angle: stretching along one direction is shrinking along the other.

    Raises:
        ShapeError: x0 are no images.

    References: Karras et al. 2022, appendix F.2.
    """
    if x0.ndim != 4:
        raise ShapeError("x0", tuple(x0.shape), "images (B, C, H, W), with `augment`")
    n, (H, W) = len(x0), x0.shape[2:]
    uniform = rand((n, 10), generator, x0.device, x0.dtype)
    normal = randn((n, 4), generator, x0.device, x0.dtype)
    chosen = (uniform[:, :6] < probability).to(x0.dtype)
    # 1. the amounts, 0 where nothing is done
    mirror_x, mirror_y = (chosen[:, i] * (uniform[:, 6 + i] < 0.5) for i in range(2))
    scale, stretch = chosen[:, 2] * normal[:, 0], chosen[:, 4] * normal[:, 1]
    angle = chosen[:, 3] * math.pi * (2 * uniform[:, 8] - 1)
    along = math.pi * (2 * uniform[:, 9] - 1)
    shift = chosen[:, 5:6] * normal[:, 2:]
    # 2. the map from places in the new image to places in the old one, in pixels about the centre
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    back = _diagonal(1 - 2 * mirror_x, 1 - 2 * mirror_y) @ _diagonal(*(2 ** (-SCALE * scale),) * 2) @ _rotation(-angle)
    back = back @ _rotation(along) @ _diagonal(2 ** (-SCALE * stretch), 2 ** (SCALE * stretch)) @ _rotation(-along)
    move = SHIFT * shift * x0.new_tensor([W, H])
    offset = -(back @ move[:, :, None])
    sides = _diagonal(one * W, one * H)
    theta = torch.cat([sides.inverse() @ back @ sides, sides.inverse() @ offset * 2], dim=2)
    grid = nn.functional.affine_grid(theta, list(x0.shape), align_corners=False)
    new = nn.functional.grid_sample(x0, grid, "bicubic", "reflection", align_corners=False)
    labels = [mirror_x, mirror_y, scale, torch.cos(angle) - 1, torch.sin(angle)]
    labels += [stretch * torch.cos(2 * along), stretch * torch.sin(2 * along), shift[:, 0], shift[:, 1]]
    assert len(labels) == AUGMENTATIONS
    plain = (chosen.sum(1) == 0).reshape(-1, 1, 1, 1)
    return torch.where(plain, x0, new), torch.stack([label + zero for label in labels], dim=1)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    """Return matrices ``(B, 2, 2)`` that scale the two axes."""
    return torch.diag_embed(torch.stack([x, y], dim=1))


def _rotation(angle: Tensor) -> Tensor:
    """Return matrices ``(B, 2, 2)`` that rotate by angles ``(B,)``."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
