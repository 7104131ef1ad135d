"""Mean and covariance of the data, and the Gaussian they make of p_t."""

from __future__ import annotations

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

    def log_prob(self, x: Tensor, alpha: float, sigma: float, mean: Tensor | None = None) -> Tensor:
        """log N(x; alpha m, alpha^2 C + sigma^2 I) in nats, ``(B,)`` for x ``(B, *D)``; a ``mean`` ``(B, n)`` for m."""
        z = x.reshape(len(x), -1) - alpha * (self.mean.reshape(-1).to(x) if mean is None else mean)
        if self.vectors is not None:
            z = z @ self.vectors.to(x)
        variance = alpha**2 * self.values + sigma**2
        normaliser = (variance.log() + math.log(2 * math.pi)).sum().item()
        return -0.5 * ((z * z / variance.to(x)).sum(1) + normaliser)

    @property
    def std(self) -> float:
        """The root of the mean variance over entries: one number for the scale of the data about its mean."""
        return self.values.mean().sqrt().item()
