"""Typed errors, whose messages suffice to correct a call.

Every error of the toolkit is a :class:`ScoreSDEError`. Each also derives from the built-in class that a caller would
guess (``ValueError``, ``TypeError``, ``ImportError``, ...), so that a plain ``except ValueError`` works.

A message about an argument has one form, made from three parts::

    `steps` must be a positive integer, got 2.5

Write ``expected`` so that it reads well after "must be". Errors pickle with their attributes, so that a worker process
can send one to its parent.
"""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Iterable, Sequence


class ScoreSDEError(Exception):
    """Base class of the errors that scoresde raises on purpose."""


class ArgumentError(ScoreSDEError, ValueError):
    """An argument has a value that it must not have.

    Args:
        argument: Name of the argument.
        got: Its value, or a description of it.
        expected: What the argument must be.

    The attributes have the same names.
    """

    def __init__(self, argument: str, got: object, expected: str):
        self.argument, self.got, self.expected = argument, got, expected
        super().__init__(f"`{argument}` must be {expected}, got {got}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.argument, self.got, self.expected)


class ShapeError(ArgumentError):
    """A tensor has the wrong shape."""


class DeviceError(ArgumentError):
    """Tensors, or a generator and its tensors, are on different devices."""


class DTypeError(ArgumentError, TypeError):
    """A tensor or array has the wrong dtype."""


class UnknownNameError(ArgumentError, KeyError):
    """A name is not in the list of known names.

    Args:
        argument: Name of the argument.
        got: The unknown name, the attribute ``name``.
        known: The known names. The message lists them and suggests the nearest.
    """

    def __init__(self, argument: str, got: object, known: Iterable[str]):
        self.name, self.known = got, tuple(known)
        near = difflib.get_close_matches(str(got), self.known, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        super().__init__(argument, f"{got!r}{hint}", f"one of {', '.join(map(repr, self.known))}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.argument, self.name, self.known)

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class DataError(ArgumentError):
    """Data are unusable: no files, mixed sizes, NaN, a wrong value range."""


class ConfigError(ArgumentError):
    """A configuration has an unknown key or a value that does not fit."""


class CheckpointError(ArgumentError):
    """A checkpoint is missing, truncated, foreign, or of another model."""


class RunFolderError(ArgumentError):
    """A folder is not a run folder, or is one that must not be overwritten."""


class NonFiniteError(ScoreSDEError, FloatingPointError):
    """NaN or infinity in a result.

    For a loss the message names the step, for a network's output the samples.
    """


class ToleranceError(ScoreSDEError, ArithmeticError):
    """An adaptive solver did not reach its tolerance.

    The message names the time, the step size and the number of network calls.
    """


class LostRankError(ScoreSDEError, RuntimeError):
    """Another process of a distributed run failed or was killed.

    Args:
        rank: Rank of the process that raises the error.
        reason: What it observed.
    """

    def __init__(self, rank: int, reason: str):
        self.rank, self.reason = rank, reason
        super().__init__(f"rank {rank} lost another process of this run ({reason}); the checkpoints are intact")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.rank, self.reason)


class MissingExtraError(ScoreSDEError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: Name of the missing package.
        extra: Extra of scoresde that installs it.
    """

    def __init__(self, package: str, extra: str):
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed; install it with: python -m pip install 'scoresde[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.package, self.extra)


def warn(message: str | Warning, category: type[Warning] | None = None, stacklevel: int = 1) -> None:
    """Warn as :func:`warnings.warn` does, where decorators add no levels."""
    frame, level = sys._getframe(1), 2
    for _ in range(stacklevel - 1):
        while frame.f_back is not None:
            frame, level = frame.f_back, level + 1
            if frame.f_globals.get("__name__") != "scoresde.argument_types":
                break
    warnings.warn(message, category, stacklevel=level)


class ScoreSDEWarning(UserWarning):
    """A result that may not be what it seems; the base of all warnings."""


class DataWarning(ScoreSDEWarning):
    """A process that does not suit the data."""


class CheckpointWarning(ScoreSDEWarning):
    """A training goes on from another checkpoint than the newest."""


class SamplingWarning(ScoreSDEWarning):
    """Samples that cannot be right, though they are finite."""


class LikelihoodWarning(ScoreSDEWarning):
    """Log-likelihoods that may be off by more than their tolerance.

    Attributes:
        missed, total: samples above the tolerance, and all samples.
        atol: the tolerance, in nats a dimension.
        largest: the largest estimated error, in nats a dimension. NaN: unknown.
        cause: the commonest cause, and what to change.
    """

    def __init__(self, missed: int, total: int, atol: float, largest: float, cause: str):
        super().__init__(missed, total, atol, largest, cause)
        self.missed, self.total, self.atol, self.largest, self.cause = missed, total, atol, largest, cause

    def __str__(self) -> str:
        size = "an unknown amount" if math.isnan(self.largest) else f"up to {self.largest:.2g}"
        return (
            f"log p of {self.missed} of {self.total} samples may be off by more than {self.atol:g} nats a dimension, "
            f"by {size}: {self.cause}"
        )

    def joined(self, others: Sequence[LikelihoodWarning], total: int) -> LikelihoodWarning:
        """Return one warning for this one's samples and those of others.

        Args:
            others: warnings about other samples of one set.
            total: number of samples of the set.
        """
        every = [self, *others]
        cause = max(every, key=lambda warning: warning.missed).cause
        largest = max((warning.largest for warning in every), key=lambda size: (math.isnan(size), size))
        return LikelihoodWarning(sum(warning.missed for warning in every), total, self.atol, largest, cause)
