"""Corrupted copies keep what they should keep and lose the rest."""

import pytest
import torch

from scoresde.data import CORRUPTIONS, Data, corrupt
from scoresde.errors import DataError, UnknownNameError
from tests.generators import generator


def pictures(shape=(12, 3, 4, 5), K=100):
    return Data("pictures", torch.randint(K, shape, generator=generator()), torch.arange(shape[0]), num_values=K)


def test_inverted_twice_is_the_original():
    data = pictures()
    inverted = corrupt(data, "inverted")
    assert torch.equal(inverted.raw.long(), 99 - data.raw.long())
    assert torch.equal(corrupt(inverted, "inverted").raw, data.raw)


@pytest.mark.parametrize("shape", [(12, 3, 4, 5), (12, 1, 4, 5)])
def test_shuffled_pixels_keep_each_pixel_whole(shape):
    data = pictures(shape)
    corrupted = corrupt(data, "shuffled-pixels", generator(1))
    assert corrupted.raw.shape == data.raw.shape
    assert not torch.equal(corrupted.raw, data.raw)
    for before, after in zip(data.raw, corrupted.raw, strict=True):
        assert sorted(before.flatten(1).T.tolist()) == sorted(after.flatten(1).T.tolist())


def test_shuffled_rows_keep_each_row_whole():
    data = pictures()
    corrupted = corrupt(data, "rows-shuffled", generator(1))
    assert not torch.equal(corrupted.raw, data.raw)
    for before, after in zip(data.raw, corrupted.raw, strict=True):
        assert sorted(before.movedim(1, 0).tolist()) == sorted(after.movedim(1, 0).tolist())


@pytest.mark.parametrize("kind", ["shuffled-pixels", "rows-shuffled"])
def test_each_image_is_permuted_independently(kind):
    raw = torch.arange(64).reshape(1, 1, 8, 8).repeat(20, 1, 1, 1)
    corrupted = corrupt(Data("same", raw, num_values=64), kind, generator())
    assert len({tuple(image.flatten().tolist()) for image in corrupted.raw}) == 20
    assert torch.equal(corrupted.raw, corrupt(Data("same", raw, num_values=64), kind, generator()).raw)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_scale_labels_and_shape_stay(kind):
    data = pictures()
    corrupted = corrupt(data, kind, generator())
    assert (corrupted.num_values, corrupted.scale, corrupted.name) == (100, data.scale, f"pictures, {kind}")
    assert torch.equal(corrupted.labels, data.labels)
    flat = Data("flat", data.raw[:, 0], num_values=100, image=True)
    assert corrupt(flat, kind, generator()).shape == (4, 5)


def test_bad_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'inverted'"):
        corrupt(pictures(), "invert")
    with pytest.raises(DataError, match="images of integers"):
        corrupt(Data("points", torch.rand(4, 2)), "inverted")
