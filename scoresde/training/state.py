"""The state of a training as named tensors, and back.

A checkpoint's ``training.safetensors`` holds these tensors. Their names are ``net.*``, ``ema.NAME.*`` and
``power.I.*`` (weights), ``optimizer.I.*`` (the state of the I-th parameter), ``objective.*``, ``rng.*`` and
``batches.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.errors import CheckpointError
from scoresde.models.pretrained import bare_name
from scoresde.training.distributed import Ranks
from scoresde.training.ema import EMA


def weights_state(net: nn.Module, ema: EMA) -> dict[str, Tensor]:
    """Return the weights, and all averages but the first.

    Their names are those in the network itself, without wrappers (``torch.compile``).
    """
    tensors = {f"net.{bare_name(name, net)}": value for name, value in net.state_dict().items()}
    for name in ema.names[1:]:
        tensors |= {f"ema.{name}.{bare_name(key, net)}": value for key, value in ema.average(name).items()}
    return tensors


def in_wrappers(net: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by their names in ``net``, which may be wrapped."""
    names = {bare_name(name, net): name for name in net.state_dict()}
    return {names.get(name, name): value for name, value in weights.items()}


def optimizer_state(
    parameters: Sequence[nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Return what the optimisers keep for each parameter.

    Raises:
        CheckpointError: an optimiser that keeps more than tensors and numbers.
    """
    tensors: dict[str, Tensor] = {}
    for i, p in enumerate(parameters):
        for optimizer in optimizers:
            for name, value in optimizer.state.get(p, {}).items():
                if not isinstance(value, (Tensor, float, int, type(None))):
                    got = f"{type(optimizer).__name__}, which keeps a {type(value).__name__} as {name!r}"
                    raise CheckpointError("optimizer", got, "one that keeps tensors and numbers")
                if value is not None:
                    tensors[f"optimizer.{i}.{name}"] = torch.as_tensor(value)
    return tensors


def random_state(generator: torch.Generator, device: torch.device, ranks: Ranks) -> dict[str, Tensor]:
    """Return the states of the trainer's generator and of torch's own.

    Networks draw dropout from torch's own generators, which differ between ranks.
    """
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    tensors = {"rng.generator": generator.get_state()}
    for kind, state in states.items():
        tensors |= {f"rng.{kind}{i}": part[0] for i, part in enumerate(ranks.gather(state[None]))}
    return tensors


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by the part of the training that they belong to.

    The part is removed from their names.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts


def averages_of(ema: EMA, first: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the averages: the model's, and those of :func:`weights_state`."""
    averages: dict[str, dict[str, Tensor]] = {ema.names[0]: dict(first)}
    for key, value in others.items():
        name, _, weight = key.partition(".")
        averages.setdefault(name, {})[weight] = value
    return averages


def load_optimizers(
    parameters: Sequence[nn.Parameter], optimizers: Sequence[torch.optim.Optimizer], saved: Mapping[str, Tensor]
) -> None:
    """Load the state of :func:`optimizer_state`."""
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    for key, value in saved.items():
        i, _, name = key.partition(".")
        p = parameters[int(i)]
        like = value.shape == p.shape
        state.setdefault(p, {})[name] = torch.empty_like(p).copy_(value) if like else value  # p's own strides
    for optimizer in optimizers:
        mine = [p for group in optimizer.param_groups for p in group["params"]]
        found = {i: state[p] for i, p in enumerate(mine) if p in state}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": found})


def load_random_state(generator: torch.Generator, device: torch.device, rank: int, saved: Mapping[str, Tensor]) -> None:
    """Load the state of :func:`random_state`; a rank without it keeps its own."""
    generator.set_state(saved["generator"])
    if f"torch{rank}" in saved:
        torch.set_rng_state(saved[f"torch{rank}"])
    if f"cuda{rank}" in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved[f"cuda{rank}"], device)


def stream_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the position in the data."""
    return {f"batches.{name}": torch.as_tensor(value) for name, value in state.items()}
