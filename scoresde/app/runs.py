"""The run folder: one place for all that belongs to one model.

config.yaml        every setting, resolved
meta.json          versions, the command that began the run, and what was done at which step, in how many seconds
log.jsonl          a record of the training per line
tensorboard/       the same for TensorBoard, if train.tensorboard is on
checkpoints/       step-N folders, each a model for ``ScoreModel.from_pretrained`` and the state of its training
samples-*.npz      samples, one file a sampler
likelihood*.csv    log-likelihoods, an item a line
restored/          items drawn from observations of them, a folder for each kind of observation
classifier/        a classifier of noisy data, for ``NoiseAwareClassifier.from_pretrained``
evaluation.json    the model against baselines and corrupted data
pictures/          PNG files; in training/, samples drawn on the way
report.html        all of it on one page
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.app.config import RunConfig
from scoresde.app.config_files import load_config, save_config
from scoresde.errors import CheckpointError, RunFolderError
from scoresde.files import read_json, write_atomically
from scoresde.version import __version__

if TYPE_CHECKING:
    from scoresde.models import ScoreModel

FORMAT = "scoresde-run-1"


class RunFolder:
    """A folder made by :meth:`create`, or found by :meth:`open`; all writes are whole or not at all.

    Of the processes of a torchrun rank 0 alone writes; to the others it can only be read.

    Attributes:
        path: the folder.
        config: its settings, a :class:`~scoresde.app.config.RunConfig`.
        meta: what ``meta.json`` holds.
    """

    def __init__(self, path: Path, config: RunConfig, meta: dict[str, Any]):
        self.path, self.config, self.meta = path, config, meta
        self.read_only = "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, command: str = "") -> RunFolder:
        """A new run in ``path``, which must be new or empty.

        Raises:
            RunFolderError: the folder holds something already, or cannot be made.
        """
        import torch

        path = Path(path)
        refuse_full(path)
        meta = {
            "format": FORMAT,
            "scoresde": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "command": command,
            "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stages": {},
        }
        try:
            save_config(config, path / "config.yaml")
            run = cls(path, config, meta)
            run.save_meta()
        except OSError as error:
            raise RunFolderError("out", f"{path} ({error.strerror})", "a place that can be written") from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in ``path``.

        Raises:
            RunFolderError: there is no such folder, or it is not a run.
            ConfigError: its settings do not read back.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunFolderError("run", f"{path}, which does not exist", "a folder that `scoresde train` made")
        if not (path / "config.yaml").is_file():
            inside = f", which lies in one; that is {path.parent.parent}" if path.parent.name == "checkpoints" else ""
            raise RunFolderError(
                "run", f"{path} (no config.yaml){inside}", "a run folder, such as `scoresde train` makes"
            )
        try:
            meta = read_json(path / "meta.json", "run")
        except CheckpointError as error:
            raise RunFolderError("run", error.got, "a run folder with its meta.json") from error
        if meta.get("format") != FORMAT:
            raise RunFolderError("run", f"{path} (format {meta.get('format')!r})", f"a run folder of format {FORMAT!r}")
        meta.setdefault("stages", {})
        return cls(path, load_config(path / "config.yaml", preset="none"), meta)

    # ---- settings and bookkeeping ----------------------------------------------------------------------------------

    def save_config(self, config: RunConfig) -> None:
        """Make ``config`` the run's settings."""
        if not self.read_only:
            save_config(config, self.path / "config.yaml")
        self.config = config

    def save_meta(self) -> None:
        """Write ``meta.json``."""
        self.write("meta.json", json.dumps(self.meta, indent=2) + "\n")

    @contextmanager
    def stage(self, name: str, since: float = 0.0, **facts: Any) -> Iterator[None]:
        """Note, when the block ends well, that ``name`` was done with the newest checkpoint, and how long it took.

        ``since`` is how many seconds were spent on it before; ``facts`` are kept with the note.
        """
        begun = time.monotonic() - since
        yield
        self.meta["stages"][name] = {"step": self.step, "seconds": round(time.monotonic() - begun, 2), **facts}
        self.save_meta()

    def done(self, name: str) -> bool:
        """Whether a stage was done with the newest checkpoint."""
        return self.meta["stages"].get(name, {}).get("step", -1) == self.step

    def withdraw(self) -> None:
        """Remove a run that never began: one that holds nothing but its settings."""
        if not self.read_only and {path.name for path in self.path.iterdir()} == {"config.yaml", "meta.json"}:
            (self.path / "config.yaml").unlink()
            (self.path / "meta.json").unlink()
            self.path.rmdir()

    def sweep(self) -> None:
        """Remove what a killed process left of files it was writing."""
        if not self.read_only:
            for path in (*self.path.glob(".*.part"), *self.path.glob("pictures/**/.*.part")):
                path.unlink(missing_ok=True)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        from scoresde.training.checkpoints import checkpoints

        return max((int(path.name.removeprefix("step-")) for path in checkpoints(self.checkpoints)), default=None)

    def model(self, device: str = "cpu") -> ScoreModel:
        """The model of the newest checkpoint, its averaged weights, in evaluation mode; device "auto" is the fastest.

        Raises:
            CheckpointError: none yet, or one that is damaged.
        """
        from scoresde.models import ScoreModel
        from scoresde.training.checkpoints import latest_checkpoint
        from scoresde.training.devices import pick_device

        return ScoreModel.from_pretrained(latest_checkpoint(self.checkpoints), pick_device(device))

    # ---- the log ---------------------------------------------------------------------------------------------------

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record to ``log.jsonl``."""
        if not self.read_only:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(record)) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The records of the log; a last line cut short by a crash is left out."""
        path = self.path / "log.jsonl"
        records = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def rewind_log(self, step: int) -> None:
        """Drop what was logged after ``step``, where training is taken up again; without a log nothing is done."""
        if not (self.path / "log.jsonl").exists():
            return
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        self.write("log.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    # ---- results ---------------------------------------------------------------------------------------------------

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run."""
        path = self.path / name
        return path if self.read_only else write_atomically(path, content)

    def picture(self, name: str, png: bytes) -> Path:
        """Write ``pictures/name.png``."""
        return self.write(f"pictures/{name}.png", png)

    def pictures(self) -> list[Path]:
        """The pictures drawn so far, by name."""
        return sorted((self.path / "pictures").glob("*.png"))

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


class Interrupted(Exception):
    """Training was stopped by a signal, its state saved; ``exit_code`` is the one a shell expects (128 + signal)."""

    def __init__(self, signum: int, command: str):
        self.exit_code, self.command = 128 + signum, command
        super().__init__(f"Stopped. Nothing is lost; go on with:\n  {command}")


def refuse_full(path: Path) -> None:
    """Raise a RunFolderError if ``path`` exists and is not an empty folder: nothing is ever overwritten."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if (path / "config.yaml").is_file() and (path / "meta.json").is_file():
            raise RunFolderError(
                "out", f"{path}, which holds a run already", "another folder, or --resume to go on with that run"
            )
        raise RunFolderError("out", f"{path}, which exists and is not empty", "a new or an empty folder")
