"""How commands begin a run, or take one with other settings.

It imports torch only when a command runs.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.app.options import DEVICE, TRAIN, override_texts

if TYPE_CHECKING:
    from scoresde.app.config import RunConfig
    from scoresde.app.runs import RunFolder

#: sections that a run keeps as it was begun with
FIXED = ("data", "sde", "model", "net")
BUNDLED = Path("runs")  # where runs of bundled models are made


def begin_run(
    out: Path | None,
    config: Path | None,
    preset: str | None,
    resume: str | None,
    classes: bool,
    overrides: Sequence[str],
    **given: Any,
) -> RunFolder:
    """Return a new run in ``out``, or with ``resume`` the one that is there.

    With "auto" it is the one that is there, if there is one. The settings of the command line must then be its own.
    """
    from scoresde.app.config_files import load_config
    from scoresde.app.runs import RunFolder, has_run, refuse_full, remove_half
    from scoresde.errors import ConfigError

    by_class = ["train.conditional=true", "train.label_dropout=0.1"] if classes else []
    changes = override_texts([*by_class, *overrides], TRAIN | DEVICE, given)
    # 1. a new run
    if resume != "run":
        settings = load_config(config, preset, changes)
        out = out or Path("runs") / Path(settings.data.source).stem
        if resume == "auto":
            remove_half(out)
        if resume is None or not has_run(out):
            refuse_full(out)
            return RunFolder.create(out, settings, shlex.join(["scoresde", *sys.argv[1:]]))
        preset = config = None  # its settings are the run's
    # 2. an old one, which has its settings
    if preset is not None:
        raise ConfigError("preset", preset, "left out with --resume: a run has its settings, which --set changes")
    if config is not None:
        raise ConfigError("config", str(config), "left out with --resume: a run has its settings, which --set changes")
    if out is None:
        raise ConfigError("out", None, "the folder of the run to continue, such as --out runs/digits")
    run = RunFolder.open(out)
    changed = with_overrides(run, changes)
    if changed != run.config:
        run.save_config(changed)
    return run


def open_run(name: str | Path) -> RunFolder:
    """Return the run in a folder, or a run of the bundled model of that name.

    The latter is made in ``runs/bundled-NAME``, from the settings that the model was trained with, unless it is there.

    Raises:
        RunFolderError: neither a run nor such a name.
    """
    from scoresde.app.runs import RunFolder
    from scoresde.models.pretrained import bundled

    if Path(name).is_dir() or str(name) not in bundled():
        return RunFolder.open(name)
    folder = BUNDLED / f"bundled-{name}"
    if not folder.is_dir():
        _make_bundled(str(name), folder)
    return RunFolder.open(folder)


def _make_bundled(name: str, folder: Path) -> None:
    """Make a run folder whose only checkpoint is a bundled model."""
    from scoresde.app.config_files import load_config
    from scoresde.app.runs import RunFolder
    from scoresde.app.terminal import say
    from scoresde.files import atomic_folder, read_json
    from scoresde.models.pretrained import FILES, PRETRAINED

    source = PRETRAINED / name
    config = load_config(source / "recipe.yaml", "none")
    with atomic_folder(folder) as new:
        run = RunFolder.create(new, config, f"the bundled model {name!r}")
        checkpoint = run.checkpoints / f"step-{config.train.steps:09d}"
        checkpoint.mkdir(parents=True)
        for file in FILES:
            shutil.copyfile(source / file, checkpoint / file)
        found = read_json(source / FILES[0], "run").get("calibration")
        if found is not None:
            run.write("calibration.json", json.dumps({"step": run.step, **found}, indent=1) + "\n")
    say(f"The bundled model {name!r}, as a run: {folder}")


def with_overrides(run: RunFolder, overrides: Sequence[str], fixed: Sequence[str] = FIXED) -> RunConfig:
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
