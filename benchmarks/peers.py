"""Peers' solvers behind one interface.

A solver takes a denoiser, the start noise and a number of calls, and returns the end point. All solvers get the exact
denoiser D(y; rho) of y = x0 + rho eps. Their internal state (x of a VP process, or y) and their noise levels are
their own choice. A peer that is not installed, or fails to import, is left out with the reason. docs/benchmarks.md says
how to install them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, util
from types import ModuleType
from typing import NamedTuple

from benchmarks import common  # first: it sets how threads wait

# isort: split
import torch
from torch import Tensor

from scoresde.errors import UnknownNameError
from scoresde.models import Model

RHO_MIN = (0.001, 0.005, 0.02, 0.05)  # the last levels that an ODE solver with free levels is tried with
RHO_MIN_SDE = (0.005, 0.02)  # an SDE solver
TRAIN_LEVELS = (1000, 20000)  # lengths of the discrete schedule that diffusers is given, times i/N


class Denoiser:
    """A denoiser D(y; rho) and its noise eps(y; rho).

    They come from a model: x = alpha y where sigma/alpha = rho.
    """

    def __init__(self, model: Model):
        self.model, self.sde = model, model.sde
        self.rho_max = math.exp(-0.5 * model.sde.log_snr(1.0).item())

    def __call__(self, y: Tensor, rho: float) -> tuple[Tensor, Tensor]:
        level = self.sde.levels(self.sde.time_of(-2 * math.log(rho)).reshape(1))[0]
        estimate = self.model.estimate(level.alpha * y, level)
        return estimate.x0, estimate.eps


class Solver(NamedTuple):
    """One setting of one solver.

    ``run(model, x, calls)`` spends at most ``calls`` network calls, starting from x at t = 1.
    """

    package: str
    name: str
    setting: str
    run: Callable[[Model, Tensor, int], Tensor]


def _start(denoiser: Denoiser, x: Tensor) -> Tensor:
    """Return y at t = 1."""
    return x / denoiser.sde.levels(torch.tensor([1.0], dtype=torch.float64))[0].alpha


def _levels(rho_max: float, rho_min: float, n: int, kind: str) -> Tensor:
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    if kind == "karras":
        return (rho_max ** (1 / 7) + u * (rho_min ** (1 / 7) - rho_max ** (1 / 7))) ** 7
    return torch.exp(math.log(rho_max) + u * math.log(rho_min / rho_max))


# ---- diffusers ------------------------------------------------------------------------------------------------------


def discrete_betas(sde, levels: int) -> list[float]:
    """Return betas of a DDPM whose sigma/alpha match ``sde`` at the times i/N."""
    times = torch.arange(levels + 1, dtype=torch.float64) / levels
    alphas_bar = torch.sigmoid(sde.log_snr(times))  # 1/(1 + rho^2)
    alphas_bar[0] = 1.0
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).tolist()


def _diffusers(cls, options: dict, train_levels: int, *, second: bool = False):
    def run(model: Model, x: Tensor, calls: int) -> Tensor:
        denoiser = Denoiser(model)
        scheduler = cls(
            trained_betas=discrete_betas(model.sde, train_levels), num_train_timesteps=train_levels, **options
        )
        scheduler.set_timesteps((calls + 1) // 2 if second else calls)
        scheduler.set_begin_index(0)
        sigmas = scheduler.sigmas.double().tolist()
        y = _start(denoiser, x)
        x = y * (math.hypot(1, sigmas[0]) if second else 1.0) / math.hypot(1, denoiser.rho_max)
        for t, rho in zip(scheduler.timesteps, sigmas, strict=False):
            scale = 1.0 if second else math.hypot(1, rho)  # Heun's state is y, the others' is x of a VP process
            x = scheduler.step(denoiser(x * scale, rho)[1], t, x).prev_sample
        return x * (1.0 if second else math.hypot(1, sigmas[-1]))

    return run


def diffusers_solvers(diffusers: ModuleType, stochastic: bool) -> Iterator[Solver]:
    """Yield DPM-Solver++ 2M/3M, UniPC, DEIS and Heun, or SDE-DPM-Solver++ 2M."""
    spacing = {"karras": {"use_karras_sigmas": True}, "uniform": {}, "exponential": {"use_exponential_sigmas": True}}
    lu = {"lu": {"use_lu_lambdas": True}}
    multistep = (diffusers.DPMSolverMultistepScheduler, {"lower_order_final": True}, spacing | lu)
    if stochastic:
        multistep[1]["algorithm_type"] = "sde-dpmsolver++"
        families = {"SDE-DPM-Solver++": (*multistep, (2,), False)}
    else:
        families = {
            "DPM-Solver++": (*multistep, (2, 3), False),
            "UniPC": (diffusers.UniPCMultistepScheduler, {}, spacing, (2, 3), False),
            "DEIS": (diffusers.DEISMultistepScheduler, {}, spacing, (2, 3), False),
            "Heun": (diffusers.HeunDiscreteScheduler, {}, spacing, (None,), True),
        }
    for name, (cls, fixed, grids, orders, second) in families.items():
        for order in orders:
            for grid, options in grids.items():
                for levels in TRAIN_LEVELS:
                    settings = fixed | options | ({} if order is None else {"solver_order": order})
                    label = f"{'' if order is None else f'order {order}, '}{grid} levels, N={levels}"
                    yield Solver("diffusers", name, label, _diffusers(cls, settings, levels, second=second))


# ---- k-diffusion ----------------------------------------------------------------------------------------------------


def import_k_diffusion() -> ModuleType:
    """Import ``k_diffusion.sampling`` alone.

    The package's ``__init__`` imports what only its training needs. Its ``utils`` imports torchvision, to read images
    from files. Where no torchvision imports beside this torch, an empty module stands in for it meanwhile.
    """
    spec = util.find_spec("k_diffusion")
    if spec is None:
        raise ImportError("k-diffusion is not installed")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: sys.modules.get(name) for name in (*names, "k_diffusion")}
    stand_ins = {name: ModuleType(name) for name in names}
    stand_ins[names[1]].functional = stand_ins[names[2]]
    sys.modules.update(stand_ins, k_diffusion=package)
    try:
        return import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _k_diffusion(function, grid: str, rho_min: float, options: dict, *, second: bool = False):
    def run(model: Model, x: Tensor, calls: int) -> Tensor:
        denoiser = Denoiser(model)
        n = (calls + 1) // 2 if second else calls
        sigmas = torch.cat([_levels(denoiser.rho_max, rho_min, n, grid), torch.zeros(1, dtype=torch.float64)])
        return function(
            lambda y, sigma: denoiser(y, sigma[0].item())[0], _start(denoiser, x), sigmas, disable=True, **options
        )

    return run


def k_diffusion_solvers(sampling: ModuleType, stochastic: bool) -> Iterator[Solver]:
    """Yield the deterministic or the stochastic solvers of k-diffusion.

    These are dpmpp_2m, heun and lms; or dpmpp_2m_sde, dpmpp_3m_sde and euler_ancestral with independent noise.
    """

    class Noise:
        """One normal draw per step.

        With fixed steps this has the same law as the Brownian tree and is far cheaper.
        """

        like: Tensor

        def __call__(self, sigma, sigma_next):
            return torch.randn_like(self.like)

    def noisy(function):
        def call(model, x, sigmas, **options):
            noise = Noise()
            noise.like = x
            return function(model, x, sigmas, noise_sampler=noise, **options)

        return call

    if stochastic:
        functions = {
            name: (noisy(getattr(sampling, f"sample_{name}")), False)
            for name in ("dpmpp_2m_sde", "dpmpp_3m_sde", "euler_ancestral")
        }
    else:
        functions = {
            name: (getattr(sampling, f"sample_{name}"), name == "heun") for name in ("dpmpp_2m", "heun", "lms")
        }
    for name, (function, second) in functions.items():
        for grid in ("karras", "exponential"):
            for rho_min in RHO_MIN_SDE if stochastic else RHO_MIN:
                run = _k_diffusion(function, grid, rho_min, {}, second=second)
                yield Solver("k-diffusion", name, f"{grid} levels, sigma_min={rho_min:g}", run)


# ---- azula ----------------------------------------------------------------------------------------------------------


def _azula(cls, grid: str, rho_min: float, options: dict, *, per_step: int = 1):
    def run(model: Model, x: Tensor, calls: int) -> Tensor:
        from azula.denoise import Denoiser as Base
        from azula.denoise import DiracPosterior

        denoiser = Denoiser(model)

        class Exact(Base):
            def schedule(self, t):
                rho = _rho(denoiser, grid, rho_min, t)
                return 1 / torch.hypot(torch.ones_like(rho), rho), rho / torch.hypot(torch.ones_like(rho), rho)

            def forward(self, x_t, t):
                rho = _rho(denoiser, grid, rho_min, t).item()
                return DiracPosterior(denoiser(x_t * math.hypot(1, rho), rho)[0])

        sampler = cls(Exact(), steps=calls // per_step, silent=True, dtype=torch.float64, **options)
        x = sampler(_start(denoiser, x) / math.hypot(1, denoiser.rho_max))
        return x * math.hypot(1, rho_min)

    return run


def _rho(denoiser: Denoiser, grid: str, rho_min: float, t: Tensor) -> Tensor:
    if grid == "karras":
        return (rho_min ** (1 / 7) + t * (denoiser.rho_max ** (1 / 7) - rho_min ** (1 / 7))) ** 7
    return torch.exp(math.log(rho_min) + t * math.log(denoiser.rho_max / rho_min))


def azula_solvers(azula: ModuleType, stochastic: bool) -> Iterator[Solver]:
    """Yield the deterministic or the stochastic solvers of azula.

    These are zAB, vAB, xEAB, zEAB and REAB of orders 2 and 3, and Heun; or DDPM and Ito, whose end is at sigma_min.
    """
    sample = azula.sample
    if stochastic:
        families = [("DDPM", sample.DDPMSampler, {}, 1), ("Ito", sample.ItoSampler, {}, 1)]
    else:
        multistep = ("zAB", "vAB", "xEAB", "zEAB", "REAB")
        families = [(name, getattr(sample, f"{name}Sampler"), {"order": k}, 1) for name in multistep for k in (2, 3)]
        families.append(("Heun", sample.HeunSampler, {}, 2))
    for name, cls, options, per_step in families:
        for grid in ("karras", "exponential"):
            for rho_min in RHO_MIN_SDE if stochastic else RHO_MIN:
                label = "".join(f"{k} {v}, " for k, v in options.items()) + f"{grid} levels, sigma_min={rho_min:g}"
                yield Solver("azula", name, label, _azula(cls, grid, rho_min, options, per_step=per_step))


# ---- all of them ----------------------------------------------------------------------------------------------------

PEERS = {
    "diffusers": (lambda: import_module("diffusers"), diffusers_solvers),
    "k-diffusion": (import_k_diffusion, k_diffusion_solvers),
    "azula": (lambda: import_module("azula"), azula_solvers),
}


def load(packages: list[str]) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Return ``({package: module}, {missing package: reason})``.

    Raises:
        UnknownNameError: a name is not a peer.
    """
    for package in packages:
        if package not in PEERS:
            raise UnknownNameError("--peers", package, PEERS)
    return common.load_peers({package: PEERS[package][0] for package in packages})


def solvers(modules: dict[str, ModuleType], stochastic: bool) -> list[Solver]:
    """Yield every setting of every solver of the loaded peers."""
    return [solver for package, module in modules.items() for solver in PEERS[package][1](module, stochastic)]
