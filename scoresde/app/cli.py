"""The command line.

Commands import torch and the rest of the package when they run, so that ``--help`` is immediate.
"""

from __future__ import annotations

import difflib
import errno
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import click

from scoresde.app.config import CORRUPTED, SECTIONS, RestoreConfig
from scoresde.errors import ArgumentError, ScoreSDEError
from scoresde.settings import Setting, Settings, settings_of
from scoresde.training.config import ClassifierConfig
from scoresde.version import __version__

if TYPE_CHECKING:
    from scoresde.app.config import RunConfig
    from scoresde.app.observing import Problem
    from scoresde.app.runs import RunFolder
    from scoresde.data import Data

F = TypeVar("F", bound=Callable[..., Any])
BAD_INPUT, FAILURE = 2, 1


# --- errors ----------------------------------------------------------------------------------------------------------


def exit_code(error: Exception) -> int:
    """Return 2 for bad input, and 1 for a failure of the run.

    Failures are a loss that is NaN, a full disk, or a tolerance that was not reached.
    """
    cause = error.__cause__
    broken = isinstance(cause, OSError) and cause.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return BAD_INPUT if isinstance(error, ArgumentError) and not broken else FAILURE


class _Command(click.Command):
    """A command whose errors are one line, or a traceback with ``--debug``."""

    def invoke(self, ctx: click.Context) -> Any:
        from scoresde.app.runs import Interrupted

        try:
            return super().invoke(ctx)
        except Interrupted as stopped:
            click.echo(str(stopped))
            ctx.exit(stopped.exit_code)
        except KeyboardInterrupt:
            click.echo("\nStopped.", err=True)
            ctx.exit(130)
        except (ScoreSDEError, OSError) as error:
            if ctx.meta.get("scoresde.debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(exit_code(error))


class _Group(click.Group):
    command_class = _Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"Unknown command {args[0]!r}.{hint} Commands are {', '.join(self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)


# --- options that stand for settings ---------------------------------------------------------------------------------


def setting_of(key: str) -> Setting:
    """Return the setting of a key such as ``train.steps``."""
    section, name = key.split(".")
    return next(one for one in settings_of(SECTIONS[section]) if one.name == name)


def _text(setting: Setting) -> str:
    """Return a setting's explanation as a sentence for an option's help."""
    text = setting.text.replace("; None: ", "; by default ")
    names = f": {', '.join(setting.choices)}" if setting.choices and setting.choices[0] not in text else ""
    return f"{text[0].upper()}{text[1:]}{names}."


def _option(flag: str, one: Setting, **extra: Any) -> Callable[[F], F]:
    """Return the option that stands for a setting."""
    kind = next(option for option in one.options if option is not type(None))
    form: dict[str, Any] = {"type": kind}
    if one.choices:
        form = {"metavar": "NAME"}
    elif get_origin(kind) is tuple:
        form = {"type": float, "nargs": len(get_args(kind)), "metavar": "LOW HIGH"}
    return click.option(flag, help=_text(one), **(form | extra))


def _settings(keys: Mapping[str, str]) -> Callable[[F], F]:
    """Return a decorator that adds options; ``keys`` maps flags to settings."""
    return _options(*(_option(flag, setting_of(key)) for flag, key in keys.items()))


def _of(cls: type[Settings]) -> Callable[[F], F]:
    """Return a decorator that adds an option for each field of a class."""
    return _options(
        *(
            _option(
                f"--{one.name.replace('_', '-')}",
                one,
                default=one.default,
                show_default=one.default is not None,
            )
            for one in settings_of(cls)
        )
    )


def _overrides(given: Sequence[str], keys: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    """Return the ``--set`` texts and those of the given options in ``keys``."""
    named = {key: values[flag.lstrip("-").replace("-", "_")] for flag, key in keys.items()}
    return [*given, *(f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None)]


_DEVICE = {"--device": "train.device"}
_TRAIN = {
    "--data": "data.source",
    "--sde": "sde.name",
    "--steps": "train.steps",
    "--batch-size": "train.batch_size",
    "--seed": "train.seed",
}
_SAMPLE = {
    "-n": "sample.n",
    "--sampler": "sample.sampler",
    "--steps": "sample.steps",
    "--batch": "sample.batch",
    "--label": "sample.label",
    "--guidance": "sample.guidance",
    "--interval": "sample.interval",
    "--rescale": "sample.rescale",
    "--classifier": "sample.classifier",
    "--scale": "sample.scale",
    "--seed": "sample.seed",
}
_LIKELIHOOD = {"-n": "likelihood.n", "--seed": "likelihood.seed"}

#: sections that a run keeps as it was begun with
FIXED = ("data", "sde", "model", "net")


# --- options that commands share -------------------------------------------------------------------------------------


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["scoresde.debug"] = value


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator for several."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_any_setting = _options(
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change any setting; may be repeated."),
    _settings(_DEVICE),
    click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_debug,
        help="Show errors with a traceback.",
    ),
)
_new_run = _options(
    click.option(
        "--preset", metavar="NAME", help="Settings by name, such as cifar10-ddpm; by default those of the data."
    ),
    click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="A YAML file of settings."),
    _settings(_TRAIN),
    click.option("--resume", is_flag=True, help="Continue the run in --out from its newest checkpoint."),
)
_run = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")


def _begin(
    out: Path | None, config: Path | None, preset: str | None, resume: bool, overrides: Sequence[str], **given: Any
) -> RunFolder:
    """Return a new run in ``out``, or with ``resume`` the one that is there."""
    from scoresde.app.config_files import load_config
    from scoresde.app.runs import RunFolder, refuse_full
    from scoresde.errors import ConfigError

    changes = _overrides(overrides, _TRAIN | _DEVICE, given)
    # 1. a new run
    if not resume:
        settings = load_config(config, preset, changes)
        out = out or Path("runs") / Path(settings.data.source).stem
        refuse_full(out)
        return RunFolder.create(out, settings, shlex.join(["scoresde", *sys.argv[1:]]))
    # 2. an old one, which has its settings
    if preset is not None:
        raise ConfigError("preset", preset, "left out with --resume: a run has its settings, which --set changes")
    if config is not None:
        raise ConfigError("config", str(config), "left out with --resume: a run has its settings, which --set changes")
    if out is None:
        raise ConfigError("out", None, "the folder of the run to continue, such as --out runs/digits")
    run = RunFolder.open(out)
    changed = _with(run, changes)
    if changed != run.config:
        run.save_config(changed)
    return run


def _with(run: RunFolder, overrides: Sequence[str], fixed: Sequence[str] = FIXED) -> RunConfig:
    """Return the run's settings with overrides.

    Raises:
        ConfigError: an override of a section in ``fixed``.
    """
    from scoresde.app.config_files import load_config
    from scoresde.errors import ConfigError

    if not overrides:
        return run.config
    changed = load_config(run.path / "config.yaml", "none", overrides)
    for section in fixed:
        if getattr(changed, section) != getattr(run.config, section):
            raise ConfigError(section, "other settings", f"what {run.path} was begun with")
    return changed


# --- commands --------------------------------------------------------------------------------------------------------


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="scoresde")
def main() -> None:
    """Train score-based generative models, draw samples, and score data.

    Start with `scoresde demo`. In about three minutes it trains a model of handwritten digits and writes a page of
    samples and likelihoods. `scoresde COMMAND --help` explains each command.
    """


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/demo", show_default=True, help="A new folder.")
@_new_run
@_any_setting
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

    run = _begin(out, **options)
    page = work(run, run.config)
    spent = sum(stage["seconds"] for stage in run.meta["stages"].values())
    say(f"Done: {duration(spent)} of work. Open {page} in a browser.")
    say(f"It ends with commands to try next, such as: scoresde sample {shlex.quote(str(out))} -n 100")


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="A new folder; by default runs/ and the name of the data.")
@_new_run
@_any_setting
def train(out: Path | None, **options: Any) -> None:
    """Train a model, and keep everything about it in one folder.

    Settings come from the defaults for the data, then --config, then --set and the other options. Ctrl-C saves a
    checkpoint and stops. --resume continues as if the run had never stopped.

    \b
    Examples:
      scoresde train --data digits --out runs/digits
      scoresde train --data two-moons --sde ve --out runs/moons
      scoresde train --data my-images/ --set data.size=32 --set net.options.channels=64
      scoresde train --out runs/digits --resume
    """
    from scoresde.app.terminal import say
    from scoresde.app.training import train_on_ranks

    run = train_on_ranks(lambda: _begin(out, **options), options["device"])
    if run is None:
        return
    folder = shlex.quote(str(run.path))
    say(f"Trained: {run.path}. Next commands:")
    for following in ("sample", "evaluate", "report"):
        say(f"  scoresde {following} {folder}")


@main.command()
@_run
@_settings(_SAMPLE)
@click.option("--stochastic", is_flag=True, help="Draw noise in each step: the reverse SDE for dpm, eta = 1 for ddim.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write here, not in RUN.")
@_any_setting
def sample(run: Path, out: Path | None, stochastic: bool, overrides: Sequence[str], **options: Any) -> None:
    """Draw samples from the model in RUN.

    Writes samples-SAMPLER.npz in RUN (samples-SAMPLER-stochastic.npz with --stochastic) and a picture. The file has the
    arrays x (model units) and raw (the data's units). Earlier samples of the same sampler are replaced.

    \b
    Examples:
      scoresde sample runs/digits -n 100
      scoresde sample runs/digits --sampler dpm --steps 20
      scoresde sample runs/digits --sampler dpm --stochastic --steps 50 -n 10000 --batch 500
      scoresde sample runs/digits --sampler ode --seed 1 --out more.npz
      scoresde sample runs/classes --label 3 --guidance 2
      scoresde sample runs/classes --guidance 3 --interval -6 4 --rescale 0.7
      scoresde sample runs/digits --label 3 --classifier runs/digits/classifier --scale 2
    """
    from scoresde.app.drawing import sample as work
    from scoresde.app.runs import RunFolder
    from scoresde.app.training import on_ranks

    folder = RunFolder.open(run)
    config = _with(folder, _overrides(overrides, _SAMPLE | _DEVICE, options))
    with on_ranks(options["device"]):
        work(folder, config, out, stochastic)


_restoring = _options(
    click.option("--data", metavar="NAME|PATH", help="Items to restore; by default the run's held-out data."),
    _of(RestoreConfig),
    click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write here, not in RUN/restored."),
    _any_setting,
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
    from scoresde.app.runs import RunFolder
    from scoresde.app.training import on_ranks

    folder = RunFolder.open(run)
    config = _with(folder, _overrides(overrides, _DEVICE, {"device": device}))
    items = build.data(config.data)[1] if data is None else build.all_data(replace(config.data, source=data))
    seen = problem(items, settings["seed"])
    if data is not None:
        seen = seen._replace(name=f"{seen.name}-{Path(data).stem}")
    with on_ranks(device):
        restoring.restore(folder, config, items, seen, RestoreConfig(**settings), out)


@main.command()
@_run
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
@_run
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
@_run
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
@_run
@_of(ClassifierConfig)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights, batches and noise.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write here, not in RUN/classifier.")
@_any_setting
def classifier(run: Path, out: Path | None, overrides: Sequence[str], device: str | None, **options: Any) -> None:
    """Train a classifier of noisy data that guides the model in RUN.

    It learns the classes of the run's training data at every noise level. `scoresde sample RUN --label 3
    --classifier RUN/classifier` uses it; the model itself can be unconditional.

    \b
    Example:
      scoresde classifier runs/digits
    """
    from scoresde.app.classifying import train_classifier
    from scoresde.app.runs import RunFolder

    folder = RunFolder.open(run)
    config = _with(folder, _overrides(overrides, _DEVICE, {"device": device}))
    train_classifier(folder, config, out, **options)


@main.command()
@_run
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
@_settings(_LIKELIHOOD)
@_any_setting
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
    from scoresde.app.runs import RunFolder
    from scoresde.app.training import on_ranks

    folder = RunFolder.open(run)
    other = None if paired is None else RunFolder.open(paired)
    config = _with(folder, _overrides(overrides, _LIKELIHOOD | _DEVICE, options), () if data else FIXED)
    if data is None:
        name, first = "likelihood", build.data(config.data)[1]
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
@_run
@click.option(
    "--corrupted",
    type=click.IntRange(0),
    default=CORRUPTED,
    show_default=True,
    help="Images to corrupt in each way.",
)
@_settings(_LIKELIHOOD)
@_any_setting
def evaluate(run: Path, corrupted: int, overrides: Sequence[str], **options: Any) -> None:
    """Compare the model in RUN with baselines, and corrupted data with clean.

    The baselines are a Gaussian and a mixture of 60 Gaussians, fitted to the same training data. Writes evaluation.json
    and a picture.

    \b
    Example:
      scoresde evaluate runs/digits
    """
    from scoresde.app.runs import RunFolder
    from scoresde.app.scoring import evaluate as work

    folder = RunFolder.open(run)
    work(folder, _with(folder, _overrides(overrides, _LIKELIHOOD | _DEVICE, options)), corrupted)


@main.command()
@_run
@_any_setting
def report(run: Path, overrides: Sequence[str], device: str | None) -> None:
    """Write report.html, one page with all results in RUN.

    \b
    Example:
      scoresde report runs/digits
    """
    from scoresde.app.pages import write_report
    from scoresde.app.runs import RunFolder
    from scoresde.app.terminal import say

    folder = RunFolder.open(run)
    page = write_report(folder, _with(folder, _overrides(overrides, _DEVICE, {"device": device})))
    say(f"Open {page} in a browser.")
