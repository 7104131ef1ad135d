"""A line that shows how far a sampling run has come."""

from __future__ import annotations

from scoresde.models import Model
from scoresde.models.wrappers import Wrapper
from scoresde.sampling.samplers import Sampler, State


class ProgressLine:
    """Steps done and network calls so far, on standard error: live in a terminal, elsewhere one line at the end."""

    def __init__(self, sampler: Sampler):
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

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *error):
        self.bar.stop()

    def counting(self, model: Model) -> Model:
        """The model, its calls counted here."""
        return _Counting(model, self)

    def called(self) -> None:
        """One more network call."""
        self.calls += 1
        self.bar.update(self.task, calls=self.calls)

    def show(self, state: State) -> None:
        """The steps of a state."""
        self.bar.update(self.task, completed=state.step, total=state.steps)


class _Counting(Wrapper):
    def __init__(self, model, line):
        super().__init__(model)
        self.line = line

    def estimate(self, x, level, cond=None):
        self.line.called()
        return self.model.estimate(x, level, cond)
