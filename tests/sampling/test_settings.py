"""Samplers, predictors and correctors as settings.

They are shown, compared, pickled, and never changed.
"""

import dataclasses
import math
import pickle

import pytest
import torch

from scoresde import sampling
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.sampling import (
    DDIM,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    Corrector,
    DPMSolver,
    EulerMaruyama,
    Heun,
    Implicit,
    Langevin,
    Particles,
    Predictor,
    PredictorCorrector,
    ProbabilityFlow,
    Resampling,
    ReverseDiffusion,
    Sampler,
    SingleStep,
)
from scoresde.sampling.frozen import Frozen

TIMES = [1.0, 0.6, 0.3, 0.01]
#: every class with defaults and with other settings, by its repr
ALL = {
    "DPMSolver()": DPMSolver(),
    "DPMSolver(order=3, stochastic=True)": DPMSolver(3, stochastic=True),
    "DPMSolver(stochastic=0.5, last='tweedie', grid='karras', corrector=True)": DPMSolver(
        "auto", 0.5, corrector=True, grid="karras", last="tweedie"
    ),
    "DPMSolver(grid=(1.0, 0.6, 0.3, 0.01))": DPMSolver(grid=TIMES),
    "SingleStep()": SingleStep(),
    "SingleStep(order=3, t_min=0.01, last='none')": SingleStep(3, t_min=0.01, last="none"),
    "Heun()": Heun(),
    "Heun(churn=20.0, s_min=0.01, s_max=20.0, s_noise=1.003)": Heun(20, 0.01, 20, 1.003),
    "DDIM()": DDIM(),
    "DDIM(eta=0.5, grid='quadratic')": DDIM(0.5, grid="quadratic"),
    "PredictorCorrector()": PredictorCorrector(),
    "PredictorCorrector(predictor=Ancestral(), corrector=Langevin())": PredictorCorrector(Ancestral(), Langevin()),
    "PredictorCorrector(predictor=None, corrector=AnnealedLangevin(step_size=0.1), grid='levels', corrector_steps=5)": (
        PredictorCorrector(None, AnnealedLangevin(0.1), corrector_steps=5, grid="levels")
    ),
    "ProbabilityFlow()": ProbabilityFlow(),
    "ProbabilityFlow(method='rk4', t_max=0.9)": ProbabilityFlow("rk4", t_max=0.9),
    "AdaptiveSDE()": AdaptiveSDE(),
    "AdaptiveSDE(rtol=0.1, atol=0.01, first_step=0.001, max_calls=100)": AdaptiveSDE(
        0.1, 0.01, first_step=1e-3, max_calls=100
    ),
    "Resampling()": Resampling(),
    "Resampling(repeats=3, predictor=Ancestral(variance='forward'))": Resampling(3, Ancestral("forward")),
    "Particles()": Particles(),
    "Particles(particles=4, order=1, resample=1.0)": Particles(4, order=1, resample=1),
    "ReverseDiffusion()": ReverseDiffusion(),
    "EulerMaruyama()": EulerMaruyama(),
    "Ancestral(variance='learned')": Ancestral("learned"),
    "Implicit(eta=1.0)": Implicit(1),
    "Langevin(snr=0.4, batch_mean=True)": Langevin(0.4, batch_mean=True),
    "AnnealedLangevin(step_size=0.0001)": AnnealedLangevin(1e-4),
}
NAMES = {name: getattr(sampling, name) for name in sampling.__all__}


def test_every_class_is_here():
    classes = {value for value in NAMES.values() if isinstance(value, type) and issubclass(value, Frozen)}
    bases = {Sampler, sampling.GridSampler, Predictor, Corrector}
    assert classes - bases == {type(settings) for settings in ALL.values()}


@pytest.mark.parametrize("text", ALL)
def test_the_repr_evaluates(text):
    assert repr(ALL[text]) == text
    assert eval(text, dict(NAMES)) == ALL[text]


@pytest.mark.parametrize("text", ALL)
def test_equal_by_value(text):
    settings = ALL[text]
    again = dataclasses.replace(settings)
    assert again is not settings
    assert again == settings
    assert hash(again) == hash(settings)
    assert [other for other in ALL.values() if other == settings] == [settings]


@pytest.mark.parametrize("text", ALL)
def test_pickled(text):
    assert pickle.loads(pickle.dumps(ALL[text])) == ALL[text]


@pytest.mark.parametrize("text", ALL)
def test_never_changed(text):
    settings = ALL[text]
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.other = 1
    for field in dataclasses.fields(settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)


def test_attributes_are_what_was_set():
    solver = DPMSolver(last="tweedie")
    assert (solver.last, solver.corrector, solver.stochastic, solver.order) == ("tweedie", None, False, "auto")
    assert DPMSolver(stochastic=True).tau == 1.0
    sampler = PredictorCorrector(t_min=torch.tensor(0.25), corrector_steps=3)
    assert (sampler.t_min, sampler.t_max, sampler.corrector_steps) == (0.25, None, 3)


def test_given_times_are_kept_as_numbers():
    times = torch.tensor(TIMES, dtype=torch.float64)
    for sampler in (DDIM, Heun, DPMSolver, Particles):
        assert sampler(grid=times) == sampler(grid=TIMES) == sampler(grid=tuple(TIMES))
    times[0] = 0.9  # the tensor is the caller's
    assert DDIM(grid=TIMES).grid == tuple(TIMES)


def test_default_steps_follow_from_the_settings():
    assert DDIM().default_steps == 50
    assert DDIM(grid=TIMES).default_steps is DDIM(grid="levels").default_steps is None
    assert DPMSolver(grid=TIMES).default_steps == 4
    assert (ProbabilityFlow().default_steps, ProbabilityFlow("rk4").default_steps) == (1, 50)


def test_deterministic_follows_from_the_settings():
    for sampler in (DPMSolver(), SingleStep(), Heun(), DDIM(), ProbabilityFlow()):
        assert sampler.deterministic
    for sampler in (DPMSolver(stochastic=0.1), Heun(1.0), DDIM(0.1), PredictorCorrector(), AdaptiveSDE(), Particles()):
        assert not sampler.deterministic


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DDIM(-1.0), "eta"),
        (lambda: DDIM(math.nan), "eta"),
        (lambda: Implicit("0"), "eta"),
        (lambda: ProbabilityFlow(rtol=0.0), "rtol"),
        (lambda: DPMSolver(order=True), "order"),
        (lambda: DPMSolver(grid=TIMES, t_min=0.1), "t_min, t_max"),
        (lambda: SingleStep(t_max="1"), "t_max"),
        (lambda: Langevin(math.inf), "snr"),
        (lambda: PredictorCorrector(corrector_steps=0), "corrector_steps"),
    ],
)
def test_bad_settings_are_refused(make, name):
    with pytest.raises(ArgumentError, match=f"^`{name}` must be"):
        make()


@pytest.mark.parametrize("sampler", [DDIM, DPMSolver, AdaptiveSDE])
def test_unknown_names_are_refused(sampler):
    with pytest.raises(UnknownNameError, match="`last` must be one of"):
        sampler(last="denoise")
    with pytest.raises(UnknownNameError, match="'half-tweedie', 'tweedie', 'none'"):
        sampler(last="Tweedy")
