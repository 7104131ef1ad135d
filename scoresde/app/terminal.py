"""Output of commands: plain lines, and a progress bar in a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import click

QUIET_SECONDS = 10.0  # at least this long between two plain lines of progress

#: ``update(done, text)``: the parts of the work that are done, and a text to show
Update = Callable[[int, str], None]


def say(text: str = "") -> None:
    """Print one line."""
    click.echo(text)


def is_live() -> bool:
    """Return True if standard output is a terminal that can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, its first column aligned left and the others right."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for i, row in enumerate(cells):
        fields = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        say("  " + "   ".join(fields).rstrip())
        if i == 0:
            say("  " + "-" * (sum(widths) + 3 * (len(widths) - 1)))


@contextmanager
def progress(what: str, total: int, first: int = 0) -> Iterator[Update]:
    """Show the progress of work while the block runs.

    In a terminal one line is redrawn. Elsewhere a line is written at most every 10 seconds, and one at the end.

    Args:
        what: Name of the work.
        total: Number of its parts.
        first: Parts that are done already.
    """
    with (_bar if is_live() else _lines)(what, total, first) as update:
        yield update


class _Sayer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextmanager
def logged(name: str) -> Iterator[None]:
    """Print what a logger tells while the block runs."""
    logger, handler = logging.getLogger(name), _Sayer()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def _lines(what: str, total: int, first: int) -> Iterator[Update]:
    written, latest = time.monotonic(), None

    def update(done: int, text: str = "") -> None:
        nonlocal written, latest
        latest = f"{what} {done}/{total}" + (f"  {text}" if text else "")
        if time.monotonic() - written >= QUIET_SECONDS:
            written = time.monotonic()
            say(latest)
            latest = None

    yield update
    if latest is not None:
        say(latest)


@contextmanager
def _bar(what: str, total: int, first: int) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(file=sys.stdout)) as bar:
        task = bar.add_task(what, total=total, completed=first, text="")

        def update(done: int, text: str = "") -> None:
            bar.update(task, completed=done, text=text)

        yield update


def duration(seconds: float) -> str:
    """Return ``1 min 15 s`` for 75."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
