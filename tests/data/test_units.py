"""Units of the data and of the model, and densities in both."""

import math

import pytest
import torch

import scoresde as S
from scoresde.data import Data, Mapped, Scaling
from scoresde.errors import ArgumentError, DataError, DataWarning, DTypeError, ShapeError
from tests.generators import generator


def table(stds, mean=0.0, n=2000, dtype=torch.float64):
    noise = torch.randn(n, len(stds), generator=generator(), dtype=dtype)
    return mean + noise * torch.tensor(stds, dtype=dtype)


def model_of(data, sde=None):
    net = S.ResidualMLP(data.shape, width=8, blocks=1)
    return S.ScoreModel.for_data(net, S.VPSDE() if sde is None else sde, data)


@pytest.mark.parametrize("stds", [(1e-3, 1.0, 1e4), (100.0, 1.0, 1e-5), (1.0, 1.0, 1.0)])
def test_each_feature_of_a_table_has_its_own_scale(stds):
    raw = table(stds)
    model = model_of(Data("table", raw))
    x = model.to_model(raw)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    back = model.to_data(x)
    assert back.dtype == torch.float64
    assert ((back - raw).abs().max(0).values < 1e-6 * raw.std(0)).all()


def test_densities_in_the_units_of_a_table():
    """Compare log p of a Gaussian table with its closed form."""
    stds = torch.tensor([100.0, 1.0, 1e-5], dtype=torch.float64)
    data = Data("table", table(stds.tolist(), mean=7.0))
    mean, covariance = data.moments()
    model = S.GaussianMixture(mean[None], covariance[None]).model(S.VPSDE())
    model.scaling = data.scaling
    raw = data.raw[:50]
    found = S.log_likelihood(model, model.to_model(raw)).log_prob + model.scaling.log_volume(3)
    y = data.raw - data.raw.mean(0)
    law = torch.distributions.MultivariateNormal(data.raw.mean(0), y.T @ y / len(y))
    torch.testing.assert_close(found.double(), law.log_prob(raw), atol=1e-3, rtol=0)
    assert data.log_volume == pytest.approx(-data.raw.std(0, correction=0).log().sum().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2000, 2), (2000, 1, 2)])
def test_a_mean_far_from_0_costs_no_digits(dtype, shape):
    """Check data at 1e6 of std 1: x is right to float32's last digits."""
    raw = (1e6 + torch.randn(shape, generator=generator(), dtype=torch.float64)).to(dtype)
    data = Data("far", raw)
    x = data.to_model(raw)
    assert x.dtype == torch.float32
    y = raw.double()
    y = y - (y.mean(0) if len(shape) == 2 else y.mean())
    exact = y / (y.square().mean(0) if len(shape) == 2 else y.square().mean()).sqrt()
    assert len(x[..., 0].unique()) == len(raw[..., 0].unique())
    assert (x - exact).abs().max() < 1e-6
    back = data.to_raw(x)
    assert back.dtype == dtype
    assert (back - raw).abs().max() <= (1e-6 if dtype == torch.float64 else 0.0)


def test_features_that_do_not_vary_keep_their_scale():
    raw = torch.cat([table((2.0,)), torch.full((2000, 1), 0.1, dtype=torch.float64)], 1)
    data = Data("flat", raw)
    assert data.scale[1] == 1.0
    assert data.to_model(raw)[:, 1].abs().max() < 1e-12
    assert data.to_raw(torch.zeros(1, 2))[0, 1] == pytest.approx(0.1)
    with pytest.raises(DataError, match="all the same"):
        Data("constant", torch.full((10, 2), 0.1))


def test_the_map_survives_saving(tmp_path):
    raw = table((1e-3, 3.0), mean=1e5)
    model = model_of(Data("table", raw))
    model.save_pretrained(tmp_path / "model")
    again = S.ScoreModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.to_model(raw), model.to_model(raw))
    assert again.to_data(torch.zeros(1, 2)).dtype == torch.float64
    assert again.scaling.log_volume(2) == model.scaling.log_volume(2)


def test_integers_and_unknown_units():
    train, _ = S.load_data("digits")
    model = S.ScoreModel.from_pretrained("digits")
    raw = train.raw[:5]
    assert torch.equal(model.to_data(model.to_model(raw, generator())), raw.long())
    for wrapper in (S.models.chunked(model, 2), S.guidance.classifier_free_guidance(model, 2.0)):
        assert torch.equal(wrapper.to_model(raw, generator()), model.to_model(raw, generator()))
        assert wrapper.to_data(model.to_model(raw)).dtype == torch.int64
    with pytest.raises(DTypeError, match="integers"):
        model.to_model(raw.float())
    with pytest.raises(DataError):
        model.to_model(raw.long() + 17)
    assert torch.equal(model.to_data(model.to_model(raw.numpy(), generator())), raw.long())
    plain = S.GaussianMixture(torch.zeros(1, 2), 1.0).model(S.VPSDE())
    x = torch.randn(3, 2, generator=generator())
    assert torch.equal(plain.to_model(x), x)
    assert plain.to_data(x) is x


def test_items_of_another_shape_are_refused():
    model = model_of(Data("table", table((1.0, 2.0))))
    for items in (torch.zeros(3, 1), torch.zeros(3, 4)):
        with pytest.raises(ShapeError, match=r"`items` must be \(\.\.\., 2\)"):
            model.to_model(items)
        with pytest.raises(ShapeError):
            model.to_data(items)


def test_one_scale_where_it_is_wanted():
    raw = table((1.0, 3.0))
    x = Data("plane", raw, normalize="standard").to_model(raw, dtype=torch.float64)
    assert x.square().mean() == pytest.approx(1.0, rel=1e-9)
    assert x[:, 1].std() / x[:, 0].std() == pytest.approx((raw[:, 1].std() / raw[:, 0].std()).item(), rel=1e-9)
    with pytest.raises(ArgumentError, match="'standard', 'none' or 'given' for items"):
        Data("images", torch.rand(4, 1, 3, 3), normalize="features")
    with pytest.raises(ShapeError, match="scale"):
        Data("table", raw, scale=torch.ones(3), shift=0.0, normalize="given")
    with pytest.raises(ArgumentError, match="scale"):
        Data("table", raw, scale=torch.tensor([1.0, -1.0]), shift=0.0, normalize="given")


def test_splits_and_mapped_arrays_measure_each_feature():
    data = Data("table", table((1e-3, 1e3)))
    train, test = data.split(500)
    assert torch.equal(train.scale, test.scale)
    assert not torch.equal(train.scale, data.scale)
    mapped = Mapped(data.raw.numpy())
    torch.testing.assert_close(mapped.scaling.scale, data.scale)
    assert mapped.data_scale == data.data_scale
    assert Scaling.from_config(data.scaling.config).dtype == torch.float64


# ---- VE's noise for data --------------------------------------------------------------------------------------------


def test_the_noise_of_ve_follows_the_lengths_of_the_data():
    raw = torch.cat([table((1.0, 1.0)), table((0.01, 0.01), mean=5.0)])
    data = Data("two scales", raw, normalize="none")
    sde = S.VESDE.for_data(data)
    assert sde.sigma(torch.tensor(0.0)) == pytest.approx(data.data_scale.finest / 10, rel=1e-6)
    assert sde.sigma(torch.tensor(1.0)) == pytest.approx(20 * data.data_scale.largest, rel=1e-5)
    given = S.VESDE.for_data(data, sigma_min=0.5, sigma_max=70.0)
    assert given == S.VESDE(0.5, 70.0)
    with pytest.raises(DataError, match="64 different items"):
        S.VESDE.for_data(data.take(20))
    with pytest.raises(DTypeError, match="got Tensor"):
        S.VESDE.for_data(raw)


def test_the_noise_of_ve_resolves_the_bins_of_integers():
    """Check the likelihood of peaky 8-bit pixels under default noise.

    Half of them are 0 and half 200. Each bin is a uniform law: E log2 P = -1 bit a pixel. The score of the two bins'
    dequantised mixture under VE is known; blurring both edges of a bin by sigma costs 2 sigma/w times .59 nats.
    """
    raw = 200 * torch.randint(2, (500, 4), generator=generator(), dtype=torch.uint8)
    data = Data("pixels", raw, num_values=256)
    width = 2 / 256
    sde = S.VESDE.for_data(data)
    sigma = sde.sigma(torch.tensor(0.0)).item()
    assert sigma == pytest.approx(width / math.sqrt(12) / 10, rel=1e-6)
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
    normal = torch.distributions.Normal(0.0, 1.0)
    blurred = normal.cdf((1 - u) * width / sigma) - normal.cdf(-u * width / sigma)
    assert -blurred.log().mean() / math.log(2) < 0.06  # .86 bits with sigma_min = .01
    with pytest.warns(DataWarning, match=r"1\.3 of the width of an integer's bin"):
        model_of(data, S.VESDE(0.01, 50.0))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sde", [S.VPSDE(), S.FlowSDE(), S.DDPM.linear(100), S.VESDE(0.001, 20.0)], ids=str)
def test_fine_noise_is_no_reason_to_warn(sde):
    model_of(Data("pixels", torch.randint(64, (100, 4), generator=generator()), num_values=256), sde)
