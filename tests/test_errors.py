"""The form of messages, and errors that travel between processes."""

import inspect
import pickle

import pytest

from scoresde import errors
from scoresde.errors import (
    ArgumentError,
    LikelihoodWarning,
    LostRankError,
    MissingExtraError,
    ScoreSDEError,
    UnknownNameError,
)

CLASSES = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, ScoreSDEError)]
EXAMPLES = [
    UnknownNameError("sampler", "dimm", ("ddim", "heun")),
    LostRankError(2, "a timeout"),
    MissingExtraError("tensorboard", "tensorboard"),
    *(
        e("steps", 2.5, "a positive integer")
        for e in CLASSES
        if issubclass(e, ArgumentError) and e is not UnknownNameError
    ),
    *(e("the loss of step 3 is NaN") for e in CLASSES if e.__init__ is Exception.__init__ or e is ScoreSDEError),
]


def test_every_class_is_an_error_of_the_package_and_of_python():
    for cls in CLASSES:
        builtin = {b for b in cls.__mro__ if b.__module__ == "builtins"} - {Exception, BaseException, object}
        assert builtin or cls is ScoreSDEError, cls


def test_the_form_of_a_message():
    assert str(ArgumentError("steps", 2.5, "a positive integer")) == "`steps` must be a positive integer, got 2.5"


def test_an_unknown_name_suggests_the_nearest():
    error = UnknownNameError("sampler", "dimm", iter(("ddim", "heun")))
    assert str(error) == "`sampler` must be one of 'ddim', 'heun', got 'dimm' (did you mean 'ddim'?)"
    assert (error.name, error.known) == ("dimm", ("ddim", "heun"))
    assert "did you mean" not in str(UnknownNameError("sampler", None, ("ddim",)))
    with pytest.raises(KeyError):
        raise error


def test_a_missing_extra_says_how_to_install_it():
    assert "pip install 'scoresde[tensorboard]'" in str(MissingExtraError("tensorboard", "tensorboard"))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_pickle_with_their_attributes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_likelihood_warnings_of_several_parts_are_joined():
    """Add the counts; keep the commonest cause and the largest error."""
    few = LikelihoodWarning(1, 10, 1e-3, 0.5, "one cause")
    many = LikelihoodWarning(4, 10, 1e-3, 0.2, "another")
    joined = few.joined([many], 25)
    assert (joined.missed, joined.total, joined.largest, joined.cause) == (5, 25, 0.5, "another")
    expected = "log p of 5 of 25 samples may be off by more than 0.001 nats a dimension, by up to 0.5: another"
    assert str(joined) == str(pickle.loads(pickle.dumps(joined))) == expected
    unknown = few.joined([LikelihoodWarning(1, 5, 1e-3, float("nan"), "a cause")], 15)
    assert "by an unknown amount" in str(unknown)
