"""Gradients of log p with respect to the data and the parameters."""

import pytest
import torch

import scoresde as S
from scoresde.likelihood import Hutchinson, HutchPP

MOMENTS = S.models.Moments(torch.tensor([0.2, -0.1]), torch.tensor([[0.8, 0.2], [0.2, 0.5]]))
POINTS = torch.tensor([[0.3, -0.6], [1.1, 0.4], [-0.8, 0.1]], dtype=torch.float64)

# fewer calls than log p needs
pytestmark = pytest.mark.filterwarnings("ignore::scoresde.errors.LikelihoodWarning")


def model():
    torch.manual_seed(0)
    net = S.ResidualMLP((2,), width=8, blocks=1).double()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return S.ScoreModel(net, S.VPSDE(), "edm", moments=MOMENTS, time_input="log_snr")


def total(model, x, divergence, differentiable=None, method="multistep", **settings):
    generators = [torch.Generator().manual_seed(i) for i in range(len(x))]
    return S.log_likelihood(
        model, x, divergence, method=method, steps=18, generator=generators, differentiable=differentiable, **settings
    ).log_prob.sum()


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [S.Exact(), Hutchinson(2), HutchPP(1, 1)], ids=repr)
@pytest.mark.parametrize("method", ["multistep", "rk4"])
def test_gradients_are_finite_differences(divergence, method):
    """Compare gradients with finite differences in float64.

    Exact and estimated traces with equal probes, direct and adjoint, x and parameters.
    """
    if isinstance(divergence, HutchPP):
        divergence = HutchPP(2, 1)  # the whole space: no subspace to vary with x
    m, h = model(), 1e-5
    parameters = dict(m.net.named_parameters())
    weight = parameters[next(name for name, p in parameters.items() if p.ndim == 2)]
    found = {}
    for kind in ("direct", "adjoint"):
        x = POINTS.clone().requires_grad_()
        log_prob = total(m, x, divergence, kind, method)
        gradients = torch.autograd.grad(log_prob, (x, *m.parameters()), allow_unused=True)
        found[kind] = dict(zip(("x", *parameters), gradients, strict=True))
        torch.testing.assert_close(log_prob.detach(), total(m, POINTS, divergence, method=method))
    for name, gradient in found["direct"].items():
        torch.testing.assert_close(found["adjoint"][name], gradient, rtol=1e-9, atol=1e-12)
    for i, j in ((0, 0), (2, 1)):
        step = torch.zeros_like(POINTS)
        step[i, j] = h
        slope = (
            total(m, POINTS + step, divergence, method=method) - total(m, POINTS - step, divergence, method=method)
        ) / 2
        torch.testing.assert_close(found["direct"]["x"][i, j], slope / h, rtol=1e-6, atol=1e-6)
    name = next(name for name, p in parameters.items() if p is weight)
    values = []
    for sign in (1, -1):
        weight.data[1, 0] += sign * h
        values.append(total(m, POINTS, divergence, method=method))
        weight.data[1, 0] -= sign * h
    slope = (values[0] - values[1]) / (2 * h)
    torch.testing.assert_close(found["direct"][name][1, 0], slope, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_an_exact_model_is_its_score():
    gm = S.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [[0.1, 0.2], [0.3, 0.1]])
    x = gm.sample(5, torch.Generator().manual_seed(0)).requires_grad_()
    (score,) = torch.autograd.grad(gm.log_prob(x).sum(), x)
    result = S.log_likelihood(gm.model(S.VPSDE()), x, S.Exact(), differentiable="direct", steps=60)
    (found,) = torch.autograd.grad(result.log_prob.sum(), x)
    torch.testing.assert_close(found, score, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_chunks_give_the_same_gradients():
    m = model()
    whole, parts = (
        torch.autograd.grad(
            total(m, POINTS, S.Exact(), "adjoint", chunk=chunk), list(m.parameters()), allow_unused=True
        )
        for chunk in (None, 2)
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_there_is_no_graph_by_default():
    x = POINTS.clone().requires_grad_()
    assert not total(model(), x, S.Exact()).requires_grad


@pytest.mark.slow
def test_fine_tuning_by_exact_likelihood():
    """Follow the recipe: score matching, then steps on a toy's exact log p.

    A Runge-Kutta method solves the flow. Held-out log p gains more than 0.03 nats per point.
    """
    gm = S.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [[0.1, 0.2], [0.3, 0.1]])
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = S.ResidualMLP((2,), width=32, blocks=1)
    model = S.ScoreModel(net, S.VPSDE(), "edm", moments=gm.moments, data_std=gm.moments.std, time_input="log_snr")
    objective, optimizer = S.DenoisingScoreMatching("simple"), torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        objective(model, gm.sample(128, g).float(), generator=g).mean().backward()
        optimizer.step()
    held_out = gm.sample(200, g).float()
    before = S.log_likelihood(model, held_out, S.Exact(), steps=60).log_prob.mean()
    optimizer, settings = torch.optim.Adam(net.parameters(), 3e-3), {"method": "rk4", "steps": 7}
    for _ in range(12):
        optimizer.zero_grad()
        found = S.log_likelihood(model, gm.sample(64, g).float(), S.Exact(), differentiable="direct", **settings)
        (-found.log_prob.mean()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    after = S.log_likelihood(model, held_out, S.Exact(), steps=60).log_prob.mean()
    assert after > before + 0.03
    assert after < gm.log_prob(held_out.double()).mean() + 0.05
