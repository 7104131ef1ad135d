"""Every family of forward processes, for statements about all of them."""

import torch

from scoresde.sde import DDPM, NCSN, SDE, VESDE, VPSDE, FlowSDE, SubVPSDE
from tests.marks import some_fast


def quadratic_rate(t):
    """Return a user's beta(t); a function at module level can be pickled."""
    return 0.1 + 9.9 * t**2


class UserSDE(SDE):
    """A process as a user writes one.

    alpha = exp(-t^2), sigma = t (1 + t)
    """

    def log_alpha(self, t):
        return -(t**2)

    def log_sigma(self, t):
        return torch.log(t) + torch.log1p(t)


SMOOTH = {
    "vp": VPSDE(),
    "vp-cosine": VPSDE.cosine(),
    "vp-any": VPSDE.from_beta(quadratic_rate),
    "subvp": SubVPSDE(),
    "subvp-cosine": SubVPSDE.cosine(),
    "ve": VESDE(),
    "ve-linear": VESDE.linear(),
    "flow": FlowSDE(),
    "user": UserSDE(),
}
DISCRETE = {
    "ddpm": DDPM.linear(1000),
    "ddpm-cosine": DDPM.cosine(1000),
    "ddpm-short": DDPM([0.1, 0.3, 0.2, 0.5, 0.4, 0.6, 0.7]),
    "ncsn": NCSN.geometric(0.01, 50.0, 232),
    "ncsn-short": NCSN([0.1, 0.5, 1.3, 4.0, 5.0]),
}
FAMILIES = SMOOTH | DISCRETE
EACH = some_fast("sde", FAMILIES, fast=("vp", "ve", "flow", "user", "ddpm", "ncsn-short"))
