"""Steps per second and memory of the trainer, as ratios to a plain loop.

The hand-written loop does what the trainer does with the same network: batch, times, noise, loss, clipping, fused Adam
and one average of the weights. It keeps no records and checks nothing. Both advance in turn by the same number of
steps. The ratio is the median over the rounds of the loop's time over the trainer's. Low precision and compiled
networks are timed in the same way against float32. On a CPU with one thread the time is that of the process, so that
other work on the machine does not count; elsewhere it is wall-clock time. Memory is the peak of a separate process:
allocated by torch on CUDA, resident on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common  # first: it sets how threads wait

# isort: split
import torch
from torch import nn

from scoresde import VPSDE, Data, DenoisingScoreMatching, ScoreModel, Trainer, TrainerConfig, load_data
from scoresde.errors import UnknownNameError
from scoresde.nets import PRESETS, build_net

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_SECONDS = 60
NETS = {
    "MLP, 2-D points": {"name": "mlp", "shape": [2], "width": 128, "blocks": 3},
    "U-Net, 8x8 digits": {"name": "unet", "shape": [1, 8, 8]},
}
BATCHES = {"MLP, 2-D points": 512, "U-Net, 8x8 digits": 64}
ON_CUDA = ("cifar10-ddpm",)  # presets that are measured there by default
VARIANTS = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "channels last": {"channels_last": True},
    "bfloat16, channels last": {"precision": "bfloat16", "channels_last": True},
    "compiled": {"compile": True},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
    "float32, 4 pieces": {"accumulate": 4},
}


def network(name: str) -> tuple[dict[str, Any], int]:
    """Return a network's options for ``build_net``, and its batch size.

    The name is one of ``NETS`` or a preset's.

    Raises:
        UnknownNameError: the name is neither.
    """
    if name in NETS:
        return NETS[name], BATCHES[name]
    if name not in PRESETS:
        raise UnknownNameError("--nets", name, (*NETS, *PRESETS))
    return PRESETS[name].net, PRESETS[name].run.get("train", {}).get("batch_size", 64)


def data_for(name: str) -> Data:
    """Return the training data.

    A preset is trained on random bytes, which cost as much as pictures.
    """
    if name in NETS:
        return load_data("digits" if "digits" in name else "two-moons")[0]
    raw = torch.randint(256, (512, *PRESETS[name].net["shape"]), generator=torch.Generator().manual_seed(0))
    return Data("random bytes", raw, num_values=256)


def by_hand(name: str, data: Data, steps: int, device: torch.device) -> Iterator[None]:
    """Run a plain loop; yield every ``steps`` steps."""
    torch.manual_seed(0)
    config, B = network(name)
    net = build_net(config, seed=0).to(device)
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.99), fused=True)
    average = [p.detach().clone() for p in parameters]
    sde, n = VPSDE(), data.raw[0].numel()
    for step in itertools.count(1):
        raw = data.raw[torch.randint(len(data), (B,))]
        x0 = data.scaling.to_model(raw).to(device, non_blocking=True)
        t = 1e-4 + (1 - 1e-4) * ((torch.rand(1, device=device) + torch.arange(B, device=device) / B) % 1)
        log_alpha = -0.25 * t**2 * (sde.schedule.beta_max - sde.schedule.beta_min) - 0.5 * t * sde.schedule.beta_min
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        eps = torch.randn_like(x0)
        shape = (B, *(1,) * (x0.ndim - 1))
        x_t = alpha.reshape(shape) * x0 + sigma.reshape(shape) * eps
        loss = (eps - net(x_t, t)).square().flatten(1).sum(1).mean() / n
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-3)
        if step % steps == 0:
            yield


def by_trainer(name: str, data: Data, steps: int, device: torch.device, **settings) -> Iterator[None]:
    """Run the trainer; yield with each record, one every ``steps`` steps."""
    net, B = network(name)
    model = ScoreModel(build_net(net, seed=0), VPSDE(), scaling=data.scaling)
    config = TrainerConfig(
        steps=10**9, batch_size=B, lr=1e-4, warmup=0, log_every=steps, device=device.type, **settings
    )
    for _ in Trainer(model, DenoisingScoreMatching(), config).records(data):
        yield


def race(runners: dict[str, Iterator[None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each runner in each round.

    The runners take turns in changing order.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        next(runner)  # warm-up, and compilation
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    for i in range(rounds):
        for name in list(runners)[:: 1 if i % 2 else -1]:
            begun = clock()
            next(runners[name])
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(clock() - begun)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Return the speed over that of ``base``: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(times[name], times[base], strict=True))


def memory(name: str, variant: str, device: torch.device) -> float:
    """Return the peak MiB of a few steps in a separate process."""
    command = [sys.executable, "-m", "benchmarks.training", "--memory-of", name, variant, "--device", device.type]
    root = Path(__file__).resolve().parents[1]
    return json.loads(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)


def peak(name: str, variant: str, device: torch.device) -> float:
    """Return the peak MiB of this process after a few steps."""
    runner = by_trainer(name, data_for(name), 3, device, **VARIANTS[variant])
    next(runner)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def figure_of(rows: list[dict]) -> Figure:
    """Draw the speed over the base's, a bar per variant and network.

    The bases themselves are left out.
    """
    from matplotlib.figure import Figure

    first = next((row["variant"] for row in rows if row["part"] == "variants"), None)
    rows = [row for row in rows if row["variant"] not in ("by hand", first)]
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['network']}: {row['variant']}" for row in rows][::-1]
    colours = ["C0" if row["part"] == "beside a loop by hand" else "0.65" for row in rows][::-1]
    axes.barh(names, [row["ratio"] for row in rows][::-1], color=colours)
    axes.axvline(1, color="0.3", lw=1)
    axes.set(xlabel="speed over the loop by hand (blue), over float32 (grey)")
    axes.tick_params(labelsize=8)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Run, and write the record."""
    parser = common.parser("training", __doc__, quick="fewer and shorter rounds, nothing compiled")
    parser.add_argument("--rounds", type=int, help="rounds of which the median is taken (default 21; quick 5)")
    parser.add_argument("--steps", type=int, help="of a round (default 20; quick 5)")
    parser.add_argument("--nets", help="with ; between; presets too (default: two small ones, on CUDA cifar10-ddpm)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--variants", default=";".join(VARIANTS), help="with ; between, or none")
    parser.add_argument("--memory-of", nargs=2, metavar=("NET", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cuda = options.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda or options.device == "cuda" else "cpu")
    if options.memory_of:
        print(json.dumps(peak(*options.memory_of, device)))
        return
    rounds, steps = options.rounds or (5 if options.quick else 21), options.steps or (5 if options.quick else 20)
    names = options.nets.split(";") if options.nets else [*NETS, *(ON_CUDA if device.type == "cuda" else ())]
    for name in names:
        network(name)
    variants = [] if options.variants == "none" else options.variants.split(";")
    for variant in variants:
        if variant not in VARIANTS:
            raise UnknownNameError("--variants", variant, VARIANTS)
    if options.quick:
        variants = [variant for variant in variants if "compiled" not in variant]
    seeds = "0 for networks and loops"
    record = common.Record(
        "training", options, "Training: steps per second and memory", arguments=arguments, seeds=seeds
    )
    record.notes["device"] = torch.cuda.get_device_name() if cuda else "CPU"
    record.notes["rounds"] = f"medians of {rounds} rounds of {steps} steps"
    rows, precision = [], []
    for name in names:
        data = data_for(name)
        hand, ours = by_hand(name, data, steps, device), by_trainer(name, data, steps, device)
        times = race({"by hand": hand, "trainer": ours}, rounds, device)
        what = {"network": name, "batch": network(name)[1]}
        rows += [
            {
                "part": "beside a loop by hand",
                **what,
                "variant": variant,
                "steps_per_s": steps / statistics.median(times[variant]),
                "ratio": ratio(times, variant, "by hand"),
            }
            for variant in times
        ]
        runners = {v: by_trainer(name, data, steps, device, **VARIANTS[v]) for v in variants}
        times = race(runners, rounds, device) if runners else {}
        precision += [
            {
                "part": "variants",
                **what,
                "variant": variant,
                "steps_per_s": steps / statistics.median(times[variant]),
                "ratio": ratio(times, variant, variants[0]),
                "peak_mib": memory(name, variant, device),
            }
            for variant in variants
        ]
    lines = [
        [r["network"], str(r["batch"]), r["variant"], f"{r['steps_per_s']:.1f}", f"{r['ratio']:.3f}"] for r in rows
    ]
    text = ["## The trainer and a loop by hand"]
    text.append(common.markdown(["network", "batch", "", "steps/s", "speed / by hand"], lines))
    if precision:
        lines = [
            [r["network"], r["variant"], f"{r['steps_per_s']:.1f}", f"{r['ratio']:.2f}", f"{r['peak_mib']:.0f}"]
            for r in precision
        ]
        text.append("## Precision, compilation, batches in pieces")
        header = ["network", "variant", "steps/s", f"speed / {variants[0]}", "peak, MiB"]
        text.append(common.markdown(header, lines))
    record.write(rows + precision, "\n\n".join(text), figure_of(rows + precision))


if __name__ == "__main__":
    main()
