"""The probability flow (E8) as a differential equation in log-SNR.

With x = alpha x0 + sigma eps along the flow, dx = alpha' x0 + sigma' eps. In the variable lambda = log(alpha/sigma),
and with kappa = d log alpha / d lambda in [0, 1] (VP: sigma^2, VE: 0, flow path: sigma), this is

    dx/dlambda = kappa x - sigma eps(x, t).

The equation is smooth at both ends, where f and g are not, and its linear part is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import wholes
from scoresde.errors import ShapeError
from scoresde.models import Model
from scoresde.models.conditions import Condition, condition_rows
from scoresde.sde import SDE, Level
from scoresde.sde.tensors import broadcast, flat


def on_the_flow(sde: SDE) -> Callable[[float, float], str]:
    """Return the function that describes a step h at lambda for messages.

    It names the time t, the step in t, and lambda.
    """

    def where(lam: float, h: float) -> str:
        t, s = sde.time_at(lam=torch.tensor([lam, lam + h], dtype=torch.float64)).tolist()
        return f"t = {t:.6g} with a step of {abs(s - t):.3g} (lambda = {lam:.6g})"

    return where


@checked
class ProbabilityFlowField:
    """The velocity dx/dlambda for a batch, each sample at its lambda.

    Args:
        model: The score model.
        shape: D, the shape of one sample; states are flat, ``(B, n)``.
        cond: Condition, tensors ``(B, ...)`` by name.
    """

    def __init__(self, model: Model, shape: tuple[int, ...], cond: Condition = None):
        self.model, self.shape, self.cond, self.dtype = model, wholes("shape", shape), cond, model.dtype

    def at(self, lam: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Level, Tensor, Condition]:
        """Return ``(x, level, kappa, cond)`` for some samples.

        x ``(B, *D)`` has the model's dtype; kappa is ``(B,)``.

        Args:
            lam: lambda of each sample, ``(B,)``.
            y: Flat states, ``(B, n)``.
            rows: Indices of these samples in the batch.
        """
        sde = self.model.sde
        t = sde.time_at(lam=lam)
        alpha_rate, sigma_rate = sde.log_alpha_rate(t), sde.log_sigma_rate(t)
        if y.shape[1:].numel() != math.prod(self.shape):
            raise ShapeError("y", tuple(y.shape), f"(B, {math.prod(self.shape)}), flat states of shape {self.shape}")
        x = y.reshape(len(y), *self.shape).to(self.dtype)
        cond = condition_rows(self.cond, rows)
        return x, sde.level_at(t, x), alpha_rate / (alpha_rate - sigma_rate), cond

    def __call__(self, lam: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        x, level, kappa, cond = self.at(lam, y, rows)
        noise = level.sigma * self.model.estimate(x, level, cond).eps
        return broadcast(kappa, y) * y - flat(noise).to(y.dtype)
