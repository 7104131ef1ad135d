"""Discrete DDPM and NCSN: exact special cases of VP and VE (E3, E4), not approximations to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.sde.base import SDE
from scoresde.sde.families import VESDE, VPSDE
from scoresde.sde.schedules import PiecewiseNoise, PiecewiseRate


def _vector(name: str, values, expected: str) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    if vector.ndim != 1 or len(vector) == 0:
        raise ShapeError(name, tuple(vector.shape), f"a non-empty vector of {expected}")
    return vector


def _level_time(i: int, levels: int) -> float:
    if not isinstance(i, Integral) or isinstance(i, bool) or not 0 <= i <= levels:
        raise ArgumentError("i", i, f"a level 0..{levels}")
    return i / levels


class DDPM(VPSDE):
    r"""A discrete DDPM (P1, P2): the VP SDE whose beta(t) = -N log(1 - beta_i) is constant on ((i-1)/N, i/N].

    At ``times[i-1]`` = i/N, i = 1..N, alpha and sigma equal sqrt(alphas_bar_i) and sqrt(1 - alphas_bar_i) to the last
    digit; level 0 is the data. Being an SDE, it works with every sampler, likelihood and loss.

    Args:
        betas: the variances beta_1..beta_N of Ho et al. (2020), each in (0, 1).

    Attributes:
        betas, alphas_bar, times: float64 CPU tensors ``(N,)``.
    """

    name = "ddpm"

    def __init__(self, betas):
        betas = _vector("betas", betas, "variances in (0, 1)")
        wrong = ~((betas > 0) & (betas < 1))
        if wrong.any():
            i = int(wrong.nonzero()[0, 0])
            raise ArgumentError(f"betas[{i}]", betas[i].item(), "a variance strictly between 0 and 1")
        self._set_steps(-torch.log1p(-betas))

    def _set_steps(self, steps: Tensor) -> None:
        """``steps``: B_i - B_{i-1} = -log(1 - beta_i), the exact record of the process."""
        super().__init__(schedule=PiecewiseRate(steps))
        self.betas = -torch.expm1(-steps)
        self.alphas_bar = torch.exp(-steps.cumsum(0))
        self.times = torch.arange(1, len(steps) + 1, dtype=torch.float64) / len(steps)

    @classmethod
    def _from_steps(cls, steps: Tensor) -> DDPM:
        ddpm = cls.__new__(cls)
        ddpm._set_steps(steps)
        return ddpm

    @classmethod
    def linear(cls, N: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> DDPM:
        """P10, linear: N betas from 1e-4 to 0.02 (Ho et al. 2020), both times 1000/N for another N."""
        scale = 1000 / whole("N", N)
        start = scale * 1e-4 if beta_start is None else beta_start
        end = scale * 0.02 if beta_end is None else beta_end
        return cls(torch.linspace(start, end, N, dtype=torch.float64))

    @classmethod
    def cosine(cls, N: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> DDPM:
        """P10, cosine: abar_i = f(i/N)/f(0), f(t) = cos^2(pi (t+s) / (2 (1+s))), beta_i <= max_beta.

        Source: Nichol & Dhariwal (2021, eq. 17).
        """
        t = torch.arange(whole("N", N) + 1, dtype=torch.float64) / N
        b = VPSDE.cosine(s).schedule.integral(t)
        return cls((-torch.expm1(-b.diff())).clamp(max=max_beta))

    @classmethod
    def from_alphas_bar(cls, alphas_bar) -> DDPM:
        """From the products abar_i = prod(1 - beta_k): positive, below 1 and strictly decreasing."""
        alphas_bar = _vector("alphas_bar", alphas_bar, "products in (0, 1)")
        steps = -torch.cat([alphas_bar.new_ones(1), alphas_bar]).log().diff()
        if not bool(((alphas_bar > 0) & (steps > 0)).all()):
            raise ArgumentError("alphas_bar", alphas_bar.tolist()[:8], "positive, below 1 and strictly decreasing")
        return cls._from_steps(steps)

    @classmethod
    def from_sde(cls, sde: SDE, N: int) -> DDPM:
        """The N-level DDPM with the marginals of a VP SDE at the times i/N: abar_i = alpha(i/N)^2.

        Raises:
            ArgumentError: a process that does not preserve variance (alpha^2 + sigma^2 is not 1), or alpha(1) = 0.
        """
        t = torch.arange(1, whole("N", N) + 1, dtype=torch.float64) / N
        log_alpha = sde.log_alpha(t)
        total = (2 * log_alpha).exp() + (2 * sde.log_sigma(t)).exp()
        if not bool(((total - 1).abs() < 1e-9).all()):
            raise ArgumentError("sde", repr(sde), "a variance-preserving process, alpha^2 + sigma^2 = 1")
        if log_alpha[-1] == -math.inf:
            raise ArgumentError("sde", repr(sde), "alpha(1) > 0 (DDPM.cosine caps beta instead)")
        return cls._from_steps(-2 * torch.cat([log_alpha.new_zeros(1), log_alpha]).diff())

    @property
    def N(self) -> int:
        """The number of levels."""
        return len(self.betas)

    def time(self, i: int) -> float:
        """The time i/N of level i = 0..N (0 is the data)."""
        return _level_time(i, self.N)

    def respace(self, indices: Sequence[int]) -> DDPM:
        """P12: the DDPM on the subsequence C(1) < ... < C(S) of the levels 1..N, abar'_i = abar_{C(i)}.

        A leading 0, the data level C(0), may be given and changes nothing.

        Raises:
            ArgumentError: no level, one outside 0..N, or levels that do not increase.
        """
        if not len(indices):
            raise ArgumentError("indices", "none", f"a non-empty list of levels 1..{self.N}")
        index = torch.as_tensor(indices, device="cpu")
        if index.is_floating_point() or index.dtype == torch.bool:
            raise DTypeError("indices", index.dtype, "whole numbers")
        if index.ndim == 1 and len(index) and index[0] == 0:
            index = index[1:]
        if index.ndim != 1 or len(index) == 0:
            raise ArgumentError("indices", tuple(index.shape), f"a non-empty list of levels 1..{self.N}")
        if index[0] < 1 or index[-1] > self.N or not bool((index.diff() > 0).all()):
            raise ArgumentError("indices", index.tolist()[:8], f"increasing levels within 1..{self.N}")
        b = self.schedule.b.knots.values
        return self._from_steps(torch.cat([b[:1], b[index.long()]]).diff())

    @property
    def config(self):
        return {"name": "ddpm", "betas": self.betas.tolist()}

    def __repr__(self):
        return f"DDPM(N={self.N}, beta_1={self.betas[0]:.3g}, beta_N={self.betas[-1]:.3g})"


class NCSN(VESDE):
    r"""A discrete NCSN (N1): the VE SDE whose sigma^2 interpolates linearly 0 (the data) and its levels at i/L (E3).

    Args:
        sigmas: positive, strictly monotone noise levels, in either order (NCSN counts from the largest, the SDE paper
            from the smallest).

    Attributes:
        sigmas, times: float64 CPU tensors ``(L,)``, increasing; ``times`` are i/L, level 0 is the data.
    """

    name = "ncsn"

    def __init__(self, sigmas):
        sigmas = _vector("sigmas", sigmas, "noise levels")
        if len(sigmas) > 1 and sigmas[0] > sigmas[-1]:
            sigmas = sigmas.flip(0)
        if not bool((sigmas > 0).all() and sigmas.isfinite().all()):
            raise ArgumentError("sigmas", sigmas.tolist()[:8], "positive finite noise levels")
        if not bool((sigmas.diff() > 0).all()):
            raise ArgumentError("sigmas", sigmas.tolist()[:8], "strictly monotone noise levels")
        super().__init__(schedule=PiecewiseNoise(sigmas))
        self.sigmas = sigmas
        self.times = torch.arange(1, len(sigmas) + 1, dtype=torch.float64) / len(sigmas)

    @classmethod
    def geometric(cls, sigma_min: float = 0.01, sigma_max: float = 50.0, L: int = 232) -> NCSN:
        """N1: L levels in geometric progression from sigma_min to sigma_max."""
        low, high = math.log(positive("sigma_min", sigma_min)), math.log(positive("sigma_max", sigma_max))
        if whole("L", L) > 1 and high <= low:
            raise ArgumentError("sigma_max", sigma_max, f"more than sigma_min = {sigma_min}")
        return cls(torch.linspace(high, low, L, dtype=torch.float64).exp())

    @classmethod
    def from_sde(cls, sde: SDE, L: int) -> NCSN:
        """The L-level NCSN with the marginals of a VE SDE at the times i/L.

        Raises:
            ArgumentError: a process with alpha other than 1.
        """
        t = torch.arange(1, whole("L", L) + 1, dtype=torch.float64) / L
        if bool((sde.log_alpha(t) != 0).any()):
            raise ArgumentError("sde", repr(sde), "a variance-exploding process, alpha = 1")
        return cls(sde.log_sigma(t).exp())

    @property
    def L(self) -> int:
        """The number of levels."""
        return len(self.sigmas)

    def time(self, i: int) -> float:
        """The time i/L of level i = 0..L, counted from the smallest sigma (0 is the data)."""
        return _level_time(i, self.L)

    @property
    def config(self):
        return {"name": "ncsn", "sigmas": self.sigmas.tolist()}

    def __repr__(self):
        return f"NCSN(L={self.L}, sigma_1={self.sigmas[0]:.3g}, sigma_L={self.sigmas[-1]:.3g})"
