"""From the units of the data to those of the model and back; the one owner of likelihood offsets."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DataError, DTypeError
from scoresde.random import rand


class Scaling(NamedTuple):
    """x = scale * y + shift; y = raw for continuous data, y = raw + u, u ~ U[0, 1), for integers 0..K-1.

    Dequantised integers fill [0, K), which :meth:`for_integers` maps onto [-1, 1). A density over x is one over y by
    log p(y) = log p(x) + n log(scale) for n entries: that is the whole of the offset in bits/dim.

    Attributes:
        scale: positive.
        shift: a number, or a tensor ``(*D)`` with one for each entry.
        num_values: K for integer data 0..K-1, None for continuous data.
    """

    scale: float = 1.0
    shift: float | Tensor = 0.0
    num_values: int | None = None

    @classmethod
    def for_integers(cls, num_values: int) -> Scaling:
        """The map of integers 0..num_values-1, dequantised, onto [-1, 1)."""
        if not isinstance(num_values, int) or isinstance(num_values, bool) or num_values < 2:
            raise ArgumentError("num_values", num_values, "a whole number of num_values, 2 or more")
        return cls(2.0 / num_values, -1.0, num_values)

    def check_integers(self, raw: Tensor, name: str = "raw") -> Tensor:
        """``raw`` itself, if it holds integers 0..num_values-1 of an integer dtype.

        Raises:
            DTypeError: floating-point values where integers are due, or a continuous scaling.
            DataError: values outside 0..num_values-1.
        """
        if self.num_values is None:
            raise DTypeError(name, "continuous data", "integers and a scaling with num_values")
        if raw.is_floating_point() or raw.is_complex() or raw.dtype == torch.bool:
            raise DTypeError(name, raw.dtype, f"integers 0..{self.num_values - 1}, neither scaled nor dequantised")
        if raw.numel() and (int(raw.min()) < 0 or int(raw.max()) >= self.num_values):
            raise DataError(name, f"values {int(raw.min())}..{int(raw.max())}", f"integers 0..{self.num_values - 1}")
        return raw

    def to_model(self, raw: Tensor, generator=None, dtype: torch.dtype = torch.float32) -> Tensor:
        """x = scale (raw + u) + shift with u ~ U[0, 1) from the generator (or a list) for integers, u = 0 for floats.

        u stays a rounding error away from 0 and 1, so that :meth:`to_raw` gives back the very integers.

        Raises:
            DTypeError: ``raw`` is integer where the data are continuous, or the other way round.
        """
        if self.num_values is None:
            return self._affine(raw, dtype)
        edge = 2 * self.num_values * torch.finfo(dtype).eps
        return self._affine(raw, dtype, rand(raw.shape, generator, raw.device, dtype).clamp(edge, 1 - edge))

    def bin_centres(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x without noise: u = 1/2, the middle of each bin; floats as in :meth:`to_model`."""
        return self._affine(raw, dtype, 0.0 if self.num_values is None else 0.5)

    def _affine(self, raw: Tensor, dtype: torch.dtype, u: Tensor | float = 0.0) -> Tensor:
        if raw.is_floating_point() != (self.num_values is None):
            raise DTypeError(
                "raw", raw.dtype, "floats" if self.num_values is None else f"integers 0..{self.num_values - 1}"
            )
        y = raw + u if self.num_values is not None else raw.to(dtype)
        return (y * self.scale + self._shift(y)).to(dtype)

    def _shift(self, like: Tensor) -> Tensor | float:
        return self.shift.to(like) if isinstance(self.shift, Tensor) else self.shift

    def unscale(self, x: Tensor) -> Tensor:
        """y = (x - shift) / scale."""
        return (x - self._shift(x)) / self.scale

    def to_raw(self, x: Tensor) -> Tensor:
        """Back from model space: y, or for integers floor(y) held to 0..num_values-1, as int64."""
        y = self.unscale(x)
        return y if self.num_values is None else y.floor().clamp(0, self.num_values - 1).long()

    def log_volume(self, n: int) -> float:
        """n log(scale), in nats: what a log-density over x gains when it is stated over y, for n entries."""
        return n * math.log(self.scale)

    @property
    def config(self) -> dict[str, Any]:
        """The three fields as JSON-able values, the arguments of :meth:`from_config`."""
        shift = self.shift.tolist() if isinstance(self.shift, Tensor) else self.shift
        return {"scale": self.scale, "shift": shift, "num_values": self.num_values}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scaling:
        """The scaling that :attr:`config` describes."""
        shift = config["shift"]
        return cls(config["scale"], torch.tensor(shift) if isinstance(shift, list) else shift, config["num_values"])
