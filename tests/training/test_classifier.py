"""The noise-aware classifier against the exact one, and its files."""

import math

import pytest
import torch

from scoresde import VESDE, VPSDE, Data, GaussianMixture, load_data
from scoresde.errors import ArgumentError, CheckpointError, DataError, NonFiniteError, ShapeError
from scoresde.guidance import classifier_guidance
from scoresde.nets import build_net
from scoresde.training import NoiseAwareClassifier, fit_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixture():
    return GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.3, -1.0]]), torch.tensor([0.15, 0.1, 0.2]))


@pytest.fixture(scope="module")
def data(mixture):
    """Return samples in the units of the mixture."""
    x, k = mixture.sample(4000, torch.Generator().manual_seed(0), return_component=True)
    return Data("mixture", x.float(), k, normalize="none")


def small(n, classes):
    return build_net({"name": "mlp", "shape": [n], "width": 64, "blocks": 2, "out_channels": classes}, seed=0)


@pytest.fixture(scope="module")
def classifier(data):
    generator = torch.Generator().manual_seed(0)
    return fit_classifier(VPSDE(), data, small(2, 3), steps=500, lr=3e-3, generator=generator)


def test_it_learns_the_exact_responsibilities(classifier, mixture):
    """Compare the classifier with the exact posterior at every noise level.

    The mean divergence over p_t stays below 0.02 nats.
    """
    model = mixture.model(VPSDE())
    for t in (0.01, 0.1, 0.3, 0.7):
        generator = torch.Generator().manual_seed(1)
        x = VPSDE().perturb(mixture.sample(2000, generator), t, generator)[0]
        with torch.no_grad():
            exact, found = model.log_responsibilities(x, t), classifier(x, t)
        assert found.dtype == torch.float64
        assert (exact.exp() * (exact - found)).sum(1).mean() < 0.02  # log 3 = 1.1 before training
        y = torch.arange(2000) % 4 - 1
        expected = torch.where(y < 0, 0.0, found.gather(1, y.clamp(min=0)[:, None])[:, 0])
        assert torch.equal(classifier(x, t, y), expected)


def test_its_gradient_guides(classifier, mixture, generator):
    """Compare the guided samples' direction with that of the exact classifier."""
    model = mixture.model(VPSDE())
    x = VPSDE().perturb(mixture.sample(500, generator), 0.4, generator)[0].float()
    y = {"y": torch.arange(500) % 3}
    plain = model(x, 0.4).eps
    models = (classifier_guidance(model, f) for f in (classifier, model.log_responsibilities))
    found, exact = (guided(x, 0.4, y).eps - plain for guided in models)
    assert (found - exact).square().sum() < 0.1 * exact.square().sum()


def test_the_same_generator_gives_the_same_weights(data):
    def fit(seed):
        classifier = fit_classifier(VESDE(), data, steps=3, generator=torch.Generator().manual_seed(seed))
        return torch.cat([p.flatten() for p in classifier.parameters()])

    torch.manual_seed(0)
    first = fit(0)
    torch.manual_seed(1)
    assert torch.equal(first, fit(0))
    assert not torch.equal(first, fit(1))


def test_weights_are_averages_and_inputs_have_unit_scale(data):
    """Train under VE, where x_t has standard deviations up to 50."""
    net, last, stds = small(2, 3), [], []
    net.register_forward_pre_hook(lambda net, inputs: stds.append(inputs[0].std().item()))

    def keep(step, loss):
        last[:] = [p.detach().clone() for p in net.parameters()]

    fit_classifier(VESDE(), data, net, steps=30, generator=torch.Generator().manual_seed(0), callback=keep)
    moved = [(a - b).abs().max().item() for a, b in zip(last, net.parameters(), strict=True)]
    assert 0 < max(moved) < 0.1
    assert 0.7 < min(stds) < max(stds) < 1.5


def test_images_and_records():
    train, _ = load_data("digits")
    seen = []
    classifier = fit_classifier(
        VPSDE(),
        train,
        small(64, 10),
        steps=150,
        lr=3e-3,
        generator=torch.Generator().manual_seed(0),
        callback=lambda step, loss: seen.append((step, loss)),
    )
    assert [step for step, _ in seen] == [100, 150]
    assert seen[1][1] < seen[0][1] < math.log(10) + 0.1
    x = train.to_model(train.raw[:50], torch.Generator().manual_seed(1))
    assert (classifier(x, 0.01).argmax(1) == train.labels[:50]).double().mean() > 0.8
    assert not classifier.training


def test_save_and_load(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "it")
    loaded = NoiseAwareClassifier.from_pretrained(tmp_path / "it")
    x, t = torch.randn(5, 2), torch.linspace(0.1, 0.9, 5)
    assert torch.equal(loaded(x, t), classifier(x, t))
    assert (loaded.data_std, loaded.sde.config) == (classifier.data_std, classifier.sde.config)
    assert sorted(file.name for file in (tmp_path / "it").iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "it" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        classifier.save_pretrained(tmp_path / "it")
    with pytest.raises(CheckpointError):
        NoiseAwareClassifier.from_pretrained(tmp_path)
    (tmp_path / "it" / "config.json").write_text('{"format": "scoresde-model-1"}')
    with pytest.raises(CheckpointError, match="written by save_pretrained"):
        NoiseAwareClassifier.from_pretrained(tmp_path / "it")


class Sum(torch.nn.Module):
    """A network that returns one number per sample instead of logits."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, time_input):
        return self.scale * x.sum(1)


def test_errors(data):
    with pytest.raises(DataError, match="without labels"):
        fit_classifier(VPSDE(), Data("plain", data.raw))
    for settings in ({"steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"batch_size": 0}):
        with pytest.raises(ArgumentError, match=next(iter(settings))):
            fit_classifier(VPSDE(), data, **settings)
    with pytest.raises(NonFiniteError, match="by step 5"):
        fit_classifier(VPSDE(), data, steps=5, lr=1e30)
    net = build_net({"name": "mlp", "shape": [2], "width": 8, "blocks": 1, "out_channels": 3})
    with pytest.raises(ArgumentError, match="data_std"):
        NoiseAwareClassifier(net, VPSDE(), 0.0)
    classifier = NoiseAwareClassifier(net, VPSDE())
    with pytest.raises(ArgumentError, match=r"class labels from 0 to 2, .*, got 3"):
        classifier(torch.zeros(2, 2), 0.5, torch.tensor([0, 3]))
    with pytest.raises(ShapeError):
        NoiseAwareClassifier(Sum(), VPSDE())(torch.zeros(2, 2), 0.5)
