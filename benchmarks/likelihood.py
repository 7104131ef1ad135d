"""Error and cost of log p, ours and the peers'.

1. The exact trace on Gaussian mixtures: mean absolute error in nats against the known density, by network calls.
2. The estimated trace in 64 dimensions, at no more than 200 calls: bias, standard deviation over repeats, and the
   coverage of the 95 % interval for methods that state a standard error.
3. A U-Net trained on digits (``--run``, or trained first): time of an evaluation in forward passes, and peak memory
   above a forward's. Also the error of bits/dim against converged ones, by the total cost in forward passes.

Every forward pass is counted. Each peer's best setting within the budget is shown; ours is one setting. torchdiffeq's
recipe and flow_matching leave the ends of the path to the caller. They are shown with the usual ends. For the exact
trace they are also shown with our ends: t from 1e-9, and the prior matched to the data. Then only the integration errs.
The "score_sde recipe" is written here from the paper's description (Song et al. 2021, appendix D.2). It has one probe
for the whole path and t from 1e-5 to 1, with the prior N(0, I). scipy's RK45 solves the batch as one system at
tolerance 1e-5.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import common, peers  # first: it sets how threads wait
from benchmarks.quality import Counted, mixture

# isort: split
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import VPSDE, Exact, Hutchinson, Model, log_likelihood
from scoresde.errors import UnknownNameError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_SECONDS = 90
PARTS = ("exact", "estimated", "network")
TOLERANCES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 4e-6, 1e-6, 1e-7)
ESTIMATED_TOLERANCES = (1e-3, 1e-4, 1e-5)
STEPS = {"midpoint": (10, 20, 34, 50, 100), "rk4": (5, 10, 17, 26, 50)}


class Method(NamedTuple):
    """A way to compute log p.

    ``run(model, x, setting, generator)`` returns log p ``(B,)`` and its standard errors, or None for them.
    """

    package: str
    name: str
    settings: tuple
    run: Callable[[Model, Tensor, object, torch.Generator], tuple[Tensor, Tensor | None]]


class Ends(NamedTuple):
    """Where the flow begins, and whether the prior matches the data's moments."""

    name: str
    t_min: float
    matched: bool

    def prior(self, model: Model) -> Callable[[Tensor], Tensor]:
        """Return log p_1(z), ``(B,)``."""
        if not self.matched:
            return standard_normal
        last = model.sde.levels(torch.ones(1, dtype=torch.float64))[0]
        return lambda z: model.moments.log_prob(z, last.alpha, last.sigma)


ENDS = (Ends("t from 1e-5, N(0, I)", 1e-5, False), Ends("t from 1e-9, matched prior", 1e-9, True))


# ---- the peers ------------------------------------------------------------------------------------------------------


def velocity(model: Model, x: Tensor, t: float) -> Tensor:
    """Return dx/dt of the probability flow at one time.

    torchdiffeq steps over the end and interpolates. Past the end, the velocity is that of the end.
    """
    time_ = torch.tensor(min(t, 1.0), dtype=torch.float64)
    level = model.sde.levels(time_.reshape(1))[0]
    alpha_rate, sigma_rate = model.sde.log_alpha_rate(time_).item(), model.sde.log_sigma_rate(time_).item()
    estimate = model.estimate(x, level)
    return level.alpha * alpha_rate * estimate.x0 + level.sigma * sigma_rate * estimate.eps


def standard_normal(z: Tensor) -> Tensor:
    """Return log N(z; 0, I)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def score_sde_field(model: Model, x: Tensor, generator, *, exact: bool = False) -> Callable:
    """Return the right-hand side of the score_sde recipe.

    The batch and its log-determinants are one vector of NumPy.
    """
    probe = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    n = x[0].numel()

    def drift(y: Tensor, t: float) -> Tensor:
        time_ = torch.tensor(t, dtype=torch.float64)
        score = model(y, t).score
        return (model.sde.log_alpha_rate(time_) * y - 0.5 * model.sde.squared_diffusion(time_) * score).to(y)

    def field(t, state):
        y = torch.as_tensor(state[: x.numel()], dtype=x.dtype).reshape(x.shape)
        with torch.no_grad():
            d = drift(y, t)
        with torch.enable_grad():  # the recipe evaluates the drift once more for its divergence
            y = y.requires_grad_()
            again = drift(y, t)
            if exact:
                rows = [torch.autograd.grad(again.flatten(1)[:, i].sum(), y, retain_graph=True)[0] for i in range(n)]
                trace = sum(row.flatten(1)[:, i] for i, row in enumerate(rows))
            else:
                (row,) = torch.autograd.grad((again * probe).sum(), y)
                trace = (row * probe).flatten(1).sum(1)
        return torch.cat([d.flatten(), trace]).double().numpy()

    return field


def score_sde_start(x: Tensor):
    """Return the recipe's state at the data."""
    return torch.cat([x.flatten(), x.new_zeros(len(x))]).double().numpy()


def score_sde(model: Model, x: Tensor, tolerance: float, generator, *, exact: bool = False):
    """Compute log p by the recipe of the paper's code.

    ``exact`` makes its trace exact, which the paper's code does not offer.
    """
    from scipy.integrate import solve_ivp

    field = score_sde_field(model, x, generator, exact=exact)
    end = solve_ivp(field, (1e-5, 1.0), score_sde_start(x), rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
    end = torch.as_tensor(end)
    return standard_normal(end[: x.numel()].reshape(x.shape)) + end[x.numel() :], None


def torchdiffeq_exact(method: str, ends: Ends):
    """Return torchdiffeq's recipe for a continuous normalising flow.

    It integrates (x, log det) in t with the exact trace.
    """
    from torchdiffeq import odeint

    def run(model: Model, x: Tensor, tolerance: float, generator):
        def field(t, state):
            with torch.enable_grad():
                y = state[0].detach().requires_grad_()
                v = velocity(model, y, t.item())
                rows = [torch.autograd.grad(v[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(y.shape[1])]
            return v.detach(), sum(rows)

        times = torch.tensor([ends.t_min, 1.0], dtype=x.dtype)
        z, logdet = odeint(field, (x, x.new_zeros(len(x))), times, rtol=tolerance, atol=tolerance, method=method)
        return ends.prior(model)(z[-1]) + logdet[-1], None

    return run


def flow_matching_method(solver, wrapper, *, exact: bool, method: str, ends: Ends):
    """Return flow_matching's ODESolver on our velocity.

    Its time runs from the noise at 0 to the data at 1.
    """

    def run(model: Model, x: Tensor, setting, generator):
        t_min = ends.t_min
        torch.manual_seed(generator.initial_seed())  # its probe comes from torch's own generator

        class Velocity(wrapper):
            def forward(self, x, t, **extras):
                return -(1 - t_min) * velocity(model, x, 1 - (1 - t_min) * t.item())

        adaptive = method == "dopri5"
        options = {"rtol": setting, "atol": setting, "step_size": None} if adaptive else {"step_size": 1 / setting}
        default = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)  # its probe has the default dtype, and must have that of x
        try:
            _, log_p = solver(velocity_model=Velocity(model)).compute_likelihood(
                x_1=x.clone(), log_p0=ends.prior(model), method=method, exact_divergence=exact,
                time_grid=torch.tensor([1.0, 0.0], dtype=x.dtype), **options,
            )  # fmt: skip
        finally:
            torch.set_default_dtype(default)
        return log_p.detach(), None

    return run


def k_diffusion_method(sampling):
    """Return k-diffusion's log_likelihood on the exact denoiser.

    It runs from sigma = 1e-3 to the process's end.
    """

    def run(model: Model, x: Tensor, tolerance: float, generator):
        denoiser = peers.Denoiser(model)
        torch.manual_seed(generator.initial_seed())
        log_p, _ = sampling.log_likelihood(
            lambda y, sigma: denoiser(y, sigma[0].item())[0], x, 1e-3, denoiser.rho_max, atol=tolerance, rtol=tolerance
        )
        return log_p, None

    return run


PEERS = {
    "flow_matching": lambda: (import_module("flow_matching.solver"), import_module("flow_matching.utils")),
    "k-diffusion": peers.import_k_diffusion,
}


def load(packages: list[str]) -> tuple[dict[str, object], dict[str, str]]:
    """Return ``({package: what is used of it}, {missing package: reason})``.

    Raises:
        UnknownNameError: a name is not a peer.
    """
    for package in packages:
        if package not in PEERS:
            raise UnknownNameError("--peers", package, PEERS)
    return common.load_peers({package: PEERS[package] for package in packages})


def ours(exact: bool) -> list[Method]:
    """Return our default at several numbers of calls; nothing else is set."""
    divergence = Exact() if exact else Hutchinson()

    def run(model: Model, x: Tensor, calls: int, generator):
        result = log_likelihood(model, x, divergence, steps=calls, generator=generator)
        return result.log_prob, result.stderr

    settings = (20, 35, 50, 75, 104) if exact else (50, 100, 196)
    return [Method("scoresde", f"log_likelihood, {divergence!r}", settings, run)]


def methods(modules: dict[str, object], *, exact: bool) -> list[Method]:
    """Return our method first, then the recipes and the peers."""
    found = ours(exact)
    tolerances = TOLERANCES if exact else ESTIMATED_TOLERANCES
    if exact:
        for method in ("dopri5", "dopri8"):
            for ends in ENDS:
                name = f"its recipe, {method}, {ends.name}"
                found.append(Method("torchdiffeq", name, tolerances, torchdiffeq_exact(method, ends)))
    recipe = partial(score_sde, exact=exact)
    found.append(Method("score_sde recipe", "RK45" if exact else "RK45, one probe", tolerances, recipe))
    if "flow_matching" in modules:
        solver, utils = modules["flow_matching"]
        for method in ("dopri5", *STEPS):
            for ends in ENDS if exact else ENDS[:1]:
                run = flow_matching_method(solver.ODESolver, utils.ModelWrapper, exact=exact, method=method, ends=ends)
                name = f"{method}, {ends.name}" if exact else f"{method}, one probe"
                found.append(Method("flow_matching", name, STEPS.get(method, tolerances), run))
    if "k-diffusion" in modules and not exact:
        run = k_diffusion_method(modules["k-diffusion"])
        found.append(Method("k-diffusion", "dopri5, one probe", tolerances, run))
    return found


# ---- counting -------------------------------------------------------------------------------------------------------


class PeakMemory(TorchDispatchMode):
    """The peak bytes of tensors made inside the block and alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return out

    def _note(self, storage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


# ---- the tables -----------------------------------------------------------------------------------------------------


def exact_errors(found: list[Method], d: int, seeds: list[int], n: int, budget: int) -> Iterable[dict]:
    """Yield a row per method and setting: errors and calls.

    The errors are the mean and worst absolute error in nats over points of the mixtures.
    """
    problems = [(mixture(d, seed), torch.Generator().manual_seed(seed)) for seed in seeds]
    problems = [(truth, truth.sample(n, generator)) for truth, generator in problems]
    for method in found:
        for setting in method.settings:
            errors, calls = [], []
            for truth, x in problems:
                model = Counted(truth.model(VPSDE()))
                log_p, _ = method.run(model, x, setting, torch.Generator().manual_seed(0))
                errors.append((log_p - truth.log_prob(x)).abs())
                calls.append(model.calls)
            errors = torch.cat(errors)
            yield {
                "d": d,
                "package": method.package,
                "method": method.name,
                "setting": setting,
                "calls": max(calls),
                "mean_error": errors.mean().item(),
                "worst_error": errors.max().item(),
            }
            if max(calls) > budget:
                break  # settings grow


def estimated_errors(found: list[Method], d: int, seed: int, n: int, repeats: int) -> Iterable[dict]:
    """Yield a row per method and setting: bias, deviation, coverage, calls."""
    truth = mixture(d, seed)
    x = truth.sample(n, torch.Generator().manual_seed(seed))
    exact = truth.log_prob(x)
    for method in found:
        for setting in method.settings:
            model = Counted(truth.model(VPSDE()))
            draws, covered, calls = [], [], 0
            for repeat in range(repeats):
                model.calls = 0
                log_p, stderr = method.run(model, x, setting, torch.Generator().manual_seed(repeat))
                calls = max(calls, model.calls)
                draws.append(log_p.double())
                if stderr is not None:
                    covered.append(((log_p - exact).abs() < 1.96 * stderr).double().mean().item())
            draws = torch.stack(draws)
            mean = (draws - exact).mean(1)
            yield {
                "d": d,
                "package": method.package,
                "method": method.name,
                "setting": setting,
                "calls": calls,
                "bias": mean.mean().item(),
                "bias_stderr": (mean.std() / math.sqrt(repeats)).item(),
                "sd": draws.var(0).mean().sqrt().item(),
                "coverage": statistics.mean(covered) if covered else None,
            }


def trained(run: Path | None, out: Path, steps: int):
    """Return the model of a run, and raw held-out images.

    Without a run a small model is trained, in the folder ``out``.
    """
    from scoresde.app import build
    from scoresde.app.config_files import load_config
    from scoresde.app.runs import RunFolder
    from scoresde.app.training import train

    if run is None:
        folder = RunFolder.create(out, load_config(None, overrides=[f"train.steps={steps}"]), "benchmark")
        train(folder)
    else:
        folder = RunFolder.open(run)
    return folder.model("cpu"), build.data(folder.config.data)[1].raw


def network_costs(
    model, raw: Tensor, images: int, repeats: int, rounds: int, converged: int
) -> tuple[list[dict], list[dict]]:
    """Return an evaluation's cost, and bits/dim errors by total cost.

    Both are given for our method and for the score_sde recipe. The reference is the exact trace with ``converged``
    calls.
    """
    generator = torch.Generator().manual_seed(0)
    x = model.scaling.to_model(raw[:images], generator, model.dtype)
    bits = x[0].numel() * math.log(2)
    times = torch.full((len(x),), 0.3)

    def forward():
        with torch.no_grad():
            model(x, times)

    with torch.no_grad(), PeakMemory() as memory:
        forward()
    forward_peak = memory.peak
    field, start = score_sde_field(model, x, generator), score_sde_start(x)
    runs = {
        "scoresde": lambda calls: log_likelihood(model, x, Hutchinson(), steps=calls, generator=generator).log_prob,
        "score_sde recipe": lambda calls: [field(0.3, start) for _ in range(calls)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("forward", *runs)}
    short, long = 18, 36
    for _ in range(rounds):
        for name, work in (("forward", lambda: [forward() for _ in range(long)]), *runs.items()):
            begun = time.perf_counter()
            if name == "forward":
                work()
                seconds[name].append((time.perf_counter() - begun) / long)
                continue
            work(short)
            middle = time.perf_counter()
            work(long)
            seconds[name].append(((time.perf_counter() - middle) - (middle - begun)) / (long - short))
    one = statistics.median(seconds["forward"])
    costs = []
    for name, work in runs.items():
        with PeakMemory() as memory:
            work(short)
        forwards = statistics.median(seconds[name]) / one
        costs.append({"package": name, "forwards": forwards, "memory": memory.peak / forward_peak})

    truth = log_likelihood(model, x, Exact(), steps=converged).log_prob
    errors = []
    settings = [("scoresde", calls) for calls in (30, 60, 90, 180)]
    settings += [("score_sde recipe", tolerance) for tolerance in (1e-3, 1e-4, 1e-5)]
    for name, setting in settings:
        counted, draws = Counted(model), []
        for repeat in range(repeats):
            g = torch.Generator().manual_seed(repeat)
            if name == "scoresde":
                draws.append(log_likelihood(counted, x, Hutchinson(), steps=setting, generator=g).log_prob.double())
            else:
                draws.append(score_sde(counted, x, setting, g)[0].double())
        draws = torch.stack(draws)
        evaluations = counted.calls / repeats / (1 if name == "scoresde" else 2)  # the recipe calls twice in each
        forwards = next(cost["forwards"] for cost in costs if cost["package"] == name)
        means = (draws - truth).mean(1) / -bits
        errors.append(
            {
                "package": name,
                "method": "one probe",
                "setting": setting,
                "evaluations": evaluations,
                "cost_in_forwards": evaluations * forwards,
                "bits_error": means.mean().item(),
                "bits_error_stderr": (means.std() / math.sqrt(repeats)).item(),
                "sd_of_an_image_nats": draws.var(0).mean().sqrt().item(),
            }
        )
    return costs, errors


def _best(rows: list[dict], key: str, budget: int) -> list[dict]:
    """Return each method's setting with the smallest ``key``.

    Only settings within the budget of calls count.
    """
    chosen: dict[tuple[str, str], dict] = {}
    for row in rows:
        name = row["package"], row["method"]
        if row["calls"] <= budget and math.isfinite(row[key]) and (name not in chosen or row[key] < chosen[name][key]):
            chosen[name] = row
    return list(chosen.values())


def figure_of(rows: list[dict]) -> Figure:
    """Draw a panel per table: error or deviation against cost, ours in colour."""
    from matplotlib.figure import Figure

    exact, estimated, network = (
        [row for row in rows if row["part"] == part] for part in ("exact", "estimated", "network error")
    )
    panels = [
        (f"exact trace, d = {d}", "network calls", "calls", "mean error, nats", "mean_error", mine)
        for d in dict.fromkeys(row["d"] for row in exact)
        if (mine := [row for row in exact if row["d"] == d])
    ]
    if estimated:
        panels.append(("one probe, d = 64", "network calls", "calls", "std of log p, nats", "sd", estimated))
    if network:
        label = "error of bits/dim"
        panels.append(("U-Net on digits", "cost in forward passes", "cost_in_forwards", label, "bits_error", network))
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    line = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, across, x, up, y, mine) in zip(line, panels, strict=True):
        labelled: set[str] = set()
        packages = list(dict.fromkeys(row["package"] for row in mine))
        for package, method in dict.fromkeys((row["package"], row["method"]) for row in mine):
            points = [(row[x], abs(row[y])) for row in mine if (row["package"], row["method"]) == (package, method)]
            shade = f"{0.25 + 0.5 * packages.index(package) / len(packages):.2f}"
            own = package == "scoresde"
            style = {"color": "C0", "lw": 2, "marker": "o"} if own else {"color": shade, "lw": 1, "marker": "."}
            axes.loglog(*zip(*points, strict=True), label=None if package in labelled else package, **style)
            labelled.add(package)
        costs = [row[x] for row in mine]
        ticks = [n for n in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if min(costs) / 2 < n < 2 * max(costs)]
        axes.set(title=title, xlabel=across, ylabel=up)
        axes.set_xticks(ticks, map(str, ticks))
        axes.xaxis.set_minor_formatter("")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = common.parser("likelihood", __doc__, quick="fewer mixtures, points, repeats and training steps")
    parser.add_argument("--dims", help="dimensions of the mixtures of the first table (default 2,64; quick 2,16)")
    parser.add_argument("--seeds", type=int, help="number of mixtures, seeds 0, 1, ...")
    parser.add_argument("--points", type=int, help="points a mixture in 2 dimensions; 1/25 of them in others")
    parser.add_argument("--repeats", type=int, help="of the estimates")
    parser.add_argument("--images", type=int, help="of digits")
    parser.add_argument("--rounds", type=int, help="of the timings")
    parser.add_argument("--converged", type=int, help="calls of the yardstick on digits (default 200; quick 40)")
    parser.add_argument("--peers", default=",".join(PEERS), help="packages, or none")
    parser.add_argument("--parts", default=",".join(PARTS), help="which tables")
    parser.add_argument("--run", type=Path, help="a run of digits; without it one is trained first")
    parser.add_argument("--train", type=int, help="steps of that training")
    options = parser.parse_args(arguments)
    sizes = {"dims": ("2,16", "2,64"), "seeds": (1, 4), "points": (50, 400), "repeats": (8, 100), "images": (2, 16)}
    for name, (quick, full) in (sizes | {"rounds": (2, 9), "converged": (40, 200), "train": (20, 2000)}).items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the parts, and write the record."""
    options = parse(arguments)
    parts, repeats = common.names("--parts", options.parts, PARTS), options.repeats
    dims = common.wholes("--dims", options.dims)
    torch.set_num_threads(options.threads)
    modules, left_out = load([] if options.peers == "none" else options.peers.split(","))
    record = common.Record(
        "likelihood",
        options,
        "Log-likelihoods: error and cost",
        arguments=arguments,
        seeds=f"mixtures 0 to {options.seeds - 1}; repeats 0 to {repeats - 1} for probes; the run's own for training",
        peers=modules,
        left_out=left_out,
    )
    few = max(options.points // 25, 1)
    absent = [{"package": package, "method": reason} for package, reason in left_out.items()]
    rows, text = [], []
    if "exact" in parts:
        for d in dims:
            n = options.points if d == 2 else few
            found = list(exact_errors(methods(modules, exact=True), d, list(range(options.seeds)), n, 105))
            rows += [{"part": "exact", **row} for row in found]
            text.append(f"## Exact trace, d = {d}, {options.seeds} mixtures, {n} points each: best within 105 calls")
            text.append(common.table(_best(found, "mean_error", 105) + absent))
    if "estimated" in parts:
        found = list(estimated_errors(methods(modules, exact=False), 64, 0, few, repeats))
        rows += [{"part": "estimated", **row} for row in found]
        text.append(f"## One probe, d = 64, {few} points, {repeats} repeats: least deviation within 200 calls")
        text += [common.table(_best(found, "sd", 200) + absent), "Whatever the calls:"]
        text.append(common.table(_best(found, "sd", 10**9) + absent))
    if "network" in parts:
        with tempfile.TemporaryDirectory() as folder:
            model, raw = trained(options.run, Path(folder) / "run", options.train)
        sizes = options.images, max(repeats // 10, 2), options.rounds, options.converged
        costs, errors = network_costs(model, raw, *sizes)
        rows += [{"part": "network cost", **row} for row in costs]
        rows += [{"part": "network error", **row} for row in errors]
        text.append("## A U-Net on digits: cost of an evaluation, in forward passes and in their memory")
        text.append(common.table(costs))
        text += ["Error of the mean bits/dim over images, exact trace converged, by cost:", common.table(errors)]
    record.write(rows, "\n\n".join(text), figure_of(rows))


if __name__ == "__main__":
    main()
