"""The loss on held-out data, by which checkpoints are compared."""

from __future__ import annotations

import torch

from scoresde.data import Data, Dequantization, Mapped
from scoresde.data.reader import Reader
from scoresde.models import ScoreModel
from scoresde.training.config import TrainerConfig
from scoresde.training.objectives import Objective

ITEMS = 2048  # items that tell which checkpoint is best


def held_out_loss(
    model: ScoreModel,
    objective: Objective,
    data: Data | Mapped,
    config: TrainerConfig,
    generator: torch.Generator,
    dequantization: Dequantization | None = None,
) -> float:
    """Return the mean loss per entry over the first 2048 items of ``data``.

    Args:
        model: model in evaluation mode.
        objective: loss; a copy that may learn from what it sees.
        config: settings of the training: size of the batches, the pieces of one, and whether the model is conditional.
        generator: source of times and noise.
        dequantization: noise in the bins of integer data. None: uniform.
    """
    reader, losses = Reader(data, dequantization=dequantization), []
    for rows in torch.split(torch.arange(min(len(data), ITEMS)), -(-config.batch_size // config.accumulate)):
        batch = {key: value.to(model.device) for key, value in reader(rows, int(rows[0])).items()}
        cond = {"y": batch["label"]} if config.conditional else None
        losses.append(objective(model, batch["x"], cond, generator).detach() / batch["x"][0].numel())
    return torch.cat(losses).double().mean().item()
