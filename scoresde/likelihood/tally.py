"""Weighted sums of estimated traces, with their standard errors.

Along a fixed grid log p needs sum_k w_k tr A_k, with known weights w_k and the Jacobian A_k at stage k. Random probes
then pay off in three ways. Each stage draws new probes, so their errors average out. Probes of different stages are
orthogonal, so what the A_k have in common is measured once in each direction. And the product v' A_k, not only the
number v' A_k v, shows the size of the error, so one probe a stage gives a standard error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.likelihood.divergence import Divergence

SMOOTHED_STAGES = 9  # over which the Jacobian's multiple of the identity is averaged


class _Stage(NamedTuple):
    """One probe of one stage: its weight w, u = A v and v ``(B, n)``."""

    weight: float
    u: Tensor
    v: Tensor


class _Diagonal(NamedTuple):
    """The last stage: w^2, d = u * v, and its d . d with the stage before."""

    squared_weight: float
    d: Tensor
    product: Tensor | None


class Tally:
    r"""A sum of traces over the stages of a fixed grid, and its standard error.

        S = sum_k w_k v_k' A_k v_k,    E S = sum_k w_k tr A_k,    stderr^2 = Var S

    With R probes a stage, S is the mean of R such sums, so each probe counts with the weight w_k/R.

    Symbols, for a stage k: A the Jacobian, v its probe, u = A v, d = u * v entry by entry, off A the part of A off its
    diagonal, diag A the vector on it, <., .> the sum over products of entries.

    *Independent probes* of +-1 and a symmetric A have Var(v' A v) = 2 ||off A||^2 = 2 ||A||^2 - 2 ||diag A||^2. For
    another A this is an upper bound. The products show both parts: E ||u||^2 = ||A||^2, and d of two independent probes
    has E[d_j . d_k] = diag A_j . diag A_k. Neighbouring stages have nearly the same Jacobian, so ||diag A_k||^2 is the
    mean of d_k . d_{k-1} and d_k . d_{k+1}.

    *Orthogonal probes* are columns of one frame of N (:meth:`Divergence.frame`), in random order with random signs. For
    two entries a != b and two columns j != k, E[v_j(a) v_j(b) v_k(a) v_k(b)] = -e with e = 1/(N - 1), as the products
    of two rows sum to 0 over the frame. Hence

        Cov(v_j' A_j v_j, v_k' A_k v_k) = -2 e <off A_j, off A_k>,
        Var S = 2 sum_k w_k^2 ||off A_k||^2 - 2 e sum_{j != k} w_j w_k <off A_j, off A_k>.

    The inner products come from three statistics of the pair, with tr = tr A_j tr A_k:

        M_jk M_kj, M_jk = u_j . v_k:   E = (1 - e) <off, off> + (1 + e) diag . diag - e tr
        d_j . d_k:                     E = diag . diag - e <off, off>
        (v_j' A_j v_j)(v_k' A_k v_k):  E = tr - 2 e <off, off>

    The first, less 1 + e times the second, plus e times the third, is (1 - e^2) <off, off> on average.

    The tally keeps a few numbers a sample; with orthogonal probes it keeps u and v of each stage.

    Args:
        divergence: The estimator of each trace.
        dtype: Of the sums.
        fresh: True if each stage has its own probes. If not, the spread of the probes' integrals is the error.
        frame: N. None for independent probes.
    """

    def __init__(self, divergence: Divergence, dtype: torch.dtype, fresh: bool, frame: int | None):
        self.divergence, self.dtype, self.fresh, self.frame = divergence, dtype, fresh, frame
        self.integrals: Tensor | float = 0.0
        self.variance: Tensor | float = 0.0
        self.first: tuple[float, Tensor] | None = None  # w^2 of the first stage, its d . d of the second
        self.last: _Diagonal | None = None
        self.kept: list[_Stage] = []  # probe after probe

    def add(self, weight: float, traces: Tensor, u: Tensor | None, v: Tensor | None) -> None:
        """Add a stage.

        Args:
            weight: w_k.
            traces, u: of :meth:`Divergence.products`.
            v: the probes that ``u`` belongs to.
        """
        self.integrals = self.integrals + weight * traces.to(self.dtype)
        if u is None or v is None or not self.fresh:
            return
        u, v, weight = u.detach(), v.detach(), weight / u.shape[1]
        if self.frame:
            self.kept += [_Stage(weight, u[:, j], v[:, j]) for j in range(u.shape[1])]
            return
        self.variance = self.variance + weight**2 * self.divergence.variance(u, v).sum(1).to(self.dtype)
        if self.divergence.signs:
            for j in range(u.shape[1]):
                self._subtract_diagonal(weight**2, u[:, j] * v[:, j])

    def _subtract_diagonal(self, squared_weight: float, d: Tensor) -> None:
        """Subtract 2 w_k^2 ||diag A_k||^2 from the variance.

        It is estimated by the mean of d_k . d_{k-1} and d_k . d_{k+1}.
        """
        product = None
        if self.last is not None:
            product = (d * self.last.d).sum(1).to(self.dtype)
            self.variance = self.variance - (squared_weight + self.last.squared_weight) * product
            if self.first is None:
                self.first = (self.last.squared_weight, product)
        self.last = _Diagonal(squared_weight, d, product)

    @property
    def integral(self) -> Tensor:
        """The estimate S ``(B,)``."""
        assert isinstance(self.integrals, Tensor)
        return self.integrals.mean(1)

    @property
    def stderr(self) -> Tensor:
        """Its standard error ``(B,)``.

        0 for an exact trace, NaN for one probe that was kept for the whole path.
        """
        if self.kept and self.frame:
            blocks = [self.kept[begin : begin + self.frame] for begin in range(0, len(self.kept), self.frame)]
            total = self._variance_of_frame(blocks[0])
            for block in blocks[1:]:
                total = total + self._variance_of_frame(block)
            return total.clamp(min=0).sqrt()
        assert isinstance(self.integrals, Tensor)
        if not isinstance(self.variance, Tensor):
            return self.divergence.spread(self.integrals.detach())
        variance = self.variance
        if self.first is not None and self.last is not None and self.last.product is not None:
            # the first and the last stage have one neighbour, which counts twice
            variance = variance - self.first[0] * self.first[1] - self.last.squared_weight * self.last.product
        return variance.clamp(min=0).sqrt()

    def _variance_of_frame(self, block: list[_Stage]) -> Tensor:
        """Estimate the variance ``(B,)`` that the stages of one frame add.

        This is Var S of the class, for orthogonal probes.
        """
        w = torch.tensor([stage.weight for stage in block], dtype=self.dtype).to(block[0].u.device)
        u = torch.stack([stage.u for stage in block], 1).to(self.dtype)
        v = torch.stack([stage.v for stage in block], 1).to(self.dtype)
        if len(block) == 1:
            return 2 * (w * w * u.square().sum(2))[:, 0]
        # 1. subtract a multiple of the identity: it has no variance, but would add to that of the estimate
        pad = SMOOTHED_STAGES // 2
        smooth = torch.nn.functional.avg_pool1d((u * v).mean(2), SMOOTHED_STAGES, 1, pad, count_include_pad=False)
        u = u - smooth[:, :, None] * v
        # 2. the statistics of all pairs, and from them <off A_j, off A_k>
        e = 1 / ((self.frame or 0) - 1)
        M, d = u @ v.mT, u * v
        traces, dd = M.diagonal(dim1=1, dim2=2), d @ d.mT
        off = (M * M.mT - (1 + e) * dd + e * traces[:, :, None] * traces[:, None]) / (1 - e**2)
        # 3. ||diag A_k||^2 as the mean over the two neighbours of stage k
        diagonal = (dd + e * off).diagonal(1, 1, 2)
        diagonal = torch.cat([diagonal[:, :1], (diagonal[:, 1:] + diagonal[:, :-1]) / 2, diagonal[:, -1:]], 1)
        # 4. the variance
        off = off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))
        return 2 * ((u.square().sum(2) - diagonal) @ w.square() - e * ((off @ w) * w).sum(1))
