"""The loss on held-out data, by which checkpoints are compared."""

from __future__ import annotations

import torch

from scoresde.data import Data, Dequantization, Mapped
from scoresde.data.reader import Reader
from scoresde.models import ScoreModel
from scoresde.training.config import TrainerConfig
from scoresde.training.distributed import Ranks
from scoresde.training.objectives import Objective

ITEMS = 2048  # items that tell which checkpoint is best


@torch.no_grad()
def held_out_loss(
    model: ScoreModel,
    objective: Objective,
    data: Data | Mapped,
    config: TrainerConfig,
    generator: torch.Generator,
    dequantization: Dequantization | None = None,
    ranks: Ranks | None = None,
) -> float:
    """Return the mean loss per entry over the first 2048 items of ``data``.

    Args:
        model: model in evaluation mode.
        objective: loss, which learns nothing from what it sees here.
        config: settings of the training: size of the batches, the pieces of one, and whether the model is conditional.
        generator: source of times and noise, on the CPU; each piece of the items gets its seed from it.
        dequantization: noise in the bins of integer data. None: uniform.
        ranks: processes among which the pieces are divided; each gets the loss, which does not depend on their number.
            None: this one alone.
    """
    ranks = Ranks() if ranks is None else ranks
    reader, n = Reader(data, dequantization=dequantization), min(len(data), ITEMS)
    pieces = torch.split(torch.arange(n), -(-config.batch_size // config.accumulate))
    seeds = torch.randint(2**62, (len(pieces),), generator=generator).tolist()
    losses = torch.zeros(n, dtype=torch.float64)
    for rows, seed in list(zip(pieces, seeds, strict=True))[ranks.rank :: ranks.world]:
        batch = {key: value.to(model.device) for key, value in reader(rows, int(rows[0])).items()}
        cond = {"y": batch["label"]} if config.conditional else None
        draws = torch.Generator(model.device if model.device.type in ("cpu", "cuda") else "cpu").manual_seed(seed)
        mask = {"observed": batch["observed"]} if "observed" in batch else {}
        losses[rows] = (objective(model, batch["x"], cond, draws, **mask) / batch["x"][0].numel()).double().cpu()
    return sum(ranks.gather(losses), torch.zeros(())).mean().item()
