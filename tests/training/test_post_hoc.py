"""Averages of the weights whose length is chosen after the training."""

import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from scoresde.errors import ArgumentError, CheckpointError, CheckpointWarning
from scoresde.training import PowerEMA, post_hoc_average
from scoresde.training.post_hoc import (
    _exponential_products,
    _power_products,
    _Profile,
    power_exponent,
    snapshots,
)
from tests.training.test_trainer import DATA, make

STEPS = 600


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25, 12**-0.5])
def test_the_exponent_has_the_width(sigma_rel):
    gamma = power_exponent(sigma_rel)
    steps = (np.arange(200_000) + 0.5) / 200_000
    profile = steps**gamma / np.sum(steps**gamma)
    mean = np.sum(profile * steps)
    assert np.sum(profile * (steps - mean) ** 2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-4)


def test_the_update_is_the_weighted_sum():
    """Compare with the sum that the recursion of EDM2's eq. 122 unrolls to."""
    module = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    ema, values = PowerEMA(module, (0.07,)), torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    for value in values:
        torch.nn.init.constant_(module.weight, value)
        ema.update()
    gamma, total = power_exponent(0.07), 0.0
    for n, value in enumerate(values, 1):
        later = np.prod([(1 - 1 / m) ** (gamma + 1) for m in range(n + 1, 51)])
        total += later * (1 - (1 - 1 / n) ** (gamma + 1)) * float(value)
    assert ema.tensors()["0.weight"].item() == pytest.approx(total, rel=1e-12)


def test_inner_products_are_integrals():
    a, b = _Profile(400, power_exponent(0.05)), _Profile(900, power_exponent(0.1))

    def power(p, tau):
        return (p.exponent + 1) * tau**p.exponent / p.step ** (p.exponent + 1)

    expected = quad(lambda tau: power(a, tau) * power(b, tau), 0, 400, epsabs=0)[0]
    assert _power_products([a], [b])[0, 0] == pytest.approx(expected, rel=1e-9)
    assert _power_products([b], [a])[0, 0] == pytest.approx(expected, rel=1e-9)

    def exponential(tau):
        return 2 ** (-(900 - tau) / 30) * np.log(2) / 30 / (1 - 2 ** (-900 / 30))

    products, norm = _exponential_products([a, b], 30.0, 900)
    for found, p in zip(products, (a, b), strict=True):
        integral = quad(lambda tau, p=p: power(p, tau) * exponential(tau), 0, p.step, points=[p.step - 60], epsabs=0)
        assert found == pytest.approx(integral[0], rel=1e-7)
    assert norm == pytest.approx(quad(lambda tau: exponential(tau) ** 2, 0, 900, points=[850], epsabs=0)[0], rel=1e-7)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train with snapshots, and keep the weights of every step."""
    folder, kept = tmp_path_factory.mktemp("run"), []
    trainer = make(folder, steps=STEPS, snapshot_every=25, log_every=100, checkpoint_every=200, lr=3e-3)
    trainer.every(1, lambda t: kept.append(torch.cat([p.detach().flatten() for p in t.model.net.parameters()])))
    trainer.fit(DATA)
    return folder, torch.stack(kept).double()


def _vector(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()]).double()


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.1, 0.15, 0.2])
def test_any_power_average_is_reconstructed(run, sigma_rel):
    folder, kept = run
    gamma, true = power_exponent(sigma_rel), kept[0]
    for n, row in enumerate(kept, 1):
        true = true + (1 - (1 - 1 / n) ** (gamma + 1)) * (row - true)
    error = (_vector(post_hoc_average(folder, sigma_rel=sigma_rel)) - true).norm()
    assert error < 0.01 * (kept[-1] - true).norm()  # what the average does to the weights


@pytest.mark.parametrize("half_life", [20, 50, 100])
def test_any_half_life_is_reconstructed(run, half_life):
    folder, kept = run
    profile = 2 ** (-torch.arange(STEPS - 1, -1, -1, dtype=torch.float64) / half_life)
    true = (profile[:, None] * kept).sum(0) / profile.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        model = post_hoc_average(folder, half_life=half_life)
    assert (_vector(model) - true).norm() < 0.1 * (kept[-1] - true).norm()
    assert not model.training


def test_an_average_can_end_earlier(run):
    folder, kept = run
    gamma, true = power_exponent(0.1), kept[0]
    for n, row in enumerate(kept[:300], 1):
        true = true + (1 - (1 - 1 / n) ** (gamma + 1)) * (row - true)
    error = (_vector(post_hoc_average(folder, sigma_rel=0.1, step=300)) - true).norm()
    assert error < 1e-5 * true.norm()  # it is one of the snapshots


def test_an_average_that_the_snapshots_cannot_give_is_warned_of(run):
    with pytest.warns(CheckpointWarning, match="half-life 1 at step 600 is .* % off"):
        post_hoc_average(run[0], half_life=1)


def test_snapshots_survive_an_interruption(tmp_path):
    settings = {"steps": 40, "snapshot_every": 6, "checkpoint_every": 10}
    make(tmp_path / "whole", **settings).fit(DATA)
    cut = make(tmp_path / "cut", **settings)
    cut.every(19, lambda trainer: trainer.stop())
    cut.fit(DATA)
    later = make(tmp_path / "cut", **settings)
    later.resume(tmp_path / "cut" / "step-000000010")
    assert list(snapshots(tmp_path / "cut")) == [6]
    later.fit(DATA)
    expected = post_hoc_average(tmp_path / "whole", sigma_rel=0.08).state_dict()
    found = post_hoc_average(tmp_path / "cut", sigma_rel=0.08).state_dict()
    assert list(snapshots(tmp_path / "cut")) == [6, 12, 18, 24, 30, 36, 40]
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_what_cannot_be_is_refused(run, tmp_path):
    folder, _ = run
    with pytest.raises(ArgumentError, match="half_life, sigma_rel"):
        post_hoc_average(folder)
    with pytest.raises(ArgumentError, match="half_life, sigma_rel"):
        post_hoc_average(folder, half_life=3, sigma_rel=0.1)
    with pytest.raises(ArgumentError, match="with a snapshot: 25, 50"):
        post_hoc_average(folder, sigma_rel=0.1, step=7)
    with pytest.raises(ArgumentError, match="sigma_rel"):
        post_hoc_average(folder, sigma_rel=0.3)
    with pytest.raises(CheckpointError):
        post_hoc_average(tmp_path, sigma_rel=0.1)
    with pytest.raises(ArgumentError, match="snapshot_every"):
        make(snapshot_every=10)
    make(tmp_path, steps=10).fit(DATA)
    with pytest.raises(CheckpointError, match="without snapshots"):
        post_hoc_average(tmp_path, sigma_rel=0.1)


def test_an_altered_snapshot_is_found(tmp_path):
    make(tmp_path, steps=20, snapshot_every=10).fit(DATA)
    path = snapshots(tmp_path)[10]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=path.name):
        post_hoc_average(tmp_path, sigma_rel=0.1)
