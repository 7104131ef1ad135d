"""NCSN in NumPy (Song & Ermon 2019, 2020)."""

import math

import numpy as np


def levels(sigma_1, sigma_L, L):
    """Return sigma_1 > ... > sigma_L with one ratio between neighbours, N1."""
    ratio = (sigma_1 / sigma_L) ** (1 / (L - 1)) if L > 1 else 1.0
    return np.array([sigma_1 / ratio**i for i in range(L)])


def annealed_langevin(score, x, sigmas, e, K, noises):
    """Sample from the largest level to the smallest, N3.

    ``noises[i][k]`` is the z of step k at level i.
    """
    for i, sigma in enumerate(sigmas):
        a = e * sigma**2 / sigmas[-1] ** 2
        for k in range(K):
            x = x + a / 2 * score(x, sigma) + math.sqrt(a) * noises[i][k]
    return x


def variance_ratio(e, sigma_L, gamma, T):
    """Return s_T^2 / sigma_i^2 after T steps, technique 4 of N5.

    The steps start from the previous level.
    """
    shrink = 1 - e / sigma_L**2
    fixed = 2 * e / (sigma_L**2 - sigma_L**2 * shrink**2)
    return shrink ** (2 * T) * (gamma**2 - fixed) + fixed


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def overlap(gamma, D):
    """Return the overlap of neighbours, technique 2 of N5."""
    shift = math.sqrt(2 * D) * (gamma - 1)
    return normal_cdf(shift + 3 * gamma) - normal_cdf(shift - 3 * gamma)


def largest_distance(data):
    """Return the largest distance by brute force, technique 1 of N5."""
    flat = np.asarray(data, dtype=np.float64).reshape(len(data), -1)
    return max(float(np.linalg.norm(a - b)) for a in flat for b in flat)
