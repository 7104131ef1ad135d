"""Stopping a training from outside: SIGINT (Ctrl-C) and SIGTERM (schedulers) end it after the step at hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``stop`` at the first SIGINT or SIGTERM, which the yielded list then holds; a second one acts as usual.

    A process that ends for a signal should exit with 128 + its number (130, 143): shells and schedulers read that as
    "stopped by the signal". Outside the main thread, where Python handles no signals, nothing is done. ::

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

    def handle(signum, frame) -> None:
        received.append(signum)
        restore()
        stop()

    for signum in old:
        signal.signal(signum, handle)
    try:
        yield received
    finally:
        restore()
