"""Samplers for guided models: weighted particles and repeated steps."""

import warnings

import pytest
import torch

from scoresde import VPSDE, Ancestral, GaussianMixture, PredictorCorrector, sample, trajectory
from scoresde.errors import ArgumentError, SamplingWarning
from scoresde.guidance import Inpainting, Matrix, dps, pigdm, replacement
from scoresde.models import Estimate, Unguided
from scoresde.models.wrappers import Wrapper
from scoresde.sampling import Particles, Resampling
from tests.generators import generator


@pytest.fixture(scope="module")
def mixture_3():
    return GaussianMixture([[-1.2, 0.6], [0.9, -0.5], [0.3, 1.2]], torch.tensor([0.02, 0.05, 0.1]), [0.3, 0.4, 0.3])


class Pushed(Wrapper):
    """A model with 0.6 x added to its score, of no likelihood.

    The weights have to undo it.
    """

    def estimate(self, x, level, cond=None):
        plain, g = self.model.estimate(x, level, cond), 0.6 * x
        pushed = plain.x0 + level.sigma**2 / level.alpha * g, plain.eps - level.sigma * g
        return Estimate(*pushed, level, None, Unguided(plain.x0, plain.eps, torch.zeros_like(x[:, 0])))


@pytest.mark.slow
@pytest.mark.parametrize("resample", [0.5, 1.0])
def test_particles_undo_a_meaningless_push(resample):
    """Compare with the law of the model, N(0, 1).

    False alarm: the variance of 3000 samples is off by .13 once in 10^6.
    """
    mixture = GaussianMixture(torch.zeros(1, 1), 1.0)
    model = Pushed(mixture.model(VPSDE()))
    wide = sample(model, (3000, 1), PredictorCorrector(Ancestral(), grid="log_snr"), 60, generator=generator())
    assert wide.var() > 1.5
    x = sample(model, (3000, 1), Particles(32, resample=resample), 60, generator=generator())
    assert abs(x.square().mean() - 1) < 0.13


def test_E10_weights_make_few_particles_exact(mixture_3):
    """Compare plain and weighted means of two particles per sample.

    The plain mean is more than 3 standard errors off; the weighted mean is right. False alarm: a coordinate of the
    weighted mean is more than 4.5 standard errors off once in 10^5.
    """
    operator, y = Matrix(torch.tensor([[0.6, 1.0]])), torch.tensor([0.15]).double()
    model = pigdm(mixture_3.model(VPSDE()), operator, y, 0.2)
    *_, last = trajectory(model, (3000, 2), Particles(2), 50, generator=generator())
    exact = mixture_3.posterior(operator, y, 0.2).moments.mean

    def standard_errors(w):
        mean = w @ last.x
        return ((mean - exact) / (w[:, None] * (last.x - mean)).square().sum(0).sqrt()).abs()

    assert standard_errors(torch.full((3000,), 1 / 3000).double()).max() > 3
    assert standard_errors(last.log_weight.softmax(0)).max() < 4.5


def test_steps_and_calls(mixture_16d):
    operator = Matrix(torch.ones(2, 16, dtype=torch.float64))
    model = pigdm(mixture_16d.model(VPSDE()), operator, torch.zeros(2, dtype=torch.float64), 0.1)
    states = list(trajectory(model, (2, 16), Particles(3), 5, generator=generator()))
    assert [state.step for state in states] == [0, 1, 2, 3, 4, 5, 5]
    assert states[-1].calls == 7
    assert all(state.x.shape == (2, 16) for state in states)


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
    with pytest.raises(ArgumentError, match=f"^`{name}` must be"):
        make()


@pytest.mark.slow
def test_repeats_improve_on_ancestral_sampling(mixture_2d):
    sde, operator, y = VPSDE(), Inpainting(torch.tensor([1, 0])), torch.tensor([0.3, 0.0]).double()
    model = replacement(mixture_2d.model(sde), operator, y, 0.05)
    once = sample(model, (50, 2), Resampling(1), 20, generator=generator())
    assert torch.equal(once, sample(model, (50, 2), PredictorCorrector(Ancestral()), 20, generator=generator()))
    exact = mixture_2d.posterior(operator.matrix()[:1], y[:1], 0.05).sample(1000, generator(1))

    def distance(repeats):
        x = sample(model, (1000, 2), Resampling(repeats), 30, generator=generator())
        return (x[:, 1].sort()[0] - exact[:, 1].sort()[0]).abs().mean()

    assert distance(10) < 0.6 * distance(1)


def test_resampling_keeps_the_marginals():
    """Check data N(0, 1) without guidance.

    False alarm: the variance of 3000 samples is off by .13 once in 10^6.
    """
    model = GaussianMixture(torch.zeros(1, 1), 1.0).model(VPSDE())
    x = sample(model, (3000, 1), Resampling(4, Ancestral("forward")), 40, generator=generator())
    assert abs(x.square().mean() - 1) < 0.13


def test_a_collapse_is_warned_of(mixture_16d):
    """Guide by pigdm and by dps, whose particles collapse."""
    operator, y = Inpainting(torch.arange(16) % 2 == 0), torch.full((16,), 0.5).double()
    model = mixture_16d.model(VPSDE())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(pigdm(model, operator, y, 0.2), (40, 16), Particles(16), 60, generator=generator())
        sample(dps(model, operator, y, 0.2), (40, 16), Particles(4), 20, generator=generator())  # too few to judge
    with pytest.warns(SamplingWarning, match=r"the 16 particles of most samples collapsed"):
        sample(dps(model, operator, y, 0.2), (40, 16), Particles(16), 60, generator=generator())
