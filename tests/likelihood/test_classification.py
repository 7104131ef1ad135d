"""Classification by Bayes' rule from conditional likelihoods."""

import math

import pytest
import torch

from scoresde import VESDE, VPSDE, Exact, GaussianMixture, Hutchinson, ScoreModel, SubVPSDE
from scoresde.errors import ArgumentError, ShapeError
from scoresde.likelihood import classify
from scoresde.nets import build_net
from scoresde.random import spawn_generators

# fewer calls than log p needs
pytestmark = pytest.mark.filterwarnings("ignore::scoresde.errors.LikelihoodWarning")


@pytest.fixture(scope="module")
def mixture():
    """Return three components in 3 dimensions that overlap.

    So the posteriors are far from 0 and 1.
    """
    means = torch.tensor([[-0.4, 0.0, 0.3], [0.5, 0.2, 0.0], [0.0, -0.5, -0.2]])
    return GaussianMixture(means, torch.tensor([0.3, 0.2, 0.4]), [0.5, 0.3, 0.2])


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=["vp", "subvp", "ve"])
def test_E9_classes_of_a_mixture_are_responsibilities(sde, mixture, generator):
    model, x = mixture.model(sde), mixture.sample(12, generator)
    found = classify(model, x, 3, mixture.weights, divergence=Exact())
    expected = model.log_responsibilities(x)
    torch.testing.assert_close(found.log_posterior.exp(), expected.exp(), rtol=0, atol=0.02)
    assert torch.equal(found.label, expected.argmax(1))
    assert torch.equal(found.stderr, torch.zeros(12, 3, dtype=torch.float64))
    assert found.classes.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.log_posterior.exp().sum(1), torch.ones(12, dtype=torch.float64))


@pytest.mark.slow
def test_the_prior_counts(mixture, generator):
    """Check that the log-odds move by the log-ratio of the weights.

    A subset of the classes is allowed.
    """
    model, x = mixture.model(VPSDE()), mixture.sample(4, generator)
    even, odd = (classify(model, x, (2, 0), w, divergence=Exact(), steps=30) for w in (None, [3.0, 1.0]))
    difference = odd.log_posterior - even.log_posterior
    torch.testing.assert_close(difference[:, 0] - difference[:, 1], torch.full((4,), math.log(3)).double())
    assert even.classes.tolist() == [2, 0]
    assert set(even.label.tolist()) <= {0, 2}


@pytest.mark.slow
def test_all_classes_have_the_same_probes(mixture, generator):
    """Check that two equal labels have equal likelihoods.

    For one generator or one per sample, and in parts of the batch.
    """
    net = build_net({"name": "mlp", "shape": [3], "width": 16, "blocks": 1, "classes": 2}, seed=0)
    with torch.no_grad():
        net.head[-1].weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
        net.conditioning.classes.table.weight[1] = net.conditioning.classes.table.weight[0]
    model, x = ScoreModel(net, VPSDE(), "edm", time_input="log_snr"), mixture.sample(6, generator).float()
    settings = {"divergence": Hutchinson(), "steps": 20}
    for g in (torch.Generator().manual_seed(3), spawn_generators(torch.Generator().manual_seed(3), 6), None):
        found = classify(model, x, generator=g, **settings)
        assert torch.equal(found.log_likelihood[:, 0], found.log_likelihood[:, 1])
        assert (found.stderr > 0).all()
    whole = classify(model, x, generator=spawn_generators(torch.Generator().manual_seed(3), 6), **settings)
    own = torch.Generator().manual_seed(3)
    parts = [
        classify(model, x[rows], generator=spawn_generators(own, 3), **settings) for rows in (slice(3), slice(3, 6))
    ]
    together = torch.cat([part.log_likelihood for part in parts])
    torch.testing.assert_close(together, whole.log_likelihood, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_errors(mixture):
    model, x = mixture.model(VPSDE()), torch.zeros(2, 3)
    for classes in (None, 1, [0], [1, 1], [0, -1], True):
        with pytest.raises(ArgumentError, match="classes"):
            classify(model, x, classes)
    with pytest.raises(ArgumentError, match=r"labels from 0 to 2.*, got 3"):
        classify(model, x, 4)
    with pytest.raises(ShapeError, match="prior"):
        classify(model, x, 3, [1.0, 2.0])
    for weight in (0.0, -1.0, math.nan):
        with pytest.raises(ArgumentError, match="prior"):
            classify(model, x, 2, [1.0, weight])
    network = ScoreModel(build_net({"name": "mlp", "shape": [3], "width": 8, "blocks": 1, "classes": 2}), VPSDE())
    with pytest.raises(ArgumentError, match=r"labels from 0 to 1.*, got 2"):
        classify(network, x, [0, 2])
