"""The ``train`` command's work: train, checkpoint, stop when asked to, and go on later."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scoresde.app import build
from scoresde.app.runs import Interrupted, RunFolder
from scoresde.app.terminal import duration, progress, say
from scoresde.errors import NonFiniteError, ScoreSDEError


def resume_command(run: RunFolder, command: str) -> str:
    """What to type to take the run up again."""
    return f"scoresde {command} --out {shlex.quote(str(run.path))} --resume"


@contextmanager
def _signals(stop) -> Iterator[list[int]]:
    """Call ``stop`` at the first SIGINT or SIGTERM, which the yielded list then holds; a second one acts as usual."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    old = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in old.items():
            signal.signal(signum, handler)

    def handle(signum, frame) -> None:
        seen.append(signum)
        restore()
        stop()

    for signum in old:
        signal.signal(signum, handle)
    try:
        yield seen
    finally:
        restore()


def train(run: RunFolder, command: str = "train") -> None:
    """Train the run's model to its last step, from the newest checkpoint if there is one.

    Raises:
        Interrupted: by SIGINT or SIGTERM; a checkpoint was saved.
        NonFiniteError: the loss is no number; the message names the step and the last good checkpoint.
        CheckpointError: a checkpoint cannot be written; those before it stay.
    """
    config = run.config
    torch.manual_seed(config.train.seed)
    torch.use_deterministic_algorithms(config.train.deterministic)
    try:
        data, held_out = build.data(config.data)
        model = build.model(config, data)
        trainer = build.trainer(config, model, run.checkpoints)
    except ScoreSDEError:
        run.withdraw()
        raise
    if run.step is not None:
        trainer.resume()
        run.rewind_log(trainer.step)
    if trainer.step >= config.train.steps:
        say(f"Trained already: {trainer.step} steps.")
        return
    weights = sum(p.numel() for p in model.parameters())
    say(f"{data.name}: {len(data)} items {data.shape} to train on, {len(held_out)} held out")
    say(f"{model.sde}, {type(model.net).__name__} with {weights:,} weights, on {trainer.device}")
    if trainer.step:
        say(f"Going on from step {trainer.step}.")

    before = run.meta["stages"].get("train", {}).get("seconds", 0.0)
    begun = time.monotonic() - before
    with (
        run.stage("train", since=before, weights=weights, device=str(trainer.device)),
        _signals(trainer.stop) as signals,
        progress("training", config.train.steps, trainer.step) as update,
    ):
        try:
            for record in trainer.records(data):
                run.log({**dataclasses.asdict(record), "seconds": round(time.monotonic() - begun, 2)})
                update(
                    record.step,
                    f"loss {record.loss:.4f}  {record.steps_per_second:.1f} steps/s  "
                    f"{duration(record.seconds_left)} left",
                )
                if signals:
                    trainer.stop()
        except NonFiniteError as error:
            kept = "there is no checkpoint yet" if run.step is None else f"the last good checkpoint is step {run.step}"
            raise NonFiniteError(f"{error}; {kept}; a smaller train.lr may help") from error
    if signals:
        raise Interrupted(signals[0], resume_command(run, command))
