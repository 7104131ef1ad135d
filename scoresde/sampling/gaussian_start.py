"""From t_max to the scale of the data, where p_t is nearly Gaussian.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    lambda = log(alpha/sigma), growing towards the data. rho = sigma/alpha = exp(-lambda). y = x/alpha.
    m, C: mean and covariance of the data. S = C + rho^2: variances of y, in C's eigenbasis.
    z = (y - m)/sqrt(S): whitened coordinates, constant along the Gaussian's flow.
    r: what the true score of y has besides the Gaussian's, r = (x0 - y)/rho^2 + z/sqrt(S) in the eigenbasis.
    q: power with which r falls, as S^(-q/2) at fixed z.
    tau: noise of the process, 0 (the probability flow) to 1 (the reverse SDE).

The method is ours (docs/samplers.md, section 2).
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from scoresde.models import Gaussian
from scoresde.sde.tensors import flat

#: q if m and C are those of the data: r then comes from their third cumulants
POWER_OF_KNOWN_MOMENTS = 4
#: q if C is not that of the data
POWER_OF_UNKNOWN_COVARIANCE = 3

# Levels of the calls, measured on mixtures of 8 anisotropic Gaussians in 2 and 64 dimensions. The values are for 5
# calls; with g = log(calls/5) they move as stated.
FIRST_ABOVE_LARGEST = 0.1  # log of the first rho over the data's largest std, + 0.8 g
LAST_BELOW_TYPICAL = 2.0  # log of the data's typical std over the last rho, + 0.63 g, + tau
DENSER_IN_THE_MIDDLE = 0.1  # amplitude of the sine in the spacing, + 0.05 g
SMALLEST_STD = 1e-150  # of data that are one point, so that logarithms stay finite


def data_lambdas(largest: float, typical: float, calls: int, tau: float = 0.0) -> np.ndarray:
    """Return ``calls`` growing lambdas from the scale of the data on.

    The first is where p_t begins to differ from the Gaussian of its moments, the last where eps starts to be linear in
    rho. For 5 calls they are at rho = e^0.1 ``largest`` and e^-2 ``typical``; both move out with log(calls). Between
    them the spacing is a little denser in the middle:

        lambda = a + (b - a) (u + 0.1 sin(2 pi u)/(2 pi)),    u uniform in [0, 1], 0.1 growing with log(calls)

    With noise the last level is e^-tau lower, as the noise injected near the data has to be removed again.

    Args:
        largest: Largest standard deviation of the data in any direction.
        typical: Root of the mean variance of the data.
        calls: Number of lambdas.
        tau: Noise of the process.
    """
    growth = math.log(max(calls, 2) / 5)
    first = -math.log(max(largest, SMALLEST_STD)) - FIRST_ABOVE_LARGEST - 0.8 * growth
    last = max(LAST_BELOW_TYPICAL + tau + 0.63 * growth - math.log(max(typical, SMALLEST_STD)), first + 1.0)
    u = np.linspace(0.0, 1.0, calls)
    amplitude = DENSER_IN_THE_MIDDLE + 0.05 * growth
    return first + (last - first) * (u + amplitude * np.sin(2 * math.pi * u) / (2 * math.pi))


class GaussianStart:
    """A jump from t_max to the first noise level without a network call.

    It follows the flow of a Gaussian with the data's moments. One estimate at the end then gives r, and with it the
    correction to y:

        int_{rho}^{start} sqrt(S/S') r' rho' drho' = S/(q - 1) (1 - (S/S_start)^((q - 1)/2)) r

    Args:
        y: x/alpha at the start, ``(B, *D)``.
        rho: sigma/alpha at the start.
        gaussian: N(m, C), in the dtype and on the device of y.
        power: q.
    """

    def __init__(self, y: Tensor, rho: float, gaussian: Gaussian, power: int) -> None:
        self.shape, self.gaussian, self.power = y.shape, gaussian, power
        self.start = gaussian.variance(rho)
        self.z = gaussian.centre(flat(y)) / self.start.sqrt()

    def _outward(self, u: Tensor) -> Tensor:
        return self.gaussian.uncentre(u).reshape(self.shape)

    def flow(self, rho: float) -> Tensor:
        """Return y ``(B, *D)`` at rho on the Gaussian's flow."""
        return self._outward(self.z * self.gaussian.std(rho))

    def correct(self, x0: Tensor, rho: float) -> Tensor:
        """Return the corrected y ``(B, *D)`` at rho.

        ``x0`` is the estimate at the end of the Gaussian's flow there.
        """
        self.end = self.gaussian.variance(rho)
        root, q = self.end.sqrt(), self.power
        u = self.z * root
        self.r = (self.gaussian.centre(flat(x0)) - u) / rho**2 + self.z / root
        return self._outward(u + self.end / (q - 1) * (1 - (self.end / self.start) ** ((q - 1) / 2)) * self.r)

    def estimate(self, rho: float) -> Tensor:
        """Return x0 ``(B, *D)`` at a larger rho, after :meth:`correct`."""
        variance = self.gaussian.variance(rho)
        root = variance.sqrt()
        score = self.r * (self.end / variance) ** (self.power / 2) - self.z / root
        return self._outward(self.z * root + rho**2 * score)
