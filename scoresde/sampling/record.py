"""Sizes of a run's states, to say at the end what went wrong and where."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from scoresde.errors import SamplingWarning
from scoresde.models import Model
from scoresde.sampling.base import State
from scoresde.sde.tensors import flat

#: Root mean square of a sample over that of data at the largest length, above which the sample is not one of the data.
#: Guidance with w = 7.5 leaves the data's scale by less than 10.
FAR = 100.0


class Record:
    """The sizes of a run's states, kept on the device."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float]] = []  # step, steps, t
        self.sizes: list[Tensor] = []  # of each state the largest root mean square of a sample; NaN if x has one

    def add(self, state: State) -> None:
        """Add a state, without waiting for the device."""
        self.seen.append((state.step, state.steps, state.t))
        self.sizes.append(_size(state.x).amax())

    def first_bad(self) -> str:
        """Return which step gave the first NaN or infinity, for a message."""
        good = torch.stack(self.sizes).isfinite().tolist()
        return self.step(good.index(False) if False in good else len(good) - 1)

    def step(self, index: int) -> str:
        """Return the step that led to a state, for a message."""
        if not index:
            return "the start"
        before, (step, steps, t) = self.seen[index - 1][2], self.seen[index]
        return f"step {step} of {steps}, from t = {before:.6g} to {t:.6g}"


def _size(x: Tensor) -> Tensor:
    """Return the root mean square of each sample, ``(B,)``.

    It is computed in float32 at least.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return flat(x).to(dtype).square().mean(1).sqrt()


def check_scale(model: Model, record: Record, last: State) -> None:
    """Warn about samples that are far out of the data's scale.

    Without a known scale, samples should not be wider than the noise that they began with.

    Args:
        model: The model, which may know the scale of its data.
        record: All states.
        last: The last of them.
    """
    levels = model.sde.levels(torch.tensor([t for *_, t in record.seen], dtype=torch.float64))
    scale, moments = model.known_scale(), model.moments
    if scale is not None:
        centre = 0.0 if moments is None else moments.mean.square().mean().sqrt().item()
        known, bound = (
            f"where the data's is about {math.hypot(centre, scale.typical):.3g}",
            centre + FAR * scale.largest,
        )
    else:
        first = levels[0]
        bound = 2 * record.sizes[0].item() / max(first.alpha, torch.finfo(torch.float64).tiny)
        known = f"where they began at {bound / 2:.3g}"
    sizes = _size(last.x)
    far = int((sizes > bound).sum())
    if not far:
        return
    bounds = [level.alpha * bound + level.sigma * FAR for level in levels]
    over = [size > most for size, most in zip(torch.stack(record.sizes).tolist(), bounds, strict=True)]
    where = record.step(over.index(True) if True in over else len(over) - 1)
    warnings.warn(
        f"{far} of {len(sizes)} samples are out of the scale of the data: their root mean square is up to "
        f"{sizes.max().item():.3g}, {known}. They left it at {where}. The solver diverged, or the guidance is too "
        "strong. Take more steps, a lower order (DPMSolver(order=1, corrector=False)), or less guidance.",
        SamplingWarning,
        stacklevel=4,
    )
