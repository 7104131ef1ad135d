"""The network's part of the flow's divergence: eps and tr(sigma d eps/dx), from one call and its backward passes."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.checks import samples_with_nan
from scoresde.errors import NonFiniteError
from scoresde.likelihood.divergence import Divergence
from scoresde.models import Model
from scoresde.models.conditions import Condition, condition_rows
from scoresde.sde import Level
from scoresde.sde.tensors import flat


class NoiseAndTrace:
    """eps and tr(sigma d eps/dx) at one x after another.

    Args:
        divergence: how the trace is found.
        chunk: samples per network call and backward pass, None for all.
        differentiable: None; ``"direct"`` keeps the graph of every call; ``"adjoint"`` keeps the inputs alone and makes
            each call again on the way back.
    """

    def __init__(
        self, model: Model, divergence: Divergence, chunk: int | None = None, differentiable: str | None = None
    ):
        self.model, self.divergence, self.chunk, self.differentiable = model, divergence, chunk, differentiable
        self.sums: list[tuple[Level, Tensor]] | None = []  # a number a sample and call, to tell where NaN came up

    def __call__(self, x: Tensor, level: Level, cond: Condition, v: Tensor | None, traced: bool = True):
        """eps ``(B, n)`` at x ``(B, *D)``, traces ``(B, R)`` and the products u ``(B, R, n)`` behind them.

        ``v`` are the probes of :meth:`Divergence.draws`. If not ``traced`` the other two are None.
        """
        parts = []
        for rows in _parts(len(x), self.chunk):
            some = condition_rows(cond, rows)
            here = level.rows(rows)
            measure = _Measure(self.model, self.divergence, here, some, None if v is None else v[rows], traced)
            if self.differentiable == "adjoint":
                parameters = [p for p in self.model.parameters() if p.requires_grad]
                parts.append(_CalledAgain.apply(measure, x[rows], *parameters))
            else:
                parts.append(measure(x[rows], self.differentiable is not None))
        eps, *rest = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
        if self.sums is not None:
            self.sums.append((level, eps.detach().sum(1)))
        return eps, *rest

    def check(self) -> None:
        """NonFiniteError naming the samples and the first time, if the network gave NaN or infinity (waits)."""
        for level, total in self.sums:
            bad = (~total.isfinite()).nonzero().flatten().tolist()
            if bad:
                t = level.t if isinstance(level.t, float) else level.t[bad[0]].item()
                raise NonFiniteError(f"the network's estimate at t = {t:.6g}: {samples_with_nan(bad, len(total))}")


class _Measure:
    """One call of the network and its backward passes, for a part of the batch."""

    def __init__(self, model, divergence, level, cond, v, traced):
        self.model, self.divergence, self.level, self.cond, self.v, self.traced = (
            model, divergence, level, cond, v, traced,
        )  # fmt: skip

    def __call__(self, x: Tensor, differentiable: bool):
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


class _CalledAgain(torch.autograd.Function):
    """A call whose graph is not kept: the backward pass makes it again."""

    @staticmethod
    def forward(ctx, measure, x, *parameters):
        ctx.measure = measure
        ctx.save_for_backward(x, *parameters)
        eps, traces, u = measure(x, False)
        if u is not None:
            ctx.mark_non_differentiable(u)
        return eps, traces, u

    @staticmethod
    def backward(ctx, g_eps, g_traces, _):
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            eps, traces, _ = ctx.measure(x, True)
            outputs = [(eps, g_eps)] + ([(traces, g_traces)] if ctx.measure.traced else [])
            gradients = torch.autograd.grad(
                [out for out, _ in outputs], (x, *parameters), [g for _, g in outputs], allow_unused=True
            )
        return None, *gradients


def _parts(batch: int, chunk: int | None) -> list[slice]:
    return [slice(begin, begin + (chunk or batch)) for begin in range(0, batch, chunk or batch)]
