"""The precision of training, chosen by time."""

import logging
import time

import pytest
import torch

import scoresde as S
from scoresde.training import precision
from scoresde.training.precision import Network, time_bfloat16


def train(folder=None, steps=4, **settings):
    train, _ = S.load_data("digits")
    torch.manual_seed(0)
    model = S.ScoreModel.for_data(S.UNet((1, 8, 8), channels=8, num_groups=4, dropout=0.1), S.VPSDE(), train)
    config = S.TrainerConfig(
        **{"steps": steps, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "device": "cpu"} | settings
    )
    trainer = S.Trainer(model, S.DenoisingScoreMatching(), config, folder)
    return trainer, train


def losses(trainer, data):
    return [record.loss for record in trainer.fit(data)]


def pretend(monkeypatch, ratio):
    def measured(network, work):
        work()
        return ratio

    monkeypatch.setattr("scoresde.training.optimizer_steps.time_bfloat16", measured)


@pytest.mark.parametrize(("ratio", "chosen"), [(0.5, "bfloat16"), (0.95, "float32"), (7.0, "float32")])
def test_auto_is_the_faster_one_bit_for_bit(monkeypatch, caplog, ratio, chosen):
    pretend(monkeypatch, ratio)
    automatic, data = train(precision="auto", accumulate=2)
    with caplog.at_level(logging.INFO, "scoresde.training"):
        found = losses(automatic, data)
    assert automatic.precision == chosen
    assert [message for message in caplog.messages if f"Training in {chosen}" in message]
    plain, data = train(precision=chosen, accumulate=2)
    assert losses(plain, data) == found
    for a, b in zip(automatic.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_goes_on_in_the_precision_that_it_had(monkeypatch, tmp_path):
    pretend(monkeypatch, 0.5)
    whole, data = train(precision="auto")
    expected = losses(whole, data)
    first, _ = train(tmp_path, precision="auto")
    first.every(2, lambda trainer: trainer.stop() if trainer.step == 2 else None)
    found = losses(first, data)
    pretend(monkeypatch, 7.0)  # a busy machine would now choose the other one
    second, _ = train(tmp_path, precision="auto")
    assert second.resume() == len(found)
    assert found + losses(second, data) == expected
    assert second.precision == "bfloat16"


def test_the_times_are_those_of_both_precisions(monkeypatch):
    """Compare with a network that sleeps, and count its passes."""
    monkeypatch.setattr(precision, "QUICK", 0.0)
    passes = []

    def sleeping(seconds):
        network = Network(torch.nn.Identity(), torch.device("cpu"), "auto", False, False)

        def work():
            passes.append(network.dtype)
            time.sleep(seconds[network.dtype])

        return time_bfloat16(network, work), network

    ratio, network = sleeping({None: 0.05, torch.bfloat16: 0.02})
    assert ratio < 0.9
    assert network.dtype is None
    assert passes == [None, None, torch.bfloat16, torch.bfloat16]
    passes.clear()
    ratio, _ = sleeping({None: 0.01, torch.bfloat16: 0.2})
    assert ratio > 3
    assert passes == [None, None, torch.bfloat16]
