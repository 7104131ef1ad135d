"""What matters in training: variants at equal processor time, paired.

Each variant trains for ``--minutes`` of processor time on one thread. Other processes do not shorten that time.
Learning rate and weight average follow the time, not the steps. All variants are scored on the same held-out images
with the same noise. The scores are the variational bound in bits/dim, as a paired difference from the base, and the
Frechet distance of samples. Each variant has its own folder; a variant found there is not trained again. ::

    python -m benchmarks.experiments --minutes 3 --work runs/experiments base fourier lr-low
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks import common  # first: it settles how torch's threads wait

# isort: split
import torch

from benchmarks import frechet, real_measures
from scoresde import ScoreModel, variational_bound
from scoresde.app import build
from scoresde.app.comparing import paired_difference
from scoresde.app.config_files import load_config
from scoresde.app.terminal import progress
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.files import write_atomically
from scoresde.training import Trainer

QUICK_SECONDS = 40

BASE = {
    "net.options.channels": 32,
    "net.options.multipliers": [1, 2, 2],
    "net.options.blocks": 1,
    "train.batch_size": 32,
    "train.lr": 3e-3,
    "train.clip": 10.0,
    "train.warmup": 100,
    "train.precision": "bfloat16",
    "train.weighting": "likelihood",
    "train.time_sampling": "log-snr",
}

#: what each variant changes of the base
VARIANTS = {
    "base": {},
    # the network
    "two-blocks": {"net.options.blocks": 2},
    "fourier": {"net.options.fourier_inputs": [7, 8]},
    "deep-widths": {"net.options.multipliers": [1, 2, 4]},
    "lean": {"net.options.channels": 16, "net.options.multipliers": [1, 4, 8]},
    "wide": {"net.options.channels": 48},
    "two-levels": {"net.options.multipliers": [1, 2]},
    "attention-14": {"net.options.attention": [-2, -1]},
    "no-attention": {"net.options.attention": []},
    "time-input-t": {"model.time_input": "time"},
    # what it predicts, and the process
    "velocity": {"model.predicts": "velocity"},
    "noise": {"model.predicts": "noise"},
    "cosine": {"sde.name": "vp-cosine"},
    # the objective
    "simple": {"train.weighting": "simple", "train.time_sampling": "low-discrepancy"},
    "simple-log-snr": {"train.weighting": "simple", "train.time_sampling": "log-snr"},
    "sigmoid": {"train.weighting": "sigmoid"},
    "sigmoid-5": {"train.weighting": "sigmoid", "train.sigmoid_gain": 5.0},
    "sigmoid-2": {"train.weighting": "sigmoid", "train.sigmoid_gain": 2.0},
    "edm-weighting": {"train.weighting": "edm", "train.time_sampling": "log-normal"},
    "uniform-times": {"train.time_sampling": "uniform"},
    # the optimiser
    "muon": {"train.optimizer": "muon"},
    "lr-low": {"train.lr": 1e-3},
    "lr-high": {"train.lr": 6e-3},
    "lr-higher": {"train.lr": 1.2e-2},
    "batch-16": {"train.batch_size": 16},
    "batch-64": {"train.batch_size": 64},
    "constant-lr": {"train.lr_decay": "none"},
    "beta2-999": {"train.betas": [0.9, 0.999]},
    "ema-long": {"train.ema_half_life": 0.15},
    # the arithmetic
    "float32": {"train.precision": "float32"},
    "channels-last": {"train.channels_last": True},
}


class _Timed(Trainer):
    """A trainer that measures processor time instead of wall-clock time."""

    timer = staticmethod(time.process_time)


def train(name: str, data, config) -> tuple[ScoreModel, dict]:
    """Train a variant; return its averaged model and facts on the training."""
    model = build.model(config, data)
    made = build.trainer(config, model, None)
    trainer = _Timed(model, made.objective, made.config)
    with progress(name, 100) as update:
        for record in trainer.records(data):
            past = trainer.seconds_trained / (60 * config.train.minutes)
            update(min(100, int(100 * past)), f"loss {record.loss:.4f}")
    return trainer.averaged_model(), {
        "steps": trainer.step,
        "images": trainer.step * config.train.batch_size,
        "weights": sum(p.numel() for p in model.net.parameters()),
    }


def score(model: ScoreModel, test, classifier, reference, options) -> dict:
    """Return the bound of the first held-out images and the Frechet distance."""
    generator = torch.Generator().manual_seed(1)
    bound = variational_bound(model, test.raw[: options.items], levels=16, batch=64, generator=generator)
    raw, _ = real_measures.draw(model, options.samples, test.shape, options.calls, autocast=torch.bfloat16)
    found = frechet.distance(frechet.features(classifier, raw), reference)
    return {"bits": bound.bits.tolist(), "frechet": found.value, "frechet_stderr": found.stderr}


def changes_of(name: str) -> dict:
    """Return the settings that a variant changes; ``a+b`` combines two.

    Raises:
        UnknownNameError: a name is not a variant.
    """
    parts = name.split("+")
    for part in parts:
        if part not in VARIANTS:
            raise UnknownNameError("variants", part, VARIANTS)
    return {key: value for part in parts for key, value in VARIANTS[part].items()}


def measure(name: str, options, train_data, test, classifier, reference) -> dict:
    """Train and score a variant, or read earlier results.

    Raises:
        ArgumentError: the earlier results have other sizes.
    """
    folder = options.work / name
    sizes = {size: getattr(options, size) for size in ("minutes", "items", "samples", "calls")}
    if (folder / "result.json").exists():
        found = json.loads((folder / "result.json").read_text())
        for size, value in sizes.items():
            if found[size] != value:
                raise ArgumentError(f"--{size}", value, f"{found[size]}, as of {folder}, or another --work")
        return found
    changes = {"train.minutes": options.minutes, **BASE, **changes_of(name)}
    config = load_config(
        preset="none",
        overrides=[f"data.source={options.data}", *(f"{key}={json.dumps(value)}" for key, value in changes.items())],
    )
    model, facts = train(name, train_data, config)
    result = facts | score(model, test, classifier, reference, options)
    model.save_pretrained(folder)
    write_atomically(folder / "result.json", json.dumps({"variant": name, **sizes, **result}) + "\n")
    return result


def shared_classifier(folder: Path, data) -> frechet.Classifier:
    """Return the classifier of all variants; train it if it is missing."""
    if not folder.exists():
        classifier = frechet.fit_classifier(data)
        classifier.save(folder)
    return frechet.Classifier.load(folder)[0]


def rows_of(results: dict[str, dict]) -> list[dict]:
    """Return one row per variant, with its paired difference from the base."""
    base, rows = results["base"], []
    for name, found in results.items():
        bits = torch.tensor(found["bits"], dtype=torch.float64)
        difference = {}
        if name != "base":
            mean, stderr = paired_difference(bits, torch.tensor(base["bits"], dtype=torch.float64))
            difference = {"to base": mean, "+-": stderr}
        rows.append(
            {
                "variant": name,
                "weights": found["weights"],
                "images": found["images"],
                "bound, bits/dim": bits.mean().item(),
                **difference,
                "Frechet": found["frechet"],
                "Frechet +-": found["frechet_stderr"],
            }
        )
    return rows


def main(arguments=None) -> None:
    options = common.parser("experiments", __doc__, quick="two variants, a few seconds each")
    options.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}, or several joined by + (default: all)")
    options.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of idx files")
    options.add_argument("--work", type=Path, default=Path("runs/experiments"), help="folder of the variants")
    options.add_argument("--minutes", type=float, default=3, help="processor time of each training")
    options.add_argument("--items", type=int, default=256, help="held-out images scored")
    options.add_argument("--samples", type=int, default=500)
    options.add_argument("--calls", type=int, default=15, help="network calls a sample")
    options = options.parse_args(arguments)
    names = options.variants or list(VARIANTS)
    for name in names:
        changes_of(name)
    names = list(dict.fromkeys(["base", *names]))
    if options.quick:
        names, options.minutes, options.items, options.samples = names[:2], 0.02, 16, 16
        options.work = options.work / "quick"
    torch.set_num_threads(options.threads)
    record = common.Record("experiments", options, "What matters in training", arguments=arguments, seeds="0")
    train_data, test = build.data(load_config(overrides=[f"data.source={options.data}"]).data)
    if options.quick:
        train_data, test = train_data.take(min(1000, len(train_data))), test.take(min(256, len(test)))
    classifier = shared_classifier(options.work / "classifier", train_data)
    reference = frechet.Gaussian.of(frechet.features(classifier, test.raw))
    record.notes["each"] = f"{options.minutes:g} minutes of processor time, {options.items} held-out images, "
    record.notes["each"] += f"{options.samples} samples by {options.calls} calls"
    results = {name: measure(name, options, train_data, test, classifier, reference) for name in names}
    record.write(rows := rows_of(results), common.table(rows))


if __name__ == "__main__":
    main()
