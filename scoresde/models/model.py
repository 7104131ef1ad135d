"""The one interface that samplers, likelihood and training see."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.data import Scaling
from scoresde.errors import ArgumentError, DTypeError
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate
from scoresde.models.moments import Moments
from scoresde.sde import SDE, Level


class Model(nn.Module):
    """A score model under an SDE: :meth:`estimate` answers at one noise level; everything else is built on it.

    Attributes:
        sde: the forward process.
        moments: mean and covariance of the data, where known (likelihoods match their prior to them), or None.
        scaling: the map from the data's units to the model's, where known, or None.
    """

    sde: SDE
    moments: Moments | None = None
    scaling: Scaling | None = None

    @abstractmethod
    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        """The estimate at x_t = ``x`` ``(B, *D)`` and a level made by ``sde.level`` or ``sde.levels``."""

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition = None) -> Estimate:
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

    def knows_mean(self, cond: Condition = None) -> bool:
        """Whether :attr:`moments` has the mean of the data that ``cond`` leaves; given any, it has their scale only."""
        return self.moments is not None and cond is None

    def with_sde(self, sde: SDE) -> Model:
        """This model under another SDE, by matching log-SNR: the same x0 and eps (P12 for a respaced DDPM)."""
        return Rescheduled(self, sde)

    @property
    def classes(self) -> int | None:
        """The number of classes that the network knows; None: it knows none, or does not say."""
        return None

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


class Wrapper(Model):
    """A model around ``model``, with its SDE, moments, scaling, device and dtype; subclasses give :meth:`estimate`."""

    def __init__(self, model: Model):
        super().__init__()
        self.model, self.sde = model, model.sde
        self.moments, self.scaling = model.moments, model.scaling

    def knows_mean(self, cond=None):
        return self.moments is not None and self.model.knows_mean(cond)

    @property
    def classes(self):
        return self.model.classes

    @property
    def device(self):
        return self.model.device

    @property
    def dtype(self):
        return self.model.dtype


class Rescheduled(Wrapper):
    """A model trained on one process, used under another with the same range of log-SNR.

    At equal log-SNR x'/alpha' and x/alpha have the same law, so x0 and eps are the same numbers (Song et al. 2021,
    appendix; Karras et al. 2022): x0'(x', t') = x0(x' alpha/alpha', t) where log_snr(t) = log_snr'(t'). Respacing a
    DDPM (P12) is the case where alpha' = alpha.

    Raises:
        ArgumentError: at a time, known to the host, whose log-SNR the model's own process does not reach.
    """

    def __init__(self, model: Model, sde: SDE):
        super().__init__(model)
        self.sde = sde

    def estimate(self, x, level, cond=None):
        inner = self.model.sde
        if isinstance(level.log_snr, float):
            own = inner.level(inner.time_of(level.log_snr), x)
            if not math.isclose(own.log_snr, level.log_snr, rel_tol=1e-6, abs_tol=1e-6):
                low, high = inner.log_snr(1.0).item(), inner.log_snr(0.0).item()
                raise ArgumentError(
                    "t",
                    f"{level.t:.6g}, where log-SNR is {level.log_snr:.6g}",
                    f"log-SNR in [{low:.6g}, {high:.6g}], the range of the {inner!r} the model was made for",
                )
        else:
            own = inner.level_at(inner.time_of(level.log_snr), x)
        estimate = self.model.estimate(x * (own.alpha / level.alpha), own, cond)
        return Estimate(estimate.x0, estimate.eps, level, estimate.v)
