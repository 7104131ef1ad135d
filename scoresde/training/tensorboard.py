"""Records for TensorBoard, which is an extra: ``scoresde[tensorboard]``."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from scoresde.errors import MissingExtraError
from scoresde.training.records import Record


class TensorBoard:
    """A callback that writes a training's records for TensorBoard.

        with TensorBoard("runs/digits/tensorboard") as board:
            trainer.fit(data, callback=board)

    Args:
        folder: Folder of the event files.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path):
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def __call__(self, record: Record) -> None:
        """Write the numbers of a record, and the loss of each noise level."""
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, float):
                self._writer.add_scalar(field.name, value, record.step)
        for log_snr, loss in record.by_level:
            self._writer.add_scalar(f"loss_by_log_snr/{log_snr:+.1f}", loss, record.step)
        self._writer.add_scalar("skipped", len(record.skipped), record.step)

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Write images ``(B, C, H, W)`` in [0, 1]."""
        self._writer.add_images(name, images if images.shape[1] in (1, 3) else images[:, :3], step)

    def close(self) -> None:
        """Close the files."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
