"""Problems for the tests of samplers.

Mixtures with exact scores, processes, seeded noise.
"""

import torch

import scoresde as S
from tests.generators import generator

COVARIANCES = torch.tensor([[[0.05, 0.03], [0.03, 0.04]], [[0.2, 0.0], [0.0, 0.01]], [[0.1, -0.05], [-0.05, 0.1]]])
#: three anisotropic Gaussians in the plane
MIXTURE = S.GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], COVARIANCES, [0.5, 0.3, 0.2])
#: three wide Gaussians, for measured orders
SMOOTH = S.GaussianMixture([[1.0, 0.5], [-0.8, 0.3], [0.2, -1.0]], [0.5, 0.4, 0.6])
SDES = {
    "vp": S.VPSDE(),
    "subvp": S.SubVPSDE(),
    "ve": S.VESDE(),
    "cosine": S.VPSDE.cosine(),
    "flow": S.FlowSDE(),
    "ddpm": S.DDPM.linear(1000),
    "ncsn": S.NCSN.geometric(0.01, 50.0, 232),
}


def normal(seed, *shape):
    """Draw standard normal noise, float64."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def noises(count, shape, seed):
    """Return what a sampler draws from ``generator(seed)``, draw by draw."""
    g = generator(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(count)]


class LearnedVariance(S.Model):
    """A model with an exponent v for each entry, as a network would learn it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.sde, self.moments = model, model.sde, model.moments

    def estimate(self, x, level, cond=None):
        return self.model.estimate(x, level, cond)._replace(v=torch.sigmoid(3 * x))
