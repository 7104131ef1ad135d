"""Endless streams of batches that can be stopped and resumed, bit for bit."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.data.dequantization import Dequantization
from scoresde.data.foreign import MapStyle, is_map_style
from scoresde.data.reader import Reader
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, CheckpointError, DataError, DeviceError

SEEDS = 2**62


class BatchStream(Iterator[dict[str, Tensor]]):
    """An endless stream of batches on the CPU.

    A batch is a dictionary ``{"x": (B, *D), "label": (B,)}``. x is in model space; "label" is there if the data have
    labels. Integers are dequantised again in each batch, with a seed that is drawn together with the items. A batch is
    therefore a function of the stream's state alone.

    Args:
        data: a map-style dataset or an iterable of items.
        batch_size: B, the number of items in a batch, 1 or more.
        generator: generator on the CPU, the source of all randomness.
        share: ``(index, count)``: of each batch of B keep the items index, index + count, ... The shares of ``count``
            processes with equal generators make up the batches of one process.
        dequantization: the noise in the bins of integers. None: uniform.
        scaling: the map to model space for integers of another library's dataset. None: that of 8-bit integers.
        flip: whether to mirror half of the items, chosen at random, along their last axis. Not for other libraries'
            datasets.
        conditions: names of further entries of mapping items, which a batch then holds too.
        pin: whether to put batches in page-locked memory, which is copied to a CUDA device asynchronously.

    Raises:
        ArgumentError: ``batch_size`` is not a positive integer, or is smaller than the number of shares.
        DataError: the dataset is empty, or an item is of an unknown kind.
        DeviceError: the generator is not on the CPU.
    """

    def __init__(
        self,
        data: MapStyle | Iterable[Any],
        batch_size: int,
        generator: torch.Generator,
        *,
        share: tuple[int, int] = (0, 1),
        dequantization: Dequantization | None = None,
        scaling: Scaling | None = None,
        flip: bool = False,
        conditions: Sequence[str] = (),
        pin: bool = False,
    ):
        batch_size = whole("batch_size", batch_size)
        if batch_size < share[1]:
            raise ArgumentError("batch_size", batch_size, f"at least {share[1]}, one item for each share")
        if not isinstance(generator, torch.Generator):
            raise ArgumentError("generator", type(generator).__name__, "a torch.Generator")
        if generator.device.type != "cpu":
            raise DeviceError("generator", generator.device, "a generator on the CPU, where batches are made")
        self.batch_size, self.generator, self.share, self.pin = batch_size, generator, share, pin
        self.reader = Reader(data, share, dequantization, scaling, flip, conditions)

    def _seed(self) -> int:
        return int(torch.randint(SEEDS, (), generator=self.generator))

    def _pinned(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.pin_memory() for key, value in batch.items()} if self.pin else batch

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream after the last batch that was taken."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the stream where ``state`` was taken.

        The batches that follow are the same, bit for bit.

        Raises:
            CheckpointError: the state lacks an entry, or was taken over another number of items.
        """


@checked
class Batches(BatchStream):
    """Shuffled batches of a map-style dataset.

    The stream is a sequence of permutations of the data, cut into pieces of ``batch_size``. Every epoch holds each item
    once and every batch is full. A batch may end one epoch and begin the next, or hold several epochs.

    A batch of a :class:`~scoresde.data.dataset.Data` is read at once, that of another dataset item by item (see
    :func:`~scoresde.data.foreign.x_and_label`).

    Args:
        workers: number of processes that read ahead, default 0. The batches do not depend on it.
        settings: the keyword arguments of :class:`BatchStream`.
    """

    def __init__(
        self, data: MapStyle, batch_size: int, generator: torch.Generator, *, workers: int = 0, **settings: Any
    ):
        self.workers = whole("workers", workers, 0)
        if not is_map_style(data):
            raise ArgumentError("data", type(data).__name__, "a map-style dataset, with a length")
        super().__init__(data, batch_size, generator, **settings)
        self.data = data
        if len(data) == 0:
            raise DataError("data", "an empty dataset", "a dataset of at least one item")
        self.epoch, self.position = -1, len(data)  # the next draw begins epoch 0
        self.order = torch.arange(len(data))
        self._shuffled = generator.get_state()  # the generator's state before this epoch's order was drawn
        self._ahead: deque[dict[str, Any]] = deque()  # the states before the batches that are being read
        self._loader: Iterator[dict[str, Tensor]] | None = None

    def __next__(self) -> dict[str, Tensor]:
        if not self.workers:
            return self._pinned(self.reader(*self._next_request()))
        if self._loader is None:
            unused = torch.Generator()  # seeds the workers; without it a DataLoader draws from torch's own generator
            self._loader = iter(
                DataLoader(
                    _Requested(self.reader),
                    None,
                    sampler=self._requests(),
                    num_workers=self.workers,
                    generator=unused,
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
        """Return the numbers of the next batch's items, and its seed."""
        pieces, wanted = [], self.batch_size
        while wanted:
            if self.position == len(self.order):
                self._shuffled = self.generator.get_state()
                self.order = torch.randperm(len(self.order), generator=self.generator)
                self.epoch, self.position = self.epoch + 1, 0
            piece = self.order[self.position : self.position + wanted]
            self.position += len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        return torch.cat(pieces), self._seed()

    def _state(self) -> dict[str, Any]:
        return {
            "items": len(self.order),
            "shuffled": self._shuffled,
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "position": self.position,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream after the last batch that was taken.

        It has the tensor "generator" and the integers "items", "epoch" and "position". The order of the epoch is not
        in it: it follows from "shuffled", the generator's state before it was drawn.
        """
        return self._ahead[0] if self._ahead else self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = _checked(state, ("items", "shuffled", "generator", "epoch", "position"))
        items = int(state["items"])
        if items != len(self.order):
            expected = f"the state of a stream over {len(self.order)} items, unless the data are new (new_data=True)"
            raise CheckpointError("state", f"one over {items} items", expected)
        self._loader = None
        self._ahead.clear()
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._shuffled = state["shuffled"].cpu()
        if self.epoch >= 0:
            self.order = torch.randperm(items, generator=torch.Generator().set_state(self._shuffled))
        self.generator.set_state(state["generator"].cpu())


@checked
class StreamBatches(BatchStream):
    """Batches of an iterable, in its own order; it is restarted when it ends.

    If the iterable has a ``set_epoch(epoch)``, as Hugging Face's streams do, it is called before each epoch. A resumed
    stream skips the items that were used before, so the iterable must give the same items in the same order.

    Args:
        settings: the keyword arguments of :class:`BatchStream`.

    Raises:
        DataError: an iterable without items, or an iterator that has ended and cannot be restarted.
    """

    def __init__(self, data: Iterable[Any], batch_size: int, generator: torch.Generator, **settings: Any):
        is_map_style(data)  # refuses what has no items
        super().__init__(data, batch_size, generator, **settings)
        self.data = data
        self.epoch, self.position = 0, 0
        self._items: Iterator[Any] | None = None

    def _begin(self) -> Iterator[Any]:
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(self.epoch)
        return iter(self.data)

    def __next__(self) -> dict[str, Tensor]:
        if self._items is None:
            self._items = self._begin()
            skipped = sum(1 for _ in itertools.islice(self._items, self.position))
            if skipped < self.position:
                expected = f"the state of a stream of at most {skipped} items, the length of this one"
                raise CheckpointError("state", f"one after {self.position} items", expected)
        items, (index, count) = [], self.share
        for place in range(self.batch_size):
            item = self._next_item()
            if place % count == index:
                items.append(item)
        return self._pinned(self.reader.to_model(items, self._seed()))

    def _next_item(self) -> Any:
        for item in self._items or ():
            self.position += 1
            return item
        if self.position == 0:
            raise DataError("data", "an iterable without items", "an iterable of at least one item")
        if self._items is self.data:
            got = f"an iterator that ended after {self.position} items"
            raise DataError("data", got, "an iterable that can be restarted")
        self.epoch, self.position = self.epoch + 1, 0
        self._items = self._begin()
        return self._next_item()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream after the last batch that was taken.

        It has the tensor "generator" and the integers "epoch" and "position".
        """
        return {"generator": self.generator.get_state(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = _checked(state, ("generator", "epoch", "position"))
        self._items = None
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.generator.set_state(state["generator"].cpu())


@checked
def stream_batches(
    data: MapStyle | Iterable[Any], batch_size: int, generator: torch.Generator, *, workers: int = 0, **settings: Any
) -> BatchStream:
    """Return the stream of batches that suits ``data``.

    It is a :class:`Batches` for a map-style dataset, and a :class:`StreamBatches` for any other iterable.

    Args:
        data, batch_size, generator, settings: see :class:`BatchStream`.
        workers: number of processes that read ahead, default 0; for map-style datasets only.

    Raises:
        ArgumentError: ``data`` is neither, or a DataLoader; or ``workers`` for an iterable, which the training process
            itself reads.
    """
    if is_map_style(data):
        return Batches(data, batch_size, generator, workers=workers, **settings)
    if workers:
        raise ArgumentError("workers", workers, "0 for an iterable, which one process reads")
    return StreamBatches(cast(Iterable[Any], data), batch_size, generator, **settings)


class _Requested(Dataset[dict[str, Tensor]]):
    """The dataset that a worker reads: a request is an index, a batch an item."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def __getitem__(self, request: tuple[Tensor, int]) -> dict[str, Tensor]:
        return self.reader(*request)


def _checked(state: Mapping[str, Any], keys: tuple[str, ...]) -> Mapping[str, Any]:
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError("state", f"a mapping without {', '.join(missing)}", "the state_dict() of such a stream")
    return state
