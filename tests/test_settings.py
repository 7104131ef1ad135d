"""Settings classes, whose fields declare everything.

One field is the check, the docstring, the file's key and the command line's option.
"""

import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Literal, get_args

import click
import numpy as np
import pytest
from click.testing import CliRunner

from scoresde.app import config, options
from scoresde.app.config_files import load_config, save_config
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models.predictions import PREDICTIONS
from scoresde.models.time_inputs import TIME_INPUTS
from scoresde.settings import Settings, explained, setting, settings_of
from scoresde.training.config import (
    ClassifierConfig,
    Precision,
    TimeSamplingName,
    TrainerConfig,
    WeightingName,
)
from scoresde.training.named_time_samplings import TIME_SAMPLINGS
from scoresde.training.precision import PRECISIONS
from scoresde.training.weightings import WEIGHTINGS


@explained
@dataclass(frozen=True)
class Walk(Settings):
    """Settings of a walk."""

    steps: int = setting(10, "steps in all", ge=1)
    length: float | None = setting(None, "metres per step; None: as it comes", gt=0, le=2)
    pace: Literal["slow", "fast"] = setting("slow", "how fast to go")
    sides: tuple[float, float] = setting((0.0, 1.0), "left and right", ge=0)
    stops: Mapping[str, float] = setting({}, "minutes per stop", gt=0)
    share: int | float = setting(3, "a count or a fraction")
    rain: bool | str = setting(False, "rain, or its name")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"steps": np.int64(3)}, 3),
        ({"length": 1}, 1.0),
        ({"length": np.float32(0.5)}, 0.5),
        ({"sides": [1, 2]}, (1.0, 2.0)),
        ({"stops": {"a": 2}}, {"a": 2.0}),
        ({"share": 0.25}, 0.25),
        ({"share": 2}, 2),
        ({"rain": "cats"}, "cats"),
    ],
)
def test_values_take_the_field_s_type(given, found):
    ((name, _),) = given.items()
    value = getattr(Walk(**given), name)
    assert value == found
    assert type(value) is type(found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"steps": 0}, "a positive integer"),
        ({"steps": True}, "a positive integer"),
        ({"steps": 2.5}, "a positive integer"),
        ({"length": 3}, "a number > 0 and <= 2, or None"),
        ({"length": float("nan")}, "a number > 0 and <= 2, or None"),
        ({"length": "1"}, "a number > 0 and <= 2, or None"),
        ({"sides": (1.0,)}, "2 numbers >= 0"),
        ({"sides": (1.0, -1.0)}, "2 numbers >= 0"),
        ({"stops": {"a": 0}}, "a mapping of names to numbers > 0"),
        ({"stops": {1: 1.0}}, "a mapping of names to numbers > 0"),
        ({"share": "half"}, "a number"),
        ({"rain": 1}, "true or false or text"),
        ({"rain": ""}, "true or false or text"),
    ],
)
def test_a_bad_value_is_named(given, expected):
    with pytest.raises(ArgumentError) as error:
        Walk(**given)
    assert (error.value.argument, error.value.expected) == (next(iter(given)), expected)


def test_choices_offer_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'slow'"):
        Walk(pace="slwo")


def test_the_docstring_lists_the_fields():
    assert "steps: steps in all. A positive integer; default 10." in Walk.__doc__
    assert all(f"    {field.name}: " in TrainerConfig.__doc__ for field in fields(TrainerConfig))
    assert all(f"    {field.name}: " in ClassifierConfig.__doc__ for field in fields(ClassifierConfig))


@pytest.mark.parametrize("made", [Walk(steps=3), TrainerConfig(lr=1), config.SampleConfig(n=3), ClassifierConfig()])
def test_settings_are_values(made):
    assert eval(repr(made), vars(config) | globals()) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert replace(made) == made
    with pytest.raises(FrozenInstanceError):
        made.steps = 4


def test_a_new_setting_is_one_field(tmp_path, monkeypatch):
    """Declare a field in a class.

    It is a key of the file, checked there, and an option of the command line.
    """

    @dataclass(frozen=True)
    class More(config.TrainConfig):
        """Training with one more setting."""

        momentum: float | None = setting(None, "momentum of the optimiser; None: no momentum", ge=0, lt=1)

    @dataclass(frozen=True, kw_only=True)
    class Run(config.RunConfig):
        train: More = More()

    for module in ("config", "config_files"):
        monkeypatch.setitem(getattr(__import__(f"scoresde.app.{module}").app, module).SECTIONS, "train", More)
    monkeypatch.setattr("scoresde.app.config_files.RunConfig", Run)
    made = load_config(overrides=["train.momentum=0.5"])
    assert made.train.momentum == 0.5
    assert load_config(save_config(made, tmp_path / "c.yaml")) == made
    assert "# momentum of the optimiser; null: no momentum" in (tmp_path / "c.yaml").read_text()
    with pytest.raises(ArgumentError, match=r"`train\.momentum` must be a number >= 0 and < 1, or null, got 2"):
        load_config(overrides=["train.momentum=2"])
    command = options.options_for({"--momentum": "train.momentum"})(lambda momentum: None)
    shown = CliRunner().invoke(click.command()(command), ["--help"]).output
    assert "Momentum of the optimiser; by default no momentum." in shown


def test_no_setting_is_declared_twice():
    """Check that the trainer's settings come from its own class.

    The run's section adds others.
    """
    own = [one.name for one in settings_of(TrainerConfig)]
    assert [one.name for one in settings_of(config.TrainConfig)][: len(own)] == own
    assert not set(config.TrainConfig.__annotations__) & set(own)
    assert type(config.TrainConfig(steps=3).trainer) is TrainerConfig
    assert config.TrainConfig(steps=3).trainer == TrainerConfig(steps=3)


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (WeightingName, WEIGHTINGS),
        (TimeSamplingName, TIME_SAMPLINGS),
        (Precision, PRECISIONS),
    ],
)
def test_names_are_those_of_the_tables(names, table):
    assert get_args(names) == tuple(table)


def test_names_of_a_file_are_known_to_the_library():
    assert set(get_args(config.Predicts)) <= set(PREDICTIONS)
    assert set(get_args(config.TimeInput)) <= set(TIME_INPUTS)
