"""Data in memory: scaling, moments, splits, images and refusals."""

import math

import numpy as np
import pytest
import torch

from scoresde.data import Data, Scaling, load_digits
from scoresde.errors import ArgumentError, DataError, DTypeError, ShapeError
from tests.generators import generator


def integers(K, shape=(60, 1, 4, 5), seed=0):
    return Data("ints", torch.randint(K, shape, generator=generator(seed)), num_values=K)


def floats(shape=(200, 3), seed=0):
    return Data("floats", 3 + 2 * torch.randn(shape, generator=generator(seed)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [2, 17, 256, 1000, 65536])
def test_every_value_survives_dequantisation(K, dtype):
    raw = torch.arange(K).repeat(2 + 200_000 // K, 1)
    data = Data("all", raw, num_values=K)
    x = data.to_model(data.raw, generator(), dtype)
    assert x.dtype == dtype
    assert x.min() > -1
    assert x.max() < 1
    assert torch.equal(data.to_raw(x), data.raw)


@pytest.mark.parametrize("K", [17, 256])
@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_extreme_noise_stays_in_its_bin(K, u, monkeypatch):
    data = Data("all", torch.arange(K)[:, None], num_values=K)
    monkeypatch.setattr("scoresde.data.scaling.rand", lambda shape, *_: torch.full(tuple(shape), u))
    assert torch.equal(data.to_raw(data.to_model(data.raw)), data.raw)


def test_bin_centres_are_the_middle_of_the_bins():
    data = integers(4, (10, 2))
    expected = torch.tensor([-0.75, -0.25, 0.25, 0.75])[data.raw.long()]
    assert torch.equal(data.bin_centres(data.raw), expected)
    assert torch.equal(data[3]["x"], expected[3])
    noise = data.to_model(data.raw, generator()) - expected
    assert noise.abs().max() < 0.25


def test_dequantisation_follows_its_generator():
    data = integers(17)
    first, again = (data.to_model(data.raw, generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, data.to_model(data.raw, generator(4)))


def test_to_raw_clamps_to_the_values():
    data = integers(17, (5, 2))
    assert data.to_raw(torch.tensor([[-9.0, 9.0]])).tolist() == [[0, 16]]


@pytest.mark.parametrize("K", [17, 256])
def test_log_volume_follows_from_the_number_of_values(K):
    assert integers(K).log_volume == pytest.approx(20 * math.log(2 / K), rel=1e-14)


def test_log_volume_of_floats_is_a_change_of_variables():
    data = floats((500, 3))
    y = data.raw.double()
    x = data.to_model(y, dtype=torch.float64)
    mean = data.to_raw(torch.zeros(3, dtype=torch.float64))
    log_p_x = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    log_p_y = torch.distributions.Normal(mean, 1 / data.scale).log_prob(y).sum(1)
    torch.testing.assert_close(log_p_x + data.log_volume, log_p_y)


def test_standard_vectors_have_a_mean_per_feature_and_one_std():
    raw = torch.randn(1000, 2, generator=generator()) * torch.tensor([1.0, 3.0]) + torch.tensor([5.0, -7.0])
    data = Data("points", raw, normalize="standard")
    x = data.to_model(raw)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.square().mean(), torch.tensor(1.0))
    assert x[:, 1].std() / x[:, 0].std() == pytest.approx(float(raw[:, 1].std() / raw[:, 0].std()), rel=1e-5)
    torch.testing.assert_close(data.to_raw(x), raw)


def test_images_and_series_of_floats_have_one_mean():
    data = floats((20, 1, 6, 6))
    assert isinstance(data.shift, float)
    assert data.to_model(data.raw).mean().abs() < 1e-5


def test_normalize_none_and_given():
    raw = torch.rand(10, 2, generator=generator())
    assert torch.equal(Data("a", raw, normalize="none").to_model(raw), raw)
    given = Data("a", raw, scale=2.0, shift=1.0, normalize="given")
    assert torch.equal(given.to_model(raw), 2 * raw + 1)
    assert given.split(3)[0].scale == 2.0


@pytest.mark.parametrize("data", [integers(17, (5000, 2, 3)), floats((5000, 4))], ids=["integers", "floats"])
def test_moments_against_brute_force(data):
    mean, covariance = data.moments()
    x = data.bin_centres(data.raw, torch.float64)
    noise = torch.zeros(()) if data.num_values is None else torch.tensor((2 / data.num_values) ** 2 / 12)
    flat = x.flatten(1)
    assert mean.dtype == covariance.dtype == torch.float64
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(covariance, flat.T.cov(correction=0) + noise.double() * torch.eye(flat.shape[1]))


def test_moments_include_the_noise_of_dequantisation():
    data = Data("flat", torch.zeros(2000, 8, dtype=torch.uint8), num_values=4)
    mean, covariance = data.moments()
    x = data.to_model(data.raw, generator(), torch.float64)
    # 16,000 uniforms of std 1/sqrt(48): six standard errors, false alarm below 1e-8 for each
    assert float(x.mean() - mean.mean()) == pytest.approx(0, abs=6 * 48**-0.5 / 16_000**0.5)
    assert float(x.var() / covariance.diagonal().mean()) == pytest.approx(1, abs=6 * 0.9 / 16_000**0.5)


def test_moments_of_large_items_are_diagonal():
    data = integers(256, (7, 3, 20, 20))
    mean, variance = data.moments()
    x = data.bin_centres(data.raw, torch.float64)
    assert mean.shape == (3, 20, 20)
    assert variance.shape == (1200,)
    torch.testing.assert_close(variance, x.flatten(1).var(0, correction=0) + (2 / 256) ** 2 / 12)


@pytest.mark.parametrize("held_out", [13, 0.13])
def test_split_is_disjoint_complete_and_reproducible(held_out):
    data = Data("count", torch.arange(100)[:, None], torch.arange(100) % 7, num_values=100)
    train, test = data.split(held_out, seed=5)
    assert len(test) == 13
    assert sorted(train.raw.flatten().tolist() + test.raw.flatten().tolist()) == list(range(100))
    assert torch.equal(train.labels, train.raw[:, 0].long() % 7)
    assert torch.equal(test.raw, data.split(held_out, seed=5)[1].raw)
    assert not torch.equal(test.raw, data.split(held_out, seed=6)[1].raw)


def test_split_measures_floats_on_the_training_part_alone():
    raw = torch.randn(50, 2, generator=generator())
    train, test = Data("a", raw).split(10)
    assert torch.equal(train.scale, Data("b", train.raw).scale)
    assert not torch.equal(train.scale, Data("a", raw).scale)
    assert torch.equal(test.scale, train.scale)
    assert torch.equal(test.shift, train.shift)


@pytest.mark.parametrize("held_out", [0, 50, 51, -1, 0.0, 1.0, True, "10%", 0.999])
def test_split_refuses_empty_parts(held_out):
    with pytest.raises(ArgumentError, match=r"`held_out` must be .*, got"):
        floats((50, 2)).split(held_out)


def test_subset_and_take_keep_scale():
    data = floats((50, 2))
    assert torch.equal(data.subset([3, -1]).raw, data.raw[[3, -1]])
    assert torch.equal(data.take(4).scale, data.scale)
    assert torch.equal(data.take(4).raw, data.raw[:4])
    assert torch.equal(data.take(50, seed=1).raw.sort(0)[0], data.raw.sort(0)[0])
    for bad in ([], [50], [[0]]):
        with pytest.raises(ArgumentError, match="indices"):
            data.subset(bad)
    with pytest.raises(ArgumentError, match=r"`n` must be an integer from 1 to 50.*, got 51"):
        data.take(51)


def test_counts_may_be_numpy_integers():
    data = integers(np.int64(17))
    assert (data.num_values, Scaling.for_integers(np.int64(17))) == (17, data.scaling)
    assert len(data.take(np.int64(4))) == len(data.split(np.int64(4))[1]) == 4
    with pytest.raises(ArgumentError, match="`num_values` must be an integer >= 2, got 1"):
        Scaling.for_integers(1)


def test_is_image():
    assert integers(17).is_image
    assert not integers(17, (5, 2, 4, 4)).is_image
    assert Data("flagged", torch.zeros(2, 4, 4, dtype=torch.uint8), num_values=2, image=True).is_image
    assert not floats().is_image


def test_to_image_spans_black_to_white():
    data = integers(17)
    picture = data.to_image(data.bin_centres(data.raw))
    torch.testing.assert_close(picture, data.raw / 16)
    flat = Data("flat", data.raw[:, 0], num_values=17, image=True)
    assert flat.to_image(flat.bin_centres(flat.raw)).shape == (60, 1, 4, 5)
    between = Data("a", 2 * torch.rand(9, 1, 3, 3, generator=generator()) - 1)
    torch.testing.assert_close(between.to_image(between.to_model(between.raw)), (between.raw + 1) / 2)
    wide = floats((30, 1, 3, 3))
    picture = wide.to_image(wide.to_model(wide.raw))
    assert (float(picture.min()), float(picture.max())) == pytest.approx((0, 1), abs=1e-5)
    with pytest.raises(DataError, match=r"images.*\(3,\)"):
        floats().to_image(torch.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"`x` must be \(B, 1, 4, 5\).*, got \(1, 4, 5\)"):
        data.to_image(torch.zeros(1, 4, 5))


def test_digits():
    data = load_digits()
    assert (len(data), data.shape, data.num_values, data.raw.dtype) == (1797, (1, 8, 8), 17, torch.uint8)
    assert int(data.raw.max()) == 16
    assert data.is_image
    assert data.classes == 10
    assert data.scaling == (2 / 17, -1.0, 17, None)
    assert set(data[0]) == {"x", "label"}
    assert int(data[0]["label"]) == 0
    assert "digits" in repr(data)


def test_scaled_like():
    train, other = floats(seed=1), floats(seed=2)
    assert torch.equal(other.scaled_like(train).scale, train.scale)
    assert integers(17).scaled_like(integers(17)).scale == 2 / 17
    with pytest.raises(DataError, match="num_values 17"):
        integers(17).scaled_like(integers(16))


def test_half_precision_and_integers_are_stored_plainly():
    assert Data("half", torch.rand(4, 2).half()).raw.dtype == torch.float32
    assert Data("wide", torch.arange(300)[:, None], num_values=300).raw.dtype == torch.int32


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (
            DataError,
            r"`raw` must be finite numbers; .*, got 2 NaN or infinite values, the first at \(1, 0\)",
            {"raw": [[0.0], [float("nan")], [float("inf")]]},
        ),
        (
            DataError,
            "`num_values` must be the number of values .*, got None for torch.int64 items",
            {"raw": [[1], [2]]},
        ),
        (
            DataError,
            "`num_values` must be None for continuous items, got 4 for torch.float32 items",
            {"raw": [[1.0], [2.0]], "num_values": 4},
        ),
        (DataError, "`num_values` must be an integer from 2 to 65536, got 1", {"raw": [[0]], "num_values": 1}),
        (
            DataError,
            r"`raw` must be integers 0\.\.7 \(num_values=8\), got values from 0 to 9",
            {"raw": [[0], [9]], "num_values": 8},
        ),
        (DataError, "`raw` must be integers .*, got values from -1 to 3", {"raw": [[-1], [3]], "num_values": 8}),
        (DataError, r"`raw` must be a tensor .*, got shape \(2,\)", {"raw": [1, 2], "num_values": 8}),
        (DataError, "`raw` must be items that vary.*, got items that are all the same", {"raw": [[1.0], [1.0]]}),
        (DTypeError, "`raw` must be integers or real floats, got torch.complex64", {"raw": [[1j]]}),
        (ArgumentError, "`normalize` must be .*, got 'std'", {"raw": [[1.0], [2.0]], "normalize": "std"}),
        (
            ArgumentError,
            "`normalize` must be 'standard' or 'none', got 'given' without scale and shift",
            {"raw": [[1.0], [2.0]], "normalize": "given"},
        ),
        (ArgumentError, "`scale` must be positive numbers, got 0.0", {"raw": [[1.0]], "scale": 0.0, "shift": 0.0}),
        (
            ArgumentError,
            "`scale, shift` must be None, or 2/3 and -1, for integers, got 1.0, None",
            {"raw": [[1]], "num_values": 3, "scale": 1.0},
        ),
        (
            ArgumentError,
            r"`image` must be False unless .*, got True for items \(1,\)",
            {"raw": [[1]], "num_values": 2, "image": True},
        ),
        (
            DataError,
            r"`labels` must be one integer for each item, \(2,\), got shape \(3,\)",
            {"raw": [[1.0], [2.0]], "labels": [0, 1, 2]},
        ),
        (
            DataError,
            "`labels` must be an integer tensor, got torch.float32",
            {"raw": [[1.0], [2.0]], "labels": [0.0, 1.0]},
        ),
        (
            DataError,
            r"`labels` must be classes 0, 1, \.\.\., got the value -1",
            {"raw": [[1.0], [2.0]], "labels": [0, -1]},
        ),
    ],
)
def test_bad_data_is_refused(error, message, arguments):
    tensors = {k: torch.tensor(v) if k in ("raw", "labels") else v for k, v in arguments.items()}
    with pytest.raises(error, match=message):
        Data("bad", **tensors)


def test_wrong_kind_of_items_is_refused():
    with pytest.raises(DTypeError, match=r"`raw` must be .*, got list"):
        Data("bad", [[1.0]])
    with pytest.raises(DTypeError, match=r"`raw` must be integers 0\.\.16.*, got torch.float32"):
        integers(17).to_model(torch.zeros(1, 1, 4, 5))
    with pytest.raises(DTypeError, match=r"`raw` must be floats.*, got torch.int64"):
        floats().to_model(torch.zeros(1, 3, dtype=torch.long))
