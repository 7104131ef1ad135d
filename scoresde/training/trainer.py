"""The trainer: batches, objective, optimiser, moving average, records and checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.data import Batches
from scoresde.errors import ArgumentError, CheckpointError, NonFiniteError, UnknownNameError
from scoresde.models import ScoreModel
from scoresde.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from scoresde.training.ema import EMA
from scoresde.training.objectives import DenoisingScoreMatching, Objective

DEVICES = ("auto", "cpu", "cuda", "mps")
LR_DECAYS = ("none", "cosine")


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of a :class:`Trainer`.

    Attributes:
        steps: optimiser steps in all.
        batch_size: items in a step.
        lr: learning rate of Adam after the warm-up.
        warmup: steps over which it rises linearly from 0.
        lr_decay: ``"cosine"`` lets it fall to 0 at the last step, ``"none"`` keeps it.
        betas: Adam's decay rates.
        clip: largest norm of the gradient, None for no clipping.
        ema_half_life: of the averaged weights, in steps.
        log_every: steps between records.
        checkpoint_every: steps between checkpoints, if a folder is given.
        keep: checkpoints kept.
        seed: of batches, times and noise.
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``.
        conditional: pass the data's labels to the network as ``y``.
    """

    steps: int = 20_000
    batch_size: int = 128
    lr: float = 5e-4
    warmup: int = 500
    lr_decay: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0
    ema_half_life: float = 1000.0
    log_every: int = 20
    checkpoint_every: int = 1_000
    keep: int = 2
    seed: int = 0
    device: str = "auto"
    conditional: bool = False

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(name, value, "a whole number, 1 or more")
        for name in ("lr", "ema_half_life"):
            if not 0 < getattr(self, name) < math.inf:
                raise ArgumentError(name, getattr(self, name), "a positive number")
        if self.clip is not None and not self.clip > 0:
            raise ArgumentError("clip", self.clip, "a positive number, or None")
        if self.warmup < 0:
            raise ArgumentError("warmup", self.warmup, "0 or more steps")
        if self.lr_decay not in LR_DECAYS:
            raise UnknownNameError("lr_decay", self.lr_decay, LR_DECAYS)
        if self.device not in DEVICES:
            raise UnknownNameError("device", self.device, DEVICES)


@dataclass(frozen=True)
class Record:
    """What is known after some steps; times in seconds.

    ``loss`` is the mean over the steps since the last record, per entry of the data; ``grad_norm`` that of the gradient
    before clipping.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    steps_per_second: float
    seconds_left: float


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


class Trainer:
    """Trains a score model on data.

    Args:
        model: the model; its network is trained in place.
        objective: the loss; default: denoising score matching.
        config: settings.
        folder: where checkpoints go, as ``folder/step-N``; None writes none.

    The averaged weights are in :attr:`ema`; :meth:`averaged_model` puts them to use.
    """

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective | None = None,
        config: TrainerConfig | None = None,
        folder: str | Path | None = None,
    ):
        self.config = TrainerConfig() if config is None else config
        self.objective = DenoisingScoreMatching() if objective is None else objective
        self.device = pick_device(self.config.device)
        self.model = model.to(self.device)
        self.folder = None if folder is None else Path(folder)
        self.step = 0
        self.ema = EMA(model.net, self.config.ema_half_life)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=self.config.lr, betas=self.config.betas, fused=self.device.type in ("cpu", "cuda")
        )
        self.generator = torch.Generator(self.device if self.device.type != "mps" else "cpu")
        self.generator.manual_seed(self.config.seed)
        self.batch_generator = torch.Generator().manual_seed(self.config.seed + 1)
        self._resumed: dict[str, Any] | None = None
        self._stop = False

    # ---- training --------------------------------------------------------------------------------------------------

    def fit(self, data, callback: Callable[[Record], None] | None = None) -> list[Record]:
        """Train on a map-style dataset to the last step, or until :meth:`stop`; the records, one every ``log_every``.

        Raises:
            NonFiniteError: the loss turned NaN or infinite; names the step. Checkpoints before it stay.
            CheckpointError: a checkpoint cannot be written.
        """
        records = []
        for record in self.records(data):
            records.append(record)
            if callback is not None:
                callback(record)
        return records

    def records(self, data) -> Iterator[Record]:
        """Train as :meth:`fit` does, and yield each record when it is made."""
        batches = Batches(data, self.config.batch_size, self.batch_generator)
        if self._resumed is not None:
            batches.load_state_dict(self._resumed)
            self._resumed = None
        self._stop = False
        self.model.train()
        try:
            yield from self._train(batches)
        finally:
            self.model.eval()

    def _train(self, batches: Batches) -> Iterator[Record]:
        config, device = self.config, self.device
        zero = torch.zeros((), device=device)
        losses, norms, first_bad, since = zero.clone(), zero.clone(), zero.long() - 1, 0
        clock = time.perf_counter()
        saved = self.step
        while self.step < config.steps and not self._stop:
            batch = next(batches)
            lr = self.learning_rate(self.step)
            loss, norm = self._one_step(batch, lr)
            self.step += 1
            since += 1
            losses += loss
            norms += norm
            first_bad = torch.where((first_bad < 0) & ~loss.isfinite(), self.step, first_bad)
            due = self.step % config.checkpoint_every == 0 or self.step == config.steps or self._stop
            if (
                device.type == "cpu" or due or self.step % config.log_every == 0
            ):  # elsewhere, asking waits for the device
                self._check(first_bad)
            if self.step % config.log_every == 0 or self.step == config.steps:
                seconds = time.perf_counter() - clock
                rate = since / seconds
                yield Record(
                    self.step,
                    config.steps,
                    losses.item() / since,
                    norms.item() / since,
                    lr,
                    rate,
                    (config.steps - self.step) / rate,
                )
                losses, norms, since, clock = zero.clone(), zero.clone(), 0, time.perf_counter()
            if due and self.folder is not None:
                self.save(batches)
                saved = self.step
        if self.folder is not None and saved != self.step:
            self.save(batches)

    def _one_step(self, batch: dict[str, Tensor], lr: float) -> tuple[Tensor, Tensor]:
        """One optimiser step; the loss per entry and the gradient's norm, on the device."""
        x0 = batch["x"].to(self.device, non_blocking=True)
        cond = {"y": batch["label"].to(self.device, non_blocking=True)} if self.config.conditional else None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.objective(self.model, x0, cond, self.generator).mean() / x0[0].numel()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if self.config.clip is None else self.config.clip)
        self.optimizer.step()
        self.ema.update()
        return loss.detach(), norm

    def _check(self, first_bad: Tensor) -> None:
        step = int(first_bad)
        if step >= 0:
            kept = "" if self.folder is None else f"; the checkpoints in {self.folder} are from before"
            raise NonFiniteError(f"the loss is NaN or infinite at step {step}{kept}")

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step counted from 0: linear warm-up, then constant or falling as a cosine."""
        config = self.config
        rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
        if config.lr_decay == "cosine":
            past = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, past)))
        return rate

    def stop(self) -> None:
        """Finish the step at hand, save a checkpoint and return from :meth:`fit`; a signal handler may call it."""
        self._stop = True

    def averaged_model(self) -> ScoreModel:
        """A copy of the model with the averaged weights, in evaluation mode."""
        averaged = copy.deepcopy(self.model)
        averaged.net.load_state_dict(self.ema.state_dict())
        return averaged.eval().requires_grad_(False)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, batches: Batches) -> Path:
        """Write a checkpoint of everything that decides what comes next; returns its folder."""
        tensors = {f"net.{name}": value for name, value in self.model.net.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["rng.objective"] = self.generator.get_state()
        tensors["rng.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        stream = batches.state_dict()
        tensors |= {f"batches.{name}": torch.as_tensor(value) for name, value in stream.items()}
        info = {"ema_updates": self.ema.updates, "config": asdict(self.config)}
        return save_checkpoint(
            self.folder, self.step, self.model, self.ema.state_dict(), tensors, info, self.config.keep
        )

    def resume(self, checkpoint: str | Path | None = None) -> int:
        """Take up the training where a checkpoint left it (default: the newest in ``folder``); returns its step.

        The steps that follow are, on a CPU, bit for bit those of a run that was never interrupted.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another network.
        """
        if checkpoint is None and self.folder is None:
            raise ArgumentError("checkpoint", None, "a checkpoint's folder: the trainer has none of its own")
        folder = latest_checkpoint(self.folder) if checkpoint is None else Path(checkpoint)
        tensors, info = load_checkpoint(folder)
        weights = ScoreModel.from_pretrained(folder).net.state_dict()
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
        try:
            self.model.net.load_state_dict(parts["net"])
            self.ema.load(weights, info["ema_updates"])
            optimizer = self.optimizer.state_dict()
            optimizer["state"] = {}
            for key, value in parts.get("optimizer", {}).items():
                i, _, name = key.partition(".")
                optimizer["state"].setdefault(int(i), {})[name] = value
            self.optimizer.load_state_dict(optimizer)
            self.generator.set_state(parts["rng"]["objective"])
            torch.set_rng_state(parts["rng"]["torch"])
            if "cuda" in parts["rng"] and self.device.type == "cuda":
                torch.cuda.set_rng_state(parts["rng"]["cuda"], self.device)
            self._resumed = parts["batches"]
            self.step = info["step"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError("checkpoint", f"{folder} ({error})", "a checkpoint of this model") from error
        return self.step
