"""Training for a given time: end, learning rate, averages and resuming."""

import math

import pytest
import torch

from scoresde import VPSDE, ScoreModel, Trainer, TrainerConfig, load_data
from scoresde.errors import ArgumentError
from scoresde.nets import build_net
from scoresde.training import trainer as module
from tests.marks import first_fast

STEP = 0.5  # seconds per step of the clock below


@pytest.fixture
def clock(monkeypatch):
    """Replace the trainer's clock: it advances ``STEP`` seconds per step."""
    now = {"t": 0.0}
    train = Trainer._one_step

    def one_step(self, batch, lr):
        now["t"] += STEP
        return train(self, batch, lr)

    monkeypatch.setattr(module.time, "perf_counter", lambda: now["t"])
    monkeypatch.setattr(Trainer, "timer", lambda self: now["t"])
    monkeypatch.setattr(Trainer, "_one_step", one_step)
    return now


def trainer(folder=None, **settings):
    model = ScoreModel(build_net({"name": "mlp", "shape": [2], "width": 8, "blocks": 1}, seed=0), VPSDE())
    settings = {"minutes": 20 * STEP / 60, "steps": 3, "batch_size": 4, "warmup": 4, "log_every": 1, **settings}
    return Trainer(model, config=TrainerConfig(device="cpu", **settings), folder=folder)


DATA = load_data("two-moons", n=50)[0]


SHAPES = {"cosine": lambda u: (1 + math.cos(math.pi * u)) / 2, "linear": lambda u: 1 - u, "none": lambda u: 1.0}


@first_fast("decay", SHAPES)
def test_the_time_ends_training_and_lowers_the_rate(clock, decay):
    made = trainer(lr_decay=decay, ema_half_life={"ema": 0.2, "slow": 7.0})
    records = made.fit(DATA)
    assert made.step == 20  # not the 3 steps
    assert made.finished
    assert made.seconds_trained == pytest.approx(10.0)
    rates = [record.lr / 5e-4 for record in records]
    assert rates == pytest.approx([min(1, (k + 1) / 4) * SHAPES[decay](k / 20) for k in range(20)])
    assert made.ema.half_lives == {"ema": pytest.approx(0.2 * 20), "slow": 7.0}
    assert records[9].steps == 20
    assert records[9].seconds_left == pytest.approx(5.0)


def test_time_between_the_steps_does_not_count(clock):
    made = trainer()
    made.every(1, lambda _: clock.update(t=clock["t"] + 100.0))
    assert made.fit(DATA)[-1].step == 20


def test_a_resumed_run_keeps_its_time(clock, tmp_path):
    first = trainer(tmp_path)
    first.every(8, lambda t: t.stop())
    first.fit(DATA)
    assert not first.finished
    second = trainer(tmp_path)
    assert (second.resume(), second.seconds_trained) == (8, pytest.approx(4.0))
    second.fit(DATA)
    whole = trainer()
    whole.fit(DATA)
    assert second.step == 20
    for p, q in zip(second.parameters, whole.parameters, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("minutes", [0, -1.0, math.inf, math.nan])
def test_minutes_are_positive(minutes):
    with pytest.raises(ArgumentError, match=r"`minutes` must be .*, got"):
        TrainerConfig(minutes=minutes)
