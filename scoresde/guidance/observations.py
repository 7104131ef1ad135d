r"""Guidance by an observation: from a model of p(x_0) to one of p(x_0 | y).

The observation is y = A x_0 + noise n with n ~ N(0, I). The reverse SDE and the flow of p(x_0 | y) are those of p(x_0)
with the score s + g, g = grad log p_t(y | x_t) (E10). With x_t = alpha x0 + sigma eps and score = -eps/sigma this is

    x0' = x0 + (sigma^2/alpha) g,    eps' = eps - sigma g.

g is not known: p_t(y | x_t) = int p(y | x_0) p(x_0 | x_t) dx_0 needs all of p(x_0 | x_t). A network gives its mean x0
and, by its Jacobian J = d x0/d x_t, its covariance C = (sigma^2/alpha) J (Tweedie's second formula). With N(x0, C) for
p(x_0 | x_t), and J taken as constant,

    g = J' A' u,    u = (A C A' + noise^2 I)^{-1} r,    r = y - A x0.

The methods of :mod:`scoresde.guidance.gaussian_guidance` differ in C. :mod:`scoresde.guidance.projections` changes x0
without a gradient, and :mod:`scoresde.guidance.likelihoods` takes any p(y | x_0). Each takes a model and returns a
model, so that every sampler, the flow and the likelihood work with it unchanged.

An observation y ``(*E)`` is one for all samples. One for each sample goes through ``cond={"observation": y}`` with y
``(B, *E)``, and ``"observation_noise"`` ``(B,)``. Samplers and likelihoods then cut it with the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.guidance.operators import LinearOperator
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate, Unguided
from scoresde.models.model import Model, Wrapper
from scoresde.sde import Level
from scoresde.sde.tensors import broadcast

OBSERVATION, NOISE = "observation", "observation_noise"  # the names of y and its noise in a condition

Value = TypeVar("Value", float, Tensor, float | Tensor)


def check_noise(noise: float | Tensor, *, zero: bool) -> Tensor:
    """Return the standard deviation of y in float64, ``()`` or ``(B,)``.

    Args:
        noise: Standard deviation.
        zero: Whether it may be 0.

    Raises:
        ArgumentError: ``noise`` is negative, not finite, 0 where it may not be, or of another shape.
    """
    value = torch.as_tensor(noise, dtype=torch.float64, device="cpu")
    good = value.isfinite() & (value >= 0 if zero else value > 0)
    if value.ndim > 1 or not bool(good.all()):
        least = f" from {value.min().item():g}" if value.numel() else ""
        got = f"{tuple(value.shape)} numbers{least}" if value.ndim else value.item()
        raise ArgumentError("noise", got, f"a standard deviation {'>= 0' if zero else '> 0'}, () or (B,)")
    return value


class Observed(Wrapper):
    """A model with an observation, which it finds in itself or in ``cond``.

    Args:
        model: The model of p(x_0).
        operator: A.
        y: Observation, ``(*E)`` or ``(B, *E)``. None: given in ``cond``.
        noise: Standard deviation of y, ``()`` or ``(B,)``. None: given in ``cond``.

    Raises:
        DTypeError, ShapeError, ArgumentError: An argument does not fit, or y holds NaN or infinity.
    """

    y: Tensor | None
    noise: Tensor | None
    may_be_noiseless = False  # whether noise may be 0

    def __init__(self, model: Model, operator: LinearOperator, y: Tensor | None, noise: float | Tensor | None):
        super().__init__(model)
        self.moments = None  # those of x_0, not of x_0 given y
        if not isinstance(operator, LinearOperator):
            raise DTypeError("operator", type(operator).__name__, "a LinearOperator, such as Inpainting(mask)")
        self.operator = operator
        if y is not None:
            if not isinstance(y, Tensor) or not y.is_floating_point():
                raise DTypeError("y", getattr(y, "dtype", type(y).__name__), "a floating-point tensor")
            shape = operator.y_shape
            if tuple(y.shape[-len(shape) :]) != shape or y.ndim > len(shape) + 1:
                expected = f"of shape {shape}, or (B, *{shape}) for one observation per sample"
                raise ShapeError("y", tuple(y.shape), expected)
            seen = operator.residual(y.detach().reshape(-1, *shape), torch.zeros(1, *operator.shape).to(y))
            if not bool(seen.isfinite().all()):
                raise ArgumentError("y", "NaN or infinity", "a tensor of finite numbers")
        self.register_buffer("y", None if y is None else y.detach())
        noise = None if noise is None else check_noise(noise, zero=self.may_be_noiseless)
        self.register_buffer("noise", noise)

    def observation(self, x: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Condition]:
        """Return ``(y, noise, cond)`` for x ``(B, *D)``.

        y is ``(B, *E)`` or ``(1, *E)``, and noise ``()`` or ``(B, 1, ..., 1)`` of y's rank, which may differ from x's.
        cond is what remains for the network.

        Raises:
            ArgumentError: Neither the model nor ``cond`` has y or noise.
            ShapeError: y or x does not fit the operator.
        """
        rest = {name: value for name, value in (cond or {}).items() if name not in (OBSERVATION, NOISE)}
        y = (cond or {}).get(OBSERVATION, self.y)
        noise = (cond or {}).get(NOISE, self.noise)
        if y is None or noise is None:
            name = OBSERVATION if y is None else NOISE
            raise ArgumentError(name, None, f"given to the method with the model, or as cond[{name!r}]")
        self.operator.check_x(x)
        shape = self.operator.y_shape
        if tuple(y.shape) not in (shape, (len(x), *shape)):
            expected = f"of shape {shape} or {(len(x), *shape)} (one per sample is best given as cond[{OBSERVATION!r}])"
            raise ShapeError("y", tuple(y.shape), expected)
        y = y.to(x)
        y = y if y.ndim > len(shape) else y[None]
        return y, like_y(broadcast(noise.to(x), x, "noise"), y), rest or None


class Jacobian(NamedTuple):
    """The network's x0 ``(B, *D)``, and products with its Jacobian.

    ``vjp`` is v -> J' v with J = d x0/d x_t.
    """

    x0: Tensor
    vjp: Callable[[Tensor], Tensor]


def add_gradient(
    model: Model,
    x: Tensor,
    level: Level,
    cond: Condition,
    direction: Callable[[Jacobian], tuple[Tensor, Tensor]],
) -> Estimate:
    """Return the model's estimate with g added to its score.

    It is differentiable where the caller differentiates.

    Args:
        model: The model.
        x: Noisy samples, ``(B, *D)``.
        level: The noise level.
        cond: The network's condition.
        direction: From the network's x0 and Jacobian to g ``(B, *D)`` and the log p_t(y | x_t) ``(B,)`` that it is the
            gradient of, up to a function of t.
    """
    # 1. the network's estimate, with its graph
    tracked = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        z = x if tracked else x.detach().requires_grad_()
        graph = model.estimate(z, level, cond)

    def vjp(v: Tensor) -> Tensor:
        return torch.autograd.grad(graph.x0, z, v, retain_graph=True, create_graph=tracked)[0]

    def kept(value: Tensor) -> Tensor:
        return value if tracked else value.detach()

    # 2. the gradient, added to x0 and eps
    x0, eps, v = kept(graph.x0), kept(graph.eps), None if graph.v is None else kept(graph.v)
    with torch.set_grad_enabled(tracked):
        g, log_p = direction(Jacobian(x0, vjp))
        guided = x0 + (level.sigma**2 / level.alpha) * g, eps - level.sigma * g
    return Estimate(*guided, level, v, Unguided(x0, eps, log_p))


def like_y(value: Value, y: Tensor) -> Value:
    """Return a number per sample as ``(B, 1, ..., 1)``, of y's rank.

    One number for all stays as it is.
    """
    return value.reshape(-1, *(1,) * (y.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value
