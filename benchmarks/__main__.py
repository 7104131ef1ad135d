"""``python -m benchmarks``: what there is to run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


def main() -> None:
    """Each benchmark's command and the first line of its text."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = import_module(f"benchmarks.{path.stem}") if not path.stem.startswith("__") else None
        if hasattr(module, "main"):
            print(f"python -m benchmarks.{path.stem:<10} {module.__doc__.splitlines()[0]}")


if __name__ == "__main__":
    main()
