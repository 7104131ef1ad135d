"""log p(x) by the instantaneous change of variables along the probability flow (E9)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import finite, whole
from scoresde.errors import ArgumentError, DataError, DeviceError, DTypeError, ShapeError, UnknownNameError
from scoresde.flow.field import ProbabilityFlowField, on_the_flow
from scoresde.flow.ode import FIXED, METHODS, TABLEAUX, integrate, rms
from scoresde.likelihood.divergence import Divergence, Generators, Tally, default_divergence
from scoresde.likelihood.gaussian_path import LEAST, conditional_mean, solve
from scoresde.likelihood.trace import NoiseAndTrace
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.models.evaluation import evaluation
from scoresde.sde import Level
from scoresde.sde.grids import time_range
from scoresde.sde.tensors import flat, state_dtype

ENDS = ("heun", "half-tweedie", "none")
PRIORS = ("matched", "sde")
DIFFERENTIABLE = ("direct", "adjoint")
MULTISTEP = "multistep"
CALLS, STEPS = 100, 20  # of "multistep", and of the other fixed-step methods, unless given


class Likelihood(NamedTuple):
    """Log-densities, and how they were found.

    Attributes:
        log_prob: log p(x_0) in nats, ``(B,)``, float64 where the device has it.
        stderr: its standard error from the random probes, ``(B,)``: 0 for an exact trace; NaN for a single probe that
            was kept for the whole path.
        latent: x at t_max, ``(B, *D)``.
        nfe: network evaluations (the most of any sample, for methods that adapt per sample).
        t_min, t_max: the ends used: the network is not asked below t_min.
        below: nats ``(B,)`` that the stretch from t_min to 0, where the flow is extrapolated, adds to log p: 0 for an
            end at t_min.
        prior_gap: nats ``(B,)`` by which the matched prior is above the SDE's own at the latent; NaN where the model
            does not know the moments of its data.
        defect: nats ``(B,)`` that the defect of the path of ``"multistep"`` was worth, taken out of log p (0 for other
            methods). Once the levels are too coarse the error of log p is about as large: where it is not small, take
            more calls, or an adaptive method.
        method: the solver used.
    """

    log_prob: Tensor
    stderr: Tensor
    latent: Tensor
    nfe: int
    t_min: float
    t_max: float
    below: Tensor
    prior_gap: Tensor
    defect: Tensor
    method: str


class _Run:
    """One run over a batch: it draws probes, asks the network and tallies the traces.

    Traces are of sigma d eps/dx; d log p = -(kappa n - trace) dlambda along the flow, of which the first term is known.
    """

    def __init__(self, model: Model, x0: Tensor, cond, divergence: Divergence, generator, fresh, chunk, differentiable):
        self.cond, self.divergence, self.dtype = cond, divergence, state_dtype(x0)
        fresh = fresh and divergence.fresh
        frame = divergence.frame(x0[0].numel()) if fresh else None
        self.draws = divergence.draws(len(x0), x0[0].numel(), generator, x0.device, model.dtype, frame)
        self.held = None if fresh else next(self.draws)
        self.fresh, self.tally = fresh, Tally(divergence, self.dtype, fresh, frame)
        self.network = NoiseAndTrace(model, divergence, chunk, differentiable)
        self.model_dtype = model.dtype
        self.below: Tensor | float = 0.0

    def __call__(self, x: Tensor, level: Level, weights: tuple[float, float] | None) -> Tensor:
        """eps ``(B, n)``; the trace is counted with ``weights``: for log p, and for the part of it below t_min."""
        if weights is None or weights == (0.0, 0.0):
            return self.network(x.to(self.model_dtype), level, self.cond, None, traced=False)[0].to(self.dtype)
        v = next(self.draws) if self.fresh else self.held
        eps, traces, u = self.network(x.to(self.model_dtype), level, self.cond, v)
        self.tally.add(weights[0], traces, u, self.divergence.residual(v))
        if weights[1]:
            self.below = self.below + weights[1] * traces.detach().to(self.dtype).mean(1)
        return eps.to(self.dtype)


class _Flow(ProbabilityFlowField):
    """dx/dlambda on a fixed grid, the trace of stage i counted with the i-th weight."""

    def __init__(self, model: Model, shape, run: _Run, weights: Iterator[float]):
        super().__init__(model, shape)
        self.run, self.weights = run, weights

    def __call__(self, lam, y, rows):
        x, level, kappa, _ = self.at(lam, y, rows)
        noise = level.sigma.reshape(-1, 1).to(y.dtype) * self.run(x, level, (next(self.weights), 0.0))
        return kappa[:, None].to(y.dtype) * y - noise


class _AdaptiveFlow(ProbabilityFlowField):
    """The flow and its traces, of one draw of probes: states are ``[x (n), integrals of -tr(sigma d eps/dx) (R)]``."""

    def __init__(self, model: Model, shape, cond, run: _Run):
        super().__init__(model, shape, cond)
        self.run, self.n = run, math.prod(shape)

    def __call__(self, lam, y, rows):
        x, level, kappa, cond = self.at(lam, y[:, : self.n], rows)
        v = None if self.run.held is None else self.run.held[rows]
        eps, traces, _ = self.run.network(x, level, cond, v)
        noise = level.sigma.reshape(-1, 1).to(y.dtype) * eps.to(y.dtype)
        return torch.cat([kappa[:, None].to(y.dtype) * y[:, : self.n] - noise, -traces.to(y.dtype)], 1)


def check_data(model: Model, x0: Tensor) -> None:
    """Refuse what has no density under the model: integers, and integers that were scaled but not dequantised."""
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        kind = getattr(x0, "dtype", type(x0).__name__)
        raise DTypeError("x0", kind, "floating-point data; integer data have no density: use bits_per_dim")
    if x0.ndim < 1 or len(x0) == 0:
        raise ShapeError("x0", tuple(x0.shape), "(B, *D) with B >= 1")
    if model.moments is not None and x0.shape[1:] != model.moments.mean.shape:
        expected = ", ".join(map(str, ("B", *model.moments.mean.shape)))
        raise ShapeError("x0", tuple(x0.shape), f"({expected}), the shape of the data whose moments the model keeps")
    if x0.device != model.device:
        raise DeviceError("x0", x0.device, f"the model's device, {model.device}")
    finite(x0, "x0")
    scaling = model.scaling
    if scaling is not None and scaling.num_values is not None:
        halves = 2 * scaling.unscale(x0)
        if bool(((halves - halves.round()).abs() < 1e-3).all()):
            raise DataError("x0", f"values on {scaling.num_values} exact levels", "dequantised data: use bits_per_dim")


def _from_data(run: _Run, y: Tensor, first: Level, sde, second_order: bool) -> tuple[Tensor, int]:
    """x at t_min ``(B, n)`` from x at t = 0 ``(B, *D)``, and the calls spent.

    For y = x/alpha and tau = (sigma/alpha)^2 the flow is dy/dtau = eps / (2 sqrt(tau)), with the log-determinant's rate
    tr(sigma d eps/dx) / (2 tau). To first order it is one step with the field at tau_min; to second order Heun's
    step, its first slope extrapolated to tau = 0 from tau_min and 2 tau_min.
    """
    shape, x0 = y.shape, flat(y)

    def step(y: Tensor, level: Level, weight: float) -> Tensor:
        eps = run((level.alpha * y).reshape(shape), level, (weight, weight))
        return (tau * level.alpha / (2 * level.sigma)) * eps

    tau = (first.rho) ** 2
    if not second_order:
        return first.alpha * (x0 + step(x0, first, 0.5)), 1
    beyond = sde.levels(sde.time_of(first.log_snr - math.log(2)).reshape(1))[0]
    start = 2 * step(x0, first, 0.5) - step(x0, beyond, -0.125)
    return first.alpha * (x0 + (start + step(x0 + start, first, 0.25)) / 2), 3


def log_likelihood(
    model: Model,
    x0: Tensor,
    divergence: Divergence | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    method: str | None = None,
    generator: Generators = None,
    *,
    steps: int | None = None,
    cond: Condition = None,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "heun",
    prior: str = "matched",
    chunk: int | None = None,
    differentiable: str | None = None,
) -> Likelihood:
    r"""log p_0(x_0) = log p_1(x_1) + int_0^1 div f~ dt along the probability flow (E9; Song et al. 2021, eq. 39).

    The density is the model's own: of the data at t = 0, in nats per sample in the units of ``x0``. The flow is solved
    in lambda = log(alpha/sigma), in float64; its linear part's trace is known and only the network's is estimated.

    The default is ``"multistep"`` (:mod:`scoresde.likelihood.gaussian_path`): one call and one vector-Jacobian product a
    level. With 100 calls, the exact score of mixtures of 8 Gaussians and an exact trace its mean error was below 2e-6
    nats in 2 dimensions; in 64 below 4e-5 on most mixtures, and 7e-4 where a sample passes close between two modes.

    Args:
        model: a score model; it is used in evaluation mode.
        x0: data ``(B, *D)`` in the model's units, floating-point. For integer data use :func:`bits_per_dim`.
        divergence: :class:`Exact`, :class:`Hutchinson` or :class:`HutchPP`; None takes the exact trace for up to 16
            entries, one fresh probe a stage beyond.
        rtol, atol: tolerances of an adaptive method, on x and on the log-determinant (1e-6).
        method: ``"multistep"``; ``"dopri5"`` (the default if a tolerance is given), ``"bosh3"``, adaptive per sample;
            ``"rk4"``, ``"heun"``, ``"midpoint"``, ``"euler"`` in equal steps of lambda; or torchdiffeq's and scipy's by
            name (scipy's ``"DOP853"`` is the reference). On the fixed grids of ``"multistep"`` and the Runge-Kutta
            methods probes are fresh at each stage.
        generator: a torch.Generator for the probes, or a list of B of them, one a sample.
        steps: network calls of ``"multistep"`` (100 by default), or steps of another fixed-step method (20).
        t_min, t_max: the ends of the flow; None takes the default for the SDE. ``"multistep"`` asks the network at no
            lower noise than serves for the scale of the data, where the model knows it.
        end: how x_0 is taken to t_min, where the network begins. ``"heun"`` follows the flow below t_min, extrapolated
            in sigma^2, to second order (three calls) or, with ``"multistep"``, third; ``"half-tweedie"`` to first order
            (one call; not for ``"multistep"``); their log-determinants are counted. ``"none"`` states the density of
            p_{t_min} at x_0.
        prior: ``"matched"`` is the Gaussian with the mean and covariance of p_{t_max}, if the model knows the data's
            moments (with ``"multistep"`` at infinite noise: the flow is extrapolated); ``"sde"`` is the SDE's own. For
            data under a condition the network is asked for their mean, by one of the calls; the covariance is that of
            all data, which matters less: on mixtures of 4 Gaussians in 2 to 64 dimensions the default's mean error in
            log p(x | y) was below 4e-5 nats.
        chunk: samples per network call, None for all: less memory, the same result up to the network's rounding.
        differentiable: gradients of ``log_prob`` with respect to x0 and the parameters, on a fixed grid: ``"direct"``
            keeps the graph of all calls; ``"adjoint"`` makes each call again on the way back, in the memory of one. The
            network must be twice differentiable. To train on log p take a Runge-Kutta method, such as ``"rk4"``: the
            errors of ``"multistep"`` in few calls are small only for scores that are nearly gradients, and training
            would move away from those.

    Raises:
        DTypeError, DataError: integer data, or integer data scaled but not dequantised.
        ShapeError: not the shape of the model's data.
        NonFiniteError: NaN or infinity in x0 or from the network (names the samples and t).
        ToleranceError: the tolerance cannot be reached (names t and the calls).
        ArgumentError: an adaptive method with ``differentiable``; a chunk or steps below 1.
    """
    if method is None:
        method = MULTISTEP if rtol is None and atol is None else "dopri5"
    for name, value, known in (
        ("method", method, (MULTISTEP, *METHODS)),
        ("end", end, ENDS),
        ("prior", prior, PRIORS),
        ("differentiable", differentiable, (None, *DIFFERENTIABLE)),
    ):
        if value not in known:
            raise UnknownNameError(name, value, [k for k in known if k])
    fixed = method == MULTISTEP or method in FIXED
    if differentiable and not fixed:
        raise ArgumentError(
            "method", repr(method), "a fixed grid, such as 'multistep', for a differentiable likelihood"
        )
    if method == MULTISTEP and end == "half-tweedie":
        raise ArgumentError("end", repr(end), "'heun' or 'none' for the method 'multistep'")
    if chunk is not None:
        whole("chunk", chunk)
    if steps is not None:
        whole("steps", steps)
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable is not None):
        x0 = x0.clone() if isinstance(x0, Tensor) and x0.is_inference() else x0
        check_data(model, x0.detach() if isinstance(x0, Tensor) else x0)
        with evaluation(model, parameters=differentiable is not None):
            return _solve(
                model, x0, divergence, rtol or 1e-6, atol or 1e-6, method, generator, steps, cond, t_min, t_max, end,
                prior, chunk, differentiable, fixed,
            )  # fmt: skip


def _solve(
    model, x0, divergence, rtol, atol, method, generator, steps, cond, t_min, t_max, end, prior, chunk,
    differentiable, fixed,
) -> Likelihood:  # fmt: skip
    shape, n, sde = x0.shape[1:], x0[0].numel(), model.sde
    divergence = default_divergence(n) if divergence is None else divergence
    t_min, t_max = time_range(sde, t_min, t_max)
    first, last = sde.levels(torch.tensor([t_min, t_max], dtype=torch.float64))
    run = _Run(model, x0, cond, divergence, generator, fixed, chunk, differentiable)
    y = x0.to(run.dtype)
    defect = y.new_zeros(len(y))
    moments, mean = model.moments, None
    asked = int(moments is not None and prior == "matched" and not model.knows_mean(cond))  # calls, for the mean
    if method == MULTISTEP and (steps or CALLS) < LEAST + asked:
        raise ArgumentError("steps", steps, f"{LEAST + asked} calls or more")
    if asked:
        mean = conditional_mean(run, y, sde, moments, t_max)
    if method == MULTISTEP:
        nfe = steps or CALLS
        beyond, scaling = prior == "matched" and moments is not None, model.scaling
        detail = None if scaling is None or scaling.num_values is None else scaling.scale / math.sqrt(12)
        latent, log_det, defect, t_min = solve(
            run, y, sde, moments, nfe - asked, t_min, t_max, end == "none", beyond, mean, detail
        )
    else:
        y, nfe = (flat(y), 0) if end == "none" else _from_data(run, y, first, sde, second_order=end == "heun")
        nfe += asked
        log_det = n * math.log(last.alpha / (1.0 if end != "none" else first.alpha))
        ends, grid = (first.lam, last.lam), {"method": method, "where": on_the_flow(sde)}
        if fixed:
            steps = steps or STEPS
            h = (ends[1] - ends[0]) / steps
            weights = (-h * b for _ in range(steps) for b in TABLEAUX[method].b)
            y, spent = integrate(_Flow(model, shape, run, weights), y, *ends, steps=steps, **grid)
        else:
            run.network.check()
            run.network.sums = None
            field = _AdaptiveFlow(model, shape, cond, run)
            y = torch.cat([y, y.new_zeros(len(y), divergence.probes)], 1)
            y, spent = integrate(
                field, y, *ends, rtol=rtol, atol=atol, steps=steps or STEPS,
                norm=lambda error: torch.maximum(rms(error[:, :n]), rms(error[:, n:])), **grid,
            )  # fmt: skip
            run.tally.integrals = run.tally.integrals + y[:, n:]
        latent, nfe = y[:, :n].reshape(x0.shape), nfe + spent
    log_prob = run.tally.integral + log_det
    own = sde.prior_log_prob(latent)
    matched = None if moments is None else moments.log_prob(latent, last.alpha, last.sigma, mean)
    log_prob = log_prob + (own if prior == "sde" or matched is None else matched)
    if run.network.sums is not None:
        run.network.check()
    finite(log_prob.detach()[:, None], "log p")
    gap = torch.full_like(own, math.nan) if matched is None else matched - own
    below = torch.zeros_like(own) if isinstance(run.below, float) else run.below
    return Likelihood(
        log_prob, run.tally.stderr, latent.to(x0.dtype), nfe, t_min, t_max, below.detach(), gap.detach(),
        defect.detach(), method,
    )  # fmt: skip
