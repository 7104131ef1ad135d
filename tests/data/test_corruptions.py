import pytest
import torch

from scoresde.data import CORRUPTIONS, Data, corrupt
from scoresde.errors import DataError, UnknownNameError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
    spoiled = corrupt(data, "shuffled-pixels", generator(1))
    assert spoiled.raw.shape == data.raw.shape
    assert not torch.equal(spoiled.raw, data.raw)
    for before, after in zip(data.raw, spoiled.raw, strict=True):
        assert sorted(before.flatten(1).T.tolist()) == sorted(after.flatten(1).T.tolist())


def test_shuffled_rows_keep_each_row_whole():
    data = pictures()
    spoiled = corrupt(data, "rows-shuffled", generator(1))
    assert not torch.equal(spoiled.raw, data.raw)
    for before, after in zip(data.raw, spoiled.raw, strict=True):
        assert sorted(before.movedim(1, 0).tolist()) == sorted(after.movedim(1, 0).tolist())


@pytest.mark.parametrize("kind", ["shuffled-pixels", "rows-shuffled"])
def test_every_image_has_an_order_of_its_own(kind):
    raw = torch.arange(64).reshape(1, 1, 8, 8).repeat(20, 1, 1, 1)
    spoiled = corrupt(Data("same", raw, num_values=64), kind, generator())
    assert len({tuple(image.flatten().tolist()) for image in spoiled.raw}) == 20
    assert torch.equal(spoiled.raw, corrupt(Data("same", raw, num_values=64), kind, generator()).raw)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_rest_stays(kind):
    data = pictures()
    spoiled = corrupt(data, kind, generator())
    assert (spoiled.num_values, spoiled.scale, spoiled.name) == (100, data.scale, f"pictures, {kind}")
    assert torch.equal(spoiled.labels, data.labels)
    flat = Data("flat", data.raw[:, 0], num_values=100, image=True)
    assert corrupt(flat, kind, generator()).shape == (4, 5)


def test_bad_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'inverted'"):
        corrupt(pictures(), "invert")
    with pytest.raises(DataError, match="images with integer num_values"):
        corrupt(Data("points", torch.rand(4, 2)), "inverted")
