"""From t_max to the scale of the data, where p_t is nearly Gaussian.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    lambda = log(alpha/sigma), growing towards the data. rho = sigma/alpha = exp(-lambda). y = x/alpha.
    m, C: mean and covariance of the data. S = C + rho^2: variances of y, in C's eigenbasis.
    z = (y - m)/sqrt(S): whitened coordinates, constant along the Gaussian's flow.
    r: what the true score of y has besides the Gaussian's, r = (x0 - y)/rho^2 + z/sqrt(S) in the eigenbasis.
    q: power with which r falls, as S^(-q/2) at fixed z.

The method is ours (docs/samplers.md, section 2).
"""

from __future__ import annotations

from torch import Tensor

from scoresde.models import Gaussian
from scoresde.sde.tensors import flat

POWER = 4  # q, from the data's third cumulants


class GaussianStart:
    """A jump from t_max to the first noise level without a network call.

    It follows the flow of a Gaussian with the data's moments. One estimate at the end then gives r, and with it the
    correction to y:

        int_{rho}^{start} sqrt(S/S') r' rho' drho' = S/(q - 1) (1 - (S/S_start)^((q - 1)/2)) r

    Args:
        y: x/alpha at the start, ``(B, *D)``.
        rho: sigma/alpha at the start.
        gaussian: N(m, C), in the dtype and on the device of y.
    """

    def __init__(self, y: Tensor, rho: float, gaussian: Gaussian) -> None:
        self.shape, self.gaussian = y.shape, gaussian
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
        root, q = self.end.sqrt(), POWER
        u = self.z * root
        self.r = (self.gaussian.centre(flat(x0)) - u) / rho**2 + self.z / root
        return self._outward(u + self.end / (q - 1) * (1 - (self.end / self.start) ** ((q - 1) / 2)) * self.r)

    def estimate(self, rho: float) -> Tensor:
        """Return x0 ``(B, *D)`` at a larger rho, after :meth:`correct`."""
        variance = self.gaussian.variance(rho)
        root = variance.sqrt()
        score = self.r * (self.end / variance) ** (POWER / 2) - self.z / root
        return self._outward(self.z * root + rho**2 * score)
