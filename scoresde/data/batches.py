"""An endless stream of shuffled batches that can be stopped and taken up again, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from scoresde.data.base import Data
from scoresde.errors import ArgumentError, CheckpointError, DataError, DeviceError


class Batches(Iterator):
    """Batches ``{"x": (B, *D), "label": (B,)}`` on the CPU, for ever.

    The stream is one permutation of the data after another, cut into pieces of ``batch_size``: every epoch holds each
    item once, every batch is full, and a batch may end one epoch and begin the next (or, larger than the data, hold
    several). From a :class:`~scoresde.data.base.Data` a batch is taken in one go and dequantised afresh with
    ``generator``; from another map-style dataset item by item (a tensor x, a pair (x, label) or a mapping).

    Args:
        data: a map-style dataset.
        batch_size: B, 1 or more.
        generator: on the CPU; the only source of chance.

    Raises:
        ArgumentError: ``batch_size`` is not a positive integer.
        DataError: the dataset is empty, or an item is of another kind.
        DeviceError: the generator is not on the CPU.
    """

    def __init__(self, data: Dataset, batch_size: int, generator: torch.Generator):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError("batch_size", batch_size, "an integer, 1 or more")
        if len(data) == 0:
            raise DataError("data", "an empty dataset", "at least one item")
        if not isinstance(generator, torch.Generator):
            raise ArgumentError("generator", type(generator).__name__, "a torch.Generator")
        if generator.device.type != "cpu":
            raise DeviceError("generator", generator.device, "a generator on the CPU, where batches are made")
        self.data, self.batch_size, self.generator = data, batch_size, generator
        self.epoch, self.position = -1, len(data)  # the next draw begins epoch 0
        self.order = torch.arange(len(data))

    def __next__(self) -> dict[str, Tensor]:
        index = self._next_indices()
        if isinstance(self.data, Data):
            batch = {"x": self.data.to_model(self.data.raw[index], self.generator)}
            return batch if self.data.labels is None else {**batch, "label": self.data.labels[index]}
        return default_collate([_item(self.data[i]) for i in index.tolist()])

    def _next_indices(self) -> Tensor:
        pieces, wanted = [], self.batch_size
        while wanted:
            if self.position == len(self.order):
                self.order = torch.randperm(len(self.order), generator=self.generator)
                self.epoch, self.position = self.epoch + 1, 0
            piece = self.order[self.position : self.position + wanted]
            self.position += len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        return torch.cat(pieces)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Where the stream stands: tensors "order" and "generator" (its state), integers "epoch" and "position"."""
        return {
            "order": self.order.clone(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on where ``state`` was taken: the batches that follow are the same, bit for bit.

        Raises:
            CheckpointError: the state lacks an entry, or was taken over another number of items.
        """
        missing = [key for key in ("order", "generator", "epoch", "position") if key not in state]
        if missing:
            raise CheckpointError("state", f"a mapping without {', '.join(missing)}", "what Batches.state_dict() gave")
        if len(state["order"]) != len(self.data):
            raise CheckpointError("state", f"a stream over {len(state['order'])} items", f"{len(self.data)}, as here")
        self.order = state["order"].cpu().clone()
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.generator.set_state(state["generator"].cpu())


def _item(item: object) -> dict[str, object]:
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, Tensor):
        return {"x": item}
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2:
        return dict(zip(("x", "label"), item, strict=False))
    raise DataError("data", f"items of type {type(item).__name__}", "a tensor x, a pair (x, label) or a mapping")
