"""The command group: near names for unknown ones, errors in one line.

It imports no torch, so that ``--help`` is immediate.
"""

from __future__ import annotations

import difflib
import errno
import warnings
from typing import Any

import click

from scoresde.errors import ArgumentError, ScoreSDEError, ScoreSDEWarning

BAD_INPUT, FAILURE = 2, 1


def exit_code(error: Exception) -> int:
    """Return 2 for bad input, and 1 for a failure of the run.

    Failures are a loss that is NaN, a full disk, or a tolerance that was not reached.
    """
    cause = error.__cause__
    broken = isinstance(cause, OSError) and cause.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return BAD_INPUT if isinstance(error, ArgumentError) and not broken else FAILURE


def _in_one_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print a warning of ours as one line, and others as Python does."""
    ours = issubclass(category, ScoreSDEWarning)
    text = f"Warning: {message}" if ours else warnings.formatwarning(message, category, *place[:2])
    click.echo(text, err=True, nl=ours)


class Command(click.Command):
    """A command whose errors are one line, or a traceback with ``--debug``."""

    def invoke(self, ctx: click.Context) -> Any:
        from scoresde.app.runs import Interrupted

        try:
            with warnings.catch_warnings():
                warnings.showwarning = _in_one_line
                return super().invoke(ctx)
        except Interrupted as stopped:
            click.echo(str(stopped))
            ctx.exit(stopped.exit_code)
        except KeyboardInterrupt:
            click.echo("\nStopped.", err=True)
            ctx.exit(130)
        except (ScoreSDEError, OSError) as error:
            if ctx.meta.get("scoresde.debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(exit_code(error))


class Group(click.Group):
    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"Unknown command {args[0]!r}.{hint} Commands are {', '.join(self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)
