"""The trainer, on one device or several."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.data import Augmented, Data, Dequantization, Mapped
from scoresde.data.batches import BatchStream, stream_batches
from scoresde.data.foreign import MapStyle
from scoresde.errors import ArgumentError, CheckpointError, DataError
from scoresde.models import ScoreModel
from scoresde.training.checkpoints import (
    amend_checkpoint,
    load_checkpoint,
    load_newest,
    prune,
    save_checkpoint,
    sweep,
)
from scoresde.training.compatibility import check_same, check_saved, check_scale, own_net
from scoresde.training.config import TrainerConfig
from scoresde.training.distributed import Agreement
from scoresde.training.folder_lock import folder_lock
from scoresde.training.held_out import held_out_loss
from scoresde.training.objectives import Objective
from scoresde.training.optimizer_steps import OptimizerSteps
from scoresde.training.optimizers import OptimizerFactory, SchedulerFactory
from scoresde.training.post_hoc import rewind
from scoresde.training.precision import training_view
from scoresde.training.records import NaNWatch, Record, StepResult, Tally, record_of
from scoresde.training.state import (
    averages_of,
    in_wrappers,
    load_optimizers,
    load_random_state,
    optimizer_state,
    parts_of,
    random_state,
    stream_state,
    weights_state,
)


@dataclass
class _Loop:
    """What one call of :meth:`Trainer.fit` keeps between its steps.

    Attributes:
        agreement: what the processes agree on at each step.
        seconds: time that this process has spent in steps, those of earlier calls included.
        logged_at, logged_step: time and step of the last record.
        saved_step: step of the last checkpoint.
        tally: results of the steps since the last record.
    """

    agreement: Agreement
    seconds: float
    logged_at: float
    logged_step: int
    saved_step: int
    tally: Tally = field(default_factory=Tally)


@checked
class Trainer(OptimizerSteps):
    """Train a score model on data.

    On several devices (see :mod:`scoresde.training.distributed`) each process makes its own Trainer and calls
    :meth:`fit`. Batches, times and noise are those of one process, divided among all, and rank 0 alone writes.

    Args:
        model: model whose network is trained in place.
        objective: loss. None: denoising score matching.
        config: settings. None: :class:`TrainerConfig` with its defaults.
        folder: where checkpoints go, as ``folder/step-N``. None: no checkpoints.
        dequantization: noise in the bins of integer data. None: uniform.
        optimizer: function of the list of parameters that returns their optimiser, such as
            ``functools.partial(torch.optim.RAdam, lr=1e-3)``. None: that of ``config``. Each group's learning rate is
            its own, times the warm-up and decay of ``config``.
        scheduler: function of the optimiser that returns its ``torch.optim.lr_scheduler``, which takes a step after
            each step and replaces warm-up and decay. None: those of ``config``.

    Raises:
        ArgumentError: ``folder`` for a model that cannot be saved, as its network is not registered.

    Attributes:
        step, seconds_trained: optimiser steps done, and the time spent in them.
        held_out: held-out loss at the last checkpoint. None: not measured.
        best, waited: least held-out loss, and the checkpoints since it.
        unmeasured: whether the last checkpoint still lacks its held-out loss, as after a kill.
        precision: precision of the network; with ``precision="auto"`` the first step chooses it, by time.
        ema: the averaged weights; :meth:`averaged_model` returns a model with them.
        ranks: this process among those of the run.
        timer: function that measures that time, in seconds; a subclass may count the processor's time instead.
    """

    timer: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective | None = None,
        config: TrainerConfig | None = None,
        folder: str | Path | None = None,
        dequantization: Dequantization | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ):
        super().__init__(model, objective, config, optimizer, scheduler)
        if folder is not None:
            check_saved(model)
        elif self.config.snapshot_every is not None:
            raise ArgumentError("snapshot_every", self.config.snapshot_every, "None without a folder")
        self.folder, self.dequantization = None if folder is None else Path(folder), dequantization
        self.batch_generator = torch.Generator().manual_seed(self.config.seed + 1)
        self.held_out: float | None = None
        self.best, self.waited = math.inf, 0
        self.unmeasured, self._pending = False, cast("Record | None", None)
        self._hooks: list[tuple[int, Callable[[Trainer], object]]] = []
        self._batches: BatchStream | None = None
        self._stream_state: dict[str, Any] | None = None
        self._watch = NaNWatch(model.sde, self.config.on_nan == "stop", self.scaler.is_enabled(), self.folder)
        self._stop = False

    # ---- training --------------------------------------------------------------------------------------------------

    @checked
    def fit(
        self,
        data: MapStyle | Iterable[Any],
        callback: Callable[[Record], object] | None = None,
        held_out: Data | Mapped | None = None,
    ) -> list[Record]:
        """Train to the last step, or until :meth:`stop`.

        A second call continues the training.

        Args:
            data: a :class:`Data`, a :class:`Mapped` array, or any map-style dataset or iterable of items. Items are
                tensors, arrays or pictures x, pairs (x, label), or mappings with "x" or "image" and perhaps "label".
                Floats are taken as model units; integers get the model's scaling (8-bit ones their own, if it has
                none).
            callback: function called with each record.
            held_out: data that compare checkpoints; the best one is kept.

        Returns:
            The records, one every ``log_every`` steps.

        Raises:
            NonFiniteError: the loss is NaN or infinite; names the step and the noise level. Earlier checkpoints stay.
            CheckpointError: a checkpoint cannot be written. Earlier ones stay, and the training can be continued.
            DataError: the data, or the held-out ones, have another scale than the model.
            RunFolderError: another process trains in the folder.
            LostRankError: another process of the run has ended.
        """
        records = []
        for record in self.records(data, held_out):
            records.append(record)
            if callback is not None:
                callback(record)
        return records

    def records(self, data: MapStyle | Iterable[Any], held_out: Data | Mapped | None = None) -> Iterator[Record]:
        """Train as :meth:`fit` does, and yield each record when it is made."""
        batches = stream_batches(
            data,
            self.config.batch_size,
            self.batch_generator,
            workers=self.config.workers,
            share=(self.ranks.rank, self.ranks.world),
            dequantization=self.dequantization,
            scaling=self.model.scaling,
            flip=self.config.flip,
            conditions=tuple(self.config.conditions or ()),
            pin=self.device.type == "cuda",
        )
        # 1. what does not fit
        if held_out is not None and not isinstance(held_out, (Data, Mapped)):
            raise ArgumentError("held_out", type(held_out).__name__, "Data, as load_data and from_dataset return")
        if self.config.patience is not None and held_out is None:
            raise ArgumentError("patience", self.config.patience, "None without held-out data")
        if self.config.conditions and held_out is not None:
            raise ArgumentError("held_out", type(held_out).__name__, "None with `conditions`, which Data cannot hold")
        if self.config.conditional and held_out is not None and held_out.labels is None:
            raise DataError("held_out", "data without labels", "labelled, as the training is conditional")
        for name, given in (("data", data), ("held_out", held_out)):
            one = given.data if isinstance(given, Augmented) else given
            if isinstance(one, (Data, Mapped)) and self.model.scaling is not None:
                check_scale(name, one, self.model)
        if self._stream_state is not None:
            batches.load_state_dict(self._stream_state)
        # 2. the steps, in a folder that is this run's alone
        with ExitStack() as stack:
            if self.folder is not None and self.ranks.first:
                stack.enter_context(folder_lock(self.folder))
                sweep(self.folder)
            self._batches, self._stop = batches, False
            stack.callback(self._leave, batches)
            self._loss.train()
            self.model.train()
            stack.enter_context(self.ranks.watched())
            yield from self._train(batches, held_out)

    def _leave(self, batches: BatchStream) -> None:
        """Keep the place in the data, and put the model in evaluation mode."""
        self._stream_state, self._batches = batches.state_dict(), None
        self.model.eval()

    @checked
    def every(self, steps: int, hook: Callable[[Trainer], object]) -> Trainer:
        """Call ``hook(trainer)`` after every ``steps`` steps, on rank 0.

        The method returns the trainer. A hook may read everything, draw samples with :meth:`averaged_model`, or call
        :meth:`stop`. Torch's own random generators are restored after it, so that hooks do not change the training.
        """
        self._hooks.append((whole("steps", steps), hook))
        return self

    def _train(self, batches: BatchStream, held_out: Data | Mapped | None) -> Iterator[Record]:
        loop = _Loop(
            Agreement(self.ranks, self.seconds_trained), self.seconds_trained, time.perf_counter(), self.step, self.step
        )
        if self.unmeasured and held_out is not None:
            yield from self._measure(held_out)
        while not self.finished:
            # 1. stop here if any process wants to
            stopping, self.seconds_trained = loop.agreement.ask(self._stop, loop.seconds)
            if stopping or self.finished:
                break
            # 2. one optimiser step
            norm = self._timed_step(batches, loop)
            # 3. what is due after it: the check for NaN, a record, a checkpoint, hooks
            last = self.finished
            log = last or self.step % self.config.log_every == 0
            save = self.folder is not None and (last or self.step % self.config.checkpoint_every == 0)
            if save or log or (self._reads_cheaply and not math.isfinite(norm)):
                self._check(loop.tally)
            record = self._record(loop) if log else None
            if log:
                loop.tally, loop.logged_at, loop.logged_step = Tally(), time.perf_counter(), self.step
            if save:
                yield from self._save_and_measure(record, held_out)
                loop.saved_step = self.step
            elif record is not None:
                yield record
            self._snapshot()
            self._call_hooks()
        # 4. after a stop, the steps since the last record and checkpoint
        loop.agreement.close()
        if loop.tally.new:
            self._check(loop.tally)
        if self.folder is not None and loop.saved_step != self.step:
            yield from self._save_and_measure(None, held_out)

    @property
    def _reads_cheaply(self) -> bool:
        """Whether reading a step's norm is cheap, and NaN in it an error."""
        return self.device.type == "cpu" and not self.scaler.is_enabled()

    def _timed_step(self, batches: BatchStream, loop: _Loop) -> Tensor:
        """Do the next step, tally it, add its time; return the gradient's norm."""
        begun, lr = self.timer(), self.learning_rate(self.step)
        result = StepResult(*self._one_step(next(batches), lr))
        loop.tally.new.append(result)
        self.step += 1
        loop.seconds += self.timer() - begun
        if self.ranks.world == 1:
            self.seconds_trained = loop.seconds
        return result.norm

    def _record(self, loop: _Loop) -> Record:
        """Return the record of the steps since the last one."""
        rate = (self.step - loop.logged_step) / (time.perf_counter() - loop.logged_at)
        steps = self.config.steps if self.config.minutes is None else max(self.step, self._steps_that_fit())
        return Record(
            self.step,
            steps,
            lr=self.optimizers[0].param_groups[0]["lr"],
            steps_per_second=rate,
            seconds_left=(steps - self.step) / rate,
            held_out=self.held_out,
            **loop.tally.totals(self.model.sde)._asdict(),
        )

    def _check(self, tally: Tally) -> None:
        """Collect the new results of the tally, and look for bad steps."""
        first = self.step - len(tally.new) + 1
        tally.skipped += self._watch.look(first, *tally.collect(self.ranks))

    def _save_and_measure(self, record: Record | None, held_out: Data | Mapped | None) -> Iterator[Record]:
        """Save a checkpoint, and measure it on held-out data; yield the record.

        The checkpoint comes first, so that measuring cannot cost it. One whose loss is not known yet holds the record,
        and a resumed training measures it.
        """
        if held_out is None:  # a run that is killed in between logs the step again
            if record is not None:
                yield record
            self.save()
            return
        self.unmeasured, self._pending = True, record
        self.save()
        yield from self._measure(held_out)

    def _measure(self, held_out: Data | Mapped) -> Iterator[Record]:
        """Measure the averaged model of the last checkpoint; yield its record.

        Times and noise are the same each time.
        """
        model = training_view(self.averaged_model(), self.device, self.precision, False, self.config.channels_last)
        generator = torch.Generator().manual_seed(self.config.seed + 2)
        loss = held_out_loss(
            model, self.objective, held_out, self.config, generator, self.dequantization, ranks=self.ranks
        )
        self.held_out = loss
        self.best, self.waited = (loss, 0) if loss < self.best else (self.best, self.waited + 1)
        if self._pending is not None:
            yield replace(self._pending, held_out=loss)
        self.unmeasured, self._pending = False, None
        if self.folder is not None and self.ranks.first:
            amend_checkpoint(self._checkpoint, self._counters())
            prune(self.folder, self.config.keep)
        if self.out_of_patience:
            self.stop()

    def _snapshot(self) -> None:
        """Write a snapshot of the power-function averages, if one is due."""
        every = self.config.snapshot_every
        if every is not None and self.ranks.first and (self.finished or self.step % every == 0):
            assert self.power is not None  # made with the setting
            assert self.folder is not None
            self.power.save(self.folder)

    def _call_hooks(self) -> None:
        due = [hook for steps, hook in self._hooks if self.step % steps == 0] if self.ranks.first else []
        if due:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                for hook in due:
                    hook(self)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the minutes are over."""
        minutes = self.config.minutes
        return self.step >= self.config.steps if minutes is None else self.seconds_trained >= 60 * minutes

    @property
    def out_of_patience(self) -> bool:
        """Whether ``patience`` checkpoints were no better."""
        return self.config.patience is not None and self.waited >= self.config.patience

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        With ``minutes`` it falls with the elapsed time.
        """
        minutes = self.config.minutes
        return self.config.learning_rate(step, None if minutes is None else self.seconds_trained / (60 * minutes))

    def stop(self) -> None:
        """Finish the current step, save a checkpoint and return from :meth:`fit`.

        Several processes do one more step. A signal handler may call it, see
        :func:`scoresde.training.signals.on_signals`.
        """
        self._stop = True

    @checked
    def averaged_model(self, name: str | None = None) -> ScoreModel:
        """Return a copy of the model with averaged weights, in evaluation mode.

        Args:
            name: name of the average. None: the first.

        Raises:
            UnknownNameError: an unknown name.
        """
        weights = self.ema.state_dict(name)
        averaged = copy.deepcopy(self.model)
        averaged.net.load_state_dict(weights)
        return averaged.eval().requires_grad_(False)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint, and return its folder.

        It has everything that determines the following steps. With several processes each must call it, and rank 0
        writes.
        """
        if self.folder is None:
            raise ArgumentError("folder", None, "a folder for checkpoints, given to the trainer")
        stream = self._batches.state_dict() if self._batches is not None else self._stream_state or {}
        tensors = weights_state(self.model.net, self.ema)
        if self.power is not None:
            tensors |= {f"power.{name}": value for name, value in self.power.tensors().items()}
        tensors |= optimizer_state(self.parameters, self.optimizers)
        tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        tensors |= random_state(self.generator, self.device, self.ranks)
        tensors |= stream_state(stream)
        info = {
            "ema": {"updates": self.ema.updates, "half_lives": self.ema.half_lives},
            "scaler": self.scaler.state_dict(),
            "optimizers": self._optimizer_names,
            "rates": self.rates.state_dict(),
            **self._counters(),
            "seconds": self.seconds_trained,
            "precision": self.precision,
            "config": asdict(self.config),
        }
        if self.ranks.first:
            save_checkpoint(self.folder, self.step, self.model, self.ema.state_dict(), tensors, info, self.config.keep)
        return self._checkpoint

    @property
    def _checkpoint(self) -> Path:
        """Folder of this step's checkpoint."""
        assert self.folder is not None  # the callers' condition
        return self.folder / f"step-{self.step:09d}"

    def _counters(self) -> dict[str, Any]:
        """Return what a checkpoint knows of the held-out losses."""
        return {
            "held_out": None if self.unmeasured else self.held_out,
            "best": None if math.isinf(self.best) else self.best,
            "waited": self.waited,
            "unmeasured": self.unmeasured,
            "record": None if self._pending is None else asdict(self._pending),
        }

    @checked
    def resume(self, checkpoint: str | Path | None = None, *, new_data: bool = False) -> int:
        """Continue from a checkpoint; return its step.

        On a CPU the following steps are, bit for bit, those of a run that was never interrupted. The number of
        processes may differ; the dropout of additional processes then starts from their own seeds.

        Args:
            checkpoint: folder of the checkpoint. None: the newest whole one in ``folder``. If newer ones are damaged, a
                :class:`~scoresde.errors.CheckpointWarning` names them.
            new_data: whether the data are others than before, such as more items. They then begin a new epoch.

        Raises:
            CheckpointError: no checkpoint, a damaged one, or one of another model; the message says what differs.
        """
        if checkpoint is not None:
            folder = Path(checkpoint)
            tensors, info = load_checkpoint(folder)
        elif self.folder is not None:
            if self.ranks.first:
                sweep(self.folder)
            folder, tensors, info = load_newest(self.folder)
        else:
            raise ArgumentError("checkpoint", None, "the folder of a checkpoint, as the trainer has no folder")
        saved = ScoreModel.from_pretrained(folder, net=own_net(self.model))
        check_same(folder, saved, self.model)
        try:
            self._load(parts_of(tensors), saved.net.state_dict(), info)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError("checkpoint", f"{folder} ({error})", "a checkpoint of this model") from error
        if new_data:
            self._stream_state = None
        if self.power is not None and self.folder is not None and self.ranks.first:
            rewind(self.folder, self.step)
        return self.step

    @property
    def _optimizer_names(self) -> list[str]:
        return [type(optimizer).__name__ for optimizer in self.optimizers]

    def _load(self, parts: dict[str, dict[str, Tensor]], first: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Load the state of a checkpoint, ``first`` being its first average."""
        net = self.model.net
        net.load_state_dict(in_wrappers(net, parts["net"]))
        averages = averages_of(self.ema, first, parts.get("ema", {}))
        self.ema.load({name: in_wrappers(net, average) for name, average in averages.items()}, info["ema"]["updates"])
        if info["optimizers"] != self._optimizer_names:
            theirs, ours = (" and ".join(names) for names in (info["optimizers"], self._optimizer_names))
            raise ValueError(f"of the optimizer {theirs}, not {ours}")
        if self.power is not None:
            self.power.load(parts["power"], info["step"])
        load_optimizers(self.parameters, self.optimizers, parts.get("optimizer", {}))
        self.scaler.load_state_dict(info["scaler"])
        self.rates.load_state_dict(info["rates"])
        if self.config.precision == "auto":
            self._set_precision(info["precision"])
        self.objective.load_state_dict(parts.get("objective", {}))
        load_random_state(self.generator, self.device, self.ranks.rank, parts["rng"])
        self._stream_state, self._batches = parts["batches"], None
        self.held_out, self.step, self.seconds_trained = info["held_out"], info["step"], info["seconds"]
        self.best, self.waited = math.inf if info["best"] is None else info["best"], info["waited"]
        self.unmeasured = info["unmeasured"]
        self._pending = None if info["record"] is None else record_of(info["record"])
