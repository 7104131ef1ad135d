"""Typed errors. Each names the argument, what came and what was expected, so that a message is enough to mend a call.

Every error of the toolkit is a :class:`ScoreSDEError`; each also derives from the built-in class a caller would guess
(``ValueError``, ``TypeError``, ``ImportError``...), so that plain ``except ValueError`` goes on working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScoreSDEError(Exception):
    """Base of all errors raised on purpose by scoresde."""


class ArgumentError(ScoreSDEError, ValueError):
    """An argument has a value it cannot have.

    Attributes ``argument``, ``got`` and ``expected`` hold the three parts of the message.
    """

    def __init__(self, argument: str, got: object, expected: str):
        self.argument, self.got, self.expected = argument, got, expected
        super().__init__(f"`{argument}` must be {expected}, got {got}")

    def __reduce__(self):
        return type(self), (self.argument, self.got, self.expected)


class ShapeError(ArgumentError):
    """A tensor has the wrong shape."""


class DeviceError(ArgumentError):
    """Tensors, or a generator and the tensors it draws for, live on different devices."""


class DTypeError(ArgumentError, TypeError):
    """A tensor or array has the wrong dtype."""


class UnknownNameError(ArgumentError, KeyError):
    """A name that is not in the list of known names; the message offers the nearest ones."""

    def __init__(self, argument: str, got: object, known: Iterable[str]):
        self.known = tuple(known)
        near = difflib.get_close_matches(str(got), self.known, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        self.name = got
        super().__init__(argument, f"{got!r}{hint}", f"one of {', '.join(map(repr, self.known))}")

    def __reduce__(self):
        return type(self), (self.argument, self.name, self.known)

    def __str__(self):  # KeyError would print the repr of the message
        return self.args[0]


class DataError(ArgumentError):
    """Data that cannot be used: an empty folder, mixed image sizes, NaN, a wrong dtype or number of levels."""


class ConfigError(ArgumentError):
    """A configuration with an unknown key or a value that does not fit."""


class CheckpointError(ArgumentError):
    """A checkpoint that is missing, truncated, foreign, or was made for something else."""


class RunFolderError(ArgumentError):
    """A folder that is not a run folder, or one that would have been overwritten."""


class NonFiniteError(ScoreSDEError, FloatingPointError):
    """NaN or infinity where a number is due: a loss (names the step), a network's output (names the samples)."""


class ToleranceError(ScoreSDEError, ArithmeticError):
    """An adaptive solver could not reach its tolerance; the message names the time, the step and the calls spent."""


class LostRankError(ScoreSDEError, RuntimeError):
    """Another process of a run on several devices has failed or was killed; names this process's rank."""

    def __init__(self, rank: int, reason: str):
        self.rank, self.reason = rank, reason
        super().__init__(f"rank {rank} lost another process of this run ({reason}); the checkpoints are intact")

    def __reduce__(self):
        return type(self), (self.rank, self.reason)


class MissingExtraError(ScoreSDEError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str):
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed; it comes with: python -m pip install 'scoresde[{extra}]'")
