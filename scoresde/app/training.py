"""The work of the ``train`` command, on one device or several."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch

from scoresde.app import build
from scoresde.app.calibrating import calibrate_run
from scoresde.app.config import SampleConfig
from scoresde.app.describing import described
from scoresde.app.runs import Interrupted, RunFolder
from scoresde.app.terminal import duration, logged, progress, say
from scoresde.data import Data, Mapped
from scoresde.errors import NonFiniteError, ScoreSDEError
from scoresde.extras import check_installed
from scoresde.nets import UNet
from scoresde.sampling import DPMSolver, sample
from scoresde.training import Record, Trainer
from scoresde.training.distributed import Ranks, process_group, quiet_unless_first
from scoresde.training.folder_lock import folder_lock
from scoresde.training.signals import on_signals

if TYPE_CHECKING:
    from scoresde.training.loggers import Logger

GRID, GRID_STEPS = 64, 20  # samples in a picture during training, and the steps that draw them
POINTS = 2000  # samples if they are points in the plane


def resume_command(run: RunFolder, command: str) -> str:
    """Return the command that continues the run."""
    return f"scoresde {command} --out {shlex.quote(str(run.path))} --resume"


@contextmanager
def on_ranks(device: str | None) -> Iterator[Ranks]:
    """Join the processes of a torchrun, if there are any; rank 0 alone prints."""
    with process_group(device or "auto") as ranks, quiet_unless_first(ranks), ranks.watched():
        yield ranks


def train_on_ranks(begin: Callable[[], RunFolder], device: str | None) -> RunFolder | None:
    """Train the run that ``begin`` returns, on all processes of a torchrun.

    Args:
        begin: Function that makes or finds the run; rank 0 calls it.
        device: Device of the processes. None: the fastest.

    Returns:
        The run, or None on ranks other than 0.

    Raises:
        Interrupted, NonFiniteError, CheckpointError: as :func:`train`.
        LostRankError: another process has ended.
    """
    stopped = None
    with on_ranks(device) as ranks:
        run = RunFolder.open(ranks.on_first(lambda: str(begin().path)))
        try:
            train(run)
        except Interrupted as interrupted:
            stopped = interrupted
    if stopped is not None:
        raise stopped
    return run if ranks.first else None


def train(run: RunFolder, command: str = "train") -> None:
    """Train the run's model to its last step, from the newest checkpoint.

    Args:
        run: The run.
        command: Name of the command that continues it.

    Raises:
        Interrupted: after SIGINT or SIGTERM; a checkpoint was saved.
        NonFiniteError: the loss is NaN or infinite; names the step and the last good checkpoint.
        CheckpointError: a checkpoint cannot be written. Earlier ones stay.
    """
    config, ranks = run.config, Ranks()
    torch.manual_seed(config.train.seed)
    torch.use_deterministic_algorithms(config.train.deterministic)
    try:
        data, held_out = build.mapped(config.data) if config.data.mmap else build.data(config.data)
        with logged("scoresde.nets"):
            model = build.model(config, data)
        trainer = build.trainer(config, model, run.checkpoints)
        for extra in ("tensorboard", "wandb", "mlflow"):
            if getattr(config.train, extra):
                check_installed(extra)
    except ScoreSDEError:
        run.withdraw()
        raise
    with folder_lock(run.checkpoints) if ranks.first else nullcontext():
        _go_on(run, trainer, data, held_out, command)


def _go_on(run: RunFolder, trainer: Trainer, data: Data | Mapped, held_out: Data, command: str) -> None:
    """Train from the newest checkpoint, and calibrate at the end."""
    config, ranks = run.config, trainer.ranks
    if run.step is not None:
        trainer.resume()
    run.sweep()
    run.rewind_log(trainer.step - trainer.unmeasured)
    if not trainer.unmeasured and (trainer.finished or trainer.out_of_patience):
        say(f"Nothing to do: already trained for {trainer.step} steps.")
        return
    say(f"{data.name}: {len(data)} items {data.shape} to train on, {len(held_out)} held out")
    say(f"  {described(data)}")
    weights, devices = _say_start(trainer)

    before = run.meta["stages"].get("train", {}).get("seconds", 0.0)
    begun = time.monotonic() - before
    with ExitStack() as stack:
        signals = stack.enter_context(on_signals(trainer.stop))
        minutes = config.train.minutes
        work = ("training", config.train.steps) if minutes is None else ("training, seconds", round(60 * minutes))
        stack.enter_context(logged("scoresde.training"))
        update = stack.enter_context(progress(*work, _done(trainer)))
        stack.enter_context(run.stage("train", since=before, weights=weights, device=devices))
        loggers, line = _loggers(run, trainer, stack) if ranks.first else [], ""
        trainer.every(1, lambda trainer: update(_done(trainer), line))  # slow steps are seen long before a record
        if config.train.sample_every is not None:
            trainer.every(config.train.sample_every, lambda trainer: _show_samples(run, trainer, held_out, loggers))
        try:
            for record in trainer.records(data, held_out):
                run.log({**dataclasses.asdict(record), "seconds": round(time.monotonic() - begun, 2)})
                for logger in loggers:
                    logger(record)
                line = _line(record)
                update(_done(trainer), line)
                _say_skipped(record)
                if signals:
                    trainer.stop()
        except NonFiniteError as error:
            kept = "there is no checkpoint yet" if run.step is None else f"the last good checkpoint is step {run.step}"
            raise NonFiniteError(f"{error}; {kept}; a smaller train.lr may help") from error
    if trainer.out_of_patience:
        say(f"Stopped at step {trainer.step}: {trainer.waited} checkpoints without a better held-out loss.")
    elif signals or not trainer.finished:  # a signal to this process, or to another
        raise Interrupted(signals[0] if signals else signal.SIGTERM, resume_command(run, command))
    calibrate_run(run, config, ranks)


def _done(trainer: Trainer) -> int:
    """Return the steps done, or the seconds if time limits the training."""
    return trainer.step if trainer.config.minutes is None else int(trainer.seconds_trained)


def _say_start(trainer: Trainer) -> tuple[int, str]:
    """Say what is trained; return the number of weights and the devices."""
    model, ranks = trainer.model, trainer.ranks
    weights = sum(p.numel() for p in model.parameters())
    devices = f"{trainer.device}" if ranks.world == 1 else f"{ranks.world} processes ({trainer.device.type})"
    say(f"{model.sde}, {type(model.net).__name__} with {weights:,} weights, on {devices}")
    if isinstance(model.net, UNet):
        net: dict[str, Any] = model.config["net"]
        say(f"  {net['channels']} channels times {net['multipliers']} from fine to coarse; net.options changes it")
    if trainer.step:
        say(f"Continuing from step {trainer.step}.")
    return weights, devices


def _say_skipped(record: Record) -> None:
    """Say which steps were skipped, and where."""
    for skip in record.skipped:
        where = "" if skip.t is None else f" at t = {skip.t:.4g} (log-SNR {skip.log_snr:.3g})"
        say(f"Step {skip.step} skipped: loss or gradient NaN or infinite{where}.")


def _line(record: Record) -> str:
    held_out = "" if record.held_out is None else f"  held out {record.held_out:.4f}"
    left = duration(record.seconds_left)
    return f"loss {record.loss:.4f}{held_out}  {record.steps_per_second:.1f} steps/s  {left} left"


def _loggers(run: RunFolder, trainer: Trainer, stack: ExitStack) -> list[Logger]:
    """Return the loggers that the run's settings name, and the CSV file."""
    from scoresde.training.loggers import CSVLog, MLflow, TensorBoard, WandB

    config, loggers = run.config.train, cast("list[Logger]", [])
    loggers.append(CSVLog(run.path / "log.csv", trainer.step - trainer.unmeasured))
    if config.tensorboard:
        loggers.append(stack.enter_context(TensorBoard(run.path / "tensorboard")))
    if config.wandb:
        mark, settings = run.meta.setdefault("wandb", uuid.uuid4().hex[:8]), dataclasses.asdict(run.config)
        known = {"name": run.path.name, "config": settings, "dir": str(run.path), "id": mark, "resume": "allow"}
        loggers.append(stack.enter_context(WandB(**known)))
    if config.mlflow:
        mark = run.meta.get("mlflow")
        known = {"run_name": run.path.name} if mark is None else {"run_id": mark}
        logger = MLflow(dataclasses.asdict(run.config.train), **known)
        run.meta["mlflow"] = logger.run_id
        loggers.append(stack.enter_context(logger))
    run.save_meta()
    return loggers


def _show_samples(run: RunFolder, trainer: Trainer, data: Data, loggers: list[Logger]) -> None:
    """Draw a picture of samples of the averaged model, from the same noise."""
    from scoresde.app.drawing import picture_of

    model = trainer.averaged_model()
    n = POINTS if data.shape == (2,) else GRID
    labels = build.labels(SampleConfig(n=n), model, n)
    generator = torch.Generator().manual_seed(run.config.sample.seed)
    x = sample(
        model, (n, *data.shape), DPMSolver(), GRID_STEPS, cond=build.cond(model, labels), generator=generator
    ).cpu()
    picture = picture_of(data, x)
    if picture is not None:
        run.picture(f"training/step-{trainer.step:09d}", picture)
    for logger in loggers if data.is_image else ():
        logger.images("samples", data.to_image(x), trainer.step)
