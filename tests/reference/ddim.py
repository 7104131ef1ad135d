"""DDIM in NumPy (Song, Meng & Ermon 2021), with their alphas as abar."""

import numpy as np


def family(x_0, x_i, abar_i, abar_s, std):
    """Return the mean of q_std(x_s given x_i, x_0), D1.

    Its standard deviation is ``std``.
    """
    direction = (x_i - np.sqrt(abar_i) * x_0) / np.sqrt(1 - abar_i)
    return np.sqrt(abar_s) * x_0 + np.sqrt(1 - abar_s - std**2) * direction


def predicted_x0(x_i, eps, abar_i):
    """Return the predicted x_0, D2."""
    return (x_i - np.sqrt(1 - abar_i) * eps) / np.sqrt(abar_i)


def std(eta, abar_i, abar_s):
    """Return s_i(eta), D3."""
    return eta * np.sqrt((1 - abar_s) / (1 - abar_i)) * np.sqrt(1 - abar_i / abar_s)


def update(x_i, eps, z, eta, abar_i, abar_s):
    """Return x_s from x_i, D3."""
    s = std(eta, abar_i, abar_s)
    return np.sqrt(abar_s) * predicted_x0(x_i, eps, abar_i) + np.sqrt(max(1 - abar_s - s**2, 0)) * eps + s * z
