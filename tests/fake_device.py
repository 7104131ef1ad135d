"""Torch's meta device as a fake accelerator.

test_fake_device.py runs the parts under DeviceCheck.

Tensors on it have shapes but no values. Code that reads a value (``.item()``, ``bool()``, a copy to the host) fails
where a host sync would stall. Tensors on the CPU are real. DeviceCheck refuses operations that mix the two.
"""

import copy
import itertools
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import scoresde as S
from scoresde.flow.field import ProbabilityFlowField
from scoresde.flow.ode import integrate
from scoresde.likelihood.gaussian_path import FlowProblem, solve
from scoresde.likelihood.path_plan import Ends
from scoresde.likelihood.probability_flow import FlowOnFixedGrid
from scoresde.likelihood.trace import NoiseAndTrace, TraceIntegral
from scoresde.sampling import Implicit
from scoresde.sde.grids import time_range

DEVICE = "meta"


class DeviceCheck(TorchDispatchMode):
    """A mode that refuses operations across devices.

    It also refuses draws on another device than the generator's.
    """

    crossing = ("copy_", "_to_copy", "copy", "device_put", "set_", "_local_scalar_dense", "detach")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        devices = {a.device.type for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor) and a.ndim > 0}
        if len(devices) > 1 and name not in self.crossing:
            raise RuntimeError(f"{name} mixes {sorted(devices)}")
        generator, device = kwargs.get("generator"), kwargs.get("device")
        if generator is not None and device is not None and generator.device.type != torch.device(device).type:
            raise RuntimeError(f"{name} draws on {device} with a generator on {generator.device}")
        return func(*args, **kwargs)


SDES = {
    "vp": S.VPSDE(),
    "cosine": S.VPSDE.cosine(),
    "subvp": S.SubVPSDE(),
    "ve": S.VESDE(),
    "flow": S.FlowSDE(),
    "ddpm": S.DDPM.linear(100),
    "ncsn": S.NCSN.geometric(0.01, 10.0, 20),
}


def network(predicts="edm", sde="vp", net=None):
    """Return a model with a small network on the device.

    tests/nets run every kind of network on this device.
    """
    net = S.ResidualMLP((1, 8, 8), width=8, blocks=1, classes=3) if net is None else net
    return S.ScoreModel(net, SDES[sde], predicts, time_input="log_snr").to(DEVICE)


def on_device(module):
    """Return a copy of a module on the device."""
    return copy.deepcopy(module).to(DEVICE)


def training_step():
    """Run the trainer's step on every SDE.

    Dropped labels, pieces, loss, clipping, optimiser and averages.
    """
    settings = {"batch_size": 4, "accumulate": 2, "conditional": True, "label_dropout": 0.5}
    config = S.TrainerConfig(**settings, ema_half_life={"fast": 10.0, "slow": 100.0})
    batch = {"x": torch.zeros(4, 1, 8, 8), "label": torch.zeros(4, dtype=torch.long)}
    with mock.patch("scoresde.training.optimizer_steps.pick_device", return_value=torch.device(DEVICE)):
        cases = [*((sde, "log-snr") for sde in SDES), ("vp", "uniform"), ("vp", "low-discrepancy")]
        for sde, sampling in cases:
            unet = S.UNet((1, 8, 8), channels=8, multipliers=(1, 2), classes=3) if sampling == "uniform" else None
            model = network("edm" if sde == "ve" else "velocity", sde, unet)
            optimizer = {"optimizer": "adam" if unet is None else "muon"}
            trainer = S.Trainer(model, S.DenoisingScoreMatching("likelihood", sampling), replace(config, **optimizer))
            _, terms, norm = trainer._one_step(batch, 1e-3)
            assert {x.device.type for x in (norm, *terms[0], *trainer.ema.average("slow").values())} == {DEVICE}


def samplers():
    """Run every sampler with a fixed grid, on every SDE, without a sync."""
    for sde in SDES:
        model = network("noise", sde)
        on_all = (
            S.PredictorCorrector(S.ReverseDiffusion(), S.Langevin()),
            S.PredictorCorrector(S.EulerMaruyama(), S.Langevin(batch_mean=True)),
            S.PredictorCorrector(Implicit(0.3), grid="karras"),
            S.DPMSolver(3, stochastic=True),
            S.ProbabilityFlow("rk4"),
        )
        others = (
            S.PredictorCorrector(S.Ancestral("forward"), S.AnnealedLangevin(1e-6), corrector_first=True),
            S.PredictorCorrector(None, S.Langevin()),
            S.DDIM(),
            S.DPMSolver(),
            S.SingleStep(2),
            S.SingleStep(3),
            S.Heun(2.0),
        )
        for sampler in (*on_all, *(others if sde == "vp" else ())):
            cond = {"y": torch.zeros(3, dtype=torch.long, device=DEVICE)}
            assert S.sample(model, (3, 1, 8, 8), sampler, 4, cond=cond).device.type == DEVICE


def switches():
    """Run chunks, limits of x0, encoding, and autocast.

    Autocast runs without the cast itself, which torch does not offer on this device.
    """
    model, cond = network("velocity"), {"y": torch.zeros(3, dtype=torch.long, device=DEVICE)}
    limited = (S.guidance.clipped(model), S.guidance.dynamic_threshold(model))
    cast = {"autocast": lambda *_, **__: nullcontext(), "amp.is_autocast_available": lambda _: True}
    cast["is_autocast_enabled"] = lambda _: False
    with ExitStack() as stack:
        for name, stand_in in cast.items():
            stack.enter_context(mock.patch(f"torch.{name}", stand_in))
        for sampler, some in itertools.product((S.DPMSolver(stochastic=True), S.DDIM(), S.Heun()), (model, *limited)):
            settings = {"cond": cond, "chunk": 2, "autocast": torch.bfloat16}
            assert S.sample(some, (3, 1, 8, 8), sampler, 4, **settings).device.type == DEVICE
    x = torch.empty(3, 1, 8, 8, device=DEVICE)
    for sampler in (S.DDIM(), S.ProbabilityFlow("rk4")):
        assert S.encode(model, x, sampler, 4, cond, chunk=2).device.type == DEVICE
    assert S.sampling.langevin_dynamics(model, x, 0.1, 3, t=0.5, cond=cond).device.type == DEVICE


def likelihood():
    """Compute the flow and its divergence on a fixed grid, without a sync."""
    for sde in SDES:
        model = network("edm", sde)
        x = torch.empty(2, 1, 8, 8, device=DEVICE)
        for divergence in (S.Hutchinson(1), S.Hutchinson(1, "gaussian")):
            traces = TraceIntegral(NoiseAndTrace(model, divergence), x, None, None, fixed_grid=True)
            field = FlowOnFixedGrid(model, (1, 8, 8), traces, itertools.repeat(1.0))
            y = torch.empty(2, 64, device=DEVICE, dtype=torch.float64)
            assert integrate(field, y, 5.0, -4.0, method="midpoint", steps=1).y.device.type == DEVICE
        flow = ProbabilityFlowField(model, (1, 8, 8))
        assert integrate(flow, y, -4.0, 5.0, method="heun", steps=2).y.device.type == DEVICE
    traces = TraceIntegral(NoiseAndTrace(model, S.Hutchinson(2), chunk=1), x, None, None, fixed_grid=True)
    moments = S.models.Moments(torch.zeros(1, 8, 8), torch.eye(64))
    ends = Ends(*time_range(model.sde), data_at_t_min=False, noise_to_infinity=True)
    path = solve(traces, x, FlowProblem(model.sde, moments, None, calls=9, ends=ends))
    assert path.latent.device.type == path.log_det.device.type == traces.tally.integral.device.type == DEVICE


def inverse():
    """Run every operator and guidance method.

    Also weighted particles and repeated steps.
    """
    shape = (1, 8, 8)
    plain = S.ScoreModel(S.ResidualMLP(shape, width=8, blocks=1, classes=3), SDES["vp"], "edm", time_input="log_snr")
    operators = (
        S.guidance.Inpainting(torch.arange(64).reshape(shape) % 2),
        S.guidance.Colorize(shape),
        S.guidance.Downsample(shape, 2, "bicubic"),
        S.guidance.Blur(shape, S.guidance.gaussian_kernel(0.8, radius=2)),
        S.guidance.Matrix(torch.ones(3, 64).tril(), shape),
        S.guidance.PartialFourier(S.guidance.radial_mask((8, 8), 3), shape),
        S.guidance.LinearFunction(lambda x: x.flatten(1).cumsum(1)[:, ::9], shape),
    )
    moments = S.models.Moments(torch.zeros(shape), torch.eye(64))
    methods = {
        "replacement": S.guidance.replacement,
        "dps": S.guidance.dps,
        "dps-scaled": lambda *problem: S.guidance.dps(*problem, scale=0.5),
        "pigdm": S.guidance.pigdm,
        "gaussian_data": lambda *problem: S.guidance.gaussian_data(*problem, moments),
        "moment_matching": lambda *problem: S.guidance.moment_matching(*problem, 2),
        "with_likelihood": lambda model, *_: S.guidance.with_likelihood(
            model, lambda x0: -x0.square().flatten(1).sum(1)
        ),
    }
    pc = S.PredictorCorrector(corrector=S.Langevin())
    cases = [(operator, "pigdm", S.DDIM(last="none")) for operator in operators]
    cases += [
        (operators[2], name, S.sampling.Particles(2)) for name in methods if name not in ("replacement", "dps-scaled")
    ]
    cases += [(operators[0], "dps-scaled", S.DPMSolver(stochastic=True))]
    cases += [(operators[2], "replacement", sampler) for sampler in (S.sampling.Resampling(2), pc)]
    for operator, name, sampler in cases:
        model = on_device(methods[name](plain, operator, torch.zeros(operator.y_shape), 0.1))
        assert S.sample(model, (3, *shape), sampler, 2).device.type == DEVICE
    each = {"observation": torch.zeros(3, 1, 4, 4), "observation_noise": torch.ones(3)}
    cond = {name: value.to(DEVICE) for name, value in each.items()}
    assert (
        S.sample(on_device(S.guidance.pigdm(plain, operators[2])), (3, *shape), steps=3, cond=cond).device.type
        == DEVICE
    )
    model, y = on_device(plain), {"y": torch.zeros(3, dtype=torch.long, device=DEVICE)}
    weights = torch.ones(64, 3, device=DEVICE)
    for guided, cond in (
        (S.guidance.classifier_guidance(model, lambda x, t, y: x.flatten(1) @ weights, 2.0), y),
        (S.guidance.classifier_free_guidance(model, 2.0, (-4.0, 4.0), 0.5), y),
        (S.guidance.conditioned(model, {"y": 1}), None),
    ):
        assert S.sample(guided, (3, *shape), S.DPMSolver(stochastic=True), 3, cond=cond).device.type == DEVICE


@contextmanager
def refused(what):
    try:
        yield
    except RuntimeError:  # torch's and DeviceCheck's own; a NotImplementedError is one
        return
    raise AssertionError(f"the check let pass: {what}")


def control():
    """Check that DeviceCheck refuses what it should."""
    with refused("a host sync"):
        torch.empty(3, device=DEVICE).sum().item()
    with refused("mixed devices"):
        torch.empty(3, device=DEVICE) + torch.empty(3)
    with refused("a copy to the host"):
        torch.empty(3, device=DEVICE).cpu()
    with refused("a CPU table indexed on the device"):
        torch.empty(5)[torch.zeros(2, dtype=torch.long, device=DEVICE)]
