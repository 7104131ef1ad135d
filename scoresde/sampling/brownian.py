"""Brownian paths that can be looked at ahead of time and refined later."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors import ArgumentError
from scoresde.random import Generators, randn


class BrownianPaths:
    """Brownian paths of a batch, one a sample, walked from left to right.

    A path keeps each value that was looked at ahead, until the walk has passed it. Between known points, new values
    come from the Brownian bridge. A step can thus be tried, rejected and made smaller without changing the law of the
    noise.

    Args:
        start: Clock at the start, where the paths are zero.
        like: Tensor ``(B, n)`` that sets shape, dtype and device.
        generator: Source of the noise: one generator, or a list of B. With a list, sample i draws from generator i
            only.

    Raises:
        ArgumentError: The list has not B generators.

    References: Rackauckas & Nie 2017 (rejection sampling with memory).
    """

    def __init__(self, start: float, like: Tensor, generator: Generators = None) -> None:
        self.now, self.here = like.new_full((len(like),), start), torch.zeros_like(like)
        self.generator = list(generator) if isinstance(generator, (list, tuple)) else generator
        if isinstance(self.generator, list) and len(self.generator) != len(like):
            got = f"a list of {len(self.generator)}"
            raise ArgumentError("generator", got, f"one generator or {len(like)}, one a sample")
        # a stack for each sample: its last point later than now is the nearest one; entries at or before now are free
        self.points = like.new_full((0, len(like)), -math.inf)
        self.values = like.new_zeros((0, *like.shape))

    def look(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(point, value)`` of the paths at s ``(B,)`` > now.

        Where an earlier point is known ahead, it is the last one before s.
        """
        ahead = (self.points > self.now).sum(0)
        rows = torch.arange(len(s), device=s.device)
        known = ahead > 0
        if len(self.points):
            nearest = (ahead - 1).clamp(min=0)
            right, end = self.points[nearest, rows], self.values[nearest, rows]
            new = ~known | (right > s)
        else:
            right, end, new = self.now, self.here, ~known
        if bool(new.any()):
            self._push(rows[new], ahead[new], s[new], known[new], right[new], end[new])
        index = (self.points > s).sum(0)  # the first entry of the stack that is not later than s
        return self.points[index, rows], self.values[index, rows]

    def _push(self, rows: Tensor, index: Tensor, s: Tensor, known: Tensor, right: Tensor, end: Tensor) -> None:
        """Draw the paths of ``rows`` at s.

        The draw is free where nothing is known ahead, else between now and ``right``.
        """
        now, here = self.now[rows], self.here[rows]
        q = torch.where(known, (s - now) / (right - now), 0.0)
        std = ((s - now) * torch.where(known, 1 - q, 1.0)).sqrt()
        generator = self.generator
        if isinstance(generator, list):
            generator = [generator[i] for i in rows.tolist()]
        z = randn(here.shape, generator, here.device, here.dtype)
        if int(index.max()) == len(self.points):
            self.points = torch.cat([self.points, torch.full_like(self.now, -math.inf)[None]])
            self.values = torch.cat([self.values, torch.zeros_like(self.here)[None]])
        self.points[index, rows] = s
        self.values[index, rows] = here + q[:, None] * (end - here) + std[:, None] * z

    @property
    def depth(self) -> int:
        """The largest number of points known ahead of any sample so far."""
        return len(self.points)

    def walk(self, accept: Tensor, s: Tensor, value: Tensor) -> None:
        """Go to (s, value), a result of :meth:`look`, where ``accept``."""
        self.now = torch.where(accept, s, self.now)
        self.here = torch.where(accept[:, None], value, self.here)

    def keep(self, mask: Tensor) -> None:
        """Drop the samples outside the mask ``(B,)``."""
        if isinstance(self.generator, list):
            self.generator = [g for g, kept in zip(self.generator, mask.tolist(), strict=True) if kept]
        self.now, self.here = self.now[mask], self.here[mask]
        self.points, self.values = self.points[:, mask], self.values[:, mask]
