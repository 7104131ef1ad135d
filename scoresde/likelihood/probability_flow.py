"""log p by the change of variables along the probability flow (E9)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import finite
from scoresde.flow.field import ProbabilityFlowField, on_the_flow
from scoresde.flow.ode import integrate
from scoresde.flow.problem import MAX_CALLS, rms
from scoresde.flow.tableaux import TABLEAUX
from scoresde.likelihood.divergence import Divergence, Exact, default_divergence
from scoresde.likelihood.flow_settings import DEFAULT_STEPS, MULTISTEP, End, FlowSettings, Prior
from scoresde.likelihood.gaussian_path import FlowProblem, PathErrors, conditional_mean, solve
from scoresde.likelihood.inputs import check_data
from scoresde.likelihood.path_plan import LEAST_CALLS, Ends
from scoresde.likelihood.refinement import Attempt, Estimated, of_fixed_grid, refined
from scoresde.likelihood.results import Likelihood
from scoresde.likelihood.trace import Gradients, NoiseAndTrace, TraceIntegral
from scoresde.models import Model
from scoresde.models.conditions import Condition, check_condition, condition_rows
from scoresde.models.evaluation import evaluation
from scoresde.random import Generators
from scoresde.sde import HostLevel
from scoresde.sde.grids import check_finite_log_snr
from scoresde.sde.tensors import flat


@checked
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
    end: End = "heun",
    prior: Prior = "matched",
    chunk: int | None = None,
    differentiable: Gradients | None = None,
) -> Likelihood:
    r"""Compute the log-density of data under the probability flow (E9).

        log p_0(x_0) = log p_1(x_1) + int_0^1 div f~ dt

    The density is the model's own, at t = 0, in nats per sample in the units of ``x0``. The flow is solved in lambda =
    log(alpha/sigma), in float64. Its linear part has a known trace; only the network's part is estimated.

    Args:
        model: Score model; it is evaluated in evaluation mode.
        x0: Data ``(B, *D)`` in the model's units, floating-point. For integers use :func:`bits_per_dim`.
        divergence: :class:`Exact`, :class:`Hutchinson` or :class:`HutchPP`. None: exact for up to 16 entries, else one
            fresh probe a stage.
        rtol: Relative tolerance of an adaptive method on x and on the log-determinant, default 1e-6.
        atol: With the default method, tolerance of log p in nats a dimension, default 1e-3. With an adaptive one, its
            absolute tolerance, default 1e-6.
        method: Solver, default ``"multistep"``, or ``"dopri5"`` if ``rtol`` is given. On fixed grids, with fresh
            probes at each stage: ``"multistep"``; ``"rk4"``, ``"heun"``, ``"midpoint"``, ``"euler"`` in equal steps of
            lambda. Adaptive per sample: ``"dopri5"``, ``"bosh3"``. From torchdiffeq and scipy by their names there;
            scipy's ``"DOP853"`` is the reference.
        generator: Source of the probes, or a list of B of them, one a sample. None: torch's default.
        steps: Network calls of ``"multistep"``, or steps of another method on a fixed grid, default 20. None with
            ``"multistep"``: 100 for every sample, and more for those that miss the tolerance.
        cond: Tensors ``(B, ...)`` by name, passed to the network. None: unconditional.
        t_min, t_max: Times between which the network is evaluated. ``"multistep"`` begins where the noise is well below
            the scale of the data, if the model knows it, but not below t_min. None: the defaults for the SDE.
        end: How x_0 is carried to t_min. ``"heun"`` (default) extrapolates the flow in sigma^2, to second order by
            three calls, with ``"multistep"`` to third. ``"half-tweedie"`` does so to first order by one call, not with
            ``"multistep"``. Both add their log-determinant. ``"none"`` gives the density of p_{t_min} at x_0.
        prior: ``"matched"`` (default) is the Gaussian with the mean and covariance of p_{t_max}, if the model knows the
            moments of the data; with ``"multistep"`` at infinite noise, to which the flow is extrapolated. Under a
            condition one of the calls estimates the mean, and the covariance is that of all data. ``"sde"`` is the
            SDE's own prior.
        chunk: Samples per network call. Smaller chunks need less memory and change the result by rounding only. None:
            all.
        differentiable: Gradients of ``log_prob`` with respect to x0 and the parameters, on a fixed grid. ``"direct"``
            keeps the graph of all calls; ``"adjoint"`` repeats each call in the backward pass, in the memory of one.
            The network must be twice differentiable. None: no gradients.

    Returns:
        The log-densities ``(B,)``, their standard errors, the latents and how they were computed.

    Raises:
        DTypeError, DataError: integer data, or integer data that were scaled but not dequantised.
        ShapeError: not the shape of the model's data.
        NonFiniteError: NaN or infinity in x0 or from the network; names the samples and t.
        ToleranceError: the tolerance cannot be reached; names t and the calls.
        UnknownNameError: an unknown method, end, prior or kind of gradients.
        ArgumentError: an adaptive method with ``differentiable``; a chunk or steps below 1; too few calls.

    Warns:
        LikelihoodWarning: samples whose estimated error is above the tolerance; says how many, how far and why.

    Notes:
        ``"multistep"`` on exact mixtures of 8 Gaussians with an exact trace: mean error below 1.5e-5 nats in 2
        dimensions, and 5e-4 in 64 at 150 calls. On the families of benchmarks/defaults.py it is within 1e-3 nats a
        dimension or warns.

        To train on log p take a Runge-Kutta method such as ``"rk4"``. The errors of ``"multistep"`` in few calls are
        small only for scores that are nearly gradients, and training would move away from those.

    References: Song et al. 2021, equation 39; `docs/likelihood_solver.md` for ``"multistep"``.
    """
    found = solve_likelihood(
        model,
        x0,
        FlowSettings(divergence, rtol, atol, method, steps, t_min, t_max, end, prior, chunk, differentiable),
        generator,
        cond,
    )
    found.warn()
    return found.likelihood


def solve_likelihood(
    model: Model, x0: Tensor, settings: FlowSettings, generator: Generators = None, cond: Condition = None
) -> Estimated:
    """Compute log-likelihoods, with the parts of their error.

    Args:
        model, x0, generator, cond: As in :func:`log_likelihood`.
        settings: The other arguments.
    """
    differentiable = settings.differentiable is not None
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        x0 = x0.clone() if isinstance(x0, Tensor) and x0.is_inference() else x0
        check_data(model, x0.detach() if isinstance(x0, Tensor) else x0)
        check_condition(cond, len(x0), model.classes)
        with evaluation(model, parameters=differentiable):

            def run(rows: Tensor | None, **options: Any) -> Attempt:
                return _Run(model, x0, settings, cond, generator, rows=rows, **options).attempt()

            if settings.solver == MULTISTEP:
                return refined(run, settings, x0, model.knows_mean(cond) or model.moments is None)
            if settings.fixed_grid:
                return of_fixed_grid(run, settings, x0)
            return Estimated.of(run(None), settings, x0)


class _FlowEnd(NamedTuple):
    """The end of the flow, and what it took.

    The latent ``(B, *D)``, the log-determinant without traces, the defect, the calls and the earliest time; the
    part of log p from the path alone, and the errors.
    """

    latent: Tensor
    log_det: Tensor | float
    defect: Tensor
    nfe: int
    t_min: float
    path: Tensor
    errors: PathErrors


class _Run:
    """One run over a batch: the flow, the prior, the result."""

    def __init__(
        self,
        model: Model,
        x0: Tensor,
        settings: FlowSettings,
        cond: Condition,
        generator: Generators,
        rows: Tensor | None = None,
        method: str | None = None,
        calls: int | None = None,
        tolerance: float | None = None,
        mean: Tensor | None = None,
        rough: bool = False,
        max_calls: int = MAX_CALLS,
        end: End | None = None,
        reach: float = 0.0,
    ) -> None:
        if rows is not None:
            x0, cond = x0[rows], condition_rows(cond, rows)
            if generator is not None and not isinstance(generator, torch.Generator):
                generator = [generator[i] for i in rows.tolist()]
        if method is not None:
            settings = replace(settings, method=method, rtol=tolerance, atol=tolerance, end=end or settings.end)
        settings = settings if calls is None else replace(settings, steps=calls)
        self.model, self.x0, self.settings, self.cond = model, x0, settings, cond
        self.n = x0[0].numel()
        self.divergence = default_divergence(self.n) if settings.divergence is None else settings.divergence
        finest = model.detail()
        self.t_min, self.t_max = model.time_range(settings.t_min, settings.t_max, finest)
        check_finite_log_snr(model.sde, None, self.t_max)
        if settings.end == "none" or settings.solver != MULTISTEP:
            check_finite_log_snr(model.sde, self.t_min, None)
        self.first, self.last = model.sde.levels(torch.tensor([self.t_min, self.t_max], dtype=torch.float64))
        network = NoiseAndTrace(model, self.divergence, settings.chunk, settings.differentiable)
        exact = isinstance(self.divergence, Exact)
        self.traces = TraceIntegral(network, x0, cond, generator, settings.fixed_grid, untraced=rough and not exact)
        self.y = x0.to(self.traces.dtype)
        self.max_calls, self.reach = max_calls, reach
        self.mean = mean  # of each sample's data, under a condition

    def attempt(self) -> Attempt:
        """Compute the result, and what is known of its error."""
        settings, moments = self.settings, self.model.moments
        multistep = settings.solver == MULTISTEP
        # 1. the mean of the data under the condition, by one call
        estimates_mean = moments is not None and settings.prior == "matched" and not self.model.knows_mean(self.cond)
        extra = 0
        if estimates_mean and self.mean is None:
            assert moments is not None
            self.mean, extra = conditional_mean(self.traces, self.y, self.model.sde, moments, self.t_max), 1
        # 2. the flow from the data to t_max
        end = self.by_multistep(settings.steps or LEAST_CALLS) if multistep else self.by_ode_solver()
        # 3. the prior
        own = self.model.sde.prior_log_prob(end.latent)
        matched = None
        if moments is not None:
            matched = moments.log_prob(end.latent, self.last.alpha, self.last.sigma, self.mean)
        prior = own if settings.prior == "sde" or matched is None else matched
        integral = 0.0 if self.traces.untraced else self.traces.tally.integral
        log_prob = integral + end.log_det + prior
        # 4. checks, which wait for the device
        self.traces.check()
        finite(log_prob.detach()[:, None], "log p")
        below = self.traces.others[0]
        gap = torch.full_like(own, math.nan) if matched is None else matched - own
        found = Likelihood(
            log_prob=log_prob,
            stderr=torch.zeros_like(own) if self.traces.untraced else self.traces.tally.stderr,
            latent=end.latent.to(self.x0.dtype),
            nfe=end.nfe + extra,
            t_min=end.t_min,
            t_max=self.t_max,
            below=torch.zeros_like(own) if isinstance(below, float) else below.detach(),
            prior_gap=gap.detach(),
            defect=end.defect.detach(),
            method=settings.solver,
            error=torch.full_like(own, math.nan).detach(),
        )
        exact = isinstance(self.divergence, Exact)
        return Attempt(found, end.errors, (end.path + prior).detach(), exact, self.mean)

    def by_multistep(self, calls: int) -> _FlowEnd:
        """Solve the flow by :mod:`scoresde.likelihood.gaussian_path`."""
        settings, moments, scaling = self.settings, self.model.moments, self.model.scaling
        integers = scaling is not None and scaling.num_values is not None
        problem = FlowProblem(
            sde=self.model.sde,
            moments=moments,
            scale=self.model.known_scale(),
            calls=calls,
            ends=Ends(
                self.t_min,
                self.t_max,
                data_at_t_min=settings.end == "none",
                noise_to_infinity=settings.prior == "matched" and moments is not None,
            ),
            bin_std=scaling.bin_width / math.sqrt(12) if scaling is not None and integers else None,
            mean=self.mean,
            reach=self.reach,
        )
        path = solve(self.traces, self.y, problem)
        return _FlowEnd(path.latent, path.log_det, path.defect, calls, path.t_first, path.path, path.errors)

    def by_ode_solver(self) -> _FlowEnd:
        """Solve the flow by a method for ordinary differential equations."""
        settings, traces, first, last = self.settings, self.traces, self.first, self.last
        # 1. from t = 0 to t_min
        if settings.end == "none":
            y, calls, alpha_start = flat(self.y), 0, first.alpha
        else:
            y, calls = self.to_t_min(second_order=settings.end == "heun")
            alpha_start = 1.0
        # 2. from t_min to t_max in lambda
        start, end = first.lam, last.lam
        if settings.fixed_grid:
            y, spent = self.on_fixed_grid(y, start, end)
        else:
            traces.check()
            y, spent = self.with_adaptive_steps(y, start, end)
        log_det = self.n * math.log(last.alpha / alpha_start)
        latent = y[:, : self.n].reshape(self.x0.shape)
        none = self.y.new_zeros(len(self.y))
        return _FlowEnd(latent, log_det, none, calls + spent, self.t_min, none, PathErrors(*[none] * 5))

    def to_t_min(self, second_order: bool) -> tuple[Tensor, int]:
        """Carry x_0 from t = 0 to t_min; return x ``(B, n)`` and the calls spent.

        With y = x/alpha and tau = rho^2 the flow is dy/dtau = eps/(2 sqrt(tau)), and the log-determinant's rate is
        tr(sigma d eps/dx)/(2 tau). First order is one step with the field at tau_min. Second order is Heun's step,
        with its first slope extrapolated to tau = 0 from tau_min and 2 tau_min.
        """
        sde, first, x0 = self.model.sde, self.first, flat(self.y)
        tau = first.rho**2

        def step(y: Tensor, level: HostLevel, weight: float) -> Tensor:
            eps = self.traces.eps_and_add((level.alpha * y).reshape(self.y.shape), level, weight, (weight,))
            return (tau * level.alpha / (2 * level.sigma)) * eps

        if not second_order:
            return first.alpha * (x0 + step(x0, first, 0.5)), 1
        doubled = sde.levels(sde.time_of(first.log_snr - math.log(2)).reshape(1))[0]
        start = 2 * step(x0, first, 0.5) - step(x0, doubled, -0.125)
        return first.alpha * (x0 + (start + step(x0 + start, first, 0.25)) / 2), 3

    def on_fixed_grid(self, y: Tensor, start: float, end: float) -> tuple[Tensor, int]:
        """Solve in equal steps of lambda; return x ``(B, n)`` and the calls."""
        method, steps = self.settings.solver, self.settings.steps or DEFAULT_STEPS
        h = (end - start) / steps
        weights = (-h * b for _ in range(steps) for b in TABLEAUX[method].b)
        field = FlowOnFixedGrid(self.model, self.x0.shape[1:], self.traces, weights)
        return integrate(field, y, start, end, method=method, steps=steps, where=on_the_flow(self.model.sde))

    def with_adaptive_steps(self, y: Tensor, start: float, end: float) -> tuple[Tensor, int]:
        """Solve to the tolerances; return x ``(B, n)`` and the calls.

        The traces are states of the same equation. Its error is the worse of x's and the log-determinant's.
        """
        n, (rtol, atol) = self.n, self.settings.tolerances
        y, spent = integrate(
            _FlowAndTraces(self.model, self.x0.shape[1:], self.cond, self.traces),
            torch.cat([y, y.new_zeros(len(y), self.divergence.probes)], 1),
            start,
            end,
            method=self.settings.solver,
            rtol=rtol,
            atol=atol,
            steps=self.settings.steps or DEFAULT_STEPS,
            norm=lambda error: torch.maximum(rms(error[:, :n]), rms(error[:, n:])),
            max_calls=self.max_calls,
            where=on_the_flow(self.model.sde),
        )
        self.traces.tally.integrals = self.traces.tally.integrals + y[:, n:]
        return y[:, :n], spent


class FlowOnFixedGrid(ProbabilityFlowField):
    """dx/dlambda on a fixed grid, with the trace of each stage counted.

    The i-th stage has the i-th weight.
    """

    def __init__(self, model: Model, shape: Sequence[int], traces: TraceIntegral, weights: Iterator[float]) -> None:
        super().__init__(model, tuple(shape))
        self.traces, self.weights = traces, weights

    def __call__(self, lam: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        x, level, kappa, _ = self.at(lam, y, rows)
        eps = self.traces.eps_and_add(x, level, next(self.weights))
        return kappa[:, None].to(y.dtype) * y - torch.as_tensor(level.sigma).reshape(-1, 1).to(y.dtype) * eps


class _FlowAndTraces(ProbabilityFlowField):
    """The flow and its traces, of one draw of probes.

    States are ``[x (n), integrals of -tr(sigma d eps/dx) (R)]``.
    """

    def __init__(self, model: Model, shape: Sequence[int], cond: Condition, traces: TraceIntegral) -> None:
        super().__init__(model, tuple(shape), cond)
        self.traces, self.n = traces, math.prod(shape)

    def __call__(self, lam: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        x, level, kappa, cond = self.at(lam, y[:, : self.n], rows)
        v = None if self.traces.held is None else self.traces.held[rows]
        eps, traces, _ = self.traces.network(x, level, cond, v)
        assert traces is not None
        noise = torch.as_tensor(level.sigma).reshape(-1, 1).to(y.dtype) * eps.to(y.dtype)
        return torch.cat([kappa[:, None].to(y.dtype) * y[:, : self.n] - noise, -traces.to(y.dtype)], 1)
