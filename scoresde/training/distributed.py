"""Several processes on one run: ranks, agreement and shared work.

``torchrun --nproc-per-node N ...`` starts N processes, called ranks 0 to N - 1, and :func:`process_group` joins them.
``DistributedDataParallel`` exchanges gradients, by NCCL between CUDA devices and by gloo elsewhere. All else that the
processes exchange (whether to stop, the numbers of a record) goes by gloo between the hosts, in parallel to the step.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, LostRankError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

_LOST = re.compile(r"gloo|nccl|connection|peer|socket|timed? ?out|store", re.IGNORECASE)


class Ranks:
    """This process among those of the run; one, without a process group.

    Attributes:
        rank, world: number of this process, and number of processes.
        control: group for messages between hosts, None for one process.
    """

    _groups: tuple[ProcessGroup | None, ProcessGroup] | None = None  # the default group, and its control group

    def __init__(self) -> None:
        self.rank, self.world = 0, 1
        self.control: ProcessGroup | None = None
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        if self.world > 1:
            default = distributed.group.WORLD
            if Ranks._groups is None or Ranks._groups[0] is not default:
                Ranks._groups = default, cast("ProcessGroup", distributed.new_group(backend="gloo"))
            self.control = Ranks._groups[1]

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def gather(self, x: Tensor, dim: int = 0) -> list[Tensor]:
        """Return every rank's tensor in order; sizes may differ along ``dim``."""
        x = x.detach().cpu()
        if self.world == 1:
            return [x]
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        distributed.all_gather(lengths, torch.tensor([x.shape[dim]]), group=self.control)
        sizes = [int(length) for length in lengths]
        x = x.movedim(dim, 0)
        padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded.contiguous(), group=self.control)
        return [part[:size].movedim(0, dim) for part, size in zip(parts, sizes, strict=True)]

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's value in order; it is pickled."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value, group=self.control)
        return values

    def on_first(self, work: Callable[[], str]) -> str:
        """Run ``work`` on rank 0 alone, and return its text on every rank.

        Raises:
            LostRankError: on the other ranks, if it failed on rank 0.
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
        """Raise a :class:`LostRankError` for torch's errors about a lost rank."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or isinstance(error, LostRankError) or not _LOST.search(str(error)):
                raise
            raise LostRankError(self.rank, str(error).splitlines()[0]) from error


class Agreement:
    """Whether any rank wants to stop, and how long the slowest has trained.

    The ranks exchange it once a step, while they compute the step.

    Args:
        ranks: This process among those of the run.
        seconds: Seconds that all have trained before, default 0.
    """

    def __init__(self, ranks: Ranks, seconds: float = 0.0):
        self.ranks, self._shared = ranks, torch.tensor([0.0, seconds], dtype=torch.float64)
        self._work: distributed.Work | None = None

    def ask(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Return (stop, seconds); with several processes, of one step before."""
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
        """Wait for the exchange in progress, if any, and return whether to stop."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._shared[0])


def launched() -> bool:
    """Return True if torchrun, or a launcher like it, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """Join the other ranks of a torchrun, if any, while the block runs.

    Rank i of a host uses its CUDA device i, if there are CUDA devices. NCCL joins CUDA devices, gloo everything else.

    Args:
        device: ``"cpu"`` does not use CUDA devices; default ``"auto"``.

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
            raise ArgumentError("--nproc-per-node", local + 1, f"at most {torch.cuda.device_count()} (CUDA devices)")
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield Ranks()  # after an error the group stays open until the process ends: closing it would wait for the others
    distributed.destroy_process_group()
    Ranks._groups = None


def share_of(n: int, ranks: Ranks) -> range:
    """Return this rank's range of n items; ranges follow one another."""
    first, end = (-(-n * rank // ranks.world) for rank in (ranks.rank, ranks.rank + 1))  # rounded up: rank 0 has some
    return range(first, end)


@checked
def over_ranks(
    work: Callable[[range, torch.Generator | None], Tensor], n: int, generator: torch.Generator | None = None
) -> Tensor:
    """Divide work on n items among the ranks; return all rows ``(n, ...)``.

    ``work(items, generator)`` returns the rows of a range of items. If it draws from one generator per sample
    (``spawn_generators(generator, len(items))``), the result does not depend on the number of ranks.

        x = over_ranks(lambda items, g: sample(model, (len(items), 2), generator=spawn_generators(g, len(items))), n, g)

    Args:
        work: Function called once, on this rank's items, if it has any.
        n: Number of items, 1 or more.
        generator: Generator in the same state on every rank. It ends as if all items had been done with it.
    """
    ranks = Ranks()
    items = share_of(n, ranks)
    before, after = items.start, n - items.stop
    _pass_over(generator, before)
    rows = work(items, generator) if items else None
    _pass_over(generator, after)
    if ranks.world == 1:
        return cast(Tensor, rows)
    with ranks.watched():
        shape = None if rows is None else (str(rows.dtype).removeprefix("torch."), *rows.shape[1:])
        shapes = ranks.gather_objects(shape)
        if rows is None:
            dtype, *rest = next(shape for shape in shapes if shape is not None)
            rows = torch.empty(0, *rest, dtype=getattr(torch, dtype))
        return torch.cat(ranks.gather(rows))


def _pass_over(generator: torch.Generator | None, n: int) -> None:
    """Advance the generator as if generators for n items had been spawned."""
    if generator is not None and n:
        torch.randint(2**62, (n,), generator=generator, device=generator.device)


@contextmanager
def quiet_unless_first(ranks: Ranks) -> Iterator[None]:
    """Show standard output of rank 0 only."""
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
