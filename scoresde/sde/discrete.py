"""Discrete DDPM and NCSN: exact special cases of VP and VE (E3, E4).

A DDPM of N levels has variances beta_1..beta_N and abar_i = prod_{k <= i} (1 - beta_k). An NCSN has L noise levels
sigma_1 < ... < sigma_L. Level i is at the time i/N or i/L, and level 0 is the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole, wholes
from scoresde.errors import ArgumentError, ShapeError
from scoresde.sde.base import SDE
from scoresde.sde.families import VESDE, VPSDE
from scoresde.sde.schedules import PiecewiseNoise, PiecewiseRate

SHOWN = 8  # levels that a repr or a message lists


def _vector(name: str, values: Sequence[float] | Tensor, expected: str) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    if vector.ndim != 1 or len(vector) == 0:
        raise ShapeError(name, tuple(vector.shape), f"a non-empty vector of {expected}")
    return vector


def _times(levels: int) -> Tensor:
    return torch.arange(1, levels + 1, dtype=torch.float64) / levels


def _time(i: int, levels: int) -> float:
    if whole("i", i, least=0) > levels:
        raise ArgumentError("i", i, f"a level in 0..{levels}")
    return i / levels


@checked
class DDPM(VPSDE):
    r"""A discrete DDPM (P1, P2): a VP SDE with piecewise constant beta.

        beta(t) = -N log(1 - beta_i)  on ((i-1)/N, i/N]

    At ``times[i-1]`` = i/N, i = 1..N, alpha and sigma equal sqrt(abar_i) and sqrt(1 - abar_i) to the last digit.
    Being an SDE, it works with every sampler, likelihood and loss.

    The last variance may be 1: zero terminal SNR, alpha(1) = 0 (Lin et al. 2024). There only the noise is left, and a
    network must predict ``"velocity"``, ``"data"``, ``"flow"`` or ``"edm"``; between the last two levels alpha^2 falls
    linearly in t.

    Args:
        betas: Variances beta_1..beta_N, each in (0, 1). beta_N may be 1.

    Attributes:
        betas, alphas_bar, times: float64 CPU tensors ``(N,)``.

    Raises:
        ShapeError: ``betas`` is not a vector.
        ArgumentError: A variance outside (0, 1), but for a last one of 1.

    References: Ho et al. 2020; Lin et al. 2024.
    """

    name = "ddpm"
    schedule: PiecewiseRate
    times: Tensor

    def __init__(self, betas: Sequence[float] | Tensor):
        betas = _vector("betas", betas, "variances in (0, 1)")
        wrong = ~((betas > 0) & (betas < 1))
        wrong[-1] &= betas[-1] != 1
        if wrong.any():
            i = int(wrong.nonzero()[0, 0])
            raise ArgumentError(
                f"betas[{i}]", betas[i].item(), "a variance strictly between 0 and 1 (the last one may be 1)"
            )
        self._set(betas, -torch.log1p(-betas))

    def _set(self, betas: Tensor, steps: Tensor) -> None:
        """Set the process; ``steps`` are B_i - B_{i-1} = -log(1 - beta_i)."""
        super().__init__(schedule=PiecewiseRate(steps.tolist()))
        self.betas = betas
        self.alphas_bar = torch.exp(-steps.cumsum(0))
        self.times = _times(len(steps))

    @classmethod
    def _from_steps(cls, steps: Tensor) -> DDPM:
        ddpm = cls.__new__(cls)
        ddpm._set(-torch.expm1(-steps), steps)
        return ddpm

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DDPM) and torch.equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(tuple(self.betas.tolist()))

    @classmethod
    @checked
    def linear(cls, N: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> DDPM:
        """Make a DDPM with betas linear in i (P10).

        Args:
            N: Number of levels, default 1000.
            beta_start: beta_1. None: 1e-4 times 1000/N.
            beta_end: beta_N. None: 0.02 times 1000/N.

        References: Ho et al. 2020.
        """
        N = whole("N", N)
        start = 1000 / N * 1e-4 if beta_start is None else beta_start
        end = 1000 / N * 0.02 if beta_end is None else beta_end
        return cls(torch.linspace(start, end, N, dtype=torch.float64))

    @classmethod
    @checked
    def cosine(  # type: ignore[override]  # a DDPM also needs its number of levels
        cls, N: int = 1000, s: float = 0.008, max_beta: float = 0.999
    ) -> DDPM:
        """Make a DDPM with the cosine schedule (P10).

            abar_i = f(i/N)/f(0),  f(t) = cos^2(pi (t+s) / (2 (1+s)))

        Args:
            N: Number of levels, default 1000.
            s: Offset, positive, default 0.008.
            max_beta: Upper limit of the betas, default 0.999.

        References: Nichol & Dhariwal 2021, eq. 17.
        """
        N = whole("N", N)
        t = torch.arange(N + 1, dtype=torch.float64) / N
        b = VPSDE.cosine(s).schedule.integral(t)
        return cls((-torch.expm1(-b.diff())).clamp(max=max_beta))

    @classmethod
    @checked
    def from_alphas_bar(cls, alphas_bar: Sequence[float] | Tensor) -> DDPM:
        """Make a DDPM from the products abar_1..abar_N.

        Raises:
            ShapeError: ``alphas_bar`` is not a vector.
            ArgumentError: Products that are not positive, below 1 and strictly decreasing. The last one may be 0.
        """
        alphas_bar = _vector("alphas_bar", alphas_bar, "products in (0, 1)")
        steps = -torch.cat([alphas_bar.new_ones(1), alphas_bar]).log().diff()
        positive_but_last = bool((alphas_bar[:-1] > 0).all()) and bool(alphas_bar[-1] >= 0)
        if not (positive_but_last and bool((steps > 0).all())):
            expected = "positive, below 1 and strictly decreasing (the last one may be 0)"
            raise ArgumentError("alphas_bar", alphas_bar.tolist()[:SHOWN], expected)
        return cls._from_steps(steps)

    def rescale_zero_terminal_snr(self) -> DDPM:
        """Return this DDPM with its alphas shifted, so that the last is 0.

            alpha'_i = (alpha_i - alpha_N) alpha_1/(alpha_1 - alpha_N),    alpha_i = sqrt(abar_i)

        Raises:
            ArgumentError: A DDPM of one level.

        References: Lin et al. 2024, algorithm 1.
        """
        if self.N < 2:
            raise ArgumentError("ddpm", repr(self), "a DDPM of two levels or more")
        alphas = self.alphas_bar.sqrt()
        return self.from_alphas_bar(((alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))) ** 2)

    @classmethod
    def from_sde(cls, sde: SDE, N: int) -> DDPM:
        """Make the DDPM with the marginals of a VP SDE at the times i/N.

            abar_i = alpha(i/N)^2

        Raises:
            ArgumentError: A process that does not preserve variance (alpha^2 + sigma^2 is not 1).
        """
        t = _times(whole("N", N))
        log_alpha = sde.log_alpha(t)
        total = (2 * log_alpha).exp() + (2 * sde.log_sigma(t)).exp()
        if not bool(((total - 1).abs() < 1e-9).all()):
            raise ArgumentError("sde", repr(sde), "a variance-preserving process, alpha^2 + sigma^2 = 1")
        return cls._from_steps(-2 * torch.cat([log_alpha.new_zeros(1), log_alpha]).diff())

    @property
    def N(self) -> int:
        """The number of levels."""
        return len(self.betas)

    def time(self, i: int) -> float:
        """Return the time i/N of level i = 0..N."""
        return _time(i, self.N)

    @checked
    def respace(self, indices: Sequence[int] | Tensor) -> DDPM:
        """Return the DDPM on the levels C(1) < ... < C(S) (P12).

            abar'_i = abar_{C(i)}

        Args:
            indices: Levels among 1..N, increasing. A leading 0, the data level C(0), changes nothing.

        Raises:
            ArgumentError: No levels, some outside 0..N, or levels that do not increase.
        """
        chosen = torch.tensor(wholes("indices", indices, least=0), dtype=torch.long)
        if len(chosen) and chosen[0] == 0:
            chosen = chosen[1:]
        if len(chosen) == 0:
            raise ArgumentError("indices", "none", f"a non-empty list of levels in 1..{self.N}")
        if chosen[0] < 1 or chosen[-1] > self.N or not bool((chosen.diff() > 0).all()):
            raise ArgumentError("indices", chosen.tolist()[:SHOWN], f"increasing levels in 1..{self.N}")
        b = self.schedule.knots
        return self._from_steps(torch.cat([b[:1], b[chosen]]).diff())

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "ddpm", "betas": self.betas.tolist()}

    def __repr__(self) -> str:
        if self.N <= SHOWN:
            return f"DDPM({self.betas.tolist()})"
        return f"DDPM(N={self.N}, beta_1={self.betas[0]:.3g}, beta_N={self.betas[-1]:.3g})"


@checked
class NCSN(VESDE):
    r"""A discrete NCSN (N1): a VE SDE with piecewise linear sigma^2 (E3).

    sigma^2 interpolates 0, at the data, and the levels sigma_i^2 at i/L.

    Args:
        sigmas: Positive, strictly monotone noise levels, in either order. (NCSN counts from the largest, the SDE paper
            from the smallest.)

    Attributes:
        sigmas, times: float64 CPU tensors ``(L,)``, increasing.

    Raises:
        ShapeError: ``sigmas`` is not a vector.
        ArgumentError: Levels that are not positive and finite, or not strictly monotone.

    References: Song & Ermon 2019.
    """

    name = "ncsn"
    times: Tensor

    def __init__(self, sigmas: Sequence[float] | Tensor):
        sigmas = _vector("sigmas", sigmas, "noise levels")
        if len(sigmas) > 1 and sigmas[0] > sigmas[-1]:
            sigmas = sigmas.flip(0)
        if not bool((sigmas > 0).all() and sigmas.isfinite().all()):
            raise ArgumentError("sigmas", sigmas.tolist()[:SHOWN], "positive finite noise levels")
        if not bool((sigmas.diff() > 0).all()):
            raise ArgumentError("sigmas", sigmas.tolist()[:SHOWN], "strictly monotone noise levels")
        super().__init__(schedule=PiecewiseNoise(sigmas.tolist()))
        self.sigmas = sigmas
        self.times = _times(len(sigmas))

    @classmethod
    @checked
    def geometric(cls, sigma_min: float = 0.01, sigma_max: float = 50.0, L: int = 232) -> NCSN:
        """Make an NCSN with levels in geometric progression (N1).

        Args:
            sigma_min: Smallest level, positive, default 0.01.
            sigma_max: Largest level, above ``sigma_min``, default 50.
            L: Number of levels, default 232.

        Raises:
            ArgumentError: Levels out of order, or no levels.
        """
        low, high = math.log(positive("sigma_min", sigma_min)), math.log(positive("sigma_max", sigma_max))
        if whole("L", L) > 1 and high <= low:
            raise ArgumentError("sigma_max", sigma_max, f"above sigma_min = {sigma_min}")
        return cls(torch.linspace(high, low, L, dtype=torch.float64).exp())

    @classmethod
    def from_sde(cls, sde: SDE, L: int) -> NCSN:
        """Make the NCSN with the marginals of a VE SDE at the times i/L.

        Raises:
            ArgumentError: A process with alpha other than 1.
        """
        t = _times(whole("L", L))
        if bool((sde.log_alpha(t) != 0).any()):
            raise ArgumentError("sde", repr(sde), "a variance-exploding process, alpha = 1")
        return cls(sde.log_sigma(t).exp())

    @property
    def L(self) -> int:
        """The number of levels."""
        return len(self.sigmas)

    def time(self, i: int) -> float:
        """Return the time i/L of level i = 0..L, from the smallest sigma."""
        return _time(i, self.L)

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "ncsn", "sigmas": self.sigmas.tolist()}

    def __repr__(self) -> str:
        if self.L <= SHOWN:
            return f"NCSN({self.sigmas.tolist()})"
        return f"NCSN(L={self.L}, sigma_1={self.sigmas[0]:.3g}, sigma_L={self.sigmas[-1]:.3g})"
