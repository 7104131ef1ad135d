"""An exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.errors import ArgumentError


class EMA:
    """The exponential moving average of a module's floating parameters and buffers, its horizon a half-life in steps.

    The decay is 2^(-1/half_life), but at most (1 + n)/(10 + n) after n updates, so that the start is soon forgotten.

    Args:
        module: the module that is trained.
        half_life: steps after which a weight's influence has halved, positive.
    """

    def __init__(self, module: nn.Module, half_life: float):
        if not half_life > 0:
            raise ArgumentError("half_life", half_life, "a positive number of steps")
        self.module, self.half_life, self.updates = module, float(half_life), 0
        self._live = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self.average = {name: value.clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now."""
        decay = min(2 ** (-1 / self.half_life), (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.average.values()), list(self._live.values()), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged state of the module, by the module's own names; what is not floating is as in the module."""
        return self.module.state_dict() | self.average

    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Go on from an average saved with :meth:`state_dict` after ``updates`` updates."""
        for name, value in self.average.items():
            value.copy_(average[name])
        self.updates = updates
