"""Any torch network under a model: calls, outputs, saving and training."""

import pytest
import torch
from torch import nn

from scoresde.data import Data
from scoresde.errors import ArgumentError, CheckpointError, DTypeError, UnknownNameError
from scoresde.models import ScoreModel
from scoresde.nets import ResidualMLP, adapt, register_net
from scoresde.sde import DDPM, VPSDE
from scoresde.training import (
    DenoisingScoreMatching,
    Trainer,
    TrainerConfig,
    latest_checkpoint,
    load_average,
    post_hoc_average,
)


class Foreign(nn.Module):
    """A network that is called in another way."""

    def __init__(self, width=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        self.seen = None

    def forward(self, t, x):
        self.seen = t
        return {"sample": self.layers(x) + t[:, None], "other": 3}


class Configured(Foreign):
    """A network with a configuration, from which it is built again."""

    def __init__(self, width=4):
        super().__init__(width)
        self.config = {"width": width}

    def forward(self, x, t):
        return super().forward(t, x)["sample"]


X, T = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 1.0])


def test_order_dtype_and_output():
    net = Foreign()
    model = ScoreModel(adapt(net, "sample", time="ddpm", time_dtype=torch.long, order="tx"), DDPM.linear(1000))
    estimate = model(X, T)
    assert torch.equal(net.seen, torch.tensor([99, 499, 999]))
    torch.testing.assert_close(estimate.eps, net(net.seen, X)["sample"])
    assert model.time_input == "ddpm"


@pytest.mark.parametrize(
    ("result", "output"),
    [
        (lambda x: x, None),
        (lambda x: (x, 3), None),
        (lambda x: [3, x], 1),
        (lambda x: {"out": x}, "out"),
        (lambda x: type("Output", (), {"sample": x}), None),
        (lambda x: type("Output", (), {"denoised": x}), "denoised"),
    ],
)
def test_outputs_of_every_kind(result, output):
    assert torch.equal(adapt(lambda x, t: result(x), output)(X, T), X)


def test_arguments_by_name():
    def net(*, sample, timestep, class_labels=None):
        return sample + timestep[:, None] + (0 if class_labels is None else class_labels[:, None])

    names = {"x": "sample", "t": "timestep", "y": "class_labels"}
    model = ScoreModel(adapt(net, names=names), VPSDE(), "data")
    y = torch.tensor([1, 2, 3])
    torch.testing.assert_close(model(X, T, {"y": y}).x0, X + T[:, None] + y[:, None])


def test_other_outputs_are_named():
    with pytest.raises(DTypeError, match=r"dict of 'out': \(3, 2\), 'n': int"):
        ScoreModel(lambda x, t: {"out": x, "n": 3}, VPSDE())(X, T)
    with pytest.raises(DTypeError, match=r"tuple of 0: \(3, 2\), 1: \(3,\)"):
        ScoreModel(lambda x, t: (x, t), VPSDE())(X, T)
    with pytest.raises(ArgumentError, match="dict with 'a'"):
        adapt(lambda x, t: {"a": x}, "b")(X, T)
    with pytest.raises(ArgumentError, match="an attribute"):
        adapt(lambda x, t: Foreign(), "b")(X, T)
    with pytest.raises(ArgumentError, match="an entry"):
        adapt(lambda x, t: (x,), 3)(X, T)
    with pytest.raises(DTypeError, match="object"):
        adapt(lambda x, t: object())(X, T)


def test_wrong_settings_are_named():
    with pytest.raises(UnknownNameError, match="'tx'"):
        adapt(Foreign(), order="t")
    with pytest.raises(DTypeError, match="int64"):
        adapt(Foreign(), time_dtype="int")
    with pytest.raises(DTypeError, match="any function"):
        adapt(3)


def models():
    return {
        "adapted": (
            ScoreModel(adapt(Foreign(5), time_dtype="int64", order="tx", time="ddpm"), DDPM.linear(100)),
            Foreign(5),
        ),
        "its own": (ScoreModel(Configured(5), VPSDE()), Configured),
    }


@pytest.mark.parametrize("name", models())
def test_a_foreign_network_is_saved_and_loaded_with_its_class(tmp_path, name):
    model, net = models()[name]
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"Foreign|Configured"):
        ScoreModel.from_pretrained(tmp_path / "model")
    again = ScoreModel.from_pretrained(tmp_path / "model", net=net)
    assert torch.equal(model(X, 0.5).x0, again(X, 0.5).x0)
    assert again.time_input == model.time_input


def test_a_class_without_a_configuration_needs_an_instance(tmp_path):
    class Needs(Foreign):
        def __init__(self, size):
            super().__init__(size)

    model = ScoreModel(adapt(Needs(3), order="tx"), VPSDE())
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"net=Needs\(\.\.\.\)"):
        ScoreModel.from_pretrained(tmp_path / "model", net=Needs)
    with pytest.raises(CheckpointError, match="size mismatch"):
        ScoreModel.from_pretrained(tmp_path / "model", net=Needs(4))
    again = ScoreModel.from_pretrained(tmp_path / "model", net=Needs(3))
    assert torch.equal(model(X, 0.5).x0, again(X, 0.5).x0)


def test_a_registered_class_with_another_configuration_is_rebuilt_with_its_class(tmp_path):
    @register_net("with another configuration")
    class Other(nn.Module):
        def __init__(self, width: int = 3):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        @property
        def config(self):
            return {"width": 3}

        def forward(self, x, t):
            return self.layer(x)

    model = ScoreModel(Other(), VPSDE())
    model.save_pretrained(tmp_path / "model")
    again = ScoreModel.from_pretrained(tmp_path / "model", net=Other)
    assert torch.equal(model(X, 0.5).x0, again(X, 0.5).x0)


def test_a_subclass_of_ours_is_a_foreign_network(tmp_path):
    class Scaled(ResidualMLP):
        def forward(self, x, time_input, y=None):
            return 2 * super().forward(x, time_input)

    model = ScoreModel(Scaled((2,), width=8, blocks=1), VPSDE())
    model.save_pretrained(tmp_path / "model")
    again = ScoreModel.from_pretrained(tmp_path / "model", net=Scaled((2,), width=8, blocks=1))
    assert torch.equal(model(X, 0.5).x0, again(X, 0.5).x0)


def test_a_foreign_network_trains_resumes_and_is_averaged(tmp_path):
    data = Data("points", torch.randn(64, 2, generator=torch.Generator().manual_seed(1)))
    weights = []
    for steps in ((10,), (5, 10)):
        torch.manual_seed(0)
        model = ScoreModel(adapt(Foreign(), order="tx"), VPSDE())
        folder = tmp_path / str(len(steps))
        for n in steps:
            config = TrainerConfig(steps=n, batch_size=8, device="cpu", ema_half_life=3.0, snapshot_every=2)
            trainer = Trainer(model, DenoisingScoreMatching(), config, folder=folder)
            if n != steps[0]:
                trainer.resume()
            trainer.fit(data)
        weights.append(model.net.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    saved = latest_checkpoint(folder)
    for found in (
        load_average(saved, net=Foreign()),
        ScoreModel.from_pretrained(folder, net=Foreign),
        post_hoc_average(folder, half_life=3.0, net=Foreign()),
    ):
        assert found(X, 0.5).x0.isfinite().all()
