"""Mean and covariance of the data, and the Gaussian they make of p_t."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from scoresde.errors import ShapeError


class Moments:
    """Mean and covariance of data of shape D, n = prod(D).

    Under an SDE the marginal p_t has mean alpha m and covariance alpha^2 C + sigma^2 I exactly; the Gaussian with these
    moments is the best Gaussian stand-in for p_1, better than N(0, sigma^2 I) when alpha(1) > 0 (VE above all).

    Args:
        mean: ``(*D)``.
        covariance: ``(n, n)``, or its diagonal ``(n,)``.
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        n = mean.numel()
        if covariance.shape not in {(n,), (n, n)}:
            raise ShapeError("covariance", tuple(covariance.shape), f"({n},) or ({n}, {n}) for a mean of {n} entries")
        self.mean, self.covariance = mean.detach().double().cpu(), covariance.detach().double().cpu()
        if covariance.ndim == 2:
            self.values, self.vectors = torch.linalg.eigh(self.covariance)
            self.values = self.values.clamp(min=0)
        else:
            self.values, self.vectors = self.covariance, None

    @classmethod
    def of(cls, x: Tensor, diagonal: bool | None = None) -> Moments:
        """The moments of data ``(N, *D)``; only the diagonal of the covariance if ``diagonal`` (default: n > 1024)."""
        flat = x.detach().reshape(len(x), -1).double().cpu()
        mean = flat.mean(0)
        if diagonal if diagonal is not None else flat.shape[1] > 1024:
            return cls(mean.reshape(x.shape[1:]), flat.var(0, correction=0))
        centred = flat - mean
        return cls(mean.reshape(x.shape[1:]), centred.T @ centred / len(flat))

    def like(self, x: Tensor) -> Moments:
        """Return these moments in the dtype and on the device of ``x``, for a loop that would move them at each call.

        The mean is flat, ``(1, n)``.
        """
        moved = copy.copy(self)
        moved.mean, moved.values = self.mean.reshape(1, -1).to(x), self.values.to(x)
        moved.vectors = None if self.vectors is None else self.vectors.to(x)
        return moved

    def to_eigen(self, v: Tensor) -> Tensor:
        """Return V' v, the coordinates of v ``(B, n)`` in the eigenbasis V of C."""
        return v if self.vectors is None else v @ self.vectors.to(v)

    def from_eigen(self, z: Tensor) -> Tensor:
        """Return V z, the vectors ``(B, n)`` with coordinates z in the eigenbasis V of C."""
        return z if self.vectors is None else z @ self.vectors.to(z).T

    def variance(self, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """Return alpha^2 c + sigma^2, the variances of p_t along the eigenbasis of C, c its eigenvalues."""
        return alpha**2 * self.values + sigma**2

    def log_prob(self, x: Tensor, alpha: float, sigma: float, mean: Tensor | None = None) -> Tensor:
        """log N(x; alpha m, alpha^2 C + sigma^2 I) in nats, ``(B,)`` for x ``(B, *D)``; a ``mean`` ``(B, n)`` for m."""
        z = x.reshape(len(x), -1) - alpha * (self.mean.reshape(-1).to(x) if mean is None else mean)
        z, variance = self.to_eigen(z), self.variance(alpha, sigma)
        normaliser = (variance.log() + math.log(2 * math.pi)).sum().item()
        return -0.5 * ((z * z / variance.to(x)).sum(1) + normaliser)

    @property
    def std(self) -> float:
        """The root of the mean variance over entries: one number for the scale of the data about its mean."""
        return self.values.mean().sqrt().item()
