"""How the times of a training batch are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoresde.errors import UnknownNameError
from scoresde.sde import SDE


class TimeSampling(ABC):
    """A proposal for t on [t_min, t_max], with the weight that makes averages over it averages over uniform t.

    Args:
        low_discrepancy: spread a batch evenly, u_i = (u + i/B) mod 1 with one uniform u: each t is as likely as before,
            the batch's mean varies much less (Kingma et al. 2021, appendix I.1).
    """

    def __init__(self, low_discrepancy: bool = True):
        self.low_discrepancy = low_discrepancy

    def uniform(self, n: int, generator, device) -> Tensor:
        """``(n,)`` uniform numbers in [0, 1)."""
        source = device if generator is None else generator.device
        u = torch.rand(1 if self.low_discrepancy else n, generator=generator, device=source).to(device)
        return (u + torch.arange(n, device=device) / n) % 1 if self.low_discrepancy else u

    @abstractmethod
    def draw(self, n: int, sde: SDE, t_min: float, t_max: float, generator, device) -> tuple[Tensor, Tensor]:
        """``(t, weight)``, both ``(n,)``: E[weight h(t)] is the mean of h over t ~ U(t_min, t_max)."""

    def __repr__(self):
        return f"{type(self).__name__}(low_discrepancy={self.low_discrepancy})"


class UniformTime(TimeSampling):
    """t ~ U(t_min, t_max) (E6)."""

    def draw(self, n, sde, t_min, t_max, generator, device):
        t = t_min + (t_max - t_min) * self.uniform(n, generator, device)
        return t, torch.ones_like(t)


class UniformLogSNR(TimeSampling):
    """log-SNR uniform between its values at the ends: t in proportion to g^2/sigma^2 = -d log_snr/dt.

    It is the importance sampling of the likelihood weighting in closed form (Song et al. 2021b; Kingma et al. 2021):
    there every t contributes with the same weight. For VP it draws B = log(1 + e^{-log_snr}), for the geometric VE it
    is uniform in t.
    """

    def draw(self, n, sde, t_min, t_max, generator, device):
        ends = torch.tensor([t_max, t_min], dtype=torch.float64)
        low, high = sde.log_snr(ends).tolist()
        t = sde.time_of(low + (high - low) * self.uniform(n, generator, device)).clamp(t_min, t_max)
        rate = 2 * (sde.log_sigma_rate(t) - sde.log_alpha_rate(t))
        return t, (high - low) / ((t_max - t_min) * rate)


TIME_SAMPLINGS = {
    "uniform": lambda: UniformTime(low_discrepancy=False),
    "low-discrepancy": UniformTime,
    "log-snr": UniformLogSNR,
}


def resolve_time_sampling(name: str | TimeSampling) -> TimeSampling:
    """The time sampling of that name, or the object itself.

    Raises:
        UnknownNameError: no time sampling has that name.
    """
    if isinstance(name, TimeSampling):
        return name
    if name not in TIME_SAMPLINGS:
        raise UnknownNameError("time_sampling", name, TIME_SAMPLINGS)
    return TIME_SAMPLINGS[name]()
