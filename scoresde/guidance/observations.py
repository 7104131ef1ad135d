r"""Inverse problems: from a model of p(x_0) to one of p(x_0 | y), for an observation y = A x_0 + noise n, n ~ N(0, I).

The reverse SDE and the flow of p(x_0 | y) are those of p(x_0) with the score s + g, g = grad log p_t(y | x_t) (E10). By
x_t = alpha x0 + sigma eps and score = -eps/sigma that is

    x0' = x0 + (sigma^2/alpha) g,    eps' = eps - sigma g.

g is not known: p_t(y | x_t) = int p(y | x_0) p(x_0 | x_t) dx_0 needs all of p(x_0 | x_t), and a network tells its mean
x0 and, by its Jacobian J = d x0/d x_t, its covariance C = (sigma^2/alpha) J (Tweedie's second formula). With
N(x0, C) for p(x_0 | x_t), and J taken as constant,

    g = J' A' u,    u = (A C A' + noise^2 I)^{-1} (y - A x0).

The methods differ in C: the network's own (:func:`moment_matching`), r^2 I (:func:`pigdm`), none at all (:func:`dps`).
Each takes a model and gives a model, so that every sampler, the flow and the likelihood work with it unchanged.

An observation y ``(*E)`` is one for all samples. One a sample goes through ``cond={"observation": y}`` with y
``(B, *E)``, and ``"observation_noise"`` ``(B,)`` likewise: then samplers and likelihoods cut it along with the batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.guidance.operators import LinearOperator, per_sample_dot
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate, Unguided
from scoresde.models.model import Model
from scoresde.models.moments import Moments, denoised_variance
from scoresde.models.wrappers import Wrapper
from scoresde.sde import Level
from scoresde.sde.tensors import broadcast

OBSERVATION, NOISE = "observation", "observation_noise"  # their names in cond
PROJECTION_FLOOR = 1e-9  # added to the eigenvalues of A A' where y is without noise
DPS_STEPS = 1000  # of the paper's sampler, which its scale is for


def _noise(noise, zero: bool) -> Tensor:
    value = torch.as_tensor(noise, dtype=torch.float64, device="cpu")
    good = value.isfinite() & (value >= 0 if zero else value > 0)
    if value.ndim > 1 or not bool(good.all()):
        got = f"{tuple(value.shape)} numbers from {value.min().item():g}" if value.ndim else value.item()
        raise ArgumentError("noise", got, f"a standard deviation {'>= 0' if zero else '> 0'}, () or (B,)")
    return value


class _Observed(Wrapper):
    """A model that knows an observation: finds y and noise in itself or in ``cond``."""

    noiseless = False  # whether noise may be 0

    def __init__(self, model: Model, operator: LinearOperator, y: Tensor | None, noise: float | Tensor | None):
        super().__init__(model)
        self.moments = None  # those of x_0, not of x_0 given y
        if not isinstance(operator, LinearOperator):
            raise DTypeError("operator", type(operator).__name__, "a LinearOperator, such as Inpainting(mask)")
        self.operator = operator
        if y is not None:
            if not isinstance(y, Tensor) or not y.is_floating_point():
                raise DTypeError("y", getattr(y, "dtype", type(y).__name__), "a floating-point tensor")
            if tuple(y.shape[-len(operator.y_shape) :]) != operator.y_shape or y.ndim > len(operator.y_shape) + 1:
                raise ShapeError("y", tuple(y.shape), f"{operator.y_shape}, or one a sample, (B, *{operator.y_shape})")
            seen = operator.residual(y.detach().reshape(-1, *operator.y_shape), torch.zeros(1, *operator.shape).to(y))
            if not bool(seen.isfinite().all()):
                raise ArgumentError("y", "NaN or infinity", "finite numbers")
        self.register_buffer("y", None if y is None else y.detach())
        self.register_buffer("noise", None if noise is None else _noise(noise, self.noiseless))

    def observation(self, x: Tensor, cond: Condition):
        """``(y, noise, cond)``: y and noise in arithmetic with y, and what is left of ``cond`` for the network."""
        rest = {name: value for name, value in (cond or {}).items() if name not in (OBSERVATION, NOISE)}
        y = (cond or {}).get(OBSERVATION, self.y)
        noise = (cond or {}).get(NOISE, self.noise)
        for name, value in ((OBSERVATION, y), (NOISE, noise)):
            if value is None:
                raise ArgumentError(name, None, f"y and noise given to the method, or as cond[{name!r}]")
        self.operator.check_x(x)
        shape = self.operator.y_shape
        if tuple(y.shape) not in (shape, (len(x), *shape)):
            expected = f"{shape} or {(len(x), *shape)}; one a sample is best given as cond[{OBSERVATION!r}]"
            raise ShapeError("y", tuple(y.shape), expected)
        y = y.to(x)
        y = y if y.ndim > len(shape) else y[None]
        return y, broadcast(noise.to(x), y if noise.ndim == 0 else x, "noise"), rest or None


class Jacobian(NamedTuple):
    """The network's answer with its graph: x0, and v -> J' v with J = d x0/d x_t."""

    x0: Tensor
    vjp: Callable[[Tensor], Tensor]


def add_gradient(
    model: Model, x: Tensor, level: Level, cond, direction: Callable[[Jacobian], tuple[Tensor, Tensor]]
) -> Estimate:
    """The model's estimate with g added to its score; differentiable in x where the caller differentiates.

    Args:
        direction: from the network's x0 and Jacobian to g ``(B, *D)`` and to the log p_t(y | x_t) ``(B,)`` it stands
            for, up to a function of t.
    """
    tracked = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        z = x if tracked else x.detach().requires_grad_()
        graph = model.estimate(z, level, cond)

    def vjp(v: Tensor) -> Tensor:
        return torch.autograd.grad(graph.x0, z, v, retain_graph=True, create_graph=tracked)[0]

    keep = (lambda value: value) if tracked else Tensor.detach
    x0, eps, v = keep(graph.x0), keep(graph.eps), None if graph.v is None else keep(graph.v)
    with torch.set_grad_enabled(tracked):
        g, log_p = direction(Jacobian(x0, vjp))
        guided = x0 + (level.sigma**2 / level.alpha) * g, eps - level.sigma * g
    return Estimate(*guided, level, v, Unguided(x0, eps, log_p))


def like_y(value, y: Tensor):
    """A number of each sample ``(B, 1, ..., 1)``, or one for all, shaped for arithmetic with ``y``."""
    return value.reshape(-1, *(1,) * (y.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


class _Guided(_Observed):
    """g = J' A' u; subclasses give u. The log p_t(y | x_t) they stand for is -r' u/2, r = y - A x0."""

    def estimate(self, x, level, cond=None):
        y, noise, cond = self.observation(x, cond)

        def direction(network: Jacobian) -> tuple[Tensor, Tensor]:
            r = self.operator.residual(y, network.x0)
            g, fit = self.pull(network, r, noise, level)
            return g, -0.5 * fit.flatten()

        return add_gradient(self.model, x, level, cond, direction)

    def pull(self, network: Jacobian, r: Tensor, noise: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """g ``(B, *D)`` and r' u ``(B, 1, ..., 1)`` from r ``(B, *E)``."""
        u = self.weigh(r, noise, level)
        return network.vjp(self.operator.At(u)), per_sample_dot(r, u)

    @abstractmethod
    def weigh(self, r: Tensor, noise: Tensor, level: Level) -> Tensor:
        """u ``(B, *E)``."""


class _DPS(_Guided):
    def __init__(self, model, operator, y, noise, scale):
        super().__init__(model, operator, y, noise)
        self.scale = scale

    def estimate(self, x, level, cond=None):
        estimate = super().estimate(x, level, cond)
        return estimate if self.scale is None else estimate._replace(unguided=None)  # it stands for no likelihood

    def weigh(self, r, noise, level):
        if self.scale is None:
            return r / noise**2
        t = level.t if isinstance(level.t, Tensor) else torch.tensor(level.t, dtype=torch.float64)
        step = self.scale * DPS_STEPS / self.sde.squared_diffusion(t).to(r)
        norm = per_sample_dot(r, r).sqrt().clamp_min(torch.finfo(r.dtype).tiny)
        return r * like_y(step, r) / norm


class _PiGDM(_Guided):
    def __init__(self, model, operator, y, noise, variance):
        super().__init__(model, operator, y, noise)
        self.variance = variance

    def weigh(self, r, noise, level):
        c = denoised_variance(self.variance, level.alpha, level.sigma)
        return self.operator.gram_solve(r, like_y(c, r), noise**2)


class _GaussianData(_Guided):
    def __init__(self, model, operator, y, noise, moments):
        super().__init__(model, operator, y, noise)
        matrix = operator.matrix()
        self.register_buffer("variances", moments.values)
        self.register_buffer("seen", moments.gaussian(matrix).to_eigen(matrix))  # A in the eigenbasis of C

    def weigh(self, r, noise, level):
        sigma, alpha = (value.reshape(-1, 1) if isinstance(value, Tensor) else value for value in level[2:0:-1])
        variances, seen = self.variances.to(r), self.seen.to(r)
        c = denoised_variance(variances, alpha, sigma)
        S = (seen * c[..., None, :]) @ seen.T + (noise**2).reshape(-1, 1, 1) * torch.eye(
            len(seen), dtype=r.dtype, device=r.device
        )
        return torch.linalg.solve(S, r.reshape(len(r), -1, 1)).reshape(r.shape)


class _MomentMatching(_Guided):
    def __init__(self, model, operator, y, noise, iterations):
        super().__init__(model, operator, y, noise)
        self.iterations = min(math.prod(operator.y_shape), 10) if iterations is None else iterations

    def pull(self, network, r, noise, level):
        # conjugate gradients for u, with J' A' of each direction kept: their sum is g, at no further product
        ratio = like_y(level.sigma**2 / level.alpha, r)
        g, fit, p, square = 0.0, 0.0, r, per_sample_dot(r, r)
        tiny = square * torch.finfo(r.dtype).eps ** 2
        for _ in range(self.iterations):
            pulled = network.vjp(self.operator.At(p))
            q = ratio * self.operator.A(pulled) + noise**2 * p
            curvature = per_sample_dot(p, q)
            going = (square > tiny) & (curvature > 0)
            step = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
            g = g + step.reshape(-1, *(1,) * (pulled.ndim - 1)) * pulled
            fit = fit + step * square
            r = r - step * q
            before, square = square, per_sample_dot(r, r)
            p = r + torch.where(going, square / torch.where(going, before, 1.0), 0.0) * p
        return g, fit


class _Replacement(_Observed):
    noiseless = True

    def estimate(self, x, level, cond=None):
        y, noise, cond = self.observation(x, cond)
        estimate = self.model.estimate(x, level, cond)
        r = self.operator.residual(y, estimate.x0)
        alpha, sigma = like_y(level.alpha, r), like_y(level.sigma, r)
        total = (alpha * noise) ** 2 + sigma**2
        c = torch.where(total > 0, sigma**2 / total, 1.0)
        move = self.operator.At(c * self.operator.gram_solve(r, c, 1 - c + PROJECTION_FLOOR))
        return Estimate(estimate.x0 + move, estimate.eps - level.ratio * move, level, estimate.v)


class _WithLikelihood(Wrapper):
    def __init__(self, model, log_p):
        super().__init__(model)
        self.moments, self.log_p = None, log_p

    def estimate(self, x, level, cond=None):
        def direction(network: Jacobian) -> tuple[Tensor, Tensor]:
            tracked = torch.is_grad_enabled()
            with torch.enable_grad():
                x0 = network.x0 if tracked else network.x0.requires_grad_()
                log_p = self.log_p(x0)
                if log_p.shape != (len(x),):
                    raise ShapeError("log_p_y_given_x0's value", tuple(log_p.shape), f"({len(x)},), one a sample")
                gradient = torch.autograd.grad(log_p.sum(), x0, create_graph=tracked)[0]
            return network.vjp(gradient), log_p if tracked else log_p.detach()

        return add_gradient(self.model, x, level, cond, direction)


def replacement(
    model: Model, operator: LinearOperator, y: Tensor | None = None, noise: float | Tensor | None = 0.0
) -> Model:
    """Replacement (N4; Song et al. 2021, appendix I): what A sees of x0 is set to the observation.

    x0' = x0 + A' (A A' + (noise^2/rho^2) I)^{-1} (y - A x0) with rho = sigma/alpha, and eps' = (x - alpha x0')/sigma.
    With a mask and no noise that is y on the known entries and x0 on the others. A step of the reverse process with
    x0 = y draws from p(x_s | x_t, x_0 = y), so the known part of x is the observation, noised to the level, all the way
    from the start: what the paper writes over x after each step, in a form that every solver can take. It is not exact:
    the unknown part of x0 is E[x_0 | x_t], which sees the observation through its noise only.
    For other operators it is the projection onto {A x = y} (Song et al. 2022; Wang et al. 2023).

    Args:
        noise: of y; 0 is allowed, and then A x0' = y, and the samples of a sampler with ``last="tweedie"`` likewise.
    """
    return _Replacement(model, operator, y, noise)


def dps(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    scale: float | None = None,
) -> Model:
    """Diffusion posterior sampling (Chung et al. 2023): p_t(y | x_t) taken for p(y | x_0 = x0), so u = r/noise^2.

    That is far too sure of itself at high noise, where x0 is an average: steps that are small against noise^2 are
    needed. With ``scale`` = zeta the guidance is the paper's practice instead, a step of zeta grad |y - A x0| for each
    of its 1000 steps, whatever the number of the sampler's: g = -zeta 1000/g(t)^2 grad |r|. zeta, about 0.3 to 1 for
    images, goes down with their size.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise ArgumentError("scale", scale, "a positive number, or None")
    return _DPS(model, operator, y, noise, scale)


def pigdm(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    variance: float | None = None,
) -> Model:
    """Pseudo-inverse guidance (Song et al. 2023): p(x_0 | x_t) taken for N(x0, r^2 I), r^2 = v rho^2/(v + rho^2).

    rho = sigma/alpha, and v is the variance of the data, for which r^2 would be right if they were N(0, v I). One
    product with the network's Jacobian a call.

    Args:
        variance: v; default the mean variance of the model's moments, or 1.
    """
    if variance is None:
        variance = 1.0 if model.moments is None else model.moments.std**2
    if not 0 < variance < math.inf:
        raise ArgumentError("variance", variance, "a positive number")
    return _PiGDM(model, operator, y, noise, float(variance))


def gaussian_data(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    moments: Moments | None = None,
) -> Model:
    """p(x_0 | x_t) taken for N(x0, (C^{-1} + I/rho^2)^{-1}), C the data's covariance: exact for Gaussian data.

    One product with the network's Jacobian a call, as :func:`pigdm`, of which it is the form for data with correlated
    entries; an m x m system for m numbers in y, so for m up to some hundreds.

    Args:
        moments: of the data; default the model's.
    """
    moments = model.moments if moments is None else moments
    if moments is None:
        raise ArgumentError("moments", None, "the data's Moments, as the model has none")
    return _GaussianData(model, operator, y, noise, moments)


def moment_matching(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    iterations: int | None = None,
) -> Model:
    """p(x_0 | x_t) taken for the Gaussian with the network's own mean and covariance.

    C = (sigma^2/alpha) J is the exact covariance of p(x_0 | x_t) for a perfect network. The system is solved by
    conjugate gradients; each iteration costs one product with J'. Exact for Gaussian data.

    Source: Boys et al. 2023; Rozet et al. 2024.

    Args:
        iterations: of conjugate gradients; default min(dim y, 10).
    """
    if iterations is not None and (not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1):
        raise ArgumentError("iterations", iterations, "a whole number, 1 or more")
    return _MomentMatching(model, operator, y, noise, iterations)


def with_likelihood(model: Model, log_p_y_given_x0: Callable[[Tensor], Tensor]) -> Model:
    """Any likelihood: g = J' grad log p(y | x_0 = x0), the approximation of :func:`dps` for what is not linear.

    Args:
        log_p_y_given_x0: from x0 ``(B, *D)`` to nats ``(B,)``, differentiable, each from its own sample. NaN in it
            shows as a NonFiniteError at the end of a sampling run.

    Raises:
        ShapeError: at the first call, if its value is not ``(B,)``.
    """
    if not callable(log_p_y_given_x0):
        raise DTypeError("log_p_y_given_x0", type(log_p_y_given_x0).__name__, "a function of x0")
    return _WithLikelihood(model, log_p_y_given_x0)
