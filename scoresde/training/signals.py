"""Stop a training from outside: SIGINT (Ctrl-C) and SIGTERM (schedulers)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``stop`` at the first SIGINT or SIGTERM while the block runs.

    The yielded list then holds the signal's number. A second signal acts as usual. A process that a signal ends should
    exit with 128 + its number (130, 143), by which shells and schedulers recognise it. Outside the main thread Python
    handles no signals, and this does nothing.

        with on_signals(trainer.stop) as received:
            trainer.fit(data)
        if received:
            sys.exit(128 + received[0])
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def restore() -> None:
        for signum, handler in old.items():
            signal.signal(signum, handler)

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        restore()
        stop()

    for signum in old:
        signal.signal(signum, handle)
    try:
        yield received
    finally:
        restore()
