"""Dequantisation: the noise that fills the bins of integer data.

A model has a density p, integer data have probabilities P. For any noise q(x | raw) inside the bin of ``raw``

    log P(raw) = log int_bin p(x) dx >= E_q[log p(x) - log q(x | raw)].

Bits/dim of dequantised data are therefore an upper bound, which is tighter the closer q is to p within the bin.

============  ====================================================================================
raw           integers (B, *D)
n             number of entries of an item
scale, shift  the map to model space, x = scale * y + shift (:class:`~scoresde.data.Scaling`)
alpha, sigma  mean scale and std of the process's noise at the time at which the flow begins
u             noise inside the bin
tau           half the width of a bin, in units of sigma
log_weight    log-weight of a draw, nats: log P(raw) >= E[log p(x) + log_weight]
============  ====================================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError
from scoresde.random import Generators, rand


@dataclass(frozen=True)
class Dequantization(ABC):
    """A distribution of noise inside the bins of integer data.

    Args:
        samples: number of independent draws per item, averaged, default 1.

    Raises:
        ArgumentError: ``samples`` is not a positive integer.
    """

    samples: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", whole("samples", self.samples))

    @abstractmethod
    def log_snr(self, scaling: Scaling) -> float | None:
        """Return the log-SNR at which the flow begins. None: it begins at t = 0.

        At this log-SNR the noise in the bins replaces the noise of the process.
        """

    @abstractmethod
    def training_data(
        self, raw: Tensor, scaling: Scaling, generator: Generators = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the training data x_0 ``(B, *D)`` for this dequantisation."""

    @abstractmethod
    def draw(
        self,
        raw: Tensor,
        scaling: Scaling,
        alpha: float,
        sigma: float,
        generator: Generators = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Draw x ``(B, *D)`` and its log-weight ``(B,)`` in nats.

            log P(raw) >= E[log p(x) + log_weight]

        Args:
            raw: integers ``(B, *D)``.
            scaling: the map to model space.
            alpha, sigma: mean scale and noise std of the process at the time at which the flow begins.
            generator: source of the noise, one generator or a list of B, one a sample. None: torch's default.
            dtype: floating dtype of x, default float32.
        """


@checked
@dataclass(frozen=True)
class Uniform(Dequantization):
    """Uniform noise inside the bins.

        x = scale (raw + u) + shift, u ~ U[0, 1)^n;   log P(raw) >= E[log p(x)] + n log(scale)

    The density is that of the data at t = 0. The model's training data are dequantised in the same way.

    References: Theis et al. 2016, section 3.1.
    """

    def log_snr(self, scaling: Scaling) -> None:
        return None

    def training_data(
        self, raw: Tensor, scaling: Scaling, generator: Generators = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return scaling.to_model(raw, generator, dtype)

    def draw(
        self,
        raw: Tensor,
        scaling: Scaling,
        alpha: float,
        sigma: float,
        generator: Generators = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        x = scaling.to_model(raw, generator, dtype)
        return x, torch.full((len(x),), scaling.log_volume(raw[0].numel()), dtype=torch.float64)


@checked
@dataclass(frozen=True)
class TruncatedNormal(Dequantization):
    """The process's own noise at t_min, truncated to the bin.

        x = alpha c + sigma u at t_min,   c the centre of the bin,   u ~ N(0, 1) truncated to [-tau, tau]

    With tau = alpha scale / (2 sigma), x/alpha stays in the bin. In each entry, with Z = erf(tau / sqrt(2)),

        log q(u) = -u^2/2 - log(2 pi)/2 - log Z
        log P(raw) >= E[log p_{t_min}(x)] + n log sigma - E[log q(u)]

    Nothing is lost between t = 0 and t_min, and q has nearly the shape of p. The bound is therefore tighter than that
    of uniform noise. Train models for it on bin centres (:meth:`training_data`), at times t >= t_min.

    Args:
        samples: number of independent draws per item, averaged, default 1.
        tau: half the width of a bin in standard deviations, default 3. It sets t_min by log-SNR(t_min) =
            2 log(2 tau / scale). At 3, truncation cuts off 0.27 % of the noise, and the log-SNR is 13.3 for 256 values
            on [-1, 1).

    Raises:
        ArgumentError: ``samples`` is not a positive integer, or ``tau`` is not positive.

    References: Zheng et al. 2023, "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs".
    """

    tau: float = field(default=3.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tau", positive("tau", self.tau))

    def log_snr(self, scaling: Scaling) -> float:
        return 2 * math.log(2 * self.tau / scaling.bin_width)

    def training_data(
        self, raw: Tensor, scaling: Scaling, generator: Generators = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return scaling.bin_centres(raw, dtype)

    def draw(
        self,
        raw: Tensor,
        scaling: Scaling,
        alpha: float,
        sigma: float,
        generator: Generators = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        if not sigma > 0:
            raise ArgumentError("t_min", f"a time with sigma = {sigma:g}", "a time with noise, which fills the bins")
        wide = torch.float32 if raw.device.type == "mps" else torch.float64
        tau = alpha * scaling.bin_width / (2 * sigma)
        Z = math.erf(tau / math.sqrt(2))
        r = rand(raw.shape, generator, raw.device, wide)
        u = math.sqrt(2) * torch.erfinv(Z * (2 * r - 1)).clamp(-tau / math.sqrt(2), tau / math.sqrt(2))
        x = alpha * scaling.bin_centres(raw, wide) + sigma * u
        log_q = (-0.5 * u.square() - 0.5 * math.log(2 * math.pi) - math.log(Z)).reshape(len(raw), -1).sum(1)
        return x.to(dtype), raw[0].numel() * math.log(sigma) - log_q
