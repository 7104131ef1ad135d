"""Discrete DDPM as a VP SDE: papers, diffusers, respacing, and E4's limit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import DDPM, VPSDE, FlowSDE, ScoreModel, SubVPSDE
from tests.reference import ddim as ddim_paper
from tests.reference import ddpm as paper
from tests.reference import song_sde
from tests.statistics_tools import measured_order

LEVELS = (1, 2, 11, 501, 1000)
BETAS = {"linear": paper.linear_betas(), "cosine": paper.cosine_betas()}
DDPMS = {"linear": DDPM.linear(1000), "cosine": DDPM.cosine(1000)}
SCHEDULES = pytest.mark.parametrize("schedule", list(DDPMS))


def ends(ddpm, i):
    """Return the times (s, t) of levels i-1 and i."""
    return ddpm.time(i - 1), ddpm.time(i)


def pair(seed=0, shape=(6, 3)):
    return np.random.default_rng(seed).standard_normal((2, *shape))


def predicted(x, i):
    """Return a noise estimate without a network."""
    return np.sin(3 * x + i)


@SCHEDULES
def test_P1_one_step_is_the_papers(schedule):
    ddpm, (x, z) = DDPMS[schedule], pair()
    for i in LEVELS:
        scale, std = ddpm.transition(*ends(ddpm, i))
        step = scale.item() * x + std.item() * z
        np.testing.assert_allclose(step, paper.forward_step(x, BETAS[schedule][i - 1], z), rtol=0, atol=1e-12)


@SCHEDULES
def test_P2_marginals_are_the_cumulative_products(schedule):
    ddpm, abar = DDPMS[schedule], np.cumprod(1 - BETAS[schedule])
    np.testing.assert_allclose(ddpm.alphas_bar, abar, rtol=1e-12)
    np.testing.assert_allclose(ddpm.alpha(ddpm.times), np.sqrt(abar), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ddpm.sigma(ddpm.times), np.sqrt(1 - abar), rtol=0, atol=1e-12)
    x_0, _ = pair()
    x, noise = ddpm.perturb(torch.tensor(x_0), ddpm.time(11), torch.Generator().manual_seed(0))
    np.testing.assert_allclose(x, paper.marginal(x_0, abar[10], noise.numpy()), rtol=0, atol=1e-12)


@SCHEDULES
def test_P3_posterior_is_the_papers(schedule):
    ddpm, (x_0, x_i) = DDPMS[schedule], pair()
    for i in LEVELS:
        mean, std = ddpm.posterior(torch.tensor(x_i), torch.tensor(x_0), *ends(ddpm, i))
        expected, variance = paper.posterior(x_0, x_i, i, BETAS[schedule])
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-12)
        assert std.item() ** 2 == pytest.approx(variance, rel=1e-9, abs=1e-15)


@SCHEDULES
def test_P5_predicted_x0_gives_the_mean_parametrisation(schedule):
    ddpm, (x, _) = DDPMS[schedule], pair()
    x = torch.tensor(x)
    model = ScoreModel(lambda x, time_input: torch.sin(3 * x + time_input[:, None] + 1), ddpm, time_input="ddpm")
    for i in LEVELS:
        s, t = ends(ddpm, i)
        mean, _ = ddpm.posterior(x, model(x, t).x0, s, t)
        expected = paper.mean_from_noise(x.numpy(), predicted(x.numpy(), i), i, BETAS[schedule])
        np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-12)


@SCHEDULES
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_P7_variances_are_the_papers(schedule, v):
    ddpm = DDPMS[schedule]
    for i in LEVELS[1:]:
        large, small, learned = paper.variances(i, BETAS[schedule], v)
        s, t = ends(ddpm, i)
        assert ddpm.posterior_variance(1.0, s, t).item() == pytest.approx(large, rel=1e-9)
        assert ddpm.posterior_variance(0.0, s, t).item() == pytest.approx(small, rel=1e-9)
        entries = torch.full((4, 2), v, dtype=torch.float64)
        per_sample = torch.full((4,), t, dtype=torch.float64)
        np.testing.assert_allclose(ddpm.posterior_variance(entries, s, per_sample), np.full((4, 2), learned), rtol=1e-9)
    assert ddpm.posterior_variance(0.0, *ends(ddpm, 1)).item() == 0  # beta~_1 = 0: the last step adds no noise


def test_P7_fixed_variances_are_optimal_at_both_extremes():
    """Compare Var(x_{i-1} | x_i) for data of variance c.

    It is beta if c = 1 and beta~ if c = 0.
    """
    ddpm = DDPMS["linear"]
    for i in (2, 500):
        s, t = ends(ddpm, i)
        scale, std = (v.item() for v in ddpm.transition(s, t))
        for c, v in ((1.0, 1.0), (0.0, 0.0)):
            prior = ddpm.alpha(s).item() ** 2 * c + ddpm.sigma(s).item() ** 2
            exact = 1 / (1 / prior + scale**2 / std**2)
            assert ddpm.posterior_variance(v, s, t).item() == pytest.approx(exact, rel=1e-9)


@SCHEDULES
def test_P10_schedules_are_the_papers(schedule):
    np.testing.assert_allclose(DDPMS[schedule].betas, BETAS[schedule], rtol=1e-10)
    assert DDPMS[schedule].N == 1000


def test_P10_cosine_betas_follow_the_cosine_schedule():
    ddpm, sde = DDPM.cosine(400), VPSDE.cosine()
    torch.testing.assert_close(ddpm.alpha(ddpm.times[:-1]), sde.alpha(ddpm.times[:-1]), rtol=1e-11, atol=0)
    assert ddpm.betas[-1].item() == pytest.approx(0.999)


@pytest.mark.slow
@SCHEDULES
@given(data=st.data())
def test_P12_respacing_keeps_the_marginals(schedule, data):
    C = sorted(data.draw(st.sets(st.integers(1, 1000), min_size=1, max_size=60)))
    ddpm = DDPMS[schedule]
    short = ddpm.respace(C)
    np.testing.assert_allclose(short.betas, paper.respaced_betas(BETAS[schedule], C), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(short.alphas_bar, ddpm.alphas_bar[np.array(C) - 1], rtol=1e-12)
    np.testing.assert_allclose(short.alpha(short.times), ddpm.alpha(ddpm.times[np.array(C) - 1]), rtol=0, atol=1e-12)
    assert torch.equal(ddpm.respace([0, *C]).betas, short.betas)


def test_P12_respaced_models_evaluate_the_trained_step():
    """Check that the network gets step C(i) at level i.

    x0, eps and the score are those of level C(i).
    """
    C, ddpm, seen = [1, 2, 50, 333, 1000], DDPMS["linear"], []

    def net(x, time_input):
        seen.append(time_input)
        return torch.sin(x + time_input[:, None])

    model = ScoreModel(net, ddpm, time_input="ddpm")
    short = model.with_sde(ddpm.respace(C))
    x = torch.tensor(pair()[0])
    for i, level in enumerate(C, start=1):
        there, here = model(x, ddpm.time(level)), short(x, short.sde.time(i))
        torch.testing.assert_close(seen[-1], torch.full((6,), level - 1.0, dtype=torch.float64), rtol=0, atol=1e-9)
        for name in ("x0", "eps", "score"):
            torch.testing.assert_close(getattr(here, name), getattr(there, name), rtol=1e-9, atol=1e-9)
        per_sample = short(x, torch.full((6,), short.sde.time(i), dtype=torch.float64))
        torch.testing.assert_close(per_sample.score, here.score, rtol=1e-9, atol=1e-9)


@SCHEDULES
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_D1_the_family_is_the_papers(schedule, eta):
    ddpm, (x_0, x_i), abar = DDPMS[schedule], pair(), paper.products(BETAS[schedule])
    for i, j in ((1, 0), (2, 1), (500, 480), (1000, 501)):
        s, t = ddpm.time(j), ddpm.time(i)
        mean, std = ddpm.posterior(torch.tensor(x_i), torch.tensor(x_0), s, t, eta=eta)
        assert std.item() == pytest.approx(ddim_paper.std(eta, abar[i], abar[j]), rel=1e-9, abs=1e-12)
        expected = ddim_paper.family(x_0, x_i, abar[i], abar[j], ddim_paper.std(eta, abar[i], abar[j]))
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-9)


@SCHEDULES
def test_D2_predicted_x0(schedule):
    ddpm, (x, _), abar = DDPMS[schedule], pair(), paper.products(BETAS[schedule])
    x = torch.tensor(x)
    model = ScoreModel(lambda x, time_input: torch.sin(3 * x + time_input[:, None]), ddpm, time_input="ddpm")
    for i in LEVELS:
        expected = ddim_paper.predicted_x0(x.numpy(), np.sin(3 * x.numpy() + i - 1), abar[i])
        np.testing.assert_allclose(model(x, ddpm.time(i)).x0, expected, rtol=1e-9, atol=1e-12)


@SCHEDULES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_D3_update_is_the_papers(schedule, eta):
    ddpm, (x, z), abar = DDPMS[schedule], pair(), paper.products(BETAS[schedule])
    for i, j in ((2, 1), (21, 1), (500, 480), (1000, 980)):
        s, t = ddpm.time(j), ddpm.time(i)
        eps = predicted(x, i)
        x_0 = (x - ddpm.sigma(t).item() * eps) / ddpm.alpha(t).item()
        c_x0, c_eps, std = (c.item() for c in ddpm.posterior_coefficients(s, t, eta))
        expected = ddim_paper.update(x, eps, z, eta, abar[i], abar[j])
        np.testing.assert_allclose(c_x0 * x_0 + c_eps * eps + std * z, expected, rtol=1e-9, atol=1e-10)


# ---- an independent library -----------------------------------------------------------------------------------------


def scheduler(kind, schedule, **options):
    """Return a scheduler of diffusers with float64 tables from our betas.

    They equal its own tables to float32.
    """
    if kind == "ddpm":
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler as Scheduler
    else:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler as Scheduler

    names = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    result = Scheduler(num_train_timesteps=1000, beta_schedule=names[schedule], clip_sample=False, **options)
    betas = DDPMS[schedule].betas
    torch.testing.assert_close(result.betas.double(), betas, rtol=2e-7, atol=6e-8)
    result.betas, result.alphas = betas, 1 - betas
    result.alphas_cumprod = result.alphas.cumprod(0)
    return result


@pytest.mark.slow
@SCHEDULES
def test_P3_P7_ancestral_steps_equal_diffusers(schedule):
    """Compare the means and both fixed variances to 1e-6.

    Diffusers counts steps from 0.
    """
    ddpm, (x, _) = DDPMS[schedule], pair()
    x = torch.tensor(x)
    for v, variance_type in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        theirs = scheduler("ddpm", schedule, variance_type=variance_type)
        for i in LEVELS:
            s, t = ends(ddpm, i)
            eps = torch.tensor(predicted(x.numpy(), i))
            mean, _ = ddpm.posterior(x, (x - ddpm.sigma(t) * eps) / ddpm.alpha(t), s, t)
            variance = ddpm.posterior_variance(v, s, t)
            assert variance.item() == pytest.approx(theirs._get_variance(i - 1).item(), rel=1e-6, abs=2e-20)
            step = theirs.step(eps, i - 1, x, generator=torch.Generator().manual_seed(i)).prev_sample
            z = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype)
            ours = mean + (variance.sqrt() * z if i > 1 else 0)
            torch.testing.assert_close(ours, step, rtol=0, atol=1e-6)


@pytest.mark.slow
@SCHEDULES
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_D3_D5_fifty_ddim_steps_equal_diffusers(schedule, eta):
    ddpm, theirs = DDPMS[schedule], scheduler("ddim", schedule)
    theirs.set_timesteps(50)
    x, z = (torch.tensor(v) for v in pair())
    other, largest = x, 0.0
    for step in theirs.timesteps.tolist():
        t, s = ddpm.time(step + 1), ddpm.time(max(step + 1 - 20, 0))
        c_x0, c_eps, std = ddpm.posterior_coefficients(s, t, eta)
        eps = torch.tanh(x)
        x = c_x0 * (x - ddpm.sigma(t) * eps) / ddpm.alpha(t) + c_eps * eps + std * z
        noise = z if eta else None
        other = theirs.step(torch.tanh(other), step, other, eta=eta, variance_noise=noise).prev_sample
        largest = max(largest, ((x - other).abs() / (1 + other.abs())).max().item())
    assert largest < 1e-6


# ---- E4 -------------------------------------------------------------------------------------------------------------


@SCHEDULES
def test_E4_a_ddpm_has_piecewise_constant_beta(schedule):
    ddpm, N = DDPMS[schedule], 1000
    expected = -N * np.log1p(-BETAS[schedule])
    np.testing.assert_allclose(ddpm.beta(ddpm.times), expected, rtol=1e-9)
    np.testing.assert_allclose(ddpm.beta(ddpm.times - 0.5 / N), expected, rtol=1e-9)
    np.testing.assert_allclose(ddpm.diffusion(ddpm.times) ** 2, expected, rtol=1e-9)
    t = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ddpm.alpha(t) ** 2 + ddpm.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("N", [1, 7, 49, 50, 100, 232, 999, 1000, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_E4_a_level_belongs_to_the_piece_that_ends_at_it(N, dtype):
    """Check that beta(i/N) is beta_i, also where (i/N) N rounds to above i."""
    ddpm = DDPM(torch.linspace(1e-3, 0.5, N, dtype=torch.float64))
    beta = ddpm.beta(ddpm.times.to(dtype))
    torch.testing.assert_close(beta.double(), -N * torch.log1p(-ddpm.betas), rtol=1e-6, atol=0)


def test_E4_song_sde_discretises_to_a_ddpm():
    song = song_sde.VP()
    ddpm = DDPM(song.discrete_betas)
    for i in LEVELS:
        scale, std = ddpm.transition(*ends(ddpm, i))
        f, g = song.discretised(i)
        assert scale.item() - 1 == pytest.approx(f, abs=1e-14)
        assert std.item() == pytest.approx(g, rel=1e-12)


def test_E4_ddpm_approaches_vp_at_rate_one_over_N():
    """Compare the largest errors of alpha with the paper's betas.

    They are 1.02e-2, 9.93e-4, 9.90e-5 and 9.90e-6.
    """
    sde, sizes, errors = VPSDE(), [100, 1000, 10_000, 100_000], []
    for N in sizes:
        ddpm = DDPM(song_sde.VP(N=N).discrete_betas)
        errors.append((ddpm.alpha(ddpm.times) - sde.alpha(ddpm.times)).abs().max().item())
    assert measured_order(errors, sizes) == pytest.approx(-1, abs=0.05)
    assert errors == pytest.approx([1.02e-2, 9.93e-4, 9.90e-5, 9.90e-6], rel=0.01)


@pytest.mark.parametrize("sde", [VPSDE(), VPSDE.from_beta(lambda t: 1 + 3 * t)], ids=["linear", "any"])
def test_E4_a_ddpm_made_from_an_sde_has_its_marginals(sde):
    ddpm = DDPM.from_sde(sde, 300)
    torch.testing.assert_close(ddpm.alpha(ddpm.times), sde.alpha(ddpm.times), rtol=1e-12, atol=0)
    torch.testing.assert_close(ddpm.sigma(ddpm.times), sde.sigma(ddpm.times), rtol=1e-12, atol=0)
    again = DDPM.from_alphas_bar(ddpm.alphas_bar)
    torch.testing.assert_close(again.betas, ddpm.betas, rtol=1e-9, atol=0)


def test_E4_other_processes_have_no_ddpm():
    for sde in (SubVPSDE(), FlowSDE()):
        with pytest.raises(ValueError, match=r"`sde` must be .*, got"):
            DDPM.from_sde(sde, 10)


def test_levels_by_index_and_by_time():
    ddpm = DDPMS["linear"]
    assert [ddpm.time(i) for i in (0, 1, np.int64(500), 1000)] == [0.0, 0.001, 0.5, 1.0]
    assert math.isclose(ddpm.times[499].item(), 0.5)
    torch.testing.assert_close(ddpm.time_of(ddpm.log_snr(ddpm.times)), ddpm.times, rtol=0, atol=1e-12)
