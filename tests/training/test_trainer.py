"""The trainer: learning, bit-for-bit resuming, and safe failures."""

import json
import math

import pytest
import torch

import scoresde as S
from scoresde.data import TruncatedNormal
from scoresde.errors import ArgumentError, CheckpointError, NonFiniteError, UnknownNameError
from scoresde.training import LossAware
from scoresde.training.checkpoints import best_checkpoint, checkpoints, load_average
from tests.marks import first_fast

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


@pytest.mark.slow
def test_training_learns_the_score():
    """Train until the loss is below 60 % of its start.

    The score is then near the truth where the data are.
    """
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


def test_records_hold_steps_and_times():
    trainer = make()
    records = trainer.fit(DATA)
    assert [r.step for r in records] == [5, 10, 15, 20, 25, 30]
    assert all(r.steps_per_second > 0 and math.isfinite(r.loss) for r in records)
    assert records[-1].seconds_left == 0
    again = make().records(DATA)
    assert next(again).loss == records[0].loss


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    """Stop after 15 of 30 steps and resume in a new trainer.

    Dropout, batches, moving average and Adam agree bit for bit.
    """
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


@pytest.mark.slow
def test_fit_continues_where_it_stopped():
    """Call the same trainer again: it repeats and loses no batch."""
    whole, parts = make(), make()
    whole.fit(DATA)
    torch.manual_seed(0)
    parts = make()
    for stop in (7, 20, 31):
        parts.every(1, lambda trainer, stop=stop: trainer.stop() if trainer.step == stop else None)
        parts.fit(DATA)
    assert parts.step == 30
    for (name, a), b in zip(weights(whole).items(), weights(parts).values(), strict=True):
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
    """Data that are NaN at some steps, counted from 1."""

    def __init__(self, *steps):
        self.steps, self.seen = steps, 0

    def __len__(self):
        return 512

    def __getitem__(self, i):
        self.seen += 1
        return DATA.x[i] * (1e30 if (self.seen - 1) // 32 + 1 in self.steps else 1.0)


def test_a_nan_loss_names_step_and_level_and_keeps_files(tmp_path):
    trainer = make(tmp_path)
    with pytest.raises(NonFiniteError, match=r"step 15, at noise level t = 0\.\d+ \(log-SNR -?\d"):
        trainer.fit(Exploding(15))
    kept = checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step-000000010"]
    model = S.ScoreModel.from_pretrained(kept[-1])
    assert all(p.isfinite().all() for p in model.parameters())


def test_bad_steps_are_skipped_on_request():
    """Check that a skipped step leaves weights and Adam's moments unchanged."""
    trainer = make(on_nan="skip", steps=15)
    before = {}
    trainer.every(11, lambda trainer: before.update({k: v.clone() for k, v in trainer.model.state_dict().items()}))
    after = {}
    trainer.every(12, lambda trainer: after.update({k: v.clone() for k, v in trainer.model.state_dict().items()}))
    records = trainer.fit(Exploding(12))
    assert all(torch.equal(before[key], after[key]) for key in before)
    (skip,) = records[-1].skipped
    assert skip.step == 12
    assert 0 < skip.t < 1
    assert skip.log_snr == pytest.approx(S.VPSDE().log_snr(torch.tensor(skip.t)).item(), abs=1e-3)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert math.isfinite(records[-1].loss)
    assert [record.skipped for record in records[:2]] == [(), ()]


def test_a_run_of_bad_steps_alone_ends(monkeypatch):
    monkeypatch.setattr("scoresde.training.records.SKIPS", 6)
    with pytest.raises(NonFiniteError, match=r"step 9.*last of 6 in a row"):
        make(on_nan="skip").fit(Exploding(*range(4, 40)))


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


def labelled(classes=3):
    return [(DATA.x[i], i % classes) for i in range(60)]


def test_labels_are_dropped_at_their_rate():
    """Count the drops of 1800 labels, each with probability 0.2.

    A count outside 360 +- 85 (5 sigma) is a false alarm once in 2 million.
    """
    net = S.ResidualMLP((2,), width=8, blocks=1, classes=3)
    seen = []
    net.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["y"]), with_kwargs=True)
    config = S.TrainerConfig(steps=30, batch_size=60, device="cpu", conditional=True, label_dropout=0.2)
    S.Trainer(S.ScoreModel(net, S.VPSDE()), config=config).fit(labelled())
    y = torch.cat(seen)
    assert abs(int((y == -1).sum()) - 360) < 85
    assert set(y.tolist()) == {-1, 0, 1, 2}
    with pytest.raises(ArgumentError, match="without labels"):
        S.Trainer(S.ScoreModel(net, S.VPSDE()), config=config).fit(DATA)


@first_fast("pieces", [2, 3])
def test_accumulated_pieces_are_one_batch(pieces):
    """Compare the weights of a batch in pieces with those of one batch.

    The times and the noise are drawn for the whole batch of 32; the pieces differ in size; there is no dropout.
    """

    def run(accumulate):
        torch.manual_seed(0)
        model = S.ScoreModel(S.ResidualMLP((2,), width=16, blocks=1), S.VPSDE())
        config = S.TrainerConfig(steps=10, batch_size=32, accumulate=accumulate, warmup=2, lr=1e-3, device="cpu")
        trainer = S.Trainer(model, config=config)
        return trainer, trainer.fit(DATA)

    (whole, records), (parts, other) = run(1), run(pieces)
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)
    assert [r.loss for r in other] == pytest.approx([r.loss for r in records], rel=1e-4)


@first_fast("pieces", [2, 3])
def test_what_times_learn_does_not_depend_on_the_pieces(pieces):
    """Draw the times by the losses, of few levels, so that they soon learn."""

    def run(accumulate):
        torch.manual_seed(0)
        model = S.ScoreModel(S.ResidualMLP((2,), width=16, blocks=1), S.VPSDE())
        config = S.TrainerConfig(steps=10, batch_size=32, accumulate=accumulate, warmup=2, lr=1e-3, device="cpu")
        objective = S.DenoisingScoreMatching("likelihood", time_sampling=LossAware(count=5, history=3))
        trainer = S.Trainer(model, objective, config)
        trainer.fit(DATA)
        return trainer

    whole, parts = run(1), run(pieces)
    learned, other = (trainer.objective.state_dict() for trainer in (whole, parts))
    assert bool((learned["seen"][:5] > 3).all())
    assert torch.equal(learned["seen"], other["seen"])
    assert torch.allclose(learned["squares"], other["squares"], rtol=1e-4)
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"precision": "float16"}, {"compile": "eager"}])
def test_low_precision_and_compilation_train_the_same(settings, tmp_path):
    """Train in low precision, or compiled.

    The weights stay float32, the averaged model is a plain one, and the loss is near that of a plain run.
    """
    plain, special = make(steps=20, lr=3e-3), make(tmp_path, steps=20, lr=3e-3, **settings)
    seen = []
    special.model.net.head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    expected, records = plain.fit(DATA), special.fit(DATA)
    if "precision" in settings:
        assert set(seen) == {getattr(torch, settings["precision"])}
    assert all(p.dtype == torch.float32 for p in special.parameters)
    assert records[-1].loss == pytest.approx(expected[-1].loss, rel=0.1)
    assert torch.allclose(
        special.averaged_model()(DATA.x[:5], 0.5).eps, plain.averaged_model()(DATA.x[:5], 0.5).eps, atol=0.05
    )
    again = make(tmp_path, steps=20, **settings)
    assert again.resume() == 20
    assert again.scaler.state_dict() == special.scaler.state_dict()


def test_float16_skips_steps_whose_gradient_overflows():
    """Train with a first scale of 2^16, too large for this loss.

    The trainer skips steps and halves the scale, without an error.
    """
    trainer = make(steps=20, precision="float16", lr=1e-3)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    records = trainer.fit(DATA)
    skipped = [skip for record in records for skip in record.skipped]
    assert skipped
    assert all(skip.t is None for skip in skipped)
    assert trainer.scaler.get_scale() < 2.0**40


@pytest.mark.slow
def test_channels_last_images_resume_bit_for_bit(tmp_path):
    """Check that Adam's moments come back in the weights' own layout."""
    images = torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(folder, steps):
        torch.manual_seed(0)
        model = S.ScoreModel(S.UNet((2, 8, 8), channels=8, multipliers=(1, 2), attention=()), S.VPSDE())
        config = S.TrainerConfig(
            steps=steps, batch_size=4, channels_last=True, lr_decay="none", warmup=0, device="cpu", checkpoint_every=3
        )
        return S.Trainer(model, config=config, folder=folder)

    whole = run(None, 6)
    whole.fit(images)
    run(tmp_path, 3).fit(images)
    parts = run(tmp_path, 6)
    parts.resume()
    parts.fit(images)
    weight = parts.model.net.stem.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert parts.optimizers[0].state[weight]["exp_avg"].stride() == weight.stride()
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        assert torch.equal(a, b)


def test_the_loss_of_each_noise_level_is_recorded():
    """Check the mean losses over equal bins of log-SNR.

    They are taken before the weight of the draw.
    """
    torch.manual_seed(0)
    model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE())
    objective = S.DenoisingScoreMatching("simple", time_sampling="log-snr")
    config = S.TrainerConfig(steps=4, batch_size=512, log_every=4, lr=1e-12, device="cpu")
    (record,) = S.Trainer(model, objective, config).fit(DATA)
    at, loss = zip(*record.by_level, strict=True)
    assert len(at) == 8
    assert torch.tensor(at).diff().std() < 1e-3
    # the network predicts eps = 0, so the loss is |eps|^2 per entry: 1 within 5 sigma
    assert all(0.8 < value < 1.2 for value in loss)


def test_hooks_run_on_time_and_leave_training_unchanged():
    plain, hooked, seen = make(steps=20), make(steps=20), []
    hooked.every(6, lambda trainer: seen.append((trainer.step, torch.randn(1).item())))
    for trainer in (plain, hooked):
        torch.manual_seed(1)  # for the dropout
        trainer.fit(DATA)
    assert [step for step, _ in seen] == [6, 12, 18]
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(hooked).values(), strict=True))
    with pytest.raises(ArgumentError, match=r"`steps` must be .*, got 0"):
        plain.every(0, print)


@pytest.mark.slow
def test_the_best_checkpoint_on_held_out_data_is_kept(tmp_path):
    """Ruin the model after step 10 by its learning rate.

    The best checkpoint stays when newer ones come.
    """
    held_out = S.Data("points", DATA.x[:100].clone(), normalize="none")
    trainer = make(tmp_path, steps=60, lr=3e-3, warmup=0, lr_decay="none", keep=1, ema_half_life=2)
    trainer.every(20, lambda t: [p.data.normal_(generator=torch.Generator().manual_seed(0)) for p in t.parameters])
    records = trainer.fit(DATA, held_out=held_out)
    losses = {record.step: record.held_out for record in records if record.step % 10 == 0}
    best = min(losses, key=losses.get)
    assert best in (10, 20)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{best:09d}", "step-000000060"]
    assert best_checkpoint(tmp_path).name == f"step-{best:09d}"
    assert losses[60] > losses[best]
    with pytest.raises(ArgumentError, match=r"`held_out` must be .*, got Points"):
        make().fit(DATA, held_out=DATA)


def test_several_averages_by_name(tmp_path):
    trainer = make(tmp_path, ema_half_life={"fast": 1.0, "slow": 100.0})
    trainer.fit(DATA)
    live, fast, slow = (
        m.net.stem.weight for m in (trainer.model, trainer.averaged_model(), trainer.averaged_model("slow"))
    )
    assert (fast - live).abs().mean() < (slow - live).abs().mean()
    folder = checkpoints(tmp_path)[-1]
    assert torch.equal(S.ScoreModel.from_pretrained(folder).net.stem.weight, fast)
    assert torch.equal(load_average(folder, "slow").net.stem.weight, slow)
    with pytest.raises(UnknownNameError, match="did you mean 'slow'"):
        load_average(folder, "slwo")
    with pytest.raises(UnknownNameError, match="average"):
        trainer.averaged_model("third")
    with pytest.raises(CheckpointError, match="this model"):
        make(tmp_path, ema_half_life={"fast": 1.0, "other": 2.0}).resume()


def test_integers_of_any_dataset_are_dequantised():
    """Check both laws: uniform noise, and the bins' centres.

    Uniform noise fills the bins; truncated-normal dequantisation trains on their centres.
    """
    raw = torch.randint(0, 4, (64, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = S.Data("four", raw, num_values=4)
    seen = []

    class Watching(S.DenoisingScoreMatching):
        def terms(self, model, x0, cond=None, generator=None):
            seen.append(x0)
            return super().terms(model, x0, cond, generator)

    def run(law):
        seen.clear()
        model = S.ScoreModel.for_data(S.ResidualMLP((1, 2, 2), width=8, blocks=1), S.VPSDE(), data)
        config = S.TrainerConfig(steps=2, batch_size=64, device="cpu")
        S.Trainer(model, Watching(), config, dequantization=law).fit(data)
        return torch.cat(seen)

    assert set(run(TruncatedNormal()).unique().tolist()) == {-0.75, -0.25, 0.25, 0.75}
    x = run(None)
    assert len(x.unique()) > 400
    assert -1 <= x.min() < x.max() <= 1


def test_an_objective_that_learns_is_resumed(tmp_path):
    """Resume loss-aware sampling of a DDPM's levels.

    Its history is part of the checkpoint.
    """

    def run(folder):
        torch.manual_seed(0)
        model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.DDPM([0.1, 0.2, 0.3, 0.4]))
        config = S.TrainerConfig(steps=12, batch_size=16, checkpoint_every=6, warmup=0, device="cpu")
        return S.Trainer(model, S.DenoisingScoreMatching(time_sampling="loss-aware"), config, folder)

    whole, first, second = run(None), run(tmp_path), run(tmp_path)
    whole.fit(DATA)
    first.every(6, lambda trainer: trainer.stop())
    first.fit(DATA)
    assert second.resume() == 6
    assert second.objective.state_dict()
    second.fit(DATA)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_learning_rate_rises_and_falls():
    trainer = make(steps=100, warmup=10, lr=1.0)
    rates = [trainer.learning_rate(i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
    assert make(warmup=0, lr_decay="none", lr=0.3).learning_rate(29) == 0.3


def test_learning_rate_falls_as_the_inverse_root():
    trainer = make(warmup=10, lr_decay="inverse-sqrt", decay_after=100, lr=1.0)
    assert [trainer.learning_rate(i) for i in (4, 50, 99, 399, 9999)] == pytest.approx([0.5, 1, 1, 0.5, 0.1])


def test_adamw_takes_a_share_of_the_weights_away():
    """Compare one step with Adam's, whose gradient is the same."""
    plain, decayed = (make(optimizer=name, weight_decay=0.1, lr=0.5, warmup=0, steps=1) for name in ("adam", "adamw"))
    before = [p.detach().clone() for p in plain.parameters]
    for trainer in (plain, decayed):
        torch.manual_seed(1)  # for the dropout
        trainer.fit(DATA)
    lr = plain.learning_rate(0)
    for old, without, with_ in zip(before, plain.parameters, decayed.parameters, strict=True):
        torch.testing.assert_close(with_, without - lr * 0.1 * old, rtol=1e-5, atol=1e-6)


def test_training_ends_when_patience_does(tmp_path):
    """Ruin the model by its learning rate: no later checkpoint is better."""
    trainer = make(tmp_path, steps=60, lr=50.0, lr_decay="none", warmup=0, patience=2, checkpoint_every=5, keep=9)
    data = S.Data("points", DATA.x, normalize="none")
    trainer.fit(data, held_out=data)
    losses = [json.loads((one / "training.json").read_text())["held_out"] for one in checkpoints(tmp_path)]
    best = losses.index(min(losses))
    assert trainer.step == 5 * len(losses) == 5 * (best + 3) < 60
    assert (trainer.best, trainer.waited, trainer.out_of_patience) == (min(losses), 2, True)
    again = make(tmp_path, steps=60, patience=2)
    again.resume()
    assert (again.best, again.waited) == (min(losses), 2)
    with pytest.raises(ArgumentError, match="patience"):
        again.fit(data)


def test_gradients_are_clipped():
    trainer = make(clip=1e-3, steps=1)
    trainer.fit(DATA)
    norm = torch.stack([p.grad.norm() for p in trainer.parameters if p.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_ema_follows_its_recursion():
    """Compare with the recursion written out.

    w <- d w + (1 - d) w_k with d = 2^(-1/half_life), and a smaller d at the start.
    """
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
    with pytest.raises(ArgumentError, match=r"`steps` must be .*, got 0"):
        S.TrainerConfig(steps=0)
    with pytest.raises(ArgumentError, match="lr"):
        S.TrainerConfig(lr=float("nan"))
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        S.TrainerConfig(lr_decay="cosin")
    for name in ("device", "precision", "on_nan", "optimizer"):
        with pytest.raises(UnknownNameError, match=name):
            S.TrainerConfig(**{name: "gpu"})
    with pytest.raises(ArgumentError, match=r"`label_dropout` must be 0 unless `conditional` is true, got 0\.1"):
        S.TrainerConfig(label_dropout=0.1)
    with pytest.raises(ArgumentError, match="accumulate"):
        S.TrainerConfig(accumulate=3, batch_size=2)
    for bad in ({}, {"a b": 1.0}, {"slow": 0.0}, -1.0):
        with pytest.raises(ArgumentError, match="ema_half_life"):
            S.TrainerConfig(ema_half_life=bad)
    with pytest.raises(ArgumentError, match=r"the loader's dataset .*, got a DataLoader"):
        make().fit(torch.utils.data.DataLoader(DATA))
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match=r"`device` must be .*, got 'cuda'"):
            make(device="cuda")
