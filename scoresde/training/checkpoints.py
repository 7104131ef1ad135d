"""Checkpoints: folders of safetensors and JSON.

They are written completely or not at all. A checkpoint ``step-N/`` holds a model, which
:meth:`ScoreModel.from_pretrained` loads, and the state of its training:

- ``config.json`` and ``model.safetensors``: the model with its averaged weights;
- ``training.safetensors``: weights, further averages, optimiser, random states (:mod:`scoresde.training.state`);
- ``training.json``: counters, settings, and the checksums of the other files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.errors import CheckpointError, CheckpointWarning, UnknownNameError, warn
from scoresde.files import atomic_folder, digest, load_tensors, read_json, save_tensors, write_atomically
from scoresde.models import ScoreModel
from scoresde.models.pretrained import FILES as MODEL_FILES
from scoresde.models.pretrained import TRAINING, altered
from scoresde.random import device_named

FORMAT = "scoresde-checkpoint-4"
TENSORS, INFO = "training.safetensors", TRAINING
FILES = (*MODEL_FILES, TENSORS)  # the files whose checksums are in INFO

_FINISHED = re.compile(r"step-(\d{9,})")
_LEFT_OVER = re.compile(r"\.(step-\d{9,})\.[0-9a-f]{8}\.(new|old|gone)")


def _seal(content: dict[str, Any]) -> str:
    """Return the checksum of training.json without its checksums."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sealed(content: dict[str, Any]) -> str:
    """Return the text of training.json, with its checksum."""
    content["sha256"][INFO] = _seal(content)
    return json.dumps(content, indent=2) + "\n"


def checkpoints(root: str | Path) -> list[Path]:
    """Return the finished checkpoints in ``root``, oldest first."""
    found = [path for path in Path(root).glob("step-*") if _FINISHED.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def sweep(root: str | Path) -> None:
    """Remove what a killed process left in ``root``.

    A checkpoint that it was about to replace is restored.
    """
    root = Path(root)
    for path in list(root.glob(".step-*")) if root.is_dir() else ():
        if match := _LEFT_OVER.fullmatch(path.name):
            name, kind = match.groups()
            if kind == "old" and not (root / name).exists():
                path.rename(root / name)
            else:
                shutil.rmtree(path, ignore_errors=True)


def save_checkpoint(
    root: Path,
    step: int,
    model: ScoreModel,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    info: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``root/step-N``, a model and the state of its training.

    Older checkpoints are then removed, see :func:`prune`.

    Args:
        root: Folder of the checkpoints.
        step: N.
        model: The model.
        weights: Weights to write with it, as ``save_pretrained`` does.
        tensors: State of the training.
        info: Counters and settings, JSON-able.
        keep: Number of checkpoints to keep.

    Raises:
        CheckpointError: the checkpoint cannot be written, for example as the disk is full. Earlier ones stay.
    """
    folder = root / f"step-{step:09d}"
    with atomic_folder(folder) as new:
        model.write_pretrained(new, weights)
        save_tensors(tensors, new / TENSORS)
        digests = {name: digest(new / name) for name in FILES}
        content = {"format": FORMAT, "step": step, "sha256": digests, **info}
        (new / INFO).write_text(_sealed(content))
    prune(root, keep)
    return folder


def amend_checkpoint(folder: Path, info: Mapping[str, Any]) -> None:
    """Replace counters of a checkpoint, all or nothing."""
    write_atomically(folder / INFO, _sealed({**read_json(folder / INFO, "checkpoint"), **info}))


def prune(root: Path, keep: int) -> None:
    """Remove checkpoints but the newest ``keep`` and the best one."""
    best = best_checkpoint(root)
    for old in checkpoints(root)[:-keep]:
        if old != best:
            gone = old.with_name(f".{old.name}.{uuid.uuid4().hex[:8]}.gone")  # a partial checkpoint is never visible
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _held_out(folder: Path) -> float:
    try:
        loss = read_json(folder / INFO, "checkpoint").get("held_out")
    except CheckpointError:
        return math.inf
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


@checked
def best_checkpoint(root: str | Path) -> Path | None:
    """Return the checkpoint with the least held-out loss.

    None: no checkpoint in ``root`` has such a loss.
    """
    best = min(checkpoints(root), key=_held_out, default=None)
    return None if best is None or _held_out(best) == math.inf else best


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return ``(tensors, info)`` of a checkpoint whose checksums are right.

    Raises:
        CheckpointError: not a checkpoint, or a truncated or altered one (names the file).
    """
    info = read_json(folder / INFO, "checkpoint")
    digests = info.get("sha256")
    if info.get("format") != FORMAT or not isinstance(digests, dict):
        raise CheckpointError("checkpoint", folder, f"a checkpoint written by scoresde (format {FORMAT!r})")
    for name in (INFO, *FILES):
        path = folder / name
        if not path.is_file() or digests.get(name) != (_seal(info) if name == INFO else digest(path)):
            raise altered(path)
    return load_tensors(folder / TENSORS), info


@checked
def latest_checkpoint(root: str | Path) -> Path:
    """Return the newest checkpoint in ``root``.

    Raises:
        CheckpointError: no checkpoint in ``root``.
    """
    found = checkpoints(root)
    if not found:
        raise CheckpointError("checkpoint", f"{root}, which holds none", "a folder with at least one checkpoint")
    return found[-1]


def load_newest(root: str | Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Return the newest whole checkpoint, as ``(folder, tensors, info)``.

    A damaged one is passed over, with a CheckpointWarning that names its file.

    Raises:
        CheckpointError: no checkpoint in ``root``, or none that is whole (the error of the newest).
    """
    first: CheckpointError | None = None
    newest = latest_checkpoint(root)
    for folder in reversed(checkpoints(root)):
        try:
            tensors, info = load_checkpoint(folder)
        except CheckpointError as error:
            first = first or error
            continue
        if first is not None:
            said = f"damaged checkpoint passed over: {first.got}. The training goes on from {folder.name}."
            warn(said, CheckpointWarning, stacklevel=3)
        return folder, tensors, info
    raise first or CheckpointError("checkpoint", f"{newest}, which is gone", "a folder that nobody removes")


@checked
def load_average(
    folder: str | Path,
    name: str | None = None,
    device: str | torch.device = "cpu",
    *,
    net: nn.Module | Callable[..., nn.Module] | None = None,
) -> ScoreModel:
    """Return the model of a checkpoint with one of its averages.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the average. None: the first.
        device: Device of the model, default the CPU.
        net: As for :meth:`ScoreModel.from_pretrained`, for a network that is not registered.

    Raises:
        CheckpointError: not a checkpoint, or a damaged one.
        UnknownNameError: an unknown average; names those of the checkpoint.
    """
    folder, device = Path(folder), device_named(device)
    tensors, info = load_checkpoint(folder)
    names = list(info["ema"]["half_lives"])
    if name not in (None, *names):
        raise UnknownNameError("average", name, names)
    model = ScoreModel.from_pretrained(folder, net=net)
    if name not in (None, names[0]):
        start = f"ema.{name}."
        average = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        model.net.load_state_dict(model.net.state_dict() | average)
    return model.to(device)
