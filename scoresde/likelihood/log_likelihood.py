"""log p(x) by the instantaneous change of variables along the probability flow (E9)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import DataError, DeviceError, DTypeError, ShapeError, UnknownNameError
from scoresde.likelihood.divergence import Divergence, default_divergence
from scoresde.models import Model
from scoresde.models.score_model import check_finite
from scoresde.sampling.flow import ProbabilityFlowField, flat, state_dtype
from scoresde.sampling.grids import time_range
from scoresde.sampling.ode import ADAPTIVE, FIXED, integrate, rms
from scoresde.sde import Level

ENDS = ("heun", "half-tweedie", "none")
PRIORS = ("matched", "sde")


class Likelihood(NamedTuple):
    """Log-densities, and how they were found.

    Attributes:
        log_prob: log p(x_0) in nats, ``(B,)``, float64 where the device has it.
        stderr: its standard error from the random probes, ``(B,)``: 0 for an exact trace, NaN for a single probe.
        latent: x at t_max, ``(B, *D)``.
        nfe: network evaluations (the most of any sample, for methods that adapt per sample).
        t_min, t_max: the ends used.
    """

    log_prob: Tensor
    stderr: Tensor
    latent: Tensor
    nfe: int
    t_min: float
    t_max: float


class _DensityField(ProbabilityFlowField):
    """The flow and its divergence: states are ``[x (n), log-determinants (R)]``.

    d logdet / dlambda = kappa n - sigma tr(d eps/dx), from one network call and its vector-Jacobian products.
    """

    def __init__(self, model, shape, cond, divergence: Divergence, n: int, probes):
        super().__init__(model, shape, cond)
        self.divergence, self.n, self.probes = divergence, n, probes

    def noise_and_trace(self, x: Tensor, level, cond, rows: Tensor) -> tuple[Tensor, Tensor]:
        """eps ``(B, n)`` and the traces ``(B, R)`` of d eps/dx at x ``(B, *D)``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            eps = flat(self.model.estimate(x, level, cond).eps)
            trace = self.divergence.trace(eps, x, self.probes(rows, eps))
        return eps.detach(), trace

    def __call__(self, lam, y, rows):
        x, level, kappa, cond = self.at(lam, y[:, : self.n], rows)
        eps, trace = self.noise_and_trace(x, level, cond, rows)
        kappa, sigma = kappa[:, None].to(y.dtype), level.sigma.reshape(-1, 1).to(y.dtype)
        dx = kappa * y[:, : self.n] - sigma * eps.to(y.dtype)
        return torch.cat([dx, kappa * self.n - sigma * trace.to(y.dtype)], 1)


def check_data(model: Model, x0: Tensor) -> None:
    """Refuse what has no density under the model: integers, and integers that were scaled but not dequantised."""
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        kind = getattr(x0, "dtype", type(x0).__name__)
        raise DTypeError("x0", kind, "floating-point data; integer data have no density: use bits_per_dim")
    if x0.ndim < 1 or len(x0) == 0:
        raise ShapeError("x0", tuple(x0.shape), "(B, *D) with B >= 1")
    if x0.device != model.device:
        raise DeviceError("x0", x0.device, f"the model's device, {model.device}")
    check_finite(x0, "x0")
    scaling = getattr(model, "scaling", None)
    if scaling is not None and scaling.levels is not None:
        halves = 2 * scaling.unscale(x0)
        if bool(((halves - halves.round()).abs() < 1e-3).all()):
            raise DataError("x0", f"values on {scaling.levels} exact levels", "dequantised data: use bits_per_dim")


def _from_data(field: _DensityField, y: Tensor, first: Level, rows: Tensor, second_order: bool) -> tuple[Tensor, int]:
    """States at t_min from states at t = 0, and the calls spent.

    For y = x/alpha and tau = (sigma/alpha)^2 the flow is dy/dtau = eps / (2 sqrt(tau)), with the log-determinant's rate
    alpha tr(d eps/dx) / (2 sqrt(tau)). To first order it is one step with the field at tau_min; to second order Heun's
    step, its first slope extrapolated to tau = 0 from tau_min and 2 tau_min.
    """
    sde, n = field.model.sde, field.n

    def slope(y: Tensor, level: Level) -> Tensor:
        x = (level.alpha * y[:, :n]).reshape(len(y), *field.shape).to(field.model.dtype)
        eps, trace = field.noise_and_trace(x, level, field.cond, rows)
        check_finite(eps, f"the network's estimate at t = {level.t:.6g}")
        return torch.cat([eps.to(y.dtype), level.alpha * trace.to(y.dtype)], 1) / (2 * level.sigma / level.alpha)

    tau = (first.sigma / first.alpha) ** 2
    k, calls = slope(y, first), 1
    if second_order:
        beyond = sde.levels(sde.time_of(first.log_snr - math.log(2)).reshape(1))[0]
        start = 2 * k - slope(y, beyond)
        k, calls = (start + slope(y + tau * start, first)) / 2, 3
    y = y + tau * k
    return torch.cat([first.alpha * y[:, :n], y[:, n:] + n * math.log(first.alpha)], 1), calls


@torch.no_grad()
def log_likelihood(
    model: Model,
    x0: Tensor,
    divergence: Divergence | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    method: str = "dopri5",
    generator=None,
    *,
    steps: int | None = None,
    cond: Mapping[str, Tensor] | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "heun",
    prior: str = "matched",
) -> Likelihood:
    r"""log p_0(x_0) = log p_1(x_1) + int_0^1 div f~ dt along the probability flow (E9; Song et al. 2021, eq. 39).

    The flow is solved in lambda = log(alpha/sigma), in float64, and its linear part's trace is known exactly. The
    density is the model's own: of the data at t = 0, in nats per sample in the units of ``x0``.

    Args:
        model: a score model.
        x0: data ``(B, *D)`` in the model's units, floating-point. For integer data use :func:`bits_per_dim`.
        divergence: :class:`Exact` or :class:`Hutchinson`; None takes the exact trace for up to 16 entries, two probes
            beyond.
        rtol, atol: tolerances of an adaptive method, on x and on the log-determinant.
        method: ``"dopri5"``, ``"bosh3"`` (adaptive per sample), ``"rk4"``, ``"heun"``, ``"midpoint"`` (``steps`` equal
            steps in lambda, fresh probes at each stage), or torchdiffeq's and scipy's by name.
        generator: a torch.Generator for the probes, or a list of B of them.
        steps: steps of a fixed-step method; 20 by default.
        t_min, t_max: the ends of the flow; None takes the default for the SDE.
        end: how x_0 is taken to t_min, where the network begins. ``"heun"`` (three calls) extrapolates the flow below
            t_min and follows it to second order in sigma^2, ``"half-tweedie"`` (one call) to first order; their
            log-determinants are counted. ``"none"`` states the density of p_{t_min} at x_0.
        prior: ``"matched"`` is the Gaussian with the mean and covariance of p_{t_max}, if the model knows the data's
            moments; ``"sde"`` is the SDE's own.

    Raises:
        DTypeError, DataError: integer data, or integer data scaled but not dequantised.
        NonFiniteError: NaN or infinity in x0 or from the network (names the samples).
        ToleranceError: the tolerance cannot be reached.
    """
    check_data(model, x0)
    if end not in ENDS:
        raise UnknownNameError("end", end, ENDS)
    if prior not in PRIORS:
        raise UnknownNameError("prior", prior, PRIORS)
    shape, n = x0.shape[1:], x0[0].numel()
    divergence = default_divergence(n) if divergence is None else divergence
    t_min, t_max = time_range(model.sde, t_min, t_max)
    first, last = model.sde.levels(torch.tensor([t_min, t_max], dtype=torch.float64))

    def draw():
        return divergence.draw((len(x0), n), generator, x0.device, model.dtype)

    held = None if method in FIXED and divergence.fresh else draw()

    def probes(rows, eps):
        drawn = draw() if held is None else held
        return None if drawn is None else drawn[:, rows].to(eps.dtype)

    field = _DensityField(model, shape, cond, divergence, n, probes)
    y = flat(x0).to(state_dtype(x0))
    logdet = y.new_zeros(len(y), divergence.replicates)
    everyone = torch.arange(len(y), device=y.device)
    y, nfe = torch.cat([y, logdet], 1), 0
    if end != "none":
        y, nfe = _from_data(field, y, first, everyone, second_order=end == "heun")
    y, spent = integrate(
        field,
        y,
        first.log_snr / 2,
        last.log_snr / 2,
        method=method,
        rtol=rtol,
        atol=atol,
        steps=steps or (20 if method not in ADAPTIVE else None),
        norm=lambda error: torch.maximum(rms(error[:, :n]), rms(error[:, n:])),
    )
    latent, logdet = y[:, :n].reshape(len(y), *shape), y[:, n:]
    if prior == "matched" and model.moments is not None:
        prior_log_prob = model.moments.log_prob(latent, last.alpha, last.sigma)
    else:
        prior_log_prob = model.sde.prior_log_prob(latent)
    log_prob = check_finite((prior_log_prob + logdet.mean(1))[:, None], "log p")[:, 0]
    return Likelihood(log_prob, divergence.stderr(logdet), latent.to(x0.dtype), nfe + spent, t_min, t_max)
