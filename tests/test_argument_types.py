"""Values and annotations: what fits, and what the errors say."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from scoresde.argument_types import checked, fits, said, shown
from scoresde.errors import ArgumentError, DeviceError, DTypeError, warn

TENSOR = torch.zeros(2)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [3, np.int64(3), torch.tensor(3)], [True, 1.5, "3", None, TENSOR, int, torch.tensor(1.5)]),
        (float, [3, 1.5, np.float32(2), torch.tensor(1.5)], [True, "1.5", 1j, None, TENSOR, torch.tensor(1j), float]),
        (bool, [True, np.bool_(False)], [1, "yes", None, TENSOR]),
        (str, ["a"], [b"a", 1, None]),
        (str | Path, ["a", Path("a")], [1, None]),
        (float | None, [None, 2], ["x"]),
        (Literal["a", 2], ["a", 2], ["b", 2.0, np.zeros(2), True]),
        (
            Sequence[int],
            [(1, 2), [1], range(3), np.arange(2), torch.arange(2)],
            ["12", 3, [1.5], np.zeros((2, 2)), {1}],
        ),
        (tuple[float, float], [(1, 2.5), [0, 1], TENSOR], [(1,), (1, 2, 3), ("a", "b"), torch.zeros(3)]),
        (Mapping[str, float], [{}, {"a": 1}], [{1: 2}, {"a": "b"}, [("a", 1)]]),
        (Callable[[int], int], [len, int], [3, None]),
        (torch.Tensor, [TENSOR], [np.zeros(2), [0.0]]),
        (Any, [None, object()], []),
        ("a name that only a type checker knows", [None, 3], []),
    ],
)
def test_what_fits_an_annotation(hint, good, bad):
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []


def test_errors_are_in_words():
    assert said(Sequence[int] | None) == "a sequence (each an integer) or None"
    assert said(Literal["a", "b"]) == "one of 'a', 'b'"
    assert said(tuple[float, float]) == "2 entries (a number, a number)"
    assert shown(torch.zeros(2, 3)) == "a Tensor of torch.float32, shape (2, 3)"
    assert shown("x" * 100) == "str"


@checked
def halves(n: int, names: "Sequence[str]" = ()) -> float:
    if n == 7:
        raise KeyError("a bug")
    return sum(len(name) for name in names) + n / 2


@checked
class Kept:
    def __init__(self, n: int):
        self.n = n


def test_raw_errors_name_the_argument():
    assert halves(3, ["ab"]) == 3.5
    with pytest.raises(DTypeError, match="`n` must be an integer, got 'x'") as caught:
        halves("x")
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(DTypeError, match=r"`names` must be a sequence \(each text\), got 3"):
        halves(1, names=3)
    with pytest.raises(KeyError, match="a bug"):  # whose arguments are right
        halves(7)
    with pytest.raises(TypeError, match="unexpected keyword"):
        halves(n=1, name=())


def test_classes_keep_no_wrong_arguments():
    assert Kept(3).n == 3
    with pytest.raises(DTypeError, match="`n` must be an integer, got 'x'"):
        Kept("x")
    with pytest.raises(ArgumentError, match="between"):
        Kept(2**70)


def test_tensors_without_values_are_refused_by_device():
    @checked
    def total(x: torch.Tensor) -> float:
        return float(x.sum())

    with pytest.raises(DeviceError, match="`x` must be a tensor with values"):
        total(torch.zeros(2, device="meta"))


def test_warnings_are_those_of_the_caller():
    @checked
    def warns(n: int) -> None:
        warn(f"{n}", UserWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warns(3)
    assert [Path(one.filename).name for one in caught] == ["test_argument_types.py"]
