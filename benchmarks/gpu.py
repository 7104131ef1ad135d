"""Qualification of a device: correctness, syncs, speed and memory.

The parts are:

- ``correctness``: every sampler, likelihood method, objective, network and operator on the device against the CPU. Both
  see the same noise, in float64 and float32, at the tolerances of ``TOLERANCES``. Then the device against itself: with
  equal seeds two runs must agree bit for bit.
- ``syncs``: each sampler's steps with torch's sync debug mode at "error", and the peak memory of a run over that of one
  call of the network. Both need CUDA.
- ``speed``: the trainer against a hand-written loop, and the samplers' overhead a call against peers.
- ``networks``: the first steps of presets: steps/s, images/s, and the share of the fastest matrix product.

On a CPU the same code runs with small sizes, so that it is tested where there is no GPU. The exit code is 1 if an entry
of the first two parts fails.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks import common, overhead, peers, training  # first: it sets how threads wait

# isort: split
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import scoresde as S
from scoresde.nets import build_net

QUICK_SECONDS = 60
PARTS = ("correctness", "syncs", "speed", "networks")
#: largest difference from the CPU, over the largest entry, by dtype: of one call, and of a whole run
TOLERANCES = {torch.float64: (1e-11, 1e-8), torch.float32: (1e-4, 5e-3)}
FAST_NETWORKS = ("cifar10-ddpm", "cifar10-ddpm++")
WHOLE_RUNS = ("sampler", "likelihood")
STATES = 12  # copies of the state that a sampler may hold beside the network's own memory


# ---- what is run ----------------------------------------------------------------------------------------------------


def mixture() -> S.GaussianMixture:
    """Return eight Gaussians in the plane."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(8, 2, generator=g, dtype=torch.float64)
    return S.GaussianMixture(means, (0.1 + 0.3 * torch.rand(8, 2, generator=g, dtype=torch.float64)) ** 2)


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """Move the weights of a network, whose output is zero at first."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=g))
    return net


def score_model(learned: bool = False) -> S.ScoreModel:
    """Return a model with a small U-Net whose output is not zero."""
    torch.manual_seed(0)
    options = {"out_channels": 2} if learned else {}
    net = S.UNet((1, 8, 8), channels=16, multipliers=(1, 2), blocks=1, **options)
    predicts = "noise" if learned else "edm"
    return S.ScoreModel(shaken(net), S.DDPM.linear(50) if learned else S.VPSDE(), predicts, learned_variance=learned)


def samplers() -> dict[str, S.sampling.Sampler]:
    """Return every kind of sampler."""
    return {
        "DDIM": S.DDIM(),
        "DDIM(1.0)": S.DDIM(1.0),
        "DPMSolver": S.DPMSolver(),
        "DPMSolver(stochastic)": S.DPMSolver(stochastic=True),
        "SingleStep(2)": S.SingleStep(2),
        "Heun": S.Heun(),
        "Ancestral": S.PredictorCorrector(S.Ancestral()),
        "EulerMaruyama": S.PredictorCorrector(S.EulerMaruyama()),
        "ReverseDiffusion, Langevin": S.PredictorCorrector(S.ReverseDiffusion(), S.Langevin()),
        "Resampling": S.sampling.Resampling(2),
        "ProbabilityFlow(rk4)": S.ProbabilityFlow("rk4"),
        "ProbabilityFlow(dopri5)": S.ProbabilityFlow("dopri5", rtol=1e-5, atol=1e-5),
        "AdaptiveSDE": S.AdaptiveSDE(rtol=0.05, atol=0.01),
    }


ADAPTIVE = ("ProbabilityFlow(dopri5)", "AdaptiveSDE")  # their steps are chosen from values, on the host
Case = Callable[[torch.device, torch.dtype], Tensor]
Cases = dict[tuple[str, str], Case]


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampled(steps: int) -> Cases:
    """Return runs of every sampler from one start."""
    data, start = mixture(), _noise(64, 2, seed=1)

    def case(sampler: S.sampling.Sampler) -> Case:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            model, x = data.model(S.VPSDE()).to(device), start.to(device, dtype)
            return S.sample(model, x.shape, sampler, steps, start=x, generator=generator_on(device))

        return run

    return {("sampler", name): case(sampler) for name, sampler in samplers().items()}


def scored(steps: int) -> Cases:
    """Return likelihoods by every method and trace."""
    data = mixture()
    points = data.sample(16, torch.Generator().manual_seed(2))

    def case(method: str, divergence: Any) -> Case:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            model, x = data.model(S.VPSDE()).to(device), points.to(device, dtype)
            options = {"rtol": 1e-5, "atol": 1e-5} if method == "dopri5" else {"steps": steps}
            g = generator_on(device)
            return S.log_likelihood(model, x, divergence, method=method, generator=g, **options).log_prob

        return run

    divergences = {"exact": S.Exact(), "probes": S.Hutchinson(), "hutch++": S.HutchPP(1, 1)}
    return {
        ("likelihood", f"{method}, {name}"): case(method, divergence)
        for method in ("multistep", "rk4", "heun", "dopri5")
        for name, divergence in divergences.items()
    }


def lost() -> Cases:
    """Return losses and gradients of the objectives."""
    images = 0.5 * _noise(4, 1, 8, 8, seed=3)

    def case(objective: Any, learned: bool) -> Case:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            model = score_model(learned).to(device, dtype)
            loss = objective(model, images.to(device, dtype), generator=generator_on(device))
            gradients = torch.autograd.grad(loss.mean(), list(model.parameters()), allow_unused=True)
            return torch.cat([loss.detach(), *(one.flatten() for one in gradients if one is not None)])

        return run

    objectives: dict[str, tuple[Any, bool]] = {
        "denoising": (S.DenoisingScoreMatching(), False),
        "sliced": (S.SlicedScoreMatching(), False),
        "finite differences": (S.SlicedScoreMatching(form="finite-difference"), False),
        "implicit": (S.ImplicitScoreMatching(), False),
        "hybrid": (S.HybridVLB(), True),
    }
    return {("objective", name): case(*entry) for name, entry in objectives.items()}


def called() -> Cases:
    """Return outputs of every network, and gradients."""
    images = _noise(4, 1, 8, 8, seed=3)

    def case(options: dict[str, Any]) -> Case:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            net = shaken(build_net(options, seed=0)).to(device, dtype)
            x = images.to(device, dtype).requires_grad_()
            out = net(x, torch.linspace(0.1, 0.9, len(x), device=device, dtype=dtype))
            (gradient,) = torch.autograd.grad(out.square().sum(), x)
            return torch.stack([out.detach(), gradient])

        return run

    networks: dict[str, dict[str, Any]] = {
        "mlp": {"name": "mlp", "width": 32, "blocks": 2},
        "unet": {"name": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1},
        "dit": {"name": "dit", "width": 32, "blocks": 2},
    }
    return {("network", name): case({"shape": [1, 8, 8], **options}) for name, options in networks.items()}


def observed() -> Cases:
    """Return every operator and its adjoint on data."""
    images, colours, points = _noise(4, 1, 8, 8, seed=3), _noise(2, 3, 8, 8, seed=4), _noise(16, 2, seed=5)

    def case(operator: S.guidance.LinearOperator, x: Tensor) -> Case:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            there = copy.deepcopy(operator).to(device)
            y = there(x.to(device, dtype))
            return torch.cat([y.flatten(), there.At(y).flatten()])

        return run

    operators: dict[str, tuple[S.guidance.LinearOperator, Tensor]] = {
        "inpainting": (S.guidance.Inpainting(torch.arange(8)[:, None] < 4, (1, 8, 8)), images),
        "downsample": (S.guidance.Downsample((1, 8, 8), 2), images),
        "blur": (S.guidance.Blur((1, 8, 8), S.guidance.gaussian_kernel(1.0)), images),
        "colorize": (S.guidance.Colorize((3, 8, 8)), colours),
        "matrix": (S.guidance.Matrix(torch.tensor([[1.0, 0.5]])), points),
        "fourier": (S.guidance.PartialFourier(S.guidance.radial_mask((8, 8), 4), (1, 8, 8)), images),
    }
    return {("operator", name): case(*entry) for name, entry in operators.items()}


# ---- correctness ----------------------------------------------------------------------------------------------------


def generator_on(device: torch.device) -> torch.Generator:
    """Return a seeded generator of the device."""
    return torch.Generator(device).manual_seed(0)


class HostNoise(TorchFunctionMode):
    """A mode that draws on the CPU, so that devices see equal noise."""

    draws = (torch.randn, torch.rand, torch.randint)
    like = ((torch.randn_like, torch.randn), (torch.rand_like, torch.rand))

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        for like, draw in self.like:
            if func is like:
                made = draw(args[0].shape, generator=self.generator, dtype=torch.float64)
                return made.to(args[0].device, kwargs.get("dtype") or args[0].dtype)
        if func not in self.draws:
            return func(*args, **kwargs)
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        kwargs["generator"] = self.generator
        if func is torch.randint:
            return func(*args, **kwargs).to(device, dtype or torch.int64)
        return func(*args, dtype=torch.float64, **kwargs).to(device, dtype or torch.get_default_dtype())


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, by reproducible algorithms."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before[1:]


def check(device: torch.device, steps: int) -> list[dict[str, Any]]:
    """Return the difference from the CPU, and whether two runs agree."""
    rows = []
    with full_precision():
        for (kind, name), case in (sampled(steps) | scored(steps) | lost() | called() | observed()).items():
            whole = kind in WHOLE_RUNS
            for dtype, tolerances in TOLERANCES.items():
                row: dict[str, Any] = {"part": "correctness", "kind": kind, "name": name, "dtype": str(dtype)[6:]}
                try:
                    with HostNoise():
                        there = case(device, dtype).cpu().double()
                    with HostNoise():
                        here = case(torch.device("cpu"), dtype).double()
                    one, two = case(device, dtype), case(device, dtype)
                    difference = ((there - here).abs().max() / here.abs().max()).item()
                    row |= {
                        "difference": difference,
                        "tolerance": tolerances[whole],
                        "repeats": bool(torch.equal(one, two)),
                        "ok": difference <= tolerances[whole] and bool(torch.equal(one, two)),
                    }
                except Exception as error:  # a device may fail in any way; the table says how
                    row |= {"ok": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
                rows.append(row)
    return rows


# ---- syncs and memory -----------------------------------------------------------------------------------------------


def watch(device: torch.device, steps: int) -> list[dict[str, Any]]:
    """Return whether a sampler's steps stall, and its peak memory."""
    cuda = device.type == "cuda"
    model = score_model().to(device)
    x = torch.randn(64, 1, 8, 8, generator=generator_on(device), device=device)

    def peak(run: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()

    def network() -> Tensor:
        with torch.no_grad():
            return model(x, 0.5).x0

    rows = []
    for name, sampler in samplers().items():
        if name in ADAPTIVE:
            continue

        def run(sampler: S.sampling.Sampler = sampler, watched: bool = False) -> Tensor:
            def between(state: S.sampling.State) -> None:
                # from the first step to the last but one: what comes before and after may look at values
                torch.cuda.set_sync_debug_mode("error" if 1 <= state.step < state.steps - 1 else "default")

            return S.sample(
                model,
                x.shape,
                sampler,
                steps,
                start=x,
                generator=generator_on(device),
                callback=between if watched else None,
            )

        row: dict[str, Any] = {"part": "syncs", "kind": "sampler", "name": name}
        try:
            run()
            if cuda:
                run(watched=True)
                bound = peak(network) + STATES * x.numel() * x.element_size()
                row |= {"peak_over_bound": peak(run) / bound}
            row |= {"ok": row.get("peak_over_bound", 0.0) <= 1.0, "measured": cuda}
        except Exception as error:
            row |= {"ok": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
        rows.append(row)
    return rows


# ---- speed ----------------------------------------------------------------------------------------------------------


def race_trainer(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Return the trainer's speed over a plain loop's, and its variants'."""
    cuda = device.type == "cuda"
    name = "U-Net, 8x8 digits" if quick or not cuda else "cifar10-ddpm"
    data, steps = training.data_for(name), 5 if quick else 20
    wanted = list(training.VARIANTS) if cuda and not quick else ["float32"]
    runners = {"by hand": training.by_hand(name, data, steps, device)}
    runners |= {
        variant: training.by_trainer(name, data, steps, device, **training.VARIANTS[variant]) for variant in wanted
    }
    times = training.race(runners, 3 if quick else 7, device)
    return [
        {
            "part": "speed",
            "kind": "trainer",
            "name": variant,
            "over": base,
            "ratio": training.ratio(times, variant, base),
        }
        for variant, base in [("float32", "by hand"), *((variant, "float32") for variant in wanted[1:])]
    ]


def measure_overhead(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Return the microseconds a call beside the network's."""
    net, x = overhead.Tiny().to(device), torch.randn(16, 3, 8, 8, device=device)
    runners = overhead.bare(net, x) | overhead.ours(net, x)
    modules, _ = peers.load(["diffusers", "k-diffusion"])
    for package, module in modules.items():
        runners |= overhead.RUNNERS[package](module, net, x)

    def waiting(run: overhead.Runner) -> overhead.Runner:
        def whole(calls: int) -> None:
            run(calls)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return whole

    rows = []
    usable = {}
    for key, run in runners.items():
        try:
            run(3)
            usable[key] = waiting(run)
        except Exception as error:  # a peer need not know the device
            rows.append(
                {"part": "speed", "kind": "overhead", "name": " ".join(key).strip(), "error": type(error).__name__}
            )
    measured = overhead.measure(usable, 3 if quick else 11)
    return rows + [
        {
            "part": "speed",
            "kind": "overhead",
            "name": f"{row['package']} {row['sampler']}".strip(),
            "microseconds": row["overhead"],
        }
        for row in measured
    ]


def peak_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the FLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(times[2:])


def train_networks(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Return steps/s, images/s and the share of the roof of presets."""
    cuda = device.type == "cuda"
    rows = []
    for name in FAST_NETWORKS if cuda else ("digits-unet",):
        options, batch = training.network(name)
        data = training.data_for(name)
        net = build_net(options, seed=0).to(device)
        one = torch.randn(1, *options["shape"], device=device)
        with FlopCounterMode(display=False) as counter:
            net(one, torch.full((1,), 0.5, device=device)).sum().backward()
        flops = counter.get_total_flops()
        del net
        for precision in ("float32", "bfloat16") if cuda else ("float32",):
            steps = 10 if quick or not cuda else 100
            runner = training.by_trainer(name, data, steps, device, precision=precision)
            next(runner)  # warm-up
            begun = time.perf_counter()
            next(runner)
            if cuda:
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - begun) / steps
            roof = peak_flops(device, getattr(torch, precision), 8192 if cuda else 1024)
            rows.append(
                {
                    "part": "networks",
                    "kind": "preset",
                    "name": f"{name}, {precision}",
                    "steps_per_second": 1 / seconds,
                    "images_per_second": batch / seconds,
                    "gflops_an_image": flops / 1e9,
                    "share_of_roof": flops * batch / seconds / roof,
                }
            )
    return rows


# ---- the page -------------------------------------------------------------------------------------------------------


def page(rows: list[dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    text = []
    for part in PARTS:
        own = [row for row in rows if row["part"] == part]
        if not own:
            continue
        columns = list(dict.fromkeys(key for row in own for key in row if key != "part"))
        lines = [f"## {part.capitalize()}", "", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
        for row in own:
            cells = (row.get(column, "") for column in columns)
            lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
        text.append("\n".join(lines))
    return "\n\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """Qualify a device; return 0 if all is right, else 1."""
    parser = common.parser("gpu", __doc__, quick="fewer steps, rounds and networks")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s, with commas between")
    options = parser.parse_args(arguments)
    device, parts = torch.device(options.device), common.names("--parts", options.parts, PARTS)
    torch.set_num_threads(options.threads)
    record = common.Record(
        "gpu",
        options,
        "Qualification of a device",
        arguments=arguments,
        seeds="0",
        peers=["diffusers"],
        variant=device.type,
    )
    record.notes["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    rows: list[dict[str, Any]] = []
    steps = 20 if options.quick else 40
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if "correctness" in parts:
            rows += check(device, steps)
        if "syncs" in parts:
            rows += watch(device, steps)
        if "speed" in parts:
            rows += race_trainer(device, options.quick) + measure_overhead(device, options.quick)
        if "networks" in parts:
            rows += train_networks(device, options.quick)
    failed = [row for row in rows if not row.get("ok", True)]
    checked = sum("ok" in row for row in rows)
    record.notes["checks"] = f"{checked - len(failed)} of {checked} right"
    record.write(rows, page(rows))
    record.path("json").write_text(json.dumps({"head": record.head(), "rows": rows}, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
