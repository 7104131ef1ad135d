"""The command line.

Commands import torch and the rest of the package when they run, so that ``--help`` is immediate.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scoresde.app.command_group import Group
from scoresde.app.config import CORRUPTED, RestoreConfig
from scoresde.app.opening import FIXED, begin_run, open_run, with_overrides
from scoresde.app.options import (
    DEVICE,
    LIKELIHOOD,
    SAMPLE,
    any_setting,
    new_run,
    options_for,
    options_of,
    override_texts,
    run_argument,
    together,
)
from scoresde.training.config import ClassifierConfig
from scoresde.version import __version__

if TYPE_CHECKING:
    from scoresde.app.observing import Problem
    from scoresde.data import Data


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="scoresde")
def main() -> None:
    """Train score-based generative models, draw samples, and score data.

    Start with `scoresde demo`. In about three minutes it trains a model of handwritten digits and writes a page of
    samples and likelihoods. `scoresde COMMAND --help` explains each command.
    """


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/demo", show_default=True, help="A new folder.")
@new_run
@any_setting
def demo(out: Path, **options: Any) -> None:
    """Train, sample, score and report, all in about three minutes.

    Ctrl-C stops it without loss; the same command with --resume continues.

    \b
    Examples:
      scoresde demo
      scoresde demo --data two-moons --out runs/moons
      scoresde demo --out runs/demo --resume
    """
    from scoresde.app.demo import demo as work
    from scoresde.app.terminal import duration, say

    run = begin_run(out, **options)
    page = work(run, run.config)
    spent = sum(stage["seconds"] for stage in run.meta["stages"].values())
    say(f"Done: {duration(spent)} of work. Open {page} in a browser.")
    say(f"It ends with commands to try next, such as: scoresde sample {shlex.quote(str(out))} -n 100")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="A new folder; by default runs/ and the name of the data.")
@new_run
@any_setting
def train(out: Path | None, **options: Any) -> None:
    """Train a model, and keep everything about it in one folder.

    Settings come from the defaults for the data, then --config, then --set and the other options. Ctrl-C saves a
    checkpoint and stops. --resume continues as if the run had never stopped.

    \b
    Examples:
      scoresde train --data digits --out runs/digits
      scoresde train --data two-moons --sde ve --out runs/moons
      scoresde train --data my-images/ --size 32 --classes
      scoresde train --out runs/digits --resume
      scoresde train --data digits --out runs/digits --resume auto  (begins it, or goes on: for schedulers)
    """
    from scoresde.app.terminal import say
    from scoresde.app.training import train_on_ranks

    run = train_on_ranks(lambda: begin_run(out, **options), options["device"])
    if run is None:
        return
    folder = shlex.quote(str(run.path))
    say(f"Trained: {run.path}. Next commands:")
    for following in ("sample", "evaluate", "report"):
        say(f"  scoresde {following} {folder}")


@main.command()
@run_argument
@options_for(SAMPLE)
@click.option("--stochastic", is_flag=True, help="Draw noise in each step: the reverse SDE for dpm, eta = 1 for ddim.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write here, not in RUN.")
@click.option("--png", is_flag=True, help="Write each image as a PNG, too, in a folder beside the .npz file.")
@any_setting
def sample(run: Path, out: Path | None, stochastic: bool, png: bool, overrides: Sequence[str], **options: Any) -> None:
    """Draw samples from the model in RUN.

    Writes samples-SAMPLER.npz in RUN (samples-SAMPLER-stochastic.npz with --stochastic) and a picture. The file has the
    arrays x (model units) and raw (the data's units). Earlier samples of the same sampler are replaced.

    \b
    Examples:
      scoresde sample runs/digits -n 100 --png
      scoresde sample runs/digits --sampler dpm --steps 20
      scoresde sample runs/digits --sampler dpm --stochastic --steps 50 -n 10000 --batch 500
      scoresde sample runs/digits --sampler ode --seed 1 --out more.npz
      scoresde sample runs/classes --label 3 --guidance 2
      scoresde sample runs/classes --guidance 3 --interval -6 4 --rescale 0.7
      scoresde sample runs/digits --label 3 --classifier runs/digits/classifier --scale 2
    """
    from scoresde.app.drawing import sample as work
    from scoresde.app.training import on_ranks

    folder = open_run(run)
    config = with_overrides(folder, override_texts(overrides, SAMPLE | DEVICE, options))
    with on_ranks(options["device"]):
        work(folder, config, out, stochastic, png)


_restoring = together(
    click.option("--data", metavar="NAME|PATH", help="Items to restore; by default the run's held-out data."),
    options_of(RestoreConfig),
    click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write here, not in RUN/restored."),
    any_setting,
)


def _restore(
    run: Path,
    data: str | None,
    out: Path | None,
    overrides: Sequence[str],
    device: str | None,
    problem: Callable[[Data, int], Problem],
    **settings: Any,
) -> None:
    """Restore items; ``problem(data, seed)`` is what a command observes."""
    from scoresde.app import build, restoring
    from scoresde.app.training import on_ranks

    folder = open_run(run)
    config = with_overrides(folder, override_texts(overrides, DEVICE, {"device": device}))
    items = build.complete_data(config.data)[1] if data is None else build.other_data(config, data)
    seen = problem(items, settings["seed"])
    if data is not None:
        seen = seen._replace(name=f"{seen.name}-{Path(data).stem}")
    with on_ranks(device):
        restoring.restore(folder, config, items, seen, RestoreConfig(**settings), out)


@main.command()
@run_argument
@click.option(
    "--mask",
    required=True,
    metavar="MASK",
    help="half, center, random:SHARE (the known share), an .npy file of 0 and 1, or a black and white picture.",
)
@_restoring
def inpaint(mask: str, **options: Any) -> None:
    """Draw the unknown part of items given the rest.

    Held-out items are masked, noise is added, and samples of the whole items are drawn. Writes arrays.npz (truth,
    observation, samples, mean, std), sheet.png and figures.json into RUN/restored/inpaint-MASK. `scoresde report`
    shows them.

    \b
    Examples:
      scoresde inpaint runs/digits --mask half
      scoresde inpaint runs/digits --mask random:0.3 --limit 16 --samples 32
      scoresde inpaint runs/digits --mask mask.png --data mine.npy --method replacement --noise 0
    """
    from scoresde.app.observing import inpainting

    _restore(problem=lambda data, seed: inpainting(data, mask, seed), **options)


@main.command()
@run_argument
@_restoring
def colorize(**options: Any) -> None:
    """Draw the colours of grey images.

    The grey image is the mean of the three channels plus noise. Writes arrays.npz, sheet.png and figures.json
    into RUN/restored/colorize.

    \b
    Example:
      scoresde colorize runs/cifar10 --limit 16
    """
    from scoresde.app.observing import colorization

    _restore(problem=lambda data, seed: colorization(data), **options)


@main.command()
@run_argument
@click.option(
    "--task",
    required=True,
    metavar="NAME",
    help="superresolution (means of blocks), bicubic, deblur, projection (random) or tomography.",
)
@click.option("--factor", type=int, help="For superresolution, bicubic, projection: entries per observed number (2).")
@click.option("--width", type=float, help="For deblur: standard deviation of the Gaussian in pixels (1).")
@click.option("--lines", type=int, help="For tomography: number of directions (8).")
@_restoring
def restore(task: str, factor: int | None, width: float | None, lines: int | None, **options: Any) -> None:
    """Draw items given a small, blurred or projected version of them.

    Writes arrays.npz, sheet.png and figures.json into RUN/restored/TASK.

    \b
    Examples:
      scoresde restore runs/digits --task superresolution --factor 2
      scoresde restore runs/digits --task deblur --width 1.5 --noise 0.02
      scoresde restore runs/digits --task projection --factor 4 --particles 32
    """
    from scoresde.app.observing import restoration

    _restore(problem=lambda data, seed: restoration(data, task, factor, width, lines, seed), **options)


@main.command()
@run_argument
@options_of(ClassifierConfig)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights, batches and noise.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write here, not in RUN/classifier.")
@any_setting
def classifier(run: Path, out: Path | None, overrides: Sequence[str], device: str | None, **options: Any) -> None:
    """Train a classifier of noisy data that guides the model in RUN.

    It learns the classes of the run's training data at every noise level. `scoresde sample RUN --label 3
    --classifier RUN/classifier` uses it; the model itself can be unconditional.

    \b
    Example:
      scoresde classifier runs/digits
    """
    from scoresde.app.classifying import train_classifier

    folder = open_run(run)
    config = with_overrides(folder, override_texts(overrides, DEVICE, {"device": device}))
    train_classifier(folder, config, out, **options)


@main.command()
@run_argument
@click.option("--data", metavar="NAME|PATH", help="Other data to score: all items of a file or folder.")
@click.option(
    "--against",
    multiple=True,
    metavar="NAME|PATH|KIND",
    help="A second data set to compare log p with: other data, or the first corrupted (shuffled-pixels, "
    "rows-shuffled, inverted). May be repeated.",
)
@click.option(
    "--paired",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Another run to compare on the same items, noise and probes.",
)
@options_for(LIKELIHOOD)
@any_setting
def likelihood(
    run: Path,
    data: str | None,
    against: Sequence[str],
    paired: Path | None,
    overrides: Sequence[str],
    **options: Any,
) -> None:
    """Compute the log-likelihood of held-out data under the model in RUN.

    Results are in bits/dim for integer data (images) and in nats for continuous data, with the standard error of the
    mean. Each item is in likelihood.csv, and pictures/ has the histogram. --against adds the area under the ROC curve
    (AUROC), --paired the difference of two models.

    \b
    Examples:
      scoresde likelihood runs/digits
      scoresde likelihood runs/digits --data other.npy
      scoresde likelihood runs/digits --against shuffled-pixels --against letters.npz
      scoresde likelihood runs/digits --paired runs/digits-ve
    """
    from scoresde.app import build, scoring
    from scoresde.app.training import on_ranks

    folder = open_run(run)
    other = None if paired is None else open_run(paired)
    config = with_overrides(folder, override_texts(overrides, LIKELIHOOD | DEVICE, options), () if data else FIXED)
    if data is None:
        name, first = "likelihood", build.complete_data(config.data)[1]
    else:
        name, first = f"likelihood-{Path(data).stem}", scoring.other_data(config, data)
    seconds = {source: scoring.other_data(config, source, corrupting=first) for source in against}
    with on_ranks(options["device"]):
        scores = scoring.likelihood(folder, config, first, name)
        for source, second in seconds.items():
            scoring.against(folder, config, scores, second, f"{name}-against-{Path(source).stem}")
        if other is not None:
            scoring.paired(folder, config, scores, first, other, f"{name}-paired-{other.path.name}")


@main.command()
@run_argument
@click.option(
    "--corrupted",
    type=click.IntRange(0),
    default=CORRUPTED,
    show_default=True,
    help="Images to corrupt in each way.",
)
@click.option(
    "--images",
    type=click.IntRange(2),
    metavar="N",
    help="Write N samples and as many items of the data as PNG files and .npz, for other libraries' metrics.",
)
@click.option("--metrics", is_flag=True, help="Compute FID, KID, IS, precision and recall of --images (extra metrics).")
@options_for(LIKELIHOOD)
@any_setting
def evaluate(
    run: Path, corrupted: int, images: int | None, metrics: bool, overrides: Sequence[str], **options: Any
) -> None:
    """Compare the model in RUN with baselines, and corrupted data with clean.

    The baselines are a Gaussian and a mixture of 60 Gaussians, fitted to the same training data. Writes evaluation.json
    and a picture. --images writes RUN/images instead: folders of PNG files, which clean-fid and torch-fidelity read,
    and .npz files with arr_0 (N, H, W, 3), which ADM's evaluator reads.

    \b
    Examples:
      scoresde evaluate runs/digits
      scoresde evaluate runs/cifar10 --images 50000 --metrics
    """
    from scoresde.app.scoring import evaluate as work

    folder = open_run(run)
    config = with_overrides(folder, override_texts(overrides, LIKELIHOOD | DEVICE, options))
    if metrics and images is None:
        raise click.UsageError("--metrics needs --images N, the number of samples.")
    if images is None:
        work(folder, config, corrupted)
    else:
        from scoresde.app.imaging import write_images

        write_images(folder, config, images, metrics)


@main.command()
@run_argument
@click.argument("repository", metavar="USER/MODEL")
@click.option("--license", metavar="NAME", help="Licence of the weights for the card, such as mit.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write there instead of uploading.")
def push(run: Path, repository: str, license: str | None, private: bool, out: Path | None) -> None:
    """Upload the model in RUN to the hub of Hugging Face, with a card.

    The card has the data, the process, the figures of `scoresde evaluate` and pictures of samples. Needs the extra hub
    and a token (`hf auth login`). `ScoreModel.from_pretrained("USER/MODEL")` loads the model.

    \b
    Examples:
      scoresde push runs/digits me/digits --license mit
      scoresde push runs/digits me/digits --out card
    """
    from scoresde.app.pushing import push as work

    work(open_run(run), repository, license=license, private=private, out=out)


@main.command()
@run_argument
@any_setting
def report(run: Path, overrides: Sequence[str], device: str | None) -> None:
    """Write report.html, one page with all results in RUN.

    \b
    Example:
      scoresde report runs/digits
    """
    from scoresde.app.pages import write_report
    from scoresde.app.terminal import say

    folder = open_run(run)
    page = write_report(folder, with_overrides(folder, override_texts(overrides, DEVICE, {"device": device})))
    say(f"Open {page} in a browser.")


@main.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Draw some items into this PNG file.")
@any_setting
def data(source: str, out: Path | None, overrides: Sequence[str], **_: Any) -> None:
    """Show what would be learned from SOURCE, before any training.

    Prints how the axes and the values were understood, the classes, the lengths of the data, and the noise levels that
    suit them. SOURCE is a name or a path, as for `scoresde train --data`.

    \b
    Examples:
      scoresde data digits
      scoresde data series.npy --set data.layout=channels-last --out series.png
    """
    from scoresde.app.config_files import load_config
    from scoresde.app.describing import describe

    describe(load_config(None, None, [f"data.source={json.dumps(source)}", *overrides]), out)


@main.group(cls=Group)
def course() -> None:
    """Ten labs that check themselves, as notebooks."""


@course.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--solutions", is_flag=True, help="Write the solutions too, into FOLDER/solutions.")
def start(folder: Path, solutions: bool) -> None:
    """Write the labs into FOLDER, which must be new or empty.

    Each is a notebook with functions to write, and check(lab, function) says whether one is right, or which slip it
    makes.

    \b
    Example:
      scoresde course start labs
    """
    from scoresde.app.terminal import say
    from scoresde.course import start as work

    written = work(folder, solutions=solutions)
    say(f"{len(written)} notebooks in {folder}. Open them by: jupyter lab {folder}")


@main.command()
@click.argument("section", required=False, metavar="[SECTION]")
def settings(section: str | None) -> None:
    """List all settings with default, accepted values and meaning.

    Each can be given in a YAML file (--config) or by --set section.key=value. SECTION shows one section alone.

    \b
    Examples:
      scoresde settings
      scoresde settings train
    """
    from scoresde.app.reference import config_reference

    click.echo(config_reference(section), nl=False)
