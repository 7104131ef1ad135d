"""The parts of benchmarks/real.py.

Each part measures a run and keeps its results in the run's folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import TYPE_CHECKING, Any

from benchmarks import common  # first: it sets how threads wait

# isort: split
import numpy as np
import torch
from torch import Tensor

from benchmarks.frechet import (
    Classifier,
    Gaussian,
    distance,
    features,
)
from scoresde import Data, Model
from scoresde.app.comparing import Measured, paired_difference
from scoresde.app.runs import RunFolder
from scoresde.app.terminal import duration, say

if TYPE_CHECKING:
    pass

from benchmarks.real_measures import SEED, classifier_in, cost, draw, likelihood, memory, nearest, yardsticks
from benchmarks.real_page import sheet

PREFIXES = (256, 1000)  # numbers of test images whose bits/dim are stated, if that many were scored


class Results:
    """``results.json`` of a run folder.

    It holds the results of each part, with the settings.
    """

    def __init__(self, run: RunFolder):
        self.path = run.path / "results.json"
        self.parts: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.run = run

    def put(self, part: str, **found: Any) -> None:
        """Keep the results of a part; they replace its earlier ones."""
        self.parts[part] = {"step": self.run.step, "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), **found}
        self.run.write("results.json", json.dumps(self.parts, indent=1) + "\n")


def _say_plan(what: str, seconds: float) -> None:
    say(f"{what}: about {duration(seconds)}")


def train_part(run: RunFolder, results: Results) -> None:
    """Note the facts of the training."""
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
    """Measure bits/dim, their convergence and the difference from another run."""
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
    """Return bits/dim ``(n,)`` that a run folder already holds, or None.

    They must be of its newest checkpoint, by the same settings, for at least n images.
    """
    found = results.parts.get("likelihood", {"n": 0})
    wanted = {"calls": options.flow_calls, "probes": options.probes, "seed": SEED, "step": results.run.step}
    if found["n"] < n or any(found[name] != value for name, value in wanted.items()):
        return None
    return torch.tensor(found["bits"][:n], dtype=torch.float64)


def prefixes(n: int) -> list[int]:
    """Return the numbers of images over which means are taken."""
    return sorted({*(prefix for prefix in PREFIXES if prefix < n), n})


def _mean(values: Tensor) -> dict[str, float]:
    return {"n": len(values), "value": values.mean().item(), "stderr": values.std().item() / math.sqrt(len(values))}


def _measured(found: Measured) -> dict[str, float]:
    return {"value": found.value, "stderr": found.stderr}


def samples_of(run: RunFolder, model: Model, calls: int, options: argparse.Namespace) -> tuple[Tensor, float]:
    """Return samples of the run's model and images per second.

    They come from the run's folder if it has enough of them; otherwise they are drawn.
    """
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
    """Return the run's own classifier, or that of ``--classifier``.

    ``--classifier`` names a run folder or a classifier's folder.
    """
    folder = run.path if options.classifier is None else options.classifier
    nested = folder / "classifier"
    if options.classifier is not None and not nested.is_dir():
        nested = folder
        Classifier.load(nested)  # a mistyped folder is an error, not a place for a new one
    return classifier_in(nested, train, test, options.epochs)


def frechet_part(run: RunFolder, results: Results, train: Data, test: Data, options: argparse.Namespace) -> None:
    """Measure the distance of samples for each number of calls, and the speed.

    The distances of real images stand beside them.
    """
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
    """Draw the sheet and check for memorised images."""
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
