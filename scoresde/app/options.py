"""Options that commands share, and those that stand for settings.

It imports no torch, so that ``--help`` is immediate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import click

from scoresde.app.config import SECTIONS
from scoresde.settings import Setting, Settings, settings_of

F = TypeVar("F", bound=Callable[..., Any])

DEVICE = {"--device": "train.device"}
TRAIN = {
    "--data": "data.source",
    "--size": "data.size",
    "--sde": "sde.name",
    "--steps": "train.steps",
    "--batch-size": "train.batch_size",
    "--seed": "train.seed",
}
SAMPLE = {
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
LIKELIHOOD = {"-n": "likelihood.n", "--seed": "likelihood.seed"}


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator for several."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


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


def options_for(keys: Mapping[str, str]) -> Callable[[F], F]:
    """Return a decorator that adds options; ``keys`` maps flags to settings."""
    return together(*(_option(flag, setting_of(key)) for flag, key in keys.items()))


def options_of(cls: type[Settings]) -> Callable[[F], F]:
    """Return a decorator that adds an option for each field of a class."""
    return together(
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


def override_texts(given: Sequence[str], keys: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    """Return the ``--set`` texts and those of the given options in ``keys``."""
    named = {key: values[flag.lstrip("-").replace("-", "_")] for flag, key in keys.items()}
    return [*given, *(f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None)]


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["scoresde.debug"] = value


any_setting = together(
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change any setting (`scoresde settings` lists them); may be repeated.",
    ),
    options_for(DEVICE),
    click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_debug,
        help="Show errors with a traceback.",
    ),
)
new_run = together(
    click.option(
        "--preset", metavar="NAME", help="Settings by name, such as cifar10-ddpm; by default those of the data."
    ),
    click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="A YAML file of settings."),
    options_for(TRAIN),
    click.option(
        "--classes",
        is_flag=True,
        help="Condition the network on the class labels, and hide a tenth of them, for guidance.",
    ),
    click.option(
        "--resume",
        is_flag=False,
        flag_value="run",
        type=click.Choice(["run", "auto"]),
        metavar="[auto]",
        help="Continue the run in --out from its newest checkpoint. auto: or begin it, so that one line does both.",
    ),
)
run_argument = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
