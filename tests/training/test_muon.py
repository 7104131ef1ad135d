"""Muon: orthogonal steps, torch's version, and its use by the trainer."""

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, CheckpointError, ShapeError, UnknownNameError
from scoresde.training import Muon, hidden_weights
from scoresde.training.muon import orthogonalized
from tests.training.test_trainer import DATA, Exploding, weights


def make(folder=None, **settings):
    torch.manual_seed(0)
    model = S.ScoreModel(S.ResidualMLP((2,), width=16, blocks=1, dropout=0.1, embedding_scale=1000), S.VPSDE())
    settings = {"optimizer": "muon", "steps": 30, "batch_size": 32, "log_every": 5, "warmup": 5} | settings
    return S.Trainer(model, config=S.TrainerConfig(device="cpu", **settings), folder=folder)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 7, 7), (2, 4, 16, 2)])
def test_orthogonalizing_is_the_quintic_of_singular_values(shape):
    """Apply the polynomial five times to the singular values from torch's SVD."""
    matrix = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert torch.allclose(orthogonalized(matrix), U * s[..., None, :] @ Vh, rtol=0, atol=1e-12)
    assert (s[s > 0.01] - 1).abs().max() < 0.35


def test_float32_suffices_for_ill_conditioned_matrices():
    """Compare float32 with float64 for singular values from 1 to 1e-6.

    Working on X X^T loses none that matter.
    """
    generator = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    matrix = U * torch.logspace(0, -6, 40, dtype=torch.float64) @ V.mT
    error = (orthogonalized(matrix.float()) - orthogonalized(matrix)).norm() / 40**0.5
    assert error < 1e-3


def test_parameters_without_a_gradient_stay():
    assert torch.equal(orthogonalized(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_steps_are_those_of_torch():
    """Compare ten steps on three matrices with torch's.

    Torch iterates in bfloat16, ours in float32, so the difference is torch's error.
    """
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(*shape, generator=generator) for shape in ((24, 40), (40, 24), (24, 40))]
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    optimizers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, 0.02, 0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, p in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (a - p).norm()


def test_an_update_has_its_declared_size():
    """Check that a step's root mean square is 0.2 lr.

    It holds for kernels and for matrices.
    """
    kernel = torch.nn.Parameter(torch.zeros(32, 16, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0))
    Muon([kernel], lr=0.5).step()
    assert kernel.detach().square().mean().sqrt() == pytest.approx(0.1, rel=0.2)


def test_hidden_weights_are_those_of_hidden_layers():
    net = S.UNet((1, 8, 8), channels=16, multipliers=(1, 2), classes=3)
    names = {p: name.removesuffix(".weight") for name, p in net.named_parameters()}
    chosen = {names[p] for p in hidden_weights(net)}
    convolutions = {name for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)} - {"stem", "head.2"}
    assert chosen == convolutions
    net.requires_grad_(requires_grad=False)
    assert hidden_weights(net) == []


@pytest.mark.slow
def test_the_trainer_learns_with_it_and_resumes_bit_for_bit(tmp_path):
    whole = make(tmp_path / "whole", lr=5e-3)
    records = whole.fit(DATA)
    assert records[-1].loss < records[0].loss
    first = make(tmp_path / "parts", lr=5e-3)
    first.fit(DATA, callback=lambda record: first.stop() if record.step == 15 else None)
    second = make(tmp_path / "parts", lr=5e-3)
    assert second.resume() == 15
    second.fit(DATA)
    for (name, a), b in zip(weights(whole).items(), weights(second).values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(CheckpointError, match="optimizer Adam and Muon, not Adam"):
        make(tmp_path / "parts", optimizer="adam").resume()


def test_bad_steps_change_no_weights_and_no_momentum():
    trainer, seen = make(on_nan="skip", steps=15), []

    def look(trainer):
        momenta = {f"momentum{i}": s["momentum"] for i, s in enumerate(trainer.optimizers[1].state.values())}
        seen.append({k: v.clone() for k, v in (weights(trainer) | momenta).items() if not k.startswith("ema.")})

    for step in (11, 12, 13):
        trainer.every(step, look)
    trainer.fit(Exploding(12))
    assert len(seen[0]) > len(list(trainer.model.parameters()))
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    assert not any(torch.equal(seen[1][key], seen[2][key]) for key in seen[0] if key.startswith("momentum"))


def test_float16_trains_with_it():
    trainer = make(precision="float16", steps=20, lr=1e-3)
    records = trainer.fit(DATA)
    assert records[-1].loss < records[0].loss
    assert all(p.isfinite().all() for p in trainer.parameters)


def test_bad_arguments_are_refused():
    with pytest.raises(ShapeError, match="`params` must be"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(ArgumentError, match="`lr` must be"):
        Muon([torch.nn.Parameter(torch.zeros(3, 3))], lr=0.0)
    with pytest.raises(UnknownNameError, match="did you mean 'muon'"):
        S.TrainerConfig(optimizer="moun")
