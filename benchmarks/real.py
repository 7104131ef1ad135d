"""Fashion-MNIST: a model trained for a stated time, its bits/dim, Frechet distance, speed and nearest neighbours.

    python -m benchmarks.real [--quick] [--data FOLDER] [--minutes 30] [--config FILE | --preset NAME]
        [--set train.lr=1e-3] [--out RUNFOLDER] [--parts train,likelihood,frechet,sheet] [--against RUNFOLDER]

Under ``torchrun --nproc-per-node 2 -m benchmarks.real`` two processes share the training's batches, and the threads of
``--threads``; for small batches that is faster than two threads of one process. The first goes on with the other parts.

All is kept in the run folder, which ``scoresde sample``, ``likelihood``, ``report``... take too; on a finished one each
part can be run again by itself. The minutes are those of the training steps alone: measuring the loss on held-out data,
checkpoints and the parts below come on top. No choice is made by the test images: the model is the averaged one at the
end of the time.

likelihood   bits/dim of the first test images by the probability flow, with uniform dequantisation; again with twice
             the calls for some of them; and the difference to another run (``--against``), on the same noise and probes
frechet      distance of samples from the 10000 test images in the features of a classifier trained in the same run, or
             taken from another one (``--classifier``); beside it what real images get, whole, noisy and blurred
sheet        samples, real images, the samples' nearest training images; whether they are nearer than test images are
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import common  # first: it sets how threads wait

# isort: split
import numpy as np
import torch
from torch import Tensor

from benchmarks.frechet import (
    NOISE,
    Classifier,
    Distance,
    Gaussian,
    accuracy,
    blurred,
    distance,
    features,
    fit_classifier,
    noisy,
)
from scoresde import Data, Hutchinson, Model, bits_per_dim, load_data, sample
from scoresde.app.comparing import Measured, auroc, paired_difference
from scoresde.app.config import RunConfig
from scoresde.app.config_files import load_config
from scoresde.app.runs import Interrupted, RunFolder
from scoresde.app.terminal import duration, progress, say
from scoresde.app.training import train_on_ranks
from scoresde.data import Scaling
from scoresde.data.idx import idx_files
from scoresde.errors import ArgumentError, DataError, ScoreSDEError, UnknownNameError
from scoresde.likelihood import BitsPerDim
from scoresde.random import spawn_generators
from scoresde.sampling import Sampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_SECONDS = 20
FASHION = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"  # Debian's
PRESET = "fashion-unet-small"
MINUTES = 30.0
PARTS = ("train", "likelihood", "frechet", "sheet")
PREFIXES = (256, 1000)  # numbers of test images whose bits/dim are stated, where so many were scored
SEED = 0  # of dequantisation, probes, samples and resampling; not of the training
BATCH = 64  # images in a network call of a likelihood; the gradient holds all activations
NEAR = 0.01  # quantile of the test images' distances below which a sample counts as near


# ---- what is measured, for any model --------------------------------------------------------------------------------


def load(folder: str | Path) -> tuple[Data, Data]:
    """Training and test images of a folder of idx files, in their own order, with labels.

    Raises:
        DataError: there are none, or no test images; says where they come from.
    """
    found = idx_files(folder)
    if "t10k" not in found:
        what = "which has no test images" if found else "which holds no idx files"
        where = f"the idx files of Fashion-MNIST (Debian: apt install {PACKAGE}, {FASHION}), or --data FOLDER"
        raise DataError("data", f"{folder}, {what}", where)
    return load_data(folder)


def likelihood(
    model: Model,
    raw: Tensor,
    *,
    calls: int = 100,
    probes: int = 1,
    scaling: Scaling | None = None,
    batch: int = BATCH,
    seed: int = SEED,
    what: str = "bits/dim",
) -> BitsPerDim:
    """Bits/dim of raw integer images ``(N, C, H, W)`` by the multistep flow, one uniform dequantisation each.

    Image i has the same dequantisation and starts from the same stream of probes whatever the model, ``calls``, N and
    ``batch``: results for the same images are paired.

    Args:
        calls: network calls an image, each with ``probes`` vector-Jacobian products.
        scaling: from raw images to the model's space; None: the model's own.
        what: is shown with the progress.
    """
    with progress(what, len(raw)) as update:
        return bits_per_dim(
            model,
            raw,
            scaling=scaling,
            divergence=Hutchinson(probes),
            steps=calls,
            generator=torch.Generator().manual_seed(seed),
            batch=batch,
            callback=lambda done, _: update(done, "images"),
        )


def draw(
    model: Model,
    n: int,
    shape: Sequence[int],
    calls: int,
    *,
    sampler: Sampler | None = None,
    scaling: Scaling | None = None,
    autocast: torch.dtype | None = None,
    batch: int = 250,
    seed: int = SEED,
) -> tuple[Tensor, float]:
    """``n`` samples as raw integer images ``(n, *shape)`` in uint8, and the seconds they took.

    Sample i starts from the same noise whatever the model, ``calls``, n and ``batch``.

    Args:
        calls: network calls a sample (steps of the sampler; the default one makes one call a step).
        autocast: a low precision for the network, such as ``torch.bfloat16``.
        scaling: between raw images and the model's space; None: the model's own.
    """
    scaling = model.scaling if scaling is None else scaling
    generator, drawn, begun = torch.Generator().manual_seed(seed), [], time.perf_counter()
    with progress(f"samples by {calls} calls", n) as update:
        for begin in range(0, n, batch):
            size = min(batch, n - begin)
            x = sample(
                model, (size, *shape), sampler, calls, generator=spawn_generators(generator, size), autocast=autocast
            )
            drawn.append(scaling.to_raw(x).to("cpu", torch.uint8))
            update(begin + size, "samples")
    return torch.cat(drawn), time.perf_counter() - begun


def classifier_in(folder: str | Path, train: Data, test: Data, epochs: int) -> tuple[Classifier, dict[str, Any]]:
    """The classifier saved in ``folder``, or a new one, which is saved there; and what is known of it.

    The facts are ``epochs``, ``trained_on`` (images), ``seconds``, ``accuracy`` and its ``stderr`` on the test images.
    """
    if (Path(folder) / "classifier.json").is_file():
        return Classifier.load(folder)
    begun = time.perf_counter()
    with progress("classifier", epochs * len(train)) as update:
        made = fit_classifier(train, epochs=epochs, callback=lambda done, _: update(done, "images"))
    share, error = accuracy(made, test)
    facts = {"epochs": epochs, "trained_on": len(train), "seconds": time.perf_counter() - begun}
    made.save(folder, **facts, accuracy=share, stderr=error)
    return Classifier.load(folder)


def yardsticks(classifier: Classifier, train: Data, test: Data, n: int) -> dict[str, Distance]:
    """Distances of ``n`` real images, whole and spoiled, from the test images; by what they are.

    ``"test images"`` are those of n (at most half) of them from the others: what a perfect model would get.
    """
    reference = Gaussian.of(features(classifier, test.raw))
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))
    some, others = order[: min(n, len(test) // 2)], order[min(n, len(test) // 2) :]
    real = train.take(min(n, len(train)), SEED).raw
    own = distance(features(classifier, test.raw[some]), Gaussian.of(features(classifier, test.raw[others])))
    sets = {
        "training images": real,
        f"training images, noise of sd {NOISE:g}": noisy(real, train.num_values),
        "training images, 3x3 blur": blurred(real),
    }
    found = {name: distance(features(classifier, raw), reference) for name, raw in sets.items()}
    return {"test images": own, **found}


def nearest(queries: Tensor, items: Tensor, chunk: int = 500) -> tuple[Tensor, Tensor]:
    """Euclidean distances ``(n,)``, float64, of queries ``(n, d)`` to the nearest of items ``(N, d)``, and which."""
    items = items.flatten(1).float()
    half, found = items.square().sum(1) / 2, []
    for part in queries.flatten(1).float().split(chunk):
        index = (half - part @ items.T).argmin(1)
        found.append(((part.double() - items[index].double()).square().sum(1).sqrt(), index))
    return tuple(map(torch.cat, zip(*found, strict=True)))


class Memory(NamedTuple):
    """Whether samples are nearer to training images than test images are.

    Attributes:
        near: the share of the samples that are nearer than the 1st percentile of the test images' distances; 1 % for
            fresh images.
        area: P(a test image is farther from the training images than a sample): 1/2 for fresh images. Blurred ones are
            nearer in pixels too.
    """

    near: Measured
    area: Measured


def memory(samples: Tensor, test: Tensor) -> Memory:
    """From the distances to the nearest training image, of samples ``(n,)`` and of test images ``(m,)``."""
    share = (samples < test.quantile(NEAR)).double().mean().item()
    # the percentile is itself known to sqrt(q (1 - q) / m)
    error = math.sqrt(share * (1 - share) / len(samples) + NEAR * (1 - NEAR) / len(test))
    return Memory(Measured(share, error), auroc(test, samples))


# ---- the parts of a run ---------------------------------------------------------------------------------------------


class Results:
    """``results.json`` of a run folder: what each part found, with the settings it was found by."""

    def __init__(self, run: RunFolder):
        self.path = run.path / "results.json"
        self.parts: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.run = run

    def put(self, part: str, **found: Any) -> None:
        """Keep what a part found, in place of what it had found before."""
        self.parts[part] = {"step": self.run.step, "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), **found}
        self.run.write("results.json", json.dumps(self.parts, indent=1) + "\n")


def cost(model: Model, shape: Sequence[int], batch: int, gradient: bool) -> float:
    """Seconds an image of a network call, without or with a gradient with respect to x."""
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0)).to(model.device)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        with torch.set_grad_enabled(gradient):
            eps = model(x.requires_grad_(gradient), 0.5).eps
            if gradient:
                torch.autograd.grad(eps.sum(), x)
        times.append(time.perf_counter() - begun)
    return min(times) / batch


def _say_plan(what: str, seconds: float) -> None:
    say(f"{what}: about {duration(seconds)}")


def train_part(run: RunFolder, results: Results) -> None:
    """Note what the training was."""
    if results.parts.get("train", {}).get("step") == run.step:
        return
    stage, last = run.meta["stages"]["train"], run.records()[-1]
    results.put(
        "train",
        minutes=run.config.train.minutes,
        steps=run.step,
        images=run.step * run.config.train.batch_size,
        weights=stage["weights"],
        device=stage["device"],
        seconds_with_saving=stage["seconds"],
        loss=last["loss"],
        held_out=last["held_out"],
    )


def likelihood_part(run: RunFolder, results: Results, test: Data, options: argparse.Namespace) -> None:
    """Bits/dim, converged, and against another run."""
    model, n = run.model(run.config.train.device), min(options.images, len(test))
    check, calls, probes = min(options.check, n), options.flow_calls, options.probes
    raw, known = test.raw[:n], known_bits(results, n, options) if options.against else None
    each = cost(model, test.shape, min(n, options.batch), gradient=True) * (1 + 0.6 * (probes - 1))
    if known is None:
        work = n * calls + check * 2 * calls
        _say_plan(f"likelihood: {n} images by {calls} calls and {check} by {2 * calls}", work * each)
        settings, begun = {"probes": probes, "batch": options.batch}, time.perf_counter()
        found = likelihood(model, raw, calls=calls, **settings)
        seconds = time.perf_counter() - begun
        finer = likelihood(model, raw[:check], calls=2 * calls, **settings, what="bits/dim, twice the calls")
        rows = [dict(zip(found.COLUMNS, row, strict=True)) for row in found.rows()]
        common.write_csv(run.path / "likelihood.csv", rows)
        results.put(
            "likelihood",
            **{name: getattr(found, name) for name in ("method", "nfe", "t_min", "n", "offset", "noise")},
            calls=calls,
            probes=probes,
            seed=SEED,
            batch=options.batch,
            dequantization=str(found.dequantization),
            defect=found.defect.abs().mean().item(),
            seconds=seconds,
            prefixes=[_mean(found.bits[:k]) for k in prefixes(n)],
            bits=found.bits.tolist(),
            check={"n": check, "calls": 2 * calls, **_measured(paired_difference(found.bits[:check], finer.bits))},
        )
        known = found.bits
    if options.against:
        other = RunFolder.open(options.against)
        theirs = known_bits(Results(other), n, options)
        if theirs is None:
            _say_plan(f"likelihood of {other.path}", n * calls * each)
            model = other.model(run.config.train.device)
            theirs = likelihood(model, raw, calls=calls, probes=probes, batch=options.batch).bits
        rows = []
        for k in prefixes(n):
            difference = _measured(paired_difference(known[:k], theirs[:k]))
            rows.append({"n": k, **difference, "other": theirs[:k].mean().item()})
        results.put("against", other=str(other.path), other_step=other.step, rows=rows)


def known_bits(results: Results, n: int, options: argparse.Namespace) -> Tensor | None:
    """Bits/dim ``(n,)`` that a run folder has, of its newest checkpoint and by the same settings; None: not so many."""
    found = results.parts.get("likelihood", {"n": 0})
    wanted = {"calls": options.flow_calls, "probes": options.probes, "seed": SEED, "step": results.run.step}
    if found["n"] < n or any(found[name] != value for name, value in wanted.items()):
        return None
    return torch.tensor(found["bits"][:n], dtype=torch.float64)


def prefixes(n: int) -> list[int]:
    """How many of the first n images a mean is taken of, in turn."""
    return sorted({*(prefix for prefix in PREFIXES if prefix < n), n})


def _mean(values: Tensor) -> dict[str, float]:
    return {"n": len(values), "value": values.mean().item(), "stderr": values.std().item() / math.sqrt(len(values))}


def _measured(found: Measured) -> dict[str, float]:
    return {"value": found.value, "stderr": found.stderr}


def samples_of(run: RunFolder, model: Model, calls: int, options: argparse.Namespace) -> tuple[Tensor, float]:
    """Samples of the run's model, and images a second: from its folder, if it has so many, or new ones."""
    n, low = options.samples, options.bfloat16
    path = run.path / f"samples-{calls}{'-bfloat16' if low else ''}.npz"
    if path.is_file():
        with np.load(path) as kept:
            if (int(kept["step"]), int(kept["seed"])) == (run.step, SEED) and len(kept["raw"]) >= n:
                return torch.from_numpy(kept["raw"][:n]), float(kept["speed"])
    shape = model.net.config["shape"]
    raw, seconds = draw(model, n, shape, calls, autocast=torch.bfloat16 if low else None)
    np.savez_compressed(path, raw=raw.numpy(), step=run.step, seed=SEED, calls=calls, speed=n / seconds)
    return raw, n / seconds


def classifier_of(run: RunFolder, train: Data, test: Data, options: argparse.Namespace) -> tuple[Classifier, dict]:
    """The run's own classifier, or that of ``--classifier``: a run folder, or a classifier's."""
    folder = run.path if options.classifier is None else options.classifier
    nested = folder / "classifier"
    if options.classifier is not None and not nested.is_dir():
        nested = folder
        Classifier.load(nested)  # a mistyped folder is an error, not a place for a new one
    return classifier_in(nested, train, test, options.epochs)


def frechet_part(run: RunFolder, results: Results, train: Data, test: Data, options: argparse.Namespace) -> None:
    """Distances of samples by each number of calls, beside those of real images; and the speed."""
    classifier, facts = classifier_of(run, train, test, options)
    model, n = run.model(run.config.train.device), options.samples
    each = cost(model, test.shape, min(n, 250), gradient=False)
    calls = ", ".join(map(str, options.calls))
    _say_plan(f"samples: {n} by {calls} calls, as far as the folder lacks them", each * n * sum(options.calls))
    reference = Gaussian.of(features(classifier, test.raw))
    rows = []
    for calls in options.calls:
        raw, speed = samples_of(run, model, calls, options)
        found = distance(features(classifier, raw), reference)
        rows.append({"calls": calls, **found._asdict(), "images_per_second": speed})
        say(f"{calls} calls: Frechet distance {found}, {speed:.1f} images/s")
    real = {name: found._asdict() for name, found in yardsticks(classifier, train, test, n).items()}
    where = "this run" if options.classifier is None else str(options.classifier)
    results.put(
        "frechet",
        classifier={"from": where, **facts},
        precision="bfloat16" if options.bfloat16 else "float32",
        reference={"n": reference.n, "spread": reference.spread},
        samples=rows,
        real=real,
    )


def sheet_part(run: RunFolder, results: Results, train: Data, test: Data, options: argparse.Namespace) -> None:
    """The picture, and the check for memorised images."""
    classifier, _ = classifier_of(run, train, test, options)
    model, calls = run.model(run.config.train.device), max(options.calls)
    raw, _ = samples_of(run, model, calls, options)
    real = test.raw[: len(raw)]
    say(f"nearest of {len(train)} training images to {len(raw)} samples and {len(real)} test images")
    spaces = {
        "pixels": lambda images: images.flatten(1).float() / (test.num_values - 1),
        "features": lambda images: features(classifier, images).float(),
    }
    found, neighbours, distances = {}, {}, {}
    for space, of in spaces.items():
        items = of(train.raw)
        (ours, index), (theirs, _) = nearest(of(raw), items), nearest(of(real), items)
        check = memory(ours, theirs)
        found[space] = {
            "near": _measured(check.near),
            "area": _measured(check.area),
            "median_of_samples": ours.median().item(),
            "median_of_test_images": theirs.median().item(),
        }
        neighbours[space], distances[space] = train.raw[index], (ours, theirs)
    figure = sheet(raw, real, neighbours, distances)
    common.write_png(run.path / "sheet.png", figure, dpi=110, colours=256)
    arrays = {f"{space}_{kind}": d.numpy() for space, ds in distances.items() for kind, d in zip("st", ds, strict=True)}
    np.savez_compressed(run.path / "nearest.npz", **arrays)
    results.put("sheet", n=len(raw), calls=calls, **found)


def mosaic(images: Tensor, columns: int) -> np.ndarray:
    """Images ``(N, C, H, W)``, means over C, as one ``(rows H, columns W)``; what does not fill a row is left out."""
    tiles = torch.nn.functional.pad(images.double().mean(1), (1, 1, 1, 1))
    return torch.cat([torch.cat(list(row), 1) for row in tiles.split(columns) if len(row) == columns]).numpy()


def sheet(
    samples: Tensor, real: Tensor, neighbours: dict[str, Tensor], distances: dict[str, tuple[Tensor, Tensor]]
) -> Figure:
    """Samples and real images; the samples above their nearest training images, by each distance; all the distances.

    Of the pairs of rows the upper has the first samples, the lower those that are nearest to a training image.
    """
    from matplotlib.figure import Figure

    columns = 12
    rows = min(8, len(samples) // columns)
    width, heights = 11, (rows, 4.6, 6)  # in images
    figure = Figure(figsize=(width, sum(heights) * width / 2 / columns + 1.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=heights)

    def show(place: tuple[int, int], title: str, images: np.ndarray) -> None:
        axes = figure.add_subplot(grid[place])
        axes.imshow(images, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")

    show((0, 0), "samples", mosaic(samples[: rows * columns], columns))
    show((0, 1), "test images", mosaic(real[: rows * columns], columns))
    for place, (space, nearest_of) in enumerate(neighbours.items()):
        ours, theirs = distances[space]
        pairs = []
        for chosen in (torch.arange(columns), ours.argsort()[:columns]):
            pairs += [mosaic(torch.cat([samples[chosen], nearest_of[chosen]]), columns)]
        gap = np.zeros((samples.shape[2] // 2, pairs[0].shape[1]))
        title = f"samples above the nearest training images ({space})"
        show((1, place), title, np.concatenate([pairs[0], gap, pairs[1]]))
        axes = figure.add_subplot(grid[2, place])
        bins = np.linspace(0, max(ours.max().item(), theirs.max().item()), 60)
        for d, name in ((ours, "samples"), (theirs, "test images")):
            axes.hist(d.numpy(), bins, weights=np.full(len(d), 1 / len(d)), histtype="step", linewidth=1.6, label=name)
        axes.set(xlabel=f"distance to the nearest training image ({space})", ylabel="share", xlim=(0, None))
        axes.legend(frameon=False)
    return figure


# ---- the page -------------------------------------------------------------------------------------------------------


def rows_of(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """All figures, one a row."""
    rows = []
    if found := parts.get("likelihood"):
        for row in found["prefixes"]:
            rows.append({"part": "bits/dim", "what": f"first {row['n']} test images", "calls": found["calls"], **row})
        rows.append({"part": "bits/dim", "what": "half the calls less these", **found["check"]})
    for row in parts.get("against", {}).get("rows", ()):
        rows.append({"part": "bits/dim", "what": "less those of the other run", **row})
    if found := parts.get("frechet"):
        rows += [{"part": "frechet", "what": "samples", **row} for row in found["samples"]]
        rows += [{"part": "frechet", "what": name, **row} for name, row in found["real"].items()]
    for space in ("pixels", "features") if "sheet" in parts else ():
        for name in ("near", "area"):
            rows.append({"part": "nearest", "what": f"{name}, {space}", **parts["sheet"][space][name]})
    return rows


def page(run: RunFolder, parts: dict[str, dict[str, Any]]) -> str:
    """What the parts found, in Markdown."""
    text = []
    if found := parts.get("train"):
        c = run.config
        text.append(
            f"## Training\n\n{found['minutes']:g} minutes of training steps, {found['steps']} steps of "
            f"{c.train.batch_size} images, {found['weights']:,} weights, on {found['device']}; with saving and "
            f"measuring {found['seconds_with_saving'] / 60:.1f} minutes. All settings: `config.yaml` of the run folder."
        )
    if found := parts.get("likelihood"):
        lines = [[f"first {row['n']}", _figure(row), ""] for row in found["prefixes"]]
        check = found["check"]
        text.append(
            "## Bits/dim\n\n" + common.markdown(["test images", "bits/dim"], [line[:2] for line in lines]) + "\n\n"
            f"{found['method']}, {found['calls']} calls, probes a call: {found['probes']}, {found['dequantization']}, "
            f"t_min = {found['t_min']:.3g}; noise of probes and draws in the mean {found['noise']:.4f}, mean defect "
            f"{found['defect']:.4f}, due to the scaling {found['offset']:+.4f} bits/dim; {found['seconds']:.0f} s. "
            f"Less those by {check['calls']} calls, on the first {check['n']} images: {_figure(check, 4)}."
        )
    if found := parts.get("against"):
        lines = [[f"first {row['n']}", f"{row['other']:.3f}", _figure(row, 4)] for row in found["rows"]]
        table = common.markdown(["test images", "the other's bits/dim", "this run less the other"], lines)
        text.append(f"## Against `{found['other']}`\n\nOn the same noise and probes.\n\n{table}")
    if found := parts.get("frechet"):
        lines = []
        for row in found["samples"]:
            lines.append([f"samples by {row['calls']} calls", *_distance(row), f"{row['images_per_second']:.1f}"])
        lines += [[name, *_distance(row)] for name, row in found["real"].items()]
        header = ["images", "n", "distance", "of it bias", "images/s"]
        made = found["classifier"]
        text.append(
            "## Frechet distance\n\n" + common.markdown(header, lines) + "\n\n"
            f"Samples in {found['precision']}. From the {found['reference']['n']} test images, whose features have a "
            f"total variance of {found['reference']['spread']:.0f}. The classifier ({made['from']}) knows "
            f"{100 * made['accuracy']:.2f} +- {100 * made['stderr']:.2f} % of them after {made['epochs']} epochs of "
            f"{made['trained_on']} images."
        )
    if found := parts.get("sheet"):
        lines = []
        for space in ("pixels", "features"):
            row = found[space]
            near = {name: 100 * value for name, value in row["near"].items()}
            medians = f"{row['median_of_samples']:.3g}, {row['median_of_test_images']:.3g}"
            lines.append([space, f"{_figure(near, 2)} %", _figure(row["area"], 3), medians])
        header = ["distance in", "samples nearer than 1 % of the test images", "AUROC", "medians: samples, test images"]
        text.append(
            f"## Nearest training images\n\n{found['n']} samples by {found['calls']} calls\n\n"
            + common.markdown(header, lines)
            + "\n\nFresh images would have 1 % and 0.5. A blurred image is nearer in pixels than a sharp one."
        )
    if (path := run.path / "sheet.png").is_file() and "sheet" in parts:
        text.append(f"![samples]({path.name})")
    return "\n\n".join(text)


def _figure(row: dict[str, float], digits: int = 3) -> str:
    return f"{row['value']:.{digits}f} +- {row['stderr']:.{digits}f}"


def _distance(row: dict[str, float]) -> list[str]:
    return [str(row["n"]), _figure(row, 2), f"{row['bias']:.2f}"]


# ---- the command ----------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = common.parser("real", __doc__, quick="seconds of everything, to see that it runs", threads=2)
    settings = parser.add_argument_group("training")
    settings.add_argument("--data", type=Path, help=f"folder of idx files (default: the run's, or {FASHION})")
    settings.add_argument("--minutes", type=float, help=f"of training steps (default: the config's, or {MINUTES:g})")
    chosen = settings.add_mutually_exclusive_group()
    chosen.add_argument("--config", type=Path, help="settings in YAML, as of `scoresde train`")
    chosen.add_argument("--preset", help=f"settings by name (default: {PRESET})")
    settings.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one more setting")
    settings.add_argument("--seed", type=int, help="of the training (default: the config's, or 0)")
    figures = parser.add_argument_group("figures")
    figures.add_argument("--parts", default=",".join(PARTS), help="which, with commas (default: all)")
    figures.add_argument("--images", type=int, default=1000, help="test images to score (default: %(default)s)")
    figures.add_argument("--flow-calls", type=int, default=100, help="calls of a likelihood (default: %(default)s)")
    figures.add_argument("--probes", type=int, default=1, help="at each of them (default: %(default)s)")
    figures.add_argument("--check", type=int, default=128, help="images scored again by twice the calls (%(default)s)")
    figures.add_argument("--batch", type=int, default=BATCH, help="images scored at a time (default: %(default)s)")
    figures.add_argument("--against", type=Path, help="another run folder, for paired differences of bits/dim")
    figures.add_argument("--samples", type=int, default=2000, help="to draw (default: %(default)s)")
    figures.add_argument("--calls", default="10,20,30,50", help="of the sampler (default: %(default)s)")
    figures.add_argument("--bfloat16", action="store_true", help="draw the samples in low precision, which is faster")
    figures.add_argument("--classifier", type=Path, help="a run folder, or a classifier's (default: trained here)")
    figures.add_argument("--epochs", type=int, default=4, help="of the classifier (default: %(default)s)")
    parser.set_defaults(out=None)
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    for part in options.parts:
        if part not in PARTS:
            raise UnknownNameError("--parts", part, PARTS)
    options.calls = common.wholes("--calls", options.calls)
    for name in ("images", "check", "samples", "batch", "epochs", "probes"):
        least = {"images": 2, "check": 2, "samples": 12}.get(name, 1)  # standard errors; a row of the sheet
        if getattr(options, name) < least:
            raise ArgumentError(f"--{name}", getattr(options, name), f"{least} or more")
    return options


def quick_settings(options: argparse.Namespace) -> argparse.Namespace:
    """Sizes at which everything ends at once; the numbers then mean nothing."""
    small = {"images": 16, "flow_calls": 12, "check": 8, "samples": 48, "calls": [5, 8], "epochs": 2, "minutes": 0.05}
    options.set = [
        "data.n=512",
        "net.options={channels: 16, multipliers: [1, 2], blocks: 1, dropout: 0.0}",
        "train.batch_size=16",
        *options.set,
    ]
    return argparse.Namespace(**{**vars(options), **small})


def config_of(options: argparse.Namespace) -> RunConfig:
    """The settings of the training that the options ask for."""
    overrides = [f"data.source={json.dumps(str(options.data))}"]
    overrides += [] if options.seed is None else [f"train.seed={options.seed}"]
    overrides += [] if options.minutes is None else [f"train.minutes={options.minutes}"]
    preset = PRESET if options.config is None and options.preset is None else options.preset
    config = load_config(options.config, preset, [*overrides, *options.set])
    if config.train.minutes is None:
        config = load_config(options.config, preset, [*overrides, f"train.minutes={MINUTES}", *options.set])
    return config


def open_run(options: argparse.Namespace) -> tuple[RunFolder, Data, Data]:
    """The run folder, a new one where a training is asked for, and its training and test images.

    Raises:
        RunFolderError: no run, and no training is asked for.
        ArgumentError: the folder's run has other settings than the options ask for.
    """
    if not (options.out / "config.yaml").is_file() and "train" in options.parts:
        options.data = FASHION if options.data is None else options.data
        training, test = load(options.data)
        run = RunFolder.create(options.out, config_of(options), " ".join(sys.argv))
    else:
        run = RunFolder.open(options.out)
        check_settings(run, options)
        training, test = load(run.config.data.source)
    n = run.config.data.n
    return run, training if n is None else training.take(n, run.config.data.seed), test


def check_settings(run: RunFolder, options: argparse.Namespace) -> None:
    """Raise an ArgumentError if the options ask for other settings than a run has."""
    options.data = options.data or run.config.data.source
    given = (options.config, options.preset, options.seed, options.minutes, *options.set)
    asked = {"data": {"source": str(options.data)}}
    if any(value is not None for value in given):
        asked = asdict(config_of(options))
    kept = asdict(run.config)
    for section, values in asked.items():
        for key, value in values.items():
            if value != kept[section][key]:
                got = f"{run.path}, a run with {section}.{key} = {kept[section][key]}"
                raise ArgumentError("--out", got, f"a new folder for {value}, or no settings of the training at all")


def begin(options: argparse.Namespace) -> RunFolder:
    """The run folder to train in; a quick one starts anew."""
    if options.quick and (options.out / "config.yaml").is_file():
        shutil.rmtree(options.out)
    return open_run(options)[0]


def main(arguments: list[str] | None = None) -> None:
    """Run the parts, and write and print what all parts of the folder have found so far."""
    options = parse(arguments)
    if options.quick:
        options = quick_settings(options)
        options.out = (common.RESULTS if options.out is None else options.out) / "real-quick"
    options.out = Path("runs/fashion") if options.out is None else options.out
    if "train" in options.parts:
        torch.set_num_threads(max(1, options.threads // int(os.environ.get("WORLD_SIZE", 1))))
        if train_on_ranks(lambda: begin(options), None) is None:
            return  # of several processes the first goes on
    torch.set_num_threads(options.threads)
    run, training, test = open_run(options)
    if options.quick:
        test = test.take(min(256, len(test)))
    record = common.Record(
        "real",
        argparse.Namespace(quick=options.quick, out=options.out),
        f"{training.name}: {options.out.name}",
        arguments=arguments,
        seeds=f"training {run.config.train.seed}, the rest {SEED}",
    )
    results = Results(run)
    if "train" in options.parts:
        train_part(run, results)
    if "likelihood" in options.parts:
        likelihood_part(run, results, test, options)
    if "frechet" in options.parts:
        frechet_part(run, results, training, test, options)
    if "sheet" in options.parts:
        sheet_part(run, results, training, test, options)
    record.notes["parts"] = ", ".join(f"{name} of {found['date']}" for name, found in results.parts.items())
    record.write(rows_of(results.parts), page(run, results.parts))


if __name__ == "__main__":
    try:
        main()
    except Interrupted as interrupted:
        say(str(interrupted))
        sys.exit(interrupted.exit_code)
    except ScoreSDEError as error:
        sys.exit(f"Error: {error}")
