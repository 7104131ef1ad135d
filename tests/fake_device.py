"""Run by test_fake_device.py in a process of its own: torch's meta device, as a pretended accelerator.

Tensors on it have shapes but no values: what asks for one (``.item()``, ``bool()``, a copy to the host) fails where a
host sync would stall; what is on the CPU is real. DeviceCheck refuses operations that mix the two.
"""

import sys
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import scoresde as S
from scoresde.likelihood.log_likelihood import _DensityField
from scoresde.sampling import Implicit
from scoresde.sampling.flow import ProbabilityFlowField
from scoresde.sampling.ode import integrate

DEVICE = "meta"


class DeviceCheck(TorchDispatchMode):
    """Every tensor with dimensions in one operation is on one device; a generator is where it draws."""

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


def network(predicts="edm", sde="vp"):
    net = S.UNet((1, 8, 8), channels=8, multipliers=(1, 2), classes=3)
    return S.ScoreModel(net, SDES[sde], predicts, label="log_snr").to(DEVICE)


def training_step():
    """Loss, backward, clipping, Adam and the moving average, for every SDE and time sampling."""
    for sde in SDES:
        for sampling in ("uniform", "low-discrepancy", "log-snr"):
            model = network("edm" if sde == "ve" else "velocity", sde)
            ema = S.EMA(model.net, 10.0)
            parameters = list(model.parameters())
            optimizer = torch.optim.Adam(parameters, foreach=True)
            objective = S.DenoisingScoreMatching("likelihood", sampling)
            x0, y = torch.empty(4, 1, 8, 8, device=DEVICE), torch.zeros(4, dtype=torch.long, device=DEVICE)
            loss = objective(model, x0, {"y": y}).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            ema.update()
            assert loss.device.type == DEVICE


def samplers():
    """Every sampler with a fixed grid, on every SDE, without a single sync."""
    for sde in SDES:
        model = network("noise", sde)
        for sampler in (
            S.PredictorCorrector(S.ReverseDiffusion(), S.Langevin()),
            S.PredictorCorrector(S.EulerMaruyama(), S.Langevin(batch_mean=True)),
            S.PredictorCorrector(S.Ancestral()),
            S.PredictorCorrector(Implicit(0.3), grid="karras"),
            S.DDIM(),
            S.DPMSolver(),
            S.DPMSolver(3, stochastic=True),
            S.ProbabilityFlow("rk4"),
        ):
            x = S.sample(model, (3, 1, 8, 8), sampler, 3, cond={"y": torch.zeros(3, dtype=torch.long, device=DEVICE)})
            assert x.device.type == DEVICE


def likelihood():
    """The flow and its divergence on a fixed grid: field evaluations and steps, without a sync."""
    for sde in SDES:
        model = network("edm", sde)
        for divergence in (S.Hutchinson(2), S.Hutchinson(1, "gaussian")):

            def probes(rows, eps, divergence=divergence):
                return divergence.draw(eps.shape, None, DEVICE, eps.dtype)

            field = _DensityField(model, (1, 8, 8), None, divergence, 64, probes)
            y = torch.empty(2, 64 + divergence.replicates, device=DEVICE, dtype=torch.float64)
            assert integrate(field, y, 5.0, -4.0, method="rk4", steps=2).y.device.type == DEVICE
        flow = ProbabilityFlowField(model, (1, 8, 8))
        assert integrate(flow, y[:, :64], -4.0, 5.0, method="heun", steps=2).y.device.type == DEVICE


@contextmanager
def refused(what):
    try:
        yield
    except Exception as error:  # any refusal will do
        print(f"refused: {what} ({str(error).splitlines()[0][:60]})")
    else:
        raise SystemExit(f"the check let pass: {what}")


def control():
    """The check itself can fail: it refuses what it is for."""
    with refused("a host sync"):
        torch.empty(3, device=DEVICE).sum().item()
    with refused("mixed devices"):
        torch.empty(3, device=DEVICE) + torch.empty(3)
    with refused("a copy to the host"):
        torch.empty(3, device=DEVICE).cpu()
    with refused("a CPU table indexed on the device"):
        torch.empty(5)[torch.zeros(2, dtype=torch.long, device=DEVICE)]


if __name__ == "__main__":
    with DeviceCheck():
        {"training": training_step, "samplers": samplers, "likelihood": likelihood, "control": control}[sys.argv[1]]()
    print("passed")
