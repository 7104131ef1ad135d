"""The forward process: alpha(t) and sigma(t) of p(x_t | x_0) = N(alpha x_0, sigma^2 I), and all that follows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from scoresde.random import randn
from scoresde.sde.schedules import invert_monotone
from scoresde.sde.tensors import broadcast
from scoresde.sde.times import as_time, is_host_scalar


class Level(NamedTuple):
    """One noise level, ready to be used in arithmetic with data.

    For a time known to the host (a grid of a sampler) all fields are Python floats, computed in float64: they multiply
    tensors of any device and dtype without a copy or a sync. For a time per sample ``t`` and ``log_snr`` are ``(B,)``
    and ``alpha`` and ``sigma`` have the shape ``(B, 1, ..., 1)``.
    """

    t: float | Tensor
    alpha: float | Tensor
    sigma: float | Tensor
    log_snr: float | Tensor

    @property
    def rho(self) -> float | Tensor:
        """sigma/alpha, the standard deviation of the noise in x/alpha."""
        return self.sigma / self.alpha

    @property
    def lam(self) -> float | Tensor:
        """lambda = log(alpha/sigma), half of ``log_snr``."""
        return self.log_snr / 2

    def rows(self, rows: slice | Tensor) -> Level:
        """Return the level of some samples; one level for all samples is theirs too."""
        return Level(*(value[rows] if isinstance(value, Tensor) and value.ndim else value for value in self))

    @property
    def ratio(self) -> float | Tensor:
        """alpha/sigma, and 0 where sigma = 0: eps moves by -ratio times what x0 moves by, at a given x_t."""
        if isinstance(self.sigma, Tensor):
            return torch.where(self.sigma > 0, self.alpha / self.sigma, 0.0)
        return self.alpha / self.sigma if self.sigma > 0 else 0.0


class SDE(ABC):
    r"""A forward process dx = f(x, t) dt + g(t) dW (E1) with p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I).

    A subclass defines :meth:`log_alpha` and :meth:`log_sigma`, functions of a floating tensor of times in [0, 1]
    (t = 0 is the data). The rest is algebra:

    - f(x, t) = (d log alpha / dt) x and g(t)^2 = 2 sigma^2 (d log sigma/dt - d log alpha/dt);
    - p(x_t | x_s) = N(alpha_{t|s} x_s, sigma_{t|s}^2 I), alpha_{t|s} = alpha_t / alpha_s,
      sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2 = -sigma_t^2 expm1(log_snr_t - log_snr_s);
    - p(x_s | x_t, x_0) = N(alpha_s x_0 + (alpha_{t|s} sigma_s^2 / sigma_t) eps, (sigma_{t|s} sigma_s / sigma_t)^2 I).

    The rates come from automatic differentiation unless a subclass gives them in closed form.
    """

    #: the name under which :func:`scoresde.sde.build_sde` knows the class (None: it cannot be saved by name)
    name: str | None = None
    #: the times of a discrete process's own levels, ascending (DDPM, NCSN); None for a process in continuous time
    times: Tensor | None = None

    # ---- what a family defines -----------------------------------------------------------------------------------

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha(t), the logarithm of the mean scale."""

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """log sigma(t), the logarithm of the noise's standard deviation (-inf where there is no noise)."""

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """d log alpha / dt, so that f(x, t) = log_alpha_rate(t) x."""
        return _derivative(self.log_alpha, t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """d log sigma / dt."""
        return _derivative(self.log_sigma, t)

    def squared_diffusion(self, t: Tensor) -> Tensor:
        """g(t)^2 = 2 sigma^2 (d log sigma/dt - d log alpha/dt), from a plain tensor of times (no checks)."""
        t = t.clamp(min=torch.finfo(t.dtype).tiny)  # at t = 0 the limit, where sigma = 0 and its rate is infinite
        return 2 * torch.exp(2 * self.log_sigma(t)) * (self.log_sigma_rate(t) - self.log_alpha_rate(t))

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return invert_monotone(lambda t: 2 * (self.log_sigma(t) - self.log_alpha(t)), -log_snr)

    @property
    def config(self) -> dict[str, Any]:
        """What :func:`scoresde.sde.build_sde` needs to make this process again, as JSON-able values."""
        raise ArgumentError("sde", type(self).__name__, "a process with a `config`, to be saved and built again")

    @property
    def prior_std(self) -> float:
        """The standard deviation of the prior, the stand-in for p(x_1): sigma(1) unless the family has a limit law."""
        return float(torch.exp(self.log_sigma(torch.ones((), dtype=torch.float64))))

    # ---- functions of time ---------------------------------------------------------------------------------------

    def alpha(self, t: float | Tensor) -> Tensor:
        """The mean scale alpha(t); any shape in, the same shape out (a number gives a float64 scalar)."""
        return torch.exp(self.log_alpha(as_time(t)))

    def sigma(self, t: float | Tensor) -> Tensor:
        """The standard deviation sigma(t) of the noise; any shape in, the same shape out."""
        return torch.exp(self.log_sigma(as_time(t)))

    def log_snr(self, t: float | Tensor) -> Tensor:
        """log(alpha(t)^2 / sigma(t)^2), decreasing in t; lambda(t) = log(alpha/sigma) is half of it."""
        t = as_time(t)
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def time_of(self, log_snr: float | Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`; values beyond the process's range give its nearest end, 0 or 1."""
        if not isinstance(log_snr, Tensor):
            log_snr = torch.tensor(float(log_snr), dtype=torch.float64)
        if log_snr.device.type == "cpu" and log_snr.isnan().any():
            raise ArgumentError("log_snr", "NaN", "log signal-to-noise ratios")
        return self._time_of(log_snr).clamp(0, 1)

    def time_at(self, *, lam: float | Tensor) -> Tensor:
        """Return the time at which lambda = log(alpha/sigma) is ``lam``: :meth:`time_of` of 2 ``lam``."""
        return self.time_of(2 * lam)

    def level(self, t: float | Tensor, x: Tensor) -> Level:
        """The :class:`Level` at ``t``, a number, ``()`` or ``(B,)``, shaped for arithmetic with ``x`` ``(B, *D)``.

        Raises:
            ShapeError: ``t`` of another shape (it is never broadcast against the axes of the data).
        """
        if is_host_scalar(t):
            return self.levels(as_time(t).reshape(1))[0]
        return self.level_at(as_time(t), x)

    def level_at(self, t: Tensor, x: Tensor) -> Level:
        """:meth:`level` of a tensor of times that is known to be good (drawn by a time sampler or a solver)."""
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        alpha, sigma = broadcast(log_alpha.exp(), x), broadcast(log_sigma.exp(), x)
        return Level(t, alpha, sigma, 2 * (log_alpha - log_sigma))

    def levels(self, times: Tensor) -> list[Level]:
        """The levels of a whole grid ``(n,)``, computed at once in float64 on the CPU, as Python floats."""
        t = as_time(times).double().cpu()
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        columns = (t, log_alpha.exp(), log_sigma.exp(), 2 * (log_alpha - log_sigma))
        return [Level(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    # ---- the forward process -------------------------------------------------------------------------------------

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """f(x, t) = (d log alpha / dt) x of E1; x ``(B, *D)``, t ``()`` or ``(B,)``."""
        return broadcast(self.log_alpha_rate(as_time(t)), x) * x

    def diffusion(self, t: float | Tensor) -> Tensor:
        """g(t) of E1; any shape in, the same shape out."""
        return self.squared_diffusion(as_time(t)).sqrt()

    def perturb(self, x0: Tensor, t: float | Tensor, generator=None) -> tuple[Tensor, Tensor]:
        """A draw of p(x_t | x_0): x_t = alpha(t) x_0 + sigma(t) eps. Returns ``(x_t, eps)``.

        ``generator`` is a torch.Generator or a list of them, one a sample; None draws from torch's default.

        Raises:
            DTypeError: data that are not floating-point.
            ShapeError, DeviceError: times that do not fit the data.
        """
        if not x0.is_floating_point():
            raise DTypeError("x0", x0.dtype, "floating-point data")
        eps = randn(x0.shape, generator, x0.device, x0.dtype)
        level = self.level(t, x0)
        return level.alpha * x0 + level.sigma * eps, eps

    def transition(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha_{t|s}, sigma_{t|s})`` of p(x_t | x_s) = N(alpha_{t|s} x_s, sigma_{t|s}^2 I), for s < t.

        Raises:
            ArgumentError: s >= t somewhere.
            ShapeError, DeviceError: s and t of two shapes (unless one is a scalar), or on two devices.
        """
        s, t = as_time(s, "s"), as_time(t)
        if s.ndim and t.ndim:
            if s.shape != t.shape:
                raise ShapeError("s", tuple(s.shape), f"() or the shape of t, {tuple(t.shape)}")
            if s.device != t.device:
                raise DeviceError("s", s.device, f"the device of t, {t.device}")
        if s.device.type == t.device.type == "cpu" and not (s < t).all():
            raise ArgumentError("s", s.tolist(), f"earlier than t = {t.tolist()}")
        log_alpha = self.log_alpha(t) - self.log_alpha(s)
        log_ratio = 2 * (self.log_alpha(t) - self.log_sigma(t) - self.log_alpha(s) + self.log_sigma(s))
        return log_alpha.exp(), self.log_sigma(t).exp() * (-torch.expm1(log_ratio)).sqrt()

    def posterior_coefficients(
        self, s: float | Tensor, t: float | Tensor, eta: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(c_x0, c_eps, std)`` of q_eta(x_s | x_t, x_0) = N(c_x0 x_0 + c_eps eps, std^2 I).

        Here eps = (x_t - alpha_t x_0)/sigma_t. This is the non-Markovian family of DDIM (D1, D3) for every SDE; it
        keeps every marginal p(x_s | x_0):
        std = eta sigma_{t|s} sigma_s / sigma_t, c_x0 = alpha_s,
        c_eps = sqrt(sigma_s^2 - std^2) = sigma_s sqrt(1 - eta^2 + eta^2 snr_t/snr_s).
        eta = 1 is the posterior p(x_s | x_t, x_0) itself (P3), eta = 0 is deterministic.

        Raises:
            ArgumentError: s >= t, or eta so large that std > sigma_s.
        """
        sigma_ts = self.transition(s, t)[1]
        s, t = as_time(s, "s"), as_time(t)
        sigma_s, sigma_t = self.log_sigma(s).exp(), self.log_sigma(t).exp()
        snr_ratio = torch.exp(2 * (self.log_alpha(t) - self.log_sigma(t) - self.log_alpha(s) + self.log_sigma(s)))
        square = 1 - eta**2 + eta**2 * snr_ratio
        if not eta >= 0 or (square.device.type == "cpu" and not (square > -1e-12).all()):
            raise ArgumentError("eta", eta, "0 <= eta <= sigma_t / sigma_{t|s}, so that std <= sigma_s")
        c_eps = sigma_s * square.clamp(min=0).sqrt()
        return self.log_alpha(s).exp(), c_eps, eta * sigma_ts * sigma_s / sigma_t

    def posterior_variance(self, v: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """P7's variances of p(x_s | x_t): beta^v beta~^(1-v), for v ``(B, *D)`` or a number.

        v = 1: beta = sigma_{t|s}^2, optimal for x_0 ~ N(0, I) under VP; v = 0: beta~ = (sigma_{t|s} sigma_s/sigma_t)^2,
        optimal for a point x_0; between them the learned variances of Nichol & Dhariwal (2021, eq. 15).
        """
        v = torch.as_tensor(v)
        v = v if v.is_floating_point() else v.double()
        beta = self.transition(s, t)[1] ** 2
        posterior = self.posterior_coefficients(s, t)[2] ** 2
        beta, posterior = (broadcast(b, v) if v.ndim else b for b in (beta, posterior))
        return beta**v * posterior ** (1 - v)

    def posterior(
        self, x_t: Tensor, x0: Tensor, s: float | Tensor, t: float | Tensor, eta: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """``(mean, std)`` of p(x_s | x_t, x_0) for s < t (P3 for every SDE), or of DDIM's q_eta (D1).

        mean = alpha_s x_0 + c_eps (x_t - alpha_t x_0)/sigma_t with the coefficients of :meth:`posterior_coefficients`;
        std has the shape ``()`` or ``(B, 1, ..., 1)``. Nothing is divided by alpha.

        Raises:
            ArgumentError: s >= t.
            ShapeError, DeviceError, DTypeError: x0 and x_t that do not fit.
        """
        if x_t.shape != x0.shape:
            raise ShapeError("x0", tuple(x0.shape), f"the shape of x_t, {tuple(x_t.shape)}")
        if x_t.device != x0.device:
            raise DeviceError("x0", x0.device, f"the device of x_t, {x_t.device}")
        if x_t.dtype != x0.dtype or not x0.is_floating_point():
            raise DTypeError("x0", x0.dtype, f"floating-point data of one dtype; x_t has {x_t.dtype}")
        c_x0, c_eps, std = (broadcast(c, x_t) for c in self.posterior_coefficients(s, t, eta))
        alpha_t, sigma_t = broadcast(self.alpha(t), x_t), broadcast(self.sigma(t), x_t)
        return c_x0 * x0 + c_eps * ((x_t - alpha_t * x0) / sigma_t), std

    # ---- the prior -----------------------------------------------------------------------------------------------

    def prior_sample(self, shape, generator=None, device=None, dtype=None) -> Tensor:
        """A draw ``(B, *D)`` of the prior N(0, prior_std^2 I)."""
        return self.prior_std * randn(tuple(shape), generator, device, dtype)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, prior_std^2 I) in nats, ``(B,)`` for x ``(B, *D)``."""
        z = x.reshape(len(x), -1) / self.prior_std
        return -0.5 * (z.square() + math.log(2 * math.pi * self.prior_std**2)).sum(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _derivative(function, t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = function(t)
        if not value.requires_grad:  # a constant, such as log alpha = 0
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), t)[0]
