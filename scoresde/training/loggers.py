"""Loggers of a training's records: CSV files, and those of three trackers.

TensorBoard, Weights & Biases and MLflow are the extras ``tensorboard``, ``wandb`` and ``mlflow``.
"""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError
from scoresde.extras import check_installed, optional
from scoresde.files import write_atomically
from scoresde.training.records import Record

LEVEL = "loss_by_log_snr/"


def numbers_of(record: Record) -> dict[str, float]:
    """Return a record's numbers by name, and the loss of each noise level.

    The names are the record's fields, ``loss_by_log_snr/+1.2`` and ``skipped``, a count.
    """
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    numbers |= {f"{LEVEL}{log_snr:+.1f}": loss for log_snr, loss in record.by_level}
    return numbers | {"skipped": float(len(record.skipped))}


class Logger(ABC):
    """A callback that writes a training's records somewhere.

        with CSVLog("log.csv") as log:
            trainer.fit(data, callback=log)

    A subclass writes numbers, and pictures if it can.
    """

    def __call__(self, record: Record) -> None:
        """Write the numbers of a record."""
        self.write(numbers_of(record), record.step)

    @abstractmethod
    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers by name, those of ``step``."""

    def images(self, name: str, images: Tensor, step: int) -> None:  # noqa: B027 (a logger without pictures)
        """Write images ``(B, C, H, W)`` in [0, 1], if the logger has pictures."""

    def close(self) -> None:  # noqa: B027 (a logger with nothing to close)
        """Finish the log."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@checked
class CSVLog(Logger):
    """A logger that writes a CSV file with one row a record.

    A new column, such as a noise level that was not drawn before, is added to all rows; what is unknown stays empty.

    Args:
        path: the file. One that exists is continued.
        before: step up to which its rows are kept. None: all.

    Raises:
        ArgumentError: a file that exists and has no column ``step``.
    """

    def __init__(self, path: str | Path, before: int | None = None):
        self.path, self._rows = Path(path), list[dict[str, str]]()
        if self.path.is_dir():
            raise ArgumentError("path", self.path, "a file, not a folder")
        if self.path.exists():
            text = self.path.read_text()
            reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))  # a killed run cuts off the last row
            if "step" not in (reader.fieldnames or ()):
                raise ArgumentError("path", self.path, "a new file, or the CSV log of a training")
            rows = [row for row in reader if row["step"].isdigit()]
            self._rows = [row for row in rows if before is None or int(row["step"]) <= before]
            self._rewrite()

    @property
    def _columns(self) -> list[str]:
        found = dict.fromkeys(key for row in self._rows for key in row)
        levels = sorted((key for key in found if key.startswith(LEVEL)), key=lambda key: float(key[len(LEVEL) :]))
        return [key for key in found if not key.startswith(LEVEL)] + levels

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        known = self._columns
        row = {"step": str(step)} | {name: repr(value) for name, value in numbers.items()}
        self._rows.append(row)
        if self._columns != known:
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, known, restval="").writerow(row)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns or ["step"], restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self.path, text.getvalue())


class TensorBoard(Logger):
    """A logger for TensorBoard.

    Args:
        folder: folder of the event files.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path):
        check_installed("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def images(self, name: str, images: Tensor, step: int) -> None:
        self._writer.add_images(name, _gray_or_rgb(images), step)

    def close(self) -> None:
        self._writer.close()


class WandB(Logger):
    """A logger for Weights & Biases.

    Args:
        options: arguments of ``wandb.init``, such as ``project``, ``name``, ``config``, ``dir``, ``mode="offline"``, or
            ``id`` with ``resume="allow"`` to continue a run.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, **options: Any):
        self._wandb = optional("wandb")
        self._run = self._wandb.init(**options)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def images(self, name: str, images: Tensor, step: int) -> None:
        pictures = [self._wandb.Image(image) for image in _pixels(images)]
        self._run.log({name: pictures}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(Logger):
    """A logger for MLflow.

    The server is MLflow's own choice, as ``MLFLOW_TRACKING_URI`` sets it.

    Args:
        params: settings to log at the start, by name.
        options: arguments of ``mlflow.start_run``, such as ``run_name``, or ``run_id`` to continue a run.

    Raises:
        MissingExtraError: mlflow is not installed.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, **options: Any):
        self._mlflow = optional("mlflow")
        run = self._mlflow.start_run(**options)
        self.run_id: str = run.info.run_id
        if params and "run_id" not in options:
            self._mlflow.log_params(dict(params), run_id=self.run_id)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        named = {name.replace("+", ""): value for name, value in numbers.items()}  # MLflow's names have no plus
        self._mlflow.log_metrics(named, step=step, run_id=self.run_id)

    def images(self, name: str, images: Tensor, step: int) -> None:
        for i, image in enumerate(_pixels(images)):
            self._mlflow.log_image(image, key=f"{name}-{i}", step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _gray_or_rgb(images: Tensor) -> Tensor:
    """Return images with one channel or three."""
    return images if images.shape[1] in (1, 3) else images[:, :3]


def _pixels(images: Tensor) -> list[Any]:
    """Return images as arrays ``(H, W)`` or ``(H, W, 3)`` of 8 bits."""
    pixels = (255 * _gray_or_rgb(images)).round().clamp(0, 255).byte().movedim(1, -1).cpu().numpy()
    return [image[..., 0] if image.shape[-1] == 1 else image for image in pixels]
