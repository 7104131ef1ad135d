"""Discrete DDPM in NumPy, numbered as in the papers.

Levels are 1..T; lists start at level 0 (abar_0 = 1). Tables are in extended precision, since the printed 1 - abar_i
cancels.

Ho, Jain & Abbeel (2020); Nichol & Dhariwal (2021).
"""

import numpy as np

PI = np.longdouble("3.14159265358979323846264338327950288")


def linear_betas(T=1000):
    """Return the linear betas, P10."""
    return np.linspace(1e-4, 0.02, T)


def cosine_betas(T=1000, s=0.008, largest=0.999):
    """Return the cosine betas, P10."""

    def f(i):
        return np.cos((np.longdouble(i) / T + s) / (1 + s) * PI / 2) ** 2

    return np.array([min(1 - f(i) / f(i - 1), largest) for i in range(1, T + 1)], dtype=np.float64)


def products(betas):
    """Return [abar_0, ..., abar_T], P2."""
    abar = [np.longdouble(1)]
    for beta in betas:
        abar.append(abar[-1] * (1 - np.longdouble(beta)))
    return np.array(abar)


def forward_step(x, beta, z):
    """Return x_i from x_{i-1}, P1."""
    return np.sqrt(1 - beta) * x + np.sqrt(beta) * z


def marginal(x_0, abar_i, eps):
    """Return x_i from x_0, P2."""
    return np.sqrt(abar_i) * x_0 + np.sqrt(1 - abar_i) * eps


def posterior(x_0, x_i, i, betas):
    """Return mean and variance of q(x_{i-1} given x_i, x_0), P3."""
    abar, beta = products(betas), betas[i - 1]
    mean = np.sqrt(abar[i - 1]) * beta / (1 - abar[i]) * x_0
    mean = mean + np.sqrt(1 - beta) * (1 - abar[i - 1]) / (1 - abar[i]) * x_i
    return mean, (1 - abar[i - 1]) / (1 - abar[i]) * beta


def mean_from_noise(x_i, eps, i, betas):
    """Return the mean of x_{i-1} from the noise, P5."""
    abar, beta = products(betas), betas[i - 1]
    return (x_i - beta / np.sqrt(1 - abar[i]) * eps) / np.sqrt(1 - beta)


def variances(i, betas, v):
    """Return beta, beta~ and exp(v log beta + (1-v) log beta~), P7."""
    abar, beta = products(betas), betas[i - 1]
    small = (1 - abar[i - 1]) / (1 - abar[i]) * beta
    return beta, small, np.exp(v * np.log(beta) + (1 - v) * np.log(small))


def respaced_betas(betas, C):
    """Return the betas of the subsequence C(1) < ... < C(S), P12."""
    abar, last, result = products(betas), 0, []
    for level in C:
        result.append(1 - abar[level] / abar[last])
        last = level
    return np.array(result)


def ancestral_sampling(noise_model, x, betas, noises):
    """Sample with beta~ from x_T down to x_0, P9.

    ``noises[i]`` is the z of level i.
    """
    for i in range(len(betas), 0, -1):
        mean = mean_from_noise(x, noise_model(x, i), i, betas)
        std = np.sqrt(posterior(x, x, i, betas)[1])
        x = mean + std * noises[i] if i > 1 else mean
    return x
