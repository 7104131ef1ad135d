"""The scale of the data: how wide they are, and how fine their detail is."""

from __future__ import annotations

from dataclasses import dataclass

from scoresde.checks import non_negative, positive
from scoresde.errors import ArgumentError
from scoresde.models.moments import Moments


@dataclass(frozen=True)
class DataScale:
    """Lengths of the data, in the model's units.

    Samplers and likelihoods choose their noise levels by it, with and without a condition. Every wrapper of a model
    keeps it.

    Args:
        typical: Root of the mean variance over entries.
        largest: Standard deviation along the leading eigenvector of the covariance, or that of the widest part of the
            data where their tails are heavy.
        finest: The smallest length on which the density differs from the Gaussian of its moments, such as the width of
            the narrowest mode. Directions in which the data as a whole are narrow do not count. None: unknown. The
            moments do not tell it.
        least: Standard deviation along the last eigenvector of the covariance. None: unknown.

    Raises:
        ArgumentError: A length is not positive and finite, or ``finest`` is above ``largest``.
    """

    typical: float
    largest: float
    finest: float | None = None
    least: float | None = None

    def __post_init__(self) -> None:
        positive("typical", self.typical)
        positive("largest", self.largest)
        if self.finest is not None and positive("finest", self.finest) > self.largest * (1 + 1e-9):
            raise ArgumentError("finest", self.finest, f"at most the largest length, {self.largest:g}")
        if self.least is not None:
            non_negative("least", self.least)

    @classmethod
    def of_moments(cls, moments: Moments, finest: float | None = None) -> DataScale | None:
        """Return the scale that these moments tell.

        None: the data are one point.
        """
        if not moments.std > 0:
            return None
        largest = moments.values.max().sqrt().item()
        return cls(moments.std, largest, finest, moments.values.min().sqrt().item())
