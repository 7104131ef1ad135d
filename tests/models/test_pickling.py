"""Every model and wrapper pickles, saves and reaches a spawned process."""

import io
import pickle

import pytest
import torch

from scoresde import DDPM, NCSN, VPSDE, GaussianMixture, ResidualMLP, ScoreModel, guidance
from scoresde.models import TIME_INPUTS, autocast, chunked
from tests.families import FAMILIES
from tests.marks import first_fast


def network(sde=None, **settings):
    net, generator = ResidualMLP((3,), width=8, blocks=1, classes=2), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return ScoreModel(net, sde or VPSDE(), **settings).eval()


OPERATOR = guidance.Matrix(torch.tensor([[1.0, 0.5, 0.0]]))
Y = torch.tensor([0.3])
MIXTURE = GaussianMixture(torch.eye(3), 0.2)


def log_p_y(x_t, t, y):
    """Return a user's classifier's logits ``(B, 2)``."""
    return x_t[:, :2]


def log_likelihood(x0):
    """Return a user's likelihood ``(B,)``."""
    return -x0.square().sum(1)


MODELS = {
    "network": network,
    "mixture": lambda: MIXTURE.model(VPSDE()),
    "rescheduled": lambda: network().with_sde(FAMILIES["flow"]),
    "chunked": lambda: chunked(network(), 2),
    "autocast": lambda: autocast(network(), torch.bfloat16),
    "conditioned": lambda: guidance.conditioned(network(), {"y": 1}),
    "classifier": lambda: guidance.conditioned(guidance.classifier_guidance(network(), log_p_y, 2.0), {"y": 1}),
    "classifier-free": lambda: guidance.conditioned(
        guidance.classifier_free_guidance(network(), 2.0, (-4.0, 3.0), rescale=0.5), {"y": 1}
    ),
    "clipped": lambda: guidance.clipped(network()),
    "dynamic threshold": lambda: guidance.dynamic_threshold(network()),
    "replacement": lambda: guidance.replacement(network(), OPERATOR, Y, 0.1),
    "dps": lambda: guidance.dps(network(), OPERATOR, Y, 0.1, scale=0.5),
    "pigdm": lambda: guidance.pigdm(network(), OPERATOR, Y, 0.1),
    "gaussian data": lambda: guidance.gaussian_data(network(moments=MIXTURE.moments), OPERATOR, Y, 0.1),
    "moment matching": lambda: guidance.moment_matching(network(), OPERATOR, Y, 0.1),
    "likelihood": lambda: guidance.with_likelihood(network(), log_likelihood),
}
X = torch.linspace(-1, 1, 12).reshape(4, 3)


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def same(model, again):
    ours, theirs = model(X, 0.4), again(X, 0.4)
    return torch.equal(ours.x0, theirs.x0) and torch.equal(ours.eps, theirs.eps)


@pytest.mark.parametrize("copied", [by_pickle, by_torch])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back(name, copied):
    model = MODELS[name]()
    again = copied(model)
    assert same(model, again)
    assert repr(again) == repr(model)


@pytest.mark.parametrize("time_input", TIME_INPUTS)
def test_every_time_input_comes_back(time_input):
    sde = {"ncsn": NCSN.geometric(0.01, 10.0, 12)}.get(time_input, DDPM.linear(50, 1e-3, 0.2))
    model = network(sde, time_input=time_input)
    assert same(model, by_pickle(model))


@first_fast("name", FAMILIES)
def test_every_process_comes_back(name):
    model = network(FAMILIES[name])
    assert same(model, by_pickle(model))


def evaluate(model, queue):
    """Evaluate a model in another process."""
    queue.put(model(X, 0.4).x0.detach().numpy())


@pytest.mark.slow
def test_models_work_in_a_spawned_process():
    context = torch.multiprocessing.get_context("spawn")
    model, queue = guidance.pigdm(chunked(network(), 2), OPERATOR, Y, 0.1), context.SimpleQueue()
    process = context.Process(target=evaluate, args=(model, queue))
    process.start()
    found = queue.get()
    process.join()
    torch.testing.assert_close(torch.from_numpy(found), model(X, 0.4).x0.detach(), rtol=1e-6, atol=1e-6)
