"""The judge of the labs: an answer against a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scoresde.argument_types import checked
from scoresde.course.first_labs import FIRST
from scoresde.course.second_labs import SECOND
from scoresde.course.tasks import Answer, Task, equal
from scoresde.errors import DTypeError, UnknownNameError

TASKS: tuple[Task, ...] = (*FIRST, *SECOND)
LABS = tuple(sorted({task.lab for task in TASKS}))


@dataclass(frozen=True)
class Verdict:
    """What the judge says of an answer.

    Attributes:
        passed: Whether it is right.
        lab, part: What it answers.
        message: Why it is right, or which slip it makes.
        error: Largest relative difference from the closed form. NaN: it gave no numbers.
    """

    passed: bool
    lab: int
    part: str
    message: str
    error: float

    def __repr__(self) -> str:
        return f"Lab {self.lab}, {self.part}: {'right' if self.passed else 'not yet'}. {self.message}"


@checked
def parts(lab: int) -> tuple[str, ...]:
    """Return the names of a lab's parts, in their order.

    Raises:
        UnknownNameError: There is no lab of this number.
    """
    _check_lab(lab)
    return tuple(task.name for task in TASKS if task.lab == lab)


def _check_lab(lab: int) -> None:
    if lab not in LABS:
        raise UnknownNameError("lab", str(lab), [str(one) for one in LABS])


def task_of(lab: int, part: str | None) -> Task:
    """Return a part of a lab.

    Raises:
        UnknownNameError: There is no lab of this number, or no part of this name.
    """
    _check_lab(lab)
    found = {task.name: task for task in TASKS if task.lab == lab}
    if part is not None and part not in found:
        raise UnknownNameError("part", part, found)
    return next(iter(found.values())) if part is None else found[part]


@checked
def check(lab: int, answer: Answer, part: str | None = None) -> Verdict:
    """Judge an answer to a part of a lab, and name its slip.

    The answer is called with fixed numbers in float64, and compared with a closed form. A wrong one is compared with
    the typical slips too.

    Args:
        lab: Number of the lab, 1 to 10.
        answer: The function that the part asks for.
        part: Name of the part. None: the function's name, if it is one, or the first part.

    Raises:
        UnknownNameError: Another lab or part.
        DTypeError: The answer is no function.
    """
    if not callable(answer):
        raise DTypeError("answer", type(answer).__name__, "a function")
    name = getattr(answer, "__name__", None)
    task = task_of(lab, name if part is None and name in parts(lab) else part)
    try:
        with torch.enable_grad():
            given, truth = task.measure(answer), task.measure(task.truth)
    except Exception as error:  # a student's function may raise anything
        said = f"{type(error).__name__}: {error}"
        return Verdict(False, lab, task.name, f"It raised {said}. The call is {task.signature()}.", float("nan"))
    if given.shape != truth.shape:
        text = f"It gives {len(given)} numbers where {len(truth)} are right: is a shape lost, or a sum taken too early?"
        return Verdict(False, lab, task.name, text, float("nan"))
    gap = float((given - truth).norm() / (1e-300 + truth.norm()))
    if equal(given, truth):
        return Verdict(True, lab, task.name, task.praise, gap)
    for slip in task.slips:
        if equal(given, task.measure(slip.answer)):
            return Verdict(False, lab, task.name, slip.hint, gap)
    if not bool(given.isfinite().all()):
        return Verdict(False, lab, task.name, "It gives NaN or infinity: is something divided by 0?", gap)
    if equal(-given, truth):
        return Verdict(False, lab, task.name, "The sign is the other one.", gap)
    ratio = given / torch.where(truth == 0, torch.nan, truth)
    factor = ratio[ratio.isfinite()]
    if len(factor) > 1 and bool((factor - factor.mean()).abs().max() < 1e-9 * factor.mean().abs()):
        return Verdict(False, lab, task.name, f"It is right up to a factor of {float(factor.mean()):.6g}.", gap)
    return Verdict(False, lab, task.name, f"It differs from the closed form by {gap:.2g} of its size.", gap)
