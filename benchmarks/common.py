"""What the benchmarks share: options, import of peers, record of a run.

A benchmark is a module with three things. The first line of its docstring says what it measures. ``QUICK_SECONDS`` is
the time of ``--quick`` on one core. ``main(arguments=None)`` has this shape::

    options = common.parser("quality", __doc__, quick="fewer mixtures").parse_args(arguments)
    modules, left_out = common.load_peers({"azula": lambda: import_module("azula")})
    record = common.Record("quality", options, "Quality per call", arguments=arguments, seeds="0 to 3", peers=modules)
    ...
    record.write(rows, text, figure)

``write`` makes ``quality.csv``, ``quality.md`` and ``quality.png`` in ``options.out``, or ``quality-quick.*``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts its threads

import argparse
import csv
import io
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "numpy", "scipy", "torchdiffeq")  # whose versions every record has, beside our own
NOT_INSTALLED = "not installed (pip install 'scoresde[bench]', or as docs/benchmarks.md says)"


# ---- options and peers ----------------------------------------------------------------------------------------------


def parser(name: str, doc: str, *, quick: str, threads: int = 1) -> argparse.ArgumentParser:
    """Return a parser with ``--quick``, ``--threads`` and ``--out``.

    ``quick`` is the help text of ``--quick``.
    """
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0])
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--threads", type=int, default=threads, help="of torch (default: %(default)s)")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    return made


def wholes(name: str, text: str) -> list[int]:
    """Return the numbers of ``"5,10"`` as ``[5, 10]``.

    Raises:
        ArgumentError: the text is not a comma-separated list of positive integers.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentError(name, repr(text), "whole numbers of 1 or more with commas between")
    return [int(part) for part in parts]


def names(name: str, text: str, known: Iterable[str]) -> list[str]:
    """Return the names in ``"a,b"`` as ``["a", "b"]``.

    Raises:
        UnknownNameError: a name is not known.
    """
    for part in text.split(","):
        if part not in (known := list(known)):
            raise UnknownNameError(name, part, known)
    return text.split(",")


def version(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def load_peers(loaders: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, str]]:
    """Return ``({package: result of its loader}, {missing package: reason})``.

    The keys are names of distributions, as ``pip install`` takes them. A peer that fails to import is left out; no
    exception escapes.
    """
    loaded, left_out = {}, {}
    for package, load in loaders.items():
        try:
            loaded[package] = load()
        except Exception as error:  # a peer's import may fail in any way; the tables say how
            first = (str(error).splitlines() or [""])[0]
            missing = version(package) is None
            left_out[package] = NOT_INSTALLED if missing else f"does not import: {type(error).__name__}: {first}"
    return loaded, left_out


# ---- records --------------------------------------------------------------------------------------------------------


class Record:
    """The record of a run: what a reader needs to judge or repeat it.

    The machine's state is taken at the start and at the end.

    Args:
        name: name of the benchmark, ``python -m benchmarks.NAME``, and of the files.
        options: parsed options, with ``quick`` and ``out``.
        title: title of the page.
        arguments: arguments of the command line. None: those of this process.
        seeds: the seeds, and what they are for.
        peers: names of the packages that are measured or used; their versions are recorded.
        left_out: packages that are missing, and why.
        variant: part of the files' name, ``NAME_VARIANT``.

    ``notes`` may be filled until ``write``: lines of the page's head, by name.
    """

    def __init__(
        self,
        name: str,
        options: argparse.Namespace,
        title: str,
        *,
        arguments: list[str] | None = None,
        seeds: str,
        peers: Iterable[str] = (),
        left_out: Mapping[str, str] | None = None,
        variant: str = "",
    ):
        self.quick, self.out, self.title, self.seeds = options.quick, Path(options.out), title, seeds
        self.peers, self.left_out = list(peers), dict(left_out or {})
        arguments = sys.argv[1:] if arguments is None else arguments
        self.command = shlex.join(["python", "-m", f"benchmarks.{name}", *arguments])
        self.stem = name + (f"_{variant}" if variant else "") + ("-quick" if options.quick else "")
        self.notes: dict[str, str] = {}
        self._begun, self._load, self._cpu = time.perf_counter(), _load_average(), _cpu_seconds()
        self._date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")

    def path(self, end: str) -> Path:
        """Return ``out/NAME.end`` or ``out/NAME-quick.end``."""
        return self.out / f"{self.stem}.{end}"

    def head(self) -> dict[str, str]:
        """Return the lines above the tables, by name."""
        packages = [f"{package} {version(package) or '(no version)'}" for package in (*PACKAGES, *self.peers)]
        lines = {
            "command": f"`{self.command}`",
            "run": "quick: it shows that all works; its numbers mean little" if self.quick else "full",
            "date": self._date,
            "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            "threads": f"{torch.get_num_threads()} of torch",
            "load average": f"{self._load} at the start, {_load_average()} at the end",
            "time": f"{time.perf_counter() - self._begun:.0f} s, {_cpu_seconds() - self._cpu:.0f} s of CPU",
            "versions": f"scoresde {__version__} ({commit()}), Python {platform.python_version()}, "
            + ", ".join(packages),
            "seeds": self.seeds,
        }
        return lines | self.notes | {f"left out: {package}": reason for package, reason in self.left_out.items()}

    def write(self, rows: list[dict], text: str, figure: Figure | None = None) -> Path:
        """Write the CSV file, the figure and the page; return the page's path.

        The page is printed too.

        Args:
            rows: measurements, one per row. If there are several kinds, a column names the kind. Missing values are
                empty.
            text: Markdown below the head.
            figure: figure for the PNG. None: no picture.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        write_csv(self.path("csv"), rows)
        parts = [f"# {self.title}", "\n".join(f"- {name}: {line}" for name, line in self.head().items())]
        if figure is not None:
            write_png(self.path("png"), figure)
            parts.append(f"![{self.title}]({self.path('png').name})")
        page = "\n\n".join([*parts, text.strip()]) + "\n"
        self.path("md").write_text(page)
        print(page)
        return self.path("md")


def commit() -> str:
    """Return the commit, and whether other files than results differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return f"git {git('rev-parse', '--short', 'HEAD')}, {'dirty' if changes else 'clean'}"
    except (OSError, subprocess.CalledProcessError):
        return "not in git"


def _processor() -> str:
    if (info := Path("/proc/cpuinfo")).exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _load_average() -> str:
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # of this process and the children that have ended


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write one line per row.

    The columns are the keys of all rows, in the order of their first appearance.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_png(path: Path, figure: Figure, *, dpi: int = 100, colours: int = 128) -> None:
    """Write a figure as a small PNG of few colours.

    Plots and sheets of grey images do not need more.
    """
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    image = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; rows may be shorter than the header."""
    lines = [header, ["---"] * len(header), *([*row, *[""] * (len(header) - len(row))] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def number(value: object) -> str:
    """Return a table cell: three digits of a float, nothing for None."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: list[dict]) -> str:
    """Return a Markdown table of dicts; a missing value leaves its cell empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return markdown(names, [[number(row.get(name)) for name in names] for row in rows])
