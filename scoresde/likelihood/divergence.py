"""The trace of a Jacobian, exactly or by random probes, from one network call.

The only trace a likelihood needs is tr(d eps / dx): the linear part of the flow is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sampling.flow import flat
from scoresde.sampling.grids import check_steps


class Divergence(ABC):
    """How tr(dF/dx) is found, for F and x ``(B, n)`` and F's graph at hand."""

    #: how many independent estimates of the trace come back per sample (1: exact, no spread to learn from)
    replicates: int = 1
    #: whether probes are drawn anew at every evaluation, where the method allows it
    fresh: bool = True

    def draw(self, shape: tuple[int, int], generator, device, dtype) -> Tensor | None:
        """The random probes ``(probes, B, n)`` of one evaluation, or None if there are none."""
        return None

    def stderr(self, replicates: Tensor) -> Tensor:
        """The standard error ``(B,)`` of the mean of integrated replicates ``(B, R)``: NaN if there is only one."""
        if self.replicates == 1:
            return torch.full_like(replicates[:, 0], torch.nan)
        return replicates.std(1) / self.replicates**0.5

    @abstractmethod
    def trace(self, F: Tensor, x: Tensor, probes: Tensor | None) -> Tensor:
        """``(B, replicates)`` traces of dF/dx, for F ``(B, n)`` computed from x ``(B, ...)`` under grad mode."""


class Exact(Divergence):
    """tr(dF/dx) = sum_i e_i' (dF/dx) e_i by n vector-Jacobian products: exact, at any rank, for small n."""

    def trace(self, F, x, probes):
        total = torch.zeros(len(F), dtype=F.dtype, device=F.device)
        for i in range(F.shape[1]):
            (row,) = torch.autograd.grad(F[:, i].sum(), x, retain_graph=True)
            total = total + flat(row)[:, i]
        return total[:, None]

    def stderr(self, replicates):
        return torch.zeros_like(replicates[:, 0])

    def __repr__(self):
        return "Exact()"


class Hutchinson(Divergence):
    """The Skilling-Hutchinson estimator (E9): tr(dF/dx) = E[v' (dF/dx) v] for E[v v'] = I.

    Args:
        probes: independent probes per evaluation, each one vector-Jacobian product. Their spread gives the standard
            error of log p, so one probe gives none.
        distribution: ``"rademacher"`` (+-1: no variance from the diagonal) or ``"gaussian"``.
        fresh: draw anew at every evaluation of a fixed-step method, where the errors then average out along the path;
            False keeps one draw for the whole path. An adaptive method always keeps one draw, for its steps need
            a smooth right-hand side.
    """

    def __init__(self, probes: int = 2, distribution: str = "rademacher", fresh: bool = True):
        if distribution not in ("rademacher", "gaussian"):
            raise UnknownNameError("distribution", distribution, ("rademacher", "gaussian"))
        self.replicates = check_steps(probes, "probes")
        self.distribution, self.fresh = distribution, fresh

    def draw(self, shape, generator, device, dtype):
        def one(shape, generator):
            source = device if generator is None else generator.device
            if self.distribution == "gaussian":
                return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
            signs = torch.randint(0, 2, shape, generator=generator, device=source, dtype=torch.int8).to(device)
            return signs.to(dtype) * 2 - 1

        batch, n = shape
        if isinstance(generator, (list, tuple)):
            if len(generator) != batch:
                raise ArgumentError(
                    "generator", f"a list of {len(generator)}", f"one generator or {batch}, one a sample"
                )
            return torch.stack([one((self.replicates, n), g) for g in generator], 1)
        return one((self.replicates, batch, n), generator)

    def trace(self, F, x, probes):
        columns = []
        for v in probes:
            (row,) = torch.autograd.grad(F, x, v, retain_graph=True)
            columns.append((flat(row) * v).sum(1))
        return torch.stack(columns, 1)

    def __repr__(self):
        return f"Hutchinson(probes={self.replicates}, distribution={self.distribution!r}, fresh={self.fresh})"


def default_divergence(n: int) -> Divergence:
    """Exact for data of up to 16 entries, two fresh Rademacher probes beyond."""
    return Exact() if n <= 16 else Hutchinson(probes=2)
