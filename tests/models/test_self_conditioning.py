"""Self-conditioning: the network sees its estimate from the call before."""

import itertools

import numpy as np
import pytest
import torch

import scoresde as S
from scoresde.errors import CheckpointError, ShapeError
from scoresde.guidance import classifier_free_guidance
from tests.app.runs_for_tests import TINY_POINTS, invoke


class Recording(torch.nn.Module):
    """A network that keeps what it sees, and predicts x0 by a fixed rule."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, y=None):
        self.seen.append(x.detach().clone())
        return self.weight * x[:, :2] + 0.1 * x[:, 2:]


def model(**settings):
    return S.ScoreModel(Recording(), S.VPSDE(), "data", self_condition=True, **settings)


@pytest.mark.parametrize("sampler", [S.DDIM(), S.DPMSolver(), S.Heun(), S.AdaptiveSDE(rtol=0.1, atol=0.1)])
def test_each_call_sees_the_estimate_before(sampler):
    one = model(data_std=2.0)
    S.sample(one, (3, 2), sampler, 6, generator=torch.Generator().manual_seed(0))
    seen = one.net.seen
    assert len(seen) > 4
    assert not seen[0][:, 2:].any()
    for before, now in itertools.pairwise(seen):
        if len(now) == len(before):
            estimate = 0.5 * before[:, :2] + 0.1 * before[:, 2:]
            assert torch.allclose(now[:, 2:], estimate / 2.0, atol=1e-6)
        else:  # some samples have ended
            assert not now[:, 2:].any()


def test_chunks_and_single_precision_change_nothing():
    def drawn(**options):
        generator = torch.Generator().manual_seed(0)
        return S.sample(model(), (5, 2), S.DDIM(), 6, generator=generator, dtype=torch.float64, **options)

    assert torch.allclose(drawn(), drawn(chunk=2), atol=1e-6)


def test_a_run_begins_without_a_memory():
    one = model()
    first, second = (S.sample(one, (3, 2), S.DDIM(), 4, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    steps = [state.x0 for state in S.trajectory(one, (3, 2), S.DDIM(), 4, generator=torch.Generator().manual_seed(0))]
    assert len(steps) >= 4


def test_likelihoods_and_encodings_are_functions_of_x():
    one = model()
    S.log_likelihood(one, torch.zeros(2, 2), method="rk4", steps=3)
    S.encode(one, torch.zeros(2, 2), S.DDIM(), 3)
    assert not any(x[:, 2:].any() for x in one.net.seen)


def test_guidance_keeps_the_estimate():
    torch.manual_seed(0)
    net = S.ResidualMLP((4,), width=8, blocks=1, classes=3, out_channels=2)
    torch.nn.init.normal_(net.head[-1].weight)
    one = S.ScoreModel(net, S.VPSDE(), self_condition=True)
    cond = {"y": torch.tensor([0, 1, 2])}
    plain = S.sample(one, (3, 2), S.DDIM(), 4, cond=cond, generator=torch.Generator().manual_seed(0))
    guided = classifier_free_guidance(one, 1.0 + 1e-7)
    same = S.sample(guided, (3, 2), S.DDIM(), 4, cond=cond, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plain, same, atol=1e-4)


def test_half_of_the_samples_see_an_estimate_in_training():
    """Count 1000 samples; five standard deviations are 80."""
    one = model()
    S.DenoisingScoreMatching()(one, torch.randn(1000, 2), generator=torch.Generator().manual_seed(0))
    first, second = one.net.seen
    assert not first[:, 2:].any()
    given = second[:, 2:].any(1)
    assert abs(int(given.sum()) - 500) < 80
    assert torch.allclose(second[given, 2:], 0.5 * first[given, :2])
    assert torch.equal(first[:, :2], second[:, :2])


def test_the_estimate_has_no_gradient():
    one = model()
    loss = S.DenoisingScoreMatching()(one, torch.ones(50, 2), generator=torch.Generator().manual_seed(0)).sum()
    (gradient,) = torch.autograd.grad(loss, one.net.parameters())
    assert gradient.isfinite()


def test_it_is_saved_compared_and_resumed(tmp_path):
    def made(condition=True):
        torch.manual_seed(0)
        net = S.ResidualMLP((4 if condition else 2,), width=8, blocks=1, out_channels=2)
        one = S.ScoreModel(net, S.VPSDE(), self_condition=condition)
        config = S.TrainerConfig(steps=4, batch_size=8, checkpoint_every=2, device="cpu")
        return S.Trainer(one, config=config, folder=tmp_path)

    points = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    trainer = made()
    trainer.fit(points)
    assert S.ScoreModel.from_pretrained(tmp_path / "step-000000004").self_condition
    again = made()
    again.resume(tmp_path / "step-000000002")
    again.fit(points)
    for a, b in zip(trainer.parameters, again.parameters, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="self_condition"):
        made(condition=False).resume(tmp_path / "step-000000002")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"cond\['x0'\]"):
        model()(torch.zeros(2, 2), 0.5, {"x0": torch.zeros(2, 3)})


@pytest.mark.slow
def test_the_command_line_trains_it(tmp_path):
    run = tmp_path / "run"
    invoke(
        "train", "--data", "two-moons", "--out", run, "--steps", 2, *TINY_POINTS, "--set", "model.self_condition=true"
    )
    invoke("sample", run)
    with np.load(run / "samples-dpm.npz") as arrays:
        assert arrays["x"].shape[1:] == (2,)
    invoke("likelihood", run)
