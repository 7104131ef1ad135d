"""Equal time on the same images: our trainer against independent ones.

    python -m benchmarks.equal_time [--quick] [--data FOLDER] [--minutes 30] [--threads 2] [--out FOLDER]
        [--trainer denoising-diffusion-pytorch,smalldiffusion] [--ours PRESET | CONFIG.yaml | RUNFOLDER]
        [--set train.lr=1e-3] [--peer-set train_batch_size=32] [--parts train,evaluate]

Each trainer has its own process and the same seconds of wall clock, counted from its first step. Reading data, steps,
averages and logs count; saving at the end does not. The trainers take turns of a minute (``--slice``), so that a change
of the machine's speed affects all of them. Our learning rate falls with the clock; theirs follows their own rule. Then
one process measures everything, with one classifier and the same test images, dequantisation and probes:

- Frechet distance: our samplers on our network, their sampler on theirs, and our sampler on theirs.
- bits/dim: the probability flow of each network under the process it was trained for. The flow ends at the lowest level
  that a peer was trained at, or at ours, whichever is better for the peer. A discrete chain also has its own bound (P4,
  with Ho et al.'s discretised decoder).

The peers need torchvision, in the release that belongs to the installed torch, and hence their own environment::

    python3.11 -m venv peers && . peers/bin/activate
    python -m pip install torch==2.13.0 torchvision==0.28.0
    python -m pip install -e . denoising-diffusion-pytorch==2.3.4 smalldiffusion==0.5.0

A torchvision built for another torch will do (a CUDA build beside a CPU build, say): its operators are not used.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common  # first: it sets how threads wait

# isort: split
import torch
import yaml
from torch import Tensor

from benchmarks import real, real_measures
from benchmarks.frechet import Distance, Gaussian, distance, features
from benchmarks.trainers import PEERS, Peer, load_peer
from scoresde import Data, Hutchinson, Model, bits_per_dim, variational_bound
from scoresde.app import build
from scoresde.app.comparing import paired_difference
from scoresde.app.config import RunConfig
from scoresde.app.config_files import load_config
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import duration, progress, say
from scoresde.errors import ArgumentError, NonFiniteError, ScoreSDEError, ToleranceError, UnknownNameError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_SECONDS = 60
OURS = "scoresde"
PARTS = ("train", "evaluate")
TOLERANCE = 1e-5  # of a wrapped network's denoising loss, relative
DEFECT = 0.01  # bits/dim: with a larger defect of the multistep path an adaptive method is used
TRIED = 32  # images on which the ways to end a peer's flow are compared


# ---- taking turns ---------------------------------------------------------------------------------------------------


class Turn:
    """A trainer's share of the wall clock.

    The trainer calls it after each step; the call waits while it is another trainer's turn.

    Args:
        wait: function that returns when it is this trainer's turn.
        give: function that ends the turn.
        budget: seconds in all.
        slice_: seconds of a turn.
        clock: function that returns the time in seconds.

    Attributes:
        seconds: seconds used so far in this trainer's turns.
        steps: calls so far.
    """

    def __init__(
        self,
        wait: Callable[[], Any],
        give: Callable[[], Any],
        budget: float,
        slice_: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.wait, self.give, self.budget, self.slice, self.clock = wait, give, budget, slice_, clock
        self.before, self.seconds, self.steps = 0.0, 0.0, 0

    def begin(self) -> None:
        """Wait for the first turn."""
        self.wait()
        self.begun = self.clock()

    def __call__(self) -> bool:
        """Return True when the time is over."""
        used = self.clock() - self.begun
        self.seconds, self.steps = self.before + used, self.steps + 1
        if self.seconds >= self.budget:
            return True
        if used >= self.slice:
            self.before = self.seconds
            self.give()
            self.begin()
        return False


def take_turns(trainers: Mapping[str, Connection]) -> dict[str, dict[str, Any]]:
    """Run trainers in turn until all are done; return their final facts.

    A trainer first sends ``("ready",)``. After each ``"go"`` it sends ``("pause",)`` or ``("done", facts)``. At any
    time it may send ``("failed", text)``.

    Raises:
        RuntimeError: a trainer failed, or ended without a message.
    """

    def hear(name: str) -> tuple:
        try:
            word = trainers[name].recv()
        except EOFError:
            word = ("failed", "it ended without a word")
        if word[0] == "failed":
            raise RuntimeError(f"{name}: {word[1]}")
        return word

    for name in trainers:
        hear(name)
    done: dict[str, dict[str, Any]] = {}
    while len(done) < len(trainers):
        for name in [name for name in trainers if name not in done]:
            trainers[name].send("go")
            word = hear(name)
            if word[0] == "done":
                done[name] = word[1]
    return done


# ---- the trainers' processes ----------------------------------------------------------------------------------------


def train_ours(turn: Turn, data: Data, folder: Path, config: RunConfig) -> dict[str, Any]:
    """Train by the package's trainer into a run folder."""
    run = RunFolder.create(folder, config, " ".join(sys.argv))
    model = build.model(config, data)
    trainer = build.trainer(config, model, run.checkpoints)
    trainer.every(1, lambda trainer: trainer.stop() if turn() else None)
    facts = {"weights": sum(p.numel() for p in model.parameters()), "batch": config.train.batch_size}
    with run.stage("train", **facts):
        turn.begin()
        for record in trainer.records(data):
            run.log({**dataclasses.asdict(record), "seconds": round(turn.seconds, 2)})
    return facts


def train_peer(
    turn: Turn, data: Data, folder: Path, package: str, settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Train by the peer's trainer."""
    peer = PEERS[package](data.shape, settings, seed)
    with tempfile.TemporaryDirectory(dir=folder.parent) as files:
        train = peer.prepare(data, Path(files))
        turn.begin()
        train(turn)
    peer.save(folder)
    return {"weights": peer.weights, "batch": peer.batch}


def process(
    connection: Connection, log: str, threads: int, budget: float, slice_: float, data: Data, work: Callable, *others
) -> None:
    """Run a trainer's process: wait for the first turn, train, report."""
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            torch.set_num_threads(threads)
            multiprocessing.set_start_method(None, force=True)  # a trainer's own workers start as they would without us

            def wait() -> None:
                connection.recv()

            def ready() -> None:
                connection.send(("ready",))
                turn.wait = wait
                wait()

            turn = Turn(ready, lambda: connection.send(("pause",)), budget, slice_)
            facts = work(turn, data, *others)
            connection.send(("done", {**facts, "seconds": turn.seconds, "steps": turn.steps}))
        except BaseException as error:
            traceback.print_exc()
            connection.send(("failed", f"{type(error).__name__}: {error} (see {log})"))
            raise


def train_part(options: argparse.Namespace, data: Data) -> None:
    """Train all, each in its process; keep their facts in ``trained.json``."""
    works: dict[str, tuple] = {
        name: (train_peer, options.out / name, name, options.peer_set[name], options.seed) for name in options.peers
    }
    if options.run is None:
        works[OURS] = (train_ours, options.out / OURS, options.config)
    context, budget = multiprocessing.get_context("spawn"), 60 * options.minutes
    say(f"training {', '.join(works)}: {duration(len(works) * budget)}; their logs go to {options.out}")
    connections, processes = {}, []
    try:
        for name, (work, *others) in works.items():
            connections[name], other = context.Pipe()
            log = str(options.out / f"{name}.log")
            arguments = (other, log, options.threads, budget, options.slice or math.inf, data, work, *others)
            processes.append(context.Process(target=process, args=arguments))
            processes[-1].start()
            other.close()
        done = take_turns(connections)
        if options.run is not None:
            stage, config = options.run.meta["stages"]["train"], options.run.config.train
            done[OURS] = {"batch": config.batch_size, "steps": options.run.step, **stage}
    finally:
        for connection in connections.values():
            connection.close()
        for one in processes:
            one.join(10)
            if one.is_alive():
                one.terminate()
    found = {"minutes": options.minutes, "slice": options.slice, "threads": options.threads, "trainers": done}
    (options.out / "trained.json").write_text(json.dumps(found, indent=1) + "\n")


# ---- what they are worth --------------------------------------------------------------------------------------------


def flow_bits(
    model: Model, raw: Tensor, options: argparse.Namespace, what: str, t_min: float | None = None
) -> tuple[Tensor, str]:
    """Return bits/dim ``(N,)`` by the probability flow, and the method used.

    Image i has the same dequantisation for every model. The method is ``"multistep"``, or ``"dopri5"`` where the path's
    defect shows that multistep did not converge. The result is NaN where dopri5 fails too.
    """
    ways = [{"steps": options.flow_calls}]
    if options.tolerance:
        ways.append({"method": "dopri5", "rtol": options.tolerance, "atol": options.tolerance})
    bits, how = torch.full((len(raw),), math.nan, dtype=torch.float64), ""
    for settings in ways:
        try:
            with progress(f"bits/dim, {what}", len(raw)) as update:
                found = bits_per_dim(
                    model,
                    raw,
                    divergence=Hutchinson(options.probes),
                    generator=torch.Generator().manual_seed(real_measures.SEED),
                    batch=options.batch,
                    t_min=t_min,
                    callback=lambda done, _: update(done, "images"),
                    **settings,
                )
        except (NonFiniteError, ToleranceError) as error:
            say(f"{what}: {error}")
            continue
        say(str(found))
        defect = found.defect.abs().mean().item()
        bits, how = found.bits, f"flow to t = {found.t_min:.3g}, {found.method}, {found.nfe} calls"
        if defect < DEFECT:
            return bits, how
    return bits, f"{how or 'flow'} (did not converge)"


def peer_bits(peer: Peer, model: Model, raw: Tensor, options: argparse.Namespace) -> dict[str, Tensor]:
    """Return bits/dim ``(N,)`` of a peer's network, by method.

    The flow is taken at its better end; the network's own bound is added if it has one.
    """
    name, tried = peer.package, {}
    for t_min in peer.ends if len(peer.ends) > 1 else ():
        what = f"{name}, the first images, to t = {t_min or 0:.3g}"
        value = flow_bits(model, raw[:TRIED], options, what, t_min)[0].mean().item()
        tried[t_min] = math.inf if math.isnan(value) else value
    bits, how = flow_bits(model, raw, options, name, min(tried, key=tried.get) if tried else peer.ends[0])
    found = {how: bits}
    if options.bound_levels and hasattr(model.sde, "times"):
        with progress(f"bound, {name}", len(raw)) as update:
            bound = variational_bound(
                model,
                raw,
                levels=options.bound_levels,
                generator=torch.Generator().manual_seed(real_measures.SEED),
                batch=options.batch,
                callback=lambda done, _: update(done, "images"),
            )
        found["bound of the chain"] = bound.bits
    return found


def row_of(part: str, model: str, how: str, value: float, stderr: float, n: int, **others: Any) -> dict[str, Any]:
    """Return one measurement as a row."""
    return {"part": part, "model": model, "how": how, "value": value, "stderr": stderr, "n": n, **others}


def bits_rows(bits: Mapping[tuple[str, str], Tensor]) -> list[dict[str, Any]]:
    """Return means over the images and paired differences, ours minus theirs.

    The argument is ``{(model, method): (N,)}``.
    """
    (ours, first), *others = bits.items()
    rows = []
    for (model, how), values in bits.items():
        error = values.std().item() / math.sqrt(len(values))
        rows.append(row_of("bits/dim", model, how, values.mean().item(), error, len(values)))
    for (model, how), values in others:
        found = paired_difference(first, values)
        rows.append(row_of("bits/dim, difference", f"{ours[0]} - {model}", how, *found, len(values)))
    return rows


def evaluate_part(options: argparse.Namespace, training: Data, test: Data) -> list[dict[str, Any]]:
    """Measure the trained networks."""
    run = options.run or RunFolder.open(options.out / OURS)
    models: dict[str, Model] = {OURS: run.model()}
    peers = {name: load_peer(options.out / name)[0] for name in options.peers}
    checks = []
    for name, peer in peers.items():
        models[name] = peer.model(training)
        with contextlib.redirect_stderr(io.StringIO()):  # bars
            found = peer.check(test.raw[:16])
        if found["denoising loss"] > TOLERANCE:
            raise RuntimeError(f"{name}: the wrapped network's loss differs by {found['denoising loss']:.1g}")
        checks += [row_of("agreement", name, how, value, 0.0, 16) for how, value in found.items()]
    say_plan(models, peers, test, options)

    folder = options.out / "classifier" if options.classifier is None else options.classifier
    classifier, facts = real_measures.classifier_in(folder, training, test, options.epochs)
    rows = [row_of("classifier", "", "accuracy", facts["accuracy"], facts["stderr"], len(test))]
    reference = Gaussian.of(features(classifier, test.raw))

    def add(model: str, how: str, calls: int, drawn: tuple[Tensor, float]) -> None:
        raw, seconds = drawn
        found = distance(features(classifier, raw), reference)
        rows.append(frechet_row(model, how, found, calls=calls, images_per_second=len(raw) / seconds))
        say(f"{model}, {how}, {calls} calls: {found}")

    for name, found in real_measures.yardsticks(classifier, training, test, options.samples).items():
        rows.append(frechet_row("", name, found))
    for calls in options.calls:
        for name, model in models.items():
            how = "DPM-Solver of scoresde" if name == OURS else "DPM-Solver of scoresde on its network"
            add(name, how, calls, real_measures.draw(model, options.samples, test.shape, calls))
    for name, peer in peers.items():
        for calls in sorted({*options.calls, options.own_calls or peer.own_calls}):
            add(name, "its own sampler", calls, peer.draw(options.samples, calls))

    raw = test.raw[: options.images]
    values, how = flow_bits(models[OURS], raw, options, OURS)
    bits = {(OURS, how): values}
    for name, peer in peers.items():
        bits |= {(name, how): values for how, values in peer_bits(peer, models[name], raw, options).items()}
    return [*rows, *bits_rows(bits), *checks]


def frechet_row(model: str, how: str, found: Distance, **others: Any) -> dict[str, Any]:
    """Return a distance as a measurement."""
    return row_of("frechet", model, how, found.value, found.stderr, found.n, bias=found.bias, **others)


def say_plan(models: Mapping[str, Model], peers: Mapping[str, Peer], test: Data, options: argparse.Namespace) -> None:
    """Print how long the evaluation will take.

    The estimate comes from the time of a network call.
    """
    seconds = 0.0
    for name, model in models.items():
        plain, gradient = (real_measures.cost(model, test.shape, options.batch, each) for each in (False, True))
        seconds += plain * options.samples * sum(options.calls)
        seconds += gradient * options.flow_calls * options.images
        if name in peers:
            peer = peers[name]
            own = sum({*options.calls, options.own_calls or peer.own_calls})
            seconds += plain * (options.samples * own + options.images * options.bound_levels)
            seconds += gradient * options.flow_calls * TRIED * len(peer.ends)
    say(f"evaluation: about {duration(seconds)}, and the classifier")


# ---- the record -----------------------------------------------------------------------------------------------------


def page(rows: list[dict[str, Any]], trained: Mapping[str, Any], options: argparse.Namespace) -> str:
    """Return the tables below the head."""
    lines = []
    for name, facts in trained["trainers"].items():
        images = facts["steps"] * facts["batch"]
        lines.append([name, *(f"{n:,}" for n in (facts["weights"], facts["batch"], facts["steps"], images))])
        lines[-1].append(f"{facts['seconds']:.1f}")
    turns = f"in turns of {trained['slice']:g} s" if trained["slice"] else "one after the other"
    text = [
        f"## Training\n\n{trained['minutes']:g} minutes each on {trained['threads']} threads, {turns}",
        common.markdown(["trainer", "weights", "images a step", "steps", "images seen", "seconds"], lines),
    ]

    def of(part: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["part"] == part]

    (classifier,) = of("classifier")
    lines = [
        [
            row["model"],
            row["how"],
            str(row.get("calls", "")),
            f"{row['value']:.2f} +- {row['stderr']:.2f}",
            f"{row['bias']:.2f}",
            f"{row['images_per_second']:.1f}" if "images_per_second" in row else "",
        ]
        for row in of("frechet")
    ]
    about = f"{options.samples} samples, the {classifier['n']} test images, a classifier that is right on "
    text += [
        f"## Frechet distance\n\n{about}{100 * classifier['value']:.1f} % of these",
        common.markdown(["network", "sampler, or real images", "calls", "distance", "of it bias", "images/s"], lines),
    ]
    lines = [
        [row["model"], row["how"], f"{row['value']:.4f} +- {row['stderr']:.4f}"]
        for row in (*of("bits/dim"), *of("bits/dim, difference"))
    ]
    about = f"the first {options.images} test images, uniform dequantisation"
    text += [
        f"## Bits/dim\n\n{about}; {options.probes} probes at each call of a flow",
        common.markdown(["network", "by", "bits/dim"], lines),
    ]
    if checks := of("agreement"):
        text += [
            "## The peers' networks in our hands\n\nGreatest difference between their code and ours, of the denoising "
            "loss (relative) and of samples from the same noise",
            common.markdown(
                ["network", "of", "difference"], [[row["model"], row["how"], f"{row['value']:.1e}"] for row in checks]
            ),
        ]
    for name in options.peers:
        peer = load_peer(options.out / name)[0]
        settings = ", ".join(f"{key}={value}" for key, value in peer.settings.items())
        text.append(f"## Settings of {name}\n\n{settings}\n\n{peer.remarks}.")
    return "\n\n".join(text)


def figure_of(rows: list[dict[str, Any]]) -> Figure:
    """Draw the Frechet distance against the number of calls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] == "frechet" and "calls" in row:
            lines.setdefault(f"{row['model']}: {row['how']}", []).append(row)
    for label, found in lines.items():
        calls, values, errors = ([row[key] for row in found] for key in ("calls", "value", "stderr"))
        axes.errorbar(calls, values, errors, label=label, marker="o", markersize=3, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="network calls a sample", ylabel="Frechet distance")
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3, which="both")
    return figure


# ---- the command ----------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the options."""
    parser = common.parser("equal_time", __doc__, quick="seconds of everything, to see that it runs", threads=2)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--data", type=Path, default=real_measures.FASHION, help="folder of idx files (default: %(default)s)"
    )
    training.add_argument("--minutes", type=float, default=30.0, help="for each trainer (default: %(default)s)")
    training.add_argument("--trainer", default="denoising-diffusion-pytorch", help=f"with commas: {', '.join(PEERS)}")
    training.add_argument("--ours", default=real.PRESET, help="preset, YAML file or trained run (default: %(default)s)")
    training.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one more setting of ours")
    training.add_argument("--peer-set", action="append", default=[], metavar="KEY=VALUE", help="one of theirs")
    training.add_argument("--slice", type=float, default=60.0, help="seconds of a turn, 0: no turns (%(default)s)")
    training.add_argument("--seed", type=int, default=0, help="of all trainers (default: %(default)s)")
    figures = parser.add_argument_group("figures")
    figures.add_argument("--parts", default=",".join(PARTS), help="which, with commas (default: all)")
    figures.add_argument("--images", type=int, default=256, help="test images to score (default: %(default)s)")
    figures.add_argument("--flow-calls", type=int, default=100, help="calls of a likelihood (default: %(default)s)")
    figures.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="of dopri5 where multistep does not converge; 0: none (default: %(default)s)",
    )
    figures.add_argument("--probes", type=int, default=1, help="at each of them (default: %(default)s)")
    figures.add_argument("--bound-levels", type=int, default=100, help="of a chain's bound, 0: none (%(default)s)")
    figures.add_argument(
        "--batch", type=int, default=real_measures.BATCH, help="images scored at a time (default: %(default)s)"
    )
    figures.add_argument("--samples", type=int, default=2000, help="to draw (default: %(default)s)")
    figures.add_argument("--calls", default="10,20,50", help="of all samplers (default: %(default)s)")
    figures.add_argument("--own-calls", type=int, default=0, help="of theirs besides (default: as they document)")
    figures.add_argument("--classifier", type=Path, help="its folder, to be taken or made (default: in --out)")
    figures.add_argument("--epochs", type=int, default=4, help="of the classifier (default: %(default)s)")
    parser.set_defaults(out=None)
    options = parser.parse_args(arguments)
    options.parts, options.calls = options.parts.split(","), common.wholes("--calls", options.calls)
    for part in options.parts:
        if part not in PARTS:
            raise UnknownNameError("--parts", part, PARTS)
    options.peers = options.trainer.split(",")
    for name in options.peers:
        if name not in PEERS:
            raise UnknownNameError("--trainer", name, PEERS)
    if options.peer_set and len(options.peers) > 1:
        raise ArgumentError("--peer-set", options.peer_set, "nothing, with several trainers: whose setting is it?")
    pairs = [text.partition("=") for text in options.peer_set]
    given = {key: yaml.safe_load(value) for key, _, value in pairs}
    options.peer_set = {name: {**(PEERS[name].quick if options.quick else {}), **given} for name in options.peers}
    for name in ("minutes", "threads", "images", "samples"):
        if not getattr(options, name) > 0:
            raise ArgumentError(f"--{name}", getattr(options, name), "a positive number")
    return options


def quick_settings(options: argparse.Namespace) -> None:
    """Return sizes at which everything ends at once; the numbers mean nothing."""
    small = {"minutes": 0.05, "slice": 1.0, "images": 8, "flow_calls": 18, "bound_levels": 4, "samples": 32}
    small |= {"calls": [5, 10], "own_calls": 12, "epochs": 1, "tolerance": 0.0}
    vars(options).update(small)
    options.set = [
        "data.n=512",
        "net.options={channels: 16, multipliers: [1, 2], blocks: 1, dropout: 0.0}",
        "train.batch_size=16",
        *options.set,
    ]


def config_of(options: argparse.Namespace) -> RunConfig:
    """Return the settings of our training: a preset's or a file's.

    A training time replaces the number of steps.
    """
    file = options.ours if Path(options.ours).suffix in (".yaml", ".yml") else None
    overrides = [f"data.source={json.dumps(str(options.data))}", f"train.minutes={options.minutes}"]
    overrides += [f"train.seed={options.seed}", "train.device=cpu", "train.checkpoint_every=1000000000"]
    return load_config(file, None if file else options.ours, [*overrides, *options.set])


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and write and print the record."""
    options = parse(arguments)
    if options.quick:
        quick_settings(options)
        options.out = (common.RESULTS if options.out is None else options.out) / "equal_time-quick"
        shutil.rmtree(options.out, ignore_errors=True)
    options.out = Path("runs/equal_time") if options.out is None else options.out
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    training, test = real_measures.load(options.data)
    options.run = RunFolder.open(options.ours) if Path(options.ours).is_dir() else None
    options.config = config_of(options) if options.run is None else options.run.config
    if options.quick:
        training, test = training.take(options.config.data.n or len(training)), test.take(min(256, len(test)))
    _, left_out = common.load_peers({name: PEERS[name].load for name in options.peers})
    options.peers = [name for name in options.peers if name not in left_out]
    record = common.Record(
        "equal_time",
        argparse.Namespace(quick=options.quick, out=options.out),
        f"{options.minutes:g} minutes on {training.name}",
        arguments=arguments,
        seeds=f"training {options.seed}, the rest {real_measures.SEED}",
        peers=options.peers,
        left_out=left_out,
    )
    if "train" in options.parts:
        train_part(options, training)
    if "evaluate" in options.parts:
        rows = evaluate_part(options, training, test)
        trained = json.loads((options.out / "trained.json").read_text())
        record.write(rows, page(rows, trained, options), figure_of(rows))


if __name__ == "__main__":
    try:
        main()
    except ScoreSDEError as error:
        sys.exit(f"Error: {error}")
