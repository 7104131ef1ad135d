"""Noise levels, ready for arithmetic with data."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """A noise level, ready for arithmetic with data.

    For a time known to the host (of a sampler's grid) all fields are Python floats, computed in float64. They multiply
    tensors of any device and dtype without a copy or a sync. For one time per sample ``t`` and ``log_snr`` are
    ``(B,)``, and ``alpha`` and ``sigma`` are ``(B, 1, ..., 1)``.
    """

    t: float | Tensor
    alpha: float | Tensor
    sigma: float | Tensor
    log_snr: float | Tensor

    @property
    def rho(self) -> float | Tensor:
        """sigma/alpha, the standard deviation of the noise in x/alpha."""
        return self.sigma / self.alpha

    @property
    def lam(self) -> float | Tensor:
        """lambda = log(alpha/sigma), half of ``log_snr``."""
        return self.log_snr / 2

    @property
    def ratio(self) -> float | Tensor:
        """alpha/sigma, and 0 where sigma = 0.

        At fixed x_t, d eps / d x_0 = -alpha/sigma.
        """
        if isinstance(self.sigma, Tensor):
            return torch.where(self.sigma > 0, self.alpha / self.sigma, 0.0)
        return self.alpha / self.sigma if self.sigma > 0 else 0.0

    def rows(self, rows: slice | Tensor) -> Level:
        """Return the level of some samples of the batch.

        A level that all samples share is returned as it is.
        """
        return Level(*(value[rows] if isinstance(value, Tensor) and value.ndim else value for value in self))

    def __repr__(self) -> str:
        """Return the numbers of one level, or the shape of many."""
        shown = (
            f"{name} of shape {tuple(value.shape)}"
            if isinstance(value, Tensor) and (value.ndim or value.device.type != "cpu")
            else f"{name}={float(value):.5g}"
            for name, value in zip(self._fields, self, strict=True)
        )
        return f"Level({', '.join(shown)})"


class HostLevel(Level):
    """A noise level at a time known to the host, of Python floats."""

    __slots__ = ()

    if TYPE_CHECKING:
        t: float
        alpha: float
        sigma: float
        log_snr: float

        @property
        def rho(self) -> float: ...

        @property
        def lam(self) -> float: ...
