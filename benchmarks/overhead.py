"""Overhead per network call of the samplers of scoresde and its peers.

The network takes a few microseconds. Every sampler runs whole, with its levels and coefficients, at two lengths.
Samplers are interleaved, and the figures are medians over the rounds. The columns are:

- "a call": time of the long run divided by its calls;
- "overhead": the same minus the time of one network call;
- "set-up": time that a run without calls would take.

The bare loop x <- a x + b net(x, t) is the lower bound.

The share on a real network is the overhead on a trivial network of the same shape, divided by the real network's call.
It is not the difference of two long runs, which would be smaller than their noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from benchmarks import common, peers  # first: it sets how threads wait

# isort: split
import torch
from torch import Tensor, nn

from scoresde import DDIM, VPSDE, DPMSolver, Langevin, PredictorCorrector, ReverseDiffusion, ScoreModel, sample
from scoresde.nets import build_net

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_SECONDS = 20
LENGTHS = (20, 100)  # calls of a short and of a long run
Runner = Callable[[int], object]


class Tiny(nn.Module):
    """A network of a few microseconds, net(x, t) = w x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, time_input: Tensor) -> Tensor:
        return self.weight * x


def bare(net: nn.Module, x: Tensor) -> dict[tuple[str, str], Runner]:
    """Return runners of the network alone and of the loop inside any sampler."""
    time_input = torch.ones(len(x))

    def network(calls: int) -> None:
        for _ in range(calls):
            net(x, time_input)

    def loop(calls: int) -> Tensor:
        y = x
        for a in [0.99] * calls:
            y = a * y + 0.01 * net(y, time_input)
        return y

    return {("", "the network alone"): network, ("", "bare loop"): loop}


def ours(net: nn.Module, x: Tensor) -> dict[tuple[str, str], Runner]:
    """Return runners of scoresde's samplers.

    DDIM's last step and PC's corrector are calls too.
    """
    model, generator = ScoreModel(net, VPSDE()), torch.Generator().manual_seed(0)
    pc = PredictorCorrector(ReverseDiffusion(), Langevin())
    table = {
        "DDIM()": (DDIM(), lambda calls: calls - 1),
        "DPMSolver()": (DPMSolver(), lambda calls: calls),
        "DPMSolver(order=2, corrector=False)": (DPMSolver(order=2, corrector=False), lambda calls: calls),
        "DPMSolver(stochastic=True)": (DPMSolver(stochastic=True), lambda calls: calls),
        "PredictorCorrector()": (PredictorCorrector(), lambda calls: calls - 1),
        "PredictorCorrector(ReverseDiffusion(), Langevin())": (pc, lambda calls: (calls - 1) // 2),
    }

    def runner(sampler, steps) -> Runner:
        return lambda calls: sample(model, x.shape, sampler, steps(calls), start=x, generator=generator)

    return {("scoresde", name): runner(*entry) for name, entry in table.items()}


def of_diffusers(diffusers: ModuleType, net: nn.Module, x: Tensor) -> dict[tuple[str, str], Runner]:
    """Return runners of the schedulers of diffusers.

    ``set_timesteps`` is part of a run.
    """
    dpm = diffusers.DPMSolverMultistepScheduler
    table = {
        "DDIM": diffusers.DDIMScheduler(),
        "DPM-Solver++ 2M": dpm(solver_order=2),
        "SDE-DPM-Solver++ 2M": dpm(solver_order=2, algorithm_type="sde-dpmsolver++"),
        "UniPC": diffusers.UniPCMultistepScheduler(),
    }

    def runner(scheduler) -> Runner:
        def run(calls: int) -> Tensor:
            scheduler.set_timesteps(calls)
            y = x
            for t in scheduler.timesteps:
                y = scheduler.step(net(y, t), t, y).prev_sample
            return y

        return run

    return {("diffusers", name): runner(scheduler) for name, scheduler in table.items()}


def of_k_diffusion(sampling: ModuleType, net: nn.Module, x: Tensor) -> dict[tuple[str, str], Runner]:
    """Return runners of k-diffusion's functions.

    dpmpp_2m_sde runs with a Brownian tree and with independent noise.
    """

    def denoise(y: Tensor, sigma: Tensor) -> Tensor:
        return y - sigma[:, None] * net(y / (sigma[:, None] ** 2 + 1).sqrt(), sigma)

    table = {
        "dpmpp_2m": (sampling.sample_dpmpp_2m, {}),
        "lms": (sampling.sample_lms, {}),
        "dpmpp_2m_sde, Brownian tree": (sampling.sample_dpmpp_2m_sde, {}),
        "dpmpp_2m_sde, independent noise": (
            sampling.sample_dpmpp_2m_sde,
            {"noise_sampler": lambda sigma, sigma_next: torch.randn_like(x)},
        ),
    }

    def runner(function, options) -> Runner:
        return lambda calls: function(
            denoise, x * 150, sampling.get_sigmas_karras(calls, 0.01, 150.0), disable=True, **options
        )

    return {("k-diffusion", name): runner(*entry) for name, entry in table.items()}


def of_azula(azula: ModuleType, net: nn.Module, x: Tensor) -> dict[tuple[str, str], Runner]:
    """Return runners of azula's samplers, on a denoiser in its style."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule

    class Denoise(Denoiser):
        def __init__(self):
            super().__init__()
            self.net, self.schedule = net, VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
            alpha, sigma = self.schedule(t)
            return DiracPosterior((x_t - sigma * self.net(x_t, t)) / alpha)

    denoiser = Denoise()
    table = {
        "DDIM": (azula.sample.DDIMSampler, {}),
        "xEAB": (azula.sample.xEABSampler, {}),
        "DDPM": (azula.sample.DDPMSampler, {}),
    }

    def runner(cls, options) -> Runner:
        return lambda calls: cls(denoiser, steps=calls, silent=True, **options)(x)

    return {("azula", name): runner(*entry) for name, entry in table.items()}


RUNNERS = {"diffusers": of_diffusers, "k-diffusion": of_k_diffusion, "azula": of_azula}


def measure(runners: dict[tuple[str, str], Runner], rounds: int) -> list[dict]:
    """Measure the runners, in microseconds.

    In each round every runner runs at both lengths, in turn.
    """
    short, long = LENGTHS
    for run in runners.values():
        run(short)
    times: dict = {(key, n): [] for key in runners for n in LENGTHS}
    for _ in range(rounds):
        for key, run in runners.items():
            for n in LENGTHS:
                begun = time.perf_counter()
                run(n)
                times[key, n].append(1e6 * (time.perf_counter() - begun))
    median = {key: statistics.median(values) for key, values in times.items()}
    network = median[("", "the network alone"), long] / long
    return [
        {
            "package": key[0],
            "sampler": key[1],
            "a_call": median[key, long] / long,
            "overhead": median[key, long] / long - network,
            "set_up": max(0.0, median[key, short] - short * (median[key, long] - median[key, short]) / (long - short)),
        }
        for key in runners
    ]


def real_network(batch: int, rounds: int) -> tuple[str, list[dict]]:
    """Measure our samplers' share of the time on a U-Net for 8x8 images.

    Returns:
        ``(title of the table, rows)``.
    """
    net = build_net({"name": "unet", "shape": [1, 8, 8]}, seed=0).eval()
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    time_input = torch.full((batch,), 0.5)
    net(x, time_input)
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        net(x, time_input)
        times.append(1e6 * (time.perf_counter() - begun))
    call = statistics.median(times)
    tiny = Tiny()
    rows = measure(bare(tiny, x) | ours(tiny, x), rounds)
    for row in rows:
        row["share_of_unet"] = row["overhead"] / (call + row["overhead"])
    size = sum(p.numel() for p in net.parameters())
    return f"U-Net of {size} parameters, batch {batch} x 1 x 8 x 8: {call / 1000:.1f} ms a call", rows[1:]


def figure_of(rows: list[dict]) -> Figure:
    """Draw the overhead as bars, one a sampler, ours in colour."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["sampler"] != "the network alone"][::-1]
    figure = Figure(figsize=(7.5, 1 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['package']}: {row['sampler']}".removeprefix(": ") for row in rows]
    colours = [{"scoresde": "C0", "": "0.3"}.get(row["package"], "0.65") for row in rows]
    axes.barh(names, [row["overhead"] for row in rows], color=colours)
    axes.set(xscale="log", xlabel="overhead, microseconds a call")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, axis="x")
    return figure


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the record."""
    parser = common.parser("overhead", __doc__, quick="fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds of which the median is taken (default 31; quick 7)")
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="packages, or none")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (7 if options.quick else 31)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    modules, left_out = peers.load([] if options.peers == "none" else options.peers.split(","))
    record = common.Record(
        "overhead",
        options,
        "Overhead per network call",
        arguments=arguments,
        seeds="0 for inputs, weights and noise",
        peers=modules,
        left_out=left_out,
    )
    net, x = Tiny(), torch.randn(16, 2)
    runners = bare(net, x) | ours(net, x)
    for package, module in modules.items():
        runners |= RUNNERS[package](module, net, x)
    rows = measure(runners, rounds)
    title, shares = real_network(64, rounds)
    lines = [
        [r["package"], r["sampler"], f"{r['a_call']:.1f}", f"{r['overhead']:.1f}", f"{r['set_up']:.0f}"] for r in rows
    ]
    lines += [[package, reason] for package, reason in left_out.items()]
    share_lines = [[r["sampler"], f"{r['overhead']:.1f}", f"{100 * r['share_of_unet']:.2f} %"] for r in shares]
    text = [
        f"## 16 x 2, a network of one multiplication\n\nMicroseconds, medians of {rounds} rounds.",
        common.markdown(["package", "sampler", "a call", "overhead", "set-up, a run"], lines),
        f"## {title}",
        common.markdown(["sampler", "overhead, microseconds", "share of the time"], share_lines),
    ]
    measured = [{"part": "16 x 2", **row} for row in rows] + [{"part": "U-Net", **row} for row in shares]
    record.write(measured, "\n\n".join(text), figure_of(rows))


if __name__ == "__main__":
    main()
