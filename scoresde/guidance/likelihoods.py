"""Guidance by any likelihood p(y | x_0), linear in x_0 or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.guidance.observations import Jacobian, add_gradient
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model, Wrapper
from scoresde.sde import Level


class _WithLikelihood(Wrapper):
    def __init__(self, model: Model, log_p: Callable[..., Tensor], given: Sequence[str]):
        super().__init__(model)
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise ArgumentError("given", repr(given), "a sequence of names of conditions")
        self.moments, self.log_p, self.given = None, log_p, tuple(given)
        self.guidance = math.inf  # the gradient has no bound

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        rest = dict(cond or {})
        for name in self.given:
            if name not in rest:
                raise ArgumentError(f"cond[{name!r}]", None, f"a tensor, as `given` is {self.given}")
        given = {name: rest.pop(name) for name in self.given}

        def direction(network: Jacobian) -> tuple[Tensor, Tensor]:
            tracked = torch.is_grad_enabled()
            with torch.enable_grad():
                x0 = network.x0 if tracked else network.x0.requires_grad_()
                log_p = self.log_p(x0, **given)
                if log_p.shape != (len(x),):
                    expected = f"of shape ({len(x)},), one number per sample (what differs by sample goes by `given`)"
                    raise ShapeError("log_p_y_given_x0's value", tuple(log_p.shape), expected)
                gradient = torch.autograd.grad(log_p.sum(), x0, create_graph=tracked)[0]
            return network.vjp(gradient), log_p if tracked else log_p.detach()

        return add_gradient(self.model, x, level, rest or None, direction)


@checked
def with_likelihood(model: Model, log_p_y_given_x0: Callable[..., Tensor], given: Sequence[str] = ()) -> Model:
    """Return the model, guided by any likelihood p(y | x_0).

        g = J' grad log p(y | x_0 = x0)

    Assumption: p_t(y | x_t) = p(y | x_0 = x0), as in :func:`dps`. It is overconfident at high noise, where x0 is only a
    posterior mean.

    Args:
        model: The model of p(x_0).
        log_p_y_given_x0: Function from x0 ``(B, *D)`` to log p(y | x0) in nats ``(B,)``, differentiable, each from its
            sample alone.
        given: Names of tensors ``(B, ...)`` in ``cond`` that go to the function as further arguments by name, and not
            to the network, default none. Observations that differ by sample thus follow their samples through chunks,
            particles and samplers that finish samples one by one.

    Raises:
        DTypeError: ``log_p_y_given_x0`` is not callable.
        ShapeError: At the first call, if its value is not ``(B,)``.
        ArgumentError: When called, ``cond`` lacks a tensor of ``given``.

    Notes:
        NaN in the likelihood is not checked here; samplers raise NonFiniteError at the end of a run.
    """
    if not callable(log_p_y_given_x0):
        raise DTypeError("log_p_y_given_x0", type(log_p_y_given_x0).__name__, "a function of x0")
    return _WithLikelihood(model, log_p_y_given_x0, given)
