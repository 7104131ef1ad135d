"""Several processes on one run, by torch's own engine: who is who, what they agree on, and how work is shared out.

``torchrun --nproc-per-node N ...`` starts N processes, called ranks 0 to N - 1; :func:`process_group` joins them.
Gradients travel by ``DistributedDataParallel``, on NCCL between CUDA devices and on gloo elsewhere. What the processes
have to agree on otherwise (whether to stop, a record's numbers) travels by gloo between the hosts, beside the step.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from scoresde.errors import ArgumentError, LostRankError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LOST = re.compile(r"gloo|nccl|connection|peer|socket|timed? ?out|store", re.IGNORECASE)


class Ranks:
    """This process among those of the run; alone, if there is no process group.

    Attributes:
        rank, world: which one of how many.
        control: the group for what is agreed on between hosts, None for one process.
    """

    _groups: tuple[ProcessGroup, ProcessGroup] | None = None  # the default group, and control beside it

    def __init__(self):
        self.rank, self.world, self.control = 0, 1, None
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        if self.world > 1:
            default = distributed.group.WORLD
            if Ranks._groups is None or Ranks._groups[0] is not default:
                Ranks._groups = default, distributed.new_group(backend="gloo")
            self.control = Ranks._groups[1]

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def gather(self, x: Tensor, dim: int = 0) -> list[Tensor]:
        """Every rank's tensor, on the CPU, in the order of the ranks; their sizes may differ along ``dim``."""
        x = x.detach().cpu()
        if self.world == 1:
            return [x]
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([x.shape[dim]]), group=self.control)
        sizes = [int(size) for size in sizes]
        x = x.movedim(dim, 0)
        padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded.contiguous(), group=self.control)
        return [part[:size].movedim(0, dim) for part, size in zip(parts, sizes, strict=True)]

    def on_first(self, work: Callable[[], str]) -> str:
        """The text that ``work`` gives on rank 0, on every rank; it runs on rank 0 alone.

        Raises:
            LostRankError: on the others, where it failed on rank 0.
        """
        if self.world == 1:
            return work()
        answer: list[str | None] = [None]
        try:
            if self.first:
                answer[0] = work()
        finally:
            distributed.broadcast_object_list(answer, 0, group=self.control)
        if answer[0] is None:
            raise LostRankError(self.rank, "rank 0 could not begin")
        return answer[0]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn what torch says when another rank is gone into a :class:`LostRankError`."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or isinstance(error, LostRankError) or not _LOST.search(str(error)):
                raise
            raise LostRankError(self.rank, str(error).splitlines()[0]) from error


class Agreement:
    """Whether any rank wants to stop, and how long the slowest has trained: asked once a step, known to all alike.

    The answer travels while the step is computed.

    Args:
        seconds: that all have trained before.
    """

    def __init__(self, ranks: Ranks, seconds: float = 0.0):
        self.ranks, self._shared, self._work = ranks, torch.tensor([0.0, seconds], dtype=torch.float64), None

    def ask(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether to stop before the step at hand, and the seconds: at once for one process, else a step late."""
        if self.ranks.world == 1:
            return stop, seconds
        stopping, agreed = self.close(), self._shared[1].item()
        if not stopping:
            self._shared[0], self._shared[1] = float(stop), seconds
            self._work = distributed.all_reduce(
                self._shared, distributed.ReduceOp.MAX, group=self.ranks.control, async_op=True
            )
        return stopping, agreed

    def close(self) -> bool:
        """Wait for the answer that is under way, if any: whether to stop."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._shared[0])


def launched() -> bool:
    """Whether this process was started by torchrun (or by something that sets RANK and WORLD_SIZE as it does)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """Join the other ranks of a torchrun while the block runs; alone, if there are none.

    Rank i of a host takes its CUDA device i, if there are any. NCCL joins CUDA devices, gloo everything else.

    Args:
        device: ``"cpu"`` leaves CUDA devices alone.

    Raises:
        ArgumentError: more ranks on this host than CUDA devices.
    """
    if not launched() or distributed.is_initialized():
        yield Ranks()
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ArgumentError("--nproc-per-node", local + 1, f"at most {torch.cuda.device_count()}, the CUDA devices")
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield Ranks()  # after an error the group is left to the process's end: to close it would wait for the others
    distributed.destroy_process_group()
    Ranks._groups = None


def share_of(n: int, ranks: Ranks) -> range:
    """Which of n items are this rank's: a contiguous range, the shares of all ranks one after another."""
    first, end = (-(-n * rank // ranks.world) for rank in (ranks.rank, ranks.rank + 1))  # rounded up: rank 0 has some
    return range(first, end)


def over_ranks(
    work: Callable[[range, torch.Generator | None], Tensor], n: int, generator: torch.Generator | None = None
) -> Tensor:
    """The rows ``(n, ...)`` of a piece of work on n items, each done by one rank and counted once; on every rank.

    ``work(items, generator)`` gives the rows of a range of items. Where it draws with one stream a sample
    (``streams(generator, len(items))``; :func:`sample` and :func:`bits_per_dim` do), the result is the same however
    many ranks there are. ::

        x = over_ranks(lambda items, g: sample(model, (len(items), 3, 32, 32), generator=streams(g, len(items))), n, g)

    Args:
        work: called once, on this rank's items, if there are any.
        n: items in all, 1 or more.
        generator: at the same state on every rank; it is left as if all items had been done with it.
    """
    ranks = Ranks()
    items = share_of(n, ranks)
    before, after = items.start, n - items.stop
    _pass_over(generator, before)
    rows = work(items, generator) if items else None
    _pass_over(generator, after)
    if ranks.world == 1:
        return rows
    with ranks.watched():
        shape = None if rows is None else (str(rows.dtype).removeprefix("torch."), *rows.shape[1:])
        shapes: list = [None] * ranks.world
        distributed.all_gather_object(shapes, shape, group=ranks.control)
        if rows is None:
            dtype, *rest = next(shape for shape in shapes if shape is not None)
            rows = torch.empty(0, *rest, dtype=getattr(torch, dtype))
        return torch.cat(ranks.gather(rows))


def _pass_over(generator: torch.Generator | None, n: int) -> None:
    """Leave out the streams of n items."""
    if generator is not None and n:
        torch.randint(2**62, (n,), generator=generator, device=generator.device)


@contextmanager
def quiet_unless_first(ranks: Ranks) -> Iterator[None]:
    """Standard output only from rank 0."""
    if ranks.first:
        yield
        return
    shown = sys.stdout
    with open(os.devnull, "w") as nothing:
        sys.stdout = nothing
        try:
            yield
        finally:
            sys.stdout = shown
