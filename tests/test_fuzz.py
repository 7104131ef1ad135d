"""Spoiled arguments at every public callable end in typed errors."""

import random
import warnings

import pytest

from scoresde.errors import ScoreSDEError
from tests.fuzz_for_tests import CASES, FUNCTIONS, SPOILED, uncovered

PARTS, PART = 20, 260  # 5200 cases
KEPT = [name for name in CASES if CASES[name].parameters]


def test_every_public_callable_is_covered():
    assert not uncovered()


@pytest.mark.parametrize("name", CASES)
def test_the_arguments_that_are_spoiled_are_good_before(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CASES[name].run()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_spoiled_arguments_end_in_typed_errors(part, tmp_path, monkeypatch):
    """Spoil one argument, or two, of a callable, all drawn by a seed.

    The call may succeed, as 3 is a good seed and a bad model. It may not end in a raw error of Python or torch.
    """
    monkeypatch.chdir(tmp_path)  # a text can be taken for a path
    draw, refused, raw = random.Random(part), 0, []
    for _ in range(PART):
        name = draw.choice(KEPT)
        case = CASES[name]
        chosen = draw.sample(case.parameters, min(len(case.parameters), draw.choice((1, 1, 2))))
        spoiled = {p: draw.choice(SPOILED) for p in chosen}
        if any(callable(value) and p in FUNCTIONS for p, value in spoiled.items()):
            continue  # a function may raise what it likes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case.run(**spoiled)
        except ScoreSDEError:
            refused += 1
        except Exception as error:
            raw.append(f"{name} with {spoiled}: {error!r}")
    assert not raw, "\n".join(raw)
    assert refused > PART / 2
