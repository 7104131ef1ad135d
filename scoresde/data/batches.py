"""Endless streams of batches that can be stopped and taken up again, bit for bit."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scoresde.data.dequantization import Dequantization
from scoresde.data.loading import Reader, is_map_style
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, CheckpointError, DataError, DeviceError

SEEDS = 2**62


class BatchStream(Iterator):
    """Batches ``{"x": (B, *D), "label": (B,)}`` on the CPU, for ever; x in model space, "label" where there are labels.

    Integers are dequantised afresh in each batch, by a seed that is drawn with the items: a batch is a function of the
    stream's state alone.

    Args:
        data: where the items come from.
        batch_size: B, 1 or more.
        generator: on the CPU; the only source of chance.
        share: ``(index, count)``: of each batch of B keep the items index, index + count, ...; the shares of ``count``
            processes with equal generators make up the batches of one.
        dequantization: the law of the noise that integers get, uniform by default.
        scaling: the map to model space for the integers of a foreign dataset; 8-bit ones have one of their own.
        flip: mirror half of the items at random along their last axis, left to right; not for foreign datasets.
        pin: put batches in page-locked memory, from which they are copied to a CUDA device without waiting.

    Raises:
        ArgumentError: ``batch_size`` is not a positive integer, or smaller than the number of shares.
        DataError: the dataset is empty, or an item is of another kind.
        DeviceError: the generator is not on the CPU.
    """

    def __init__(
        self,
        data: Dataset | Iterable,
        batch_size: int,
        generator: torch.Generator,
        *,
        share: tuple[int, int] = (0, 1),
        dequantization: Dequantization | None = None,
        scaling: Scaling | None = None,
        flip: bool = False,
        pin: bool = False,
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError("batch_size", batch_size, "an integer, 1 or more")
        if batch_size < share[1]:
            raise ArgumentError("batch_size", batch_size, f"at least {share[1]}, one item for each share")
        if not isinstance(generator, torch.Generator):
            raise ArgumentError("generator", type(generator).__name__, "a torch.Generator")
        if generator.device.type != "cpu":
            raise DeviceError("generator", generator.device, "a generator on the CPU, where batches are made")
        self.data, self.batch_size, self.generator, self.share, self.pin = data, batch_size, generator, share, pin
        self.reader = Reader(data, share, dequantization, scaling, flip)

    def _seed(self) -> int:
        return int(torch.randint(SEEDS, (), generator=self.generator))

    def _pinned(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.pin_memory() for key, value in batch.items()} if self.pin else batch

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor | int]:
        """Where the stream stands."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on where ``state`` was taken: the batches that follow are the same, bit for bit.

        Raises:
            CheckpointError: the state lacks an entry, or was taken over another number of items.
        """


class Batches(BatchStream):
    """Shuffled batches of a map-style dataset: see :class:`BatchStream`.

    The stream is one permutation of the data after another, cut into pieces of ``batch_size``: every epoch holds each
    item once, every batch is full, and a batch may end one epoch and begin the next (or, larger than the data, hold
    several). From a :class:`~scoresde.data.dataset.Data` a batch is taken in one go; from another dataset item by item (a
    tensor, array or picture x, a pair (x, label), or a mapping with "x" or "image" and perhaps "label").

    Args:
        workers: processes that read ahead, 0 for none. The batches do not depend on it.
    """

    def __init__(self, data: Dataset, batch_size: int, generator: torch.Generator, *, workers: int = 0, **settings):
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ArgumentError("workers", workers, "a whole number of processes, 0 or more")
        super().__init__(data, batch_size, generator, **settings)
        if len(data) == 0:
            raise DataError("data", "an empty dataset", "at least one item")
        self.epoch, self.position = -1, len(data)  # the next draw begins epoch 0
        self.order = torch.arange(len(data))
        self.workers = workers
        self._ahead: deque[dict[str, Tensor | int]] = deque()  # the states before the batches that are being read
        self._loader: Iterator | None = None

    def __next__(self) -> dict[str, Tensor]:
        if not self.workers:
            return self._pinned(self.reader(*self._next_request()))
        if self._loader is None:
            chance = torch.Generator()  # what a DataLoader seeds its workers with; each request has its own seed
            self._loader = iter(
                DataLoader(
                    _Requested(self.reader),
                    None,
                    sampler=self._requests(),
                    num_workers=self.workers,
                    generator=chance,
                )
            )
        batch = next(self._loader)
        self._ahead.popleft()
        return self._pinned(batch)

    def _requests(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            self._ahead.append(self._state())
            yield self._next_request()

    def _next_request(self) -> tuple[Tensor, int]:
        """The items of the next batch, and its seed."""
        pieces, wanted = [], self.batch_size
        while wanted:
            if self.position == len(self.order):
                self.order = torch.randperm(len(self.order), generator=self.generator)
                self.epoch, self.position = self.epoch + 1, 0
            piece = self.order[self.position : self.position + wanted]
            self.position += len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        return torch.cat(pieces), self._seed()

    def _state(self) -> dict[str, Tensor | int]:
        return {
            "order": self.order,
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "position": self.position,
        }

    def state_dict(self) -> dict[str, Tensor | int]:
        """Where the stream stands: tensors "order" and "generator" (its state), integers "epoch" and "position"."""
        state = self._ahead[0] if self._ahead else self._state()
        return state | {"order": state["order"].clone()}

    def load_state_dict(self, state):
        state = _checked(state, ("order", "generator", "epoch", "position"))
        if len(state["order"]) != len(self.data):
            raise CheckpointError("state", f"a stream over {len(state['order'])} items", f"{len(self.data)}, as here")
        self._loader = None
        self._ahead.clear()
        self.order = state["order"].cpu().clone()
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.generator.set_state(state["generator"].cpu())


class StreamBatches(BatchStream):
    """Batches of an iterable, in its own order and begun anew when it ends: see :class:`BatchStream`.

    A ``set_epoch(epoch)`` of the iterable is called before each epoch, as Hugging Face's streams expect. A stream is
    taken up again by reading past what was used before; it has to give the same items in the same order.

    Raises:
        DataError: an iterable without items, or an iterator that ended and cannot be begun anew.
    """

    def __init__(self, data: Iterable, batch_size: int, generator: torch.Generator, **settings):
        super().__init__(data, batch_size, generator, **settings)
        self.epoch, self.position = 0, 0
        self._items: Iterator | None = None

    def _begin(self) -> None:
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(self.epoch)
        self._items = iter(self.data)

    def __next__(self) -> dict[str, Tensor]:
        if self._items is None:
            self._begin()
            skipped = sum(1 for _ in itertools.islice(self._items, self.position))
            if skipped < self.position:
                raise CheckpointError("state", f"{self.position} items of a stream", f"at most the {skipped} it has")
        items, (index, count) = [], self.share
        for place in range(self.batch_size):
            item = self._next_item()
            if place % count == index:
                items.append(item)
        return self._pinned(self.reader.to_model(items, self._seed()))

    def _next_item(self) -> Any:
        for item in self._items:
            self.position += 1
            return item
        if self.position == 0:
            raise DataError("data", "an iterable without items", "at least one item")
        if self._items is self.data:
            raise DataError("data", f"an iterator that ended after {self.position} items", "an iterable to begin anew")
        self.epoch, self.position = self.epoch + 1, 0
        self._begin()
        return self._next_item()

    def state_dict(self) -> dict[str, Tensor | int]:
        """Where the stream stands: a tensor "generator" (its state), integers "epoch" and "position"."""
        return {"generator": self.generator.get_state(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        state = _checked(state, ("generator", "epoch", "position"))
        self._items = None
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.generator.set_state(state["generator"].cpu())


def stream_batches(
    data: Dataset | Iterable, batch_size: int, generator: torch.Generator, *, workers: int = 0, **settings
) -> BatchStream:
    """:class:`Batches` of a map-style dataset, :class:`StreamBatches` of any other iterable, with their settings.

    Raises:
        ArgumentError: neither; a DataLoader; workers for an iterable, which is read in the training's own process.
    """
    if is_map_style(data):
        return Batches(data, batch_size, generator, workers=workers, **settings)
    if workers:
        raise ArgumentError("workers", workers, "0: an iterable is read in one process")
    return StreamBatches(data, batch_size, generator, **settings)


class _Requested(Dataset):
    """What a worker reads: requests in, batches out."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def __getitem__(self, request: tuple[Tensor, int]) -> dict[str, Tensor]:
        return self.reader(*request)


def _checked(state: Mapping[str, Tensor | int], keys: tuple[str, ...]) -> Mapping[str, Tensor | int]:
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError("state", f"a mapping without {', '.join(missing)}", "a state_dict() of such a stream")
    return state
