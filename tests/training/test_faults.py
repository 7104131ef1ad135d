"""Runs that are killed at any moment, or that fill the disk."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scoresde as S
from scoresde.app.runs import RunFolder
from scoresde.errors import CheckpointError
from scoresde.files import load_tensors
from scoresde.training.checkpoints import checkpoints, latest_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_run_killed_at_random_is_the_run_never_killed(tmp_path):
    """Compare a run that is killed six times with one that never is.

    Four kills (-9), SIGTERM (exit code 143) and SIGINT (130): no file is corrupt, lost or left over.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kills_for_tests", "4", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "codes -9 -9 -9 -9 143 130 0 0", done.stderr
    runs = [RunFolder.open(tmp_path / name) for name in ("killed", "whole")]
    a, b = (load_tensors(latest_checkpoint(run.checkpoints) / "training.safetensors") for run in runs)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [record["step"] for record in runs[0].records()] == [record["step"] for record in runs[1].records()]
    names = [{str(path.relative_to(run.path)) for path in run.path.rglob("*")} for run in runs]
    assert names[0] == names[1]
    assert "pictures/training/step-000000080.png" in names[0]


POINTS = S.GaussianMixture([[2.0, 0.0], [-1.0, 1.0]], [0.1, 0.3]).sample(64, torch.Generator().manual_seed(0)).float()


def make(folder, width=64):
    torch.manual_seed(0)
    model = S.ScoreModel(S.ResidualMLP((2,), width=width, blocks=1), S.VPSDE())
    config = S.TrainerConfig(steps=30, batch_size=8, checkpoint_every=10, device="cpu", warmup=0, keep=3)
    return S.Trainer(model, config=config, folder=folder)


def goes_on(trainer, root, free):
    """Fill the disk at step 20 and resume when there is room.

    The error says that the disk is full, and the checkpoint of step 10 is whole.
    """
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit(POINTS)
    assert [path.name for path in root.iterdir()] == ["step-000000010"]
    free()
    again = make(root)
    assert again.resume() == 10
    trainer.fit(POINTS)  # the same process can also continue: it has lost nothing
    assert trainer.step == 30
    again.fit(POINTS)
    assert again.step == 30
    for a, b in zip(trainer.parameters, again.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_write_that_fails_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    trainer, write = make(tmp_path), Path.write_bytes

    def full(self, data):
        if trainer.step == 20 and self.name == "training.safetensors":
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    goes_on(trainer, tmp_path, lambda: monkeypatch.setattr(Path, "write_bytes", write))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    """Fill a real disk: a tmpfs with room for one and a half checkpoints."""
    make(tmp_path / "size", 64).fit(POINTS)
    size = sum(file.stat().st_size for file in checkpoints(tmp_path / "size")[0].iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a tmpfs")
    try:
        remount = ["mount", "-o", f"remount,size={size * 8}", str(disk)]
        goes_on(make(disk), disk, lambda: subprocess.run(remount, check=True))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
