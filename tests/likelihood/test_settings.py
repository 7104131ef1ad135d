"""Settings objects as values.

Their repr evaluates to them, they compare, pickle and cannot be changed.
"""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

import scoresde as S
from scoresde.likelihood import Exact, Hutchinson, HutchPP
from scoresde.likelihood.bounds import BoundSettings
from scoresde.likelihood.flow_settings import FlowSettings
from scoresde.likelihood.path_plan import Ends, Grid

CLASSES = {cls.__name__: cls for cls in (Exact, Hutchinson, HutchPP, BoundSettings, Ends, FlowSettings, Grid)}
SETTINGS = [
    Exact(),
    Exact(64),
    Hutchinson(),
    Hutchinson(3, "sphere", fresh=False, orthogonal=False),
    HutchPP(),
    HutchPP(1, 4, fresh=False),
    BoundSettings(levels=4, variance="forward"),
    Ends(1e-5, 1.0, data_at_t_min=False, noise_to_infinity=True),
    FlowSettings(Hutchinson(2), method="rk4", steps=5, end="none"),
    Grid((2.0, 1.0), rounds=2),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_settings_are_values(settings):
    assert eval(repr(settings), dict(CLASSES)) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(dataclasses.replace(settings))
    name = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, getattr(settings, name))


def test_numpy_integers_become_integers():
    for settings, name in ((Exact(np.int64(4)), "chunk"), (Hutchinson(np.int64(2)), "probes"), (HutchPP(), "rank")):
        assert type(getattr(settings, name)) is int
    assert Hutchinson(2) != Hutchinson(3)
    assert repr(HutchPP(np.int64(3))) == "HutchPP(rank=3, probes=2, fresh=True)"


@pytest.mark.filterwarnings("ignore::scoresde.errors.LikelihoodWarning")
def test_reprs_of_results_are_short():
    """Check that a result shows means and errors, not its tensors."""
    gm = S.GaussianMixture(torch.zeros(1, 1, 2, 2), 0.2)
    model, scaling = gm.model(S.VPSDE()), S.data.Scaling.for_integers(8)
    x, images = gm.sample(3, torch.Generator().manual_seed(0)), torch.arange(12).reshape(3, 1, 2, 2) % 8
    mixture = S.GaussianMixture([[0.0, 1.0], [1.0, 0.0]], 0.2)
    results = {
        "Likelihood": S.log_likelihood(model, x, steps=24),
        "BitsPerDim": S.bits_per_dim(model, images, scaling=scaling, steps=24),
        "VariationalBound": S.variational_bound(model, x, levels=4),
        "Classification": S.likelihood.classify(mixture.model(S.VPSDE()), torch.zeros(2, 2), 2, steps=24),
    }
    for name, result in results.items():
        assert repr(result).startswith(f"{name}(")
        assert len(repr(result)) < 250
        assert "tensor" not in repr(result)
    assert "multistep, 24 calls" in repr(results["Likelihood"])
