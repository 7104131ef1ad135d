"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.errors import UnknownNameError
from scoresde.training.config import check_half_lives


class EMA:
    """Exponential moving averages of a module's floating parameters and buffers, their horizons half-lives in steps.

    Each decays by 2^(-1/half_life), but at most (1 + n)/(10 + n) after n updates, so that the start is soon forgotten.
    All tensors of an average are updated at once, without a host sync.

    Args:
        module: the module that is trained.
        half_life: steps after which a weight's influence has halved, positive; or several of them by name, such as
            ``{"fast": 500, "slow": 20_000}``. The first is the average that methods mean without a name.
    """

    def __init__(self, module: nn.Module, half_life: float | Mapping[str, float]):
        self.module, self.half_lives, self.updates = module, check_half_lives(half_life), 0
        self._live = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self.averages = {name: {k: v.clone() for k, v in self._live.items()} for name in self.half_lives}
        self._lists = [list(average.values()) for average in self.averages.values()]

    @property
    def names(self) -> tuple[str, ...]:
        """The averages' names, the first one first."""
        return tuple(self.half_lives)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now."""
        live = list(self._live.values())
        for average, half_life in zip(self._lists, self.half_lives.values(), strict=True):
            decay = min(2 ** (-1 / half_life), (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(average, live, 1 - decay)
        self.updates += 1

    def average(self, name: str | None = None) -> dict[str, Tensor]:
        """The averaged tensors by their names in the module.

        Raises:
            UnknownNameError: there is no such average.
        """
        name = self.names[0] if name is None else name
        if name not in self.averages:
            raise UnknownNameError("average", name, self.names)
        return self.averages[name]

    def state_dict(self, name: str | None = None) -> dict[str, Tensor]:
        """The averaged state of the module, by the module's own names; what is not floating is as in the module."""
        return self.module.state_dict() | self.average(name)

    def load(self, averages: Mapping[str, Mapping[str, Tensor]], updates: int) -> None:
        """Go on from :meth:`state_dict` of each average, saved after ``updates`` updates.

        Raises:
            KeyError: an average or one of its tensors is missing.
        """
        for name, average in self.averages.items():
            for key, value in average.items():
                value.copy_(averages[name][key])
        self.updates = updates
