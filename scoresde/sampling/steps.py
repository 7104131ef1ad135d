"""Predictors and correctors (E7): one step of the reverse process each.

A predictor is its coefficients: every one of them is x_s = c_x x_t + c_x0 x0 + c_eps eps + c_z z with numbers that
depend on t and s only, computed in float64 for the whole grid before the loop.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Estimate
from scoresde.models.kernels import VARIANCES
from scoresde.sde import SDE, Level


def norms(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample of x ``(B, *D)``, of the shape ``(B, 1, ..., 1)``."""
    if x.ndim == 1:
        return x.abs()
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


class Coefficients(NamedTuple):
    """x_s = x x_t + x0 x_0 + eps eps + z z; tensors over a grid, or Python floats for one step."""

    x: Tensor
    x0: Tensor
    eps: Tensor
    z: Tensor

    def combine(self, x: Tensor, estimate: Estimate, draw: Callable[[], Tensor]) -> Tensor:
        """x_s of one step, from Python floats; a term that is zero costs nothing, noise is drawn where it is used."""
        moved = x.mul(self.x) if self.x else estimate.x0.mul(self.x0)
        if self.x and self.x0:
            moved = torch.add(moved, estimate.x0, alpha=self.x0)
        if self.eps:
            moved = torch.add(moved, estimate.eps, alpha=self.eps)
        return torch.add(moved, draw(), alpha=self.z) if self.z else moved


class Predictor(ABC):
    """One step of the reverse SDE from t to s < t."""

    @abstractmethod
    def coefficients(self, sde: SDE, t: Tensor, s: Tensor) -> Coefficients:
        """The coefficients of all steps t -> s of a grid, t and s float64 ``(n,)``."""

    def step(self, c: Coefficients, x: Tensor, estimate: Estimate, target: Level, draw: Callable[[], Tensor]) -> Tensor:
        """x at the level ``target`` = s from x and the estimate at t; ``c`` are this step's coefficients, as floats."""
        return c.combine(x, estimate, draw)

    def __repr__(self):
        return f"{type(self).__name__}()"


class Implicit(Predictor):
    """DDIM's step (D3) for every SDE: a draw of q_eta(x_s | x_t, x_0 = x0), SDE.posterior_coefficients.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z, std = eta sigma_{t|s} sigma_s / sigma_t
    (Song, Meng & Ermon 2021, eqs. 12 and 16).

    Args:
        eta: 0 is deterministic, 1 the ancestral step.
    """

    def __init__(self, eta: float = 0.0):
        if not eta >= 0:
            raise ArgumentError("eta", eta, "0 or more")
        self.eta = eta

    def coefficients(self, sde, t, s):
        return Coefficients(torch.zeros_like(t), *sde.posterior_coefficients(s, t, self.eta))

    def __repr__(self):
        return f"Implicit(eta={self.eta:g})"


class Ancestral(Implicit):
    """DDPM's ancestral step (P9) for every SDE: x_s = mean of p(x_s | x_t, x_0 = x0) + std z.

    The variance is one of P7's. Where no noise is left at s (DDPM's last step) none is drawn. The mean is D3's with
    eta = 1. Source: Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, eq. 15.

    Args:
        variance: ``"posterior"``, beta~ = (sigma_{t|s} sigma_s/sigma_t)^2, exact whatever the step if the data are a
            point; ``"forward"``, beta = sigma_{t|s}^2, exact for x_0 ~ N(0, I) under VP; ``"learned"``,
            beta^v beta~^(1-v) with the model's v per entry (:meth:`scoresde.SDE.posterior_variance`).

    Raises:
        UnknownNameError: another variance.
        ArgumentError: at the first step, if the variance is learned and the model has none.
    """

    def __init__(self, variance: str = "posterior"):
        super().__init__(eta=1.0)
        if variance not in VARIANCES:
            raise UnknownNameError("variance", variance, VARIANCES)
        self.variance = variance

    def coefficients(self, sde, t, s):
        c = super().coefficients(sde, t, s)
        if self.variance != "forward":
            return c
        return c._replace(z=torch.where(sde.sigma(s) > 0, sde.transition(s, t)[1], 0.0))

    def step(self, c, x, estimate, target, draw):
        if self.variance != "learned":
            return super().step(c, x, estimate, target, draw)
        if estimate.v is None:
            raise ArgumentError(
                "model", "no learned variances", "a model whose estimates have v (learned_variance=True)"
            )
        mean = c._replace(z=0.0).combine(x, estimate, draw)
        if not c.z:
            return mean
        return mean + c.z * (estimate.level.sigma / target.sigma) ** estimate.v * draw()  # sqrt(beta/beta~) to the v

    def __repr__(self):
        return "Ancestral()" if self.variance == "posterior" else f"Ancestral({self.variance!r})"


class ReverseDiffusion(Predictor):
    """The reverse diffusion step (Song et al. 2021, eq. 46): the forward transition, discretised backwards.

    With the exact x_t = alpha_{t|s} x_s + sigma_{t|s} z of the forward process,
    x_s = (2 - alpha_{t|s}) x_t + sigma_{t|s}^2 score + sigma_{t|s} z. For a DDPM's own levels this is the paper's step,
    and it stays finite with few steps.
    """

    def coefficients(self, sde, t, s):
        alpha_ts, sigma_ts = sde.transition(s, t)
        return Coefficients(2 - alpha_ts, torch.zeros_like(t), -(sigma_ts**2) / sde.sigma(t), sigma_ts)


class EulerMaruyama(Predictor):
    """x_s = x_t - [f(x_t, t) - g(t)^2 score] h + g(t) sqrt(h) z, h = t - s: the reverse SDE (E2) to first order.

    It needs steps that are small against the rates f/x and g^2/sigma^2: with fewer than about 20, uniform in t, its
    samples are finite but up to a thousand times too wide, where :class:`Ancestral` is sound from one step on.
    """

    def coefficients(self, sde, t, s):
        h, g2 = t - s, sde.squared_diffusion(t)
        return Coefficients(1 - sde.log_alpha_rate(t) * h, torch.zeros_like(t), -g2 * h / sde.sigma(t), (g2 * h).sqrt())


class Corrector(ABC):
    """One step of a Markov chain that leaves p_s as it is."""

    def on(self, levels: Sequence[Level]) -> Corrector:
        """The corrector for a run over these levels; itself, if its steps do not depend on them."""
        return self

    @abstractmethod
    def step(self, x: Tensor, estimate: Estimate, alpha: float, draw: Callable[[], Tensor]) -> Tensor:
        """x at the level of ``estimate`` after one step; ``alpha`` is alpha_{t|s} of the predictor's step to it."""


class Langevin(Corrector):
    r"""Langevin dynamics with a step set by a signal-to-noise ratio (Song et al. 2021, algorithms 4 and 5).

    x <- x + a score + sqrt(2a) z with a = 2 alpha_{t|s}^2 (snr |z| / |score|)^2.

    Per sample: the paper's code averages the norms over the batch, which makes a sample depend on its neighbours. Here
    |z|^2 is its mean n, and |score|^2 is the sample's own but at least its mean n/sigma^2 for pure noise: near a mode
    in few dimensions the score nearly vanishes, and the paper's step would be unbounded. ``batch_mean=True`` restores
    the paper's norms.

    Args:
        snr: the ratio r of the paper, positive; 0.16 is its choice for images.
    """

    def __init__(self, snr: float = 0.16, *, batch_mean: bool = False):
        if not 0 < snr < math.inf:
            raise ArgumentError("snr", snr, "a positive number")
        self.snr, self.batch_mean = snr, batch_mean

    def step(self, x, estimate, alpha, draw):
        # with eps = -sigma score and sqrt(2a) = c/r this is x + (c/r) (z - c/(2 sigma r) eps)
        eps, z, sigma = estimate.eps, draw(), estimate.level.sigma
        c = 2 * alpha * self.snr * sigma
        if self.batch_mean:
            inverse = norms(z).mean() / norms(eps).mean()
        else:
            root = math.sqrt(x.numel() // len(x))
            c, inverse = c * root, norms(eps).clamp_min(root).reciprocal()
        return torch.addcmul(x, inverse, torch.addcmul(z, inverse, eps, value=-c / (2 * sigma)), value=c)

    def __repr__(self):
        return f"Langevin(snr={self.snr:g}{', batch_mean=True' if self.batch_mean else ''})"


class AnnealedLangevin(Corrector):
    r"""Annealed Langevin dynamics (N3; Song & Ermon 2019, algorithm 1), for every SDE.

    x <- x + (a/2) score + sqrt(a) z with a = e sigma^2 / rho_L^2, rho = sigma/alpha, rho_L the smallest level of the
    run that has noise: N3's step, taken by x/alpha. For alpha = 1 (VE, NCSN) it is a_i = e sigma_i^2 / sigma_L^2.

    Args:
        step_size: e, positive. The chain is stable for e < 4 rho_L^2; its variance is too large by about a fraction
            e/(4 rho_L^2). A good choice is twice what :func:`scoresde.sde.ncsnv2.langevin_step_size` returns.
    """

    def __init__(self, step_size: float):
        if not 0 < step_size < math.inf:
            raise ArgumentError("step_size", step_size, "a positive number")
        self.step_size = step_size

    def on(self, levels):
        return _Annealed(self.step_size / min(level.rho for level in levels if level.sigma > 0) ** 2)

    def step(self, x, estimate, alpha, draw):
        return self.on([estimate.level]).step(x, estimate, alpha, draw)

    def __repr__(self):
        return f"AnnealedLangevin({self.step_size:g})"


class _Annealed(Corrector):
    """AnnealedLangevin with its unit known: a = ratio sigma^2, ratio = e / rho_L^2."""

    def __init__(self, ratio: float):
        self.ratio = ratio

    def step(self, x, estimate, alpha, draw):
        a = self.ratio * estimate.level.sigma**2
        moved = torch.add(x, estimate.eps, alpha=-a / (2 * estimate.level.sigma))
        return torch.add(moved, draw(), alpha=math.sqrt(a))
