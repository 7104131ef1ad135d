"""Moments of the data, and the algebra of the Gaussian that has them.

Symbols:
    m, C: mean and covariance of the data; C = V diag(c) V', with eigenvectors V and eigenvalues c.
    n: entries of one sample. B: samples.
    alpha, sigma: mean scale and standard deviation of the noise at a level. rho = sigma/alpha. snr = rho^-2.
    y = x/alpha: a noisy sample in the scale of the data, y = x_0 + rho eps.
    z: a vector in whitened coordinates, or x_0 - m in the eigenbasis, as each method says.

For data N(m, C) every marginal is Gaussian, y ~ N(m, C + rho^2 I). So the score, the flow and the divergences have
closed forms, and C's eigenbasis makes each of them a formula for one entry at a time.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import ShapeError


@checked
class Moments:
    """Mean and covariance of data of shape D, in float64 on the CPU.

    Under an SDE the marginal p_t has mean alpha m and covariance alpha^2 C + sigma^2 I exactly. The Gaussian with these
    moments is the best Gaussian stand-in for p_1: better than N(0, sigma^2 I) where alpha(1) > 0, most of all for VE.

    Args:
        mean: Mean of shape ``(*D)``.
        covariance: Covariance of shape ``(n, n)`` with n = prod(D), or its diagonal ``(n,)``.

    Raises:
        ShapeError: ``covariance`` has another shape.
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        n = mean.numel()
        if covariance.shape not in {(n,), (n, n)}:
            raise ShapeError("covariance", tuple(covariance.shape), f"({n},) or ({n}, {n}) for a mean of {n} entries")
        self.mean, self.covariance = mean.detach().double().cpu(), covariance.detach().double().cpu()
        self.values, self.vectors = self.covariance, None
        if not self.is_diagonal:
            self.values, self.vectors = torch.linalg.eigh(self.covariance)
            self.values = self.values.clamp(min=0)

    @classmethod
    def of(cls, x: Tensor, diagonal: bool | None = None) -> Moments:
        """Measure the moments of data ``(N, *D)``.

        Args:
            x: Data of shape ``(N, *D)``.
            diagonal: Whether to keep only the diagonal of the covariance, default for n > 1024.
        """
        flat = x.detach().reshape(len(x), -1).double().cpu()
        mean = flat.mean(0)
        if diagonal if diagonal is not None else flat.shape[1] > 1024:
            return cls(mean.reshape(x.shape[1:]), flat.var(0, correction=0))
        centred = flat - mean
        return cls(mean.reshape(x.shape[1:]), centred.T @ centred / len(flat))

    @property
    def is_diagonal(self) -> bool:
        """Whether only the diagonal of the covariance is known."""
        return self.covariance.ndim == 1

    @property
    def std(self) -> float:
        """The root of the mean variance over entries.

        It is one number for the scale of the data about their mean.
        """
        return self.values.mean().sqrt().item()

    def gaussian(self, like: Tensor, mean: Tensor | None = None) -> Gaussian:
        """Return the Gaussian with these moments, computing like ``like``.

        Args:
            like: Tensor whose dtype and device the computation has.
            mean: Mean ``(B, n)`` for each sample instead of the data's.
        """
        if mean is None:
            mean = self.mean.reshape(1, -1)
        return Gaussian(mean.to(like), self.values, self.vectors)

    def log_prob(self, x: Tensor, alpha: float, sigma: float, mean: Tensor | None = None) -> Tensor:
        """Return log N(x; alpha m, alpha^2 C + sigma^2 I) in nats, ``(B,)``.

        Args:
            x: Points of shape ``(B, *D)``.
            alpha, sigma: Mean scale and noise of the level.
            mean: Mean ``(B, n)`` for each sample instead of the data's.
        """
        return self.gaussian(x, mean).log_prob(x, alpha, sigma)

    def __repr__(self) -> str:
        kind = "diagonal" if self.is_diagonal else "full"
        return f"Moments(shape={tuple(self.mean.shape)}, std={self.std:.6g}, covariance={kind})"


@checked
class Gaussian:
    """N(m, C) in the eigenbasis of C, in one dtype and on one device.

    Vectors are flat, ``(B, n)``. Methods that return a float compute in float64 on the CPU and never wait for a device.

    Args:
        mean: m, ``(1, n)``, or ``(B, n)`` with a mean for each sample; sets dtype and device.
        values: c, the eigenvalues of C, ``(n,)`` float64 on the CPU.
        vectors: V, the eigenvectors of C in its columns, ``(n, n)``. None: the axes.
    """

    def __init__(self, mean: Tensor, values: Tensor, vectors: Tensor | None = None):
        self.mean, self._host_values = mean, values
        self.values = values.to(mean)
        self.vectors = None if vectors is None else vectors.to(mean)

    @classmethod
    def isotropic(cls, mean: Tensor, variance: float) -> Gaussian:
        """Return N(m, variance I) for a mean ``(1, n)`` or ``(B, n)``."""
        return cls(mean, torch.full((mean.shape[1],), variance, dtype=torch.float64))

    @property
    def least_variance(self) -> float:
        """The least eigenvalue of C."""
        return self._host_values.min().item()

    def widths(self, most: float) -> list[float]:
        """Return the standard deviations along the eigenbasis, at most ``most``."""
        widths: list[float] = self._host_values.sqrt().clamp(max=most).tolist()
        return widths

    def at_least(self, variance: float) -> Gaussian:
        """Return the Gaussian whose variances are at least ``variance``."""
        if self.least_variance >= variance:
            return self
        return Gaussian(self.mean, self._host_values.clamp(min=variance), self.vectors)

    # ---- coordinates -------------------------------------------------------------------------------------------------

    def to_eigen(self, v: Tensor) -> Tensor:
        """Return V' v, the coordinates of v ``(B, n)`` in the eigenbasis of C."""
        return v if self.vectors is None else v @ self.vectors

    def from_eigen(self, u: Tensor) -> Tensor:
        """Return V u ``(B, n)`` for coordinates u in the eigenbasis of C."""
        return u if self.vectors is None else u @ self.vectors.T

    def centre(self, y: Tensor) -> Tensor:
        """Return V' (y - m) for y ``(B, n)``."""
        return self.to_eigen(y - self.mean)

    def uncentre(self, u: Tensor) -> Tensor:
        """Return m + V u, the inverse of :meth:`centre`."""
        return self.from_eigen(u) + self.mean

    def variance(self, rho: float) -> Tensor:
        """Return c + rho^2 ``(n,)``, the variances of y along the eigenbasis."""
        return self.values + rho**2

    def std(self, rho: float) -> Tensor:
        """Return sqrt(c + rho^2) ``(n,)``, the roots of :meth:`variance`."""
        return self.variance(rho).sqrt()

    def whiten(self, y: Tensor, rho: float) -> Tensor:
        """Return z = V' (C + rho^2 I)^{-1/2} (y - m) for y ``(B, n)``.

        z is constant along the Gaussian's flow.
        """
        return self.centre(y) / self.std(rho)

    def unwhiten(self, z: Tensor, rho: float) -> Tensor:
        """Return the y ``(B, n)`` whose whitened coordinates at rho are z."""
        return self.uncentre(z * self.std(rho))

    # ---- density and flow --------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return log N(x; alpha m, alpha^2 C + sigma^2 I), ``(B,)`` in nats."""
        z = self.to_eigen(x.reshape(len(x), -1) - alpha * self.mean)
        variance = alpha**2 * self._host_values + sigma**2
        normaliser = (variance.log() + math.log(2 * math.pi)).sum().item()
        return -0.5 * ((z * z / variance.to(x)).sum(1) + normaliser)

    def trace(self, rho: float) -> float:
        """Return tr(rho d eps/dy) = sum rho^2/(c + rho^2).

        eps is the noise that the exact model predicts.
        """
        return (rho**2 / (self._host_values + rho**2)).sum().item()

    def log_det(self, start: float, end: float) -> float:
        """Return the log-determinant of y's flow from rho = start to end."""
        return 0.5 * ((self._host_values + end**2) / (self._host_values + start**2)).log().sum().item()

    # ---- the error of the predicted noise ----------------------------------------------------------------------------
    #
    # With z = V' (x_0 - m) and e = V' eps, the exact model's noise is in error by
    #     r = snr c/(1 + snr c) e - sqrt(snr)/(1 + snr c) z.

    def noise_error(self, snr: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """Return |r|^2 ``(B,)`` for x0, eps ``(B, n)``, snr ``()`` or ``(B, 1)``."""
        gain = 1 + snr * self.values
        r = (snr * self.values * self.to_eigen(eps) - snr.sqrt() * self.centre(x0)) / gain
        return r.square().sum(1)

    def mean_noise_error(self, snr: float, z2: Tensor) -> Tensor:
        """Return the mean of |r|^2 over eps, ``(B,)``, from z^2 ``(B, n)``."""
        gain = 1 + snr * self.values
        return (snr * self.values / gain).square().sum() + z2 @ (snr / gain.square())

    def integrated_noise_error(self, snr: float, z2: Tensor) -> Tensor:
        """Return the integral over log snr of the mean of |r|^2, ``(B,)``."""
        gain = 1 + snr * self.values
        return (gain.log() + 1 / gain).sum() + z2 @ (snr / gain)

    def prior_kl(self, snr: float, z2: Tensor) -> Tensor:
        """Return the divergence of the prior in nats, ``(B,)``.

        KL(N(alpha x_0, sigma^2 I) || N(alpha m, alpha^2 C + sigma^2 I))
        """
        return 0.5 * (self.integrated_noise_error(snr, z2) - z2.shape[1])

    def __repr__(self) -> str:
        basis = "the axes" if self.vectors is None else "the eigenbasis"
        return f"Gaussian({self.values.shape[0]} entries along {basis}, {self.values.dtype} on {self.values.device})"


@overload
def denoised_variance(c: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor: ...


@overload
def denoised_variance(c: float, alpha: float | Tensor, sigma: float | Tensor) -> float | Tensor: ...


def denoised_variance(c: float | Tensor, alpha: float | Tensor, sigma: float | Tensor) -> float | Tensor:
    """Return sigma^2 c/(sigma^2 + alpha^2 c).

    This is the variance of x_0 given x_t along an eigenvector of variance c.
    """
    return sigma**2 * c / (sigma**2 + alpha**2 * c)
