"""Samplers for guided models: weighted particles, and steps taken several times."""

import pytest
import torch

from scoresde import VPSDE, Ancestral, GaussianMixture, PredictorCorrector, sample, trajectory
from scoresde.errors import ArgumentError
from scoresde.guidance import Inpainting, Matrix, pigdm, replacement
from scoresde.models import Estimate, Unguided
from scoresde.models.wrappers import Wrapper
from scoresde.sampling import Particles, Resampling


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mixture_3():
    return GaussianMixture([[-1.2, 0.6], [0.9, -0.5], [0.3, 1.2]], torch.tensor([0.02, 0.05, 0.1]), [0.3, 0.4, 0.3])


class Pushed(Wrapper):
    """A model with 0.6 x added to its score, for no likelihood at all: the weights have to undo it."""

    def estimate(self, x, level, cond=None):
        plain, g = self.model.estimate(x, level, cond), 0.6 * x
        pushed = plain.x0 + level.sigma**2 / level.alpha * g, plain.eps - level.sigma * g
        return Estimate(*pushed, level, None, Unguided(plain.x0, plain.eps, torch.zeros_like(x[:, 0])))


@pytest.mark.parametrize("resample", [0.5, 1.0])
def test_particles_undo_a_push_that_stands_for_nothing(resample):
    """The law is the model's own, N(0, 1): its variance, from 3000 samples, is off by .13 once in 10^6."""
    mixture = GaussianMixture(torch.zeros(1, 1), 1.0)
    model = Pushed(mixture.model(VPSDE()))
    wide = sample(model, (3000, 1), PredictorCorrector(Ancestral(), grid="log_snr"), 60, generator=seeded())
    assert wide.var() > 1.5
    x = sample(model, (3000, 1), Particles(32, resample=resample), 60, generator=seeded())
    assert abs(x.square().mean() - 1) < 0.13


def test_E10_weights_make_few_particles_exact(mixture_3):
    """Two particles a sample: the mean is 3 standard errors off and more; with the run's weights it is right.

    A coordinate of the weighted mean is beyond 4.5 of its standard errors once in 10^5.
    """
    operator, y = Matrix(torch.tensor([[0.6, 1.0]])), torch.tensor([0.15]).double()
    model = pigdm(mixture_3.model(VPSDE()), operator, y, 0.2)
    *_, last = trajectory(model, (3000, 2), Particles(2), 50, generator=seeded())
    exact = mixture_3.posterior(operator, y, 0.2).moments.mean

    def standard_errors(w):
        mean = w @ last.x
        return ((mean - exact) / (w[:, None] * (last.x - mean)).square().sum(0).sqrt()).abs()

    assert standard_errors(torch.full((3000,), 1 / 3000).double()).max() > 3
    assert standard_errors(last.log_weight.softmax(0)).max() < 4.5


def test_steps_and_calls(mixture_16d):
    operator = Matrix(torch.ones(2, 16, dtype=torch.float64))
    model = pigdm(mixture_16d.model(VPSDE()), operator, torch.zeros(2, dtype=torch.float64), 0.1)
    states = list(trajectory(model, (2, 16), Particles(3), 5, generator=seeded()))
    assert [state.step for state in states] == [0, 1, 2, 3, 4, 5, 5]
    assert states[-1].calls == 7
    assert all(state.x.shape == (2, 16) for state in states)
    assert repr(Particles(3)) == "Particles(3)"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Particles(0), "particles"),
        (lambda: Particles(resample=0.0), "resample"),
        (lambda: Particles(order=6), "order"),
        (lambda: Resampling(0), "repeats"),
    ],
)
def test_bad_settings_are_refused(make, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        make()


def test_resampling_once_is_ancestral_sampling_and_more_comes_nearer(mixture_2d):
    sde, operator, y = VPSDE(), Inpainting(torch.tensor([1, 0])), torch.tensor([0.3, 0.0]).double()
    model = replacement(mixture_2d.model(sde), operator, y, 0.05)
    once = sample(model, (50, 2), Resampling(1), 20, generator=seeded())
    assert torch.equal(once, sample(model, (50, 2), PredictorCorrector(Ancestral()), 20, generator=seeded()))
    exact = mixture_2d.posterior(operator.matrix()[:1], y[:1], 0.05).sample(1000, seeded(1))

    def distance(repeats):
        x = sample(model, (1000, 2), Resampling(repeats), 30, generator=seeded())
        return (x[:, 1].sort()[0] - exact[:, 1].sort()[0]).abs().mean()

    assert distance(10) < 0.6 * distance(1)


def test_resampling_keeps_the_marginals():
    """N(0, 1) data without guidance: 3000 samples' variance is off by .13 once in 10^6."""
    model = GaussianMixture(torch.zeros(1, 1), 1.0).model(VPSDE())
    x = sample(model, (3000, 1), Resampling(4, Ancestral("forward")), 40, generator=seeded())
    assert abs(x.square().mean() - 1) < 0.13
