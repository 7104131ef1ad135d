"""The optimisers of a training, and their learning rates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from scoresde.errors import ArgumentError, CheckpointError, DTypeError
from scoresde.training.config import TrainerConfig
from scoresde.training.muon import Muon, hidden_weights

#: from the parameters to their optimiser, such as ``functools.partial(torch.optim.RAdam, lr=1e-3)``
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
#: from an optimiser to its scheduler, such as ``functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1000)``
SchedulerFactory = Callable[[torch.optim.Optimizer], LRScheduler]


def make_optimizers(
    module: nn.Module, config: TrainerConfig, factory: OptimizerFactory | None, fused: bool
) -> tuple[list[torch.optim.Optimizer], list[nn.Parameter]]:
    """Return the optimisers, and all parameters in the order of a checkpoint.

    Args:
        module: module whose parameters are trained.
        config: names the optimiser, if there is no factory.
        factory: function of the list of parameters that returns their optimiser. None: that of ``config``.
        fused: whether torch's fused kernels work on the device.

    Raises:
        ArgumentError, DTypeError: the factory returns no optimiser, one that needs a closure, or one
            of other parameters.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if factory is not None:
        return [_made(factory, trained)], trained
    kernels = hidden_weights(module) if config.optimizer == "muon" else []
    chosen = set(kernels)
    others = [p for p in trained if p not in chosen]
    options: dict[str, Any] = {"fused" if fused else "foreach": True}
    if config.optimizer == "adamw":
        options["weight_decay"] = config.weight_decay
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    adam = kind(others, lr=config.lr, betas=config.betas, **options)
    return [adam, Muon(kernels, config.lr)] if kernels else [adam], [*others, *kernels]


def _made(factory: OptimizerFactory, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of a factory, if a trainer can use it."""
    if not callable(factory):
        expected = "a function of the parameters, such as functools.partial(torch.optim.RAdam, lr=1e-3)"
        raise DTypeError("optimizer", type(factory).__name__, expected)
    made = factory(list(trained))
    if not isinstance(made, torch.optim.Optimizer):
        raise DTypeError(
            "optimizer", f"a function that returns a {type(made).__name__}", "one that returns an optimiser"
        )
    if isinstance(made, torch.optim.LBFGS):
        raise ArgumentError("optimizer", "LBFGS", "one whose step needs no closure")
    known = set(trained)
    if any(p not in known for group in made.param_groups for p in group["params"]):
        raise ArgumentError("optimizer", "one of other parameters", "an optimiser of the parameters that it is given")
    return made


class Rates:
    """The learning rates of a training's optimisers.

    Without a scheduler each group of parameters has the rate that it was made with, times the config's warm-up and
    decay. With one, the scheduler alone decides; it takes a step after each step of the optimiser.

    Args:
        optimizers: the optimisers.
        lr: the config's learning rate, to which its warm-up and decay are relative.
        factory: function of an optimiser that returns its scheduler. None: no scheduler.

    Raises:
        ArgumentError, DTypeError: the factory returns no scheduler, or one that needs measurements.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], lr: float, factory: SchedulerFactory | None):
        self.optimizers, self.lr = optimizers, lr
        self._base = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
        self.schedulers = [] if factory is None else [self._made(factory, optimizer) for optimizer in optimizers]

    @staticmethod
    def _made(factory: SchedulerFactory, optimizer: torch.optim.Optimizer) -> LRScheduler:
        if not callable(factory):
            expected = "a function of the optimiser, such as functools.partial(StepLR, step_size=1000)"
            raise DTypeError("scheduler", type(factory).__name__, expected)
        made = factory(optimizer)
        if isinstance(made, ReduceLROnPlateau):
            raise ArgumentError("scheduler", "ReduceLROnPlateau", "a scheduler whose step needs no measurement")
        if not isinstance(made, LRScheduler):
            raise DTypeError("scheduler", f"a function that returns a {type(made).__name__}", "an LRScheduler of torch")
        return made

    def before_step(self, lr: float) -> None:
        """Set the rates of a step for which the config has ``lr``."""
        if self.schedulers:
            return
        for optimizer, rates in zip(self.optimizers, self._base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * (rate / self.lr)

    def after_step(self) -> None:
        """Let the schedulers take their step."""
        for scheduler in self.schedulers:
            scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedulers' state and the groups' settings, JSON-able.

        Raises:
            CheckpointError: the state is more than numbers, texts and lists.
        """
        if not self.schedulers:
            return {}
        groups = [[_without_parameters(group) for group in optimizer.param_groups] for optimizer in self.optimizers]
        state = {"schedulers": [scheduler.state_dict() for scheduler in self.schedulers], "groups": groups}
        try:
            plain: dict[str, Any] = json.loads(json.dumps(state))
        except TypeError as error:
            name = type(self.schedulers[0]).__name__
            raise CheckpointError("scheduler", f"{name} ({error})", "one whose state JSON can hold") from error
        return plain

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises:
            ValueError: the state of other schedulers.
        """
        if len(state.get("schedulers", ())) != len(self.schedulers):
            raise ValueError("with and without a scheduler")
        for scheduler, saved in zip(self.schedulers, state.get("schedulers", ()), strict=True):
            scheduler.load_state_dict(saved)
        for optimizer, groups in zip(self.optimizers, state.get("groups", ()), strict=False):
            for group, saved in zip(optimizer.param_groups, groups, strict=True):
                group |= {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's settings; numbers in tensors become numbers."""
    settings = {key: value for key, value in group.items() if key != "params"}
    return {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in settings.items()}
