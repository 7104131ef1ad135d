"""The trainer: it learns, it resumes bit for bit, and it fails without losing anything."""

import errno
import json
import math
import pickle

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, CheckpointError, NonFiniteError, UnknownNameError
from scoresde.training.checkpoints import checkpoints

GM = S.GaussianMixture([[2.0, 0.0], [-1.0, 1.0]], [0.1, 0.3])


class Points(torch.utils.data.Dataset):
    def __init__(self, n=512):
        self.x = GM.sample(n, torch.Generator().manual_seed(0)).float()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


DATA = Points()


def make(folder=None, seed=0, **settings):
    torch.manual_seed(seed)
    net = S.ResidualMLP((2,), width=16, blocks=1, dropout=0.1, embedding_scale=1000)
    model = S.ScoreModel(net, S.VPSDE())
    settings = {
        "steps": 30,
        "batch_size": 32,
        "log_every": 5,
        "checkpoint_every": 10,
        "device": "cpu",
        "warmup": 5,
    } | settings
    return S.Trainer(model, config=S.TrainerConfig(**settings), folder=folder)


def weights(trainer):
    return {**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}}


def test_training_learns_the_score():
    """Denoising loss falls below 60 % of the untrained, and the score is near the truth where the data are."""
    torch.manual_seed(0)
    net = S.ResidualMLP((2,), width=64, blocks=2, embedding_scale=1000)
    model = S.ScoreModel(net, S.VPSDE())
    config = S.TrainerConfig(
        steps=600, batch_size=256, lr=3e-3, warmup=20, ema_half_life=50, device="cpu", log_every=50
    )
    trainer = S.Trainer(model, config=config)
    records = trainer.fit(Points(4000))
    assert records[-1].loss < 0.6 * records[0].loss
    exact, learned = GM.model(S.VPSDE()), trainer.averaged_model()
    x_t, _ = S.VPSDE().perturb(
        GM.sample(1000, torch.Generator().manual_seed(1)).float(), 0.3, torch.Generator().manual_seed(2)
    )
    error = (learned(x_t, 0.3).eps - exact(x_t, 0.3).eps).square().mean()
    assert error < 0.03 * exact(x_t, 0.3).eps.square().mean()


def test_records_count_and_tell_the_time():
    trainer = make()
    records = trainer.fit(DATA)
    assert [r.step for r in records] == [5, 10, 15, 20, 25, 30]
    assert all(r.steps_per_second > 0 and math.isfinite(r.loss) for r in records)
    assert records[-1].seconds_left == 0
    again = make().records(DATA)
    assert next(again).loss == records[0].loss


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    """Dropout, batches, moving average and Adam: stopped after 15 of 30 steps and taken up by a new trainer."""
    whole = make(tmp_path / "whole")
    whole.fit(DATA)
    first = make(tmp_path / "parts")
    first.fit(DATA, callback=lambda record: first.stop() if record.step == 15 else None)
    assert first.step == 15
    torch.manual_seed(99)
    second = make(tmp_path / "parts", seed=5)
    assert second.resume() == 15
    second.fit(DATA)
    assert second.step == 30
    for (name, a), b in zip(weights(whole).items(), weights(second).values(), strict=True):
        assert torch.equal(a, b), name


def test_checkpoints_are_models_and_only_the_newest_are_kept(tmp_path):
    trainer = make(tmp_path, keep=2)
    trainer.fit(DATA)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000020", "step-000000030"]
    model = S.ScoreModel.from_pretrained(checkpoints(tmp_path)[-1])
    x = torch.randn(5, 2)
    assert torch.equal(model(x, 0.5).eps, trainer.averaged_model()(x, 0.5).eps)
    assert not list(tmp_path.glob(".*"))


class Exploding(torch.utils.data.Dataset):
    """Good data until item 7 is asked for the second time."""

    def __init__(self):
        self.seen = 0

    def __len__(self):
        return 512

    def __getitem__(self, i):
        self.seen += 1
        return DATA.x[i] * (float("nan") if self.seen > 32 * 14 else 1.0)


def test_a_nan_loss_names_the_step_and_keeps_the_checkpoint(tmp_path):
    trainer = make(tmp_path)
    with pytest.raises(NonFiniteError, match="step 15"):
        trainer.fit(Exploding())
    kept = checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step-000000010"]
    model = S.ScoreModel.from_pretrained(kept[-1])
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    from pathlib import Path

    write = Path.write_bytes

    def full(self, data):
        if trainer.step == 20 and self.name == "training.safetensors":
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit(DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000010"]
    monkeypatch.setattr(Path, "write_bytes", write)
    again = make(tmp_path)
    assert again.resume() == 10
    again.fit(DATA)
    assert again.step == 30


@pytest.mark.parametrize("harm", ["truncated", "flipped", "pickle", "missing", "foreign json", "foreign format"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, harm):
    trainer = make(tmp_path, steps=10)
    trainer.fit(DATA)
    folder = checkpoints(tmp_path)[-1]
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    match harm:
        case "truncated":
            file.write_bytes(content[:-7])
        case "flipped":
            content[-100] ^= 4
            file.write_bytes(content)
        case "pickle":
            file.write_bytes(pickle.dumps({"a": 1}))
        case "missing":
            file.unlink()
        case "foreign json":
            (folder / "training.json").write_text("[1, 2")
        case "foreign format":
            (folder / "training.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match=r"training\.json|model\.safetensors|scoresde-checkpoint"):
        make(tmp_path).resume()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    make(tmp_path, steps=10).fit(DATA)
    other = S.Trainer(S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE()), folder=tmp_path)
    with pytest.raises(CheckpointError, match="this model"):
        other.resume()
    with pytest.raises(CheckpointError, match="at least one"):
        make(tmp_path / "empty").resume()


def test_a_class_conditional_network_gets_its_labels():
    net = S.ResidualMLP((2,), width=8, blocks=1, classes=3)
    seen = []
    net.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["y"]), with_kwargs=True)
    data = [(DATA.x[i], i % 3) for i in range(60)]

    class Labelled(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, i):
            return data[i]

    config = S.TrainerConfig(steps=2, batch_size=60, device="cpu", conditional=True)
    S.Trainer(S.ScoreModel(net, S.VPSDE()), config=config).fit(Labelled())
    assert torch.equal(seen[0].bincount(), torch.tensor([20, 20, 20]))


def test_learning_rate_rises_and_falls():
    trainer = make(steps=100, warmup=10, lr=1.0)
    rates = [trainer.learning_rate(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
    assert make(warmup=0, lr_decay="none", lr=0.3).learning_rate(29) == 0.3


def test_gradients_are_clipped():
    trainer = make(clip=1e-3, steps=1)
    trainer.fit(DATA)
    norm = torch.stack([p.grad.norm() for p in trainer.parameters if p.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_ema_is_the_average_it_says():
    """The recursion written out: w <- d w + (1 - d) w_k with d = 2^(-1/half_life), less at the start."""
    net = torch.nn.Linear(1, 1, bias=False)
    ema = S.EMA(net, half_life=3.0)
    expected = net.weight.item()
    for k in range(40):
        with torch.no_grad():
            net.weight.fill_(math.sin(k))
        ema.update()
        decay = min(2 ** (-1 / 3.0), (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * math.sin(k)
    assert ema.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(ArgumentError, match="steps: got 0"):
        S.TrainerConfig(steps=0)
    with pytest.raises(ArgumentError, match="lr"):
        S.TrainerConfig(lr=float("nan"))
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        S.TrainerConfig(lr_decay="cosin")
    with pytest.raises(UnknownNameError, match="device"):
        S.TrainerConfig(device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match="device: got 'cuda'"):
            make(device="cuda")
