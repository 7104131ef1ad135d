"""Random numbers: draws from one generator, from one a sample, or from this process's part of a shared one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.errors import ArgumentError

#: what every function that draws takes: one generator, one for each sample, or None for torch's default
Generators = torch.Generator | Sequence[torch.Generator] | None


class ShardedGenerator(torch.Generator):
    """A generator that draws for the full batch and keeps this process's items.

    Of a batch of ``total`` items it keeps ``index``, ``index + count``, ``index + 2 count``... Processes, or pieces of
    a batch taken one after another, that each hold a shard thus see the numbers that one process would have drawn for
    the whole, and leave the generator in the same state. :func:`randn`, :func:`rand` and :func:`strata_offsets` keep
    to the shard. Code that uses the generator directly sees an ordinary torch.Generator.
    """

    index, count, total = 0, 1, 1

    def of(self, index: int, count: int, total: int) -> ShardedGenerator:
        """Keep these items from now on; returns the generator itself."""
        self.index, self.count, self.total = index, count, total
        return self

    def whole(self, n: int) -> int:
        """Return how many items to draw for, of which ``n`` are kept."""
        return self.total if n == len(range(self.index, self.total, self.count)) else n * self.count


def _draw(
    function: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    device = torch.device(device if device is not None else "cpu")
    if isinstance(generator, (list, tuple)):
        if len(generator) != shape[0]:
            raise ArgumentError(
                "generator", f"a list of {len(generator)}", f"one generator or {shape[0]}, one a sample"
            )
        return torch.stack([_draw(function, tuple(shape[1:]), g, device, dtype) for g in generator])
    source = device if generator is None else generator.device
    if isinstance(generator, ShardedGenerator):
        whole = (generator.whole(shape[0]), *shape[1:])
        drawn = function(whole, generator=generator, device=source, dtype=dtype)[generator.index :: generator.count]
        return drawn.to(device)
    return function(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw standard normal noise ``(B, *D)``.

    The draw is made on the generator's own device and then moved. A CPU generator therefore gives the same numbers
    wherever the data live.

    Args:
        shape: ``(B, *D)``.
        generator: one generator, a :class:`ShardedGenerator`, or a list of B, one a sample. With a list, sample i
            sees its own stream only and does not depend on what else is in the batch. None: torch's default.
        device: of the result. None: the CPU.
        dtype: floating dtype of the result. None: torch's default.

    Raises:
        ArgumentError: a list of another length than B.
    """
    return _draw(torch.randn, shape, generator, device, dtype)


def rand(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw uniform numbers in [0, 1), ``(B, *D)``; the arguments are those of :func:`randn`."""
    return _draw(torch.rand, shape, generator, device, dtype)


def strata_offsets(n: int, generator: Generators = None, device: torch.device | str | None = None) -> Tensor:
    """Return i/B ``(n,)``, the offset of each of n items in its batch of B; of a shard, in the full batch."""
    if isinstance(generator, ShardedGenerator):
        total = generator.whole(n)
        return torch.arange(generator.index, total, generator.count, device=device) / total
    return torch.arange(n, device=device) / n


def spawn_generators(generator: torch.Generator | None, n: int) -> list[torch.Generator] | None:
    """Return ``n`` generators seeded by ``generator``, one a sample; None gives None.

    What they draw does not depend on how the samples are cut into batches: ``spawn_generators(g, 3)`` and then
    ``spawn_generators(g, 2)`` are the five of ``spawn_generators(g, 5)``.
    """
    if generator is None:
        return None
    seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device).tolist()
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
