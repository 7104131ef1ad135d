r"""Guidance by Gaussian approximations of p(x_0 | x_t).

:mod:`scoresde.guidance.observations` derives the common form

    g = J' A' u,    u = (A C A' + noise^2 I)^{-1} r,    r = y - A x0,    log p_t(y | x_t) = -r' u/2 + const.

The methods differ in the covariance C that they assume for p(x_0 | x_t), with rho = sigma/alpha:

=================== ======================================= ==============================================
method              C                                       source
=================== ======================================= ==============================================
dps                 0                                       Chung et al. 2023
pigdm               v rho^2/(v + rho^2) I                   Song et al. 2023
gaussian_data       (C_0^{-1} + I/rho^2)^{-1}, C_0 of x_0   pigdm for correlated data
moment_matching     (sigma^2/alpha) J                       Boys et al. 2023; Rozet et al. 2024
=================== ======================================= ==============================================
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError
from scoresde.guidance.observations import Jacobian, Observed, add_gradient, like_y
from scoresde.guidance.operators import LinearOperator
from scoresde.guidance.solvers import conjugate_gradient_steps, per_sample_dot
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.models.moments import Moments, denoised_variance
from scoresde.sde import Level

DPS_STEPS = 1000  # of the paper's sampler, for which its scale is made
DEFAULT_ITERATIONS = 10  # of conjugate gradients, at most


class _Guided(Observed):
    """A model guided by g = J' A' u; subclasses give :meth:`pull`."""

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        y, noise, cond = self.observation(x, cond)

        def direction(network: Jacobian) -> tuple[Tensor, Tensor]:
            r = self.operator.residual(y, network.x0)
            g, fit = self.pull(network, r, noise, level)
            return g, -0.5 * fit.flatten()

        return add_gradient(self.model, x, level, cond, direction)

    @abstractmethod
    def pull(self, network: Jacobian, r: Tensor, noise: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return g ``(B, *D)`` and r' u ``(B, 1, ..., 1)`` from r ``(B, *E)``."""


class _Weighted(_Guided):
    """A method that has u in closed form; subclasses give :meth:`weigh`."""

    def pull(self, network: Jacobian, r: Tensor, noise: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        u = self.weigh(r, noise, level)
        return network.vjp(self.operator.At(u)), per_sample_dot(r, u)

    @abstractmethod
    def weigh(self, r: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Return u ``(B, *E)``."""


class _DPS(_Weighted):
    def __init__(
        self,
        model: Model,
        operator: LinearOperator,
        y: Tensor | None,
        noise: float | Tensor | None,
        scale: float | None,
    ):
        super().__init__(model, operator, y, noise)
        self.scale = scale
        self.guidance = math.inf  # the gradient has no bound

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        estimate = super().estimate(x, level, cond)
        return estimate if self.scale is None else estimate._replace(unguided=None)  # it stands for no likelihood

    def weigh(self, r: Tensor, noise: Tensor, level: Level) -> Tensor:
        if self.scale is None:
            return r / noise**2
        t = level.t if isinstance(level.t, Tensor) else torch.tensor(level.t, dtype=torch.float64)
        step = self.scale * DPS_STEPS / self.sde.squared_diffusion(t).to(r)
        norm = per_sample_dot(r, r).sqrt().clamp_min(torch.finfo(r.dtype).tiny)
        return r * like_y(step, r) / norm

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class _PiGDM(_Weighted):
    def __init__(
        self,
        model: Model,
        operator: LinearOperator,
        y: Tensor | None,
        noise: float | Tensor | None,
        variance: float,
    ):
        super().__init__(model, operator, y, noise)
        self.variance = variance

    def weigh(self, r: Tensor, noise: Tensor, level: Level) -> Tensor:
        c = denoised_variance(self.variance, level.alpha, level.sigma)
        return self.operator.gram_solve(r, like_y(c, r), noise**2)

    def extra_repr(self) -> str:
        return f"variance={self.variance}"


class _GaussianData(_Weighted):
    variances: Tensor
    seen: Tensor

    def __init__(
        self,
        model: Model,
        operator: LinearOperator,
        y: Tensor | None,
        noise: float | Tensor | None,
        moments: Moments,
    ):
        super().__init__(model, operator, y, noise)
        matrix = operator.matrix()
        self.register_buffer("variances", moments.values)
        self.register_buffer("seen", moments.gaussian(matrix).to_eigen(matrix))  # A in the eigenbasis of C_0

    def weigh(self, r: Tensor, noise: Tensor, level: Level) -> Tensor:
        sigma, alpha = (value.reshape(-1, 1) if isinstance(value, Tensor) else value for value in level[2:0:-1])
        variances, seen = self.variances.to(r), self.seen.to(r)
        c = denoised_variance(variances, alpha, sigma)
        eye = torch.eye(len(seen), dtype=r.dtype, device=r.device)
        S = (seen * c[..., None, :]) @ seen.T + (noise**2).reshape(-1, 1, 1) * eye
        u: Tensor = torch.linalg.solve(S, r.reshape(len(r), -1, 1))
        return u.reshape(r.shape)


class _MomentMatching(_Guided):
    def __init__(
        self,
        model: Model,
        operator: LinearOperator,
        y: Tensor | None,
        noise: float | Tensor | None,
        iterations: int | None,
    ):
        super().__init__(model, operator, y, noise)
        self.iterations = min(math.prod(operator.y_shape), DEFAULT_ITERATIONS) if iterations is None else iterations

    def pull(self, network: Jacobian, r: Tensor, noise: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        ratio = like_y(level.sigma**2 / level.alpha, r)

        def apply(p: Tensor) -> tuple[Tensor, Tensor]:
            pulled = network.vjp(self.operator.At(p))
            return ratio * self.operator.A(pulled) + noise**2 * p, pulled

        g, fit = torch.zeros_like(network.x0), torch.zeros_like(per_sample_dot(r, r))
        for step in conjugate_gradient_steps(apply, r, self.iterations):  # the images J' A' p add up to g
            g = g + like_y(step.size.flatten(), step.image) * step.image
            fit = fit + step.size * step.square
        return g, fit

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}"


@checked
def dps(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    scale: float | None = None,
) -> Model:
    """Return the model with diffusion posterior sampling (Chung et al. 2023).

    Assumption: p_t(y | x_t) = p(y | x_0 = x0), so u = r/noise^2. This is overconfident at high noise, where x0 is only
    a posterior mean, and needs steps that are small against noise^2.

    Args:
        model: The model of p(x_0).
        operator: A.
        y: Observation, ``(*E)`` or ``(B, *E)``. None: in ``cond``.
        noise: Standard deviation of y, positive, ``()`` or ``(B,)``. None: in ``cond``.
        scale: zeta of the paper's practice, about 0.3 to 1 for images, smaller for larger ones. Guidance is then a step
            of zeta grad |y - A x0| for each of the paper's 1000 steps, whatever the number of the sampler's:
            g = -zeta 1000/g(t)^2 grad |r|. None: the assumption above.

    Raises:
        DTypeError, ShapeError, ArgumentError: An argument does not fit.

    References: Chung et al. (2023).
    """
    return _DPS(model, operator, y, noise, None if scale is None else positive("scale", scale))


@checked
def pigdm(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    variance: float | None = None,
) -> Model:
    """Return the model with pseudo-inverse guidance (Song et al. 2023).

    Assumption: p(x_0 | x_t) = N(x0, r^2 I), r^2 = v rho^2/(v + rho^2), which is right for data N(0, v I). A call costs
    one product with the network's Jacobian.

    Args:
        model: The model of p(x_0).
        operator: A.
        y: Observation, ``(*E)`` or ``(B, *E)``. None: in ``cond``.
        noise: Standard deviation of y, positive, ``()`` or ``(B,)``. None: in ``cond``.
        variance: v, positive. None: the mean variance of the model's moments, or 1 if they are unknown.

    Raises:
        DTypeError, ShapeError, ArgumentError: An argument does not fit.

    References: Song et al. (2023).
    """
    if variance is None:
        variance = 1.0 if model.moments is None else model.moments.std**2
    return _PiGDM(model, operator, y, noise, positive("variance", variance))


@checked
def gaussian_data(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    moments: Moments | None = None,
) -> Model:
    """Return the model guided as for Gaussian data, for which it is exact.

    Assumption: p(x_0 | x_t) = N(x0, (C_0^{-1} + I/rho^2)^{-1}), with C_0 the covariance of the data. This is
    :func:`pigdm` for data with correlated entries. A call costs one product with the network's Jacobian and the
    solution of an m x m system for m numbers in y, which serves for m up to some hundreds.

    Args:
        model: The model of p(x_0).
        operator: A.
        y: Observation, ``(*E)`` or ``(B, *E)``. None: in ``cond``.
        noise: Standard deviation of y, positive, ``()`` or ``(B,)``. None: in ``cond``.
        moments: Moments of the data. None: the model's.

    Raises:
        DTypeError, ShapeError, ArgumentError: An argument does not fit, or the moments are unknown.
    """
    moments = model.moments if moments is None else moments
    if moments is None:
        raise ArgumentError("moments", None, "the Moments of the data, as the model has none")
    return _GaussianData(model, operator, y, noise, moments)


@checked
def moment_matching(
    model: Model,
    operator: LinearOperator,
    y: Tensor | None = None,
    noise: float | Tensor | None = None,
    iterations: int | None = None,
) -> Model:
    """Return the model guided by the network's own covariance of p(x_0 | x_t).

    Assumption: p(x_0 | x_t) = N(x0, (sigma^2/alpha) J), whose moments are exact for a perfect network. The system for u
    is solved by conjugate gradients; each iteration costs one product with J'. Exact for Gaussian data.

    Args:
        model: The model of p(x_0).
        operator: A.
        y: Observation, ``(*E)`` or ``(B, *E)``. None: in ``cond``.
        noise: Standard deviation of y, positive, ``()`` or ``(B,)``. None: in ``cond``.
        iterations: Number of iterations, a positive integer. None: min(dim y, 10).

    Raises:
        DTypeError, ShapeError, ArgumentError: An argument does not fit.

    References: Boys et al. (2023); Rozet et al. (2024).
    """
    return _MomentMatching(model, operator, y, noise, None if iterations is None else whole("iterations", iterations))
