"""Argument checks shared by all rooms. Only :func:`finite` and :func:`samples_with_nan` read the values of a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import index
from typing import TYPE_CHECKING, SupportsFloat, cast

from scoresde.errors import ArgumentError, NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8  # samples that a message lists


def whole(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``.

    NumPy integers and the entries of a ``torch.Size`` are integers too; booleans are not.

    Raises:
        ArgumentError: ``value`` is not an integer, or is below ``least``.
    """
    try:
        number = None if isinstance(value, bool) else index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least:
        raise ArgumentError(name, repr(value), "a positive integer" if least == 1 else f"an integer >= {least}")
    return number


def wholes(name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """Return ``values`` as a tuple of ints of at least ``least``.

    Raises:
        ArgumentError: ``values`` is not a sequence, or one of them is not such an integer.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError(name, repr(values), f"a sequence of integers >= {least}")
    return tuple(whole(name, value, least) for value in values)


def number(name: str, value: object, expected: str = "a finite number") -> float:
    """Return ``value`` as a finite float.

    Raises:
        ArgumentError: ``value`` is no real number, or is NaN or infinite.
    """
    try:
        result = math.nan if isinstance(value, bool | str) else float(cast(SupportsFloat, value))
    except (TypeError, ValueError, RuntimeError):
        result = math.nan
    if not math.isfinite(result):
        raise ArgumentError(name, repr(value), expected)
    return result


def positive(name: str, value: object) -> float:
    """Return ``value`` as a positive, finite float.

    Raises:
        ArgumentError: ``value`` is anything else.
    """
    result = number(name, value, "a positive number")
    if result <= 0:
        raise ArgumentError(name, repr(value), "a positive number")
    return result


def probability(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1).

    Raises:
        ArgumentError: ``value`` is anything else.
    """
    result = number(name, value, "a number in [0, 1)")
    if not 0 <= result < 1:
        raise ArgumentError(name, repr(value), "a number in [0, 1)")
    return result


def samples_with_nan(bad: Sequence[int], total: int) -> str:
    """Return the words "NaN or infinity in 2 of 5 samples (0, 3)" for the indices ``bad`` of ``total`` samples."""
    shown = ", ".join(map(str, bad[:SHOWN])) + (", ..." if len(bad) > SHOWN else "")
    return f"NaN or infinity in {len(bad)} of {total} samples ({shown})"


def finite(x: Tensor, where: str) -> Tensor:
    """Return ``x`` ``(B, ...)`` if all its entries are finite. Waits for the device.

    Args:
        x: any tensor with a batch axis; one on the meta device, which has no values, passes.
        where: what x is, the start of the message.

    Raises:
        NonFiniteError: NaN or infinity; names the samples.
    """
    if x.is_meta:
        return x
    bad = (~x.reshape(len(x), -1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"{where}: {samples_with_nan(bad, len(x))}")
    return x
