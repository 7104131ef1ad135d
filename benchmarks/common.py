"""What the benchmarks share: where results go and what is written beside them."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts its threads

import csv
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import torch

from scoresde.errors import ArgumentError

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("scoresde", "torch", "numpy", "scipy", "diffusers", "k-diffusion", "torchsde", "azula")


def environment() -> dict[str, str]:
    """Machine, versions and command: what a reader needs to judge or repeat a table."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": " ".join(map(shlex.quote, ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
        f"{platform.system()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _processor() -> str:
    if (info := Path("/proc/cpuinfo")).exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def integers(name: str, text: str) -> list[int]:
    """``"5,10"`` as ``[5, 10]``.

    Raises:
        ArgumentError: text that is not whole numbers of at least 1 with commas between.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentError(name, repr(text), "whole numbers of 1 or more with commas between")
    return [int(part) for part in parts]


def write_csv(path: Path, rows: list[dict]) -> None:
    """One line a row; the columns are the keys of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
