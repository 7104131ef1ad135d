"""Checkpoints: folders of safetensors and JSON, written all or nothing, each a model that can be loaded at once.

``step-N/`` holds ``config.json`` and ``model.safetensors`` (the model with its averaged weights, as
:meth:`ScoreModel.from_pretrained` reads it), ``training.safetensors`` (weights, further averages, optimiser, random
states) and ``training.json`` (counters, settings, and the checksums of the others).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.errors import CheckpointError, UnknownNameError
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors
from scoresde.models import ScoreModel

FORMAT = "scoresde-checkpoint-2"
FILES = ("config.json", "model.safetensors", "training.safetensors")

_FINISHED = re.compile(r"step-(\d{9,})")
_LEFT_OVER = re.compile(r"\.(step-\d{9,})\.[0-9a-f]{8}\.(new|old|gone)")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(content: dict[str, Any]) -> str:
    """The checksum of what training.json says, the checksums left out."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def checkpoints(root: str | Path) -> list[Path]:
    """The finished checkpoints in ``root``, oldest first."""
    found = [path for path in Path(root).glob("step-*") if _FINISHED.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def sweep(root: str | Path) -> None:
    """Clear what a killed process left in ``root``; a checkpoint it was about to replace comes back."""
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
    """Write ``root/step-N``: the model with ``weights`` (as save_pretrained does) and the state of its training.

    Afterwards all checkpoints are removed but the newest ``keep``, and the best of them all by ``info["held_out"]``.

    Raises:
        CheckpointError: it cannot be written (a full disk...); the checkpoints before it are untouched.
    """
    folder = root / f"step-{step:09d}"
    with atomic_folder(folder) as new:
        model.write_pretrained(new, weights)
        save_tensors(tensors, new / "training.safetensors")
        digests = {name: _digest(new / name) for name in FILES}
        content = {"format": FORMAT, "step": step, "sha256": digests, **info}
        digests["training.json"] = _seal(content)
        (new / "training.json").write_text(json.dumps(content, indent=2) + "\n")
    best = best_checkpoint(root)
    for old in checkpoints(root)[:-keep]:
        if old != best:
            gone = old.with_name(f".{old.name}.{uuid.uuid4().hex[:8]}.gone")  # no half of a checkpoint is ever seen
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    return folder


def _held_out(folder: Path) -> float:
    try:
        loss = read_json(folder / "training.json", "checkpoint").get("held_out")
    except CheckpointError:
        return math.inf
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def best_checkpoint(root: str | Path) -> Path | None:
    """The checkpoint in ``root`` with the least loss on held-out data; None where none was measured."""
    best = min(checkpoints(root), key=_held_out, default=None)
    return None if best is None or _held_out(best) == math.inf else best


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``(tensors, info)`` as given to :func:`save_checkpoint`, after the files' checksums are found to be right.

    Raises:
        CheckpointError: not a checkpoint, or one that is truncated or altered (names the file).
    """
    info = read_json(folder / "training.json", "checkpoint")
    digests = info.get("sha256")
    if info.get("format") != FORMAT or not isinstance(digests, dict):
        raise CheckpointError("checkpoint", folder, f"a checkpoint of this program (format {FORMAT!r})")
    for name in ("training.json", *FILES):
        path = folder / name
        if not path.is_file() or digests.get(name) != (_seal(info) if name == "training.json" else _digest(path)):
            state = "altered or truncated" if path.is_file() else "missing"
            raise CheckpointError(
                "checkpoint", f"{path}, which is {state}", "a file with the checksum it was written with"
            )
    return load_tensors(folder / "training.safetensors"), info


def latest_checkpoint(root: str | Path) -> Path:
    """The newest checkpoint in ``root``.

    Raises:
        CheckpointError: there is none.
    """
    found = checkpoints(root)
    if not found:
        raise CheckpointError("checkpoint", f"{root}, which holds none", "a folder with at least one checkpoint")
    return found[-1]


def load_average(folder: str | Path, name: str | None = None, device: str | torch.device = "cpu") -> ScoreModel:
    """The model of a checkpoint with one of its averages, by name; None is the first.

    Raises:
        CheckpointError: not a checkpoint, or one that is damaged.
        UnknownNameError: it has no such average; names those it has.
    """
    folder = Path(folder)
    tensors, info = load_checkpoint(folder)
    names = list(info["ema"]["half_lives"])
    if name not in (None, *names):
        raise UnknownNameError("average", name, names)
    model = ScoreModel.from_pretrained(folder)
    if name not in (None, names[0]):
        start = f"ema.{name}."
        average = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        model.net.load_state_dict(model.net.state_dict() | average)
    return model.to(device)
