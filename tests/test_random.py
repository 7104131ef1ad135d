"""Draws from one generator, from one per sample, and from a shard."""

import pytest
import torch

from scoresde.errors import ArgumentError
from scoresde.random import ShardedGenerator, rand, randn, spawn_generators, strata_offsets

BOTH = pytest.mark.parametrize("draw", [rand, randn])


def seeded(seed, kind=torch.Generator):
    generator = kind()
    generator.manual_seed(seed)
    return generator


@BOTH
def test_one_generator_draws_as_torch_does(draw):
    expected = getattr(torch, draw.__name__)(3, 2, generator=seeded(0), dtype=torch.float64)
    assert torch.equal(draw((3, 2), seeded(0), dtype=torch.float64), expected)
    assert torch.equal(draw(torch.Size([3, 2]), seeded(0), "cpu", torch.float64), expected)


@BOTH
def test_none_draws_from_torchs_default(draw):
    torch.manual_seed(3)
    expected = getattr(torch, draw.__name__)(4)
    torch.manual_seed(3)
    assert torch.equal(draw((4,)), expected)
    assert draw((4,)).dtype == torch.get_default_dtype()


@BOTH
@pytest.mark.parametrize("container", [list, tuple])
def test_a_sample_depends_on_its_own_generator_alone(draw, container):
    together = draw((3, 2), container(seeded(i) for i in range(3)))
    for i in range(3):
        assert torch.equal(together[i], draw((1, 2), [seeded(i)])[0])


def test_a_list_of_another_length_is_refused():
    with pytest.raises(ArgumentError, match=r"^`generator` must be one generator or 3, one a sample, got a list of 2$"):
        randn((3, 2), [seeded(0), seeded(1)])


@BOTH
@pytest.mark.parametrize(("count", "total"), [(1, 5), (2, 5), (3, 7), (4, 4)])
def test_shards_together_draw_what_one_process_draws(draw, count, total):
    whole = seeded(1)
    expected, later = draw((total, 2), whole), draw((), whole)
    for index in range(count):
        shard = seeded(1, ShardedGenerator).of(index, count, total)
        rows = expected[index::count]
        assert torch.equal(draw(rows.shape, shard), rows)
        assert torch.equal(torch.tensor(shard.initial_seed()), torch.tensor(1))
        assert torch.equal(getattr(torch, draw.__name__)((), generator=shard), later)  # in the same state afterwards


def test_strata_of_shards_are_those_of_the_batch():
    assert strata_offsets(4).tolist() == [0, 0.25, 0.5, 0.75]
    assert strata_offsets(4, seeded(0)).tolist() == [0, 0.25, 0.5, 0.75]
    shards = [strata_offsets(len(range(i, 5, 2)), seeded(0, ShardedGenerator).of(i, 2, 5)) for i in range(2)]
    torch.testing.assert_close(torch.cat(shards).sort().values, torch.arange(5) / 5)


def test_spawned_generators_do_not_depend_on_the_batches():
    one, two = seeded(9), seeded(9)
    together = spawn_generators(one, 5)
    apart = [*spawn_generators(two, 3), *spawn_generators(two, 2)]
    assert [g.initial_seed() for g in together] == [g.initial_seed() for g in apart]
    assert len({g.initial_seed() for g in together}) == 5
    assert spawn_generators(None, 3) is None
