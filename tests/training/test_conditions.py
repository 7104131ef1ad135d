"""Conditions other than a class: from the items, by name, to the network."""

import pytest
import torch

import scoresde as S
from scoresde.data import Batches
from scoresde.errors import ArgumentError, DataError, DataWarning, ShapeError
from scoresde.guidance import classifier_free_guidance
from tests.generators import generator

N = 512


class Beside(torch.nn.Module):
    """A network of x, the level, and a vector ``low`` beside them."""

    def __init__(self):
        super().__init__()
        layers = (torch.nn.Linear(5, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU())
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 2))
        self.seen = []

    def forward(self, x, t, low):
        self.seen.append(low.detach().clone())
        return self.net(torch.cat([x, t.expand(len(x))[:, None], low], 1))


def items(n=N):
    """Return pairs: x is near ``low``, which is far wider than their distance."""
    low = torch.randn(n, 2, generator=generator(0))
    x = low + 0.1 * torch.randn(n, 2, generator=generator(1))
    return [{"x": a, "low": b} for a, b in zip(x, low, strict=True)]


def make(**settings):
    torch.manual_seed(0)
    net = Beside()
    model = S.ScoreModel(net, S.VPSDE(), "velocity")
    config = S.TrainerConfig(**{"steps": 3, "batch_size": 32, "device": "cpu", "warmup": 0} | settings)
    return net, S.Trainer(model, config=config)


def test_further_entries_reach_the_network_by_name():
    net, trainer = make(conditions={"low": 0.0})
    trainer.fit(items())
    pairs = {tuple(item["low"].tolist()) for item in items()}
    assert all(tuple(row.tolist()) in pairs for low in net.seen for row in low)


def test_pieces_and_workers_see_the_same_conditions():
    (a, one), (b, several) = make(conditions={"low": 0.3}), make(conditions={"low": 0.3}, accumulate=2, workers=1)
    one.fit(items())
    several.fit(items())
    for x, y in zip(one.parameters, several.parameters, strict=True):
        torch.testing.assert_close(x, y)
    assert torch.equal(a.seen[0][0::2], b.seen[0])


def test_a_share_of_them_is_hidden_by_zeros():
    net, trainer = make(conditions={"low": 0.25}, steps=30)
    trainer.fit(items())
    hidden = torch.cat(net.seen).eq(0).all(1)
    assert hidden.sum().item() == pytest.approx(0.25 * len(hidden), abs=5 * (len(hidden) * 0.1875) ** 0.5)  # 6e-7


@pytest.mark.slow
def test_samples_follow_their_condition_and_guidance_leaves_it():
    """Draw samples near ``low``; with w = 0 they are those of hidden entries."""
    _, trainer = make(conditions={"low": 0.1}, steps=2500, batch_size=256, lr=4e-3)
    trainer.fit(items(2048))
    model = trainer.averaged_model()
    low = torch.tensor([[2.0, -1.0]]).expand(200, 2)
    x = S.sample(model, (200, 2), steps=20, cond={"low": low}, generator=generator(2))
    assert (x.mean(0) - low[0]).abs().max() < 0.15
    assert x.std(0).max() < 0.3
    guided = classifier_free_guidance(model, 0.0, null={"low": 0.0})
    free = S.sample(guided, (200, 2), steps=20, cond={"low": low}, generator=generator(2))
    plain = S.sample(model, (200, 2), steps=20, cond={"low": torch.zeros(200, 2)}, generator=generator(2))
    torch.testing.assert_close(free, plain)
    assert free.std(0).min() > 0.3  # not 1: values near 0 share the place of hidden ones


def test_guidance_is_its_formula():
    net, _ = make()
    model = S.ScoreModel(net, S.VPSDE(), "velocity").eval()
    x, low = torch.randn(4, 2), torch.randn(4, 2)
    null = torch.tensor([0.5, -0.5])
    with_, without = (model(x, 0.4, {"low": value}).eps for value in (low, null.expand(4, 2)))
    guided = classifier_free_guidance(model, 2.5, null={"low": null})(x, 0.4, {"low": low}).eps
    torch.testing.assert_close(guided, without + 2.5 * (with_ - without))
    with pytest.raises(ArgumentError, match=r"a condition with 'low', for which `null` has a value, got nothing"):
        classifier_free_guidance(model, 2.5, null={"low": null})(x, 0.4)
    with pytest.raises(ShapeError, match=r"null\['low'\]"):
        classifier_free_guidance(model, 2.5, null={"low": torch.zeros(3)})(x, 0.4, {"low": low})
    with pytest.raises(ArgumentError, match="`null` must be a mapping"):
        classifier_free_guidance(model, 2.5, null=0.0)


@pytest.mark.parametrize(
    ("data", "conditions", "said"),
    [
        ([torch.zeros(2)] * 2, ("low",), "an item that is Tensor"),
        ([{"x": torch.zeros(2), "high": torch.zeros(2)}] * 2, ("low",), "a mapping of x, high"),
        ([{"x": torch.zeros(2), "low": torch.zeros(n)} for n in (1, 2)], ("low",), r"shapes \(1,\) and \(2,\)"),
        ([{"x": torch.zeros(2), "low": torch.tensor(float("nan"))}] * 2, ("low",), "NaN or infinity in 'low'"),
        ([{"x": torch.zeros(2), "low": "text"}] * 2, ("low",), "items of <U4"),
        ([{"x": torch.zeros(2), "label": 1}] * 2, ("label",), "labels need conditional=True"),
    ],
)
def test_items_without_the_entry_are_refused(data, conditions, said):
    with pytest.raises(DataError, match=said):
        next(Batches(data, 2, generator(), conditions=conditions))


def test_what_the_data_cannot_hold_is_refused():
    points = S.Data("points", torch.randn(9, 2))
    with pytest.raises(ArgumentError, match="has further entries"):
        make(conditions={"low": 0.0})[1].fit(points)
    with pytest.raises(ArgumentError, match="None with `conditions`"):
        make(conditions={"low": 0.0})[1].fit(items(), held_out=points)
    with pytest.raises(ArgumentError, match=r"conditions\['low'\]"):
        S.TrainerConfig(conditions={"low": 2.0})
    with pytest.warns(DataWarning, match=r"the entries low of the items are not used.*conditions="):
        next(Batches(items(), 2, generator()))
