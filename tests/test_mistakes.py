"""Mistakes of newcomers: argument, what came, what is expected."""

import copy

import numpy as np
import pytest
import torch

import scoresde as S
from scoresde.errors import ScoreSDEError

TOY = S.GaussianMixture(torch.zeros(1, 2), 1.0).model(S.VPSDE())
NET = S.ResidualMLP((2,), width=8, blocks=1)
LABELLED = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1, classes=10), S.VPSDE())
X = torch.zeros(2, 2)
GREY = S.data.Scaling.for_integers(8)


class Frame:
    """What a table of pandas looks like from outside."""

    iloc = None

    def __len__(self):
        return 4

    def __getitem__(self, name):
        raise KeyError(name)


def labels(*y):
    return {"cond": {"y": torch.tensor(y)}}


def draw(**arguments):
    return S.sample(LABELLED, (2, 2), **{"steps": 3} | arguments)


MISTAKES = {
    "`shape` .* got 1000": lambda: S.sample(TOY, 1000),
    r"`shape` must be \(B, 2\).* got \(1000,\)": lambda: S.sample(TOY, (1000,)),
    r"`shape` must be \(B, 2\).* got \(10, 3\)": lambda: S.sample(TOY, (10, 3)),
    "`generator` must be a torch.Generator .* got int": lambda: draw(generator=0),
    "`generator` must be a torch.Generator .* got list": lambda: draw(generator=[0, 1]),
    "`cond` must be a mapping .* got list": lambda: draw(cond=[3, 3]),
    r"`cond\['y'\]` must be a tensor .* got int": lambda: draw(cond={"y": 3}),
    r"`cond\['y'\]` must be a tensor .* got NoneType": lambda: draw(cond={"y": None}),
    r"`cond\['y'\]` must be \(2, \.\.\.\).* got \(3,\)": lambda: draw(**labels(1, 2, 3)),
    "`cond` must be conditions that the network takes: 'y', got 'label'": lambda: draw(cond={"label": X}),
    r"`cond\['y'\]` must be class labels from 0 to 9, or -1 .* got 10": lambda: draw(**labels(3, 10)),
    r"`cond\['y'\]` must be class labels from 0 to 9, or -1 .* got -2": lambda: draw(**labels(-2, 3)),
    r"`cond\['y'\]` must be .*labels, torch.int64, got torch.float32": lambda: draw(**labels(1.0, 2.5)),
    "`device` must be an available device.* got 'cuda:77'": lambda: draw(device="cuda:77"),
    "`device` must be an available device.* got 'gpu'": lambda: draw(device="gpu"),
    "`sampler` must be a sampler, .* got <class": lambda: draw(sampler=S.DDIM),
    "`sampler` must be a sampler, .* got 'ddim'": lambda: draw(sampler="ddim"),
    "`model` must be a scoresde.Model; .* got ResidualMLP": lambda: S.sample(NET, (2, 2)),
    "`model` must be a scoresde.Model; .* got Data": lambda: S.log_likelihood(S.Data("a", X + torch.rand(2, 2)), X),
    "`model` must be a scoresde.Model; .* got str": lambda: S.calibrate("digits", (2,)),
    "`model` must be a scoresde.Model; .* got NoneType": lambda: S.guidance.classifier_free_guidance(None, 2.0),
    "`x0` must be a floating-point tensor .* got ndarray": lambda: S.log_likelihood(TOY, np.zeros((2, 2))),
    "`x0` must be floating-point data .* got torch.int64": lambda: S.log_likelihood(TOY, X.long()),
    r"`x0` must be \(B, 2\), .* got \(2, 3\)": lambda: S.log_likelihood(TOY, torch.zeros(2, 3)),
    r"`cond\['y'\]` must be class labels .* got 10 ?": lambda: S.log_likelihood(LABELLED, X, **labels(0, 10)),
    "`sde` must be an SDE, such as VPSDE.., got the class VPSDE": lambda: S.ScoreModel(NET, S.VPSDE),
    "`net` must be a network, .* got NoneType": lambda: S.ScoreModel(None, S.VPSDE()),
    "`data` must be a scoresde.Data: .* got Tensor": lambda: S.ScoreModel.for_data(NET, S.VPSDE(), X),
    "`objective` must be an objective, .* got TrainerConfig": lambda: S.Trainer(LABELLED, S.TrainerConfig()),
    "`model` must be a ScoreModel, .* got ResidualMLP": lambda: S.Trainer(NET),
    "`config` must be a TrainerConfig, got dict": lambda: S.Trainer(LABELLED, config={"steps": 3}),
    "`data` must be items; from_frame.* got a Frame of pandas": lambda: S.data.from_dataset(Frame()),
    "`source` must be an existing path, .* got my-images, which does not exist": lambda: S.load_data("my-images/"),
    "`source` must be one of .*'the path of a file or folder', got 'mnist'": lambda: S.load_data("mnist"),
    "`source` must be a name or a path; .* got int": lambda: S.load_data(5),
    "`raw` must be a torch.Tensor, got ndarray": lambda: S.Data("a", np.zeros((3, 2))),
    "`images` must be a tensor of integers, got NoneType": lambda: S.bits_per_dim(LABELLED, None, scaling=GREY),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named(message):
    with pytest.raises(ScoreSDEError, match=message):
        MISTAKES[message]()


@pytest.mark.parametrize(("name", "near"), [("Unet", "UNet"), ("smaple", "sample"), ("Vpsde", "VPSDE")])
def test_a_misspelt_name_has_a_near_one(name, near):
    with pytest.raises(AttributeError, match=f"scoresde has no '{name}'; did you mean '{near}'"):
        getattr(S, name)


def test_the_null_label_is_one_alone():
    """Check that -1 is the network without a class, and no class is."""
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(LABELLED).requires_grad_(False)
    for weight in model.parameters():  # a new network's last layer is zero
        weight.normal_(generator=generator)
    x, t = torch.randn(10, 2, generator=generator), 0.5
    without = model(x, t, {"y": torch.full((10,), -1)}).x0
    assert torch.equal(without, model(x, t).x0)
    assert not (model(x, t, {"y": torch.arange(10)}).x0 == without).all(1).any()
    with pytest.raises(ScoreSDEError, match="class labels from 0 to 9"):
        model(x, t, {"y": torch.full((10,), 10)})
