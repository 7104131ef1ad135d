"""The work of the ``demo`` command, from data to a page of results."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

from scoresde.app.config import RunConfig, SamplerName
from scoresde.app.drawing import sample
from scoresde.app.pages import write_report
from scoresde.app.runs import Interrupted, RunFolder
from scoresde.app.scoring import evaluate
from scoresde.app.terminal import say
from scoresde.app.training import resume_command, train

PC_STEPS = 150  # if sample.steps is not set


def demo(run: RunFolder, config: RunConfig) -> Path:
    """Train, sample, score, compare and report; return the page.

    Stages that were done with the newest checkpoint are not repeated.

    Raises:
        Interrupted: after Ctrl-C, or SIGTERM during training. Completed stages are kept.
    """
    try:
        return _stages(run, config)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, resume_command(run, "demo")) from None


def _stages(run: RunFolder, config: RunConfig) -> Path:
    say("1/5  training")
    train(run, "demo")
    samplings: list[tuple[int, SamplerName, int | None]] = [
        (2, "pc", config.sample.steps or PC_STEPS),
        (3, "ode", config.sample.steps),
    ]
    for number, name, steps in samplings:
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
