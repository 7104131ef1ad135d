"""Small runs through the command line, in this process."""

from click.testing import CliRunner, Result

from scoresde.app.cli import main

TINY = [
    *("--batch-size", "8"),
    *("--set", "net.options={channels: 8, num_groups: 4, attention: []}"),
    *("--set", "train.log_every=2"),
    *("--set", "train.checkpoint_every=2"),
    *("--set", "train.warmup=0"),
    *("--set", "sample.steps=3"),
    *("--set", "sample.calibration_paths=0"),
]
TINY_POINTS = [
    *("--batch-size", "16"),
    *("--set", "data.n=64"),
    *("--set", "data.held_out=20"),
    *("--set", "train.log_every=2"),
    *("--set", "net.options={width: 8, blocks: 1}"),
    *("--set", "sample.steps=3"),
    *("--set", "sample.calibration_paths=0"),
]
QUICK_SCORES = ["--set", "likelihood.method=rk4", "--set", "likelihood.steps=2"]


def invoke(*arguments, code: int = 0) -> Result:
    """Run ``scoresde`` with arguments and check its exit code.

    The plain output must hold no control characters.
    """
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    assert not {"\x1b", "\r"} & set(result.output)
    return result


def error(*arguments, code: int = 2) -> str:
    """Return the one line that a failing command prints."""
    line = invoke(*arguments, code=code).stderr
    assert "Traceback" not in line
    return line


def train(out, *more, steps: int = 4, options=TINY) -> Result:
    return invoke("train", "--out", out, "--steps", steps, *options, *more)
