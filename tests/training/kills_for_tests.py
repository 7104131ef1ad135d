"""Kill and resume a training run at random moments.

`test_faults.py` runs this; for more kills run ``python -m tests.training.kills_for_tests KILLS FOLDER``.

Each round forks a process from this one, which has imported everything. The fork resumes a run that checkpoints every
few steps, until it is killed (-9). SIGTERM and SIGINT then stop the run, and a last fork finishes it. The same run
without interruptions is trained beside it.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork does not copy threads

import torch

import scoresde.app.drawing  # noqa: F401 (here, not in every child)
from scoresde.app.cli import main as command
from scoresde.app.training import train  # noqa: F401
from scoresde.training.checkpoints import checkpoints, load_checkpoint

STEPS = 100
SETTINGS = ["train.checkpoint_every=3", "train.log_every=2", "train.warmup=0", "data.n=200", "data.held_out=20"]
SETTINGS += ["net.options={width: 64, blocks: 2}", "train.batch_size=16", "train.sample_every=80"]


def start(out):
    """Start or resume the run in a fork and return its pid."""
    arguments = ["train", "--out", str(out), "--device", "cpu", "--steps", str(STEPS)]
    arguments += [part for setting in SETTINGS for part in ("--set", setting)]
    arguments += ["--resume"] if (out / "meta.json").exists() else ["--data", "two-moons"]
    if pid := os.fork():
        return pid
    code = 99
    try:
        command(arguments)
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid):
    """Return the exit code, or minus the signal that killed the process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def newest(out):
    return max((path.name for path in checkpoints(out / "checkpoints")), default=None)


def interrupt(out, signum, delay):
    """Send a signal some seconds after the first new checkpoint.

    Returns the exit code.
    """
    before, pid = newest(out), start(out)
    while newest(out) == before:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return 0
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(pid, signum)
    return ended(pid)


def main(kills, folder):
    """Kill and resume the run, and check each newest checkpoint.

    After each kill the newest checkpoint is whole, and the next start resumes from it.
    """
    torch.set_num_threads(1)
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # import what an optimiser imports when it is made
    killed, chance, codes = folder / "killed", random.Random(0), []
    for _ in range(kills):
        codes.append(interrupt(killed, signal.SIGKILL, chance.uniform(0, 0.05)))
        load_checkpoint(checkpoints(killed / "checkpoints")[-1])  # raises if it is damaged
        if codes[-1] == 0 and kills > 10:  # the run has finished: kill another one
            killed.rename(folder / f"finished{len(codes)}")
    codes += [interrupt(killed, signum, 0.0) for signum in (signal.SIGTERM, signal.SIGINT)]
    codes += [ended(start(killed)), ended(start(folder / "whole"))]
    sys.stdout.write(f"codes {' '.join(map(str, codes))}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
