"""Records of a training, skipped steps, and the search for NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.errors import NonFiniteError
from scoresde.sde import SDE
from scoresde.sde.grids import time_range
from scoresde.training.distributed import Ranks
from scoresde.training.objectives import Terms

BINS = 8  # bins of log-SNR in a record
SKIPS = 100  # bad steps in a row that end a run which skips them


class Skip(NamedTuple):
    """A step whose update was left out, and the noise level of its bad loss.

    ``t`` and ``log_snr`` are None if all losses were finite and only the gradient overflowed.
    """

    step: int
    t: float | None
    log_snr: float | None


@dataclass(frozen=True)
class Record:
    """State of a training after some steps; times in seconds.

    Attributes:
        step, steps: steps done, and steps in all (an estimate with ``minutes``).
        loss: mean loss per entry of the data, over the steps since the last record.
        grad_norm: mean norm of the gradient before clipping, over the same steps.
        lr: learning rate.
        steps_per_second, seconds_left: speed since the last record, and the time left at that speed.
        by_level: pairs (log-SNR, loss): the mean loss per entry in each of 8 equal bins of log-SNR. Bins in which no
            time was drawn are left out.
        skipped: steps left out since the last record.
        held_out: loss of the averaged model on held-out data at the newest checkpoint, with the same times and noise
            each time. None without held-out data.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    steps_per_second: float
    seconds_left: float
    by_level: tuple[tuple[float, float], ...] = ()
    skipped: tuple[Skip, ...] = ()
    held_out: float | None = None


def record_of(saved: Mapping[str, Any]) -> Record:
    """Return a record from its fields, as JSON gives them back."""
    by_level = tuple((level, loss) for level, loss in saved["by_level"])
    return Record(**{**saved, "by_level": by_level, "skipped": tuple(Skip(*skip) for skip in saved["skipped"])})


class StepResult(NamedTuple):
    """Result of an optimiser step.

    Attributes:
        entries: entries of an item.
        terms: terms of each piece of the batch.
        norm: norm of the gradient, ``()``.
    """

    entries: int
    terms: list[Terms]
    norm: Tensor


class Totals(NamedTuple):
    """The fields of a :class:`Record` that a tally gives."""

    loss: float
    grad_norm: float
    by_level: tuple[tuple[float, float], ...]
    skipped: tuple[Skip, ...]


class Tally:
    """Losses, times and gradient norms of the steps since the last record.

    They stay on the device until they are collected.
    """

    def __init__(self) -> None:
        self.new: list[StepResult] = []
        self.rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.skipped: list[Skip] = []

    def collect(self, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        """Move the new results to the host, and return them.

        These are losses per entry and times ``(steps, B)``, and norms ``(steps,)``.
        """
        pieces = [piece for result in self.new for piece in result.terms]
        columns = torch.stack([torch.cat([piece[i] for piece in pieces]).cpu().double() for i in range(3)])
        columns = columns.reshape(3, len(self.new), -1)
        norms = torch.stack([result.norm for result in self.new]).cpu().double()
        loss, t, value = torch.cat(ranks.gather(columns, dim=2), dim=2)
        entries = torch.tensor([result.entries for result in self.new])[:, None]
        self.new = []
        self.rows.append((loss / entries, t, value / entries, norms))
        return loss / entries, t, norms

    def totals(self, sde: SDE) -> Totals:
        """Return the means over the steps whose loss and gradient were finite."""
        loss, t, value, norms = map(torch.cat, zip(*self.rows, strict=True))
        good = loss.isfinite().all(1) & norms.isfinite()
        low, high = sde.log_snr(torch.tensor(time_range(sde), dtype=torch.float64)).flip(0).tolist()
        place = (sde.log_snr(t[good].flatten()) - low) * (BINS / (high - low))
        bins = place.clamp(0, BINS - 1).long()
        count = torch.bincount(bins, minlength=BINS)
        mean = torch.bincount(bins, value[good].flatten(), BINS) / count
        centres = low + (torch.arange(BINS) + 0.5) * ((high - low) / BINS)
        by_level = [(round(c, 3), m) for c, m, n in zip(*map(Tensor.tolist, (centres, mean, count)), strict=True) if n]
        return Totals(loss[good].mean().item(), norms[good].mean().item(), tuple(by_level), tuple(self.skipped))


class NaNWatch:
    """Search for steps whose loss or gradient is not finite.

    Such a step is skipped, or ends the training.

    Args:
        sde: process of the training, for the log-SNR of a step.
        stopping: end at the first bad step; False skips up to 99 in a row.
        scaled: float16: a gradient that overflows alone is no error, as the loss scaler skips the step.
        folder: where checkpoints go, for the message.
    """

    def __init__(self, sde: SDE, stopping: bool, scaled: bool, folder: Path | None):
        self.sde, self.stopping, self.scaled, self.folder = sde, stopping, scaled, folder
        self.streak = 0

    def look(self, first: int, loss: Tensor, t: Tensor, norms: Tensor) -> list[Skip]:
        """Return the bad steps among those from ``first`` on.

        Args:
            first: number of the first step.
            loss, t: losses and times ``(steps, B)``.
            norms: gradient norms ``(steps,)``.

        Raises:
            NonFiniteError: a bad step ends the training.
        """
        skipped, bad_loss = [], ~loss.isfinite()
        for i, bad in enumerate((bad_loss.any(1) | ~norms.isfinite()).tolist()):
            if not bad:
                self.streak = 0
                continue
            self.streak += 1
            skip = Skip(first + i, None, None)
            if bad_loss[i].any():
                t_bad = t[i, bad_loss[i]][0]
                skip = Skip(first + i, t_bad.item(), self.sde.log_snr(t_bad).item())
            overflow = skip.t is None and self.scaled
            if self.streak >= SKIPS or (self.stopping and not overflow):
                raise NonFiniteError(self._message(skip))
            skipped.append(skip)
        return skipped

    def _message(self, skip: Skip) -> str:
        what = "loss is NaN or infinite" if skip.t is not None else "gradient is NaN or infinite"
        where = "" if skip.t is None else f", at noise level t = {skip.t:.4g} (log-SNR {skip.log_snr:.3g})"
        often = "" if self.stopping else f", the last of {self.streak} in a row"
        kept = "" if self.folder is None else f"; the checkpoints in {self.folder} are older"
        return f"the {what} at step {skip.step}{where}{often}{kept}"
