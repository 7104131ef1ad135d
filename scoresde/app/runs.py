"""The run folder, with everything that belongs to one model.

=================  ==============================================================================
config.yaml        all settings
meta.json          versions, the first command, and the step and duration of each stage
log.jsonl          one record of the training per line
log.csv            the same records as a table
tensorboard/       the same records for TensorBoard, if train.tensorboard is on
checkpoints/       step-N folders, each a model and the state of its training
samples-*.npz      samples, one file per sampler
likelihood*.csv    log-likelihoods, one item per line
restored/          items drawn given observations, one folder per kind of observation
classifier/        a classifier of noisy data (``NoiseAwareClassifier.from_pretrained``)
images/            samples and data as PNG files and .npz, for other libraries' metrics
evaluation.json    comparison with baselines and corrupted data
pictures/          PNG files; pictures/training/ has samples drawn during the training
report.html        all results on one page
=================  ==============================================================================
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
    """A run folder, made by :meth:`create` or found by :meth:`open`.

    Files are written completely or not at all. Of the processes of a torchrun, rank 0 alone writes; the others only
    read.

    Attributes:
        path: the folder.
        config: its settings.
        meta: content of ``meta.json``.
    """

    def __init__(self, path: Path, config: RunConfig, meta: dict[str, Any]):
        self.path, self.config, self.meta = path, config, meta
        self.read_only = "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, command: str = "") -> RunFolder:
        """Return a new run in ``path``, which must be new or empty.

        Raises:
            RunFolderError: a folder that is not empty, or cannot be made.
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
            run = cls(path, config, meta)
            run.save_meta()  # first: it shows whose folder this is, if the process ends here
            save_config(config, path / "config.yaml")
        except OSError as error:
            raise RunFolderError("out", f"{path} ({error.strerror})", "a writable place") from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the run in ``path``.

        Raises:
            RunFolderError: a missing folder, or one that is not a run.
            ConfigError: unreadable settings.
        """
        path = Path(path)
        if not path.is_dir():
            from scoresde.models.pretrained import bundled

            names = ", ".join(map(repr, bundled()))
            expected = f"a folder that `scoresde train` made, or the name of a bundled model: {names}"
            raise RunFolderError("run", f"{path}, which does not exist", expected)
        if not (path / "config.yaml").is_file():
            inside = f", which is part of the run {path.parent.parent}" if path.parent.name == "checkpoints" else ""
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
        """Replace the run's settings by ``config``."""
        if not self.read_only:
            save_config(config, self.path / "config.yaml")
        self.config = config

    def save_meta(self) -> None:
        """Write ``meta.json``."""
        self.write("meta.json", json.dumps(self.meta, indent=2) + "\n")

    @contextmanager
    def stage(self, name: str, since: float = 0.0, **facts: Any) -> Iterator[None]:
        """Record a stage as done with the newest checkpoint when the block ends.

        Args:
            name: Name of the stage.
            since: Seconds spent on it before.
            facts: What to record besides the step and the seconds.
        """
        begun = time.monotonic() - since
        yield
        self.meta["stages"][name] = {"step": self.step, "seconds": round(time.monotonic() - begun, 2), **facts}
        self.save_meta()

    def done(self, name: str) -> bool:
        """Return True if a stage was done with the newest checkpoint."""
        return bool(self.meta["stages"].get(name, {}).get("step", -1) == self.step)

    def withdraw(self) -> None:
        """Remove a run that holds nothing but its settings."""
        if not self.read_only and {path.name for path in self.path.iterdir()} == {"config.yaml", "meta.json"}:
            (self.path / "config.yaml").unlink()
            (self.path / "meta.json").unlink()
            self.path.rmdir()

    def sweep(self) -> None:
        """Remove the partial files of a killed process."""
        if not self.read_only:
            for path in (*self.path.glob(".*.part"), *self.path.glob("pictures/**/.*.part")):
                path.unlink(missing_ok=True)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        from scoresde.training.checkpoints import checkpoints

        return max((int(path.name.removeprefix("step-")) for path in checkpoints(self.checkpoints)), default=None)

    def model(self, device: str = "cpu") -> ScoreModel:
        """Return the averaged model of the newest checkpoint, in evaluation mode.

        It has the calibration of that checkpoint, if there is one.

        Args:
            device: See :func:`~scoresde.training.devices.pick_device`, default the CPU.

        Raises:
            CheckpointError: no checkpoint yet, or a damaged one, or a damaged ``calibration.json``.
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
        """Return the records of the log, except for incomplete lines."""
        path = self.path / "log.jsonl"
        records = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def rewind_log(self, step: int) -> None:
        """Remove what was logged after ``step``, where the training continues."""
        if not (self.path / "log.jsonl").exists():
            return
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        self.write("log.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    # ---- results ---------------------------------------------------------------------------------------------------

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run, and return its path."""
        path = self.path / name
        return path if self.read_only else write_atomically(path, content)

    def picture(self, name: str, png: bytes) -> Path:
        """Write ``pictures/name.png``, and return its path."""
        return self.write(f"pictures/{name}.png", png)

    def pictures(self) -> list[Path]:
        """Return the pictures drawn so far, by name."""
        return sorted((self.path / "pictures").glob("*.png"))

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


class Interrupted(Exception):
    """A signal stopped the training, and its state was saved.

    Attributes:
        exit_code: exit code that a shell expects, 128 + signal.
        command: command that continues the run.
    """

    def __init__(self, signum: int, command: str):
        self.exit_code, self.command = 128 + signum, command
        super().__init__(f"Stopped. Nothing is lost; continue with:\n  {command}")


def has_run(path: Path) -> bool:
    """Return whether ``path`` holds a run."""
    return (path / "config.yaml").is_file() and (path / "meta.json").is_file()


def remove_half(path: Path) -> None:
    """Remove what a process left that was killed while it made a run.

    That is ``meta.json`` alone, of our format.
    """
    meta = path / "meta.json"
    if path.is_dir() and list(path.iterdir()) == [meta] and read_json(meta, "run").get("format") == FORMAT:
        meta.unlink()


def refuse_full(path: Path) -> None:
    """Raise a RunFolderError if ``path`` exists and is not an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if has_run(path):
            raise RunFolderError(
                "out",
                f"{path}, which holds a run already",
                "another folder, or used with --resume",
            )
        raise RunFolderError("out", f"{path}, which exists and is not empty", "a new or an empty folder")
