"""The optimiser steps of a training: gradient, update and averages."""

from __future__ import annotations

import copy
import logging
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.errors import ArgumentError, DTypeError
from scoresde.models import ScoreModel
from scoresde.models.conditions import Condition, condition_rows
from scoresde.random import ShardedGenerator, rand
from scoresde.training.augmentation import augmented
from scoresde.training.config import Precision, TrainerConfig, check_half_lives
from scoresde.training.devices import pick_device
from scoresde.training.distributed import Ranks
from scoresde.training.ema import EMA
from scoresde.training.objectives import DenoisingScoreMatching, Objective, Terms, TimedObjective
from scoresde.training.optimizers import OptimizerFactory, Rates, SchedulerFactory, make_optimizers
from scoresde.training.post_hoc import PowerEMA
from scoresde.training.precision import FASTER, PRECISIONS, Network, time_bfloat16, training_view
from scoresde.training.records import StepResult
from scoresde.training.time_sampling import Draws

_log = logging.getLogger(__name__)


class _Loss(nn.Module):
    """The objective as a module, for DistributedDataParallel."""

    def __init__(self, model: ScoreModel, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x0: Tensor, cond: Condition, generator: torch.Generator, observed: Tensor | None) -> Terms:
        if observed is None:  # a user's objective need not know it
            return self.objective.terms(self.model, x0, cond, generator)
        return self.objective.terms(self.model, x0, cond, generator, observed)


def _check_types(model: object, objective: object, config: object) -> None:
    """Refuse arguments in the wrong places."""
    for name, value, kind, expected in (
        ("model", model, ScoreModel, "a ScoreModel, such as ScoreModel.for_data(net, sde, data)"),
        ("objective", objective, Objective, "an objective, such as DenoisingScoreMatching()"),
        ("config", config, TrainerConfig, "a TrainerConfig"),
    ):
        if not (isinstance(value, kind) or (value is None and name != "model")):
            raise DTypeError(name, type(value).__name__, expected)


class OptimizerSteps:
    """Base of the trainer: what one optimiser step needs, and the step itself.

    Args:
        model: model whose network is trained in place.
        objective: loss. None: denoising score matching.
        config: settings. None: :class:`TrainerConfig` with its defaults.
        optimizer, scheduler: factories, see :class:`~scoresde.training.optimizers.Rates`. None: those of the config.

    Raises:
        ArgumentError: fewer items per step than processes times accumulated pieces.
        DTypeError: another object than a model, an objective or a config in its place.
    """

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective | None,
        config: TrainerConfig | None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ):
        _check_types(model, objective, config)
        self.config = config = TrainerConfig() if config is None else config
        self.objective = DenoisingScoreMatching() if objective is None else objective
        self.ranks = Ranks()
        if config.batch_size < self.ranks.world * config.accumulate:
            pieces = self.ranks.world * config.accumulate
            raise ArgumentError("batch_size", config.batch_size, f"at least {pieces}, processes x accumulate")

        # 1. the model, and the view of it that the loss sees
        self.device = pick_device(config.device)
        self.model = model.to(self.device)
        if config.channels_last:
            self.model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        view = training_view(model, self.device, config.precision, config.compile, config.channels_last)
        #: precision of the network; "auto" until the first step has chosen
        self.precision: Precision = config.precision
        self._view = view
        self._loss: nn.Module = _Loss(view, self.objective)
        if self.ranks.world > 1:
            self._loss = nn.parallel.DistributedDataParallel(self._loss, gradient_as_bucket_view=True)

        # 2. averages and optimisers
        by_time = config.minutes is not None
        self.ema = EMA(
            model.net, check_half_lives(config.ema_half_life) if by_time else config.half_lives(config.steps)
        )
        self.power = None if config.snapshot_every is None else PowerEMA(model.net)
        self._fused = self.device.type in ("cpu", "cuda")
        self.optimizers, self.parameters = make_optimizers(self.model, config, optimizer, self._fused)
        self._reads_found_inf = self._fused and optimizer is None
        self.rates = Rates(self.optimizers, config.lr, scheduler)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")

        # 3. randomness
        self.generator = ShardedGenerator(self.device if self._fused else "cpu")
        self.generator.manual_seed(config.seed)
        if self.ranks.rank:  # what the network draws itself, such as dropout, differs between processes
            torch.manual_seed(config.seed + self.ranks.rank)
        self.step, self.seconds_trained = 0, 0.0

    def _one_step(self, batch: dict[str, Tensor], lr: float) -> StepResult:
        """Do one optimiser step on a batch."""
        config, generator, ranks = self.config, self.generator, self.ranks
        x0 = batch["x"].to(self.device, non_blocking=True)
        cond = self._condition(batch)
        observed = batch["observed"].to(self.device, non_blocking=True) if "observed" in batch else None
        if config.augment:
            x0, cond = self._augmented(x0, cond, observed)
        if self.precision == "auto":
            self._choose_precision(x0, cond, observed)
        self.rates.before_step(lr)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        # 1. the gradient, piece by piece; times and noise are those of the whole batch
        pieces, found = config.accumulate, list[Terms]()
        draws = self.objective.draws if isinstance(self.objective, TimedObjective) else None
        if draws is not None:
            draws.deferred = True
        before = generator.get_state() if pieces > 1 else None
        entries = x0[0].numel()
        scale = ranks.world / (config.batch_size * entries)  # the processes' gradients are averaged
        for k in range(pieces):
            if before is not None and k:
                generator.set_state(before)
            generator.of(ranks.rank + ranks.world * k, ranks.world * pieces, config.batch_size)
            with self._without_reduction(ranks.world > 1 and k < pieces - 1):
                own = slice(k, None, pieces)
                mask = None if observed is None else observed[own]
                terms = self._loss(x0[own], condition_rows(cond, own), generator, mask)
                self.scaler.scale(terms.loss.sum() * scale).backward()
            found.append(Terms(terms.loss.detach(), terms.t, terms.value))
        if draws is not None:
            draws.deferred = False
            if type(draws).observe is not Draws.observe:
                draws.observe(*self._of_all(found))
        # 2. clipping, the update and the averages
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if config.clip is None else config.clip)
        self._update(norm)
        self._update_averages()
        return StepResult(entries, found, norm)

    def _augmented(self, x0: Tensor, cond: Condition, observed: Tensor | None) -> tuple[Tensor, Condition]:
        """Return augmented images, and the condition with their labels."""
        if observed is not None:
            raise ArgumentError("augment", self.config.augment, "0 for data with missing values")
        self.generator.of(self.ranks.rank, self.ranks.world, self.config.batch_size)
        x0, labels = augmented(x0, self.config.augment, self.generator)
        return x0, {**(cond or {}), "augment": labels}

    def _of_all(self, found: list[Terms]) -> tuple[Tensor, Tensor]:
        """Return times and losses of the whole batch in its order.

        What is learned from them does then not depend on the number of pieces or processes.
        """
        ranks, pieces, n = self.ranks, self.config.accumulate, self.config.batch_size
        t, value = (torch.zeros(n, device=one.device, dtype=one.dtype) for one in (found[0].t, found[0].value))
        for k, terms in enumerate(found):
            own = slice(ranks.rank + ranks.world * k, n, ranks.world * pieces)
            t[own], value[own] = terms.t, terms.value
        if ranks.world > 1:  # the others' items are zeros here
            torch.distributed.all_reduce(t)
            torch.distributed.all_reduce(value)
        return t, value

    def _choose_precision(self, x0: Tensor, cond: Condition, observed: Tensor | None) -> None:
        """Take bfloat16 if a piece of the batch is faster in it.

        The first process measures. Weights, objective and random numbers are as before.
        """
        ranks, pieces, generator = self.ranks, self.config.accumulate, self.generator
        loss = _Loss(self._view, copy.deepcopy(self.objective))
        before, buffers = generator.get_state(), [buffer.clone() for buffer in self.model.buffers()]

        def work() -> float:
            generator.of(ranks.rank, ranks.world * pieces, self.config.batch_size)
            own = slice(None, None, pieces)
            mask = None if observed is None else observed[own]
            terms = loss(x0[own], condition_rows(cond, own), generator, mask)
            terms.loss.sum().backward()
            return float(terms.loss.detach().sum())  # it waits for the device

        def measured() -> str:
            assert isinstance(self._view.net, Network)
            return repr(time_bfloat16(self._view.net, work))

        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            ratio = float(ranks.on_first(measured))
        generator.set_state(before)
        for buffer, old in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(old)
        self._set_precision("bfloat16" if ratio < FASTER else "float32")
        _log.info("Training in %s: a step in bfloat16 takes %.2g times as long as in float32.", self.precision, ratio)

    def _set_precision(self, precision: Precision) -> None:
        """Let the network run in a precision that was chosen."""
        self.precision = precision
        if isinstance(self._view.net, Network):
            self._view.net.dtype = PRECISIONS[precision]

    def _without_reduction(self, wanted: bool) -> Any:
        """Return a context in which gradients stay with their process, if wanted."""
        return self._loss.no_sync() if wanted else nullcontext()  # type: ignore[operator]  # of DistributedDataParallel

    def _condition(self, batch: dict[str, Tensor]) -> Condition:
        """Return what the network gets besides x and t, some of it hidden."""
        cond = {"y": self._labels(batch)} if self.config.conditional else {}
        for name, dropout in (self.config.conditions or {}).items():
            value = batch[name].to(self.device, non_blocking=True)
            if dropout:
                self.generator.of(self.ranks.rank, self.ranks.world, self.config.batch_size)
                hidden = rand((len(value),), self.generator, self.device) < dropout
                value = torch.where(hidden.reshape(-1, *(1,) * (value.ndim - 1)), torch.zeros_like(value), value)
            cond[name] = value
        return cond or None

    def _labels(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the batch's labels, some of them hidden."""
        if "label" not in batch:
            raise ArgumentError("conditional", True, "False for data without labels")
        y = batch["label"].to(self.device, non_blocking=True)
        if self.config.label_dropout:
            self.generator.of(self.ranks.rank, self.ranks.world, self.config.batch_size)
            y = torch.where(rand(y.shape, self.generator, self.device) < self.config.label_dropout, -1, y)
        return y

    def _update(self, norm: Tensor) -> None:
        """Let the optimisers take their step, unless it is bad and to be skipped."""
        if self.config.on_nan == "skip" and not self.scaler.is_enabled():
            if not self._reads_found_inf and not norm.isfinite():
                return
            bad = (~norm.isfinite()).float()
            for optimizer in self.optimizers if self._reads_found_inf else ():
                # the fused kernel reads it, without a host sync
                optimizer.found_inf = bad  # type: ignore[attr-defined]
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)  # optimizer.step() if the scaler is not enabled
        self.scaler.update()
        self.rates.after_step()

    def _update_averages(self) -> None:
        if self.config.minutes is not None and self.seconds_trained:
            self.ema.half_lives = self.config.half_lives(self._steps_that_fit())
        self.ema.update()
        if self.power is not None:
            self.power.update()

    def _steps_that_fit(self) -> int:
        """Return the steps in ``minutes`` at the mean speed so far.

        Before the first step this is ``steps``.
        """
        if not self.seconds_trained or self.config.minutes is None:
            return self.config.steps
        return max(1, round(60 * self.config.minutes * self.step / self.seconds_trained))
