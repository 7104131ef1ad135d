"""The one interface that samplers, likelihood and training see."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.errors import ArgumentError, DTypeError
from scoresde.models.estimate import Estimate
from scoresde.models.moments import Moments
from scoresde.sde import SDE, Level


class Model(nn.Module):
    """A score model under an SDE: :meth:`estimate` answers at one noise level; everything else is built on it.

    Attributes:
        sde: the forward process.
        moments: mean and covariance of the data, where known (likelihoods match their prior to them), or None.
    """

    sde: SDE
    moments: Moments | None = None

    @abstractmethod
    def estimate(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Estimate:
        """The estimate at x_t = ``x`` ``(B, *D)`` and a level made by ``sde.level`` or ``sde.levels``."""

    def forward(self, x: Tensor, t: float | Tensor, cond: Mapping[str, Tensor] | None = None) -> Estimate:
        """The estimate at x_t = ``x`` ``(B, *D)`` and a time ``t``, a number, ``()`` or ``(B,)`` in [0, 1].

        Raises:
            ShapeError: a time of another shape.
            ArgumentError: a time outside [0, 1]; a ``cond`` that is not a mapping of names to tensors.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise DTypeError("x", getattr(x, "dtype", type(x).__name__), "a floating-point tensor (B, *D)")
        if cond is not None and not isinstance(cond, Mapping):
            raise ArgumentError("cond", type(cond).__name__, "a mapping from names to tensors, such as {'y': labels}")
        return self.estimate(x, self.sde.level(t, x), cond)

    def knows_mean(self, cond: Mapping[str, Tensor] | None = None) -> bool:
        """Whether :attr:`moments` has the mean of the data that ``cond`` leaves; given any, it has their scale only."""
        return self.moments is not None and cond is None

    def under(self, sde: SDE) -> Model:
        """This model under another SDE, by matching log-SNR: the same x0 and eps (P12 for a respaced DDPM)."""
        from scoresde.models.under import ModelUnder

        return ModelUnder(self, sde)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters or buffers live (the CPU, if it has none)."""
        first = next(self.parameters(), None)
        if first is None:
            first = next(self.buffers(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the model's parameters or buffers (torch's default, if it has none)."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()
