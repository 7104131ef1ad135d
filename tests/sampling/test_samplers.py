"""Samplers: laws, the papers' loops, independence of the batch.

The laws are compared with exact draws.
"""

import functools
import itertools

import numpy as np
import pytest
import torch

import scoresde as S
from benchmarks import quality
from scoresde.errors import ArgumentError, ShapeError, UnknownNameError
from scoresde.sampling.base import LAST_STEPS
from scoresde.sde.grids import time_grid
from tests.generators import generator
from tests.marks import first_fast
from tests.sampling.problems import COVARIANCES, MIXTURE, SDES, noises, normal
from tests.statistics_tools import energy_test

PAPER_SDES = ("vp", "subvp", "ve")
SAMPLERS = {
    "reverse-diffusion": (S.PredictorCorrector(), 250),
    "reverse-diffusion+langevin": (S.PredictorCorrector(S.ReverseDiffusion(), S.Langevin()), 150),
    "euler-maruyama": (S.PredictorCorrector(S.EulerMaruyama()), 300),
    "ancestral": (S.PredictorCorrector(S.Ancestral(), grid="log_snr"), 250),
    "ddim": (S.DDIM(grid="log_snr"), 200),
    "ode": (S.ProbabilityFlow(), None),
    "ode-rk4": (S.ProbabilityFlow("rk4"), 30),
}


CASES = [*itertools.product(PAPER_SDES, SAMPLERS)]
CASES += [*itertools.product(("cosine", "flow", "ddpm", "ncsn"), ("ode", "reverse-diffusion"))]


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "sampler"), CASES)
def test_E7_E8_samples_match_the_mixture(sde, sampler):
    """Compare samples by the energy test at level 0.001 each, 29 cases.

    A false alarm in one suite of 34 seeds; the seed is fixed.
    """
    method, steps = SAMPLERS[sampler]
    x = S.sample(MIXTURE.model(SDES[sde]), (600, 2), method, steps, generator=generator(1))
    assert energy_test(x, MIXTURE.sample(600, generator(2))) > 0.001


def test_the_energy_test_sees_a_wrong_sampler():
    """Check that the same test rejects a sampler with too few steps.

    It also rejects a mixture with other weights.
    """
    model = MIXTURE.model(SDES["vp"])
    x = S.sample(model, (600, 2), S.DDIM(eta=1.0), 3, generator=generator(1))
    assert energy_test(x, MIXTURE.sample(600, generator(2))) == 0.001
    other = S.GaussianMixture(MIXTURE.means, COVARIANCES, [0.3, 0.5, 0.2])
    assert energy_test(other.sample(600, generator(1)), MIXTURE.sample(600, generator(2))) == 0.001


class Recorder:
    """A score as a function in NumPy, and its model in torch."""

    def __init__(self, sde):
        self.model = MIXTURE.model(sde)

    def score(self, x, t):
        return self.model(torch.from_numpy(x), float(t)).score.numpy()


def run(sampler, model, x, steps, seed):
    g = generator(seed)
    return S.sample(model, x.shape, sampler, steps, start=x, generator=g, dtype=torch.float64)


def test_P9_E7_reverse_diffusion_is_the_papers_loop():
    """Compare with Song et al. 2021, algorithm 3 without corrector.

    On all levels of a DDPM, from level N to the data.
    """
    ddpm = S.DDPM(torch.linspace(0.01, 0.5, 20))
    r, x = Recorder(ddpm), normal(3, 4, 2)
    z = noises(20, (4, 2), 4)
    y = x.numpy()
    for k, i in enumerate(range(20, 0, -1)):
        beta = ddpm.betas[i - 1].item()
        y = (2 - np.sqrt(1 - beta)) * y + beta * r.score(y, i / 20) + np.sqrt(beta) * z[k].numpy()
    ours = run(S.PredictorCorrector(t_min=0.0, t_max=1.0, last="none", last_noise=True), r.model, x, 20, 4)
    np.testing.assert_allclose(ours.numpy(), y, rtol=1e-11, atol=1e-11)


def test_P9_D3_ancestral_and_ddim_are_the_papers_loops():
    """Compare with Ho et al. 2020, algorithm 2, and DDIM, eq. 12.

    The variance of the former is beta~; eta of the latter is 1, 0.5 and 0.
    """
    ddpm = S.DDPM.cosine(15)
    r, x = Recorder(ddpm), normal(3, 4, 2)
    abar = np.concatenate([[1.0], ddpm.alphas_bar.numpy()])
    cases = [(eta, S.DDIM(eta, t_min=0.0, t_max=1.0, last="none")) for eta in (1.0, 0.5, 0.0)]
    cases.append((1.0, S.PredictorCorrector(S.Ancestral(), t_min=0.0, t_max=1.0, last="none")))
    for eta, sampler in cases:
        z, y, drawn = noises(15, (4, 2), 4), x.numpy(), 0
        for i in range(15, 0, -1):
            eps = -np.sqrt(1 - abar[i]) * r.score(y, i / 15)
            f = (y - np.sqrt(1 - abar[i]) * eps) / np.sqrt(abar[i])
            std = eta * np.sqrt((1 - abar[i - 1]) / (1 - abar[i])) * np.sqrt(1 - abar[i] / abar[i - 1])
            y = np.sqrt(abar[i - 1]) * f + np.sqrt(1 - abar[i - 1] - std**2) * eps
            if std > 0:
                y = y + std * z[drawn].numpy()
                drawn += 1
        ours = run(sampler, r.model, x, 15, 4)
        np.testing.assert_allclose(ours.numpy(), y, rtol=1e-10, atol=1e-10)


def test_E7_batch_mean_is_the_papers_loop():
    """Compare with Song et al. 2021, algorithms 2 and 4.

    VE reverse diffusion and the Langevin step with the batch's mean norms.
    """
    ncsn = S.NCSN.geometric(0.05, 10.0, 12)
    r, x = Recorder(ncsn), 10 * normal(3, 6, 2)
    z, y = noises(22, (6, 2), 4), x.numpy()
    sigma = np.concatenate([[0.0], ncsn.sigmas.numpy()])
    k = 0
    for i in range(12, 1, -1):
        g2 = sigma[i] ** 2 - sigma[i - 1] ** 2
        y = y + g2 * r.score(y, i / 12) + np.sqrt(g2) * z[k].numpy()
        score, noise = r.score(y, (i - 1) / 12), z[k + 1].numpy()
        ratio = np.linalg.norm(noise, axis=1).mean() / np.linalg.norm(score, axis=1).mean()
        a = 2 * (0.16 * ratio) ** 2
        y, k = y + a * score + np.sqrt(2 * a) * noise, k + 2
    sampler = S.PredictorCorrector(corrector=S.Langevin(0.16, batch_mean=True), t_min=1 / 12, t_max=1.0, last="none")
    np.testing.assert_allclose(run(sampler, r.model, x, 11, 4).numpy(), y, rtol=1e-10, atol=1e-10)


def test_E7_euler_maruyama_is_the_papers_loop():
    """Compare with Song et al. 2021, appendix G.

    x - [f - g^2 score] h + g sqrt(h) z, for sub-VP's f and g written out.
    """
    r, x = Recorder(S.SubVPSDE()), normal(3, 4, 2)
    times, z, y = np.linspace(1.0, 0.01, 31), noises(30, (4, 2), 4), x.numpy()
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        beta, b = 0.1 + t * 19.9, 0.1 * t + 0.5 * t * t * 19.9
        g2 = beta * (1 - np.exp(-2 * b))
        y = y - (-0.5 * beta * y - g2 * r.score(y, t)) * (t - s) + np.sqrt(g2 * (t - s)) * z[k].numpy()
    sampler = S.PredictorCorrector(S.EulerMaruyama(), t_min=0.01, t_max=1.0, last="none")
    np.testing.assert_allclose(run(sampler, r.model, x, 30, 4).numpy(), y, rtol=1e-10, atol=1e-10)


@functools.cache
def solved(sde):
    """Return a model, three starts, and the ends of their flow.

    Scipy's DOP853 solves the probability flow at 1e-10.
    """
    model = MIXTURE.model(SDES[sde])
    x = model.sde.prior_sample((3, 2), generator(5), dtype=torch.float64)
    return model, x, S.sample(model, x.shape, S.ProbabilityFlow("DOP853", 1e-10, 1e-10), start=x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bosh3", "dopri8", "rk4", "RK45", "LSODA"])
@pytest.mark.parametrize("sde", ["vp", "ve", "flow"])
def test_E8_all_methods_agree_with_the_reference(sde, method):
    """Compare methods at 1e-7 with scipy's DOP853 at 1e-10.

    They are within 2e-5 of it.
    """
    model, x, reference = solved(sde)
    ours = S.sample(model, x.shape, S.ProbabilityFlow(method, 1e-7, 1e-7), 120 if method == "rk4" else None, start=x)
    torch.testing.assert_close(ours, reference, rtol=0, atol=2e-5)


INDEPENDENT = {
    "pc": S.PredictorCorrector(S.ReverseDiffusion(), S.Langevin(), corrector_steps=2),
    "euler-maruyama": S.PredictorCorrector(S.EulerMaruyama()),
    "ddim": S.DDIM(eta=0.5),
    "ode": S.ProbabilityFlow(),
    "ode-bosh3": S.ProbabilityFlow("bosh3", 1e-3, 1e-3),
    "ode-rk4": S.ProbabilityFlow("rk4"),
}


@first_fast("sde", PAPER_SDES)
@first_fast("sampler", INDEPENDENT)
def test_a_sample_does_not_depend_on_its_batch(sde, sampler):
    """Compare sample i of a batch of 7 with the sample drawn alone.

    It has the same generator; they agree to 1e-5 (float32).
    """
    model = MIXTURE.model(SDES[sde])
    steps = None if sampler in ("ode", "ode-bosh3") else 25
    many = S.sample(
        model, (7, 2), INDEPENDENT[sampler], steps, generator=[generator(i) for i in range(7)], dtype=torch.float32
    )
    for i in (0, 3, 6):
        one = S.sample(model, (1, 2), INDEPENDENT[sampler], steps, generator=[generator(i)], dtype=torch.float32)
        torch.testing.assert_close(one[0], many[i], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_cond_reaches_the_model_row_by_row():
    """Check that each sample has its condition.

    Also where an adaptive solver drops finished samples.
    """

    class Shifted(S.Model):
        sde = S.VPSDE()

        def estimate(self, x, level, cond=None):
            c = 0.01 * level.alpha**2 + level.sigma**2
            centred = x - level.alpha * cond["mean"]
            return S.Estimate(cond["mean"] + 0.01 * level.alpha / c * centred, level.sigma / c * centred, level)

    means = torch.tensor([[-5.0], [0.0], [9.0]])
    for sampler in (S.PredictorCorrector(), S.ProbabilityFlow(), S.ProbabilityFlow("RK45")):
        x = S.sample(Shifted(), (3, 1), sampler, cond={"mean": means}, generator=generator())
        assert (x - means).abs().max() < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "error", "bias"), [("half-tweedie", 9e-7, 2e-5), ("tweedie", 2e-4, -4e-3), ("none", 2e-4, 4e-3)]
)
def test_the_last_steps_figures(last, error, bias):
    """Compare with the figures of Sampler's docstring, within a factor of 2.

    For sigma/alpha = .01, d = 2, on one mixture.
    """
    mixture, sde = quality.mixture(2, 0), S.VPSDE()
    model, end, clean = mixture.model(sde), sde.time_of(2 * np.log(1e2)).item(), sde.time_of(2 * np.log(1e5)).item()
    start = sde.prior_sample((200, 2), generator(0), dtype=torch.float64)
    flow = S.sample(model, start.shape, S.ProbabilityFlow(rtol=1e-8, atol=1e-8, t_min=end, last="none"), start=start)
    rest = S.ProbabilityFlow(rtol=1e-9, atol=1e-9, t_max=end, t_min=clean)
    truth = S.sample(model, flow.shape, rest, start=flow)
    finish, level = LAST_STEPS[last], sde.level(end, flow)
    x = flow if finish is None else finish(model, flow, level, None)[0]
    measured = (x - truth).norm(dim=1).mean().item() / 2**0.5
    shift = (mixture.log_prob(truth) - mixture.log_prob(x)).mean().item()
    assert 0.5 < measured / error < 2
    assert 0.5 < shift / bias < 2


@pytest.mark.slow
def test_half_tweedie_is_the_best_last_step():
    """Compare the endpoint errors on a smooth density.

    The reference is a flow solved to sigma = 1e-5.
    """
    model = MIXTURE.model(S.VESDE(1e-5, 50.0))
    x = model.sde.prior_sample((12, 2), generator(5), dtype=torch.float64)
    flow = S.sample(model, x.shape, S.ProbabilityFlow(rtol=1e-7, atol=1e-7, t_min=0.0, last="none"), start=x)
    t = model.sde.time_of(2 * np.log(1 / 0.02)).item()
    errors = {}
    for last in ("half-tweedie", "tweedie", "none"):
        sampler = S.ProbabilityFlow(rtol=1e-7, atol=1e-7, t_min=t, last=last)
        errors[last] = (S.sample(model, x.shape, sampler, start=x) - flow).abs().mean().item()
    assert errors["half-tweedie"] < 0.1 * min(errors["tweedie"], errors["none"])


def test_trajectory_goes_from_noise_to_samples():
    model = MIXTURE.model(SDES["vp"])
    start = model.sde.prior_sample((4, 2), generator())
    states = list(S.trajectory(model, (4, 2), S.PredictorCorrector(), 10, start=start, generator=generator(1)))
    assert len(states) == 12
    assert torch.equal(states[0].x, start)
    assert states[0].x0 is None
    assert [s.t for s in states] == sorted((s.t for s in states), reverse=True)
    assert states[-1].t == 0.0
    assert states[-1].calls == 11
    seen = []
    x = S.sample(model, (4, 2), S.PredictorCorrector(), 10, start=start, generator=generator(1), callback=seen.append)
    assert torch.equal(x, states[-1].x)
    assert len(seen) == 12


@pytest.mark.parametrize("kind", ["time", "log_snr", "quadratic", "karras"])
@pytest.mark.parametrize("sde", SDES)
def test_grids_fall_strictly_between_their_ends(kind, sde):
    times = time_grid(SDES[sde], 17, kind)
    assert times.dtype == torch.float64
    assert (times.diff() < 0).all()
    assert 0 <= times[-1] < times[0] <= 1


def test_bad_arguments_are_refused():
    model = MIXTURE.model(SDES["vp"])
    with pytest.raises(ArgumentError, match=r"`steps` must be .*, got 0"):
        S.sample(model, (2, 2), S.DDIM(), 0)
    with pytest.raises(ShapeError, match="start"):
        S.sample(model, (2, 2), start=torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="`shape` must be a positive integer, got 0"):
        S.sample(model, (0, 2))
    with pytest.raises(ShapeError, match=r"cond\['y'\]"):
        S.sample(model, (2, 2), cond={"y": torch.zeros(3)})
    with pytest.raises(ArgumentError, match=r"`generator` must be .*, got a list of 1"):
        S.sample(model, (2, 2), generator=[generator()])
    with pytest.raises(ArgumentError, match="sampler"):
        S.sample(model, (2, 2), "ode")
    with pytest.raises(UnknownNameError, match="did you mean 'log_snr'"):
        S.DDIM(grid="logsnr")
    with pytest.raises(UnknownNameError, match="method"):
        S.ProbabilityFlow("rk5")
    with pytest.raises(ArgumentError, match="t_min"):
        S.sample(model, (2, 2), S.DDIM(t_min=0.9, t_max=0.5), 3)
    with pytest.raises(ArgumentError, match="snr"):
        S.Langevin(snr=-1.0)
