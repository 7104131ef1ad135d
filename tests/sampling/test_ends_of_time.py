"""The ends of time: no noise at t = 0, no signal at t = 1."""

import math

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError
from scoresde.sampling import AdaptiveSDE
from tests.generators import generator

MIXTURE = S.GaussianMixture(torch.tensor([[0.3, -0.2], [1.0, 1.0]]), 0.01)
ENDS = [S.FlowSDE(), S.VPSDE.cosine(), S.DDPM.linear().rescale_zero_terminal_snr()]
POINT = torch.tensor([[0.3, -0.2]])


@pytest.mark.parametrize("sde", ENDS, ids=repr)
@pytest.mark.parametrize(
    "sampler",
    [
        S.DPMSolver(t_max=1.0),
        S.DPMSolver(grid="karras", t_max=1.0),
        S.Heun(t_max=1.0),
        S.SingleStep(t_max=1.0),
        S.ProbabilityFlow(t_max=1.0),
        AdaptiveSDE(t_max=1.0),
        S.PredictorCorrector(S.EulerMaruyama(), t_max=1.0),
        S.DDIM(grid="log_snr", t_max=1.0),
    ],
    ids=repr,
)
def test_an_end_without_signal_is_refused_by_name(sde, sampler):
    with pytest.raises(ArgumentError, match=r"`t_max` must be a time with alpha > 0 .*, got 1\.0"):
        S.sample(MIXTURE.model(sde), (4, 2), sampler, generator=generator())


@pytest.mark.parametrize(
    "sampler",
    [
        S.SingleStep(t_min=0.0),
        S.ProbabilityFlow(t_min=0.0),
        AdaptiveSDE(t_min=0.0),
        S.DDIM(grid="log_snr", t_min=0.0),
    ],
    ids=repr,
)
def test_an_end_without_noise_is_refused_by_name(sampler):
    with pytest.raises(ArgumentError, match=r"`t_min` must be a time with noise .*, got 0\.0"):
        S.sample(MIXTURE.model(S.FlowSDE()), (4, 2), sampler, generator=generator())


def test_likelihoods_refuse_both_ends_by_name():
    x = torch.zeros(2, 2, dtype=torch.float64)
    for settings, name in (({"t_max": 1.0}, "t_max"), ({"t_min": 0.0, "method": "dopri5"}, "t_min")):
        with pytest.raises(ArgumentError, match=f"`{name}` must be a time with"):
            S.log_likelihood(MIXTURE.model(S.FlowSDE()), x, S.Exact(), **settings)


@pytest.mark.parametrize("sde", ENDS, ids=repr)
@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (S.DDIM(t_max=1.0), 100),
        (S.PredictorCorrector(S.Ancestral(), t_max=1.0), 100),
        (S.DPMSolver(grid=torch.linspace(1.0, 0.01, 40).tolist()), None),
        (S.DPMSolver(grid=torch.linspace(1.0, 0.01, 100).tolist(), stochastic=True), None),
    ],
    ids=repr,
)
def test_samplers_that_can_start_without_signal(sde, sampler, steps):
    """Compare 4000 samples' means and stds with the mixture's.

    The standard error of a mean is .01, and errors of the steps are below .04.
    """
    x = S.sample(MIXTURE.model(sde), (4000, 2), sampler, steps, generator=generator())
    exact = MIXTURE.sample(200_000, generator(1)).to(x)
    torch.testing.assert_close(x.mean(0), exact.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(x.std(0), exact.std(0), rtol=0, atol=0.06)


@pytest.mark.parametrize("sampler", [S.DDIM(grid="trailing"), S.DPMSolver(grid="trailing")], ids=repr)
def test_zero_terminal_snr_samples_from_its_own_levels(sampler):
    sde = S.DDPM.linear().rescale_zero_terminal_snr()
    x = S.sample(MIXTURE.model(sde), (4000, 2), sampler, 50, generator=generator())
    exact = MIXTURE.sample(200_000, generator(1)).to(x)
    torch.testing.assert_close(x.mean(0), exact.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(x.std(0), exact.std(0), rtol=0, atol=0.05)


@pytest.mark.parametrize("last", ["flow", "half-tweedie", "tweedie"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_few_calls_from_pure_noise(steps, last):
    """Check the means of 2000 samples; one call gives the mean of the data."""
    sde = S.DDPM.linear().rescale_zero_terminal_snr()
    sampler = S.DPMSolver(grid="trailing", last=last)
    x = S.sample(MIXTURE.model(sde), (2000, 2), sampler, steps, generator=generator())
    torch.testing.assert_close(x.mean(0), torch.tensor([0.65, 0.4]).to(x), rtol=0, atol=0.05)
    if steps == 1:
        assert x.std(0).max() < 1e-3


def test_zero_terminal_snr_likelihood_is_exact():
    x = MIXTURE.sample(20, generator())
    model = MIXTURE.model(S.DDPM.linear().rescale_zero_terminal_snr())
    torch.testing.assert_close(S.log_likelihood(model, x, S.Exact()).log_prob, MIXTURE.log_prob(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sde", [S.DDPM.linear(1000), S.DDPM.linear(50), S.NCSN.geometric()], ids=repr)
@pytest.mark.parametrize("predictor", [S.ReverseDiffusion(), S.EulerMaruyama()], ids=repr)
def test_the_last_step_leaves_no_noise_unless_wanted(sde, predictor):
    """Sample a point; with ``last_noise`` the std is that of the last step."""
    model = S.GaussianMixture(POINT, 1e-12).model(sde)
    stds = []
    for last_noise in (False, True):
        sampler = S.PredictorCorrector(predictor, grid="levels", last_noise=last_noise)
        if last_noise:
            with pytest.warns(S.errors.SamplingWarning):
                x = S.sample(model, (2000, 2), sampler, generator=generator())
        else:
            x = S.sample(model, (2000, 2), sampler, generator=generator())
        stds.append((x - POINT).square().mean().sqrt().item())
    assert stds[0] < 1e-3
    assert stds[1] == pytest.approx(sde.sigma(sde.times[0]).item(), rel=0.05)


class Recorded(torch.nn.Module):
    """A network that keeps the times it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, x, time_input):
        self.seen.append(time_input.min().item())
        self.seen.append(time_input.max().item())
        return 0.1 * x


@pytest.mark.parametrize("time_input", ["ddpm", "improved_ddpm"])
@pytest.mark.parametrize(
    "sampler",
    [
        S.DPMSolver(),
        S.DDIM(),
        S.Heun(),
        S.SingleStep(),
        S.PredictorCorrector(),
        S.ProbabilityFlow("heun"),
        AdaptiveSDE(rtol=0.5, atol=0.5),
    ],
    ids=repr,
)
def test_networks_that_know_levels_are_not_called_below_the_first(sampler, time_input):
    net = Recorded()
    model = S.ScoreModel(net, S.DDPM.linear(), "noise", time_input=time_input)
    assert model.time_range()[0] == pytest.approx(1e-3)
    S.sample(model, (4, 2), sampler, 30, generator=generator())
    assert min(net.seen) >= -1e-3
    assert max(net.seen) <= 999 + 1e-3
    other = model.with_sde(S.VPSDE())
    assert other.sde.log_snr(other.first_time).item() == pytest.approx(model.sde.log_snr(1e-3).item(), rel=1e-9)


def test_the_other_ends_of_networks_with_levels():
    ncsn = S.ScoreModel(Recorded(), S.NCSN.geometric(), "score", time_input="ncsn")
    S.sample(ncsn, (4, 2), S.DDIM(), 30, generator=generator())
    assert max(ncsn.net.seen) <= 231 + 1e-3
    free = S.ScoreModel(Recorded(), S.DDPM.linear(), "noise", time_input="log_snr")
    assert free.first_time is None
    assert free.time_range()[0] < 1e-3
    assert free.time_range(0.5, 0.75) == (0.5, 0.75)


def test_half_precision_times_have_the_levels_of_float32():
    for sde in (S.NCSN.geometric(L=50), S.DDPM.linear(50), S.VPSDE(), S.FlowSDE()):
        for dtype in (torch.bfloat16, torch.float16):
            t = torch.tensor([0.25, 0.5, 0.75])  # exact in every dtype
            x = torch.zeros(3, 2, dtype=dtype)
            half, full = sde.level(t.to(dtype), x), sde.level(t, x)
            assert torch.equal(half.alpha, full.alpha)
            assert torch.equal(half.sigma, full.sigma)
            assert torch.equal(sde.sigma(t.to(dtype)), sde.sigma(t))


PREDICTIONS = {"noise": (True, False), "data": (False, True), "score": (False, False), "velocity": (True, True)}
PREDICTIONS |= {"flow": (True, True), "edm": (True, True)}


@pytest.mark.parametrize("time_input", ["log_snr", "edm", "time", "sigma"])
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_networks_are_finite_at_the_ends_or_refuse_them(predicts, time_input):
    """Numbers and tensors of times agree; none gives NaN in silence."""
    model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.FlowSDE(), predicts, time_input=time_input)
    x = torch.randn(2, 2, generator=generator())
    for t, fine in zip((0.0, 1.0), PREDICTIONS[predicts], strict=True):
        for times in (t, torch.tensor([t, 0.5]), torch.tensor(t)):
            if fine:
                estimate = model(x, times)
                assert estimate.x0.isfinite().all()
                assert estimate.eps.isfinite().all()
            else:
                with pytest.raises(ArgumentError, match="`t` must be times at which"):
                    model(x, times)


def test_the_score_without_noise_is_refused():
    model = MIXTURE.model(S.FlowSDE())
    x = torch.zeros(2, 2)
    for t in (0.0, torch.tensor([0.0, 0.5])):
        estimate = model(x, t)
        assert estimate.eps.isfinite().all()
        with pytest.raises(ArgumentError, match="sigma = 0"):
            _ = estimate.score


def test_classifier_guidance_has_its_limit_without_signal():
    """Compare with the exact conditional model at alpha = 0, and near it."""
    mixture = S.GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 1.0]], dtype=torch.float64), 0.3)
    labels = {"y": torch.tensor([0, 1, 0])}
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    for sde in (S.FlowSDE(), S.VPSDE.cosine()):
        model = mixture.model(sde)
        guided = S.guidance.classifier_guidance(model, model.log_responsibilities)
        for t in (1.0, torch.tensor([1.0, 1.0, 0.9], dtype=torch.float64), 0.9):
            exact = model(x, t, labels)
            found = guided(x, t, labels)
            torch.testing.assert_close(found.x0, exact.x0, rtol=0, atol=1e-3)
            torch.testing.assert_close(found.eps, exact.eps, rtol=0, atol=1e-6)


def test_per_sample_times_out_of_reach_are_refused():
    model = MIXTURE.model(S.VESDE(0.01, 10.0)).with_sde(S.VPSDE())
    x = torch.zeros(2, 2)
    for t in (1.0, torch.tensor([0.5, 1.0])):
        with pytest.raises(ArgumentError, match="range of the model's own"):
            model(x, t)
    assert model(x, torch.tensor([0.2, 0.3])).x0.isfinite().all()


def test_a_loss_at_an_end_is_finite_or_refused():
    x0 = torch.randn(8, 2, generator=generator())
    sde = S.DDPM.linear(100).rescale_zero_terminal_snr()
    for predicts in ("velocity", "data", "flow", "edm"):
        model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), sde, predicts, time_input="ddpm")
        for weighting in ("simple", "min-snr"):
            objective = S.DenoisingScoreMatching(weighting, time_sampling=1.0)
            assert objective(model, x0, generator=generator()).isfinite().all()
        for weighting in ("likelihood", "sigmoid", "edm"):
            with pytest.raises(ArgumentError, match="t_min, t_max"):
                S.DenoisingScoreMatching(weighting, time_sampling=1.0)(model, x0, generator=generator())
    noise = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), sde, "noise", time_input="ddpm")
    with pytest.raises(ArgumentError, match="'noise' determines both"):
        S.DenoisingScoreMatching(time_sampling=1.0)(noise, x0)
    with pytest.raises(ArgumentError, match="t_max"):
        S.training.VLB()(model, x0, generator=generator())


def test_rescaled_alphas_are_the_papers():
    """Check against the algorithm of Lin et al. 2024, written from its text."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar_sqrt = (1 - betas).cumprod(0).sqrt()
    first, last = bar_sqrt[0].clone(), bar_sqrt[-1].clone()
    expected = ((bar_sqrt - last) * first / (first - last)) ** 2
    rescaled = S.DDPM(betas).rescale_zero_terminal_snr()
    torch.testing.assert_close(rescaled.alphas_bar, expected, rtol=1e-12, atol=0)
    assert rescaled.betas[-1] == 1
    assert S.DDPM(rescaled.betas) == rescaled
    assert S.sde.build_sde(rescaled.config) == rescaled


def test_the_last_piece_is_continuous_and_inverted():
    sde = S.DDPM([0.1, 0.2, 1.0])
    t = torch.tensor([0.2, 2 / 3, 0.7, 0.9, 1 - 1e-9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(sde.time_of(sde.log_snr(t)), t, rtol=1e-9, atol=0)
    square = sde.alpha(t[2:]) ** 2
    torch.testing.assert_close(square, 0.72 * (1 - (3 * t[2:] - 2)), rtol=1e-6, atol=1e-12)
    rate = (sde.log_alpha(t[2:4] + 1e-6) - sde.log_alpha(t[2:4] - 1e-6)) / 2e-6
    torch.testing.assert_close(sde.log_alpha_rate(t[2:4]), rate, rtol=1e-6, atol=0)
    assert sde.alpha(1.0) == 0
    assert sde.log_snr(1.0) == -math.inf
    assert torch.equal(sde.respace([1, 3]).alphas_bar, sde.alphas_bar[[0, 2]])
    assert S.DDPM.from_sde(S.VPSDE.cosine(), 10).alphas_bar[-1] == 0
