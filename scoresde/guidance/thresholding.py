"""Keeping the estimate of x_0 within the range of the data: clipping and dynamic thresholding."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from scoresde.errors import ArgumentError
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.models.wrappers import Wrapper


class _Limited(Wrapper):
    """A model whose x0 goes through :meth:`limit`, eps following it so that x = alpha x0 + sigma eps holds."""

    @abstractmethod
    def limit(self, x0: Tensor) -> Tensor:
        """x0 ``(B, *D)``, within the range."""

    def estimate(self, x, level, cond=None):
        estimate = self.model.estimate(x, level, cond)
        x0 = self.limit(estimate.x0)
        # the difference, not (x - alpha x0)/sigma: exact where nothing is limited
        return Estimate(x0, estimate.eps + level.ratio * (estimate.x0 - x0), level, estimate.v)


class _Clipped(_Limited):
    def __init__(self, model, low, high):
        super().__init__(model)
        self.low, self.high = low, high

    def limit(self, x0):
        return x0.clamp(self.low, self.high)


class _DynamicThreshold(_Limited):
    def __init__(self, model, percentile, bound):
        super().__init__(model)
        self.percentile, self.bound = percentile, bound

    def limit(self, x0):
        flat = x0.reshape(len(x0), -1).abs()
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        s = torch.quantile(flat, self.percentile / 100, dim=1).clamp(min=self.bound).to(x0.dtype)
        s = s.reshape(-1, *(1,) * (x0.ndim - 1))
        return torch.maximum(torch.minimum(x0, s), -s) * (self.bound / s)


def clipped(model: Model, low: float = -1.0, high: float = 1.0) -> Model:
    """The model with x0 clipped to [low, high], in the units it was trained in; Ho et al. 2020 sample images so.

    eps becomes (x - alpha x0)/sigma, so that x = alpha x0 + sigma eps holds. At sigma = 0 eps is left as it is.

    Raises:
        ArgumentError: not low < high.
    """
    if not low < high:
        raise ArgumentError("low, high", (low, high), "low < high")
    return _Clipped(model, float(low), float(high))


def dynamic_threshold(model: Model, percentile: float = 99.5, bound: float = 1.0) -> Model:
    """The model with dynamic thresholding of x0 (Saharia et al. 2022, section 2.3), sample by sample.

    x0 <- clip(x0, -s, s) bound/s, s the percentile of its absolute entries, but at least ``bound``: strong guidance
    then does not saturate an image. eps follows as in :func:`clipped`.

    Args:
        percentile: in (0, 100].
        bound: the data lie in [-bound, bound].

    Raises:
        ArgumentError: numbers out of their range.
    """
    if not 0 < percentile <= 100:
        raise ArgumentError("percentile", percentile, "a number in (0, 100]")
    if not 0 < bound < float("inf"):
        raise ArgumentError("bound", bound, "a positive number")
    return _DynamicThreshold(model, float(percentile), float(bound))
