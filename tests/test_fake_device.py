"""Device mismatches and host syncs, found without an accelerator."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("part", ["control", "training_step", "samplers", "switches", "likelihood", "inverse"])
def test_runs_on_a_pretended_device(part):
    run = subprocess.run([sys.executable, "-m", "tests.fake_device", part], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("passed\n")
