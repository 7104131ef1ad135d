"""``python -m benchmarks``: what there is to run; ``... NAME [options]``: one; ``... all [options]``: one by one."""

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
    """A module with a ``main``: its first line, and seconds on one core with ``--quick``."""

    name: str
    line: str
    quick_seconds: int


def find(folder: Path = FOLDER) -> dict[str, Benchmark]:
    """All benchmarks by name, read without importing them."""
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
    """A line each, with the time of ``--quick``."""
    width = max(map(len, found))
    lines = [f"{b.name:<{width}}  {b.quick_seconds:>4} s  {b.line}" for b in found.values()]
    total = sum(b.quick_seconds for b in found.values())
    return "\n".join([f"{'NAME':<{width}}  --quick", *lines, f"{'all':<{width}}  {total:>4} s", "", USAGE])


def run_all(names: list[str], options: list[str], package: str = "benchmarks") -> int:
    """Each in a process of its own, whatever became of the others; 1 if one failed."""
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
    """The list, one benchmark, or all; the exit code."""
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
