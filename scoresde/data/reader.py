"""From a dataset and the numbers of some items to a batch in model space."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import Data
from scoresde.data.dequantization import Dequantization, Uniform
from scoresde.data.foreign import collate, further_entry, say_unused, scaling_of
from scoresde.data.mapped import Mapped
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fix the randomness inside a dataset (augmentations) by ``seed``.

    The global generators are restored afterwards.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


class Reader:
    """A reader of batches in model space.

    A batch is a pure function of the numbers of its items and a seed.

    Args:
        data: a :class:`Data`, a :class:`Mapped`, or any map-style dataset.
        share: ``(index, count)``: keep the items index, index + count, ... of each batch. The noise of dequantisation
            is still that of the whole batch.
        dequantization: the noise in the bins of integers. None: :class:`Uniform`.
        scaling: the map to model space for integers of other libraries' datasets (:func:`scaling_of`).
        flip: whether to mirror half of the items, chosen at random, along their last axis.
        conditions: names of further entries of mapping items, which a batch then holds too.

    Raises:
        ArgumentError: ``flip`` for another library's dataset, which has its own augmentation. ``conditions`` for
            :class:`Data` or :class:`Mapped`, whose items have no further entries.
    """

    def __init__(
        self,
        data: Any,
        share: tuple[int, int] = (0, 1),
        dequantization: Dequantization | None = None,
        scaling: Scaling | None = None,
        flip: bool = False,
        conditions: Sequence[str] = (),
    ):
        self.conditions, self._seen = tuple(conditions), False
        if conditions and isinstance(data, (Data, Mapped)):
            expected = "empty for Data; a list of mappings such as {'x': x, 'low': low} has further entries"
            raise ArgumentError("conditions", ", ".join(conditions), expected)
        self.data, self.share, self.scaling, self.flip = data, share, scaling, flip
        if flip and not isinstance(data, (Data, Mapped)):
            raise ArgumentError("flip", flip, "False for another library's dataset: its own transforms augment it")
        self.dequantization = Uniform() if dequantization is None else dequantization

    def __call__(self, rows: Tensor, seed: int) -> dict[str, Tensor]:
        """Return this share of the items ``rows`` as a batch.

        The batch is ``{"x": (B, *D), "label": (B,)}``, without "label" if the data have no labels. Data with missing
        values have "observed" ``(B, *D)`` too, and x = 0 where it is False.
        """
        index, count = self.share
        if isinstance(self.data, (Data, Mapped)):
            raw = self.data.rows(rows) if isinstance(self.data, Mapped) else self.data.raw[rows]
            generator = torch.Generator().manual_seed(seed)
            x = self.dequantization.training_data(raw, self.data.scaling, generator)
            if self.flip:
                mirrored = torch.rand(len(x), generator=generator) < 0.5
                x = torch.where(mirrored.reshape(-1, *(1,) * (x.ndim - 1)), x.flip(-1), x)
            x = x[index::count]
            batch = {"x": x} if self.data.labels is None else {"x": x, "label": self.data.labels[rows][index::count]}
            if getattr(self.data, "missing", False):
                batch["observed"] = ~x.isnan()
                batch["x"] = x.nan_to_num()  # 0, the mean unless normalize="none"
            return batch
        own = rows[index::count].tolist()
        with _seeded(seed + index):
            several = getattr(self.data, "__getitems__", None)
            items = [self.data[i] for i in own] if several is None else several(own)
        return self.to_model(items, seed, own)

    def to_model(self, items: Sequence[object], seed: int, rows: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return items of this share, with the numbers ``rows``, as a batch."""
        raw, labels, observed = collate(items, rows)
        further = {name: further_entry(items, name) for name in self.conditions}
        if not self._seen:
            self._seen = True
            say_unused(items[0], self.conditions)
        scaling = scaling_of(raw, self.scaling)
        if scaling is not None:
            index, count = self.share
            streams = [torch.Generator().manual_seed(seed + index + count * i) for i in range(len(raw))]
            raw = self.dequantization.training_data(scaling.check_integers(raw), scaling, streams)
        batch = {"x": raw} if labels is None else {"x": raw, "label": labels}
        return batch | further | ({} if observed is None else {"observed": observed})
