"""Predictors, correctors, grids and inversion.

Compared with the papers' loops, closed forms and laws.
"""

import itertools

import numpy as np
import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, DTypeError, ShapeError, UnknownNameError
from scoresde.sde.grids import time_grid
from tests import fake_device
from tests.generators import generator
from tests.marks import first_fast
from tests.reference import ncsn as reference
from tests.sampling.problems import MIXTURE, SMOOTH, LearnedVariance, noises, normal
from tests.statistics_tools import energy_test, measured_order

TO_DATA = {"t_min": 0.0, "t_max": 1.0, "last": "none"}


def run(sampler, model, x, steps=None, seed=4):
    return S.sample(model, x.shape, sampler, steps, start=x, generator=generator(seed), dtype=torch.float64)


# ---- the ancestral step's variances ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["posterior", "forward", "learned"])
def test_P7_P9_ancestral_variances_are_the_papers_loop(variance):
    """Compare with the papers' loops for every variance.

    Ho et al. 2020, algorithm 2, with beta~ and beta, and Nichol & Dhariwal 2021, eq. 15; no noise at i = 1.
    """
    ddpm = S.DDPM(torch.linspace(0.02, 0.4, 12))
    model, x = LearnedVariance(MIXTURE.model(ddpm)), normal(3, 4, 2)
    z, y, beta = noises(11, (4, 2), 4), x.numpy(), ddpm.betas.numpy()
    abar = np.concatenate([[1.0], ddpm.alphas_bar.numpy()])
    for k, i in enumerate(range(12, 0, -1)):
        eps = model(torch.from_numpy(y), i / 12).eps.numpy()
        b, v = beta[i - 1], 1 / (1 + np.exp(-3 * y))
        y = (y - b / np.sqrt(1 - abar[i]) * eps) / np.sqrt(1 - b)
        if i > 1:
            tilde = (1 - abar[i - 1]) / (1 - abar[i]) * b
            s2 = {"posterior": tilde, "forward": b, "learned": np.exp(v * np.log(b) + (1 - v) * np.log(tilde))}
            y = y + np.sqrt(s2[variance]) * z[k].numpy()
    ours = run(S.PredictorCorrector(S.Ancestral(variance), **TO_DATA), model, x, 12)
    np.testing.assert_allclose(ours.numpy(), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", [S.VPSDE(), S.VPSDE.cosine(), S.DDPM.linear(50)])
def test_P7_forward_variance_keeps_white_data_white(sde):
    """Check the variance k^2 + beta = 1 after a step from x_0 ~ N(0, I).

    Under VP, where x0 = alpha x and eps = sigma x.
    """
    t, s = torch.tensor([0.9, 0.5, 0.14], dtype=torch.float64), torch.tensor([0.3, 0.48, 0.02], dtype=torch.float64)
    c = S.Ancestral("forward").coefficients(sde, t, s)
    k = c.x0 * sde.alpha(t) + c.eps * sde.sigma(t)
    torch.testing.assert_close(k**2 + c.z**2, torch.ones_like(t), rtol=1e-12, atol=0)


def test_a_learned_variance_needs_a_model_with_v():
    with pytest.raises(ArgumentError, match="learned variances"):
        S.sample(MIXTURE.model(S.VPSDE()), (2, 2), S.PredictorCorrector(S.Ancestral("learned")), 3)
    with pytest.raises(UnknownNameError, match="did you mean 'posterior'"):
        S.Ancestral("posteriori")


# ---- annealed Langevin dynamics and the order of predictor and corrector ---------------------------------------------


def test_N3_corrector_alone_is_the_papers_loop():
    """Compare with Song & Ermon 2019, algorithm 1.

    The denoising step of Song & Ermon 2020 follows.
    """
    ncsn, e, K = S.NCSN.geometric(0.05, 5.0, 9), 4e-4, 3
    model, x = MIXTURE.model(ncsn), 5 * normal(3, 6, 2)
    z = np.array([v.numpy() for v in noises(27, (6, 2), 4)]).reshape(9, 3, 6, 2)
    sigmas = ncsn.sigmas.flip(0).numpy()

    def score(y, sigma):
        return model(torch.from_numpy(y), ncsn.time(1 + ncsn.sigmas.tolist().index(sigma))).score.numpy()

    y = reference.annealed_langevin(score, x.numpy(), sigmas, e, K, z)
    settings = {"corrector_steps": K, "grid": "levels"}
    ours = run(S.PredictorCorrector(None, S.AnnealedLangevin(e), last="none", **settings), model, x)
    np.testing.assert_allclose(ours.numpy(), y, rtol=1e-10, atol=1e-10)

    sampler = S.PredictorCorrector(None, S.AnnealedLangevin(e), last="tweedie", **settings)
    *_, end = S.trajectory(model, x.shape, sampler, start=x, generator=generator(4))
    denoised = y + sigmas[-1] ** 2 * score(y, sigmas[-1])
    np.testing.assert_allclose(end.x.numpy(), denoised, rtol=1e-9, atol=1e-9)
    assert (end.t, end.steps, end.calls) == (0.0, 9, 28)


@pytest.mark.slow
def test_N3_annealed_langevin_samples_the_mixture():
    """Compare samples by the energy test at level 0.001.

    The same test rejects the run with K = 1, which is far too short.
    """
    model, n = MIXTURE.model(S.NCSN.geometric(0.02, 6.0, 16)), 400
    p = {}
    for K in (1, 30):
        sampler = S.PredictorCorrector(
            None, S.AnnealedLangevin(0.2 * 0.02**2), corrector_steps=K, grid="levels", last="tweedie"
        )
        p[K] = energy_test(S.sample(model, (n, 2), sampler, generator=generator(1)), MIXTURE.sample(n, generator(2)))
    assert p[30] > 0.001
    assert p[1] == 0.001


def test_N3_the_step_is_the_same_in_every_process():
    """Compare the steps in x/alpha at equal log-SNR.

    VP and flow processes take the steps of a VE process.
    """
    log_snr, y, z = 2 * torch.linspace(-2.0, 2.5, 5, dtype=torch.float64), normal(3, 6, 2), normal(4, 6, 2)
    results = []
    for sde in (S.VESDE(), S.VPSDE(), S.FlowSDE()):
        model, levels = MIXTURE.model(sde), sde.levels(sde.time_of(log_snr))
        corrector = S.AnnealedLangevin(2e-3).on(levels)
        stepped = [
            corrector.step(level.alpha * y, model.estimate(level.alpha * y, level), 1.0, lambda: z) / level.alpha
            for level in levels
        ]
        results.append(torch.stack(stepped))
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(results[2], results[0], rtol=1e-7, atol=1e-7)


def test_E7_corrector_first_is_the_papers_code():
    """Check annealed Langevin at t_i, then VE reverse diffusion to t_{i-1}.

    Both orders draw the same noise.
    """
    ncsn, e = S.NCSN.geometric(0.05, 10.0, 12), 1e-3
    model, x, z, k = MIXTURE.model(ncsn), 10 * normal(3, 6, 2), noises(22, (6, 2), 4), 0
    sigma, y = np.concatenate([[0.0], ncsn.sigmas.numpy()]), x.numpy()
    for i in range(12, 1, -1):
        a = e * (sigma[i] / sigma[1]) ** 2
        y = y + a / 2 * model(torch.from_numpy(y), i / 12).score.numpy() + np.sqrt(a) * z[k].numpy()
        g2 = sigma[i] ** 2 - sigma[i - 1] ** 2
        y = y + g2 * model(torch.from_numpy(y), i / 12).score.numpy() + np.sqrt(g2) * z[k + 1].numpy()
        k += 2
    settings = {"corrector": S.AnnealedLangevin(e), "t_min": 1 / 12, "t_max": 1.0, "last": "none"}
    first = run(S.PredictorCorrector(corrector_first=True, **settings), model, x, 11)
    np.testing.assert_allclose(first.numpy(), y, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(first, run(S.PredictorCorrector(**settings), model, x, 11))


def test_no_correction_without_noise():
    model = MIXTURE.model(S.DDPM.cosine(20))
    for corrector in (S.Langevin(), S.AnnealedLangevin(1e-4)):
        *_, end = S.trajectory(model, (4, 2), S.PredictorCorrector(corrector=corrector, grid="levels"))
        assert end.x.isfinite().all()
        assert (end.step, end.calls) == (20, 39)


def test_bad_correctors_are_refused():
    with pytest.raises(ArgumentError, match="step_size"):
        S.AnnealedLangevin(0.0)
    with pytest.raises(ArgumentError, match="at least one of the two"):
        S.PredictorCorrector(None)
    with pytest.raises(ArgumentError, match=r"`corrector_steps` must be .*, got 0"):
        S.PredictorCorrector(None, S.Langevin(), corrector_steps=0)


# ---- Langevin dynamics -----------------------------------------------------------------------------------------------


@first_fast("a", [0.05, 0.5, 1.5])
def test_S5_stationary_variance_of_a_gaussian(a):
    """Compare x <- (1-a) x + sqrt(2a) z on N(0, 1) with variance 2/(2-a).

    False alarm: 4 standard errors, 6e-5 each.
    """
    n = 40_000
    x = S.sampling.langevin_dynamics(lambda x: -x, normal(0, n, 1), a, 150, generator(1))
    expected = 2 / (2 - a)
    assert abs(x.var().item() - expected) < 4 * expected * (2 / n) ** 0.5
    assert abs(x.mean().item()) < 4 * (expected / n) ** 0.5


@pytest.mark.slow
def test_S5_a_models_density_is_stationary():
    """Check that p_t of a mixture is unchanged.

    Energy test at level 0.001, by the model or its score as a function.
    """
    model, n, t = SMOOTH.model(S.VPSDE()), 500, 0.2
    start, _ = model.sde.perturb(SMOOTH.sample(n, generator(0)), t, generator(1))
    other, _ = model.sde.perturb(SMOOTH.sample(n, generator(2)), t, generator(3))
    x = S.sampling.langevin_dynamics(model, start, 0.01, 100, generator(4), t=t)
    assert energy_test(x, other) > 0.001
    again = S.sampling.langevin_dynamics(lambda x: model(x, t).score, start, 0.01, 100, generator(4))
    torch.testing.assert_close(again, x)
    late = S.sampling.langevin_dynamics(model, 3 + start, 0.01, 3, generator(4), t=t)
    assert energy_test(late, other) == 0.001
    one = S.sampling.langevin_dynamics(model, start[1:2], 0.01, 20, [generator(1)], t=t)
    three = S.sampling.langevin_dynamics(model, start[:3], 0.01, 20, [generator(i) for i in range(3)], t=t)
    torch.testing.assert_close(three[1], one[0], rtol=1e-10, atol=1e-10)


def test_bad_langevin_dynamics_are_refused():
    x, model = torch.zeros(3, 2), SMOOTH.model(S.VPSDE())
    with pytest.raises(ArgumentError, match="step_size"):
        S.sampling.langevin_dynamics(model, x, -1.0, 5, t=0.5)
    with pytest.raises(ArgumentError, match=r"`steps` must be .*, got 0"):
        S.sampling.langevin_dynamics(model, x, 0.1, 0, t=0.5)
    with pytest.raises(ArgumentError, match=r"`t` must be .*, got None"):
        S.sampling.langevin_dynamics(model, x, 0.1, 5)
    with pytest.raises(ArgumentError, match="a time with noise"):
        S.sampling.langevin_dynamics(model, x, 0.1, 5, t=0.0)
    with pytest.raises(ArgumentError, match="t, cond"):
        S.sampling.langevin_dynamics(torch.neg, x, 0.1, 5, t=0.5)
    with pytest.raises(DTypeError, match=r"`x` must be .*, got"):
        S.sampling.langevin_dynamics(torch.neg, torch.zeros(3, dtype=torch.long), 0.1, 5)


# ---- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 13, 50, 100])
def test_D5_trailing_is_spaced_from_the_end(steps):
    ddpm = S.DDPM.linear(100)
    expected = np.append(np.round(np.arange(100, 0, -100 / steps)), 0) / 100
    np.testing.assert_array_equal(time_grid(ddpm, steps, "trailing").numpy(), expected)
    if steps > 1:  # a run that ends with noise has the same levels without the data
        np.testing.assert_array_equal(time_grid(ddpm, steps - 1, "trailing", 1e-9).numpy(), expected[:-1])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_D5_ddim_on_a_subsequence_is_the_papers_loop(eta):
    """Pass the subsequence in three forms.

    As "trailing", as a list of times, and as a respaced DDPM's own levels (P12).
    """
    ddpm, tau = S.DDPM.cosine(40), [40, 33, 27, 20, 13, 7, 0]
    x, y, z = normal(3, 4, 2), normal(3, 4, 2).numpy(), noises(6, (4, 2), 4)
    abar, model = np.concatenate([[1.0], ddpm.alphas_bar.numpy()]), MIXTURE.model(ddpm)
    for k, (i, j) in enumerate(itertools.pairwise(tau)):
        eps = model(torch.from_numpy(y), i / 40).eps.numpy()
        f = (y - np.sqrt(1 - abar[i]) * eps) / np.sqrt(abar[i])
        std = eta * np.sqrt((1 - abar[j]) / (1 - abar[i])) * np.sqrt(1 - abar[i] / abar[j])
        y = np.sqrt(abar[j]) * f + np.sqrt(1 - abar[j] - std**2) * eps + std * z[k].numpy()
    times = [i / 40 for i in tau]
    respaced = MIXTURE.model(ddpm).with_sde(ddpm.respace(tau[-2::-1]))
    cases = [(model, "trailing", 6), (model, times, 6), (model, torch.tensor(times), None), (respaced, "levels", None)]
    for m, grid, steps in cases:
        *_, end = S.trajectory(m, x.shape, S.DDIM(eta, grid=grid), steps, start=x, generator=generator(4))
        rtol = 1e-5 if isinstance(grid, torch.Tensor) else 1e-8  # float32 times
        np.testing.assert_allclose(end.x.numpy(), y, rtol=rtol, atol=rtol)
        assert (end.t, end.step, end.calls) == (0.0, 6, 6)  # no noise is left for a last step


@pytest.mark.parametrize("sde", [S.DDPM.cosine(20), S.NCSN.geometric(0.01, 10.0, 20)])
def test_levels_are_the_processes_own(sde):
    expected = np.arange(20, -1, -1) / 20
    np.testing.assert_array_equal(time_grid(sde, None, "levels").numpy(), expected)
    np.testing.assert_array_equal(time_grid(sde, 20, "levels").numpy(), expected)
    np.testing.assert_array_equal(time_grid(sde, 19, "levels", t_min=1e-9).numpy(), expected[:-1])
    np.testing.assert_array_equal(time_grid(sde, None, "levels", t_max=0.5).numpy(), expected[10:])


@pytest.mark.parametrize(("grid", "steps"), [("levels", 20), ("trailing", 7)])
def test_the_multistep_solver_on_discrete_levels(grid, steps):
    model = MIXTURE.model(S.DDPM.cosine(20))
    *_, end = S.trajectory(model, (4, 2), S.DPMSolver(2, grid=grid), steps, generator=generator())
    assert end.x.isfinite().all()
    assert end.calls == steps


def test_bad_grids_are_refused():
    ddpm, vp = S.DDPM.cosine(20), S.VPSDE()
    for bad in ([0.2, 0.5], [0.5, 0.5, 0.1], [1.1, 0.5], [0.5, -0.1], [0.5, float("nan")]):
        with pytest.raises(ArgumentError, match="strictly decreasing"):
            S.DDIM(grid=bad)
    for bad in ([0.5], [[0.5, 0.1]], 0.5):
        with pytest.raises(ShapeError, match="at least two times"):
            S.DDIM(grid=bad)
    with pytest.raises(DTypeError, match="grid"):
        S.DDIM(grid=None)
    with pytest.raises(UnknownNameError, match="did you mean 'trailing'"):
        S.PredictorCorrector(grid="trailling")
    with pytest.raises(ArgumentError, match="have their own ends"):
        S.DDIM(grid=[1.0, 0.5], t_min=0.1)
    with pytest.raises(ArgumentError, match=r"`steps` must be None, or 2.*, got 3"):
        time_grid(vp, 3, [1.0, 0.5, 0.1])
    with pytest.raises(ArgumentError, match=r"`steps` must be None, or 20.*, got 10"):
        time_grid(ddpm, 10, "levels")
    with pytest.raises(ArgumentError, match=r"`steps` must be at most 20.*, got 21"):
        time_grid(ddpm, 21, "trailing")
    for name in ("levels", "trailing"):
        with pytest.raises(ArgumentError, match="has no levels"):
            time_grid(vp, 5, name)
    with pytest.raises(ArgumentError, match=r"`steps` must be .*, got None"):
        time_grid(vp)


# ---- encode and decode -----------------------------------------------------------------------------------------------


ROUND_TRIPS = [(sde, "half-tweedie") for sde in (S.VESDE(), S.SubVPSDE(), S.FlowSDE(), S.DDPM.linear(100))]
ROUND_TRIPS += [(S.VPSDE(), last) for last in ("half-tweedie", "tweedie", "none")]


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "last"), ROUND_TRIPS)
def test_D6_the_flow_inverts_to_its_tolerance(sde, last):
    model, flow = SMOOTH.model(sde), S.ProbabilityFlow(rtol=1e-10, atol=1e-10, last=last)
    x0 = SMOOTH.sample(5, generator())
    z = S.encode(model, x0, flow)
    decoded = S.decode(model, z, flow)
    torch.testing.assert_close(decoded, x0, rtol=0, atol=1e-8)
    again = S.encode(model, decoded, flow)
    torch.testing.assert_close(again, z, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_D6_the_latent_is_the_likelihoods():
    """Compare the half Tweedie start with that of log_likelihood.

    They agree to the order in sigma of both.
    """
    model, x0 = SMOOTH.model(S.VPSDE()), SMOOTH.sample(5, generator())
    likelihood = S.log_likelihood(model, x0, S.Exact(), rtol=1e-9, atol=1e-9, end="half-tweedie")
    z = S.encode(model, x0, S.ProbabilityFlow(rtol=1e-9, atol=1e-9))
    torch.testing.assert_close(z, likelihood.latent, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sde", [S.VPSDE(), S.VESDE(), S.FlowSDE()])
def test_D6_ddims_inversion_is_of_first_order(sde):
    """Measure the errors of the round trip and of the latent.

    They fall with the step, slope 1 within 0.2.
    """
    model, x0, counts = SMOOTH.model(sde), SMOOTH.sample(6, generator()), (50, 100, 200)
    ddim, exact = S.DDIM(grid="log_snr"), S.encode(SMOOTH.model(sde), x0, S.ProbabilityFlow(rtol=1e-9, atol=1e-9))
    latents = [S.encode(model, x0, ddim, n) for n in counts]
    returned = [S.decode(model, z, ddim, n) for z, n in zip(latents, counts, strict=True)]
    for results, target in ((returned, x0), (latents, exact)):
        errors = [(r - target).norm(dim=1).mean().item() for r in results]
        assert measured_order(errors, [1 / n for n in counts]) == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
def test_encode_and_decode_with_conditions():
    class Shifted(S.Model):
        sde = S.VPSDE()

        def estimate(self, x, level, cond=None):
            c = 0.04 * level.alpha**2 + level.sigma**2
            centred = x - level.alpha * cond["mean"]
            return S.Estimate(cond["mean"] + 0.04 * level.alpha / c * centred, level.sigma / c * centred, level)

    cond = {"mean": torch.tensor([[-5.0], [0.0], [9.0]], dtype=torch.float64)}
    x0 = cond["mean"] + 0.2 * normal(1, 3, 1)
    for sampler, steps, atol in ((None, None, 1e-3), (S.ProbabilityFlow("rk4"), 100, 1e-3), (S.DDIM(), 400, 0.2)):
        z = S.encode(Shifted(), x0, sampler, steps, cond)
        assert z.dtype == torch.float64
        torch.testing.assert_close(S.decode(Shifted(), z, sampler, steps, cond), x0, rtol=0, atol=atol)


def test_what_cannot_be_inverted_is_refused():
    model, x0 = SMOOTH.model(S.VPSDE()), torch.zeros(3, 2)
    for sampler in (S.DDIM(0.5), S.PredictorCorrector(), "ode"):
        with pytest.raises(ArgumentError, match="deterministic"):
            S.encode(model, x0, sampler)
        with pytest.raises(ArgumentError, match="deterministic"):
            S.decode(model, x0, sampler)
    with pytest.raises(ArgumentError, match="runs backwards"):
        S.encode(model, x0, S.SingleStep())
    with pytest.raises(DTypeError, match="x0"):
        S.encode(model, torch.zeros(3, 2, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"cond\['y'\]"):
        S.decode(model, x0, cond={"y": torch.zeros(2)})


# ---- every sampler ---------------------------------------------------------------------------------------------------

INDEPENDENT = {
    "forward": S.PredictorCorrector(S.Ancestral("forward")),
    "learned": S.PredictorCorrector(S.Ancestral("learned")),
    "annealed": S.PredictorCorrector(None, S.AnnealedLangevin(1e-7), corrector_steps=2),
    "first": S.PredictorCorrector(S.Ancestral(), S.Langevin(), corrector_first=True, grid=[1.0, 0.6, 0.3, 0.01]),
}


@pytest.mark.parametrize("sampler", INDEPENDENT)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    model, steps = LearnedVariance(MIXTURE.model(S.VPSDE())), None if sampler == "first" else 15
    many = S.sample(model, (5, 2), INDEPENDENT[sampler], steps, generator=[generator(i) for i in range(5)])
    one = S.sample(model, (1, 2), INDEPENDENT[sampler], steps, generator=[generator(3)])
    torch.testing.assert_close(one[0], many[3], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_no_host_sync(sde):
    """Run on the meta device, where any wait for the device fails.

    See tests/fake_device.py.
    """
    with fake_device.DeviceCheck():
        model = LearnedVariance(fake_device.network("noise", sde))
        for sampler in INDEPENDENT.values():
            steps = None if not isinstance(sampler.grid, str) else 3
            cond = {"y": torch.zeros(3, dtype=torch.long, device="meta")}
            x = S.sample(model, (3, 1, 8, 8), sampler, steps, cond=cond)
            assert x.device.type == "meta"
        z = S.encode(model, x, S.DDIM(), 3, cond)
        assert S.sampling.langevin_dynamics(model, z, 0.1, 3, t=0.5, cond=cond).device.type == "meta"
