"""The SDEs of Song et al. (2021) in NumPy.

Marginals, coefficients and chains of eqs. 29 to 33 and appendix C.
"""

import math

import numpy as np


class VP:
    def __init__(self, beta_min=0.1, beta_max=20.0, N=1000):
        self.beta_min, self.beta_max, self.N = beta_min, beta_max, N
        self.discrete_betas = np.linspace(beta_min / N, beta_max / N, N)

    def beta(self, t):
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _log_mean(self, t):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def marginal(self, t):
        """Return the mean scale and standard deviation of p(x_t given x_0)."""
        return math.exp(self._log_mean(t)), math.sqrt(1 - math.exp(2 * self._log_mean(t)))

    def coefficients(self, t):
        """Return f(x, t) / x and g(t)."""
        return -0.5 * self.beta(t), math.sqrt(self.beta(t))

    def discretised(self, i):
        """Return (f, g) of the ancestral chain x_i - x_{i-1} = f x_{i-1} + g z."""
        return math.sqrt(1 - self.discrete_betas[i - 1]) - 1, math.sqrt(self.discrete_betas[i - 1])


class SubVP(VP):
    def marginal(self, t):
        return math.exp(self._log_mean(t)), 1 - math.exp(2 * self._log_mean(t))

    def coefficients(self, t):
        integral = 2 * self.beta_min * t + (self.beta_max - self.beta_min) * t**2
        return -0.5 * self.beta(t), math.sqrt(self.beta(t) * (1 - math.exp(-integral)))


class VE:
    def __init__(self, sigma_min=0.01, sigma_max=50.0, N=1000):
        self.sigma_min, self.sigma_max, self.N = sigma_min, sigma_max, N
        self.discrete_sigmas = np.exp(np.linspace(math.log(sigma_min), math.log(sigma_max), N))

    def marginal(self, t):
        return 1.0, self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def coefficients(self, t):
        return 0.0, self.marginal(t)[1] * math.sqrt(2 * (math.log(self.sigma_max) - math.log(self.sigma_min)))

    def discretised(self, i):
        before = self.discrete_sigmas[i - 2] if i > 1 else 0.0
        return 0.0, math.sqrt(self.discrete_sigmas[i - 1] ** 2 - before**2)
