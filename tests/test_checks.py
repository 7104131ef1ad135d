"""The argument checks: inputs, results and messages."""

import math

import numpy as np
import pytest
import torch

from scoresde.checks import finite, number, positive, probability, samples_with_nan, whole, wholes
from scoresde.errors import ArgumentError, NonFiniteError

THREE = [3, np.int64(3), np.uint8(3), torch.Size([3])[0], torch.tensor(3)]
NOT_INTEGERS = [2.5, 3.0, np.float64(3), True, "3", None, [3], torch.tensor([3, 3]), math.nan]


@pytest.mark.parametrize("value", THREE, ids=repr)
def test_integers_of_every_kind(value):
    result = whole("steps", value)
    assert result == 3
    assert type(result) is int


@pytest.mark.parametrize("value", [*NOT_INTEGERS, 0, -1], ids=repr)
def test_other_values_are_not_positive_integers(value):
    with pytest.raises(ArgumentError) as caught:
        whole("steps", value)
    assert str(caught.value) == f"`steps` must be a positive integer, got {value!r}"


def test_the_least_integer_is_stated():
    assert whole("seed", 0, least=0) == 0
    with pytest.raises(ArgumentError, match=r"^`dim` must be an integer >= 2, got 1$"):
        whole("dim", 1, least=2)


@pytest.mark.parametrize(
    "values", [(2, 3), [np.int64(2), 3], torch.Size([2, 3]), np.array([2, 3]), torch.tensor([2, 3])]
)
def test_sequences_of_integers(values):
    result = wholes("shape", values)
    assert result == (2, 3)
    assert {type(n) for n in result} == {int}


@pytest.mark.parametrize("values", [3, "23", None, (2, 3.5), (2, 0), ("2", 3), [[2, 3]]], ids=repr)
def test_other_sequences(values):
    with pytest.raises(ArgumentError, match=r"^`shape` must be "):
        wholes("shape", values)


def test_an_empty_sequence_is_a_sequence():
    assert wholes("levels", ()) == ()


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), torch.tensor(2.0), np.array(2.0)], ids=repr)
def test_numbers(value):
    for check in (number, positive):
        result = check("scale", value)
        assert result == 2.0
        assert type(result) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "2", None, True, 1j, [2.0], torch.ones(2)], ids=repr)
def test_other_values_are_not_numbers(value):
    for check, expected in (
        (number, "a finite number"),
        (positive, "a positive number"),
        (probability, r"a number in \[0, 1\)"),
    ):
        with pytest.raises(ArgumentError, match=f"^`scale` must be {expected}, got "):
            check("scale", value)


def test_ranges():
    assert number("w", -3) == -3.0
    assert (probability("p", 0), probability("p", 0.5)) == (0.0, 0.5)
    for check, value in ((positive, 0), (positive, -1e-300), (probability, 1), (probability, -0.1)):
        with pytest.raises(ArgumentError):
            check("x", value)


def test_samples_with_nan_are_listed_up_to_a_limit():
    assert samples_with_nan([0, 3], 5) == "NaN or infinity in 2 of 5 samples (0, 3)"
    assert samples_with_nan(range(20), 30).endswith("in 20 of 30 samples (0, 1, 2, 3, 4, 5, 6, 7, ...)")


def test_finite_names_the_samples():
    x = torch.zeros(4, 2, 3)
    assert finite(x, "the network") is x
    x[1, 0, 2], x[3, 1, 1] = math.nan, -math.inf
    with pytest.raises(NonFiniteError, match=r"^the network: NaN or infinity in 2 of 4 samples \(1, 3\)$"):
        finite(x, "the network")
    assert finite(x.to("meta"), "the network").is_meta
