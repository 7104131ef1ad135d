"""Score matching in NumPy as the papers print it.

Sums over entries, one sample at a time.

Vincent (2011); Song & Ermon (2019); Ho, Jain & Abbeel (2020); Song, Meng & Ermon (2021); Nichol & Dhariwal (2021).
"""

import math

import numpy as np

from tests.reference.ddpm import posterior, products


def ncsn_loss(score, x, sigmas, noises):
    """Return NCSN's loss of one x (N2), with ``noises`` of each level.

    (1/L) sum_i sigma_i^2 (1/2) |s(x + sigma_i z, sigma_i) + z/sigma_i|^2
    """
    total = 0.0
    for sigma, z in zip(sigmas, noises, strict=True):
        perturbed = x + sigma * z
        target = -(perturbed - x) / sigma**2
        total += sigma**2 * 0.5 * np.sum((score(perturbed, sigma) - target) ** 2)
    return total / len(sigmas)


def gaussian_kl(mean_q, var_q, mean_p, var_p):
    """Return the KL of two Gaussians with variances ``(n,)`` or a number."""
    var_q, var_p = np.broadcast_arrays(var_q, var_p, np.zeros_like(mean_q))[:2]
    return 0.5 * np.sum(np.log(var_p / var_q) - 1 + (var_q + (mean_q - mean_p) ** 2) / var_p)


def gaussian_nll(x, mean, var):
    """Return -log N(x; mean, var)."""
    return 0.5 * np.sum(np.log(2 * math.pi * var) + (x - mean) ** 2 / var + 0 * x)


def ddim_objective(noise_model, x_0, betas, eta, noises):
    """Return J of DDIM (theorem 1) without its prior term, for one x_0.

        sum_{i >= 2} KL(q_s(x_{i-1} | x_i, x_0) || q_s(x_{i-1} | x_i, f_theta)) - log N(x_0; f_theta, s_1^2)

    ``noises[i - 1]`` is the eps of level i; s_i = eta sqrt((1-abar_{i-1})/(1-abar_i)) sqrt(1 - abar_i/abar_{i-1}) and
    s_1 = eta sqrt(1 - abar_1).
    """
    abar, terms = products(betas), []
    for i in range(1, len(betas) + 1):
        x_i = np.sqrt(abar[i]) * x_0 + np.sqrt(1 - abar[i]) * noises[i - 1]
        f = (x_i - np.sqrt(1 - abar[i]) * noise_model(x_i, i)) / np.sqrt(abar[i])
        if i == 1:
            terms.append(gaussian_nll(x_0, f, eta**2 * (1 - abar[1])))
            continue
        s2 = eta**2 * (1 - abar[i - 1]) / (1 - abar[i]) * (1 - abar[i] / abar[i - 1])

        def mean(x0, i=i, x_i=x_i, s2=s2):
            direction = (x_i - np.sqrt(abar[i]) * x0) / np.sqrt(1 - abar[i])
            return np.sqrt(abar[i - 1]) * x0 + np.sqrt(1 - abar[i - 1] - s2) * direction

        terms.append(gaussian_kl(mean(x_0), s2, mean(f), s2))
    return np.array(terms, dtype=np.float64)


def vlb_terms(noise_model, v, x_0, betas, noises):
    """Return L_0, ..., L_{N-1} (P4) of one continuous x_0.

    The variances are exp(v log beta + (1-v) log beta~) (P7).
    """
    abar, terms = products(betas), []
    for i in range(1, len(betas) + 1):
        x_i = np.sqrt(abar[i]) * x_0 + np.sqrt(1 - abar[i]) * noises[i - 1]
        f = (x_i - np.sqrt(1 - abar[i]) * noise_model(x_i, i)) / np.sqrt(abar[i])
        small = posterior(x_0, x_i, i if i > 1 else 2, betas)[1]  # beta~_2 replaces beta~_1 = 0
        log_var = v * np.log(betas[i - 1]) + (1 - v) * np.log(small)
        if i == 1:
            terms.append(gaussian_nll(x_0, f, np.exp(log_var)))
        else:
            mean_q, var_q = posterior(x_0, x_i, i, betas)
            terms.append(gaussian_kl(mean_q, var_q, posterior(f, x_i, i, betas)[0], np.exp(log_var)))
    return np.array(terms, dtype=np.float64)


class LossSecondMoment:
    """The loss-aware sampler of P8.

    Draw level t in proportion to sqrt(E[L_t^2]), from the last ten losses of each level. The draw is uniform until all
    levels have ten. A share of the draws stays uniform.
    """

    def __init__(self, levels, history=10, uniform_share=0.001):
        self.losses, self.history, self.share = [[] for _ in range(levels)], history, uniform_share

    def probabilities(self):
        levels = len(self.losses)
        if any(len(losses) < self.history for losses in self.losses):
            return np.full(levels, 1 / levels)
        root = np.sqrt([np.mean(np.square(losses)) for losses in self.losses])
        return (1 - self.share) * root / root.sum() + self.share / levels

    def update(self, levels, losses):
        for level, loss in zip(levels, losses, strict=True):
            self.losses[level] = [*self.losses[level], loss][-self.history :]
