"""The affine map between data and model space, and likelihood offsets."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import DataError, DTypeError, ShapeError
from scoresde.random import Generators, rand

DTYPES = {None: None, "float32": torch.float32, "float64": torch.float64}  # of continuous data, by their saved names


@checked
class Scaling(NamedTuple):
    """The map x = scale * y + shift from data to model space.

    y is raw for continuous data, and raw + u with u ~ U[0, 1) for integers 0..K-1. Dequantised integers fill [0, K),
    which :meth:`for_integers` maps onto [-1, 1). A density over x gives one over y, for n entries:

        log p(y) = log p(x) + sum_i log(scale_i),    n log(scale) if all entries have one scale

    This is the whole offset in bits/dim. Continuous data are mapped in double precision: a mean far from 0 would
    otherwise cost the digits of what varies about it.

    Attributes:
        scale: positive number, or a tensor ``(*D)`` with one for each entry. Integers have one number.
        shift: one number, or a tensor ``(*D)`` with one for each entry.
        num_values: K for integers 0..K-1. None: continuous data.
        dtype: dtype of continuous data, in which they come back. None: that of x.
    """

    scale: float | Tensor = 1.0
    shift: float | Tensor = 0.0
    num_values: int | None = None
    dtype: torch.dtype | None = None

    @classmethod
    @checked
    def for_integers(cls, num_values: int) -> Scaling:
        """Return the map of dequantised integers 0..num_values-1 onto [-1, 1).

        Raises:
            ArgumentError: ``num_values`` is not an integer of at least 2.
        """
        num_values = whole("num_values", num_values, 2)
        return cls(2.0 / num_values, -1.0, num_values)

    @property
    def bin_width(self) -> float:
        """Width in model space of the bin of an integer, 0 for continuous data."""
        return 0.0 if self.num_values is None else float(self.scale)

    @checked
    def check_integers(self, raw: Tensor, name: str = "raw") -> Tensor:
        """Return ``raw`` if it holds integers 0..num_values-1 in an integer dtype.

        Raises:
            DTypeError: ``raw`` has a floating dtype, or the scaling is that of continuous data.
            DataError: values outside 0..num_values-1.
        """
        if self.num_values is None:
            raise DTypeError(name, "continuous data", "integers, with a scaling that has num_values")
        if raw.is_floating_point() or raw.is_complex() or raw.dtype == torch.bool:
            raise DTypeError(name, raw.dtype, f"integers 0..{self.num_values - 1}, neither scaled nor dequantised")
        if raw.numel() and (int(raw.min()) < 0 or int(raw.max()) >= self.num_values):
            raise DataError(name, f"values {int(raw.min())}..{int(raw.max())}", f"integers 0..{self.num_values - 1}")
        return raw

    @checked
    def to_model(self, raw: Tensor, generator: Generators = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Map ``raw`` to model space, x = scale (raw + u) + shift.

        u ~ U[0, 1) for integers, 0 for floats. It stays a rounding error away from 0 and 1, so :meth:`to_raw` gives
        exactly the same integers back.

        Args:
            raw: items ``(B, *D)``.
            generator: source of u, one generator or a list of B. None: torch's default.
            dtype: floating dtype of x, default float32.

        Raises:
            DTypeError: integers where the data are continuous, or floats where they are integers; another ``dtype``.
        """
        if self.num_values is None:
            return self._affine(raw, dtype)
        if not dtype.is_floating_point:
            raise DTypeError("dtype", dtype, "a floating-point dtype")
        edge = 2 * self.num_values * torch.finfo(dtype).eps
        return self._affine(raw, dtype, rand(raw.shape, generator, raw.device, dtype).clamp(edge, 1 - edge))

    @checked
    def bin_centres(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Map ``raw`` to model space without noise.

        u is 1/2 for integers, the middle of each bin, and 0 for floats.
        """
        return self._affine(raw, dtype, 0.0 if self.num_values is None else 0.5)

    def _affine(self, raw: Tensor, dtype: torch.dtype, u: Tensor | float = 0.0) -> Tensor:
        if raw.is_floating_point() != (self.num_values is None):
            expected = "floats" if self.num_values is None else f"integers 0..{self.num_values - 1}"
            raise DTypeError("raw", raw.dtype, expected)
        if self.num_values is not None:
            y = raw + u
            return (y * self.scale + self.shift).to(dtype)
        y = raw.to(_widest(raw))
        return (y * self._like(self.scale, y) + self._like(self.shift, y)).to(dtype)

    @staticmethod
    def _like(value: float | Tensor, other: Tensor) -> float | Tensor:
        """Return the scale or the shift of ``other``.

        Raises:
            ShapeError: it is one for each entry, of items of another shape.
        """
        if not isinstance(value, Tensor):
            return value
        if other.shape[other.ndim - value.ndim :] != value.shape:
            raise ShapeError("items", tuple(other.shape), f"(..., {', '.join(map(str, value.shape))})")
        return value.to(other)

    @checked
    def unscale(self, x: Tensor) -> Tensor:
        """Return y = (x - shift) / scale, of integers before they are rounded."""
        y = x if self.num_values is not None else x.to(_widest(x))
        y = (y - self._like(self.shift, y)) / self._like(self.scale, y)
        return y.to(x.dtype if self.dtype is None else self.dtype)

    @checked
    def to_raw(self, x: Tensor) -> Tensor:
        """Map x back from model space.

        Returns:
            y for continuous data, in their dtype; for integers floor(y), clamped to 0..num_values-1, int64.
        """
        y = self.unscale(x)
        return y if self.num_values is None else y.floor().clamp(0, self.num_values - 1).long()

    @checked
    def log_volume(self, n: int) -> float:
        """Return log p(y) - log p(x) in nats for n entries.

        sum_i log(scale_i)
        """
        if isinstance(self.scale, Tensor):
            return n / self.scale.numel() * self.scale.double().log().sum().item()
        return n * math.log(self.scale)

    @property
    def config(self) -> dict[str, Any]:
        """The fields as JSON-able values, the argument of :meth:`from_config`."""
        scale, shift = (value.tolist() if isinstance(value, Tensor) else value for value in self[:2])
        dtype = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return {"scale": scale, "shift": shift, "num_values": self.num_values, "dtype": dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scaling:
        """Return the scaling that :attr:`config` describes."""
        scale, shift = (
            torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            for value in (config["scale"], config["shift"])
        )
        return cls(scale, shift, config["num_values"], DTYPES[config.get("dtype")])


def _widest(like: Tensor) -> torch.dtype:
    """Return double precision where the device of ``like`` has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64
