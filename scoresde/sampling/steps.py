"""Predictors and correctors: one step of the reverse process each (E7).

Symbols:
    t -> s: a step, s < t. x_t, x_s: samples ``(B, *D)`` at its ends.
    x0, eps, score: the model's estimates at (x_t, t). z: standard normal noise.
    alpha_{t|s}, sigma_{t|s}: mean scale and standard deviation of the forward transition p(x_t | x_s).
    beta, beta~: the two variances of the reverse step (P7).

A predictor is its coefficients, x_s = c_x x_t + c_x0 x0 + c_eps eps + c_z z. They depend on t and s only and are
computed in float64 for the whole grid, before the loop. Sources: Ho et al. 2020 (ancestral), Song et al. 2021 (reverse
diffusion, Langevin), Song, Meng & Ermon 2021 (implicit), Song & Ermon 2019 (annealed Langevin).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import non_negative, positive
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Estimate
from scoresde.models.kernels import VARIANCES
from scoresde.sampling.base import Draw
from scoresde.sampling.frozen import Frozen
from scoresde.sde import SDE, HostLevel
from scoresde.sde.grids import check_finite_log_snr
from scoresde.sde.times import as_time


def norms(x: Tensor) -> Tensor:
    """Return the Euclidean norms of x ``(B, *D)``, ``(B, 1, ..., 1)``."""
    if x.ndim == 1:
        return x.abs()
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return norm


class StepCoefficients(NamedTuple):
    """The coefficients of one step, x_s = x x_t + x0 x0 + eps eps + z z."""

    x: float
    x0: float
    eps: float
    z: float

    def combine(self, x: Tensor, estimate: Estimate, draw: Draw) -> Tensor:
        """Return x_s. Zero terms cost nothing, and no noise is drawn for them."""
        moved = x.mul(self.x) if self.x else estimate.x0.mul(self.x0)
        if self.x and self.x0:
            moved = torch.add(moved, estimate.x0, alpha=self.x0)
        if self.eps:
            moved = torch.add(moved, estimate.eps, alpha=self.eps)
        return torch.add(moved, draw(), alpha=self.z) if self.z else moved


class Coefficients(NamedTuple):
    """The coefficients of all n steps of a grid, float64 ``(n,)`` each."""

    x: Tensor
    x0: Tensor
    eps: Tensor
    z: Tensor

    def rows(self) -> list[StepCoefficients]:
        """Return the coefficients step by step, as Python floats."""
        return [StepCoefficients(*row) for row in zip(*(c.tolist() for c in self), strict=True)]


# ---- predictors ------------------------------------------------------------------------------------------------------


class Predictor(Frozen, ABC):
    """One step of the reverse SDE from t to s < t."""

    @abstractmethod
    def coefficients(self, sde: SDE, t: float | Tensor, s: float | Tensor) -> Coefficients:
        """Return the coefficients of the steps t -> s, numbers or ``(n,)``."""

    def step(self, c: StepCoefficients, x: Tensor, estimate: Estimate, target: HostLevel, draw: Draw) -> Tensor:
        """Return x_s.

        Args:
            c: Coefficients of this step.
            x: Samples x_t ``(B, *D)``.
            estimate: Model's estimate at (x_t, t).
            target: Noise level at s.
            draw: Source of the noise.
        """
        return c.combine(x, estimate, draw)


@checked
@dataclass(frozen=True, repr=False)
class Implicit(Predictor):
    """DDIM's step for every SDE: a draw of q_eta(x_s | x_t, x_0 = x0) (D3).

        x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z,    std = eta sigma_{t|s} sigma_s / sigma_t

    Args:
        eta: Scale of the noise, 0 or more, default 0. At 0 the step is deterministic, at 1 it is the ancestral step.

    Raises:
        ArgumentError: ``eta`` is negative.

    References: Song, Meng & Ermon 2021, eqs. 12 and 16.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        self._store(eta=non_negative("eta", self.eta))

    def coefficients(self, sde: SDE, t: float | Tensor, s: float | Tensor) -> Coefficients:
        t, s = as_time(t), as_time(s, "s")
        return Coefficients(torch.zeros_like(t), *sde.posterior_coefficients(s, t, self.eta))


@checked
@dataclass(frozen=True, repr=False)
class Ancestral(Predictor):
    """DDPM's ancestral step for every SDE (P9).

        x_s = E[x_s | x_t, x_0 = x0] + std z

    The mean is that of D3 with eta = 1; std^2 is one of the variances of P7. Where no noise is left at s (DDPM's last
    step) none is drawn.

    Args:
        variance: Name of the variance, default ``"posterior"``. ``"posterior"``: beta~ = (sigma_{t|s}
            sigma_s/sigma_t)^2, exact at any step size if the data are a point. ``"forward"``: beta = sigma_{t|s}^2,
            exact for x_0 ~ N(0, I) under VP. ``"learned"``: beta^v beta~^(1-v) with the model's v per entry
            (:meth:`scoresde.SDE.posterior_variance`).

    Raises:
        UnknownNameError: ``variance`` is none of these names.
        ArgumentError: At the first step, the variance is learned and the model has none.

    References: Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, eq. 15.
    """

    variance: Literal["posterior", "forward", "learned"] = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise UnknownNameError("variance", self.variance, VARIANCES)

    def coefficients(self, sde: SDE, t: float | Tensor, s: float | Tensor) -> Coefficients:
        t, s = as_time(t), as_time(s, "s")
        c = Coefficients(torch.zeros_like(t), *sde.posterior_coefficients(s, t, 1.0))
        if self.variance != "forward":
            return c
        return c._replace(z=torch.where(sde.sigma(s) > 0, sde.transition(s, t)[1], 0.0))

    def step(self, c: StepCoefficients, x: Tensor, estimate: Estimate, target: HostLevel, draw: Draw) -> Tensor:
        if self.variance != "learned":
            return super().step(c, x, estimate, target, draw)
        if estimate.v is None:
            raise ArgumentError("model", "one without", "one with learned variances (learned_variance=True)")
        mean = c._replace(z=0.0).combine(x, estimate, draw)
        if not c.z:
            return mean
        # sqrt(beta/beta~) to the power v, for c.z = sqrt(beta~)
        return mean + c.z * (estimate.level.sigma / target.sigma) ** estimate.v * draw()


@checked
@dataclass(frozen=True, repr=False)
class ReverseDiffusion(Predictor):
    """The reverse diffusion step (E7).

        x_s = (2 - alpha_{t|s}) x_t + sigma_{t|s}^2 score + sigma_{t|s} z

    This is the forward transition, discretised backwards. On the levels of a DDPM it is the paper's step. It stays
    finite with few steps.

    References: Song et al. 2021, eq. 46.
    """

    def coefficients(self, sde: SDE, t: float | Tensor, s: float | Tensor) -> Coefficients:
        t, s = as_time(t), as_time(s, "s")
        alpha_ts, sigma_ts = sde.transition(s, t)
        return Coefficients(2 - alpha_ts, torch.zeros_like(t), -(sigma_ts**2) / sde.sigma(t), sigma_ts)


@checked
@dataclass(frozen=True, repr=False)
class EulerMaruyama(Predictor):
    """The Euler-Maruyama step of the reverse SDE (E2).

        x_s = x_t - [f(x_t, t) - g(t)^2 score] h + g(t) sqrt(h) z,    h = t - s

    Notes:
        Steps must be small against the rates f/x and g^2/sigma^2. With fewer than about 20 steps uniform in t, samples
        are finite but up to a thousand times too wide. :class:`Ancestral` is sound from one step on.

    Raises:
        ArgumentError: In a run, alpha = 0 at its first time, where f and g are infinite.

    References: Song et al. 2021, appendix G.
    """

    def coefficients(self, sde: SDE, t: float | Tensor, s: float | Tensor) -> Coefficients:
        t, s = as_time(t), as_time(s, "s")
        check_finite_log_snr(sde, None, t.max().item())
        h, g2 = t - s, sde.squared_diffusion(t)
        return Coefficients(1 - sde.log_alpha_rate(t) * h, torch.zeros_like(t), -g2 * h / sde.sigma(t), (g2 * h).sqrt())


# ---- correctors ------------------------------------------------------------------------------------------------------


class Corrector(Frozen, ABC):
    """One step of a Markov chain that leaves p_s unchanged."""

    def on(self, levels: Sequence[HostLevel]) -> Corrector:
        """Return the corrector for a run over these levels.

        It is this one, unless its steps depend on the levels.
        """
        return self

    @abstractmethod
    def step(self, x: Tensor, estimate: Estimate, alpha: float, draw: Draw) -> Tensor:
        """Return x after one step.

        Args:
            x: Samples ``(B, *D)`` at the level of ``estimate``.
            estimate: Model's estimate at x.
            alpha: alpha_{t|s} of the predictor's step to this level.
            draw: Source of the noise.
        """


@checked
@dataclass(frozen=True, repr=False)
class Langevin(Corrector):
    """Langevin dynamics with a step set by a signal-to-noise ratio.

        x <- x + a score + sqrt(2a) z,    a = 2 alpha_{t|s}^2 (snr |z| / |score|)^2

    Here |z|^2 is its mean n, the number of entries of a sample. |score|^2 is that of the sample, but at least
    n/sigma^2, its mean for pure noise. Without this bound the step could grow without limit: near a mode in few
    dimensions the score nearly vanishes.

    Args:
        snr: Signal-to-noise ratio r of the paper, positive, default 0.16, the paper's choice for images.
        batch_mean: Whether to use the norms of the paper's code, averaged over the batch, default False. A sample then
            depends on its batch.

    Raises:
        ArgumentError: ``snr`` is not positive.

    References: Song et al. 2021, algorithms 4 and 5.
    """

    snr: float = 0.16
    batch_mean: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._store(snr=positive("snr", self.snr))

    def step(self, x: Tensor, estimate: Estimate, alpha: float, draw: Draw) -> Tensor:
        # with eps = -sigma score and sqrt(2a) = c/r this is x + (c/r) (z - c/(2 sigma r) eps)
        eps, z, sigma = estimate.eps, draw(), cast(HostLevel, estimate.level).sigma
        c = 2 * alpha * self.snr * sigma
        if self.batch_mean:
            inverse = norms(z).mean() / norms(eps).mean()
        else:
            root = math.sqrt(x.numel() // len(x))
            c, inverse = c * root, norms(eps).clamp_min(root).reciprocal()
        return torch.addcmul(x, inverse, torch.addcmul(z, inverse, eps, value=-c / (2 * sigma)), value=c)


@checked
@dataclass(frozen=True, repr=False)
class AnnealedLangevin(Corrector):
    """Annealed Langevin dynamics for every SDE (N3).

        x <- x + (a/2) score + sqrt(a) z,    a = e sigma^2 / rho_L^2

    rho = sigma/alpha, and rho_L is its smallest value in the run that is not 0. This is N3's step, taken by x/alpha.
    For alpha = 1 (VE, NCSN) it is a_i = e sigma_i^2 / sigma_L^2.

    Args:
        step_size: e, positive. The chain is stable for e < 4 rho_L^2; its variance is too large by about a fraction
            e/(4 rho_L^2). A good choice is twice what :func:`scoresde.sde.langevin_step_size` returns.

    Raises:
        ArgumentError: ``step_size`` is not positive.

    References: Song & Ermon 2019, algorithm 1.
    """

    step_size: float

    def __post_init__(self) -> None:
        self._store(step_size=positive("step_size", self.step_size))

    def on(self, levels: Sequence[HostLevel]) -> Corrector:
        return _Annealed(self.step_size / min(level.rho for level in levels if level.sigma > 0) ** 2)

    def step(self, x: Tensor, estimate: Estimate, alpha: float, draw: Draw) -> Tensor:
        return self.on([cast(HostLevel, estimate.level)]).step(x, estimate, alpha, draw)


@dataclass(frozen=True, repr=False)
class _Annealed(Corrector):
    """Annealed Langevin dynamics with a = ratio sigma^2, ratio = e/rho_L^2."""

    ratio: float

    def step(self, x: Tensor, estimate: Estimate, alpha: float, draw: Draw) -> Tensor:
        sigma = cast(HostLevel, estimate.level).sigma
        a = self.ratio * sigma**2
        moved = torch.add(x, estimate.eps, alpha=-a / (2 * sigma))
        return torch.add(moved, draw(), alpha=math.sqrt(a))
