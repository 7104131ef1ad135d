"""Fashion-MNIST: what a model reaches in a stated training time.

    python -m benchmarks.real [--quick] [--data FOLDER] [--minutes 30] [--config FILE | --preset NAME]
        [--set train.lr=1e-3] [--out RUNFOLDER] [--parts train,likelihood,frechet,sheet] [--against RUNFOLDER]

Under ``torchrun --nproc-per-node 2 -m benchmarks.real`` two processes share the training's batches and the threads of
``--threads``. For small batches that is faster than two threads of one process. The first process goes on with the
other parts.

The run folder holds everything, and ``scoresde sample``, ``likelihood`` and ``report`` accept it. Each part can be run
again on a finished run. The minutes count training steps alone; measuring the loss on held-out data, checkpoints and
the parts below are extra. The test images influence no choice: the model is the averaged one at the end of the time.

The parts are:

- likelihood: bits/dim of the first test images by the probability flow, with uniform dequantisation. Some images are
  scored again with twice the calls. ``--against`` adds the difference from another run, on the same noise and probes.
- frechet: distance of samples from the 10000 test images in the features of a classifier. It is trained in the same
  run, or taken from another one (``--classifier``). The distances of real images, whole, noisy and blurred, are added.
- sheet: samples, real images and the samples' nearest training images. The part also compares how near samples and test
  images are to the training images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import common  # first: it sets how threads wait

# isort: split
import torch

from scoresde import Data
from scoresde.app.config import RunConfig
from scoresde.app.config_files import load_config
from scoresde.app.runs import Interrupted, RunFolder
from scoresde.app.terminal import say
from scoresde.app.training import train_on_ranks
from scoresde.errors import ArgumentError, ScoreSDEError, UnknownNameError

if TYPE_CHECKING:
    pass

from benchmarks.real_measures import BATCH, FASHION, SEED, load
from benchmarks.real_page import page, rows_of
from benchmarks.real_parts import Results, frechet_part, likelihood_part, sheet_part, train_part

QUICK_SECONDS = 20
PRESET = "fashion-unet-small"
MINUTES = 30.0
PARTS = ("train", "likelihood", "frechet", "sheet")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options."""
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
    """Return sizes at which everything ends at once; the numbers mean nothing."""
    small = {"images": 16, "flow_calls": 18, "check": 8, "samples": 48, "calls": [5, 8], "epochs": 2, "minutes": 0.05}
    options.set = [
        "data.n=512",
        "net.options={channels: 16, multipliers: [1, 2], blocks: 1, dropout: 0.0}",
        "train.batch_size=16",
        *options.set,
    ]
    return argparse.Namespace(**{**vars(options), **small})


def config_of(options: argparse.Namespace) -> RunConfig:
    """Return the training settings that the options describe."""
    overrides = [f"data.source={json.dumps(str(options.data))}"]
    overrides += [] if options.seed is None else [f"train.seed={options.seed}"]
    overrides += [] if options.minutes is None else [f"train.minutes={options.minutes}"]
    preset = PRESET if options.config is None and options.preset is None else options.preset
    config = load_config(options.config, preset, [*overrides, *options.set])
    if config.train.minutes is None:
        config = load_config(options.config, preset, [*overrides, f"train.minutes={MINUTES}", *options.set])
    return config


def open_run(options: argparse.Namespace) -> tuple[RunFolder, Data, Data]:
    """Return the run folder and its training and test images.

    The folder is new if it holds no run and the options include a training.

    Raises:
        RunFolderError: there is no run, and the options include no training.
        ArgumentError: the run has other settings than the options say.
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
    """Raise an ArgumentError if the options disagree with the run's settings."""
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
    """Return the run folder to train in; a quick run replaces an earlier one."""
    if options.quick and (options.out / "config.yaml").is_file():
        shutil.rmtree(options.out)
    return open_run(options)[0]


def main(arguments: list[str] | None = None) -> None:
    """Run the parts; write and print the results of all parts in the folder."""
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
