"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.errors import UnknownNameError
from scoresde.training.config import check_half_lives


@checked
class EMA:
    """Exponential moving averages of a module's floating tensors.

    After n updates an average decays by the smaller of 2^(-1/half_life) and (1 + n)/(10 + n), so that the initial
    weights are soon forgotten. All tensors of an average are updated at once, without a host sync.

    Args:
        module: The module that is trained.
        half_life: Steps after which a weight's influence has halved, positive; or several by name, such as
            ``{"fast": 500, "slow": 20_000}``. Methods called without a name use the first.

    Attributes:
        half_lives: half-lives by name, in steps.
        updates: number of updates so far.
    """

    def __init__(self, module: nn.Module, half_life: float | Mapping[str, float]):
        self.module, self.updates = module, 0
        self.half_lives: dict[str, float] = check_half_lives(half_life)
        self._live = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self.averages = {name: {k: v.clone() for k, v in self._live.items()} for name in self.half_lives}
        self._lists = [list(average.values()) for average in self.averages.values()]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the averages."""
        return tuple(self.half_lives)

    @torch.no_grad()
    def update(self) -> None:
        """Add the module's current weights to the averages."""
        live = list(self._live.values())
        for average, half_life in zip(self._lists, self.half_lives.values(), strict=True):
            decay = min(2 ** (-1 / half_life), (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(average, live, 1 - decay)
        self.updates += 1

    @checked
    def average(self, name: str | None = None) -> dict[str, Tensor]:
        """Return the averaged tensors by their names in the module.

        Raises:
            UnknownNameError: an unknown average.
        """
        name = self.names[0] if name is None else name
        if name not in self.averages:
            raise UnknownNameError("average", name, self.names)
        return self.averages[name]

    @checked
    def state_dict(self, name: str | None = None) -> dict[str, Tensor]:
        """Return the module's state dict with averages of floating tensors."""
        return self.module.state_dict() | self.average(name)

    def load(self, averages: Mapping[str, Mapping[str, Tensor]], updates: int) -> None:
        """Load the state dict of each average, saved after ``updates`` updates.

        Raises:
            KeyError: a missing average, or one without all tensors.
        """
        for name, average in self.averages.items():
            for key, value in average.items():
                value.copy_(averages[name][key])
        self.updates = updates
