"""Optimisers and schedulers by a factory."""

import functools

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

import scoresde as S
from scoresde.errors import CheckpointError, ScoreSDEError
from tests.training.test_trainer import DATA, weights

SETTINGS = {"steps": 20, "batch_size": 32, "log_every": 5, "checkpoint_every": 10, "device": "cpu", "warmup": 5}


def make(folder=None, optimizer=None, scheduler=None, **settings):
    torch.manual_seed(0)
    model = S.ScoreModel(S.ResidualMLP((2,), width=16, blocks=1, embedding_scale=1000), S.VPSDE())
    config = S.TrainerConfig(**(SETTINGS | settings))
    return S.Trainer(model, config=config, folder=folder, optimizer=optimizer, scheduler=scheduler)


def two_rates(parameters):
    return torch.optim.SGD([{"params": parameters[:1], "lr": 1e-3}, {"params": parameters[1:]}], lr=1e-2, momentum=0.9)


OPTIMIZERS = {
    "radam": functools.partial(torch.optim.RAdam, lr=1e-3),
    "nadam": functools.partial(torch.optim.NAdam, lr=1e-3),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=1e-2),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9),
    "sgd": functools.partial(torch.optim.SGD, lr=1e-2),
    "two rates": two_rates,
    "rprop": torch.optim.Rprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_resumes_bit_for_bit(name, tmp_path):
    whole = make(optimizer=OPTIMIZERS[name])
    whole.fit(DATA)
    cut = make(tmp_path, OPTIMIZERS[name])
    cut.every(10, lambda trainer: trainer.stop())
    cut.fit(DATA)
    later = make(tmp_path, OPTIMIZERS[name])
    assert later.resume() == 10
    later.fit(DATA)
    assert all(torch.equal(value, weights(later)[key]) for key, value in weights(whole).items())


def test_each_group_keeps_its_rate_under_warm_up_and_decay():
    trainer, rates = make(optimizer=two_rates, steps=20, warmup=5), []
    trainer.every(1, lambda t: rates.append([group["lr"] for group in t.optimizers[0].param_groups]))
    trainer.fit(DATA)
    for step, (first, second) in enumerate(rates):
        shape = trainer.config.learning_rate(step) / trainer.config.lr
        assert [first, second] == pytest.approx([1e-3 * shape, 1e-2 * shape])


def one_after_the_other(optimizer):
    return SequentialLR(optimizer, [StepLR(optimizer, 3), CosineAnnealingLR(optimizer, 12)], milestones=[7])


@pytest.mark.parametrize(
    "scheduler",
    [
        functools.partial(StepLR, step_size=7, gamma=0.1),
        functools.partial(CosineAnnealingLR, T_max=20),
        functools.partial(OneCycleLR, max_lr=1e-2, total_steps=21),
        one_after_the_other,
    ],
)
def test_a_scheduler_alone_decides_and_is_resumed(scheduler, tmp_path):
    """Compare the rates with those of the scheduler by itself."""
    bare = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    alone, expected = scheduler(bare), []
    for _ in range(20):
        expected.append(bare.param_groups[0]["lr"])
        bare.step()
        alone.step()

    rates = {}

    def note(optimizer, *_):
        rates[len(rates)] = optimizer.param_groups[0]["lr"]

    def watched(folder):
        trainer = make(folder, scheduler=scheduler)
        trainer.optimizers[0].register_step_pre_hook(note)
        return trainer

    cut = watched(tmp_path)
    cut.every(10, lambda trainer: trainer.stop())
    cut.fit(DATA)
    later = watched(tmp_path)
    later.resume()
    later.fit(DATA)
    assert list(rates.values()) == pytest.approx(expected, rel=1e-12)
    whole = make(scheduler=scheduler)
    whole.fit(DATA)
    assert all(torch.equal(value, weights(later)[key]) for key, value in weights(whole).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "radam"}, "`optimizer` must be a function of the parameters.*got str"),
        ({"optimizer": lambda p: None}, "returns a NoneType"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS"),
        ({"optimizer": lambda p: torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])}, "other parameters"),
        ({"scheduler": ReduceLROnPlateau}, "needs no measurement"),
        ({"scheduler": 3}, "`scheduler` must be a function of the optimiser.*got int"),
        ({"scheduler": lambda o: o}, "an LRScheduler"),
    ],
)
def test_what_no_trainer_can_use_is_refused(options, message):
    with pytest.raises(ScoreSDEError, match=message):
        make(**options)


def test_another_optimizer_or_scheduler_does_not_resume(tmp_path):
    make(tmp_path, OPTIMIZERS["radam"]).fit(DATA)
    with pytest.raises(CheckpointError, match="of the optimizer RAdam, not NAdam"):
        make(tmp_path, OPTIMIZERS["nadam"]).resume()
    with pytest.raises(CheckpointError, match="with and without a scheduler"):
        make(tmp_path, OPTIMIZERS["radam"], functools.partial(StepLR, step_size=7)).resume()


def test_bad_steps_are_skipped_with_any_optimizer():
    x = torch.cat([DATA.x[:31], torch.full((1, 2), 1e30)])  # its squared error overflows
    trainer = make(optimizer=OPTIMIZERS["radam"], on_nan="skip", steps=1)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    records = trainer.fit(x)
    assert len(records[-1].skipped) == 1
    assert all(torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())
