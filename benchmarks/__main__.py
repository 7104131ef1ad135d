"""List the benchmarks, or run one or all of them.

``python -m benchmarks`` lists them, ``... NAME [options]`` runs one, ``... all [options]`` runs all in turn.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
USAGE = """python -m benchmarks NAME [options]   runs one; NAME --help has its options
python -m benchmarks all --quick      runs all, one after the other; exit code 1 if one fails"""


class Benchmark(NamedTuple):
    """A module with a ``main``: its first line, and the time of ``--quick``."""

    name: str
    line: str
    quick_seconds: int


def find(folder: Path = FOLDER) -> dict[str, Benchmark]:
    """Return all benchmarks by name, read without importing them."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        seconds = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["QUICK_SECONDS"]
        ]
        if runs and seconds:
            found[path.stem] = Benchmark(path.stem, (ast.get_docstring(tree) or "").splitlines()[0], seconds[0])
    return found


def listing(found: dict[str, Benchmark]) -> str:
    """Return one line per benchmark, with the time of ``--quick``."""
    width = max(map(len, found))
    lines = [f"{b.name:<{width}}  {b.quick_seconds:>4} s  {b.line}" for b in found.values()]
    total = sum(b.quick_seconds for b in found.values())
    return "\n".join([f"{'NAME':<{width}}  --quick", *lines, f"{'all':<{width}}  {total:>4} s", "", USAGE])


def run_all(names: list[str], options: list[str], package: str = "benchmarks") -> int:
    """Run each benchmark in its own process; return 1 if one failed."""
    lines, failed = [], 0
    for name in names:
        command = [sys.executable, "-m", f"{package}.{name}", *options]
        print(f"==== python -m {package}.{name} {' '.join(options)}", flush=True)
        begun, cpu = time.perf_counter(), os.times()
        code = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode
        after = os.times()
        used = after.children_user + after.children_system - cpu.children_user - cpu.children_system
        ended = "done" if code == 0 else f"FAILED, exit code {code}"
        lines.append(f"{name:<12} {ended}, {time.perf_counter() - begun:.0f} s, {used:.0f} s of CPU")
        failed += code != 0
    print("\n".join(["====", *lines]), flush=True)
    return int(failed > 0)


def main(arguments: list[str] | None = None) -> int:
    """List the benchmarks, run one or run all; return the exit code."""
    name, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    found = find()
    if name in ("--help", "-h"):
        print(listing(found))
    elif name == "all":
        return run_all(list(found), options)
    elif name in found:
        import_module(f"benchmarks.{name}").main(options)
    else:
        print(f"python -m benchmarks: no benchmark {name!r}\n\n{listing(found)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
