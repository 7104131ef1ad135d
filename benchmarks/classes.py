"""Guided samples of digits, and classification by conditional likelihoods.

A class-conditional U-Net is trained on the digits with 15 % of the labels hidden, and a noise-aware classifier beside
it. A support-vector machine on the pixels of real training digits judges the samples; it has seen neither network.
``spread`` is the variance of the samples within a class, divided by that of the real digits. Below 1, variety is lost.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import common  # first: it sets how threads wait

# isort: split
import torch
from torch import Tensor

from scoresde import VPSDE, Data, Model, ScoreModel, Trainer, TrainerConfig, load_data, sample
from scoresde.guidance import classifier_free_guidance, classifier_guidance
from scoresde.likelihood import Classification, classify
from scoresde.nets import build_net
from scoresde.random import spawn_generators
from scoresde.training import NoiseAwareClassifier, fit_classifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK_SECONDS = 15
PARTS = ("recognised", "bayes")
STEPS, CLASSIFIER_STEPS = 4000, 1500
LABEL_DROPOUT = 0.15
CONFIDENCES = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)


def trained(train: Data, steps: int = STEPS) -> ScoreModel:
    """Return a small class-conditional U-Net under VP, trained here.

    4000 steps take about 6 minutes on one core.
    """
    net = build_net({"name": "unet", "shape": list(train.shape), "classes": train.classes, "dropout": 0.1}, seed=0)
    model = ScoreModel.for_data(net, VPSDE(), train)
    trainer = Trainer(
        model,
        config=TrainerConfig(
            steps=steps,
            batch_size=64,
            lr=2e-3,
            warmup=min(100, steps // 2),
            ema_half_life=100.0,
            conditional=True,
            label_dropout=LABEL_DROPOUT,
            device="cpu",
        ),
    )
    trainer.fit(train)
    return trainer.averaged_model()


def guided(model: ScoreModel, classifier: NoiseAwareClassifier) -> dict[str, Model]:
    """Return the models to compare, by name."""
    unlabelled = classifier_free_guidance(model, 0.0)
    return {
        "no guidance, labels ignored": unlabelled,
        "conditional": model,
        "classifier-free, w = 1.5": classifier_free_guidance(model, 1.5),
        "classifier-free, w = 2": classifier_free_guidance(model, 2.0),
        "classifier-free, w = 3": classifier_free_guidance(model, 3.0),
        "classifier-free, w = 3, -6 < log-SNR < 4": classifier_free_guidance(model, 3.0, interval=(-6.0, 4.0)),
        "classifier-free, w = 3, rescale 0.7": classifier_free_guidance(model, 3.0, rescale=0.7),
        "classifier, w = 1": classifier_guidance(unlabelled, classifier, 1.0, conditional=True),
        "classifier, w = 2": classifier_guidance(unlabelled, classifier, 2.0, conditional=True),
    }


def spread(x: Tensor, labels: Tensor) -> float:
    """Return the variance within a class, averaged over the classes.

    It is summed over the entries.
    """
    flat, classes = x.flatten(1).double(), labels.unique()
    return sum(flat[labels == k].var(0, correction=0).sum().item() for k in classes) / len(classes)


def recognised(models: dict[str, Model], train: Data, held_out: Data, n: int) -> Iterator[dict]:
    """Yield the share of images that the judge assigns to their class.

    The first row has real held-out digits, the others ``n`` samples of each model.
    """
    from sklearn.svm import SVC

    def pixels(raw: Tensor):
        return raw.flatten(1).numpy() / 16

    judge = SVC(C=10.0, gamma=0.05).fit(pixels(train.raw), train.labels.numpy())
    whole = spread(train.raw, train.labels)

    def row(name: str, raw: Tensor, labels: Tensor) -> dict:
        share = float(judge.score(pixels(raw), labels.numpy()))
        error = math.sqrt(share * (1 - share) / len(raw))
        found = {"digits": name, "n": len(raw), "recognised": share, "stderr": error}
        return found | {"spread": spread(raw, labels) / whole}

    yield row("real, held out", held_out.raw, held_out.labels)
    labels = torch.arange(n) % train.classes
    for name, model in models.items():
        generator = torch.Generator().manual_seed(0)
        begun = time.perf_counter()
        x = sample(model, (n, *train.shape), cond={"y": labels}, generator=generator, chunk=250)
        yield row(name, train.to_raw(x), labels) | {"seconds": time.perf_counter() - begun}


def bayes(model: Model, data: Data, steps: int, batch: int = 60) -> Classification:
    """Classify items by their likelihoods under each label.

    Each item is dequantised once.
    """
    generator = torch.Generator().manual_seed(0)
    parts = []
    for begin in range(0, len(data), batch):
        raw = data.raw[begin : begin + batch]
        x = data.to_model(raw, generator)
        parts.append(classify(model, x, data.classes, steps=steps, generator=spawn_generators(generator, len(raw))))
    columns = [torch.cat(column) for column in list(zip(*parts, strict=True))[:3]]
    return Classification(*columns, parts[0].classes)


def reliability(found: Classification, labels: Tensor) -> list[dict]:
    """Return bins of confidence: the posterior's claim and the observed share."""
    confidence, right = found.log_posterior.exp().amax(1), found.label == labels
    rows = []
    for low, high in itertools.pairwise(CONFIDENCES):
        inside = (confidence > low) & (confidence <= high)
        n = int(inside.sum())
        if n:
            rows.append(
                {
                    "confidence": f"{low:g} to {high:g}",
                    "n": n,
                    "mean_confidence": confidence[inside].mean().item(),
                    "right": right[inside].double().mean().item(),
                }
            )
    return rows


def summary(found: Classification, labels: Tensor) -> dict:
    """Return accuracy, negative log posterior and calibration error.

    The negative log posterior of the true class is in nats. The expected calibration error is taken over the bins of
    :func:`reliability`.
    """
    rows, n = reliability(found, labels), len(labels)
    return {
        "n": n,
        "accuracy": (found.label == labels).double().mean().item(),
        "nats": -found.log_posterior.gather(1, labels[:, None]).mean().item(),
        "calibration_error": sum(row["n"] * abs(row["mean_confidence"] - row["right"]) for row in rows) / n,
        "stderr_of_a_likelihood": found.stderr.mean().item(),
    }


def figure_of(rows: list[dict]) -> Figure:
    """Draw recognition and spread of the samples, and a reliability diagram."""
    from matplotlib.figure import Figure

    samples, _, bins = ([row for row in rows if row["part"] == part] for part in (*PARTS, "reliability"))
    figure = Figure(figsize=(5.5 * bool(samples) + 3.6 * bool(bins), 3.6), layout="constrained")
    widths = [width for width, mine in ((5.5, samples), (3.6, bins)) if mine]
    panels = iter(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    if samples:
        axes = next(panels)
        names = [row["digits"] for row in samples][::-1]
        axes.barh(names, [row["spread"] for row in samples][::-1], color="0.8", label="spread")
        shares, errors = ([row[name] for row in samples][::-1] for name in ("recognised", "stderr"))
        axes.errorbar(shares, names, xerr=errors, fmt="o", color="C0", label="recognised")
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
    if bins:
        axes = next(panels)
        axes.plot([0, 1], [0, 1], color="0.8")
        axes.plot([row["mean_confidence"] for row in bins], [row["right"] for row in bins], "o-")
        for row in bins:
            place = (row["mean_confidence"], row["right"])
            axes.annotate(f"n = {row['n']}", place, xytext=(-4, -12), textcoords="offset points", ha="right")
        axes.set(xlabel="mean confidence in a bin", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    return figure


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = common.parser("classes", __doc__, quick="an untrained model, to see that all runs")
    parser.add_argument("--parts", default=",".join(PARTS), help="which tables")
    parser.add_argument("--model", type=Path, help="a folder with a class-conditional model of the digits")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--images", type=int, default=360, help="held-out digits to classify")
    parser.add_argument("--steps", type=int, default=40, help="network calls of a likelihood")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the parts and write the record."""
    options = parse(arguments)
    quick, parts = options.quick, common.names("--parts", options.parts, PARTS)
    torch.set_num_threads(options.threads)
    seeds = "0 for training, samples and probes"
    record = common.Record(
        "classes", options, "Classes of digits", arguments=arguments, seeds=seeds, peers=["scikit-learn"]
    )
    train, held_out = load_data("digits")
    if options.model is None:
        model = trained(train, 4 if quick else STEPS)
    else:
        model = ScoreModel.from_pretrained(options.model)
    measured, text = [], []
    if "recognised" in parts:
        generator = torch.Generator().manual_seed(0)
        classifier = fit_classifier(model.sde, train, steps=4 if quick else CLASSIFIER_STEPS, generator=generator)
        rows = list(recognised(guided(model, classifier), train, held_out, 10 if quick else options.samples))
        measured += [{"part": "recognised", **row} for row in rows]
        text += ["## Recognised by a support-vector machine trained on real digits", common.table(rows)]
    if "bayes" in parts:
        items = held_out.take(2 if quick else options.images)
        found = bayes(model, items, 20 if quick else options.steps)
        rows, bins = [summary(found, items.labels)], reliability(found, items.labels)
        measured += [{"part": "bayes", **row} for row in rows] + [{"part": "reliability", **row} for row in bins]
        text += ["## Bayes by likelihoods, held-out digits", common.table(rows), common.table(bins)]
    record.write(measured, "\n\n".join(text), figure_of(measured))


if __name__ == "__main__":
    main()
