"""Checkpoints of other libraries, read without running code of theirs."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.errors import ArgumentError, CheckpointError
from scoresde.files import load_tensors


def read_torch(path: str | Path) -> Any:
    """Return what ``torch.save`` wrote: tensors, numbers, texts, containers.

    Anything else in the file is refused, as reading it would run code. A file of safetensors is read too.

    Raises:
        CheckpointError: The file is missing or truncated, or it holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("path", f"{path}, which is no file", "a checkpoint")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        expected = "a checkpoint of tensors and numbers, as only these are read (weights_only)"
        raise CheckpointError("path", f"{path}, which holds more than tensors", expected) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError("path", f"{path} ({type(error).__name__})", "a checkpoint of torch.save") from error


def tensors_of(content: object, path: str | Path) -> dict[str, Tensor]:
    """Return a state dict, without the prefix of ``DataParallel``.

    Raises:
        CheckpointError: The content is no mapping from names to tensors.
    """
    fits = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not isinstance(content, Mapping) or not fits:
        raise CheckpointError(
            "path", f"{path}, which holds {type(content).__name__}", "a mapping from names to tensors"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_in_order(net: nn.Module, theirs: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy weights into a network with the same layers in the same order.

    A matrix ``(inputs, outputs)`` becomes a 1 x 1 convolution or a linear layer ``(outputs, inputs)`` where theirs is
    called ``W``.

    Args:
        net: Our network.
        theirs: Their parameters, in the order of their layers.
        path: The file, for messages.

    Raises:
        CheckpointError: Another number of parameters, or another shape. The message names the layer.
    """
    ours = list(net.named_parameters())
    if len(ours) != len(theirs):
        got = f"{path}, which has {len(theirs)} parameters"
        raise CheckpointError("path", got, f"one of the network in `config`, which has {len(ours)}")
    with torch.no_grad():
        for (name, parameter), (their_name, value) in zip(ours, theirs.items(), strict=True):
            fitted = value.T if their_name.endswith(".W") and value.ndim == 2 else value
            if fitted.ndim == 2 and parameter.ndim == 4:
                fitted = fitted[:, :, None, None]
            if fitted.shape != parameter.shape:
                got = f"{path}, whose {their_name} is of shape {tuple(value.shape)}"
                raise CheckpointError("path", got, f"one of the network in `config` ({name}: {tuple(parameter.shape)})")
            parameter.copy_(fitted)


def entry(config: Mapping[str, Any], section: str, name: str, default: Any = None) -> Any:
    """Return ``config[section][name]``.

    Args:
        config: Sections of settings.
        section, name: The setting.
        default: What it is if it is missing. None: it must be there.

    Raises:
        ArgumentError: The setting is missing.
    """
    part = config.get(section)
    found = part.get(name) if isinstance(part, Mapping) else None
    if found is None and default is None:
        raise ArgumentError(
            "config", f"one without {section}.{name}", "their settings, with the sections model and data"
        )
    return default if found is None else found


def choice(name: str, value: str, known: Mapping[str, Callable[..., Any]] | tuple[str, ...]) -> str:
    """Return ``value`` if it is known, with an error that lists all."""
    if value not in known:
        raise ArgumentError(name, repr(value), " or ".join(map(repr, known)))
    return value
