"""A folder of checkpoints belongs to one run at a time."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scoresde.errors import RunFolderError

NAME = ".lock"
_held: dict[Path, int] = {}  # folders that this process holds, and how often


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder while the block runs; a second process is refused.

    The lock is the operating system's, on the file ``.lock``. It goes with the process that holds it, however that
    ends, so a file that was left behind holds nothing. One process may take it several times.

    Raises:
        RunFolderError: another process holds the folder; names its host, number and start.
    """
    folder = Path(folder).resolve()
    if folder in _held:
        _held[folder] += 1
        try:
            yield
        finally:
            _held[folder] -= 1
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _taken(folder / NAME)
    except OSError as error:
        raise RunFolderError("folder", f"{folder} ({error})", "a writable folder") from error
    _held[folder] = 1
    try:
        yield
    finally:
        del _held[folder]
        (folder / NAME).unlink(missing_ok=True)  # while it is held, so that nobody else's file goes
        os.close(descriptor)


def _taken(path: Path) -> int:
    """Return the descriptor of the locked file, which names this process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            expected = "one that no other run trains in (wait for it, stop it, or take another folder)"
            raise RunFolderError("folder", f"{path.parent}, in use by {_holder(path)}", expected) from None
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)  # its holder removed it in the meantime
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    return descriptor


def _lock(descriptor: int) -> None:
    """Lock an open file, or raise BlockingIOError if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows alone has it
        except OSError as error:
            raise BlockingIOError from error
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    """Return who holds the lock, as its file says."""
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
