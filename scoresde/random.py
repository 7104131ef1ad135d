"""Random numbers from one generator, from one a sample, or from a shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError

#: what every function that draws takes: one generator, one for each sample, or None for torch's default
Generators = torch.Generator | Sequence[torch.Generator] | None

#: laws of random directions v with E[v v'] = I: entries +-1, entries N(0, 1), or uniform on |v|^2 = n
Distribution = Literal["rademacher", "gaussian", "sphere"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)


class ShardedGenerator(torch.Generator):
    """A generator that draws for a full batch and keeps some items.

    Of a batch of ``total`` items it keeps ``index``, ``index + count``, ``index + 2 count``, ... The items are those
    of one process in a distributed run, or of one piece of a batch that is processed in pieces. All shards together
    see the numbers that one process would have drawn for the full batch. Each leaves the generator in the same state.

    :func:`randn`, :func:`rand` and :func:`strata_offsets` keep to the shard. Code that uses the generator directly
    sees an ordinary torch.Generator.
    """

    index, count, total = 0, 1, 1

    def of(self, index: int, count: int, total: int) -> ShardedGenerator:
        """Keep these items from now on; return the generator itself."""
        self.index, self.count, self.total = index, count, total
        return self

    def whole(self, n: int) -> int:
        """Return the number of items to draw so that ``n`` are kept."""
        return self.total if n == len(range(self.index, self.total, self.count)) else n * self.count


def device_named(name: torch.device | str) -> torch.device:
    """Return a device that is there.

    Raises:
        ArgumentError: an unknown name, or a device that this machine does not have.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch's builds differ in what they raise
        first = str(error).split(". ")[0].splitlines()[0]
        raise ArgumentError("device", repr(str(name)), f"an available device, such as 'cpu' ({first})") from error
    if device.type == "meta":
        raise ArgumentError("device", "'meta'", "a device whose tensors have values")
    return device


def check_generators(generator: object) -> None:
    """Refuse what is no generator of random numbers.

    Raises:
        DTypeError: neither a torch.Generator nor a list of them.
    """
    several = isinstance(generator, (list, tuple)) and all(isinstance(one, torch.Generator) for one in generator)
    if generator is not None and not several and not isinstance(generator, torch.Generator):
        expected = "a torch.Generator such as torch.Generator().manual_seed(0), a list of one a sample, or None"
        raise DTypeError("generator", type(generator).__name__, expected)


def _draw(
    function: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    device = torch.device(device if device is not None else "cpu")
    if generator is not None and not isinstance(generator, torch.Generator):
        check_generators(generator)
        if len(generator) != shape[0]:
            expected = f"one generator or {shape[0]}, one a sample"
            raise ArgumentError("generator", f"a list of {len(generator)}", expected)
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
    """Draw standard normal noise.

    The draw happens on the generator's own device; the result is then moved. A CPU generator therefore gives the same
    numbers wherever the data are.

    Args:
        shape: ``(B, *D)``.
        generator: One generator, a :class:`ShardedGenerator`, or a list of B, one a sample. With a list, sample i
            depends on generator i alone, not on the rest of the batch. None: torch's default.
        device: Device of the result. None: the CPU.
        dtype: Floating dtype of the result. None: torch's default.

    Returns:
        Noise ``(B, *D)``.

    Raises:
        ArgumentError: A list whose length is not B.
    """
    return _draw(torch.randn, shape, generator, device, dtype)


def rand(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw uniform numbers in [0, 1).

    The arguments, the result and the errors are those of :func:`randn`.
    """
    return _draw(torch.rand, shape, generator, device, dtype)


def strata_offsets(n: int, generator: Generators = None, device: torch.device | str | None = None) -> Tensor:
    """Return the offsets i/B of n items, for stratified draws.

    i is the position of an item in its batch of B: the batch of n items, or the full batch of a
    :class:`ShardedGenerator`.

    Returns:
        Offsets ``(n,)`` in [0, 1).
    """
    if isinstance(generator, ShardedGenerator):
        total = generator.whole(n)
        return torch.arange(generator.index, total, generator.count, device=device) / total
    return torch.arange(n, device=device) / n


@overload
def spawn_generators(generator: torch.Generator, n: int) -> list[torch.Generator]: ...


@overload
def spawn_generators(generator: torch.Generator | None, n: int) -> list[torch.Generator] | None: ...


def spawn_generators(generator: torch.Generator | None, n: int) -> list[torch.Generator] | None:
    """Return ``n`` generators, one a sample, with seeds from ``generator``.

    Their draws do not depend on how the samples are split into batches: ``spawn_generators(g, 3)`` followed by
    ``spawn_generators(g, 2)`` gives the five of ``spawn_generators(g, 5)``.

    Returns:
        The generators, on the device of ``generator``; None for None.
    """
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator):
        raise DTypeError("generator", type(generator).__name__, "a torch.Generator, or None")
    seeds = torch.randint(2**62, (n,), generator=generator, device=generator.device).tolist()
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
