"""Replacement: what A observes of x0 is set to the observation."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.guidance.observations import Observed, like_y
from scoresde.guidance.operators import LinearOperator
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.sde import Level

PROJECTION_FLOOR = 1e-9  # added to the eigenvalues of A A' where y has no noise


class _Replacement(Observed):
    may_be_noiseless = True

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        y, noise, cond = self.observation(x, cond)
        estimate = self.model.estimate(x, level, cond)
        r = self.operator.residual(y, estimate.x0)
        alpha, sigma = like_y(level.alpha, r), like_y(level.sigma, r)
        total = (alpha * noise) ** 2 + sigma**2
        c = torch.where(total > 0, sigma**2 / total, 1.0)
        move = self.operator.At(c * self.operator.gram_solve(r, c, 1 - c + PROJECTION_FLOOR))
        return Estimate(estimate.x0 + move, estimate.eps - level.ratio * move, level, estimate.v)


@checked
def replacement(
    model: Model, operator: LinearOperator, y: Tensor | None = None, noise: float | Tensor | None = 0.0
) -> Model:
    """Return the model whose x0 agrees with the observation (N4).

        x0' = x0 + A' (A A' + (noise^2/rho^2) I)^{-1} (y - A x0),    eps' = (x - alpha x0')/sigma,    rho = sigma/alpha

    With a mask and no noise, x0' is y at the known entries and x0 at the others. A step of the reverse process with
    x0 = y draws from p(x_s | x_t, x_0 = y), so the known part of x is the observation, noised to the level, from the
    start on. The paper overwrites x so after each step; in this form every solver can do it. For other operators it is
    the projection onto {A x = y} (Song et al. 2022; Wang et al. 2023).

    The method is not exact: the unknown part of x0 is E[x_0 | x_t], which sees the observation through its noise only.

    Args:
        model: The model of p(x_0).
        operator: A.
        y: Observation, ``(*E)`` or ``(B, *E)``. None: in ``cond``.
        noise: Standard deviation of y, >= 0, ``()`` or ``(B,)``, default 0: then A x0' = y, and so for the samples of a
            sampler with ``last="tweedie"``. None: in ``cond``.

    Raises:
        DTypeError, ShapeError, ArgumentError: An argument does not fit.

    References: Song et al. (2021, appendix I); Song et al. (2022); Wang et al. (2023).
    """
    return _Replacement(model, operator, y, noise)
