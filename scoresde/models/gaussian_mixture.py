"""Gaussian mixtures and their exact models under any SDE.

They are the reference of tests and benchmarks.

Symbols:
    K components with weights w_k, means m_k and covariances C_k over data of shape D, n = prod(D) entries.
    C_k = V_k diag(c_k) V_k', with eigenvectors V_k and eigenvalues c_k.
    r_k(x): responsibility of component k for x.
    alpha, sigma: mean scale and noise of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import numbers, positive, whole
from scoresde.data import DataScale
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.models.conditions import LABEL, Condition, check_labels, of_class
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.models.moments import Moments
from scoresde.random import randn
from scoresde.sde import SDE, Level

NARROWER = 0.5  # share of the overall variance below which a component counts as narrower in a direction
LARGEST_EXACT = 256  # entries up to which every direction is looked at

#: what torch.as_tensor takes
Array = Tensor | Sequence[object] | float


@runtime_checkable
class HasMatrix(Protocol):
    """A linear operator that gives its matrix.

    :class:`scoresde.guidance.LinearOperator` does.
    """

    def matrix(self) -> Tensor:
        """Return the matrix, ``(m, n)``."""


@checked
class GaussianMixture:
    """The density sum_k w_k N(m_k, C_k) over data of any shape D, n = prod(D).

    All numbers are kept in float64 on the CPU. Methods compute in the dtype and on the device of their argument.

    Args:
        means: Means, ``(K, *D)``.
        covariances: Full ``(K, n, n)``, diagonal ``(K, n)``, isotropic variances ``(K,)``, or one variance for all.
        weights: Positive weights ``(K,)``, normalised to sum to one. None: equal weights.

    Raises:
        ShapeError: The shapes do not fit.
        ArgumentError: A covariance is not positive definite; a weight is not positive; a mean is not finite.
    """

    def __init__(self, means: Array, covariances: Array, weights: Array | None = None):
        means = numbers("means", means, dtype=torch.float64).cpu()
        if means.ndim < 1 or not means.numel():
            raise ShapeError("means", tuple(means.shape), "of shape (K, *D) with at least one component")
        if not bool(means.isfinite().all()):
            raise ArgumentError("means", "NaN or infinity", "finite numbers")
        K, self.shape = means.shape[0], tuple(means.shape[1:])
        self.means = means.reshape(K, -1)
        self.values, self.vectors = _eigen(covariances, K, self.means.shape[1])
        weights = torch.ones(K) if weights is None else weights
        weights = numbers("weights", weights, dtype=torch.float64).cpu()
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

    @cached_property
    def data_scale(self) -> DataScale:
        """The lengths of the mixture.

        The largest is that of its moments or of its widest component. The finest is the least width of a component in
        those directions in which it is narrower than the Gaussian of the moments.
        """
        moments = self.moments
        largest = max(moments.values.max().sqrt().item(), self.values.max().sqrt().item())
        finest = min(self._finest(), largest)
        return DataScale(moments.std, largest, finest, moments.values.min().sqrt().item())

    def _finest(self) -> float:
        """Return the finest length of :attr:`data_scale`, or infinity."""
        overall = self.moments.values.clamp(min=torch.finfo(torch.float64).tiny)
        axes = self.moments.vectors
        isotropic = self.vectors is None and bool((self.values == self.values[:, :1]).all())
        if isotropic or self.values.shape[1] > LARGEST_EXACT:
            narrow = self.values.min(1).values
            narrow = narrow[narrow < NARROWER * overall.max()]
            return narrow.min().sqrt().item() if len(narrow) else math.inf
        # in the coordinates in which the moments' Gaussian is N(0, I)
        covariances = torch.diag_embed(self.values)
        if self.vectors is not None:
            covariances = self.vectors @ covariances @ self.vectors.mT
        if axes is not None:
            covariances = axes.T @ covariances @ axes
        root = overall.sqrt()
        shares, directions = torch.linalg.eigh(covariances / root / root[:, None])
        lengths = shares.clamp(min=0).sqrt() * (root[:, None] * directions).norm(dim=1)
        narrow = lengths[shares < NARROWER]
        return narrow.min().item() if len(narrow) else math.inf

    @overload
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...

    @overload
    def sample(
        self, n: int, generator: torch.Generator | None = None, *, return_component: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def sample(
        self, n: int, generator: torch.Generator | None = None, return_component: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    @checked
    def sample(
        self, n: int, generator: torch.Generator | None = None, return_component: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw samples ``(n, *D)`` in float64 on the CPU.

        Args:
            n: Number of samples.
            generator: Source of all randomness. None: torch's default.
            return_component: Whether to return ``(samples, components (n,))``, default False.

        Raises:
            ArgumentError: ``n`` is not a positive integer.
        """
        n = whole("n", n)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = randn((n, self.means.shape[1]), generator, "cpu", torch.float64) * self.values[k].sqrt()
        if self.vectors is not None:
            z = torch.einsum("nij,nj->ni", self.vectors[k], z)
        x = (self.means[k] + z).reshape(n, *self.shape)
        return (x, k) if return_component else x

    @checked
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, ``(B,)`` for x ``(B, *D)``."""
        return GaussianMixtureModel(self, None).log_prob(x)

    def posterior(self, A: Tensor | HasMatrix, y: Array, noise: float) -> GaussianMixture:
        """Return p(x_0 | y) for y = A x_0 + noise n with n ~ N(0, I).

        It is a Gaussian mixture again. With S_k = A C_k A' + noise^2 I and the gain K_k = C_k A' S_k^{-1} it has

            means m_k + K_k (y - A m_k),  covariances (I - K_k A) C_k,  weights in proportion to w_k N(y; A m_k, S_k).

        Its model under an SDE is the exact conditional one: grad log p_t(y | x_t) is the difference of the two scores.

        Args:
            A: A matrix ``(m, n)`` on x flattened, or a :class:`~scoresde.guidance.LinearOperator`.
            y: The observation, m numbers in any shape.
            noise: Standard deviation of the noise, positive.

        Raises:
            ShapeError: A or y do not fit.
            ArgumentError: ``noise`` is not positive.
        """
        A = torch.as_tensor(A.matrix() if isinstance(A, HasMatrix) else A, dtype=torch.float64, device="cpu")
        K, n = self.means.shape
        if A.ndim != 2 or A.shape[1] != n:
            raise ShapeError("A", tuple(A.shape), f"of shape (m, {n})")
        y = torch.as_tensor(y, dtype=torch.float64, device="cpu")
        if y.numel() != len(A):
            raise ShapeError("y", tuple(y.shape), f"{len(A)} numbers, one for each row of A")
        noise = positive("noise", noise)
        C = torch.diag_embed(self.values)
        if self.vectors is not None:
            C = self.vectors @ C @ self.vectors.mT
        # 1. means and covariances, component by component
        S = A @ C @ A.T + noise**2 * torch.eye(len(A), dtype=torch.float64)
        r = y.flatten() - self.means @ A.T
        gain = torch.linalg.solve(S, A @ C).mT
        kept = torch.eye(n, dtype=torch.float64) - gain @ A
        covariances = kept @ C @ kept.mT + noise**2 * gain @ gain.mT  # Joseph's form stays positive despite rounding
        means = (self.means + torch.einsum("kij,kj->ki", gain, r)).reshape(K, *self.shape)
        # 2. weights by the evidence of each component
        distance = (r * torch.linalg.solve(S, r[..., None])[..., 0]).sum(1)
        weights = (self.weights.log() - 0.5 * (distance + torch.linalg.slogdet(S)[1])).softmax(0)
        weights = weights.clamp_min(torch.finfo(weights.dtype).tiny)
        return GaussianMixture(means, (covariances + covariances.mT) / 2, weights)

    @checked
    def model(self, sde: SDE) -> GaussianMixtureModel:
        """Return the perfect model of this mixture under ``sde``.

        Its x_0, eps and score are exact at every t.
        """
        return GaussianMixtureModel(self, sde)

    def __repr__(self) -> str:
        return f"GaussianMixture({len(self.weights)} components over data of shape {self.shape})"


def _eigen(covariances: Array, K: int, n: int) -> tuple[Tensor, Tensor | None]:
    """Return eigenvalues ``(K, n)`` and eigenvectors ``(K, n, n)``.

    The eigenvectors of diagonal covariances are None, the axes.
    """
    covariances = numbers("covariances", covariances, dtype=torch.float64).cpu()
    vectors = None
    if covariances.ndim == 0:
        covariances = covariances.expand(K)
    if covariances.shape == (K,):  # isotropic; (K,) reads as variances also when K == n
        values = covariances[:, None].expand(K, n).clone()
    elif covariances.shape == (K, n):
        values = covariances.clone()
    elif covariances.shape == (K, n, n):
        if not torch.allclose(covariances, covariances.mT, rtol=1e-8, atol=1e-12):
            raise ArgumentError("covariances", "a matrix that is not symmetric", "symmetric matrices")
        values, vectors = torch.linalg.eigh(covariances)
    else:
        expected = f"of shape (), ({K},), ({K}, {n}) or ({K}, {n}, {n})"
        raise ShapeError("covariances", tuple(covariances.shape), expected)
    if not bool((values > 0).all() and values.isfinite().all()):
        wrong = f"an eigenvalue {values.min().item():g}"
        raise ArgumentError("covariances", wrong, "matrices with positive finite eigenvalues")
    return values, vectors


class GaussianMixtureModel(Model):
    """The exact model of a Gaussian mixture.

        p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I)

        eps = sigma sum_k r_k (alpha^2 C_k + sigma^2 I)^{-1} (x - alpha m_k)

        x0 = sum_k r_k [m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^{-1} (x - alpha m_k)]

    Nothing is divided by alpha or sigma, so both are exact at every t. The inverses are taken in the eigenbases of C_k.

    The components are classes. With ``cond={"y": k}``, ``(B,)`` int64, it is the exact model of N(m_k, C_k), and with
    y = -1 that of the mixture.

    Args:
        mixture: The mixture.
        sde: The process. None: only the density of the mixture itself is needed.
    """

    means: Tensor
    values: Tensor
    vectors: Tensor | None
    log_weights: Tensor

    def __init__(self, mixture: GaussianMixture, sde: SDE | None):
        super().__init__()
        if sde is not None:
            self.sde = sde
        self.mixture, self.moments, self.data_scale = mixture, mixture.moments, mixture.data_scale
        self.register_buffer("means", mixture.means)
        self.register_buffer("values", mixture.values)
        self.register_buffer("vectors", mixture.vectors)
        self.register_buffer("log_weights", mixture.weights.log())

    def _terms(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float | Tensor, float | Tensor]:
        """Return ``(log r, z, c, alpha, sigma)`` for x ``(B, *D)``.

        log r ``(B, K)`` is not normalised, z ``(B, K, n)`` is x - alpha m_k in the eigenbasis of C_k, and c are its
        variances. alpha and sigma are shaped to multiply them.
        """
        if x.shape[1:] != self.mixture.shape:
            raise ShapeError("x", tuple(x.shape), f"of shape (B, {', '.join(map(str, self.mixture.shape))})")
        if not x.is_floating_point():
            raise DTypeError("x", x.dtype, "a floating-point tensor")
        alpha, sigma = (v.reshape(-1, 1, 1) if isinstance(v, Tensor) else v for v in (alpha, sigma))
        z = x.reshape(x.shape[0], 1, -1) - alpha * self.means.to(x)
        if self.vectors is not None:
            z = torch.einsum("bki,kij->bkj", z, self.vectors.to(x))
        c = alpha**2 * self.values.to(x) + sigma**2
        log_r = self.log_weights.to(x) - 0.5 * (z * z / c + c.log()).sum(-1)
        return log_r, z, c, alpha, sigma

    def _combine(self, r: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """Return sum_k r_k V_k z_k in the shape of x."""
        if self.vectors is None:
            return torch.einsum("bk,bki->bi", r, z).reshape(x.shape)
        return torch.einsum("bki,kji->bj", r[..., None] * z, self.vectors.to(x)).reshape(x.shape)

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        log_r, z, c, alpha, sigma = self._terms(x, level.alpha, level.sigma)
        labels = (cond or {}).get(LABEL)
        if labels is not None:
            labels = check_labels(labels, len(x), log_r.shape[1])[:, None]
            other = (labels >= 0) & (labels != torch.arange(log_r.shape[1], device=labels.device))
            log_r = log_r.masked_fill(other, -math.inf)
        r = log_r.softmax(1)
        u = z / c
        eps = self._combine(r, sigma * u, x)
        x0 = self._combine(r, alpha * self.values.to(x) * u, x) + (r @ self.means.to(x)).reshape(x.shape)
        return Estimate(x0, eps, level)

    @checked
    def log_prob(self, x: Tensor, t: float | Tensor | None = None) -> Tensor:
        """Return log p_t(x) in nats, ``(B,)``.

        Args:
            x: Points, ``(B, *D)``.
            t: Time, a number, ``()`` or ``(B,)``. None: the mixture's own density.
        """
        alpha, sigma = (1.0, 0.0) if t is None else self.sde.level(t, x)[1:3]
        log_r, z, *_ = self._terms(x, alpha, sigma)
        return log_r.logsumexp(1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)

    @checked
    def log_responsibilities(self, x: Tensor, t: float | Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Return log p(k | x_t) ``(B, K)`` of the components.

        This is an exact classifier, differentiable in x.

        Args:
            x: Noisy samples, ``(B, *D)``.
            t: Time, a number, ``()`` or ``(B,)``. None: the mixture itself.
            y: Class labels ``(B,)`` int64, to return log p(y | x_t) ``(B,)`` alone; 0 where y = -1.
        """
        alpha, sigma = (1.0, 0.0) if t is None else self.sde.level(t, x)[1:3]
        log_r = self._terms(x, alpha, sigma)[0].log_softmax(1)
        return log_r if y is None else of_class(log_r, y)

    def extra_repr(self) -> str:
        return f"{self.mixture!r}"
