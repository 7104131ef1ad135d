"""The Frechet distance: closed form, bias, standard error, classifier."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from benchmarks.frechet import (
    Classifier,
    Gaussian,
    accuracy,
    blurred,
    distance,
    features,
    fit_classifier,
    frechet_distance,
    noisy,
)
from scoresde import Data
from scoresde.errors import CheckpointError, DataError, ShapeError


def gaussian(d, seed, rank=None):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, rank or d, generator=generator, dtype=torch.float64)
    return Gaussian(torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T / d, 100)


@pytest.mark.parametrize("rank", [8, 3])
def test_it_is_the_closed_form(rank):
    """Compare with the closed form by scipy's matrix root.

    Where p has low rank, zeros come out as 1e-16, whose roots are 1e-8.
    """
    p, q = gaussian(8, 0, rank), gaussian(8, 1)
    root = sqrtm(q.covariance.numpy())
    cross = np.sqrt(np.linalg.eigvalsh(root @ p.covariance.numpy() @ root).clip(min=0)).sum()
    expected = (p.mean - q.mean).square().sum().item() + p.spread + q.spread - 2 * cross
    assert frechet_distance(p, q) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(q, p) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(p, p) == pytest.approx(0, abs=1e-6)


def test_commuting_covariances_and_a_shift():
    """Check diag(a) and diag(b), apart by m.

    |m|^2 + sum (sqrt a - sqrt b)^2
    """
    a, b, m = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 4.0, 0.0], [9.0, 4.0, 1.0], [1.0, 0.0, 2.0]))
    p, q = Gaussian(torch.zeros(3).double(), a.diag(), 10), Gaussian(m, b.diag(), 10)
    assert frechet_distance(p, q) == pytest.approx(5.0 + 4.0 + 0.0 + 1.0)


@pytest.mark.slow
def test_bias_and_standard_error():
    """Compare the estimated bias and spread with those of 300 sets of n.

    The halves estimate the bias, the bootstrap the spread. To first order in 1/n, n draws of N(0, I) in d dimensions
    have an expectation of (d + d (d + 1)/4)/n above that Gaussian. Where the means are m apart the spread is that of 2
    m . mean, 2 |m|/sqrt(n). Chance alone would fail one of 10,000 choices of the seed.
    """
    d, n = 6, 400
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(d, dtype=torch.float64)
    same = Gaussian(torch.zeros(d).double(), eye, n)
    found = [distance(torch.randn(n, d, generator=generator), same, resamples=2) for _ in range(300)]
    values, biases = (torch.tensor([getattr(f, name) for f in found]).double() for name in ("value", "bias"))
    expected = (d + d * (d + 1) / 4) / n
    assert values.mean().item() == pytest.approx(expected, rel=0.1)
    assert biases.mean().item() == pytest.approx(expected, rel=0.15)

    far = Gaussian(torch.full((d,), 3.0).double(), eye, n)
    stderr = distance(torch.randn(n, d, generator=generator), far, resamples=200).stderr
    assert stderr == pytest.approx(2 * 3 * math.sqrt(d) / math.sqrt(n), rel=0.2)


def test_too_few_images_are_refused():
    with pytest.raises(ShapeError, match=r"N >= 2"):
        Gaussian.of(torch.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"n >= 4"):
        distance(torch.zeros(3, 3), gaussian(3, 0))


@pytest.mark.slow
def test_a_classifier_learns_is_saved_and_gives_features(tmp_path):
    """Separate images that are bright above from those bright below.

    A few steps suffice; saving and other batches change no result.
    """
    labels = torch.arange(256) % 2
    raw = torch.randint(0, 80, (256, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    raw[labels == 0, :, :4] += 150
    raw[labels == 1, :, 4:] += 150
    data = Data("halves", raw, labels, num_values=256)
    made = fit_classifier(data, epochs=6, batch=32)
    assert accuracy(made, data) == (1.0, 0.0)
    made.save(tmp_path / "classifier", epochs=6)
    again, facts = Classifier.load(tmp_path / "classifier")
    assert facts == {"epochs": 6}
    kept = features(made, raw)
    assert kept.shape == (256, 64)
    assert kept.min() >= 0
    assert torch.allclose(features(again, raw, batch=7), kept, atol=1e-5)
    assert torch.allclose(made.head(kept.float()), made(raw), atol=1e-4)
    repeated = fit_classifier(data, epochs=6, batch=32)
    assert all(torch.equal(p, q) for p, q in zip(made.parameters(), repeated.parameters(), strict=True))


def test_a_classifier_needs_labels_and_a_whole_folder(tmp_path):
    with pytest.raises(DataError, match="labelled images"):
        fit_classifier(Data("bare", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), num_values=256))
    with pytest.raises(CheckpointError, match=r"classifier\.json"):
        Classifier.load(tmp_path)
    (tmp_path / "classifier.json").write_text('{"config": {"shape": [1, 8, 8]}}')
    with pytest.raises(CheckpointError, match=r"Classifier\.save"):
        Classifier.load(tmp_path)


def test_corrupted_images():
    raw = torch.zeros(2, 1, 5, 5, dtype=torch.uint8)
    raw[0, 0, 2, 2] = 90
    raw[1] = 200
    soft = blurred(raw)
    assert soft.dtype == raw.dtype
    assert soft[0, 0, 1:4, 1:4].eq(10).all()
    assert soft[1].eq(200).all()
    flat = torch.full((40, 1, 28, 28), 128, dtype=torch.uint8)
    assert noisy(flat, std=16.0).double().std().item() == pytest.approx(16.0, rel=0.02)
    assert noisy(raw, num_values=201).max() <= 200
