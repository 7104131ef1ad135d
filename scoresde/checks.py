"""Argument checks shared by all rooms.

Only :func:`finite` reads the values of a tensor, and thus waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import TYPE_CHECKING, SupportsFloat, SupportsIndex, cast

from scoresde.errors import ArgumentError, DTypeError, NonFiniteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LARGEST = 2**63 - 1  # what an integer of torch can be
SHOWN = 8  # samples that a message lists


def whole(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``.

    NumPy integers and integer tensors of one entry are integers too. Booleans are not.

    Raises:
        ArgumentError: ``value`` is not an integer, is below ``least``, or is 2^63 or more.
    """
    try:
        number = None if isinstance(value, bool) else index(cast(SupportsIndex, value))
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or not least <= number <= LARGEST:
        below = " below 2^63" if number is not None and number > LARGEST else ""
        expected = "a positive integer" if least == 1 else f"an integer >= {least}"
        raise ArgumentError(name, repr(value), expected + below)
    return number


def wholes(name: str, values: object, least: int = 1) -> tuple[int, ...]:
    """Return ``values`` as a tuple of ints of at least ``least``.

    Raises:
        ArgumentError: ``values`` is not a sequence, or an entry is not such an integer.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError(name, repr(values), f"a sequence of integers >= {least}")
    return tuple(whole(name, value, least) for value in values)


def number(name: str, value: object, expected: str = "a finite number") -> float:
    """Return ``value`` as a finite float.

    Args:
        name: Name of the argument, for the message.
        value: A number, or a tensor or array of one entry. Booleans and strings are not numbers.
        expected: Text of the message after "must be".

    Raises:
        ArgumentError: ``value`` is not a real number, or is NaN or infinite.
    """
    try:
        result = math.nan if isinstance(value, bool | str) else float(cast(SupportsFloat, value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise ArgumentError(name, repr(value), expected)
    return result


def numbers(
    name: str,
    value: object,
    expected: str = "numbers, as a tensor, an array or a list",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``value`` as a tensor of real numbers.

    Args:
        name: Name of the argument, for the message.
        value: A tensor, an array, a list or a number.
        expected: Text of the message after "must be".
        dtype: Dtype of the result. None: that of the values.

    Raises:
        DTypeError: ``value`` is anything else, or a tensor without values.
    """
    import torch

    try:
        result = torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DTypeError(name, type(value).__name__, expected) from error
    if result.is_meta or result.is_complex():
        raise DTypeError(name, f"a {'meta' if result.is_meta else 'complex'} tensor", expected)
    return result


def positive(name: str, value: object) -> float:
    """Return ``value`` as a positive, finite float.

    Raises:
        ArgumentError: ``value`` is not such a number.
    """
    result = number(name, value, "a positive number")
    if result <= 0:
        raise ArgumentError(name, repr(value), "a positive number")
    return result


def non_negative(name: str, value: object) -> float:
    """Return ``value`` as a finite float that is not negative.

    Raises:
        ArgumentError: ``value`` is anything else.
    """
    result = number(name, value, "a number >= 0")
    if result < 0:
        raise ArgumentError(name, repr(value), "a number >= 0")
    return result


def probability(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1).

    Raises:
        ArgumentError: ``value`` is not such a number.
    """
    result = number(name, value, "a number in [0, 1)")
    if not 0 <= result < 1:
        raise ArgumentError(name, repr(value), "a number in [0, 1)")
    return result


def samples_with_nan(bad: Sequence[int], total: int) -> str:
    """Return the part of a message that names samples with NaN.

    For the indices ``bad`` = [0, 3] of ``total`` = 5 samples: "NaN or infinity in 2 of 5 samples (0, 3)".
    """
    shown = ", ".join(map(str, bad[:SHOWN])) + (", ..." if len(bad) > SHOWN else "")
    return f"NaN or infinity in {len(bad)} of {total} samples ({shown})"


def finite(x: Tensor, where: str | Callable[[], str]) -> Tensor:
    """Return ``x`` if all its entries are finite; wait for the device.

    Args:
        x: Tensor ``(B, ...)``. On the meta device, which has no values, every tensor passes.
        where: What ``x`` is, the start of the message; or a function that returns it.

    Raises:
        NonFiniteError: NaN or infinity. The message names the samples.
    """
    if x.is_meta:
        return x
    bad = (~x.reshape(len(x), -1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"{where() if callable(where) else where}: {samples_with_nan(bad, len(x))}")
    return x
