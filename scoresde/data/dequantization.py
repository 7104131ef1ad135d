"""From integers to densities: how noise fills the bins, and what it costs.

Integer data have probabilities, a flow has a density. With any noise q(x | raw) inside the bin of ``raw``

    log P(raw) = log int_bin p(x) dx >= E_q[log p(x) - log q(x | raw)],

so bits/dim stated through dequantised data are an upper bound, the tighter the closer q is to p within the bin.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError
from scoresde.random import rand


@dataclass(frozen=True)
class Dequantization(ABC):
    """A law of the noise inside the bins of integer data.

    Args:
        samples: independent draws per image, averaged.

    Raises:
        ArgumentError: fewer than one draw.
    """

    samples: int = 1

    def __post_init__(self):
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise ArgumentError("samples", self.samples, "a whole number of draws, 1 or more")

    @abstractmethod
    def log_snr(self, scaling: Scaling) -> float | None:
        """log-SNR at which the flow begins, if the noise stands for the process's own at that time; None: at t = 0."""

    @abstractmethod
    def training_data(self, raw: Tensor, scaling: Scaling, generator=None, dtype=torch.float32) -> Tensor:
        """x_0 in the model's units, ``(B, *D)``, that a model meant for this dequantisation is trained on."""

    @abstractmethod
    def draw(
        self, raw: Tensor, scaling: Scaling, alpha: float, sigma: float, generator=None, dtype=torch.float32
    ) -> tuple[Tensor, Tensor]:
        """``(x, log_weight)`` with log P(raw) >= E[log p(x) + log_weight]; x ``(B, *D)``, log_weight ``(B,)`` in nats.

        ``alpha`` and ``sigma`` are those of the time at which the flow begins; ``generator`` may be a list, one a
        sample.
        """


@dataclass(frozen=True)
class Uniform(Dequantization):
    """Uniform noise: x = scale (raw + u) + shift, u ~ U[0, 1)^n; log P(raw) >= E log p(x) + n log(scale).

    The density is that of the data at t = 0, and the model's training data are dequantised in the same way. Source:
    Theis et al. (2016, section 3.1).
    """

    def log_snr(self, scaling):
        return None

    def training_data(self, raw, scaling, generator=None, dtype=torch.float32):
        return scaling.to_model(raw, generator, dtype)

    def draw(self, raw, scaling, alpha, sigma, generator=None, dtype=torch.float32):
        x = scaling.to_model(raw, generator, dtype)
        return x, torch.full((len(x),), scaling.log_volume(raw[0].numel()), dtype=torch.float64)


@dataclass(frozen=True)
class TruncatedNormal(Dequantization):
    r"""The process's own noise at t_min, truncated to the bin: x = alpha c + sigma u at t_min, c the bin's centre.

    u is a standard normal truncated to [-tau, tau], tau = alpha scale / (2 sigma), so that x/alpha stays in the bin;

        log P(raw) >= E[log p_{t_min}(x)] + n log sigma - E[log q(u)],   log q(u) = -u^2/2 - log(2 pi)/2 - log Z

    per entry, Z = erf(tau / sqrt(2)). Nothing is lost between t = 0 and t_min, and q has nearly the shape of p: the
    bound is tighter than that of uniform noise. It is meant for models trained on bin centres (:meth:`training_data`)
    at times from t_min on. Source: Zheng et al. (2023, "Improved Techniques for Maximum Likelihood Estimation for
    Diffusion ODEs").

    Args:
        samples: draws per image.
        tau: half the width of a bin in standard deviations, which fixes t_min: log-SNR(t_min) = 2 log(2 tau / scale).
            At 3, the default, truncation cuts off 0.27 % of the noise: log-SNR 13.3 for 256 num_values on [-1, 1).

    Raises:
        ArgumentError: tau is not positive.
    """

    tau: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tau < math.inf:
            raise ArgumentError("tau", self.tau, "a positive number of standard deviations")

    def log_snr(self, scaling):
        return 2 * math.log(2 * self.tau / scaling.scale)

    def training_data(self, raw, scaling, generator=None, dtype=torch.float32):
        return scaling.bin_centres(raw, dtype)

    def draw(self, raw, scaling, alpha, sigma, generator=None, dtype=torch.float32):
        if not sigma > 0:
            raise ArgumentError("t_min", f"a time where sigma = {sigma:g}", "a time with noise, to fill the bins")
        wide = torch.float32 if raw.device.type == "mps" else torch.float64
        tau = alpha * scaling.scale / (2 * sigma)
        Z = math.erf(tau / math.sqrt(2))
        r = rand(raw.shape, generator, raw.device, wide)
        u = math.sqrt(2) * torch.erfinv(Z * (2 * r - 1)).clamp(-tau / math.sqrt(2), tau / math.sqrt(2))
        x = alpha * scaling.bin_centres(raw, wide) + sigma * u
        log_q = (-0.5 * u.square() - 0.5 * math.log(2 * math.pi) - math.log(Z)).reshape(len(raw), -1).sum(1)
        return x.to(dtype), raw[0].numel() * math.log(sigma) - log_q
