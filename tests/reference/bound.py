"""The variational bound of a discrete DDPM (P4) in NumPy.

Numbered as in the papers: levels 1..T, lists that start at 0.

Ho, Jain & Abbeel (2020, eqs. 5 and 13); Nichol & Dhariwal (2021, section 3).
"""

import numpy as np
from scipy.special import ndtr

from tests.reference.ddpm import mean_from_noise, posterior, products, variances


def normal_kl(mean1, var1, mean2, var2):
    """Return KL(N(mean1, var1) || N(mean2, var2)) per entry."""
    return 0.5 * (np.log(var2 / var1) + (var1 + (mean1 - mean2) ** 2) / var2 - 1)


def discretised_log_likelihood(raw, mean, var, K):
    """Return log P of integers 0..K-1 per entry.

    The bins have width 2/K about 2 (raw + 1/2)/K - 1 and are open at both ends.
    """
    c = 2 * (raw + 0.5) / K - 1
    below = ndtr((c - 1 / K - mean) / np.sqrt(var))
    above = ndtr((c + 1 / K - mean) / np.sqrt(var))
    return np.log(np.where(raw == K - 1, 1.0, above) - np.where(raw == 0, 0.0, below))


def terms(raw, K, noise_model, exponent_model, betas, noises):
    """Return ``(L_T, [L_1, ..., L_{T-1}], L_0)`` in nats for one image.

    ``noises[i]`` is the eps of level i. ``exponent_model`` gives v of the variance exp(v log beta + (1-v) log beta~).
    At the first level beta~_2 stands for beta~_1 = 0.
    """
    T, abar = len(betas), products(betas)
    x_0 = 2 * (raw + 0.5) / K - 1
    L_T = normal_kl(np.sqrt(abar[T]) * x_0, 1 - abar[T], 0.0, 1.0).sum()
    steps = []
    for i in range(1, T + 1):
        x_i = np.sqrt(abar[i]) * x_0 + np.sqrt(1 - abar[i]) * noises[i]
        mean = mean_from_noise(x_i, noise_model(x_i, i), i, betas)
        v = exponent_model(x_i, i)
        if i > 1:
            true_mean, true_var = posterior(x_0, x_i, i, betas)
            steps.append(normal_kl(true_mean, true_var, mean, variances(i, betas, v)[2]).sum())
        else:
            clipped = variances(2, betas, 0.0)[1]
            var = np.exp(v * np.log(betas[0]) + (1 - v) * np.log(clipped))
            L_0 = -discretised_log_likelihood(raw, np.float64(mean), np.float64(var), K).sum()
    return L_T, steps, L_0
