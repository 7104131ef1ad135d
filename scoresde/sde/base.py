"""The forward process: alpha(t), sigma(t), and what follows from them.

======================  ======================================================================================
t, s                    times in [0, 1], the data at 0; s < t
alpha_t, sigma_t        mean scale and standard deviation of p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)
eps                     the noise, (x_t - alpha_t x_0)/sigma_t
rho, lam, log_snr       sigma/alpha, log(alpha/sigma), and 2 lam
f(x, t), g(t)           drift and diffusion of dx = f dt + g dW (E1)
alpha_{t|s}             mean scale of p(x_t | x_s), alpha_t/alpha_s
sigma_{t|s}             its standard deviation
======================  ======================================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from scoresde.random import Generators, randn
from scoresde.sde.level import HostLevel, Level
from scoresde.sde.schedules import invert_monotone
from scoresde.sde.tensors import broadcast
from scoresde.sde.times import as_time, is_concrete, is_host_scalar


class SDE(ABC):
    r"""A forward process dx = f(x, t) dt + g(t) dW (E1).

        p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)

    A subclass defines :meth:`log_alpha` and :meth:`log_sigma`, functions of a floating-point tensor of times in
    [0, 1], with the data at t = 0. The rest is algebra:

    - f(x, t) = (d log alpha / dt) x and g(t)^2 = 2 sigma^2 (d log sigma/dt - d log alpha/dt);
    - p(x_t | x_s) = N(alpha_{t|s} x_s, sigma_{t|s}^2 I), alpha_{t|s} = alpha_t / alpha_s,
      sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2 = -sigma_t^2 expm1(log_snr_t - log_snr_s);
    - p(x_s | x_t, x_0) = N(alpha_s x_0 + (alpha_{t|s} sigma_s^2 / sigma_t) eps, (sigma_{t|s} sigma_s / sigma_t)^2 I).

    The rates come from automatic differentiation unless a subclass gives them in closed form. Processes are not
    changed after they are made, and those of the package are equal if their settings are.
    """

    #: the name under which :func:`scoresde.sde.build_sde` knows the class (None: it cannot be saved by name)
    name: str | None = None
    #: the times of a discrete process's own levels, ascending (DDPM, NCSN); None for a process in continuous time
    times: Tensor | None = None

    # ---- what a family defines -----------------------------------------------------------------------------------

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha(t), the logarithm of the mean scale."""

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """Return log sigma(t), -inf where there is no noise."""

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        """Return d log alpha / dt, so that f(x, t) = log_alpha_rate(t) x."""
        return _derivative(self.log_alpha, t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        """Return d log sigma / dt."""
        return _derivative(self.log_sigma, t)

    def squared_diffusion(self, t: Tensor) -> Tensor:
        """Return g(t)^2 for a tensor of times, which is not checked.

        g(t)^2 = 2 sigma^2 (d log sigma/dt - d log alpha/dt)
        """
        t = t.clamp(min=torch.finfo(t.dtype).tiny)  # at t = 0 the limit, where sigma = 0 and its rate is infinite
        return 2 * torch.exp(2 * self.log_sigma(t)) * (self.log_sigma_rate(t) - self.log_alpha_rate(t))

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return invert_monotone(lambda t: 2 * (self.log_sigma(t) - self.log_alpha(t)), -log_snr)

    @property
    def config(self) -> dict[str, Any]:
        """What :func:`scoresde.sde.build_sde` needs to make this process.

        The values are those that JSON can hold.

        Raises:
            ArgumentError: The process has no configuration.
        """
        raise ArgumentError("sde", type(self).__name__, "a process with a `config`, so that it can be saved and built")

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior, which stands for p(x_1).

        sigma(1), unless the family has a limit law.
        """
        return float(torch.exp(self.log_sigma(torch.ones((), dtype=torch.float64))))

    # ---- functions of time ---------------------------------------------------------------------------------------

    def alpha(self, t: float | Tensor) -> Tensor:
        """Return the mean scale alpha(t), in the shape of ``t``.

        A number gives a float64 scalar.
        """
        return torch.exp(self.log_alpha(as_time(t)))

    def sigma(self, t: float | Tensor) -> Tensor:
        """Return the noise's standard deviation sigma(t), shaped as ``t``."""
        return torch.exp(self.log_sigma(as_time(t)))

    def log_snr(self, t: float | Tensor) -> Tensor:
        """Return log(alpha(t)^2 / sigma(t)^2), decreasing in t.

        lambda(t) = log(alpha/sigma) is half of it.
        """
        t = as_time(t)
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def time_of(self, log_snr: float | Tensor) -> Tensor:
        """Return the times at which the log-SNR has the given values.

        Values outside the process's range give its nearest end, 0 or 1.

        Raises:
            ArgumentError: NaN (looked for on the CPU only).
        """
        if not isinstance(log_snr, Tensor):
            log_snr = torch.tensor(float(log_snr), dtype=torch.float64)
        if is_concrete(log_snr) and log_snr.isnan().any():
            raise ArgumentError("log_snr", "NaN", "log signal-to-noise ratios")
        return self._time_of(log_snr).clamp(0, 1)

    def time_at(self, *, lam: float | Tensor) -> Tensor:
        """Return the times at which lambda = log(alpha/sigma) is ``lam``.

        The range and the errors are those of :meth:`time_of`.
        """
        return self.time_of(2 * lam)

    def level(self, t: float | Tensor, x: Tensor) -> Level:
        """Return the noise level at ``t``, for arithmetic with ``x``.

        Args:
            t: Time, a number, ``()`` or ``(B,)``. It is never broadcast against the axes of the data.
            x: Data ``(B, *D)``.

        Raises:
            ArgumentError, DTypeError: ``t`` is not a time in [0, 1].
            ShapeError, DeviceError: ``t`` does not fit ``x``.
        """
        if is_host_scalar(t):
            return self.levels(as_time(t).reshape(1))[0]
        return self.level_at(as_time(t), x)

    def level_at(self, t: Tensor, x: Tensor) -> Level:
        """Return :meth:`level` of a tensor of times, which is not checked."""
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        alpha, sigma = broadcast(log_alpha.exp(), x), broadcast(log_sigma.exp(), x)
        return Level(t, alpha, sigma, 2 * (log_alpha - log_sigma))

    def levels(self, times: Tensor) -> list[HostLevel]:
        """Return the noise levels of a grid ``(n,)``, as Python floats.

        They are computed at once, in float64 on the CPU.
        """
        t = as_time(times).double().cpu()
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        columns = (t, log_alpha.exp(), log_sigma.exp(), 2 * (log_alpha - log_sigma))
        return [HostLevel(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    # ---- the forward process -------------------------------------------------------------------------------------

    @checked
    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Return f(x, t) = (d log alpha / dt) x of E1.

        Args:
            x: Data ``(B, *D)``.
            t: Time, a number, ``()`` or ``(B,)``.
        """
        return broadcast(self.log_alpha_rate(as_time(t)), x) * x

    def diffusion(self, t: float | Tensor) -> Tensor:
        """Return g(t) of E1, in the shape of ``t``."""
        return self.squared_diffusion(as_time(t)).sqrt()

    @checked
    def perturb(self, x0: Tensor, t: float | Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """Draw x_t from p(x_t | x_0).

            x_t = alpha(t) x_0 + sigma(t) eps

        Args:
            x0: Floating-point data ``(B, *D)``.
            t: Time, a number, ``()`` or ``(B,)``.
            generator: One generator, or a list of B, one a sample. None: torch's default.

        Returns:
            ``(x_t, eps)``, each ``(B, *D)``.

        Raises:
            DTypeError: Data that are not floating-point.
            ShapeError, DeviceError: Times that do not fit the data.
        """
        if not x0.is_floating_point():
            raise DTypeError("x0", x0.dtype, "floating-point data")
        eps = randn(x0.shape, generator, x0.device, x0.dtype)
        level = self.level(t, x0)
        return level.alpha * x0 + level.sigma * eps, eps

    def transition(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(alpha_{t|s}, sigma_{t|s})`` of p(x_t | x_s).

            p(x_t | x_s) = N(alpha_{t|s} x_s, sigma_{t|s}^2 I),  s < t

        Raises:
            ArgumentError: s >= t somewhere.
            ShapeError, DeviceError: s and t of two shapes (unless one is a scalar), or on two devices.
        """
        s, t = as_time(s, "s"), as_time(t)
        if s.ndim and t.ndim:
            if s.shape != t.shape:
                raise ShapeError("s", tuple(s.shape), f"of shape () or the shape of t, {tuple(t.shape)}")
            if s.device != t.device:
                raise DeviceError("s", s.device, f"on the device of t, {t.device}")
        if is_concrete(s) and is_concrete(t) and not (s < t).all():
            raise ArgumentError("s", s.tolist(), f"earlier than t = {t.tolist()}")
        log_alpha = self.log_alpha(t) - self.log_alpha(s)
        log_ratio = 2 * (self.log_alpha(t) - self.log_sigma(t) - self.log_alpha(s) + self.log_sigma(s))
        return log_alpha.exp(), self.log_sigma(t).exp() * (-torch.expm1(log_ratio)).sqrt()

    @checked
    def posterior_coefficients(
        self, s: float | Tensor, t: float | Tensor, eta: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coefficients of DDIM's q_eta (D1, D3), for every SDE.

            q_eta(x_s | x_t, x_0) = N(c_x0 x_0 + c_eps eps, std^2 I),  eps = (x_t - alpha_t x_0)/sigma_t
            std = eta sigma_{t|s} sigma_s / sigma_t,  c_x0 = alpha_s
            c_eps = sqrt(sigma_s^2 - std^2) = sigma_s sqrt(1 - eta^2 + eta^2 snr_t/snr_s)

        This non-Markovian family keeps every marginal p(x_s | x_0).

        Args:
            s: Earlier time, a number, ``()`` or ``(B,)``.
            t: Later time, in the same shapes.
            eta: 1 gives the posterior p(x_s | x_t, x_0) (P3), 0 a deterministic step. Default 1.

        Returns:
            ``(c_x0, c_eps, std)``, each in the shape of the times.

        Raises:
            ArgumentError: s >= t, or eta so large that std > sigma_s.
        """
        sigma_ts = self.transition(s, t)[1]
        s, t = as_time(s, "s"), as_time(t)
        sigma_s, sigma_t = self.log_sigma(s).exp(), self.log_sigma(t).exp()
        snr_ratio = torch.exp(2 * (self.log_alpha(t) - self.log_sigma(t) - self.log_alpha(s) + self.log_sigma(s)))
        square = 1 - eta**2 + eta**2 * snr_ratio
        if not eta >= 0 or (is_concrete(square) and not (square > -1e-12).all()):
            raise ArgumentError("eta", eta, "in 0 <= eta <= sigma_t / sigma_{t|s}, so that std <= sigma_s")
        c_eps = sigma_s * square.clamp(min=0).sqrt()
        return self.log_alpha(s).exp(), c_eps, eta * sigma_ts * sigma_s / sigma_t

    def forward_coefficients(
        self, s: float | Tensor, t: float | Tensor, eta: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coefficients of the forward step of DDIM's q_eta (D7).

            q_eta(x_t | x_s, x_0) = N(c_x0 x_0 + k x_s, std_f^2 I)
            k = c_eps sigma_t/sigma_s^2,  c_x0 = alpha_t - k alpha_s,  std_f = std sigma_t/sigma_s

        with c_eps and std of :meth:`posterior_coefficients`. This is Bayes' rule: q_eta(x_s | x_t, x_0) p(x_t | x_0) /
        p(x_s | x_0). At eta = 1 it is the transition p(x_t | x_s), k = alpha_{t|s}, and c_x0 is 0. For every other eta
        the step looks at x_0, so that the process is not Markov.

        Args:
            s: Earlier time, with noise: a number, ``()`` or ``(B,)``.
            t: Later time, in the same shapes.
            eta: As for :meth:`posterior_coefficients`, default 1.

        Returns:
            ``(c_x0, k, std_f)``, each in the shape of the times.

        Raises:
            ArgumentError: s >= t, s without noise, or eta so large that std > sigma_s.

        References: Song, Meng & Ermon 2021, eq. 8.
        """
        _, c_eps, std = self.posterior_coefficients(s, t, eta)
        s, t = as_time(s, "s"), as_time(t)
        sigma_s, sigma_t = self.log_sigma(s).exp(), self.log_sigma(t).exp()
        if is_concrete(sigma_s) and not (sigma_s > 0).all():
            raise ArgumentError("s", 0.0, "a time with noise")
        k = c_eps * sigma_t / sigma_s**2
        return self.log_alpha(t).exp() - k * self.log_alpha(s).exp(), k, std * sigma_t / sigma_s

    def posterior_variance(self, v: float | Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """Return the variances of p(x_s | x_t) (P7), beta^v beta~^(1-v).

        beta = sigma_{t|s}^2 is optimal for x_0 ~ N(0, I) under VP, beta~ = (sigma_{t|s} sigma_s/sigma_t)^2 for a
        point x_0.

        Args:
            v: Exponent, a number or ``(B, *D)``: 1 gives beta, 0 gives beta~, values between them the learned
                variances.
            s: Earlier time, a number, ``()`` or ``(B,)``.
            t: Later time.

        Raises:
            ArgumentError: s >= t.

        References: Nichol & Dhariwal 2021, eq. 15.
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
        """Return mean and std of p(x_s | x_t, x_0) (P3), or of q_eta (D1).

            mean = alpha_s x_0 + c_eps (x_t - alpha_t x_0)/sigma_t

        The coefficients are those of :meth:`posterior_coefficients`. Nothing is divided by alpha.

        Args:
            x_t: Noisy data ``(B, *D)``.
            x0: Data ``(B, *D)``.
            s: Earlier time, a number, ``()`` or ``(B,)``.
            t: Later time.
            eta: 1 gives the posterior, 0 a deterministic step. Default 1.

        Returns:
            ``(mean, std)``; std is ``()`` or ``(B, 1, ..., 1)``.

        Raises:
            ArgumentError: s >= t.
            ShapeError, DeviceError, DTypeError: x0 and x_t that do not fit.
        """
        if x_t.shape != x0.shape:
            raise ShapeError("x0", tuple(x0.shape), f"of the shape of x_t, {tuple(x_t.shape)}")
        if x_t.device != x0.device:
            raise DeviceError("x0", x0.device, f"on the device of x_t, {x_t.device}")
        if x_t.dtype != x0.dtype or not x0.is_floating_point():
            raise DTypeError("x0", x0.dtype, f"floating-point data of the dtype of x_t, {x_t.dtype}")
        c_x0, c_eps, std = (broadcast(c, x_t) for c in self.posterior_coefficients(s, t, eta))
        alpha_t, sigma_t = broadcast(self.alpha(t), x_t), broadcast(self.sigma(t), x_t)
        return c_x0 * x0 + c_eps * ((x_t - alpha_t * x0) / sigma_t), std

    # ---- the prior -----------------------------------------------------------------------------------------------

    @checked
    def prior_sample(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw from the prior N(0, prior_std^2 I).

        The arguments are those of :func:`scoresde.random.randn`.
        """
        return self.prior_std * randn(tuple(shape), generator, device, dtype)

    @checked
    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; 0, prior_std^2 I) in nats.

        Args:
            x: Latents ``(B, *D)``.

        Returns:
            Log densities ``(B,)``.
        """
        z = x.reshape(len(x), -1) / self.prior_std
        return -0.5 * (z.square() + math.log(2 * math.pi * self.prior_std**2)).sum(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    #: the SDE in TeX, for notebooks
    _equation = r"dx = f(t)\,x\,dt + g(t)\,dW"

    def _repr_markdown_(self) -> str:
        """Return the process for a notebook: its equation and scales."""
        times = (0.0, 0.25, 0.5, 0.75, 1.0)
        rows = {"t": [f"{t:g}" for t in times]}
        for name, scale in ((r"$\alpha(t)$", self.alpha), (r"$\sigma(t)$", self.sigma)):
            rows[name] = [f"{float(scale(t)):.4g}" for t in times]
        head, *rest = (f"| {name} | {' | '.join(row)} |" for name, row in rows.items())
        rule = "| --- " * (len(times) + 1) + "|"
        equation = f"$${self._equation}, \\qquad x_t = \\alpha(t)\\,x_0 + \\sigma(t)\\,\\varepsilon$$"
        return "\n".join([f"`{self!r}`", "", equation, "", head, rule, *rest])


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = function(t)
        if not value.requires_grad:  # a constant, such as log alpha = 0
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), t)[0]
