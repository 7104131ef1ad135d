"""Gaussian mixtures with their exact score under any SDE: the yardstick of tests and benchmarks."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.models.conditions import LABEL, check_labels, of_class
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.models.moments import Moments
from scoresde.random import randn
from scoresde.sde import SDE


class HasMatrix(Protocol):
    """What has a matrix, such as :class:`scoresde.guidance.LinearOperator`."""

    def matrix(self) -> Tensor: ...


class GaussianMixture:
    """sum_k w_k N(m_k, C_k) over data of any shape D, n = prod(D).

    Args:
        means: ``(K, *D)``.
        covariances: full ``(K, n, n)``, diagonal ``(K, n)``, isotropic variances ``(K,)``, or one variance for all.
        weights: ``(K,)``, positive; normalised to sum to one. Equal by default.

    All is kept in float64 on the CPU; methods compute in the dtype and on the device of their argument.

    Raises:
        ShapeError, ArgumentError: shapes that do not fit, a covariance that is not positive definite, bad weights.
    """

    def __init__(self, means, covariances, weights=None):
        means = torch.as_tensor(means, dtype=torch.float64, device="cpu")
        if means.ndim < 1 or not means.numel():
            raise ShapeError("means", tuple(means.shape), "(K, *D) with at least one component")
        if not bool(means.isfinite().all()):
            raise ArgumentError("means", "NaN or infinity", "finite numbers")
        K, self.shape = means.shape[0], tuple(means.shape[1:])
        self.means = means.reshape(K, -1)
        n = self.means.shape[1]
        covariances = torch.as_tensor(covariances, dtype=torch.float64, device="cpu")
        if covariances.ndim == 0:
            covariances = covariances.expand(K)
        if covariances.shape == (K,):  # isotropic; (K,) reads as variances also when K == n
            self.values, self.vectors = covariances[:, None].expand(K, n).clone(), None
        elif covariances.shape == (K, n):
            self.values, self.vectors = covariances.clone(), None
        elif covariances.shape == (K, n, n):
            if not torch.allclose(covariances, covariances.mT, rtol=1e-8, atol=1e-12):
                raise ArgumentError("covariances", "a matrix that is not symmetric", "symmetric matrices")
            self.values, self.vectors = torch.linalg.eigh(covariances)
        else:
            raise ShapeError("covariances", tuple(covariances.shape), f"(), ({K},), ({K}, {n}) or ({K}, {n}, {n})")
        if not bool((self.values > 0).all() and self.values.isfinite().all()):
            wrong = f"an eigenvalue {self.values.min().item():g}"
            raise ArgumentError("covariances", wrong, "positive finite eigenvalues")
        weights = torch.ones(K) if weights is None else weights
        weights = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        if weights.shape != (K,) or not bool((weights > 0).all() and weights.isfinite().all()):
            raise ArgumentError("weights", weights.tolist(), f"{K} positive numbers")
        self.weights = weights / weights.sum()

    @cached_property
    def moments(self) -> Moments:
        """The exact mean and covariance of the mixture."""
        mean = self.weights @ self.means
        centred = self.means - mean
        covariance = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        if self.vectors is None:
            covariance = covariance + torch.diag(self.weights @ self.values)
        else:
            covariance = covariance + torch.einsum(
                "k,kia,ka,kja->ij", self.weights, self.vectors, self.values, self.vectors
            )
        return Moments(mean.reshape(self.shape), covariance)

    def sample(self, n: int, generator: torch.Generator | None = None, return_component: bool = False):
        """``n`` draws ``(n, *D)`` in float64; with ``return_component`` also the components ``(n,)`` they came from."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = randn((n, self.means.shape[1]), generator, "cpu", torch.float64) * self.values[k].sqrt()
        if self.vectors is not None:
            z = torch.einsum("nij,nj->ni", self.vectors[k], z)
        x = (self.means[k] + z).reshape(n, *self.shape)
        return (x, k) if return_component else x

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, ``(B,)`` for x ``(B, *D)``."""
        return self.model(None).log_prob(x)

    def posterior(self, A: Tensor | HasMatrix, y: Tensor, noise: float) -> GaussianMixture:
        """p(x_0 | y) for y = A x_0 + noise n, n ~ N(0, I): a Gaussian mixture again, exactly.

        With S_k = A C_k A' + noise^2 I and K_k = C_k A' S_k^{-1}: means m_k + K_k (y - A m_k), covariances
        (I - K_k A) C_k, weights in proportion to w_k N(y; A m_k, S_k). Its model under an SDE is the exact conditional
        one: grad log p_t(y | x_t) is the difference of the two scores.

        Args:
            A: a matrix ``(m, n)`` on x flattened, or a :class:`~scoresde.guidance.operators.LinearOperator`.
            y: the observation, m numbers in any shape.
            noise: a positive standard deviation.

        Raises:
            ShapeError: A or y that do not fit. ArgumentError: a noise that is not positive.
        """
        A = torch.as_tensor(A.matrix() if hasattr(A, "matrix") else A, dtype=torch.float64, device="cpu")
        K, n = self.means.shape
        if A.ndim != 2 or A.shape[1] != n:
            raise ShapeError("A", tuple(A.shape), f"(m, {n})")
        y = torch.as_tensor(y, dtype=torch.float64, device="cpu")
        if y.numel() != len(A):
            raise ShapeError("y", tuple(y.shape), f"{len(A)} numbers, one a row of A")
        if not 0 < noise < math.inf:
            raise ArgumentError("noise", noise, "a positive standard deviation")
        C = torch.diag_embed(self.values)
        if self.vectors is not None:
            C = self.vectors @ C @ self.vectors.mT
        S = A @ C @ A.T + noise**2 * torch.eye(len(A), dtype=torch.float64)
        r = y.flatten() - self.means @ A.T
        gain = torch.linalg.solve(S, A @ C).mT
        kept = torch.eye(n, dtype=torch.float64) - gain @ A
        covariances = kept @ C @ kept.mT + noise**2 * gain @ gain.mT  # Joseph's form: positive whatever the rounding
        distance = (r * torch.linalg.solve(S, r[..., None])[..., 0]).sum(1)
        weights = (self.weights.log() - 0.5 * (distance + torch.linalg.slogdet(S)[1])).softmax(0)
        weights = weights.clamp_min(torch.finfo(weights.dtype).tiny)
        means = (self.means + torch.einsum("kij,kj->ki", gain, r)).reshape(K, *self.shape)
        return GaussianMixture(means, (covariances + covariances.mT) / 2, weights)

    def model(self, sde: SDE) -> GaussianMixtureModel:
        """The perfect model of this mixture under ``sde``: exact x_0, eps and score at every t."""
        return GaussianMixtureModel(self, sde)


class GaussianMixtureModel(Model):
    """p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I) with responsibilities r_k(x):

    eps = sigma sum_k r_k (alpha^2 C_k + sigma^2 I)^{-1} (x - alpha m_k),
    x0 = sum_k r_k [m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^{-1} (x - alpha m_k)];

    nothing is divided by alpha or sigma, so both are exact at every t. The inverses are taken in the eigenbases of C_k.

    The components are classes: with ``cond={"y": k}``, ``(B,)`` int64, it is the exact model of N(m_k, C_k), and with
    y = -1 that of the mixture.
    """

    def __init__(self, mixture: GaussianMixture, sde: SDE):
        super().__init__()
        self.sde, self.mixture, self.moments = sde, mixture, mixture.moments
        self.register_buffer("means", mixture.means)
        self.register_buffer("values", mixture.values)
        self.register_buffer("vectors", mixture.vectors)
        self.register_buffer("log_weights", mixture.weights.log())

    def _terms(self, x: Tensor, alpha, sigma):
        """log r ``(B, K)``, not normalised, and z, c: x - alpha m_k in the eigenbasis of C_k and its variances."""
        if x.shape[1:] != self.mixture.shape:
            raise ShapeError("x", tuple(x.shape), f"(B, {', '.join(map(str, self.mixture.shape))})")
        if not x.is_floating_point():
            raise DTypeError("x", x.dtype, "a floating-point tensor")
        alpha, sigma = (v.reshape(-1, 1, 1) if isinstance(v, Tensor) else v for v in (alpha, sigma))
        z = x.reshape(len(x), 1, -1) - alpha * self.means.to(x)
        if self.vectors is not None:
            z = torch.einsum("bki,kij->bkj", z, self.vectors.to(x))
        c = alpha**2 * self.values.to(x) + sigma**2
        log_r = self.log_weights.to(x) - 0.5 * (z * z / c + c.log()).sum(-1)
        return log_r, z, c, alpha, sigma

    def _combine(self, r: Tensor, z: Tensor, x: Tensor) -> Tensor:
        if self.vectors is None:
            return torch.einsum("bk,bki->bi", r, z).reshape(x.shape)
        return torch.einsum("bki,kji->bj", r[..., None] * z, self.vectors.to(x)).reshape(x.shape)

    def estimate(self, x, level, cond=None):
        log_r, z, c, alpha, sigma = self._terms(x, level.alpha, level.sigma)
        y = (cond or {}).get(LABEL)
        if y is not None:
            y = check_labels(y, len(x), log_r.shape[1])[:, None]
            other = (y >= 0) & (y != torch.arange(log_r.shape[1], device=y.device))
            log_r = log_r.masked_fill(other, -math.inf)
        r = log_r.softmax(1)
        y = z / c
        eps = self._combine(r, sigma * y, x)
        x0 = self._combine(r, alpha * self.values.to(x) * y, x) + (r @ self.means.to(x)).reshape(x.shape)
        return Estimate(x0, eps, level)

    def log_prob(self, x: Tensor, t: float | Tensor | None = None) -> Tensor:
        """log p_t(x) in nats, ``(B,)``; the mixture's own density if t is None."""
        alpha, sigma = (1.0, 0.0) if t is None else self.sde.level(t, x)[1:3]
        log_r, z, *_ = self._terms(x, alpha, sigma)
        return log_r.logsumexp(1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)

    def log_responsibilities(self, x: Tensor, t: float | Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """log p(k | x_t) ``(B, K)`` of the components: an exact classifier, differentiable in x ``(B, *D)``.

        Args:
            t: ``()`` or ``(B,)``; None for the mixture itself, at t = 0.
            y: ``(B,)`` int64, to have only log p(y | x_t) ``(B,)``; 0 where y = -1.
        """
        alpha, sigma = (1.0, 0.0) if t is None else self.sde.level(t, x)[1:3]
        log_r = self._terms(x, alpha, sigma)[0].log_softmax(1)
        return log_r if y is None else of_class(log_r, y)
