"""What a type checker reports about a user's code."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CODE = """
from torch import Tensor, nn

import scoresde as S


class Net(nn.Module):
    def forward(self, x: Tensor, time_input: Tensor) -> Tensor:
        return x


def function(x: Tensor, time_input: Tensor, **cond: Tensor) -> Tensor:
    return x


def wrong(x: Tensor) -> Tensor:
    return x


def use(x: Tensor) -> None:
    model = S.ScoreModel(Net(), S.VPSDE())
    reveal_type(model(x, 0.5))
    reveal_type(S.guidance.clipped(model)(x, 0.5).x0)
    reveal_type(S.GaussianMixture(x, 1.0).model(S.VPSDE())(x, 0.5).score)
    S.ScoreModel(function, S.VPSDE())
    S.ScoreModel(wrong, S.VPSDE())
    S.ScoreModel(Net(), S.VPSDE(), time_input=3)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first check reads all of torch
def test_a_models_estimate_and_its_network_are_typed(tmp_path):
    pytest.importorskip("mypy", reason="mypy comes with the extra dev")
    (tmp_path / "user.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", str(tmp_path / "user.py")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)  # with the cache of the package's check
    lines = [line for line in result.stdout.splitlines() if "user.py" in line]
    notes = [line for line in lines if "Revealed type" in line]
    assert len(notes) == 3, result
    assert notes[0].endswith('Estimate]"')
    assert notes[1].endswith('Tensor"')
    assert notes[2].endswith('Tensor"')
    errors = [line for line in lines if ": error:" in line]
    assert len(errors) == 2, lines
    assert "Network" in errors[0]
    assert "time_input" in errors[1]
