"""The trainer: batches, objective, optimiser, moving averages, records and checkpoints, on one device or many."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.data import Data, Dequantization, Mapped
from scoresde.data.batches import BatchStream, stream_batches
from scoresde.data.reader import Reader
from scoresde.errors import ArgumentError, CheckpointError, NonFiniteError
from scoresde.models import ScoreModel
from scoresde.models.conditions import Condition
from scoresde.random import ShardedGenerator, rand
from scoresde.sde import SDE
from scoresde.sde.grids import time_range
from scoresde.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint, sweep
from scoresde.training.config import TrainerConfig, check_half_lives
from scoresde.training.distributed import Agreement, Ranks
from scoresde.training.ema import EMA
from scoresde.training.muon import Muon, hidden_weights
from scoresde.training.objectives import DenoisingScoreMatching, Objective, Terms
from scoresde.training.precision import training_view

LEVELS = 8  # bins of log-SNR in a record
SKIPS = 100  # bad steps in a row that end a run which skips them
HELD_OUT_ITEMS = 2048  # used to tell which checkpoint is best


class Skip(NamedTuple):
    """A step whose update was left out, and the noise level of the first loss that was not finite.

    ``t`` and ``log_snr`` are None where all losses were finite and only the gradient overflowed.
    """

    step: int
    t: float | None
    log_snr: float | None


@dataclass(frozen=True)
class Record:
    """What is known after some steps; times in seconds.

    Attributes:
        step, steps: how many are done, of how many (with ``minutes`` an estimate).
        loss: the mean over the steps since the last record, per entry of the data.
        grad_norm: the mean norm of the gradient before clipping.
        lr: the learning rate.
        steps_per_second, seconds_left: over the steps since the last record.
        by_level: pairs (log-SNR, loss): the loss per entry near that noise level, at equal distances in log-SNR; levels
            at which nothing was drawn are left out.
        skipped: the steps left out since the last record.
        held_out: the loss of the averaged model on held-out data at the newest checkpoint, with the same times and
            noise each time; None without such data.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    steps_per_second: float
    seconds_left: float
    by_level: tuple[tuple[float, float], ...] = ()
    skipped: tuple[Skip, ...] = ()
    held_out: float | None = None


def pick_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA if there is one, else MPS, else the CPU.

    Raises:
        ArgumentError: the device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise ArgumentError("device", repr(name), f"one that is there: {', '.join(k for k, v in there.items() if v)}")
    return torch.device(name)


class _Loss(nn.Module):
    """The objective as a module: what DistributedDataParallel wraps, however often the objective calls the network."""

    def __init__(self, model: ScoreModel, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x0: Tensor, cond: Condition, generator: torch.Generator) -> Terms:
        return self.objective.terms(self.model, x0, cond, generator)


class _Tally:
    """Losses, times and gradient norms of the steps since the last record; on the device until they are asked for."""

    def __init__(self):
        self.new: list[tuple[int, list[Terms], Tensor]] = []
        self.rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.skipped: list[Skip] = []

    def add(self, entries: int, terms: list[Terms], norm: Tensor) -> None:
        """What a step on items of so many entries found, in pieces."""
        self.new.append((entries, terms, norm))

    def collect(self, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        """Move what is new to the host: losses per entry and times ``(steps, B)``, norms ``(steps,)``."""
        pieces = [piece for _, terms, _ in self.new for piece in terms]
        columns = torch.stack([torch.cat([piece[i] for piece in pieces]).cpu().double() for i in range(3)])
        columns = columns.reshape(3, len(self.new), -1)
        norms = torch.stack([norm for *_, norm in self.new]).cpu().double()
        loss, t, value = torch.cat(ranks.gather(columns, dim=2), dim=2)
        entries = torch.tensor([entries for entries, *_ in self.new])[:, None]
        self.new = []
        self.rows.append((loss / entries, t, value / entries, norms))
        return loss / entries, t, norms

    def totals(self, sde: SDE) -> dict[str, Any]:
        """The record's ``loss``, ``grad_norm``, ``by_level`` and ``skipped``, over the steps that were good."""
        loss, t, value, norms = map(torch.cat, zip(*self.rows, strict=True))
        good = loss.isfinite().all(1) & norms.isfinite()
        low, high = sde.log_snr(torch.tensor(time_range(sde), dtype=torch.float64)).flip(0).tolist()
        place = (sde.log_snr(t[good].flatten()) - low) * (LEVELS / (high - low))
        bins = place.clamp(0, LEVELS - 1).long()
        count = torch.bincount(bins, minlength=LEVELS)
        mean = torch.bincount(bins, value[good].flatten(), LEVELS) / count
        centres = low + (torch.arange(LEVELS) + 0.5) * ((high - low) / LEVELS)
        by_level = [(round(c, 3), m) for c, m, n in zip(*map(Tensor.tolist, (centres, mean, count)), strict=True) if n]
        return {
            "loss": loss[good].mean().item(),
            "grad_norm": norms[good].mean().item(),
            "by_level": tuple(by_level),
            "skipped": tuple(self.skipped),
        }


class Trainer:
    """Trains a score model on data.

    On several devices (see :mod:`scoresde.training.distributed`) each process makes its own Trainer and calls
    :meth:`fit`; batches, times and noise are those of one process, divided among them, and rank 0 alone writes.

    Args:
        model: the model; its network is trained in place.
        objective: the loss; default: denoising score matching.
        config: settings.
        folder: where checkpoints go, as ``folder/step-N``; None writes none.
        dequantization: the law of the noise that integer data get, uniform by default.

    Attributes:
        step, seconds_trained: optimiser steps done, and the time spent in them.
        ema: the averaged weights; :meth:`averaged_model` puts them to use.
        ranks: this process among those of the run.
        timer: what measures that time, in seconds; a subclass may count the processor's instead.
    """

    timer = staticmethod(time.perf_counter)

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective | None = None,
        config: TrainerConfig | None = None,
        folder: str | Path | None = None,
        dequantization: Dequantization | None = None,
    ):
        self.config = config = TrainerConfig() if config is None else config
        self.objective = DenoisingScoreMatching() if objective is None else objective
        self.ranks = Ranks()
        if config.batch_size < self.ranks.world * config.accumulate:
            pieces = self.ranks.world * config.accumulate
            raise ArgumentError("batch_size", config.batch_size, f"at least {pieces}: processes x accumulate")
        self.device = pick_device(config.device)
        self.model = model.to(self.device)
        if config.channels_last:
            self.model.net.to(memory_format=torch.channels_last)
        self.folder, self.dequantization = None if folder is None else Path(folder), dequantization
        self.step, self.seconds_trained = 0, 0.0
        self.held_out: float | None = None
        kernels = hidden_weights(model) if config.optimizer == "muon" else []
        chosen = set(kernels)
        others = [p for p in model.parameters() if p.requires_grad and p not in chosen]
        self.parameters = [*others, *kernels]
        view = training_view(model, self.device, config.precision, config.compile, config.channels_last)
        self._loss: nn.Module = _Loss(view, self.objective)
        if self.ranks.world > 1:
            self._loss = nn.parallel.DistributedDataParallel(self._loss, gradient_as_bucket_view=True)
        lives = (
            check_half_lives(config.ema_half_life) if config.minutes is not None else config.half_lives(config.steps)
        )
        self.ema = EMA(model.net, lives)
        self._fused = self.device.type in ("cpu", "cuda")
        adam = torch.optim.Adam(
            others, lr=config.lr, betas=config.betas, **{"fused" if self._fused else "foreach": True}
        )
        self.optimizers = [adam, Muon(kernels, config.lr)] if kernels else [adam]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.generator = ShardedGenerator(self.device if self._fused else "cpu")
        self.generator.manual_seed(config.seed)
        self.batch_generator = torch.Generator().manual_seed(config.seed + 1)
        if self.ranks.rank:  # what the network draws itself, such as dropout, differs between processes
            torch.manual_seed(config.seed + self.ranks.rank)
        self._hooks: list[tuple[int, Callable[[Trainer], None]]] = []
        self._batches: BatchStream | None = None
        self._stream_state: dict[str, Any] | None = None
        self._bad_steps = 0
        self._stop = False

    # ---- training --------------------------------------------------------------------------------------------------

    def fit(self, data, callback: Callable[[Record], None] | None = None, held_out: Data | None = None) -> list[Record]:
        """Train to the last step, or until :meth:`stop`; the records, one every ``log_every`` steps.

        Called again it goes on where it ended.

        Args:
            data: a :class:`Data`, a :class:`Mapped` array, any map-style dataset or iterable of items: tensors, arrays
                or pictures x, pairs (x, label), or mappings with "x" or "image" and perhaps "label". Floats are taken
                to be in the model's space; integers get its scaling (8-bit ones one of their own, if it has none).
            callback: called with each record.
            held_out: data by which checkpoints are compared; the best is kept.

        Raises:
            NonFiniteError: the loss turned NaN or infinite; names the step and the noise level. Checkpoints before it
                stay.
            CheckpointError: a checkpoint cannot be written; those before it stay, and training can go on.
            LostRankError: another process of the run has ended.
        """
        records = []
        for record in self.records(data, held_out):
            records.append(record)
            if callback is not None:
                callback(record)
        return records

    def records(self, data, held_out: Data | None = None) -> Iterator[Record]:
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
            pin=self.device.type == "cuda",
        )
        if held_out is not None and not isinstance(held_out, (Data, Mapped)):
            raise ArgumentError("held_out", type(held_out).__name__, "Data, such as load_data or from_dataset give")
        if self._stream_state is not None:
            batches.load_state_dict(self._stream_state)
        if self.folder is not None and self.ranks.first:
            sweep(self.folder)
        self._batches, self._stop = batches, False
        self._loss.train()
        self.model.train()
        try:
            with self.ranks.watched():
                yield from self._train(held_out)
        finally:
            self._stream_state, self._batches = batches.state_dict(), None
            self.model.eval()

    def every(self, steps: int, hook: Callable[[Trainer], None]) -> Trainer:
        """Call ``hook(trainer)`` after every ``steps`` steps, on rank 0; returns the trainer.

        A hook may look at everything, draw samples with :meth:`averaged_model` or call :meth:`stop`; torch's own random
        generators are put back afterwards, so that it does not change the training.
        """
        if not isinstance(steps, int) or steps < 1:
            raise ArgumentError("steps", steps, "a whole number of steps, 1 or more")
        self._hooks.append((steps, hook))
        return self

    def _train(self, held_out: Data | None) -> Iterator[Record]:
        config, tally, spent = self.config, _Tally(), self.seconds_trained
        agreement = Agreement(self.ranks, spent)
        at_once = self.device.type == "cpu" and not self.scaler.is_enabled()  # elsewhere, asking waits for the device
        logged_at, since, saved = time.perf_counter(), self.step, self.step
        while not self.finished:
            stopping, self.seconds_trained = agreement.ask(self._stop, spent)
            if stopping or self.finished:
                break
            begun, lr = self.timer(), self.learning_rate(self.step)
            tally.add(*self._one_step(next(self._batches), lr))
            norm = tally.new[-1][-1]
            self.step += 1
            spent += self.timer() - begun
            if self.ranks.world == 1:
                self.seconds_trained = spent
            last = self.finished
            log = last or self.step % config.log_every == 0
            due = self.folder is not None and (last or self.step % config.checkpoint_every == 0)
            if due or log or (at_once and not math.isfinite(norm)):
                self._check(tally)
            if due:
                self._measure(held_out)
            if log:
                rate = (self.step - since) / (time.perf_counter() - logged_at)
                steps = config.steps if config.minutes is None else max(self.step, self._steps_that_fit())
                left = (steps - self.step) / rate
                totals = tally.totals(self.model.sde)
                yield Record(
                    self.step,
                    steps,
                    lr=lr,
                    steps_per_second=rate,
                    seconds_left=left,
                    held_out=self.held_out,
                    **totals,
                )
                tally, logged_at, since = _Tally(), time.perf_counter(), self.step
            if due:
                self.save()
                saved = self.step
            self._call_hooks()
        agreement.close()
        if tally.new:
            self._check(tally)
        if self.folder is not None and saved != self.step:
            self._measure(held_out)
            self.save()

    def _one_step(self, batch: dict[str, Tensor], lr: float) -> tuple[int, list[Terms], Tensor]:
        """One optimiser step; the entries of an item, the losses of its pieces and the gradient's norm."""
        config, generator, ranks = self.config, self.generator, self.ranks
        x0 = batch["x"].to(self.device, non_blocking=True)
        y = self._labels(batch) if config.conditional else None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
        pieces, found = config.accumulate, []
        state = generator.get_state() if pieces > 1 else None
        entries = x0[0].numel()
        scale = ranks.world / (config.batch_size * entries)  # the processes' gradients are averaged
        for k in range(pieces):
            if k:
                generator.set_state(state)
            generator.of(ranks.rank + ranks.world * k, ranks.world * pieces, config.batch_size)
            with self._loss.no_sync() if ranks.world > 1 and k < pieces - 1 else nullcontext():
                terms = self._loss(x0[k::pieces], None if y is None else {"y": y[k::pieces]}, generator)
                self.scaler.scale(terms.loss.sum() * scale).backward()
            found.append(Terms(terms.loss.detach(), terms.t, terms.value))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if config.clip is None else config.clip)
        self._update(norm)
        self._update_averages()
        return entries, found, norm

    def _labels(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's labels, some of them dropped."""
        if "label" not in batch:
            raise ArgumentError("conditional", True, "False: the data have no labels")
        y = batch["label"].to(self.device, non_blocking=True)
        if self.config.label_dropout:
            self.generator.of(self.ranks.rank, self.ranks.world, self.config.batch_size)
            y = torch.where(rand(y.shape, self.generator, self.device) < self.config.label_dropout, -1, y)
        return y

    def _update(self, norm: Tensor) -> None:
        """The optimiser's step, left out where it would bring in NaN and the settings say so."""
        if self.config.on_nan == "skip" and not self.scaler.is_enabled():
            if not self._fused and not norm.isfinite():
                return
            bad = (~norm.isfinite()).float()
            for optimizer in self.optimizers if self._fused else ():
                optimizer.found_inf = bad  # the fused kernel looks, without a host sync
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)  # step() where it is not enabled
        self.scaler.update()

    def _update_averages(self) -> None:
        if self.config.minutes is not None and self.seconds_trained:
            self.ema.half_lives = self.config.half_lives(self._steps_that_fit())
        self.ema.update()

    def _check(self, tally: _Tally) -> None:
        """Look for steps that were bad: note them as skipped, or raise the error that they are.

        With float16 an overflow of the gradient alone is no error: the scaler leaves the step out and scales down.
        """
        first = self.step - len(tally.new) + 1
        loss, t, norms = tally.collect(self.ranks)
        bad_loss = ~loss.isfinite()
        stopping = self.config.on_nan == "stop"
        for i, bad in enumerate((bad_loss.any(1) | ~norms.isfinite()).tolist()):
            if not bad:
                self._bad_steps = 0
                continue
            self._bad_steps += 1
            skip = Skip(first + i, None, None)
            if bad_loss[i].any():
                t_bad = t[i, bad_loss[i]][0]
                skip = Skip(first + i, t_bad.item(), self.model.sde.log_snr(t_bad).item())
            if self._bad_steps >= SKIPS or (stopping and not (skip.t is None and self.scaler.is_enabled())):
                what = "loss is NaN or infinite" if skip.t is not None else "gradient is NaN or infinite"
                where = "" if skip.t is None else f", at noise level t = {skip.t:.4g} (log-SNR {skip.log_snr:.3g})"
                often = "" if stopping else f", the last of {self._bad_steps} in a row"
                kept = "" if self.folder is None else f"; the checkpoints in {self.folder} are from before"
                raise NonFiniteError(f"the {what} at step {skip.step}{where}{often}{kept}")
            tally.skipped.append(skip)

    def _measure(self, held_out: Data | None) -> None:
        """The loss of the averaged model on held-out data, per entry, with the same times and noise each time."""
        if held_out is None or not self.ranks.first:
            return
        model, objective = self.averaged_model(), copy.deepcopy(self.objective)
        generator = torch.Generator(self.generator.device).manual_seed(self.config.seed + 2)
        reader, size = Reader(held_out, dequantization=self.dequantization), self.config.batch_size
        losses = []
        for rows in torch.arange(min(len(held_out), HELD_OUT_ITEMS)).split(size):
            batch = {key: value.to(self.device) for key, value in reader(rows, int(rows[0])).items()}
            cond = {"y": batch["label"]} if self.config.conditional else None
            losses.append(objective(model, batch["x"], cond, generator).detach() / batch["x"][0].numel())
        self.held_out = torch.cat(losses).double().mean().item()

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

    def _steps_that_fit(self) -> int:
        """Steps in ``minutes`` at the mean speed so far; ``steps`` before any is known."""
        if not self.seconds_trained:
            return self.config.steps
        return max(1, round(60 * self.config.minutes * self.step / self.seconds_trained))

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step counted from 0: linear warm-up, then constant or falling to 0.

        It falls with the steps after the warm-up, or with the time where the training is given ``minutes``.
        """
        config = self.config
        rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
        if config.minutes is None:
            past = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        else:
            past = self.seconds_trained / (60 * config.minutes)
        past = min(1.0, past)
        if config.lr_decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * past))
        elif config.lr_decay == "linear":
            rate *= 1 - past
        return rate

    def stop(self) -> None:
        """Finish the step at hand (with several processes, one more), save a checkpoint and return from :meth:`fit`.

        A signal handler may call it, see :func:`scoresde.training.signals.on_signals`.
        """
        self._stop = True

    def averaged_model(self, name: str | None = None) -> ScoreModel:
        """A copy of the model with averaged weights, in evaluation mode; ``name`` is that of the average.

        Raises:
            UnknownNameError: there is no such average.
        """
        state = self.ema.state_dict(name)
        averaged = copy.deepcopy(self.model)
        averaged.net.load_state_dict(state)
        return averaged.eval().requires_grad_(False)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of everything that decides what comes next; returns its folder.

        Of several processes each calls it, and rank 0 writes.
        """
        if self.folder is None:
            raise ArgumentError("folder", None, "a trainer with a folder for its checkpoints")
        tensors = {f"net.{name}": value for name, value in self.model.net.state_dict().items()}
        for name in self.ema.names[1:]:
            tensors |= {f"ema.{name}.{key}": value for key, value in self.ema.average(name).items()}
        for i, p in enumerate(self.parameters):
            for optimizer in self.optimizers:
                state = optimizer.state.get(p, {})
                tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        tensors["rng.generator"] = self.generator.get_state()
        for kind, state in self._rng_states().items():
            tensors |= {f"rng.{kind}{i}": part[0] for i, part in enumerate(self.ranks.gather(state[None]))}
        stream = self._batches.state_dict() if self._batches is not None else self._stream_state or {}
        tensors |= {f"batches.{name}": torch.as_tensor(value) for name, value in stream.items()}
        info = {
            "ema": {"updates": self.ema.updates, "half_lives": self.ema.half_lives},
            "scaler": self.scaler.state_dict(),
            "held_out": self.held_out,
            "seconds": self.seconds_trained,
            "config": asdict(self.config),
        }
        folder = self.folder / f"step-{self.step:09d}"
        if self.ranks.first:
            save_checkpoint(self.folder, self.step, self.model, self.ema.state_dict(), tensors, info, self.config.keep)
        return folder

    def _rng_states(self) -> dict[str, Tensor]:
        """The states of torch's own generators, from which networks draw (dropout)."""
        states = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def resume(self, checkpoint: str | Path | None = None) -> int:
        """Take up the training where a checkpoint left it (default: the newest in ``folder``); returns its step.

        The steps that follow are, on a CPU, bit for bit those of a run that was never interrupted. The number of
        processes may be another one; their dropout, where there is any, is then drawn afresh.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another network.
        """
        if checkpoint is None and self.folder is None:
            raise ArgumentError("checkpoint", None, "a checkpoint's folder: the trainer has none of its own")
        if checkpoint is None and self.ranks.first:
            sweep(self.folder)
        folder = latest_checkpoint(self.folder) if checkpoint is None else Path(checkpoint)
        tensors, info = load_checkpoint(folder)
        first = ScoreModel.from_pretrained(folder).net.state_dict()
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
        try:
            self.model.net.load_state_dict(parts["net"])
            averages = {self.ema.names[0]: first}
            for key, value in parts.get("ema", {}).items():
                name, _, key = key.partition(".")
                averages.setdefault(name, {})[key] = value
            self.ema.load(averages, info["ema"]["updates"])
            if info["config"]["optimizer"] != self.config.optimizer:
                raise ValueError(f"of the optimizer {info['config']['optimizer']!r}, not {self.config.optimizer!r}")
            self._load_optimizers(parts.get("optimizer", {}))
            self.scaler.load_state_dict(info["scaler"])
            self.objective.load_state_dict(parts.get("objective", {}))
            rng, rank = parts["rng"], self.ranks.rank
            self.generator.set_state(rng["generator"])
            if f"torch{rank}" in rng:
                torch.set_rng_state(rng[f"torch{rank}"])
            if f"cuda{rank}" in rng and self.device.type == "cuda":
                torch.cuda.set_rng_state(rng[f"cuda{rank}"], self.device)
            self._stream_state, self._batches = parts["batches"], None
            self.held_out, self.step, self.seconds_trained = info["held_out"], info["step"], info["seconds"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError("checkpoint", f"{folder} ({error})", "a checkpoint of this model") from error
        return self.step

    def _load_optimizers(self, saved: Mapping[str, Tensor]) -> None:
        state: dict[nn.Parameter, dict[str, Tensor]] = {}
        for key, value in saved.items():
            i, _, name = key.partition(".")
            p = self.parameters[int(i)]
            like = value.shape == p.shape
            state.setdefault(p, {})[name] = torch.empty_like(p).copy_(value) if like else value  # p's own strides
        for optimizer in self.optimizers:
            mine = [p for group in optimizer.param_groups for p in group["params"]]
            found = {i: state[p] for i, p in enumerate(mine) if p in state}
            optimizer.load_state_dict(optimizer.state_dict() | {"state": found})
