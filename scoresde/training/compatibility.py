"""What a model, its data and its checkpoints must have in common."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.data import Data, Mapped
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, CheckpointError, DataError
from scoresde.models import ScoreModel
from scoresde.models.pretrained import bare
from scoresde.nets.description import class_needed, describe_net


def check_saved(model: ScoreModel) -> None:
    """Raise an ArgumentError unless checkpoints of the model can be written."""
    try:
        json.dumps(model.config)
    except TypeError as error:
        raise ArgumentError(
            "net", f"{type(model.net).__name__} ({error})", "one whose `config` JSON can hold"
        ) from error


def check_scale(name: str, data: Data | Mapped, model: ScoreModel) -> None:
    """Raise a DataError if data come into model space by another map."""
    known, found = model.scaling, data.scaling
    assert known is not None  # the caller's condition
    (scale, shift), (other_scale, other_shift) = _numbers(known), _numbers(found)
    same = known.num_values == found.num_values and _close(scale, other_scale, 1e-6, 0.0)
    if not same or not _close(shift, other_shift, 0.0, 1e-6):  # in units of the model
        expected = "data in the model's scale: data.scaled_like(model.scaling), or a model made for these data"
        raise DataError(name, f"{data!r} with {_said(found)}, where the model has {_said(known)}", expected)


def _numbers(scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Return scale and shift as tensors."""
    scale, shift = (torch.as_tensor(value, dtype=torch.float64) for value in (scaling.scale, scaling.shift))
    return scale, shift


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    """Return whether tensors agree; one number stands for all entries."""
    fits = a.shape == b.shape or 1 in (a.numel(), b.numel())
    return fits and torch.allclose(a, b, rtol=rtol, atol=atol)


def _said(scaling: Scaling) -> str:
    if scaling.num_values is not None:
        return f"integers 0..{scaling.num_values - 1}"
    scale, shift = _numbers(scaling)
    mean, std = (f"{float(value.mean()):.6g}" for value in (-shift / scale, 1 / scale))
    return f"mean {mean} and std {std}"


def own_net(model: ScoreModel) -> nn.Module | None:
    """Return a copy of a model's network, or None if its name rebuilds it."""
    net = bare(model.net)
    return copy.deepcopy(net) if class_needed(describe_net(net)) else None


def check_same(folder: Path, saved: ScoreModel, model: ScoreModel) -> None:
    """Raise a CheckpointError that says in what a saved model differs."""
    for name in ("sde", "predicts", "time_input", "scale_input", "learned_variance", "self_condition", "scaling"):
        theirs, ours = (_plain(getattr(one, name)) for one in (saved, model))
        if theirs != ours:
            got = f"{folder}, whose {name} is {theirs}, not {ours}"
            raise CheckpointError("checkpoint", got, "a checkpoint of this model")


def _plain(value: Any) -> Any:
    """Return a setting of a model as JSON would give it back."""
    described = value.config if hasattr(value, "config") else value
    return described if callable(described) else json.loads(json.dumps(described))
