"""The families: a relation between alpha and sigma each, driven by a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.sde.base import SDE
from scoresde.sde.schedules import (
    AnyRate,
    CosineRate,
    GeometricNoise,
    LinearNoise,
    LinearRate,
    NoiseSchedule,
    RateSchedule,
)
from scoresde.sde.tensors import log1mexp


class _RateSDE(SDE):
    """What VP and sub-VP share: alpha = exp(-B/2) with B(t) = int_0^t beta, and f(x, t) = -beta x / 2."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, *, schedule: RateSchedule | None = None):
        self.schedule = LinearRate(beta_min, beta_max) if schedule is None else schedule

    @classmethod
    def cosine(cls, s: float = 0.008):
        """The cosine schedule (P10; Nichol & Dhariwal 2021, eq. 17) as the schedule; alpha(1) = 0, beta(1) = inf."""
        return cls(schedule=CosineRate(s))

    @classmethod
    def from_beta(cls, beta: Callable[[Tensor], Tensor]):
        """Any positive rate beta(t), a smooth function of a tensor of times; its integral is taken by quadrature."""
        return cls(schedule=AnyRate(beta))

    def beta(self, t: Tensor) -> Tensor:
        """The rate beta(t)."""
        return self.schedule.rate(t)

    def log_alpha(self, t):
        return -0.5 * self.schedule.integral(t)

    def log_alpha_rate(self, t):
        return -0.5 * self.schedule.rate(t)

    @property
    def prior_std(self) -> float:
        return 1.0

    @property
    def config(self):
        match self.schedule:
            case LinearRate(beta_min=low, beta_max=high):
                return {"name": self.name, "beta_min": low, "beta_max": high}
            case CosineRate(s=s):
                return {"name": f"{self.name}-cosine", "s": s}
        return super().config

    def __repr__(self):
        match self.schedule:
            case LinearRate(beta_min=low, beta_max=high):
                return f"{type(self).__name__}(beta_min={low:g}, beta_max={high:g})"
            case CosineRate(s=s):
                return f"{type(self).__name__}.cosine(s={s:g})"
        return f"{type(self).__name__}(schedule={type(self.schedule).__name__})"


class VPSDE(_RateSDE):
    r"""Variance preserving (E4): dx = -beta x/2 dt + sqrt(beta) dW; sigma^2 = 1 - alpha^2, alpha = exp(-B/2).

    The limit of DDPM (P1), and DDPM itself when beta is piecewise constant (:class:`scoresde.DDPM`).
    With data of unit variance every marginal has unit variance; the prior is N(0, I).

    Args:
        beta_min, beta_max: the linear rate beta(t) = beta_min + t (beta_max - beta_min), positive
            (Song et al. 2021, eq. 32, whose defaults 0.1 and 20 these are).
        schedule: another :class:`~scoresde.sde.schedules.RateSchedule`, instead of the linear one.
    """

    name = "vp"

    def log_sigma(self, t):
        return 0.5 * log1mexp(self.schedule.integral(t))

    def log_sigma_rate(self, t):
        b = self.schedule.integral(t)
        return torch.where(b == math.inf, 0.0, 0.5 * self.schedule.rate(t) / torch.expm1(b))

    def squared_diffusion(self, t):
        return self.schedule.rate(t)

    def _time_of(self, log_snr):
        return self.schedule.inverse(torch.logaddexp(-log_snr, torch.zeros_like(log_snr)))


class SubVPSDE(_RateSDE):
    r"""Sub-VP (E5): f as in VP, g^2 = beta (1 - exp(-2B)); sigma = 1 - alpha^2, never above VP's.

    Source: Song et al. (2021, eq. 29).
    """

    name = "subvp"

    def log_sigma(self, t):
        return log1mexp(self.schedule.integral(t))

    def log_sigma_rate(self, t):
        b = self.schedule.integral(t)
        return torch.where(b == math.inf, 0.0, self.schedule.rate(t) / torch.expm1(b))

    def squared_diffusion(self, t):
        return -self.schedule.rate(t) * torch.expm1(-2 * self.schedule.integral(t))

    def _time_of(self, log_snr):
        log_sigma = math.log(2) - torch.nn.functional.softplus(
            0.5 * torch.logaddexp(torch.zeros_like(log_snr), log_snr + math.log(4)), threshold=700
        )  # sigma = 2 / (1 + sqrt(1 + 4 snr)), the positive root of snr sigma^2 + sigma - 1 = 0
        small = log_sigma < -math.log(2)
        b = torch.where(small, -torch.log1p(-log_sigma.exp()), -2 * log_sigma - log_snr)
        return self.schedule.inverse(b)


class VESDE(SDE):
    r"""Variance exploding (E3): dx = sqrt(d sigma^2/dt) dW; alpha = 1.

    The limit of NCSN, and NCSN itself when sigma^2 interpolates its levels (:class:`scoresde.NCSN`). The prior is
    N(0, sigma_max^2 I).

    Args:
        sigma_min, sigma_max: the geometric schedule sigma(t) = sigma_min (sigma_max/sigma_min)^t, in units of the data
            (Song et al. 2021, eq. 30). sigma(0) = sigma_min: choose it well below the data's finest detail.
        schedule: another :class:`~scoresde.sde.schedules.NoiseSchedule`, instead of the geometric one.
    """

    name = "ve"

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, schedule: NoiseSchedule | None = None):
        self.schedule = GeometricNoise(sigma_min, sigma_max) if schedule is None else schedule

    @classmethod
    def linear(cls, sigma_max: float = 80.0) -> VESDE:
        """EDM's process: sigma(t) = sigma_max t (Karras et al. 2022, where sigma itself is the time)."""
        return cls(schedule=LinearNoise(sigma_max))

    def log_alpha(self, t):
        return torch.zeros_like(t)

    def log_alpha_rate(self, t):
        return torch.zeros_like(t)

    def log_sigma(self, t):
        return self.schedule.log_sigma(t)

    def log_sigma_rate(self, t):
        return self.schedule.log_sigma_rate(t)

    def squared_diffusion(self, t):
        return self.schedule.variance_rate(t)

    def _time_of(self, log_snr):
        return self.schedule.inverse(-0.5 * log_snr)

    @property
    def config(self):
        match self.schedule:
            case GeometricNoise(sigma_min=low, sigma_max=high):
                return {"name": "ve", "sigma_min": low, "sigma_max": high}
            case LinearNoise(sigma_max=high):
                return {"name": "ve-linear", "sigma_max": high}
        return super().config

    def __repr__(self):
        match self.schedule:
            case GeometricNoise(sigma_min=low, sigma_max=high):
                return f"VESDE(sigma_min={low:g}, sigma_max={high:g})"
            case LinearNoise(sigma_max=high):
                return f"VESDE.linear(sigma_max={high:g})"
        return f"VESDE(schedule={type(self.schedule).__name__})"


class FlowSDE(SDE):
    r"""The flow-matching path alpha = 1 - t, sigma = t as an SDE: dx = -x/(1-t) dt + sqrt(2t/(1-t)) dW.

    Models trained as rectified flows or by flow matching (Lipman et al. 2023; Liu et al. 2023, with data at t = 0) are
    its probability flow: their regression target dx/dt = eps - x_0 is the prediction ``"flow"``. The prior is N(0, I);
    f and g are infinite at t = 1, where alpha = 0.
    """

    name = "flow"

    def log_alpha(self, t):
        return torch.log1p(-t)

    def log_sigma(self, t):
        return torch.log(t)

    def log_alpha_rate(self, t):
        return -1 / (1 - t)

    def log_sigma_rate(self, t):
        return 1 / t

    def squared_diffusion(self, t):
        return 2 * t / (1 - t)

    def _time_of(self, log_snr):
        return torch.sigmoid(-0.5 * log_snr)

    @property
    def config(self):
        return {"name": "flow"}
