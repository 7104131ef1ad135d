"""Time samplings, weightings and objectives as values.

Reprs evaluate; equality, pickling and immutability hold.
"""

import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError
from scoresde.training import (
    FixedTime,
    Levels,
    LogNormal,
    LossAware,
    UniformLogSNR,
    UniformTime,
    sliced,
    time_sampling,
    variational,
    weightings,
)
from scoresde.training.weightings import EDM, DDIMVariational, LikelihoodWeighting, MinSNR, Sigmoid, Simple

SAMPLINGS = [UniformTime(), UniformTime(low_discrepancy=False), FixedTime(0.5), UniformLogSNR(), LogNormal(0, 1)]
SAMPLINGS += [Levels(), Levels(4), LossAware(3, history=2, uniform_share=0.1)]
WEIGHTINGS = [Simple(), LikelihoodWeighting(), Sigmoid(3), MinSNR(2), EDM(data_std=2), DDIMVariational(0.5, 10)]
OBJECTIVES = [
    S.DenoisingScoreMatching("likelihood"),
    S.DenoisingScoreMatching("edm", "uniform", t_min=0.01),
    S.ImplicitScoreMatching(None),
    S.SlicedScoreMatching(2, "rademacher", "plain", weighting="min-snr"),
    S.VLB("forward", "levels"),
    S.HybridVLB(0.01),
]
ALL = [*SAMPLINGS, *WEIGHTINGS, *OBJECTIVES]
NAMES = {**vars(S), **vars(time_sampling), **vars(weightings), **vars(sliced), **vars(variational)}


@pytest.mark.parametrize("made", ALL, ids=repr)
def test_settings_are_values(made):
    NAMES.update(vars(S.training), **{name: getattr(S, name) for name in ("DenoisingScoreMatching",)})
    assert eval(repr(made), NAMES) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert hash(made) == hash(pickle.loads(pickle.dumps(made)))
    for name in [field.name for field in fields(made)] or ["t_min"]:
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, 1)


def test_equal_settings_are_equal():
    assert len(set(map(repr, ALL))) == len(set(ALL)) == len(ALL)
    assert S.DenoisingScoreMatching() == S.DenoisingScoreMatching(Simple(), UniformTime())
    assert LogNormal(0, 1) == LogNormal(0.0, 1.0)


def test_learned_state_is_not_a_setting():
    """Check that two trainings by one sampling share no learned state."""
    sampling = LossAware(3)
    first, second = S.VLB(time_sampling=sampling), S.VLB(time_sampling=sampling)
    t, _ = first.draws.draw(8, S.VPSDE(), None, None, torch.Generator(), "cpu")
    first.draws.observe(t, torch.ones(8))
    assert first.state_dict()
    assert not second.state_dict()
    assert first == second


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedTime(1.5),
        lambda: LogNormal(P_std=0),
        lambda: Levels(0),
        lambda: LossAware(history=0),
        lambda: Sigmoid(-1),
        lambda: MinSNR(0),
        lambda: EDM(P_std=-1),
        lambda: EDM(data_std=0),
        lambda: DDIMVariational(2),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ArgumentError):
        make()
