"""Velocity networks of flow_matching and torchcfm.

Their time runs the other way, with noise at t = 0 and data at t = 1: x_t = t x_0 + (1 - t) eps, with x_0 the data. The
velocity v = dx/dt is x_0 - eps, minus our prediction ``"flow"`` at our time 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import non_negative
from scoresde.errors import DTypeError
from scoresde.interop.checkpoints import choice
from scoresde.interop.paths import Coefficients, OnPath, check_path
from scoresde.models import ScoreModel
from scoresde.nets.adapted import tensor_of
from scoresde.sde import FlowSDE


class _Reversed(nn.Module):
    """A velocity network under our time, with our sign.

    Args:
        net: Network ``(x, t)`` or ``(t, x)``.
        order: ``"xt"`` or ``"tx"``, or ``"joined"``: it takes x and t as one vector.
    """

    def __init__(self, net: Callable[..., Any], order: str):
        super().__init__()
        self.net, self.order = net, order

    def forward(self, x: Tensor, time_input: Tensor, **cond: Any) -> Tensor:
        return -_called(self.net, self.order, x, 1 - time_input, cond)


def _called(net: Callable[..., Any], order: str, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    """Return what a network gives, called in its order."""
    if order == "joined":
        return tensor_of(net(torch.cat((x, t.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))), dim=-1), **cond), None)
    return tensor_of(net(x, t, **cond) if order == "xt" else net(t, x, **cond), None)


@checked
def from_flow_matching(net: Callable[..., Any], scheduler: object = None, **settings: Any) -> ScoreModel:
    """Return the score model of a velocity network of flow_matching. ::

        model = ScoreModel.from_flow_matching(velocity_net)

    Args:
        net: Network ``(x, t, **extras)`` of flow_matching, trained on a path between Gaussian noise at t = 0 and the
            data at t = 1, drawn independently.
        scheduler: Scheduler of the path, such as ``CosineScheduler()``. None: ``CondOTScheduler``, x_t = t x_0 + (1 -
            t) eps.
        settings: Further settings of :class:`ScoreModel`.

    Returns:
        The model in evaluation mode: under a FlowSDE or, for another scheduler, under a VESDE of the same ratio
        sigma/alpha.

    Raises:
        DTypeError: ``net`` is no network, or ``scheduler`` no scheduler.
        ArgumentError: A path whose sigma/alpha does not grow from the data to the noise.

    References: Lipman et al. 2023, 2024.
    """
    if not callable(net):
        raise DTypeError("net", type(net).__name__, "a velocity network (x, t)")
    if scheduler is None or type(scheduler).__name__ == "CondOTScheduler":
        return ScoreModel(_Reversed(net, "xt"), FlowSDE(), "flow", **settings).eval()
    if not callable(scheduler):
        raise DTypeError(
            "scheduler", type(scheduler).__name__, "a scheduler of flow_matching, such as CondOTScheduler()"
        )

    def path(t: Tensor) -> Coefficients:
        found: Any = scheduler(t)
        return Coefficients(found.alpha_t, found.sigma_t, found.d_alpha_t, found.d_sigma_t)

    on_path = OnPath(net, path, 1.0, 0.0)
    return ScoreModel(on_path, check_path(on_path), "data", time_input="sigma", **settings).eval()


@checked
def from_torchcfm(net: Callable[..., Any], sigma: float = 0.0, *, order: str = "tx", **settings: Any) -> ScoreModel:
    """Return the score model of a velocity network of torchcfm. ::

        model = ScoreModel.from_torchcfm(unet, sigma=0.0)

    The network must have been trained with ``ConditionalFlowMatcher``, whose noise and data are independent. With
    those of optimal transport (``ExactOptimalTransportConditionalFlowMatcher``) or Schroedinger bridges the velocity
    tells no score.

    Args:
        net: Network: ``(t, x)`` as torchcfm's U-Net, ``(x, t)``, or of x and t joined, as its MLP.
        sigma: The ``sigma`` of the flow matcher, 0 or more, default 0: x_t = t x_0 + (1 - t) eps + sigma eps'.
        order: ``"tx"`` (default), ``"xt"`` or ``"joined"``.
        settings: Further settings of :class:`ScoreModel`.

    Returns:
        The model in evaluation mode, under a FlowSDE or, if ``sigma`` is not 0, under a VESDE.

    Raises:
        DTypeError: ``net`` is no network.
        ArgumentError: ``sigma`` is negative, or another order.

    References: Tong et al. 2024.
    """
    if not callable(net):
        raise DTypeError("net", type(net).__name__, "a velocity network (t, x)")
    choice("order", order, ("tx", "xt", "joined"))
    if not non_negative("sigma", sigma):
        return ScoreModel(_Reversed(net, order), FlowSDE(), "flow", **settings).eval()

    def path(t: Tensor) -> Coefficients:
        total = ((1 - t) ** 2 + sigma**2).sqrt()  # of eps and eps', of which v has E[eps | x_t] = (1 - t)/total of all
        return Coefficients(t, total, torch.ones_like(t), -(1 - t) / total)

    on_path = OnPath(_InOrder(net, order), path, 1.0, 0.0)
    return ScoreModel(on_path, check_path(on_path), "data", time_input="sigma", **settings).eval()


class _InOrder(nn.Module):
    """A network called as (x, t), whatever its own order."""

    def __init__(self, net: Callable[..., Any], order: str):
        super().__init__()
        self.net, self.order = net, order

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return _called(self.net, self.order, x, t, cond)
