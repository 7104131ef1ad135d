"""Networks on any Gaussian path, as networks of the noise level alone.

A path x_t = alpha(t) x_0 + sigma(t) eps of another library has its own time. At the ratio rho = sigma/alpha its network
is one of y = x_0 + rho eps, our VESDE, whatever the path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.errors import ArgumentError
from scoresde.nets.adapted import tensor_of
from scoresde.sde import VESDE

HALVINGS = 60  # of an interval of times: as exact as float64


class Coefficients(NamedTuple):
    """A path at times: alpha, sigma, and p, q of F = p x_0 + q eps."""

    alpha: Tensor
    sigma: Tensor
    p: Tensor
    q: Tensor


Path = Callable[[Tensor], Coefficients]


class OnPath(nn.Module):
    """A network on a path as an estimate of x_0 from y and rho.

    Args:
        net: Network ``(x, t, **cond)``.
        path: Function of times ``(B,)`` to :class:`Coefficients`.
        clean, noisy: Its times at the data's end and at the noise's.

    Attributes:
        least_ratio: rho at the data's end, below which the network knows nothing.
    """

    def __init__(self, net: Callable[..., Any], path: Path, clean: float, noisy: float):
        super().__init__()
        self.net, self.path, self.ends = net, path, (clean, noisy)
        self.least_ratio = float(self.ratio(torch.tensor([clean], dtype=torch.float64)))

    def ratio(self, t: Tensor) -> Tensor:
        """Return rho at times ``(B,)`` of the path."""
        found = self.path(t)
        return found.sigma / found.alpha

    def time_of(self, rho: Tensor) -> Tensor:
        """Return the times ``(B,)`` at which the path has the ratios ``(B,)``.

        They are found by halving, as rho grows from the data to the noise.
        """
        clean, noisy = (torch.full_like(rho, end) for end in self.ends)
        for _ in range(HALVINGS):
            middle = (clean + noisy) / 2
            below = self.ratio(middle) < rho
            clean, noisy = torch.where(below, middle, clean), torch.where(below, noisy, middle)
        return (clean + noisy) / 2

    def forward(self, y: Tensor, rho: Tensor, **cond: Any) -> Tensor:
        t = self.time_of(rho.double())
        alpha, sigma, p, q = (value.to(y.dtype).reshape(-1, *(1,) * (y.ndim - 1)) for value in self.path(t))
        x = alpha * y
        F = tensor_of(self.net(x, t.to(rho.dtype), **cond), None)
        return (q * x - sigma * F) / (alpha * q - sigma * p)


def largest_ratio(net: OnPath, least_alpha: float = 1e-3) -> float:
    """Return the largest rho of a path, that at its noisy end.

    Where alpha is 0 there, it is that where alpha is ``least_alpha``.
    """
    clean, noisy = (torch.tensor([end], dtype=torch.float64) for end in net.ends)
    if net.path(noisy).alpha.item() <= least_alpha:
        for _ in range(HALVINGS):
            middle = (clean + noisy) / 2
            enough = net.path(middle).alpha.item() > least_alpha
            clean, noisy = (middle, noisy) if enough else (clean, middle)
        return float(net.ratio(clean))
    return float(net.ratio(noisy))


def check_path(net: OnPath) -> VESDE:
    """Return the process of a network on a path.

    Raises:
        ArgumentError: The ratio does not grow from the data to the noise.
    """
    clean, noisy = net.ends
    t = torch.linspace(clean, noisy, 65, dtype=torch.float64)[1:-1]
    if not bool((net.ratio(t).diff() > 0).all()):
        raise ArgumentError("path", "one whose sigma/alpha does not grow", "a path from the data to noise")
    return VESDE.linear(largest_ratio(net))
