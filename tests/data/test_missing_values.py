"""Missing values: a mask beside x, and the loss over what is observed."""

import numpy as np
import pytest
import torch

import scoresde as S
from scoresde.data import from_array, from_dataset
from scoresde.data.reader import Reader
from scoresde.errors import ArgumentError, DataError, ShapeError
from scoresde.training import SlicedScoreMatching

NAN = float("nan")
COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 2.0, -0.5], [0.3, -0.5, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([5.0, -1.0, 100.0], dtype=torch.float64)


def table(n=4000, share=0.3, seed=0):
    """Return Gaussian rows whose entries are missing at random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(COVARIANCE).T + MEAN
    return torch.where(torch.rand(n, 3, generator=generator) < share, NAN, x)


def test_nan_is_an_error_unless_it_is_said_to_be_missing():
    raw = torch.tensor([[1.0, 2.0], [NAN, 3.0], [4.0, NAN]])
    with pytest.raises(DataError, match=r"missing=True.*the first at \(1, 0\)"):
        S.Data("a", raw)
    with pytest.raises(DataError, match="row 1 of 'b'"):
        S.Data("a", raw, columns=("b", "c"))
    data = S.Data("a", raw, missing=True)
    assert len(data.complete) == 1
    assert not data.complete.missing
    with pytest.raises(DataError, match="infinite"):
        S.Data("a", torch.tensor([[1.0], [float("inf")]]), missing=True)
    with pytest.raises(DataError, match="at least one observed value"):
        S.Data("a", torch.tensor([[1.0, NAN], [2.0, NAN]]), missing=True)
    with pytest.raises(DataError, match="missing=True"):
        from_array(np.zeros((3, 2), np.int64), num_values=3, missing=True)


def test_scale_and_moments_are_those_of_the_observed_values():
    """Compare with the true law, to five standard errors of 4000 x .7 values.

    The false-alarm rate of each of the nine covariances is below 1e-5.
    """
    data = S.Data("table", table(), missing=True)
    assert torch.allclose(1 / data.scale, COVARIANCE.diagonal().sqrt(), rtol=0.07)
    mean, covariance = data.moments()
    back = covariance / data.scale / data.scale[:, None]
    assert mean.abs().max() < 1e-12
    bound = 5 * ((COVARIANCE**2 + COVARIANCE.diagonal() * COVARIANCE.diagonal()[:, None]) / (4000 * 0.49)).sqrt()
    assert bool(((back - COVARIANCE).abs() < bound).all())
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12
    assert data.data_scale is not None
    assert data.few(50).isfinite().all()
    train, test = data.split(100)
    assert train.missing
    assert torch.equal(train.scale, test.scale)


def test_a_batch_has_zeros_and_a_mask():
    data = S.Data("table", table(8), missing=True)
    batch = Reader(data)(torch.arange(8), 0)
    assert torch.equal(batch["observed"], ~data.raw.isnan())
    assert bool((batch["x"][~batch["observed"]] == 0).all())
    items = [{"x": torch.tensor([1.0, NAN]), "observed": torch.tensor([True, False])} for _ in range(4)]
    batch = Reader(items)(torch.arange(4), 0)
    assert batch["x"].tolist() == [[1.0, 0.0]] * 4
    assert batch["observed"].tolist() == [[True, False]] * 4
    assert from_dataset([*items, {"x": torch.ones(2) * 2, "observed": torch.ones(2).bool()}]).missing
    for wrong, message in (
        ([*items, {"x": torch.ones(2)}], "no mask in some items"),
        ([{"x": torch.ones(2), "observed": torch.ones(2)}], "torch.float32"),
        ([{"x": torch.ones(2), "observed": torch.ones(3).bool()}], "shape of x"),
        ([{"x": torch.tensor([1.0, NAN]), "observed": torch.ones(2).bool()}], "NaN"),
    ):
        with pytest.raises(DataError, match=message):
            Reader(wrong)(torch.arange(len(wrong)), 0)


def model(scale=1.0):
    torch.manual_seed(0)
    return S.ScoreModel(S.ResidualMLP((3,), width=16, blocks=1), S.VPSDE())


@pytest.mark.parametrize("kind", ["denoising", "explicit"])
def test_the_loss_is_that_of_the_observed_entries(kind):
    """Compare a masked loss with the terms of the unmasked one."""
    net, x0 = model(), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    target = S.GaussianMixture(torch.zeros(1, 3), 1.0).model(S.VPSDE())
    objective = S.DenoisingScoreMatching() if kind == "denoising" else S.ExplicitScoreMatching(target)

    def loss(mask):
        return objective(net, x0, None, torch.Generator().manual_seed(2), mask)

    single = [torch.zeros(6, 3, dtype=torch.bool) for _ in range(3)]
    for i, mask in enumerate(single):
        mask[:, i] = True
    parts = [loss(mask) for mask in single]
    assert torch.allclose(loss(single[0] | single[2]), parts[0] + parts[2], rtol=1e-5)
    assert torch.allclose(objective(net, x0, None, torch.Generator().manual_seed(2)), sum(parts), rtol=1e-5)


def test_gradients_do_not_depend_on_what_is_missing_in_the_last_layer():
    net, x0 = model(), torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([True, False, True]).expand(4, 3)
    S.DenoisingScoreMatching()(net, x0, None, torch.Generator().manual_seed(2), mask).sum().backward()
    last = [p for name, p in net.named_parameters() if name.endswith("bias")][-1]
    assert last.shape == (3,)
    assert last.grad[1] == 0
    assert bool((last.grad[[0, 2]] != 0).all())


def test_masks_that_do_not_fit_are_refused():
    net, x0 = model(), torch.zeros(4, 3)
    with pytest.raises(ShapeError, match="observed"):
        S.DenoisingScoreMatching()(net, x0, observed=torch.ones(4, 2).bool())
    with pytest.raises(ShapeError, match="observed"):
        S.DenoisingScoreMatching()(net, x0, observed=torch.ones(4, 3))
    with pytest.raises(ArgumentError, match="denoising or explicit"):
        SlicedScoreMatching()(net, x0, observed=torch.ones(4, 3).bool())


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_on_half_of_the_values_learns_the_law(accumulate, tmp_path):
    """Sample after a training where 30 % of the values are missing.

    The covariance is right within .25, where filling the gaps with means would be off by .5 in the variances.
    """
    data = S.Data("table", table(), missing=True)
    train, held_out = data.split(400)
    torch.manual_seed(0)
    made = S.ScoreModel.for_data(S.ResidualMLP((3,), width=64, blocks=2), S.VPSDE(), train, predicts="edm")
    config = S.TrainerConfig(steps=600, batch_size=256, lr=3e-3, device="cpu", accumulate=accumulate)
    trainer = S.Trainer(made, config=config, folder=tmp_path)
    records = trainer.fit(train, held_out=held_out)
    assert records[-1].held_out is not None
    x = S.sample(trainer.averaged_model(), (4000, 3), generator=torch.Generator().manual_seed(0)).double()
    raw = made.to_data(x).double()
    assert torch.allclose(torch.cov(raw.T), COVARIANCE, atol=0.25)
    assert torch.allclose(raw.mean(0), MEAN, atol=0.15)
