"""Checkpoints: folders of safetensors and JSON, written all or nothing, each a model that can be loaded at once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.errors import CheckpointError
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors
from scoresde.models import ScoreModel

FORMAT = "scoresde-checkpoint-1"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def checkpoints(root: Path) -> list[Path]:
    """The finished checkpoints in ``root``, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


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

    Afterwards all but the newest ``keep`` checkpoints are removed.

    Raises:
        CheckpointError: it cannot be written (a full disk...); the checkpoints before it are untouched.
    """
    folder = _folder(root, step)
    with atomic_folder(folder) as new:
        model.write_pretrained(new, weights)
        save_tensors(tensors, new / "training.safetensors")
        digests = {name: _digest(new / name) for name in ("model.safetensors", "training.safetensors")}
        content = {"format": FORMAT, "step": step, "sha256": digests, **info}
        (new / "training.json").write_text(json.dumps(content, indent=2) + "\n")
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``(tensors, info)`` as given to :func:`save_checkpoint`, after the files' checksums are found to be right.

    Raises:
        CheckpointError: not a checkpoint, or one that is truncated or altered (names the file).
    """
    info = read_json(folder / "training.json", "checkpoint")
    if info.pop("format", None) != FORMAT or not isinstance(info.get("sha256"), dict):
        raise CheckpointError("checkpoint", folder, f"a checkpoint of this program (format {FORMAT!r})")
    for name, digest in info.pop("sha256").items():
        path = folder / name
        if not path.is_file() or _digest(path) != digest:
            state = "altered or truncated" if path.is_file() else "missing"
            raise CheckpointError(
                "checkpoint", f"{path}, which is {state}", "a file with the checksum it was written with"
            )
    return load_tensors(folder / "training.safetensors"), info


def latest_checkpoint(root: Path) -> Path:
    """The newest checkpoint in ``root``.

    Raises:
        CheckpointError: there is none.
    """
    found = checkpoints(root)
    if not found:
        raise CheckpointError("checkpoint", f"{root}, which holds none", "a folder with at least one checkpoint")
    return found[-1]
