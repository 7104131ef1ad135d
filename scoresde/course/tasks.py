"""What a part of a lab asks for, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Answer = Callable[..., Any]

TOLERANCE = 1e-9  # relative, of numbers in float64


@dataclass(frozen=True)
class Slip:
    """A typical wrong answer, and the hint that it gets.

    Attributes:
        hint: What the answer did, and where to look.
        answer: A function that makes the slip.
    """

    hint: str
    answer: Answer


@dataclass(frozen=True)
class Task:
    """A part of a lab: a function to write.

    Attributes:
        lab: Number of the lab.
        name: Name of the part, and of the function.
        arguments: Names of the function's arguments.
        inputs: Calls to judge it by, each a tuple of arguments.
        truth: What is right for these arguments, by a closed form of the library.
        slips: Typical wrong answers.
        praise: What a right answer has shown.
    """

    lab: int
    name: str
    arguments: tuple[str, ...]
    inputs: Sequence[tuple[Any, ...]]
    truth: Answer
    slips: tuple[Slip, ...]
    praise: str = field(default="")

    def measure(self, answer: Answer) -> Tensor:
        """Return all numbers that an answer gives, as one vector in float64."""
        found = [torch.as_tensor(answer(*one), dtype=torch.float64).reshape(-1) for one in self.inputs]
        return torch.cat(found).detach()

    def signature(self) -> str:
        """Return the function's head as text."""
        return f"{self.name}({', '.join(self.arguments)})"


def equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two vectors of numbers agree."""
    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * (1 + b.norm()))


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return seeded normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
