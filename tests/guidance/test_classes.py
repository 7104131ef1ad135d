"""Guidance by class: exact on mixtures, independent of the batch.

Scales 0 and 1 agree bit for bit.
"""

import math

import pytest
import torch

from scoresde import (
    DDIM,
    VESDE,
    VPSDE,
    DPMSolver,
    Exact,
    GaussianMixture,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
    sample,
)
from scoresde.errors import ArgumentError, DTypeError, NonFiniteError, ShapeError
from scoresde.guidance import classifier_free_guidance, classifier_guidance, conditioned
from scoresde.models import chunked
from scoresde.nets import build_net
from tests.families import SMOOTH
from tests.marks import first_fast
from tests.statistics_tools import energy_test

SDES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
EACH = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)


@pytest.fixture(scope="module")
def mixture():
    """Return three overlapping anisotropic components.

    A class is more than a location.
    """
    means = torch.tensor([[-0.8, 0.0], [0.6, 0.5], [0.4, -0.7]], dtype=torch.float64)
    covariances = torch.tensor(
        [[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.2], [-0.2, 0.6]], [[0.2, 0.0], [0.0, 0.1]]], dtype=torch.float64
    )
    return GaussianMixture(means, covariances, [0.5, 0.3, 0.2])


def component(mixture, k):
    covariance = mixture.vectors[k] @ torch.diag(mixture.values[k]) @ mixture.vectors[k].mT
    return GaussianMixture(mixture.means[k : k + 1].reshape(1, *mixture.shape), covariance[None])


@pytest.fixture(scope="module")
def network():
    """Return a small class-conditional network with random weights."""
    net = build_net({"name": "mlp", "shape": [3], "width": 32, "blocks": 2, "classes": 4}, seed=0)
    with torch.no_grad():
        weights = net.head[-1].weight
        weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)) / 8)
    return ScoreModel(net, VPSDE(), "edm", time_input="log_snr").eval()


LABELS = torch.tensor([0, 3, 1, -1, 2])


def points(model, n=5, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def same(first, second):
    return torch.equal(first.x0, second.x0) and torch.equal(first.eps, second.eps)


# ---- classes of a mixture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SMOOTH.values(), ids=SMOOTH)
def test_a_mixtures_classes_are_its_components(sde, mixture, generator):
    """Check that a label gives one component, and -1 the mixture.

    Responsibilities follow from the densities by Bayes.
    """
    model, t = mixture.model(sde), 0.4
    x = sde.perturb(mixture.sample(6, generator), t, generator)[0]
    log_p = []
    for k in range(3):
        alone = component(mixture, k).model(sde)
        found, expected = model(x, t, {"y": torch.full((6,), k)}), alone(x, t)
        torch.testing.assert_close(found.x0, expected.x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.eps, expected.eps, rtol=1e-10, atol=1e-10)
        log_p.append(mixture.weights[k].log() + alone.log_prob(x, t))
    assert same(model(x, t, {"y": torch.full((6,), -1)}), model(x, t))
    log_r = model.log_responsibilities(x, t)
    torch.testing.assert_close(log_r, torch.stack(log_p, 1).log_softmax(1), rtol=1e-9, atol=1e-9)
    y = torch.tensor([0, 1, 2, -1, 1, 0])
    expected = torch.stack([log_r[i, k] if k >= 0 else torch.zeros(()).double() for i, k in enumerate(y.tolist())])
    assert torch.equal(model.log_responsibilities(x, t, y), expected)


@pytest.mark.parametrize("sde", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("each", [False, True], ids=["one-time", "a-time-each"])
def test_E10_the_exact_classifier_gives_the_exact_model(sde, each, mixture, generator):
    model = mixture.model(sde)
    guided = classifier_guidance(model, model.log_responsibilities)
    t = torch.linspace(0.02, 0.98, 12, dtype=torch.float64) if each else 0.6
    x = sde.perturb(mixture.sample(12, generator), t, generator)[0]
    y = torch.arange(12) % 4 - 1
    found, expected = guided(x, t, {"y": y}), model(x, t, {"y": y})
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.eps, expected.eps, rtol=1e-9, atol=1e-9)
    level = found.level
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x, rtol=1e-9, atol=1e-9)


SAMPLERS = {
    "multistep": (DPMSolver(), 40),
    "pc": (PredictorCorrector(ReverseDiffusion(), Langevin(snr=0.1)), 150),
    "flow": (ProbabilityFlow(), None),
}


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("name", SAMPLERS)
def test_E10_the_exact_classifier_draws_the_class(sde, name, mixture):
    """Compare samples with exact ones of the class by the energy test.

    False alarms: 1 in 1000 for each of the 9 cases.
    """
    sampler, steps = SAMPLERS[name]
    model, n, k = mixture.model(sde), 300, 1
    guided = classifier_guidance(model, model.log_responsibilities)
    generator = torch.Generator().manual_seed(3)
    cond = {"y": torch.full((n,), k)}
    x = sample(guided, (n, 2), sampler, steps, cond=cond, generator=generator, dtype=torch.float64)
    exact = component(mixture, k).sample(n, torch.Generator().manual_seed(4))
    assert energy_test(x, exact) > 0.001
    assert energy_test(x, mixture.sample(n, torch.Generator().manual_seed(5))) == 0.001  # the test can fail


@pytest.mark.slow
@EACH
def test_E10_the_guided_likelihood_is_that_of_the_class(sde, mixture, generator):
    model = mixture.model(sde)
    guided = classifier_guidance(model, model.log_responsibilities)
    x = component(mixture, 2).sample(6, generator)
    y = {"y": torch.full((6,), 2)}
    found, by_class = (log_likelihood(m, x, Exact(), cond=y, prior="sde").log_prob for m in (guided, model))
    torch.testing.assert_close(found, by_class, rtol=0, atol=1e-8)
    torch.testing.assert_close(found, component(mixture, 2).log_prob(x), rtol=0, atol=0.05)


@EACH
@first_fast("name", SAMPLERS)
def test_strength_0_is_the_model_bit_for_bit(sde, name, mixture):
    sampler, steps = SAMPLERS[name]
    model, steps = mixture.model(sde), steps and 10
    y = {"y": torch.ones(8, dtype=torch.long)}
    guided = [classifier_guidance(model, model.log_responsibilities, 0.0), classifier_free_guidance(model, 0.0)]
    draws = [
        sample(m, (8, 2), sampler, steps, cond=cond, generator=torch.Generator().manual_seed(0))
        for m, cond in ((model, None), *((m, y) for m in guided))
    ]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_fixed_class_is_the_class_given(name, mixture):
    """Fix the class, also for a sampler that uses the moments of the data.

    These are not the moments of the class.
    """
    sampler, steps = SAMPLERS[name]
    model, steps, y = mixture.model(VPSDE()), steps and 10, {"y": torch.ones(8, dtype=torch.long)}
    draws = [
        sample(m, (8, 2), sampler, steps, cond=cond, generator=torch.Generator().manual_seed(0))
        for m, cond in ((model, y), (conditioned(model, {"y": 1}), None))
    ]
    assert torch.equal(*draws)


def test_the_scale_is_linear_in_the_score(mixture, generator):
    model = mixture.model(VPSDE())
    x, y = torch.randn(6, 2, generator=generator, dtype=torch.float64), {"y": torch.arange(6) % 3}
    scores = [classifier_guidance(model, model.log_responsibilities, w)(x, 0.3, y).score for w in (0.0, 1.0, 2.5)]
    torch.testing.assert_close(scores[2] - scores[0], 2.5 * (scores[1] - scores[0]), rtol=1e-10, atol=1e-12)


def test_a_classifier_may_give_logits(mixture, generator):
    model = mixture.model(VPSDE())
    x, y = torch.randn(4, 2, generator=generator, dtype=torch.float64), {"y": torch.tensor([0, 1, 2, -1])}

    def logits(x_t, t, y):
        return model.log_responsibilities(x_t, t) + x_t.sum(1, keepdim=True)  # one number per sample: no change

    found, expected = (classifier_guidance(model, f)(x, 0.5, y) for f in (logits, model.log_responsibilities))
    torch.testing.assert_close(found.eps, expected.eps, rtol=1e-10, atol=1e-10)


def test_guided_data_of_other_ranks(generator):
    means = torch.randn(3, 2, 1, 2, generator=generator)
    for shape in ((2, 1, 2), ()):
        mixture = GaussianMixture(means if shape else means[:, 0, 0, 0], 0.2)
        model = mixture.model(VPSDE())
        x, y = torch.randn(5, *shape, generator=generator), {"y": torch.arange(5) % 3}
        found = classifier_guidance(model, model.log_responsibilities)(x, 0.5, y)
        torch.testing.assert_close(found.x0, model(x, 0.5, y).x0, rtol=1e-4, atol=1e-4)
        free = classifier_free_guidance(model, 2.0, rescale=0.5)(x, 0.5, y)
        assert free.x0.shape == x.shape


# ---- classifier-free guidance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.3, torch.linspace(0.1, 0.9, 5)], ids=["one-time", "a-time-each"])
def test_scale_1_is_conditional_and_0_unconditional_bit_for_bit(network, t):
    x, cond = points(network), {"y": LABELS}
    assert same(classifier_free_guidance(network, 1.0)(x, t, cond), network(x, t, cond))
    assert same(classifier_free_guidance(network, 0.0)(x, t, cond), network(x, t))
    assert not torch.allclose(network(x, t, cond).x0, network(x, t).x0, atol=1e-3)


@pytest.mark.parametrize("t", [0.3, torch.linspace(0.1, 0.9, 5)], ids=["one-time", "a-time-each"])
def test_E10_classifier_free_guidance_extrapolates(network, t):
    x, cond, w = points(network), {"y": LABELS}, 2.5
    with torch.no_grad():
        found = classifier_free_guidance(network, w)(x, t, cond)
        given, none = network(x, t, cond), network(x, t)
    torch.testing.assert_close(found.eps, none.eps + w * (given.eps - none.eps), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.x0, none.x0 + w * (given.x0 - none.x0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.x0[3], none.x0[3], rtol=1e-5, atol=1e-5)  # no class: no guidance


def test_on_a_mixture_both_kinds_of_guidance_agree(mixture, generator):
    model = mixture.model(VPSDE())
    x, y = torch.randn(6, 2, generator=generator, dtype=torch.float64), {"y": torch.arange(6) % 3}
    found = classifier_free_guidance(model, 3.0)(x, 0.4, y)
    expected = classifier_guidance(model, model.log_responsibilities, 3.0)(x, 0.4, y)
    torch.testing.assert_close(found.eps, expected.eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-9, atol=1e-9)


def counted(network):
    sizes = []
    handle = network.net.register_forward_hook(lambda net, args, out: sizes.append(len(args[0])))
    return sizes, handle


def test_one_doubled_call_inside_and_a_plain_one_outside(network):
    """Count the calls inside and outside the interval.

    At t = .5 VP has log-SNR -2.5, at .1 it has 2.
    """
    x, cond = points(network), {"y": LABELS}
    guided = classifier_free_guidance(network, 3.0, interval=(-5.0, 0.0))
    sizes, handle = counted(network)
    inside, outside = guided(x, 0.5, cond), guided(x, 0.1, cond)
    handle.remove()
    assert sizes == [10, 5]
    assert same(outside, network(x, 0.1, cond))
    assert same(inside, classifier_free_guidance(network, 3.0)(x, 0.5, cond))
    t = torch.tensor([0.5, 0.1, 0.5, 0.1, 0.1])
    mixed, everywhere = guided(x, t, cond), classifier_free_guidance(network, 3.0)(x, t, cond)
    given = network(x, t, cond)
    far = t < 0.3
    for name in ("x0", "eps"):
        found, plain, full = (getattr(estimate, name) for estimate in (mixed, given, everywhere))
        assert torch.equal(found[~far], full[~far])
        torch.testing.assert_close(found[far], plain[far], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(full[far], plain[far], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("t", [0.3, torch.linspace(0.1, 0.9, 5)], ids=["one-time", "a-time-each"])
def test_rescaling_gives_x0_the_conditional_deviation(network, t):
    x, cond = points(network), {"y": LABELS}
    with torch.no_grad():
        given = network(x, t, cond)
        models = (classifier_free_guidance(network, 4.0, rescale=phi) for phi in (0.0, 0.5, 1.0))
        plain, half, whole = (model(x, t, cond) for model in models)
    torch.testing.assert_close(whole.x0.std(1), given.x0.std(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half.x0, (plain.x0 + whole.x0) / 2, rtol=1e-5, atol=1e-5)
    level = whole.level
    torch.testing.assert_close(level.alpha * whole.x0 + level.sigma * whole.eps, x, rtol=1e-4, atol=1e-4)


SETTINGS = {
    "plain": {},
    "interval": {"interval": (-4.0, 3.0)},
    "rescale": {"rescale": 0.7},
}


@first_fast("name", SETTINGS)
def test_a_sample_does_not_depend_on_its_batch(network, name):
    """Compare a sample alone, in a batch, and in pieces of it."""
    guided = classifier_free_guidance(network, 2.0, **SETTINGS[name])

    def draw(model, rows):
        generators = [torch.Generator().manual_seed(i) for i in rows]
        cond = {"y": LABELS[rows]}
        return sample(model, (len(rows), 3), DDIM(eta=1.0), 12, cond=cond, generator=generators)

    together = draw(guided, [0, 1, 2, 3, 4])
    torch.testing.assert_close(draw(guided, [2]), together[2:3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(draw(chunked(guided, 2), [0, 1, 2, 3, 4]), together, rtol=1e-4, atol=1e-5)
    inner = classifier_free_guidance(chunked(network, 3), 2.0, **SETTINGS[name])
    torch.testing.assert_close(draw(inner, [0, 1, 2, 3, 4]), together, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_likelihood_differentiates_through_guidance(network):
    """Compare the divergence of the guided flow with finite differences.

    It needs second derivatives of the classifier.
    """
    guided = classifier_free_guidance(network.double(), 2.0)
    x, cond = points(network, 2).double(), {"y": torch.tensor([0, 2])}
    try:
        found = log_likelihood(guided, x, Exact(), steps=60, cond=cond, generator=torch.Generator().manual_seed(0))
        h = 1e-4
        step = torch.tensor([h, 0.0, 0.0], dtype=torch.float64)
        ends = [log_likelihood(guided, x + s, Exact(), steps=60, cond=cond).log_prob for s in (step, -step)]
        y = x.requires_grad_()
        direct = log_likelihood(guided, y, Exact(), steps=60, cond=cond, differentiable="direct").log_prob
        gradient = torch.autograd.grad(direct.sum(), y)[0][:, 0]
    finally:
        network.float()
    torch.testing.assert_close(direct.detach(), found.log_prob, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradient, (ends[0] - ends[1]) / (2 * h), rtol=1e-3, atol=1e-3)


# ---- a fixed condition -----------------------------------------------------------------------------------------------


def test_conditioned_is_the_condition_given_with_each_call(network):
    fixed, x = conditioned(network, {"y": 3}), points(network)
    cond = {"y": torch.full((5,), 3)}
    assert same(fixed(x, 0.4), network(x, 0.4, cond))
    draws = [
        sample(model, (5, 3), steps=8, cond=given, generator=torch.Generator().manual_seed(0))
        for model, given in ((fixed, None), (chunked(fixed, 2), None), (network, cond))
    ]
    assert torch.equal(draws[0], draws[2])
    torch.testing.assert_close(draws[1], draws[0], rtol=1e-4, atol=1e-5)
    stacked = conditioned(classifier_free_guidance(network, 2.0), {"y": 3})
    assert same(stacked(x, 0.4), classifier_free_guidance(network, 2.0)(x, 0.4, cond))
    assert stacked.classes == 4


def test_a_condition_can_be_a_vector():
    """Pass a condition without a batch axis: all samples share it."""

    class Net(torch.nn.Module):
        def forward(self, x, time_input, context):
            return x * context.sum(1, keepdim=True)

    model, context, x = ScoreModel(Net(), VPSDE()), torch.tensor([1.0, 2.0]), torch.randn(4, 3)
    assert same(conditioned(model, {"context": context})(x, 0.5), model(x, 0.5, {"context": context.expand(4, 2)}))


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
class Nested(torch.nn.Module):
    """A network with a mapping among its conditions."""

    def forward(self, x, t, text, more):
        return x + text.mean(1) + 3 * more["pooled"] - more["size"][:, :1]


def test_conditions_may_be_mappings():
    model = ScoreModel(Nested(), VPSDE(), "data")
    draw = torch.Generator().manual_seed(0)
    x, text = torch.randn(5, 2, generator=draw), torch.randn(5, 3, 2, generator=draw)
    more = {"pooled": torch.randn(5, 2, generator=draw), "size": torch.ones(5, 4)}
    cond = {"text": text, "more": more}
    none = {"text": torch.zeros_like(text), "more": {**more, "pooled": torch.full((5, 2), 0.5)}}
    guided = classifier_free_guidance(model, 2.0, null={"text": 0.0, "more": {"pooled": 0.5}})
    with_text, without = model(x, 0.5, cond).x0, model(x, 0.5, none).x0
    torch.testing.assert_close(guided(x, 0.5, cond).x0, without + 2 * (with_text - without))
    torch.testing.assert_close(chunked(model, 2)(x, 0.5, cond).x0, with_text)
    with pytest.raises(ShapeError, match=r"cond\['more'\]\['size'\]"):
        model(x, 0.5, {**cond, "more": {**more, "size": torch.ones(4, 4)}})
    with pytest.raises(DTypeError, match=r"cond\['more'\]\['size'\]"):
        model(x, 0.5, {**cond, "more": {**more, "size": None}})
    for null in ({"more": 0.0}, {"more": {"other": 0.0}}, {"more": {"pooled": torch.zeros(7)}}):
        with pytest.raises((ArgumentError, ShapeError), match="null"):
            classifier_free_guidance(model, 2.0, null=null)(x, 0.5, cond)


def test_nan_from_a_classifier_names_the_samples(mixture):
    model = mixture.model(VPSDE())

    def broken(x_t, t, y):
        return model.log_responsibilities(x_t, t, y.clamp(max=2)) * torch.where(y == 7, math.nan, 1.0)

    y = torch.tensor([0, 7, 1])
    with pytest.raises(NonFiniteError, match=r"1 of 3 samples \(1\)"):
        sample(classifier_guidance(model, broken), (3, 2), steps=5, cond={"y": y})
    with pytest.raises(NonFiniteError, match=r"1 of 3 samples \(1\)"):
        log_likelihood(classifier_guidance(model, broken), torch.zeros(3, 2), cond={"y": y})


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (None, ArgumentError, "got None"),
        (torch.zeros(2, dtype=torch.long), ShapeError, r"got \(2,\)"),
        (torch.zeros(5), DTypeError, "int64"),
        (torch.tensor([0, 1, 2, 0, 4]), ArgumentError, r"from 0 to 3, .*, got 4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(network, y, error, words):
    x, cond = points(network), None if y is None else {"y": y}
    by_four = classifier_guidance(network, lambda x_t, t, y: x_t.sum(1, keepdim=True) * torch.arange(4.0))
    for guided in (classifier_free_guidance(network, 2.0), classifier_free_guidance(network, 0.0), by_four):
        with pytest.raises(error, match=words):
            guided(x, 0.3, cond)


def test_a_class_out_of_range_is_refused(mixture):
    with pytest.raises(ArgumentError, match=r"from 0 to 2, .*, got 3"):
        mixture.model(VPSDE())(torch.zeros(2, 2), 0.5, {"y": torch.tensor([0, 3])})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, t, y: x, "log_p_y's result"),
        (lambda x, t, y: x.sum(), "log_p_y's result"),
        (lambda x, t, y: 3.0, "log_p_y's result"),
        (lambda x, t, y: x.detach().sum(1), "no gradient"),
    ],
)
def test_a_classifier_of_another_shape_is_refused(network, function, words):
    x = points(network)[:3, None].expand(3, 2, 3) if words == "log_p_y's result" else points(network)
    model = GaussianMixture(torch.zeros(1, *x.shape[1:]), 1.0).model(VPSDE())
    with pytest.raises(ArgumentError, match=words):
        classifier_guidance(model, function)(x, 0.3, {"y": torch.zeros(len(x), dtype=torch.long)})


def test_numbers_out_of_range_are_refused(network):
    for scale in (math.nan, math.inf, "2", None, True):
        with pytest.raises(ArgumentError, match="scale"):
            classifier_free_guidance(network, scale)
        with pytest.raises(ArgumentError, match="scale"):
            classifier_guidance(network, lambda x, t, y: x, scale)
    for interval in ((1.0, 1.0), (2.0, -2.0), (1.0,)):
        with pytest.raises(ArgumentError, match="interval"):
            classifier_free_guidance(network, 2.0, interval)
    with pytest.raises(ArgumentError, match="rescale"):
        classifier_free_guidance(network, 2.0, rescale=1.5)
    with pytest.raises(DTypeError, match="log_p_y"):
        classifier_guidance(network, 3)
    with pytest.raises(ArgumentError, match=r"from 0 to 3, .*, got 4"):
        conditioned(network, {"y": 4})
    with pytest.raises(ArgumentError, match="cond"):
        conditioned(network, {})
    with pytest.raises(DTypeError, match="cond"):
        conditioned(network, {"y": "three"})
    with pytest.raises(ArgumentError, match="the model has it fixed"):
        conditioned(network, {"y": 1})(points(network), 0.3, {"y": LABELS})
