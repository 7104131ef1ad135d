"""Kernels of the reverse chain: variances, divergences, the decoder.

The variances are those of P7, the divergences those of P4 and P5.

Symbols:
    s, t: two times, s < t. beta = sigma_{t|s}^2 and beta~: the larger and the smaller variance of the step from t to s.
    v: exponent of P7; the variance of the step is beta^v beta~^(1-v).
    snr = (alpha/sigma)^2; Delta = log snr_s - log snr_t.
    eps, eps_theta: the noise in x_t and its estimate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, wholes
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, ShapeError
from scoresde.sde import DDPM, SDE
from scoresde.sde.tensors import as_column, flat, log1mexp
from scoresde.sde.times import as_time, is_concrete

#: v by the name of a variance; of a learned one, the v that the control variate takes for it
EXPONENTS = {"posterior": 0.0, "forward": 1.0, "learned": 0.5}
#: the names of P7's variances
VARIANCES = tuple(EXPONENTS)


@checked
def step_kl(
    sde: SDE, s: float | Tensor, t: float | Tensor, eps: Tensor, eps_theta: Tensor, v: float | Tensor = 0.0
) -> Tensor:
    r"""Return the divergence of a reverse step in nats, ``(B,)`` (P4, P5).

        L_{i-1} = KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t))

    Args:
        sde: Forward process.
        s, t: Times with sigma(s) > 0 and s < t: numbers, ``()`` or ``(B,)``.
        eps, eps_theta: Noise in x_t and its estimate, ``(B, *D)``.
        v: Exponent of P7, a number or ``(B, *D)``: 0 for beta~, 1 for beta. Default 0.
    """
    if eps.shape != eps_theta.shape or not eps.numel():
        raise ShapeError("eps_theta", tuple(eps_theta.shape), f"of the shape of eps, {tuple(eps.shape)}, with entries")
    error = flat(eps - eps_theta)
    for name, value, allowed in (("s", s, 1), ("t", t, 1), ("v", v, eps.ndim)):
        if isinstance(value, Tensor) and value.shape not in ((), eps.shape[:allowed]):
            raise ShapeError(name, tuple(value.shape), f"a number, or {tuple(eps.shape[:allowed])}")
    s, t = as_time(s, "s"), as_time(t)
    Delta = as_column(sde.log_snr(s) - sde.log_snr(t), error)
    log_ratio = as_column(2 * (sde.log_sigma(t) - sde.log_sigma(s)), error)  # log beta - log beta~
    power = log_ratio * (flat(v) if isinstance(v, Tensor) and v.ndim else v)
    return 0.5 * (power + torch.expm1(-power) + torch.exp(-power) * torch.expm1(Delta) * error.square()).sum(1)


@checked
def ddim_weight(sde: SDE, s: float | Tensor, t: float | Tensor, eta: float = 1.0) -> Tensor:
    r"""Return gamma of D4, the weight of the noise error of a DDIM step.

        KL(q_eta(x_s | x_t, x_0) || q_eta(x_s | x_t, x0_theta)) = gamma |eps - eps_theta|^2

        gamma = (r^{-1/2} - sqrt(1 - eta^2 (1-r)))^2 / (2 eta^2 (1-r)),    r = snr_t/snr_s

    gamma is a positive number for each level, so every eta > 0 has the minimiser of L_simple. With eta = 1,
    gamma = (e^Delta - 1)/2, which is P5 with beta~.

    Args:
        sde: Forward process.
        s, t: Times with s < t: numbers, ``()`` or ``(B,)``.
        eta: Noise of the step, 0 < eta <= sigma_t / sigma_{t|s}, default 1.

    Raises:
        ArgumentError: ``eta`` is 0, where the divergence is infinite, or so large that std > sigma_s.

    References: Song, Meng & Ermon (2021, theorem 1).
    """
    log_r = sde.log_snr(t) - sde.log_snr(s)
    r, q = torch.exp(log_r), -torch.expm1(log_r)
    if not eta > 0 or (is_concrete(q) and not bool((eta**2 * q <= 1).all())):
        raise ArgumentError("eta", eta, "a number with 0 < eta <= sigma_t / sigma_{t|s}")
    return q * (1 / r + eta**2) ** 2 / (2 * eta**2 * (r**-0.5 + (1 - eta**2 * q).sqrt()) ** 2)


@checked
def subsequence_weights(ddpm: DDPM, steps: Sequence[int], eta: float = 1.0, std: float = 1.0) -> Tensor:
    r"""Return the weights of noise errors in DDIM's bound on some levels (D8).

    The process steps back through the levels tau alone, x_N -> .. -> x_{tau_1} -> x_0. Each other level t, in the
    complement of tau, hangs on x_0 by p(x_t | x_0), and p_theta(x_0 | x_t) = N(x0_theta, std^2 I) predicts x_0 there:

        J = sum_tau gamma(tau_{i-1}, tau_i) |eps - eps_theta|^2
            + sum_{not tau} sigma_t^2 / (2 alpha_t^2 std^2) |eps - eps_theta|^2 + C

    So J has a positive weight at every level, and the network of the full chain has its minimum too (theorem 1): it
    serves any subsequence.

    Args:
        ddpm: The process, of N levels.
        steps: tau, levels in 1..N, increasing, with N last.
        eta: Noise of the steps, 0 < eta, default 1.
        std: Standard deviation of p_theta(x_0 | x_t), and of the last step to x_0, positive, default 1.

    Returns:
        Weights ``(N,)`` of levels 1..N, float64.

    Raises:
        ArgumentError: Levels that do not increase to N, or a number out of its range.

    References: Song, Meng & Ermon (2021, appendix C.1, eqs. 32 and 33).
    """
    tau = wholes("steps", steps)
    if list(tau) != sorted(set(tau)) or not tau or tau[-1] != ddpm.N:
        raise ArgumentError("steps", tau, f"increasing levels in 1..{ddpm.N}, the last of them {ddpm.N}")
    std = positive("std", std)
    weights = (1 - ddpm.alphas_bar) / (2 * ddpm.alphas_bar * std**2)
    for before, level in itertools.pairwise(tau):
        weights[level - 1] = ddim_weight(ddpm, ddpm.time(before), ddpm.time(level), eta)
    return weights


@checked
def discretised_gaussian(raw: Tensor, mean: Tensor, std: float | Tensor, scaling: Scaling) -> Tensor:
    """Return P4's L_0 in nats, ``(B,)``: -log of the mass of the bins.

    N(mean, std^2) gives this mass to the bins of ``raw``. A bin is [c - scale/2, c + scale/2] about its centre c; the
    first and the last reach to infinity. The sum is taken over log cdfs, so no probability is too small.

    Args:
        raw: Integers 0..num_values-1, ``(B, *D)``.
        mean: Means in the model's units, ``(B, *D)``.
        std: Standard deviation in the model's units, a number or ``(B, *D)``.
        scaling: Scaling of the data, with ``num_values``.

    References: Ho et al. (2020, eq. 13).
    """
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, Tensor) and value.shape not in ((), raw.shape):
            raise ShapeError(name, tuple(value.shape), f"of the shape of raw, {tuple(raw.shape)}")
    c = scaling.bin_centres(raw, mean.dtype)
    low, high = (c - scaling.bin_width / 2 - mean) / std, (c + scaling.bin_width / 2 - mean) / std
    low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)  # the same mass
    log_high = torch.special.log_ndtr(high)
    inside = log_high + log1mexp(log_high - torch.special.log_ndtr(low))
    first = torch.special.log_ndtr((c + scaling.bin_width / 2 - mean) / std)
    last = torch.special.log_ndtr((mean - c + scaling.bin_width / 2) / std)
    assert scaling.num_values is not None  # bin_centres has refused continuous data
    log_mass = torch.where(raw == 0, first, torch.where(raw == scaling.num_values - 1, last, inside))
    return -flat(log_mass).sum(1)


def decoder_std(sde: SDE, v: float | Tensor = 0.0) -> float | Tensor:
    """Return the standard deviation of p_theta(x_0 | x_1), in v's shape.

    The process is discrete. The square is beta^v beta~^(1-v) at the first level. There beta~ = 0 is replaced by that of
    the second level, or by beta if there is only one.

    References: the code of Ho et al. (2020).
    """
    assert sde.times is not None, "a discrete process"
    times = sde.times[:2].tolist()
    log_beta = 2 * sde.sigma(times[0]).log().item()
    log_posterior = log_beta if len(times) == 1 else 2 * sde.posterior_coefficients(*times)[2].log().item()
    half = 0.5 * (v * log_beta + (1 - v) * log_posterior)
    return half.exp() if isinstance(half, Tensor) else math.exp(half)
