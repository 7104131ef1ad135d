"""Kernels of the reverse chain: the variances of a step (P7), its divergences (P4, P5), the decoder's mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.data import Scaling
from scoresde.errors import ArgumentError
from scoresde.sde import SDE
from scoresde.sde.tensors import as_column, flat, log1mexp
from scoresde.sde.times import as_time

#: P7's exponent v of a fixed variance, and what stands for a learned one in the control variate
EXPONENTS = {"posterior": 0.0, "forward": 1.0, "learned": 0.5}
#: the names of P7's variances
VARIANCES = tuple(EXPONENTS)


def step_kl(
    sde: SDE, s: float | Tensor, t: float | Tensor, eps: Tensor, eps_theta: Tensor, v: float | Tensor = 0.0
) -> Tensor:
    r"""L_{i-1} = KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t)) in nats, ``(B,)`` (P4, P5 for every SDE).

    Args:
        sde: the forward process.
        s, t: the levels, sigma(s) > 0, s < t: numbers, ``()`` or ``(B,)``.
        eps, eps_theta: the noise in x_t and the estimate of it, ``(B, *D)``.
        v: P7's exponent, a number or ``(B, *D)``: 0 for beta~, 1 for beta.
    """
    error = flat(eps - eps_theta)
    s, t = as_time(s, "s"), as_time(t)
    Delta = as_column(sde.log_snr(s) - sde.log_snr(t), error)
    rho = as_column(2 * (sde.log_sigma(t) - sde.log_sigma(s)), error)
    vrho = rho * (flat(v) if isinstance(v, Tensor) and v.ndim else v)
    return 0.5 * (vrho + torch.expm1(-vrho) + torch.exp(-vrho) * torch.expm1(Delta) * error.square()).sum(1)


def ddim_weight(sde: SDE, s: float | Tensor, t: float | Tensor, eta: float = 1.0) -> Tensor:
    r"""gamma of D4: KL(q_eta(x_s | x_t, x_0) || q_eta(x_s | x_t, x0_theta)) = gamma |eps - eps_theta|^2, for s < t.

    With r = snr_t/snr_s, gamma = (r^{-1/2} - sqrt(1 - eta^2 (1-r)))^2 / (2 eta^2 (1-r)): a positive number for each
    level, so that every eta > 0 has the minimiser of L_simple. eta = 1 is (e^Delta - 1)/2, P5 with beta~.

    Raises:
        ArgumentError: eta is 0 (the divergence is infinite), or so large that std > sigma_s.

    Source: Song, Meng & Ermon (2021, theorem 1).
    """
    log_r = sde.log_snr(t) - sde.log_snr(s)
    r, q = torch.exp(log_r), -torch.expm1(log_r)
    if not eta > 0 or (q.device.type == "cpu" and not bool((eta**2 * q <= 1).all())):
        raise ArgumentError("eta", eta, "0 < eta <= sigma_t / sigma_{t|s}")
    return q * (1 / r + eta**2) ** 2 / (2 * eta**2 * (r**-0.5 + (1 - eta**2 * q).sqrt()) ** 2)


def discretised_gaussian(raw: Tensor, mean: Tensor, std: float | Tensor, scaling: Scaling) -> Tensor:
    """-log P(raw) in nats, ``(B,)``, for the mass that N(mean, std^2) gives to the bins of ``raw`` (P4's L_0).

    A bin is [c - scale/2, c + scale/2] about its centre c; the first and the last reach to infinity (Ho et al. 2020,
    eq. 13). Computed from log cdfs: no probability is too small.

    Args:
        raw: integers 0..levels-1, ``(B, *D)``.
        mean: in the model's units, ``(B, *D)``.
        std: a number or ``(B, *D)``.
        scaling: of the data, with levels.
    """
    c = scaling.bin_centres(raw, mean.dtype)
    low, high = (c - scaling.scale / 2 - mean) / std, (c + scaling.scale / 2 - mean) / std
    low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)  # the same mass
    log_high = torch.special.log_ndtr(high)
    inside = log_high + log1mexp(log_high - torch.special.log_ndtr(low))
    first = torch.special.log_ndtr((c + scaling.scale / 2 - mean) / std)
    last = torch.special.log_ndtr((mean - c + scaling.scale / 2) / std)
    log_mass = torch.where(raw == 0, first, torch.where(raw == scaling.levels - 1, last, inside))
    return -flat(log_mass).sum(1)


def decoder_std(sde: SDE, v: float | Tensor = 0.0) -> float | Tensor:
    """The standard deviation of p_theta(x_0 | x_1) of a discrete process, ``()`` or the shape of v.

    beta^v beta~^(1-v) at the first level, where beta~ = 0 is replaced by that of the second (Ho et al. 2020, by their
    code; by beta if there is no second).
    """
    times = sde.times[:2].tolist()
    log_beta = 2 * sde.sigma(times[0]).log().item()
    log_posterior = log_beta if len(times) == 1 else 2 * sde.posterior_coefficients(*times)[2].log().item()
    half = 0.5 * (v * log_beta + (1 - v) * log_posterior)
    return half.exp() if isinstance(half, Tensor) else math.exp(half)
