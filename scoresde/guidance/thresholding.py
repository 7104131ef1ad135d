"""Limits on the estimate of x_0: clipping, and dynamic thresholding."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive
from scoresde.errors import ArgumentError
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model, Wrapper
from scoresde.sde import Level


class _Limited(Wrapper):
    """A model whose x0 is limited.

    Args:
        model: The model.
        keep_eps: Whether eps stays as it is. Otherwise it changes, so that x = alpha x0 + sigma eps holds.
    """

    def __init__(self, model: Model, keep_eps: bool):
        super().__init__(model)
        self.keep_eps = keep_eps

    @abstractmethod
    def limit(self, x0: Tensor) -> Tensor:
        """Return x0 ``(B, *D)`` within the range."""

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        estimate = self.model.estimate(x, level, cond)
        x0 = self.limit(estimate.x0)
        if self.keep_eps:
            return estimate._replace(x0=x0)
        # the difference, not (x - alpha x0)/sigma: it is exact where nothing is limited
        return estimate._replace(x0=x0, eps=estimate.eps + level.ratio * (estimate.x0 - x0))


class _Clipped(_Limited):
    def __init__(self, model: Model, low: float, high: float, keep_eps: bool):
        super().__init__(model, keep_eps)
        self.low, self.high = low, high

    def limit(self, x0: Tensor) -> Tensor:
        return x0.clamp(self.low, self.high)

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"


class _DynamicThreshold(_Limited):
    def __init__(self, model: Model, percentile: float, bound: float, largest: float | None, keep_eps: bool):
        super().__init__(model, keep_eps)
        self.percentile, self.bound, self.largest = percentile, bound, largest

    def limit(self, x0: Tensor) -> Tensor:
        flat = x0.reshape(len(x0), -1).abs()
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        s = torch.quantile(flat, self.percentile / 100, dim=1).clamp(self.bound, self.largest).to(x0.dtype)
        s = s.reshape(-1, *(1,) * (x0.ndim - 1))
        return torch.maximum(torch.minimum(x0, s), -s) * (self.bound / s)

    def extra_repr(self) -> str:
        return f"percentile={self.percentile}, bound={self.bound}, largest={self.largest}"


@checked
def clipped(model: Model, low: float = -1.0, high: float = 1.0, *, keep_eps: bool = False) -> Model:
    """Return the model with x0 clipped to [low, high], in the model's units.

    eps becomes (x - alpha x0)/sigma, so that x = alpha x0 + sigma eps holds. At sigma = 0 eps stays as it is.

    Args:
        model: The model.
        low, high: Range of the data, low < high, default [-1, 1].
        keep_eps: Whether eps stays that of the network, default False. True is the default of diffusers' DDIM
            (``use_clipped_model_output=False``). x is then no longer alpha x0 + sigma eps.

    Raises:
        ArgumentError: ``low`` is not below ``high``.

    References: Ho et al. (2020), who sample images in this way.
    """
    if not low < high:
        raise ArgumentError("low, high", (low, high), "two numbers with low < high")
    return _Clipped(model, float(low), float(high), keep_eps)


@checked
def dynamic_threshold(
    model: Model, percentile: float = 99.5, bound: float = 1.0, *, largest: float | None = None, keep_eps: bool = False
) -> Model:
    """Return the model with dynamic thresholding of x0, sample by sample.

        x0 <- clip(x0, -s, s) bound/s

    s is the percentile of the sample's absolute entries, but at least ``bound``. Strong guidance then does not saturate
    an image. eps follows as in :func:`clipped`.

    Args:
        model: The model.
        percentile: In (0, 100], default 99.5.
        bound: The data lie in [-bound, bound], default 1.
        largest: Largest s, at least ``bound`` (``sample_max_value`` of diffusers). None: no limit.
        keep_eps: As for :func:`clipped`.

    Raises:
        ArgumentError: A number is out of range.

    References: Saharia et al. (2022, section 2.3).
    """
    if not 0 < percentile <= 100:
        raise ArgumentError("percentile", percentile, "a number in (0, 100]")
    bound = positive("bound", bound)
    if largest is not None and positive("largest", largest) < bound:
        raise ArgumentError("largest", largest, f"at least bound = {bound:g}, or None")
    return _DynamicThreshold(model, float(percentile), bound, largest, keep_eps)
