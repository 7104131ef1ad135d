r"""The trace of a Jacobian, exactly or by random probes, from one network call.

The only trace a likelihood needs is tr(d eps / dx): the linear part of the flow is known. F stands for the network's
part and x for its input; a vector-Jacobian product v' dF/dx costs about one network call.

Along a fixed grid log p needs sum_k w_k tr A_k, with known weights w_k and A_k the Jacobian at stage k. Then probes pay
off in three ways (:class:`Tally`): they are drawn afresh at each stage, so that their errors average out; probes of
different stages are orthogonal, so that what the A_k have in common is measured once in each direction; and the whole
product v' A_k, not only the number v' A_k v, shows how large the errors are: one probe a stage gives a standard error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sde.tensors import flat

DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")
#: from and to so many entries the probes of different stages are orthogonal, and their products kept till the end: in
#: frames of fewer there are too few pairs for a standard error, in frames of more the probes have little in common
SMALLEST_FRAME, LARGEST_FRAME = 33, 1024
#: up to so many entries the exact trace is the default
SMALL = 16

Generators = torch.Generator | Sequence[torch.Generator] | None


class Divergence(ABC):
    """How tr(dF/dx) is found, for F and x ``(B, n)`` and F's graph at hand."""

    #: estimates of the trace per evaluation, R
    probes: int = 1
    #: whether probes are drawn anew at every evaluation of a fixed grid
    fresh: bool = True
    #: whether the probes are of +-1, so that the diagonal adds no variance
    signs: bool = False

    def frame(self, n: int) -> int | None:
        """How many fresh probes in succession are to be orthogonal; None if all are independent."""
        return None

    def draws(
        self, batch: int, n: int, generator: Generators, device, dtype, frame: int | None = None
    ) -> Iterator[Tensor | None]:
        """The random probes ``(B, m, n)`` of one evaluation after another, ``frame`` successive ones orthogonal.

        None where there are none.
        """
        while True:
            yield None

    @abstractmethod
    def products(self, F: Tensor, x: Tensor, v: Tensor | None, differentiable: bool = False):
        """``(traces, u)``: R estimates of tr(dF/dx), ``(B, R)``, and the products behind them, ``(B, R, n)``, or None.

        F ``(B, n)`` was computed from x ``(B, *D)`` under grad mode; ``differentiable`` keeps the graph of the result.
        """

    def residual(self, v: Tensor | None) -> Tensor | None:
        """Those of the probes ``(B, m, n)`` that the products u of :meth:`products` belong to, ``(B, R, n)``."""
        return v

    def variance(self, u: Tensor, v: Tensor) -> Tensor:
        """The variance of v' A v ``(B, R)`` as far as one probe shows it, from u = A v."""
        return 2 * u.square().sum(2)

    def spread(self, integrals: Tensor) -> Tensor:
        """The standard error ``(B,)`` of the mean of R integrals ``(B, R)``, each with one probe: NaN if R = 1."""
        if self.probes == 1:
            return torch.full_like(integrals[:, 0], torch.nan)
        return integrals.std(1) / self.probes**0.5


def vector_jacobian(F: Tensor, x: Tensor, v: Tensor, differentiable: bool = False, keep: bool = True) -> Tensor:
    """v' dF/dx ``(B, m, n)`` for v ``(B, m, n)``: one backward pass each, or all of them in one batch of m.

    Unless ``keep`` or ``differentiable``, F's graph is given up on the way, as early as it can be.
    """
    settings = {"retain_graph": keep or differentiable, "create_graph": differentiable}
    if v.shape[1] == 1:
        (row,) = torch.autograd.grad(F, x, v[:, 0], **settings)
        return flat(row)[:, None]
    (rows,) = torch.autograd.grad(F, x, v.transpose(0, 1), is_grads_batched=True, **settings)
    return rows.reshape(v.shape[1], len(v), -1).transpose(0, 1)


class Exact(Divergence):
    """tr(dF/dx) = sum_i e_i' (dF/dx) e_i by n vector-Jacobian products: exact, at any rank; time grows as n.

    Args:
        chunk: products per backward pass. More are faster on small networks; memory grows with them.
    """

    def __init__(self, chunk: int = 16):
        self.chunk = whole("chunk", chunk)

    def products(self, F, x, v, differentiable=False):
        batch, n = F.shape
        total = F.new_zeros(batch)
        for begin in range(0, n, self.chunk):
            end = min(begin + self.chunk, n)
            rows = torch.zeros(end - begin, n, dtype=F.dtype, device=F.device)
            rows.diagonal(begin).fill_(1)
            u = vector_jacobian(F, x, rows.expand(batch, -1, -1), differentiable, keep=end < n)
            total = total + u.diagonal(begin, 1, 2).sum(1)
        return total[:, None], None

    def spread(self, integrals):
        return torch.zeros_like(integrals[:, 0])

    def __repr__(self):
        return f"Exact(chunk={self.chunk})"


class Hutchinson(Divergence):
    """The Skilling-Hutchinson estimator (E9): tr(dF/dx) = E[v' (dF/dx) v] for E[v v'] = I.

    On the fixed grids of ``"multistep"`` and the Runge-Kutta methods, with ``fresh`` probes, the standard error of
    log p is known from one probe a stage. An adaptive method keeps one draw for the whole path, for its steps need a
    smooth right-hand side: its error is larger, and known from two probes on.

    Measured on mixtures of 8 Gaussians in 64 dimensions, at 200 calls with one probe each: standard deviations of log p
    of .3 to .5 nats; .7 with independent probes, and 8 with Gaussian ones, whose lengths multiply the whole trace.

    Args:
        probes: probes per evaluation, each one vector-Jacobian product.
        distribution: of v: ``"rademacher"`` (+-1: no variance from the diagonal of the Jacobian), ``"gaussian"`` or
            ``"sphere"`` (uniform, of length sqrt(n): no variance from a multiple of the identity).
        fresh: draw anew at every stage of a fixed grid; False keeps one draw for the whole path.
        orthogonal: fresh Rademacher probes of different stages are orthogonal, for 33 to 1024 entries (columns of a
            Hadamard matrix, rows signed and columns ordered at random: each by itself is a Rademacher vector).

    Source: Hutchinson 1990; Skilling 1989; Grathwohl et al. 2019 (with one frozen probe).
    """

    def __init__(self, probes: int = 1, distribution: str = "rademacher", fresh: bool = True, orthogonal: bool = True):
        if distribution not in DISTRIBUTIONS:
            raise UnknownNameError("distribution", distribution, DISTRIBUTIONS)
        self.probes = whole("probes", probes)
        self.distribution, self.fresh, self.orthogonal = distribution, fresh, orthogonal
        self.signs = distribution == "rademacher"

    def frame(self, n):
        if self.orthogonal and self.signs and SMALLEST_FRAME <= n <= LARGEST_FRAME:
            return 1 << (n - 1).bit_length()  # a Hadamard matrix has a power of two of them
        return None

    def draws(self, batch, n, generator, device, dtype, frame=None):
        if frame is None:
            while True:
                yield probes(self.distribution, (self.probes, n), batch, generator, device, dtype)
        columns = hadamard(frame)[:, :n].to(device, dtype)
        at = frame
        while True:
            vectors = []
            for _ in range(self.probes):
                if at == frame:
                    signs = probes("rademacher", (n,), batch, generator, device, dtype)
                    order = probes("gaussian", (frame,), batch, generator, device, torch.float32).argsort(1)
                    at = 0
                vectors.append(columns[order[:, at]] * signs)
                at += 1
            yield torch.stack(vectors, 1)

    def products(self, F, x, v, differentiable=False):
        u = vector_jacobian(F, x, v, differentiable, keep=False)
        return (u * v).sum(2), u

    def variance(self, u, v):
        if self.distribution == "sphere":
            return 2 * (u.square().sum(2) - (u * v).sum(2).square() / u.shape[2])
        return super().variance(u, v)

    def __repr__(self):
        return (
            f"Hutchinson(probes={self.probes}, distribution={self.distribution!r}, fresh={self.fresh}, "
            f"orthogonal={self.orthogonal})"
        )


class HutchPP(Divergence):
    """Hutch++: the trace on a random subspace exactly, Hutchinson's estimate on its complement.

    With Q an orthonormal basis of the span of ``rank`` products A' s and P = I - QQ', tr A = tr(Q' A Q) + tr(P A P).
    Where a few directions make up most of the Jacobian the second part is small. An evaluation costs
    ``2 rank + probes`` vector-Jacobian products.

    Args:
        rank: the dimension of the subspace; at most that of the data.
        probes: Rademacher probes for the complement.
        fresh: as in :class:`Hutchinson`.

    Source: Meyer, Musco, Musco, Woodruff 2021.
    """

    signs = True

    def __init__(self, rank: int = 2, probes: int = 2, fresh: bool = True):
        self.rank, self.probes, self.fresh = whole("rank", rank), whole("probes", probes), fresh

    def draws(self, batch, n, generator, device, dtype, frame=None):
        if self.rank > n:
            raise ArgumentError("rank", self.rank, f"at most {n}, the number of entries")
        total = self.rank + self.probes
        while True:
            yield probes("rademacher", (total, n), batch, generator, device, dtype)

    def products(self, F, x, v, differentiable=False):
        with torch.no_grad():  # whatever the subspace, the estimate is unbiased: it is a constant
            Q = torch.linalg.qr(vector_jacobian(F, x, v[:, : self.rank]).mT)[0].mT
        g = self.residual(v)
        w = g - (g @ Q.mT) @ Q
        u = vector_jacobian(F, x, torch.cat([Q, w], 1), differentiable, keep=False)
        known, u = (u[:, : self.rank] * Q).sum((1, 2)), u[:, self.rank :]
        return known[:, None] + (u * w).sum(2), u - (u @ Q.mT) @ Q

    def residual(self, v):
        return v[:, self.rank :]

    def __repr__(self):
        return f"HutchPP(rank={self.rank}, probes={self.probes}, fresh={self.fresh})"


def default_divergence(n: int) -> Divergence:
    """Exact for data of up to 16 entries, one fresh Rademacher probe a stage beyond."""
    return Exact() if n <= SMALL else Hutchinson()


@lru_cache(maxsize=4)
def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix, ``(size, size)`` of +-1 with orthogonal rows, for a power of two."""
    H = torch.ones(1, 1)
    while len(H) < size:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def probes(distribution: str, shape: tuple[int, ...], batch: int, generator: Generators, device, dtype) -> Tensor:
    """``(batch, *shape)`` random numbers of a law of :data:`DISTRIBUTIONS`, drawn where the generator is.

    With a list of generators each sample's come from its own.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch:
            raise ArgumentError("generator", f"a list of {len(generator)}", f"one generator or {batch}, one a sample")
        return torch.cat([probes(distribution, shape, 1, g, g.device, dtype) for g in generator]).to(device)
    settings = {"generator": generator, "device": device if generator is None else generator.device}
    if distribution == "rademacher":
        signs = torch.randint(0, 2, (batch, *shape), dtype=torch.int8, **settings)
        return signs.to(device).to(dtype) * 2 - 1
    v = torch.randn((batch, *shape), dtype=dtype, **settings).to(device)
    return v if distribution == "gaussian" else v * (shape[-1] ** 0.5 / v.norm(dim=-1, keepdim=True))


class Tally:
    r"""sum_k w_k tr A_k over the stages of a fixed grid of known weights, and its standard error.

    For a Rademacher probe v and u = A v, Var(v' A v) = 2 ||off A||^2 for a symmetric A (off A: without its diagonal;
    for other A it is an upper bound). The products show it: E ||u||^2 = ||A||^2, and d = u * v of two probes have
    E[d_j . d_k] = diag A_j . diag A_k, so that neighbouring stages give the diagonal's part. Two columns j, k of one
    frame of N have Cov(v_j' A_j v_j, v_k' A_k v_k) = -2 <off A_j, off A_k>/(N - 1), which (u_j . v_k)(u_k . v_j) shows.

    A few numbers a sample are kept, and with orthogonal probes u and v of each stage.

    Args:
        dtype: of the sums.
        fresh: whether each stage has probes of its own. If not, the spread of the probes' integrals is the error.
        frame: N, or None for independent probes.
    """

    def __init__(self, divergence: Divergence, dtype: torch.dtype, fresh: bool, frame: int | None):
        self.divergence, self.dtype, self.fresh, self.frame = divergence, dtype, fresh, frame
        self.integrals: Tensor | float = 0.0
        self.variance: Tensor | float = 0.0
        self.first: tuple[float, Tensor] | None = None  # (w^2, d . d of the first pair of neighbours)
        self.last: tuple[float, Tensor, Tensor | None] | None = None  # (w^2, d, its d . d with the one before)
        self.kept: list[tuple[float, Tensor, Tensor]] = []  # (w, u, v), probe after probe

    def add(self, weight: float, traces: Tensor, u: Tensor | None, v: Tensor | None) -> None:
        """A stage of weight w_k: what :meth:`Divergence.products` gave, and the probes that u belongs to."""
        self.integrals = self.integrals + weight * traces.to(self.dtype)
        if u is None or not self.fresh:
            return
        u, v, weight = u.detach(), v.detach(), weight / u.shape[1]
        if self.frame:
            self.kept += [(weight, u[:, j], v[:, j]) for j in range(u.shape[1])]
            return
        self.variance = self.variance + weight**2 * self.divergence.variance(u, v).sum(1).to(self.dtype)
        if self.divergence.signs:
            for j in range(u.shape[1]):
                self._neighbours(weight**2, u[:, j] * v[:, j])

    def _neighbours(self, w2: float, d: Tensor) -> None:
        """Take off the diagonal's part, 2 w_k^2 ||diag A_k||^2, as the mean of d_k . d_{k-1} and d_k . d_{k+1}."""
        product = None
        if self.last is not None:
            last_w2, last_d, _ = self.last
            product = (d * last_d).sum(1).to(self.dtype)
            self.variance = self.variance - (w2 + last_w2) * product
            if self.first is None:
                self.first = (last_w2, product)
        self.last = (w2, d, product)

    @property
    def integral(self) -> Tensor:
        """The estimate ``(B,)``."""
        return self.integrals.mean(1)

    @property
    def stderr(self) -> Tensor:
        """Its standard error ``(B,)``: 0 for an exact trace; NaN for one probe that was kept for the whole path."""
        if self.kept:
            blocks = (self.kept[begin : begin + self.frame] for begin in range(0, len(self.kept), self.frame))
            return sum(map(self._of_a_frame, blocks)).clamp(min=0).sqrt()
        if not isinstance(self.variance, Tensor):
            return self.divergence.spread(self.integrals.detach())
        variance = self.variance
        if self.first is not None:  # the first and the last stage have one neighbour
            variance = variance - self.first[0] * self.first[1] - self.last[0] * self.last[2]
        return variance.clamp(min=0).sqrt()

    def _of_a_frame(self, block: list[tuple[float, Tensor, Tensor]]) -> Tensor:
        """The variance ``(B,)`` of what the probes of one frame contribute."""
        w = torch.tensor([weight for weight, _, _ in block], dtype=self.dtype).to(block[0][1].device)
        u, v = (torch.stack(list(column), 1).to(self.dtype) for column in list(zip(*block, strict=True))[1:])
        if len(block) == 1:
            return 2 * (w * w * u.square().sum(2))[:, 0]
        # a multiple of the identity has no variance, but would make that of the estimate: take it off
        smooth = torch.nn.functional.avg_pool1d((u * v).mean(2), 9, 1, 4, count_include_pad=False)
        u = u - smooth[:, :, None] * v
        e = 1 / (self.frame - 1)
        M, d = u @ v.mT, u * v
        a, dd = M.diagonal(dim1=1, dim2=2), d @ d.mT
        # E of M_jk M_kj: off (1 - e) + diag (1 + e) - e tr tr;  of dd_jk: diag - e off;  of a_j a_k: tr tr - 2 e off
        off = (M * M.mT - (1 + e) * dd + e * a[:, :, None] * a[:, None]) / (1 - e**2)
        diagonal = (dd + e * off).diagonal(1, 1, 2)  # of neighbouring stages
        diagonal = torch.cat([diagonal[:, :1], (diagonal[:, 1:] + diagonal[:, :-1]) / 2, diagonal[:, -1:]], 1)
        off = off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))
        return 2 * ((u.square().sum(2) - diagonal) @ w.square() - e * ((off @ w) * w).sum(1))
