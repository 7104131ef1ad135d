"""Network calls of a likelihood: eps, and the trace of its Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scoresde.checks import samples_with_nan
from scoresde.errors import NonFiniteError
from scoresde.likelihood.divergence import Divergence
from scoresde.likelihood.tally import Tally
from scoresde.models import Model
from scoresde.models.conditions import Condition, condition_rows
from scoresde.random import Generators
from scoresde.sde import Level
from scoresde.sde.tensors import flat, state_dtype

Gradients = Literal["direct", "adjoint"]

#: eps ``(B, n)``, traces ``(B, R)``, and the products behind them ``(B, R, n)``
NoiseTraceProducts = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class NoiseAndTrace:
    """eps and tr(sigma d eps/dx), from one call and its backward passes.

    Args:
        model: The score model.
        divergence: The estimator of the trace.
        chunk: Samples per network call and backward pass. None: all.
        differentiable: ``"direct"`` keeps the graph of every call. ``"adjoint"`` keeps only the inputs and repeats each
            call in the backward pass. None: no gradients.
    """

    model: Model
    divergence: Divergence
    chunk: int | None = None
    differentiable: Gradients | None = None

    def __call__(
        self, x: Tensor, level: Level, cond: Condition, v: Tensor | None, traced: bool = True
    ) -> NoiseTraceProducts:
        """Evaluate the network and the trace.

        Args:
            x: ``(B, *D)``, in the model's dtype.
            level: its noise level.
            cond: tensors ``(B, ...)`` by name.
            v: probes of :meth:`Divergence.draws`.
            traced: False evaluates the network alone.

        Returns:
            eps ``(B, n)``; estimates of the trace ``(B, R)``; the products behind them ``(B, R, n)``. The last two are
            None if not ``traced``.
        """
        results: list[NoiseTraceProducts] = []
        size = self.chunk or len(x)
        for begin in range(0, len(x), size):
            rows = slice(begin, begin + size)
            probes = None if v is None else v[rows]
            call = _Call(self.model, self.divergence, level.rows(rows), condition_rows(cond, rows), probes, traced)
            if self.differentiable == "adjoint":
                parameters = [p for p in self.model.parameters() if p.requires_grad]
                results.append(_RepeatedCall.apply(call, x[rows], *parameters))  # type: ignore[no-untyped-call]
            else:
                results.append(call(x[rows], self.differentiable is not None))
        eps, traces, u = zip(*results, strict=True)
        return torch.cat(eps), _cat(traces), _cat(u)


def _cat(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


@dataclass(frozen=True)
class _Call:
    """One network call and its backward passes, for a part of the batch."""

    model: Model
    divergence: Divergence
    level: Level
    cond: Condition
    v: Tensor | None
    traced: bool

    def __call__(self, x: Tensor, differentiable: bool) -> NoiseTraceProducts:
        if not self.traced:
            with torch.set_grad_enabled(differentiable):
                return flat(self.model.estimate(x, self.level, self.cond).eps), None, None
        with torch.enable_grad():
            if not (differentiable and x.requires_grad):
                x = x.detach().requires_grad_()
            eps = flat(self.model.estimate(x, self.level, self.cond).eps)
            sigma = self.level.sigma
            F = eps * (sigma.reshape(-1, 1) if isinstance(sigma, Tensor) else sigma)
            traces, u = self.divergence.products(F, x, self.v, differentiable)
        return (eps if differentiable else eps.detach()), traces, u


class _RepeatedCall(torch.autograd.Function):
    """A call that keeps no graph: the backward pass repeats it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *parameters: Tensor) -> NoiseTraceProducts:
        ctx.call = call
        ctx.save_for_backward(x, *parameters)
        eps, traces, u = call(x, False)
        if u is not None:
            ctx.mark_non_differentiable(u)
        return eps, traces, u

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        g_eps, g_traces, _ = gradients
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            eps, traces, _ = ctx.call(x, True)
            outputs = [(eps, g_eps)] + ([(traces, g_traces)] if ctx.call.traced else [])
            found = torch.autograd.grad(
                [out for out, _ in outputs], (x, *parameters), [g for _, g in outputs], allow_unused=True
            )
        return None, *found


class TraceIntegral:
    """Evaluate the network along a path of levels and sum the weighted traces.

        sum_k w_k tr(sigma_k d eps/dx at x_k)

    :meth:`eps` evaluates the network alone, :meth:`eps_and_add` adds to the sum as well. The sum and its standard error
    are in :attr:`tally`. :attr:`others` are sums of the same traces with other weights; the first is the part below the
    first level.

    Args:
        network: Network calls and traces.
        x0: The data ``(B, *D)``.
        cond: Tensors ``(B, ...)`` by name, or None.
        generator: Source of the probes, or a list of B of them, one a sample.
        fixed_grid: True where the stages and their weights are known beforehand, so that probes may be fresh.
        untraced: True to leave out the traces, for the path alone.
    """

    def __init__(
        self,
        network: NoiseAndTrace,
        x0: Tensor,
        cond: Condition,
        generator: Generators,
        fixed_grid: bool,
        untraced: bool = False,
    ) -> None:
        divergence, n = network.divergence, x0[0].numel()
        self.network, self.cond, self.untraced = network, cond, untraced
        self.dtype, self.model_dtype = state_dtype(x0), network.model.dtype
        self.fresh = fixed_grid and divergence.fresh
        frame = divergence.frame(n) if self.fresh else None
        self.draws = divergence.draws(len(x0), n, generator, x0.device, self.model_dtype, frame)
        self.held = None if self.fresh else next(self.draws)  # the one draw for the whole path
        self.tally = Tally(divergence, self.dtype, self.fresh, frame)
        self.others: list[Tensor | float] = [0.0, 0.0, 0.0, 0.0]
        self.sums: list[tuple[Level, Tensor]] = []  # of eps, a number a sample and call: NaN shows in them

    def eps(self, x: Tensor, level: Level) -> Tensor:
        """Return eps ``(B, n)`` at x ``(B, *D)``."""
        eps, _, _ = self.network(x.to(self.model_dtype), level, self.cond, None, traced=False)
        return self._noted(eps, level)

    def eps_and_add(self, x: Tensor, level: Level, weight: float, others: Sequence[float] = ()) -> Tensor:
        """Return eps ``(B, n)`` at x ``(B, *D)``; add the trace to the sum.

        Args:
            x, level: the point and its noise level.
            weight: w_k, the weight in log p. If all weights are 0, no trace is computed.
            others: the weights in :attr:`others`.
        """
        if self.untraced or (weight == 0.0 and not any(others)):
            return self.eps(x, level)
        v = next(self.draws) if self.fresh else self.held
        eps, traces, u = self.network(x.to(self.model_dtype), level, self.cond, v)
        assert traces is not None
        self.tally.add(weight, traces, u, self.network.divergence.residual(v))
        for i, other in enumerate(others):
            if other:
                self.others[i] = self.others[i] + other * traces.detach().to(self.dtype).mean(1)
        return self._noted(eps, level)

    def _noted(self, eps: Tensor, level: Level) -> Tensor:
        self.sums.append((level, eps.detach().sum(1)))
        return eps.to(self.dtype)

    def check(self) -> None:
        """Raise NonFiniteError if the network gave NaN or infinity.

        Waits for the device. The error names the samples and the first time.
        """
        for level, total in self.sums:
            bad = (~total.isfinite()).nonzero().flatten().tolist()
            if bad:
                t = level.t if isinstance(level.t, float) else level.t[bad[0]].item()
                raise NonFiniteError(f"the network's estimate at t = {t:.6g}: {samples_with_nan(bad, len(total))}")
