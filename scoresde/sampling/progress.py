"""A line that shows the progress of a sampling run."""

from __future__ import annotations

from torch import Tensor

from scoresde.models import Estimate, Model, Wrapper
from scoresde.models.conditions import Condition
from scoresde.sampling.base import Sampler, State
from scoresde.sde import Level


class ProgressLine:
    """A line on standard error with the steps and network calls so far.

    In a terminal it is live; elsewhere it is printed once, at the end.

    Args:
        sampler: Sampler, whose repr begins the line.
    """

    def __init__(self, sampler: Sampler) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[calls]} network calls"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self.task, self.calls = self.bar.add_task(repr(sampler), total=0, calls=0), 0

    def __enter__(self) -> ProgressLine:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def counting(self, model: Model) -> Model:
        """Return the model, its calls counted here."""
        return _Counting(model, self)

    def called(self) -> None:
        """Count one network call."""
        self.calls += 1
        self.bar.update(self.task, calls=self.calls)

    def show(self, state: State) -> None:
        """Show the steps of a state."""
        self.bar.update(self.task, completed=state.step, total=state.steps)


class _Counting(Wrapper):
    """A model that reports each call to a progress line."""

    def __init__(self, model: Model, line: ProgressLine) -> None:
        super().__init__(model)
        self.line = line

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        self.line.called()
        return self.model.estimate(x, level, cond)
