"""Guidance by observations against exact posteriors of mixtures."""

import math

import pytest
import torch

from scoresde import (
    DDIM,
    VESDE,
    VPSDE,
    Ancestral,
    DPMSolver,
    GaussianMixture,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    SubVPSDE,
    log_likelihood,
    sample,
    trajectory,
)
from scoresde.errors import ArgumentError, DTypeError, NonFiniteError, ShapeError
from scoresde.guidance import (
    Colorize,
    Inpainting,
    Matrix,
    clipped,
    dps,
    gaussian_data,
    moment_matching,
    pigdm,
    replacement,
    with_likelihood,
)
from scoresde.models import chunked
from scoresde.sampling import AdaptiveSDE, Particles, Resampling
from tests.families import FAMILIES, SMOOTH
from tests.generators import generator
from tests.marks import first_fast
from tests.statistics_tools import energy_test

METHODS = {
    "replacement": replacement,
    "dps": dps,
    "dps-scaled": lambda *args: dps(*args, scale=0.5),
    "pigdm": pigdm,
    "gaussian_data": gaussian_data,
    "moment_matching": moment_matching,
}
THREE = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
SDES = pytest.mark.parametrize("sde", THREE.values(), ids=THREE)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def problem(mixture_16d):
    """Return a mixture, a projection and an observation.

    The data have shape (16,); the 5 projections are random.
    """
    operator = Matrix(random(5, 16, seed=3) / 4)
    y = operator.observe(mixture_16d.sample(1, generator(4)), 0.1, generator(5))[0]
    return mixture_16d, operator, y


@pytest.fixture(scope="module")
def gaussian():
    """Return one Gaussian of shape (2, 3), and 3 of its entries observed."""
    factor = random(6, 6, seed=7)
    mixture = GaussianMixture(random(1, 2, 3, seed=8), (factor @ factor.T / 6 + 0.05 * torch.eye(6))[None])
    return mixture, Inpainting(torch.tensor([[1, 0, 1], [0, 0, 1]])), random(2, 3, seed=9)


def seen(operator, y):
    """Return the rows of A that are not zero, and their y.

    They suit ``GaussianMixture.posterior``.
    """
    rows = operator.matrix().abs().sum(1) > 0
    return operator.matrix()[rows], y.flatten()[rows]


# ---- the exact posterior ---------------------------------------------------------------------------------------------


def test_the_posterior_of_a_mixture_is_bayes_rule(problem):
    mixture, operator, y = problem
    posterior = mixture.posterior(operator, y, 0.3)
    x = mixture.sample(40, generator())
    residual = (y - operator(x)).square().sum(1)
    bayes = mixture.log_prob(x) - residual / (2 * 0.3**2)
    evidence = (bayes - posterior.log_prob(x)).mean()
    torch.testing.assert_close(posterior.log_prob(x), bayes - evidence, rtol=1e-9, atol=1e-7)
    same = mixture.posterior(operator.entries, y, 0.3)
    torch.testing.assert_close(same.means, posterior.means)


def test_a_precise_observation_leaves_a_valid_mixture(mixture_16d):
    posterior = mixture_16d.posterior(torch.eye(16), mixture_16d.sample(1, generator())[0], 1e-6)
    assert posterior.values.min() > 0
    assert posterior.moments.std < 2e-6


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((torch.ones(2, 3), torch.ones(2), 0.1), "A"),
        ((torch.ones(2, 16), torch.ones(3), 0.1), "y"),
        ((torch.ones(2, 16), torch.ones(2), 0.0), "noise"),
    ],
)
def test_bad_observations_of_a_mixture_are_refused(arguments, name, mixture_16d):
    with pytest.raises(ArgumentError, match=f"^`{name}` must be .*, got"):
        mixture_16d.posterior(*arguments)


# ---- the scores ------------------------------------------------------------------------------------------------------


@first_fast("sde", SMOOTH.values(), ids=SMOOTH)
@first_fast("method", [gaussian_data, moment_matching])
def test_E10_for_gaussian_data_the_guided_score_is_the_exact_one(method, sde, gaussian):
    mixture, operator, y = gaussian
    exact = mixture.posterior(*seen(operator, y), 0.2).model(sde)
    model = method(mixture.model(sde), operator, y, 0.2)
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    x = sde.perturb(mixture.sample(10, generator()), t, generator())[0]
    for time in (t, 0.3, 0.9):
        mine, true = model(x, time), exact(x, time)
        torch.testing.assert_close(mine.x0, true.x0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mine.score, true.score, rtol=1e-6, atol=1e-6)


@SDES
def test_E10_pigdm_is_exact_for_white_data(sde):
    mixture = GaussianMixture(torch.zeros(1, 3, 2), 0.7)
    operator, y = Colorize((3, 2)), random(1, 2)
    model, exact = pigdm(mixture.model(sde), operator, y, 0.3), mixture.posterior(operator, y, 0.3).model(sde)
    x = random(5, 3, 2, seed=1)
    torch.testing.assert_close(model(x, 0.4).x0, exact(x, 0.4).x0, rtol=1e-10, atol=1e-10)


@first_fast("sde", FAMILIES.values(), ids=FAMILIES)
@EACH
def test_E10_x0_and_eps_stay_one_estimate(method, sde, problem):
    mixture, operator, y = problem
    model = method(mixture.model(sde), operator, y, 0.1)
    t = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    x = sde.perturb(mixture.sample(3, generator()), t, generator())[0]
    level, estimate = sde.level(t, x), model(x, t)
    torch.testing.assert_close(level.alpha * estimate.x0 + level.sigma * estimate.eps, x, rtol=1e-8, atol=1e-8)
    assert not estimate.x0.requires_grad


@SDES
@pytest.mark.parametrize("method", ["dps", "dps-scaled", "pigdm", "gaussian_data"])
def test_E10_guidance_is_the_gradient_of_its_log_likelihood(method, sde, problem):
    mixture, operator, y = problem
    plain = mixture.model(sde)
    model = METHODS[method](plain, operator, y, 0.1)
    x = sde.perturb(mixture.sample(4, generator()), 0.5, generator())[0].requires_grad_()
    if method == "dps-scaled":
        norm = (y - operator(plain(x, 0.5).x0)).norm(dim=1)
        log_p = -0.5 * 1000 / sde.squared_diffusion(torch.tensor(0.5).double()) * norm
    else:
        log_p = model(x, 0.5).unguided.log_p
    expected = torch.autograd.grad(log_p.sum(), x)[0]
    x = x.detach()
    torch.testing.assert_close(model(x, 0.5).score - plain(x, 0.5).score, expected, rtol=1e-7, atol=1e-7)


@SDES
def test_E10_moment_matching_has_the_exact_covariance(sde, problem):
    """Compare with a dense solve by the covariance of p(x_0 | x_t).

    The covariance comes from the conditional moments of the components.
    """
    mixture, operator, y = problem
    plain, t = mixture.model(sde), 0.4
    x = sde.perturb(mixture.sample(3, generator()), t, generator())[0]
    level, A = sde.level(t, x), operator.entries
    estimate = moment_matching(plain, operator, y, 0.1)(x, t)
    for i in range(3):
        denoised = mixture.posterior(level.alpha * torch.eye(16).double(), x[i], level.sigma)  # p(x_0 | x_t)
        C = denoised.moments.covariance
        r = y - A @ denoised.moments.mean
        u = torch.linalg.solve(A @ C @ A.T + 0.01 * torch.eye(5).double(), r)
        expected = denoised.moments.mean + C @ A.T @ u
        torch.testing.assert_close(estimate.x0[i], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(estimate.unguided.log_p[i], -0.5 * r @ u, rtol=1e-5, atol=1e-6)


@SDES
def test_E10_a_linear_likelihood_agrees_with_dps(sde, problem):
    mixture, operator, y = problem
    plain = mixture.model(sde)
    x = sde.perturb(mixture.sample(4, generator()), 0.2, generator())[0]
    model = with_likelihood(plain, lambda x0: -(y - operator(x0)).square().sum(1) / (2 * 0.1**2))
    linear = dps(plain, operator, y, 0.1)
    for t in (0.2, torch.full((4,), 0.2).double()):
        torch.testing.assert_close(model(x, t).eps, linear(x, t).eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(x, 0.2).unguided.log_p, linear(x, 0.2).unguided.log_p)


@pytest.mark.slow
def test_E10_the_likelihood_of_the_guided_flow_is_the_posteriors(gaussian):
    mixture, operator, y = gaussian
    exact = mixture.posterior(*seen(operator, y), 0.2)
    x0, true = exact.sample(3, generator()), exact.model(VPSDE())
    true.moments = None  # so that both use the prior of the process
    expected = log_likelihood(true, x0, rtol=1e-4, atol=1e-4).log_prob
    torch.testing.assert_close(expected, exact.log_prob(x0), rtol=0, atol=0.05)
    for method in (gaussian_data, moment_matching):
        model = method(mixture.model(VPSDE()), operator, y, 0.2)
        value = log_likelihood(model, x0, rtol=1e-4, atol=1e-4).log_prob
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-3)


# ---- replacement -----------------------------------------------------------------------------------------------------


SAMPLERS = {
    "pc": (PredictorCorrector(corrector=Langevin(0.1), last="tweedie"), 60),
    "ancestral": (PredictorCorrector(Ancestral(), last="tweedie"), 60),
    "ddim": (DDIM(last="tweedie"), 30),
    "multistep": (DPMSolver(last="tweedie"), 15),
    "multistep-stochastic": (DPMSolver(stochastic=True, last="tweedie"), 20),
    "flow": (ProbabilityFlow("rk4", last="tweedie"), 15),
    "resampling": (Resampling(3, last="tweedie"), 30),
}


@SDES
@first_fast("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_N4_known_entries_keep_their_values(sampler, sde, gaussian):
    """Check known entries to rounding; unknown entries vary.

    For every sampler whose last step denoises.
    """
    mixture, operator, y = gaussian
    model = replacement(mixture.model(sde), operator, y)
    x = sample(model, (20, 2, 3), sampler[0], sampler[1], generator=generator())
    known = operator.mask
    assert (x - y)[:, known].abs().max() < 1e-6
    assert (x - y)[:, ~known].std() > 0.1


def test_N4_known_entries_are_noised_to_every_level(gaussian):
    """Check that (x_t - alpha y)/sigma is white at every state.

    The first state is included. The mean square of 1200 numbers is 5 standard deviations off once in 10^6, at each of
    20 states.
    """
    mixture, operator, y = gaussian
    sde = VPSDE()
    model = replacement(mixture.model(sde), operator, y)
    for state in trajectory(
        model, (400, 2, 3), PredictorCorrector(Ancestral(), last="none"), 20, generator=generator()
    ):
        level = sde.level(state.t, state.x)
        z = ((state.x - level.alpha * y) / level.sigma)[:, operator.mask]
        assert abs(z.square().mean().item() - 1) < 5 * math.sqrt(2 / z.numel()), state.t


@SDES
def test_N4_the_projection_keeps_every_observation(sde, problem):
    mixture, operator, y = problem
    model = replacement(mixture.model(sde), operator, y)
    x = sde.perturb(mixture.sample(4, generator()), 0.5, generator())[0]
    torch.testing.assert_close(operator(model(x, 0.5).x0), y.expand(4, 5), rtol=1e-6, atol=1e-6)
    plain, noisy = mixture.model(sde), replacement(mixture.model(sde), operator, y, 0.2)
    level, A, x0 = sde.level(0.5, x), operator.entries, plain(x, 0.5).x0
    S = A @ A.T + (0.2 * level.alpha / level.sigma) ** 2 * torch.eye(5).double()
    expected = x0 + torch.linalg.solve(S, (y - operator(x0)).T).T @ A
    torch.testing.assert_close(noisy(x, 0.5).x0, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(noisy(x, 1e-6).x0, plain(x, 1e-6).x0, rtol=1e-2, atol=1e-2)  # the network is exact there


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@SDES
def test_E10_particles_draw_from_the_posterior(sde, mixture_2d):
    """Compare weighted particles with the posterior.

    Guidance alone gives modes the wrong weights. False alarms: once in 1000 for each process.
    """
    operator, y = Matrix(torch.tensor([[1.0, 0.2]])), torch.tensor([0.1]).double()
    exact = mixture_2d.posterior(operator, y, 0.1).sample(300, generator(1))
    model = gaussian_data(mixture_2d.model(sde), operator, y, 0.1)
    alone = sample(model, (300, 2), DPMSolver(stochastic=True), 40, generator=generator(2))
    assert energy_test(alone, exact) <= 0.01
    x = sample(model, (300, 2), Particles(16), 60, generator=generator(2))
    assert energy_test(x, exact) > 0.001


@first_fast("method", [pigdm, gaussian_data, moment_matching])
@SDES
@first_fast(
    "sampler",
    [(PredictorCorrector(Ancestral(), Langevin(0.1), grid="log_snr"), 60), (DPMSolver(), 40)],
    ids=["pc", "multistep"],
)
def test_inpainting_leaves_known_entries_within_the_noise(sampler, sde, method, gaussian):
    """Compare the distance of known entries from y with the posterior's.

    They agree within 20 %: 7 standard errors of its 600 numbers.
    """
    mixture, operator, y = gaussian
    y = operator.observe(mixture.sample(1, generator(3)), 0.1, generator(4))[0]
    model = method(mixture.model(sde), operator, y, 0.1)
    x = sample(model, (200, 2, 3), sampler[0], sampler[1], generator=generator())
    exact = mixture.posterior(*seen(operator, y), 0.1).sample(4000, generator(1))
    mine, true = ((value - y)[:, operator.mask].square().mean().sqrt() for value in (x, exact))
    assert abs(mine / true - 1) < 0.2
    assert mine < 0.15


@pytest.mark.slow
@SDES
@pytest.mark.parametrize("sampler", ["pc", "multistep"])
def test_inpainting_at_any_rank(sampler, sde):
    """Inpaint everything from a series to a volume.

    Known entries differ from y by the noise; for replacement they do not differ. Of 60 samples with a flat prior, the
    root mean square of 60 numbers or more exceeds 1.5 noises once in 10^6.
    """
    for shape in ((4,), (2, 3), (1, 2, 4), (1, 2, 2, 2)):
        model = GaussianMixture(random(1, *shape, seed=8), 1.0).model(sde)
        operator, y = Inpainting(torch.arange(math.prod(shape)).reshape(shape) % 3 > 0), random(*shape, seed=9)
        for method, noise in ((replacement, 0.0), (pigdm, 0.1)):
            x = sample(method(model, operator, y, noise), (60, *shape), *SAMPLERS[sampler], generator=generator())
            away = (x - y)[:, operator.mask].square().mean().sqrt()
            assert away < 1.5 * noise + 1e-6, (shape, method)
            assert (x - y)[:, ~operator.mask].std() > 0.5


# ---- one sample and its batch ----------------------------------------------------------------------------------------


@first_fast(
    ("method", "sampler"),
    [
        *((method, DPMSolver(stochastic=True)) for method in METHODS.values()),
        *((method, Particles(4)) for name, method in METHODS.items() if name not in ("replacement", "dps-scaled")),
        (replacement, Resampling(2)),
    ],
)
def test_an_observation_per_sample_does_not_depend_on_the_batch(method, sampler, problem):
    mixture, operator, _ = problem
    y = operator.observe(mixture.sample(3, generator(1)), 0.1, generator(2))
    noise = torch.tensor([0.1, 0.2, 0.3]).double()
    model = method(mixture.model(VPSDE()), operator)
    cond = {"observation": y, "observation_noise": noise}
    whole = sample(model, (3, 16), sampler, 8, cond=cond, generator=[generator(i) for i in range(3)])
    for i in range(3):
        own = method(mixture.model(VPSDE()), operator, y[i], noise[i].item())
        alone = sample(own, (1, 16), sampler, 8, generator=[generator(i)])
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-6, atol=1e-6)


def test_chunks_and_low_precision(problem):
    mixture, operator, y = problem
    plain = mixture.model(VPSDE())
    for model, chunk in ((pigdm(chunked(plain, 2), operator, y, 0.1), None), (pigdm(plain, operator, y, 0.1), 2)):
        x = sample(model, (5, 16), DDIM(), 6, generator=generator(), chunk=chunk)
        expected = sample(pigdm(plain, operator, y, 0.1), (5, 16), DDIM(), 6, generator=generator())
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
    x = sample(
        pigdm(chunked(plain, 2), operator, y, 0.1), (3, 16), Particles(4), 6, generator=generator(), progress=True
    )
    assert x.shape == (3, 16)
    low = sample(pigdm(plain, operator, y, 0.1), (5, 16), DDIM(), 6, generator=generator(), dtype=torch.float32)
    assert low.dtype == torch.float32
    whole, cut, other, limited = (
        sample(model, (3, 16), Particles(4), 6, generator=generator(), chunk=chunk)
        for model, chunk in (
            (pigdm(plain, operator, y, 0.1), None),
            (pigdm(plain, operator, y, 0.1), 2),
            (pigdm(plain, operator, y, 0.1).with_sde(VPSDE(0.1, 15.0)), None),
            (clipped(pigdm(plain, operator, y, 0.1), -9.0, 9.0), None),
        )
    )
    torch.testing.assert_close(whole, cut, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole, limited, rtol=1e-9, atol=1e-9)
    assert other.isfinite().all()
    for model in (clipped(plain), replacement(plain, operator, y), dps(plain, operator, y, 0.1, scale=1.0)):
        with pytest.raises(ArgumentError, match=r"`model` must be .*, got"):
            sample(model, (3, 16), Particles(4), 6, generator=generator())


@pytest.mark.parametrize("sampler", [DDIM(), AdaptiveSDE(rtol=0.1, atol=0.1), Particles(4)], ids=repr)
def test_observations_that_differ_by_sample_follow_their_samples(problem, sampler):
    """Guide each sample to its own y; chunks change nothing."""
    mixture, operator, _ = problem
    ys = random(5, *operator.y_shape)

    def log_p(x0, y):
        return -(y - operator(x0)).square().sum(1) / (2 * 0.5**2)

    plain = mixture.model(VPSDE())
    for model, cond in (
        (with_likelihood(plain, log_p, ("y",)), {"y": ys}),
        (dps(plain, operator, None, None), {"observation": ys, "observation_noise": torch.full((5,), 0.5)}),
    ):
        whole, cut = (
            sample(
                model,
                (5, 16),
                sampler,
                None if isinstance(sampler, AdaptiveSDE) else 8,
                cond=cond,
                generator=[generator(i) for i in range(5)],
                chunk=chunk,
            )
            for chunk in (None, 2)
        )
        torch.testing.assert_close(whole, cut, rtol=1e-6, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"cond\['y'\]"):
        sample(with_likelihood(plain, log_p, ("y",)), (5, 16), DDIM(), 2, generator=generator())


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda m, A, y: pigdm(m, lambda x: x, y, 0.1), DTypeError, "operator"),
        (lambda m, A, y: pigdm(m, A, y[:3], 0.1), ShapeError, "y"),
        (lambda m, A, y: pigdm(m, A, y.tolist(), 0.1), DTypeError, "y"),
        (lambda m, A, y: pigdm(m, A, y * math.nan, 0.1), ArgumentError, "y"),
        (lambda m, A, y: pigdm(m, A, y, 0.0), ArgumentError, "noise"),
        (lambda m, A, y: replacement(m, A, y, -0.1), ArgumentError, "noise"),
        (lambda m, A, y: pigdm(m, A, y, torch.ones(2, 2)), ArgumentError, "noise"),
        (lambda m, A, y: pigdm(m, A, y, 0.1, variance=0.0), ArgumentError, "variance"),
        (lambda m, A, y: dps(m, A, y, 0.1, scale=-1.0), ArgumentError, "scale"),
        (lambda m, A, y: moment_matching(m, A, y, 0.1, iterations=0), ArgumentError, "iterations"),
        (lambda m, A, y: gaussian_data(pigdm(m, A, y, 0.1), A, y, 0.1), ArgumentError, "moments"),
        (lambda m, A, y: with_likelihood(m, 3), DTypeError, "log_p_y_given_x0"),
        (lambda m, A, y: pigdm(m, A)(random(3, 16), 0.5), ArgumentError, "observation"),
        (lambda m, A, y: pigdm(m, A, y)(random(3, 16), 0.5), ArgumentError, "observation_noise"),
        (lambda m, A, y: pigdm(m, A, y, 0.1)(random(3, 15), 0.5), ShapeError, "x"),
        (lambda m, A, y: pigdm(m, A, y.expand(4, 5), 0.1)(random(3, 16), 0.5), ShapeError, "y"),
        (lambda m, A, y: pigdm(m, A, y, torch.ones(4))(random(3, 16), 0.5), ShapeError, "noise"),
        (lambda m, A, y: with_likelihood(m, lambda x0: x0.sum())(random(3, 16), 0.5), ShapeError, "log_p_y_given_x0"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, name, problem):
    mixture, operator, y = problem
    with pytest.raises(error, match=f"^`{name}.*` must be .*, got"):
        make(mixture.model(VPSDE()), operator, y)


@pytest.mark.parametrize("sampler", [DDIM(), Particles(2)])
def test_nan_from_a_likelihood_names_the_samples(sampler, problem):
    mixture, *_ = problem

    def log_p(x0):
        second = torch.arange(len(x0)) // (len(x0) // 3) == 1
        return -x0.square().sum(1) * torch.where(second, math.nan, 1.0)

    with pytest.raises(NonFiniteError, match=r"1 of 3 samples \(1\)"):
        sample(with_likelihood(mixture.model(VPSDE()), log_p), (3, 16), sampler, 5, generator=generator())
