"""Models under torch.func, torch.export, and derivatives in time."""

import pytest
import torch
from torch.func import jacrev, jvp, vmap

import scoresde as S
from tests.generators import generator
from tests.marks import first_fast

MIXTURE = S.GaussianMixture(torch.tensor([[0.3, -0.2], [1.0, 1.0]]), 0.1)


def mlp(sde, predicts, time_input):
    torch.manual_seed(0)
    net = S.ResidualMLP((2,), width=8, blocks=1)
    torch.nn.init.normal_(net.head[-1].weight)
    return S.ScoreModel(net, sde, predicts, time_input=time_input)


MODELS = {
    "mixture": lambda: MIXTURE.model(S.VPSDE()),
    "re-scheduled": lambda: MIXTURE.model(S.VPSDE()).with_sde(S.VPSDE(0.1, 15.0)),
    "cosine": lambda: MIXTURE.model(S.VPSDE.cosine()),
    "ncsn": lambda: MIXTURE.model(S.NCSN.geometric()),
    "ddpm": lambda: mlp(S.DDPM.linear(), "noise", "ddpm"),
    "edm": lambda: mlp(S.VPSDE(), "edm", "log_snr"),
    "flow": lambda: mlp(S.FlowSDE(), "flow", "time"),
    "ve": lambda: mlp(S.VESDE(), "score", "sigma"),
    "sub-vp": lambda: mlp(S.SubVPSDE(), "score", "time"),
}
X, T = torch.randn(4, 2, generator=generator()), torch.tensor([0.2, 0.4, 0.6, 0.8])


@first_fast("name", MODELS)
def test_a_scalar_time_has_a_derivative(name):
    """Compare with finite differences in float64, inside one piece of a table."""
    model, x, at, h = MODELS[name]().double(), X.double(), 0.40051, 1e-6
    t = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x, t).eps.sum(), t)
    numeric = (model(x, at + h).eps.sum() - model(x, at - h).eps.sum()) / (2 * h)
    torch.testing.assert_close(slope.item(), numeric.item(), rtol=1e-4, atol=1e-5)


@first_fast("name", MODELS)
def test_functional_transforms_agree_with_autograd(name):
    model = MODELS[name]()
    one = vmap(lambda x, t: model(x[None], t[None]).eps[0])
    torch.testing.assert_close(one(X, T), model(X, T).eps)
    scalar = vmap(lambda x, t: model(x[None], t).x0[0])
    torch.testing.assert_close(scalar(X, T), model(X, T).x0)
    jacobian = vmap(jacrev(lambda x, t: model(x[None], t[None]).eps[0]))(X, T)
    whole = torch.autograd.functional.jacobian(lambda x: model(x, T).eps.sum(0), X).movedim(1, 0)
    torch.testing.assert_close(jacobian, whole, rtol=1e-4, atol=1e-4)
    rates = vmap(jacrev(lambda t, x: model(x[None], t[None]).score[0]))(T, X)
    forward = jvp(lambda t: model(X, t).score, (T,), (torch.ones_like(T),))[1]
    torch.testing.assert_close(rates, forward, rtol=1e-3, atol=1e-3)


class Exported(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t):
        return self.model(x, t).x0


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_export_with_any_batch(name, strict):
    model = Exported(MODELS[name]())
    B = torch.export.Dim("B", min=2, max=1024)
    program = torch.export.export(model, (X, T), dynamic_shapes={"x": {0: B}, "t": {0: B}}, strict=strict)
    x, t = torch.randn(7, 2, generator=generator(1)), torch.linspace(0.1, 0.9, 7)
    torch.testing.assert_close(program.module()(x, t), model(x, t))
    assert type(model(x, t)) is torch.Tensor  # nothing of the trace is left in the process


@pytest.mark.slow
@pytest.mark.parametrize("net", ["unet", "dit"])
def test_images_with_classes_are_exported(net):
    shape = (1, 8, 8)
    made = {
        "unet": lambda: S.UNet(shape, channels=8, heads=2, classes=3),
        "dit": lambda: S.DiT(shape, patch=2, width=16, blocks=1, heads=2, classes=3),
    }[net]()
    model = S.ScoreModel(made, S.VPSDE(), "edm", time_input="log_snr").eval()

    class Conditional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, t, y):
            return self.model(x, t, {"y": y}).x0

    B = torch.export.Dim("B", min=2, max=1024)
    args = torch.randn(4, *shape, generator=generator()), T, torch.tensor([0, 1, 2, -1])
    program = torch.export.export(Conditional(), args, dynamic_shapes={key: {0: B} for key in ("x", "t", "y")})
    others = torch.randn(5, *shape, generator=generator(1)), torch.linspace(0.1, 0.9, 5), torch.tensor([0, 1, 2, -1, 0])
    torch.testing.assert_close(program.module()(*others), Conditional()(*others))
