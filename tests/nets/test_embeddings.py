"""Features of time inputs and classes: closed forms, seeds, errors."""

import math

import pytest
import torch

from scoresde.errors import ArgumentError, DTypeError, ShapeError, UnknownNameError
from scoresde.nets import Conditioning, Fourier, LabelEmbedding, Sinusoidal


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-12)])
def test_sinusoidal_features_equal_their_closed_form(dtype, tolerance):
    time_inputs = [0.0, 0.37, 1.0, 999.5]
    out = Sinusoidal(8, max_period=500.0, scale=1.5)(torch.tensor(time_inputs, dtype=dtype))
    assert out.dtype == dtype
    for row, time_input in zip(out.tolist(), time_inputs, strict=True):
        phases = [1.5 * time_input * 500.0 ** (-k / 4) for k in range(4)]
        assert row == pytest.approx([math.sin(p) for p in phases] + [math.cos(p) for p in phases], abs=tolerance)


def test_sinusoidal_features_are_at_least_float32():
    time_input = torch.tensor([500.0], dtype=torch.bfloat16)
    assert torch.equal(Sinusoidal(8)(time_input), Sinusoidal(8)(time_input.float()))


def test_fourier_features_equal_their_closed_form_in_float64():
    features = Fourier(6, scale=3.0, seed=4)
    time_input = torch.tensor([-0.2, 0.0, 0.7], dtype=torch.float64)
    for row, value in zip(features(time_input).tolist(), time_input.tolist(), strict=True):
        phases = [2 * math.pi * w * value for w in features.w.tolist()]
        assert row == pytest.approx([math.sin(p) for p in phases] + [math.cos(p) for p in phases], abs=1e-12)


def test_fourier_frequencies_follow_the_seed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = Fourier(64, seed=1), Fourier(64, seed=1), Fourier(64, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.w, b.w)
    assert not torch.equal(a.w, c.w)
    c.load_state_dict(a.state_dict())
    assert torch.equal(a.w, c.w)


def test_fourier_frequencies_have_the_declared_scale():
    w = Fourier(20_000, scale=5.0, seed=0).w
    # 10^4 draws: std / scale has standard deviation 1 / sqrt(2e4); 5 sigma: false alarm 6e-7
    assert abs(w.std().item() / 5.0 - 1) < 5 / math.sqrt(2e4)
    assert abs(w.mean().item()) < 5 * 5.0 / math.sqrt(1e4)


def test_minus_one_and_none_have_one_class_vector():
    embedding = LabelEmbedding(3, 4)
    rows = embedding(torch.tensor([0, 2, -1]))
    assert torch.equal(rows[2], embedding(None)[0])
    assert torch.equal(rows, embedding.table.weight[[0, 2, 3]])


def test_label_embedding_refuses_other_tensors():
    with pytest.raises(DTypeError, match="int64"):
        LabelEmbedding(3, 4)(torch.zeros(2))
    with pytest.raises(ShapeError, match="y"):
        LabelEmbedding(3, 4)(torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("make", [Sinusoidal, Fourier])
@pytest.mark.parametrize("dim", [0, 3, 2.0, True])
def test_features_need_an_even_dimension(make, dim):
    with pytest.raises(ArgumentError, match="dim"):
        make(dim)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Sinusoidal(4, max_period=0.0), "max_period"),
        (lambda: Sinusoidal(4, scale=-1.0), "scale"),
        (lambda: Fourier(4, scale=math.inf), "scale"),
        (lambda: Fourier(4, seed=-1), "seed"),
        (lambda: LabelEmbedding(0, 4), "classes"),
        (lambda: Conditioning(4, 4, embedding_scale="big"), "embedding_scale"),
    ],
)
def test_bad_numbers_are_refused_by_name(make, argument):
    with pytest.raises(ArgumentError, match=argument):
        make()


def test_unknown_embedding_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'fourier'"):
        Conditioning(4, 4, embedding="furier")
