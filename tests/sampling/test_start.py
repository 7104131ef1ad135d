"""The law of the start, and warnings about samples that cannot be right."""

import math
import warnings

import pytest
import torch

import scoresde as S
from scoresde.errors import SamplingWarning, ShapeError, UnknownNameError
from scoresde.sampling.start import draw_start
from tests.families import EACH
from tests.generators import generator

GAUSSIAN = S.GaussianMixture(
    torch.tensor([[50.0, -1.0]]), torch.tensor([[[25.0, 9.0], [9.0, 16.0]]], dtype=torch.float64)
)


def start(model, n, prior="matched", sampler=None, cond=None):
    sampler = S.DPMSolver() if sampler is None else sampler
    return draw_start(model, (n, 2), sampler, cond, prior, generator(), torch.device("cpu"), torch.float64)


@EACH
def test_the_matched_start_has_the_moments_of_p(sde):
    """Compare mean and covariance with alpha m and alpha^2 C + sigma^2 I.

    20000 samples; bounds of 5 standard errors on 5 numbers, false alarms under 1e-5.
    """
    model, n = GAUSSIAN.model(sde), 20000
    x = start(model, n)
    t_max = S.sde.time_range(sde)[1]
    level = sde.levels(torch.tensor([t_max], dtype=torch.float64))[0]
    moments = GAUSSIAN.moments
    covariance = level.alpha**2 * moments.covariance + level.sigma**2 * torch.eye(2, dtype=torch.float64)
    std = covariance.diagonal().sqrt()
    assert ((x.mean(0) - level.alpha * moments.mean).abs() < 5 * std / math.sqrt(n)).all()
    error = (x.T.cov() - covariance).abs() / std / std[:, None]
    assert (error < 5 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("sde", [S.VPSDE(), S.VESDE(0.002, 20.0), S.DDPM.linear(1000)])
def test_samples_have_the_law_of_the_likelihood(sde):
    """Draw data about 50, whose mean was 47.5 under VESDE(.002, 20).

    5000 samples; bound of 5 standard errors, false alarms under 1e-6.
    """
    model = S.GaussianMixture(torch.tensor([[50.0]]), 1.0).model(sde)
    x = S.sample(model, (5000, 1), generator=generator())
    assert (x.mean() - 50).abs() < 5 / math.sqrt(5000)
    assert (x.std() - 1).abs() < 5 / math.sqrt(10000)
    bare = S.sample(model, (5000, 1), generator=generator(), prior="sde")
    assert (bare.mean() - 50).abs() > 0.2


def test_a_condition_or_the_process_gives_the_bare_prior():
    model = GAUSSIAN.model(S.VESDE(0.01, 50.0))
    bare = model.sde.prior_sample((4, 2), generator(), "cpu", torch.float64)
    assert torch.equal(start(model, 4, "sde"), bare)
    assert torch.equal(start(model, 4, cond={"y": torch.zeros(4)}), bare)
    with pytest.raises(UnknownNameError, match="prior"):
        start(model, 4, "exact")
    with pytest.raises(ShapeError, match="shape of the model's data"):
        S.sample(model, (4, 3))


def test_the_start_is_at_the_samplers_first_time():
    model = GAUSSIAN.model(S.VPSDE())
    for sampler in (S.DDIM(grid=[0.5, 0.2, 0.1]), S.DDIM(t_max=0.5)):
        x = start(model, 4000, sampler=sampler)
        assert (x.mean(0) / model.sde.alpha(0.5) - GAUSSIAN.moments.mean).abs().max() < 1.0
    assert S.DDIM(grid="levels").start_time(S.DDPM.linear(50)) == 1.0


class Diverging(S.Model):
    """A model whose samples grow without bound: x0 = 100 x."""

    def __init__(self):
        super().__init__()
        self.sde, self.moments = S.VPSDE(), S.models.Moments(torch.zeros(2), torch.ones(2))

    def estimate(self, x, level, cond=None):
        return S.Estimate(100 * x, (x - level.alpha * 100 * x) / level.sigma, level)


def test_divergence_warns_and_names_the_step():
    with pytest.warns(SamplingWarning, match=r"8 of 8 samples are out of the scale .* at step \d+ of 12"):
        S.sample(Diverging(), (8, 2), steps=12, generator=generator())


@pytest.mark.parametrize("scale", [1e-3, 255.0])
def test_an_unknown_scale_warns(scale):
    """Sample data of another scale than 1 without telling the model."""
    model = S.GaussianMixture(scale * torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), (0.2 * scale) ** 2).model(S.VPSDE())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        S.sample(model, (50, 2), generator=generator())
    model.moments = model.data_scale = None
    with pytest.warns(SamplingWarning, match="does not know its data's scale"):
        S.sample(model, (50, 2), generator=generator())
