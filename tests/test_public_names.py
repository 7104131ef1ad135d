"""The public names: which there are, each in one place, each documented."""

import ast
import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest

import scoresde

PACKAGE = Path(scoresde.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.pyi"))
#: the names at the top level, besides the rooms
TOP = [
    "VPSDE",
    "SubVPSDE",
    "VESDE",
    "FlowSDE",
    "DDPM",
    "NCSN",
    "SDE",
    "ScoreModel",
    "Model",
    "Estimate",
    "GaussianMixture",
    "sample",
    "calibrate",
    "trajectory",
    "encode",
    "decode",
    "interpolate",
    "temper",
    "DPMSolver",
    "DDIM",
    "SingleStep",
    "Heun",
    "AdaptiveSDE",
    "ProbabilityFlow",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Ancestral",
    "EulerMaruyama",
    "Langevin",
    "AnnealedLangevin",
    "log_likelihood",
    "bits_per_dim",
    "variational_bound",
    "Exact",
    "Hutchinson",
    "HutchPP",
    "Trainer",
    "TrainerConfig",
    "EMA",
    "DenoisingScoreMatching",
    "ExplicitScoreMatching",
    "ImplicitScoreMatching",
    "SlicedScoreMatching",
    "HybridVLB",
    "VLB",
    "load_data",
    "Data",
    "UNet",
    "DiT",
    "ResidualMLP",
    "__version__",
]


def listed(path):
    """Return the names of a stub, and the file of each."""
    return [(a.asname, node.module) for node in ast.parse(path.read_text()).body for a in node.names]


ROOM_NAMES = [(room, name, file) for room in ROOMS for name, file in listed(PACKAGE / room / "__init__.pyi")]


def test_the_top_level():
    names = [name for name, _ in listed(PACKAGE / "__init__.pyi")]
    assert sorted(names) == sorted([*TOP, *ROOMS])
    assert sorted(dir(scoresde)) == sorted(names)
    assert set(scoresde.__all__) == set(names)


def test_every_name_is_listed_by_one_room():
    counts = Counter(name for _, name, _ in ROOM_NAMES)
    assert [name for name, n in counts.items() if n > 1] == []
    assert set(TOP) - set(counts) == {"__version__"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_its_own_names_only(room):
    assert sorted(dir(importlib.import_module(f"scoresde.{room}"))) == sorted(n for r, n, _ in ROOM_NAMES if r == room)


@pytest.mark.parametrize("room", ROOMS)
def test_names_are_defined_in_their_room_and_documented(room):
    wrong = []
    for name, file in listed(PACKAGE / room / "__init__.pyi"):
        value = getattr(importlib.import_module(f"scoresde.{room}"), name)
        if inspect.isclass(value) or inspect.isfunction(value):
            if value.__module__ != f"scoresde.{room}.{file}":
                wrong.append(f"{name} is defined in {value.__module__}, not in {room}/{file}.py")
            if not value.__doc__ or value.__doc__.startswith(f"{name}("):  # as dataclass writes it
                wrong.append(f"{name} has no docstring")
        else:  # a table or an alias, documented by a comment of the form "#: ..." above it
            lines = (PACKAGE / room / f"{file}.py").read_text().splitlines()
            at = next(i for i, line in enumerate(lines) if line.startswith((f"{name} =", f"{name}:")))
            if not lines[at - 1].startswith("#:"):
                wrong.append(f"{file}.py: no comment '#: ...' above {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", [*ROOMS, "app"])
def test_the_files_that_a_room_points_to_exist(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    for file in {
        word.strip(".,;:()") for word in text.replace("``", " ").split() if word.rstrip(".,;:)").endswith(".py")
    }:
        assert (PACKAGE / room / file).exists(), file
