"""Folders with saved models: their format, and the bundled ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from scoresde.errors import CheckpointError
from scoresde.files import digest, read_json

FORMAT = "scoresde-model-2"  # what config.json says of itself
TRAINING = "training.json"  # beside the files of a checkpoint, with their checksums
FILES = ("config.json", "model.safetensors")
#: the models that come with the package, a folder each; its README.md says what it is and how it was made
PRETRAINED = Path(__file__).parents[1] / "pretrained"


def bundled() -> tuple[str, ...]:
    """Return the names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in PRETRAINED.glob(f"*/{FILES[0]}")))


def is_hub_name(name: object) -> bool:
    """Return whether a text has the form of a model's name on the hub."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def locate(folder: str | Path) -> Path:
    """Return the folder of a saved model.

    Args:
        folder: A folder, or the name (a str) of a bundled model. A local folder of that name that holds a model takes
            precedence over the bundled one. In the folder of a run or a trainer, its newest checkpoint is taken.

    Raises:
        CheckpointError: There is neither a folder nor a bundled model of this name.
    """
    path = Path(folder)
    if isinstance(folder, str) and folder in bundled() and not any((path / name).exists() for name in FILES):
        return PRETRAINED / folder
    if not path.is_dir():
        names = ", ".join(map(repr, bundled()))
        raise CheckpointError("folder", f"{folder}, which is not a folder", f"one with a model, or a name: {names}")
    if any((path / name).exists() for name in FILES):
        return path
    checkpoints = [*path.glob("checkpoints/step-*"), *path.glob("step-*")]  # of a run, of a trainer
    return max((one for one in checkpoints if _step(one) >= 0 and (one / FILES[0]).exists()), key=_step, default=path)


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def check_digests(folder: Path) -> None:
    """Raise a CheckpointError if a checkpoint's model was altered.

    The folder of a model that is no checkpoint has no checksums, and passes.
    """
    if not (folder / TRAINING).is_file():
        return
    digests = read_json(folder / TRAINING, "folder").get("sha256")
    if not isinstance(digests, dict):
        return
    for name in FILES:
        if (folder / name).is_file() and digests.get(name) != digest(folder / name):
            raise altered(folder / name)


def altered(path: Path) -> CheckpointError:
    """Return the error of a file that lacks its original checksum."""
    state = "altered or truncated" if path.is_file() else "missing"
    return CheckpointError("checkpoint", f"{path}, which is {state}", "a complete file with its original checksum")


def bare(net: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of torch that change names.

    They are those of ``torch.compile`` and ``DataParallel``.
    """
    while True:
        if isinstance(getattr(net, "_orig_mod", None), nn.Module):
            net = net._orig_mod  # type: ignore[assignment]  # the network that torch.compile wraps
        elif isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            net = net.module
        else:
            return net


def bare_name(name: str, net: nn.Module) -> str:
    """Return a weight's name in the network without such wrappers."""
    wrapped = isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    return (name.removeprefix("module.") if wrapped else name).replace("_orig_mod.", "")


def calibration_beside(checkpoint: Path) -> dict[str, Any] | None:
    """Return what a run measured on one of its checkpoints, or None."""
    path = checkpoint.parent.parent / "calibration.json"
    if checkpoint.parent.name != "checkpoints" or not path.exists():
        return None
    found = read_json(path, "folder")
    return found if found.pop("step", None) == _step(checkpoint) else None


def refuse_other_files(folder: Path, what: str = "model") -> None:
    """Raise an error if a folder holds anything else than a saved model.

    Saving would lose it.

    Args:
        folder: The folder to save in.
        what: What is saved, a word for the message, default "model".

    Raises:
        CheckpointError: The folder holds another file.
    """
    others = sorted({file.name for file in folder.iterdir()} - set(FILES)) if folder.is_dir() else []
    if others:
        raise CheckpointError("folder", f"{folder}, which holds {others[0]}", f"a new folder, or that of a {what}")
