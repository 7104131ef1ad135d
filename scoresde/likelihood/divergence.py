r"""Traces of Jacobians, exact or estimated with random probes.

A likelihood needs one trace only, tr(d eps/dx), because the linear part of the flow has a known one. Here F stands for
the network's part of the flow and x for its input. A vector-Jacobian product v' dF/dx costs about one network call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.random import DISTRIBUTIONS, Distribution, Generators, check_generators
from scoresde.sde.tensors import flat

#: The numbers of entries for which probes of different stages are orthogonal. A smaller frame has too few pairs of
#: probes for a standard error. In a larger one the probes have little in common, and their products need much memory.
SMALLEST_FRAME, LARGEST_FRAME = 33, 1024
#: The largest number of entries for which the exact trace is the default.
EXACT_UP_TO = 16


@dataclass(frozen=True)
class Divergence(ABC):
    """Base of the estimators of tr(dF/dx).

    F and x are ``(B, n)``, and the graph of F is at hand.
    """

    #: estimates of the trace per evaluation, R
    probes = 1
    #: whether each evaluation on a fixed grid draws new probes
    fresh = True

    @property
    def signs(self) -> bool:
        """True for probes of +-1.

        With them the diagonal of the Jacobian adds no variance.
        """
        return False

    def frame(self, n: int) -> int | None:
        """Return the number of successive probes that are orthogonal.

        None if all are independent.
        """
        return None

    def draws(
        self,
        batch: int,
        n: int,
        generator: Generators,
        device: torch.device,
        dtype: torch.dtype,
        frame: int | None = None,
    ) -> Iterator[Tensor | None]:
        """Draw probes ``(B, m, n)`` for one evaluation after another.

        Args:
            batch, n: B and n.
            generator: source of the numbers, or a list of B of them, one a sample.
            device, dtype: of the probes.
            frame: number of successive probes that are orthogonal. None: all are independent.

        Returns:
            An endless iterator over probes; over None for a divergence without probes.
        """
        while True:
            yield None

    @abstractmethod
    def products(
        self, F: Tensor, x: Tensor, v: Tensor | None, differentiable: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Estimate tr(dF/dx).

        Args:
            F: ``(B, n)``, computed from ``x`` under grad mode.
            x: ``(B, *D)``.
            v: probes ``(B, m, n)`` of :meth:`draws`.
            differentiable: keep the graph of the result.

        Returns:
            R estimates ``(B, R)``, and the products behind them ``(B, R, n)`` or None.
        """

    def residual(self, v: Tensor | None) -> Tensor | None:
        """Return the probes ``(B, R, n)`` that belong to the products.

        They are those of ``v`` that :meth:`products` multiplied.
        """
        return v

    def variance(self, u: Tensor, v: Tensor) -> Tensor:
        """Estimate the variance of v' A v ``(B, R)`` from u = A v.

        Each estimate comes from one probe. For a Gaussian v it is 2 ||A||^2 if A is symmetric, and E ||u||^2 = ||A||^2.
        """
        return 2 * u.square().sum(2)

    def spread(self, integrals: Tensor) -> Tensor:
        """Return the standard error ``(B,)`` of the mean of integrals ``(B, R)``.

        Each integral has one probe. NaN if R = 1.
        """
        if self.probes == 1:
            return torch.full_like(integrals[:, 0], torch.nan)
        return integrals.std(1) / float(self.probes**0.5)


def vector_jacobian(F: Tensor, x: Tensor, v: Tensor, differentiable: bool = False, keep: bool = True) -> Tensor:
    """Return v' dF/dx ``(B, m, n)`` for v ``(B, m, n)``.

    One vector takes a backward pass, several take one batched pass.

    Args:
        F, x: as in :meth:`Divergence.products`.
        v: the vectors.
        differentiable: keep the graph of the result.
        keep: keep the graph of F for another call. Without it, and if not ``differentiable``, the graph is freed early.
    """
    keep = keep or differentiable
    if v.shape[1] == 1:
        (row,) = torch.autograd.grad(F, x, v[:, 0], retain_graph=keep, create_graph=differentiable)
        return flat(row)[:, None]
    (rows,) = torch.autograd.grad(
        F, x, v.transpose(0, 1), retain_graph=keep, create_graph=differentiable, is_grads_batched=True
    )
    return rows.reshape(v.shape[1], len(v), -1).transpose(0, 1)


@checked
@dataclass(frozen=True)
class Exact(Divergence):
    """The exact trace, by n vector-Jacobian products.

        tr(dF/dx) = sum_i e_i' (dF/dx) e_i

    It works at any rank of the data. The time grows as n.

    Args:
        chunk: Products per backward pass, default 16. More are faster on small networks and need more memory.

    Raises:
        ArgumentError: ``chunk`` is not a positive integer.
    """

    chunk: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk", whole("chunk", self.chunk))

    def products(
        self, F: Tensor, x: Tensor, v: Tensor | None, differentiable: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        batch, n = F.shape
        total = F.new_zeros(batch)
        for begin in range(0, n, self.chunk):
            end = min(begin + self.chunk, n)
            rows = torch.zeros(end - begin, n, dtype=F.dtype, device=F.device)
            rows.diagonal(begin).fill_(1)
            u = vector_jacobian(F, x, rows.expand(batch, -1, -1), differentiable, keep=end < n)
            total = total + u.diagonal(begin, 1, 2).sum(1)
        return total[:, None], None

    def spread(self, integrals: Tensor) -> Tensor:
        return torch.zeros_like(integrals[:, 0])


@checked
@dataclass(frozen=True)
class Hutchinson(Divergence):
    """The Skilling-Hutchinson estimator of the trace (E9).

        tr(dF/dx) = E[v' (dF/dx) v]    for E[v v'] = I

    On the fixed grids of ``"multistep"`` and the Runge-Kutta methods each stage has fresh probes. Then one probe a
    stage is enough for a standard error of log p. An adaptive method needs a smooth right-hand side and keeps one draw
    for the whole path. Its error is larger, and two probes or more are needed to estimate it.

    Args:
        probes: Probes per evaluation, default 1. Each costs one vector-Jacobian product.
        distribution: Distribution of v. ``"rademacher"`` (default) is +-1 and has no variance from the diagonal of the
            Jacobian. ``"sphere"``, uniform with length sqrt(n), has none from a multiple of the identity.
            ``"gaussian"`` has both.
        fresh: Draw new probes at each stage of a fixed grid, default True. False keeps one draw for the whole path.
        orthogonal: Make fresh Rademacher probes of different stages orthogonal, for data of 33 to 1024 entries, default
            True. They are columns of a Hadamard matrix in random order with random signs of the rows. Each is by
            itself a Rademacher vector.

    Raises:
        ArgumentError: ``probes`` is not a positive integer.
        UnknownNameError: an unknown distribution.

    Notes:
        Standard deviation of log p on mixtures of 8 Gaussians in 64 dimensions, 200 calls with one probe each: 0.3 to
        0.5 nats. Independent probes gave 0.7 nats. Gaussian ones gave 8, as their length multiplies the whole trace.

    References: Hutchinson 1990; Skilling 1989; Grathwohl et al. 2019 (one frozen probe).
    """

    probes: int = 1
    distribution: Distribution = "rademacher"
    fresh: bool = field(default=True, kw_only=True)
    orthogonal: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise UnknownNameError("distribution", self.distribution, DISTRIBUTIONS)
        object.__setattr__(self, "probes", whole("probes", self.probes))

    @property
    def signs(self) -> bool:
        return self.distribution == "rademacher"

    def frame(self, n: int) -> int | None:
        if self.orthogonal and self.signs and SMALLEST_FRAME <= n <= LARGEST_FRAME:
            return 1 << (n - 1).bit_length()  # the size of a Hadamard matrix, a power of two
        return None

    def draws(
        self,
        batch: int,
        n: int,
        generator: Generators,
        device: torch.device,
        dtype: torch.dtype,
        frame: int | None = None,
    ) -> Iterator[Tensor | None]:
        if frame is None:
            while True:
                yield draw_probes(self.distribution, (self.probes, n), batch, generator, device, dtype)
        columns = hadamard(frame)[:, :n].to(device, dtype)
        position = frame  # in the frame; at its end, a new frame is drawn
        while True:
            vectors = []
            for _ in range(self.probes):
                if position == frame:
                    signs = draw_probes("rademacher", (n,), batch, generator, device, dtype)
                    order = draw_probes("gaussian", (frame,), batch, generator, device, torch.float32).argsort(1)
                    position = 0
                vectors.append(columns[order[:, position]] * signs)
                position += 1
            yield torch.stack(vectors, 1)

    def products(
        self, F: Tensor, x: Tensor, v: Tensor | None, differentiable: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        assert v is not None
        u = vector_jacobian(F, x, v, differentiable, keep=False)
        return (u * v).sum(2), u

    def variance(self, u: Tensor, v: Tensor) -> Tensor:
        if self.distribution == "sphere":
            return 2 * (u.square().sum(2) - (u * v).sum(2).square() / u.shape[2])
        return super().variance(u, v)


@checked
@dataclass(frozen=True)
class HutchPP(Divergence):
    """Hutch++: exact on a random subspace, Hutchinson's on its complement.

        tr A = tr(Q' A Q) + c tr P + tr(P (A - c I) P),    P = I - Q Q'

    Q is an orthonormal basis of the span of ``rank`` products A' v, and c the mean of the rest of the diagonal by the
    same probes. The last part is small if the Jacobian is a multiple of the identity but for a few large directions.
    It is 0 for a Jacobian of that rank. An evaluation costs ``2 rank + probes`` vector-Jacobian products.

    Args:
        rank: Dimension of the subspace, at most that of the data, default 2.
        probes: Rademacher probes for the complement, default 2.
        fresh: As in :class:`Hutchinson`.

    Raises:
        ArgumentError: ``rank`` or ``probes`` is not a positive integer.

    References: Meyer, Musco, Musco & Woodruff 2021.
    """

    rank: int = 2
    probes: int = 2
    fresh: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole("rank", self.rank))
        object.__setattr__(self, "probes", whole("probes", self.probes))

    @property
    def signs(self) -> bool:
        return True

    def draws(
        self,
        batch: int,
        n: int,
        generator: Generators,
        device: torch.device,
        dtype: torch.dtype,
        frame: int | None = None,
    ) -> Iterator[Tensor | None]:
        if self.rank > n:
            raise ArgumentError("rank", self.rank, f"at most {n}, the number of entries")
        while True:
            yield draw_probes("rademacher", (self.rank + self.probes, n), batch, generator, device, dtype)

    def products(
        self, F: Tensor, x: Tensor, v: Tensor | None, differentiable: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        assert v is not None
        with torch.no_grad():  # the estimate is unbiased for any subspace, so Q may be a constant
            images = vector_jacobian(F, x, v[:, : self.rank])
            Q = torch.linalg.qr(images.mT)[0].mT
        s, w = (part - (part @ Q.mT) @ Q for part in (v[:, : self.rank], v[:, self.rank :]))
        u = vector_jacobian(F, x, torch.cat([Q, w], 1), differentiable, keep=False)
        own = u[:, : self.rank]
        known, c = (own * Q).sum((1, 2)), self._level(v[:, : self.rank], s, images, own, Q)
        u = u[:, self.rank :] - c * w
        rest = (u * w).sum(2) + (v.shape[2] - self.rank) * c[:, :, 0]
        return known[:, None] + rest, u - (u @ Q.mT) @ Q

    def _level(self, v: Tensor, s: Tensor, images: Tensor, own: Tensor, Q: Tensor) -> Tensor:
        """Return c, the mean of the diagonal of P A P by the first probes.

        0 where A leaves nothing outside Q: there the known part is exact.

        Args:
            v: Probes ``(B, rank, n)``.
            s: P v.
            images: A' v.
            own: A' Q.
            Q: The basis.

        Returns:
            Numbers ``(B, 1, 1)``.
        """
        axes, rounding = (1, 2), torch.finfo(v.dtype).eps ** 0.5
        c = (v * images).sum(axes, keepdim=True) / self.rank - (own * Q).sum(axes, keepdim=True)
        c = c / max(1, v.shape[2] - self.rank)
        left = (v @ Q.mT) @ own  # A' Q Q' v, which is A' v - A' s
        left = left - (left @ Q.mT) @ Q
        size, image, left_over = (part.norm(dim=axes, keepdim=True) for part in (s, images, left))
        low_rank = (left_over <= rounding * image) & (size > rounding * v.norm(dim=axes, keepdim=True))
        return torch.where(low_rank, 0.0, c).detach()

    def residual(self, v: Tensor | None) -> Tensor | None:
        return None if v is None else v[:, self.rank :]


def default_divergence(n: int) -> Divergence:
    """Return the default divergence for data of n entries.

    It is exact up to 16 entries, else one fresh Rademacher probe a stage.
    """
    return Exact() if n <= EXACT_UP_TO else Hutchinson()


@lru_cache(maxsize=4)
def hadamard(size: int) -> Tensor:
    """Return Sylvester's Hadamard matrix ``(size, size)``.

    Its entries are +-1 and its rows orthogonal. ``size`` is a power of two.
    """
    H = torch.ones(1, 1)
    while len(H) < size:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def draw_probes(
    distribution: Distribution,
    shape: Sequence[int],
    batch: int,
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Draw probes ``(batch, *shape)``.

    They are drawn on the generator's own device and then moved. With a list of generators each sample draws from its
    own.

    Raises:
        ArgumentError: a list of another length than ``batch``.
    """
    if not (generator is None or isinstance(generator, torch.Generator)):
        check_generators(generator)
        if len(generator) != batch:
            raise ArgumentError("generator", f"a list of {len(generator)}", f"one generator or {batch}, one a sample")
        return torch.cat([draw_probes(distribution, shape, 1, g, g.device, dtype) for g in generator]).to(device)
    source = device if generator is None else generator.device
    whole_shape = (batch, *shape)
    if distribution == "rademacher":
        signs = torch.randint(0, 2, whole_shape, dtype=torch.int8, generator=generator, device=source)
        return signs.to(device).to(dtype) * 2 - 1
    v = torch.randn(whole_shape, dtype=dtype, generator=generator, device=source).to(device)
    return v if distribution == "gaussian" else v * (shape[-1] ** 0.5 / v.norm(dim=-1, keepdim=True))
