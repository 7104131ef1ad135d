"""The ``demo`` command's work: the whole road, from data to a page of results."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

from scoresde.app.config import RunConfig
from scoresde.app.drawing import sample
from scoresde.app.pages import write_report
from scoresde.app.runs import Interrupted, RunFolder
from scoresde.app.scoring import evaluate
from scoresde.app.terminal import say
from scoresde.app.training import resume_command, train

PC_STEPS = 150  # where sample.steps is not set


def demo(run: RunFolder, config: RunConfig) -> Path:
    """Train, sample by both samplers, score, compare, report. What was done with the newest checkpoint is not redone.

    Raises:
        Interrupted: by Ctrl-C, or in training by SIGTERM; what was done is kept.
    """
    try:
        return _stages(run, config)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, resume_command(run, "demo")) from None


def _stages(run: RunFolder, config: RunConfig) -> Path:
    say("1/5  training")
    train(run, "demo")
    for number, name, steps in ((2, "pc", config.sample.steps or PC_STEPS), (3, "ode", config.sample.steps)):
        say(f"{number}/5  sampling ({name})")
        if not run.done(f"samples-{name}"):
            drawn = replace(config.sample, sampler=name, steps=steps)
            sample(run, replace(config, sample=drawn))
    say("4/5  likelihood, of held-out and of corrupted data, and baselines")
    if not run.done("evaluate"):
        evaluate(run, config)
    say("5/5  report")
    with run.stage("report"):
        return write_report(run, config)
