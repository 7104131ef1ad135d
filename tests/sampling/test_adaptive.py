"""The adaptive reverse SDE: paths, laws, measured orders, errors.

Also its Brownian paths and tolerances.
"""

import functools
import itertools
import math

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, NonFiniteError, ToleranceError
from scoresde.models import Model
from scoresde.sampling import AdaptiveSDE, adaptive
from scoresde.sampling.adaptive import improved_euler
from scoresde.sampling.brownian import BrownianPaths
from tests.generators import generator
from tests.sampling.problems import MIXTURE
from tests.statistics_tools import energy_test, measured_order

GAUSSIAN = S.GaussianMixture([[0.7]], 0.09)


def generators(seeds):
    return [generator(seed) for seed in seeds]


class Redrawn(BrownianPaths):
    """The biased variant of the paths.

    It forgets what was seen of a path, and redraws a rejected increment.
    """

    def look(self, s):
        self.points.fill_(-math.inf)
        return super().look(s)


def z_scores(x, variance):
    """Return the larger z-score of the mean and variance of normal draws.

    The draws ``x`` have mean 0 and variance ``variance``.
    """
    n = x.numel()
    off = x.mean() / (variance / n) ** 0.5, (x.square().mean() / variance - 1) / (2 / n) ** 0.5
    return max(abs(v.item()) for v in off)


# ---- the Brownian paths ------------------------------------------------------------------------------------------


def test_refined_paths_are_brownian():
    """After looks in any order, variances and covariances are min(s, s').

    |z| < 4.5 for each of 20 numbers: one false alarm in 7000 seeds.
    """
    n = 20_000
    paths = BrownianPaths(0.0, torch.zeros(n, 1, dtype=torch.float64), generator())
    clock = functools.partial(torch.full, (n,), dtype=torch.float64)
    seen = {}
    for s in (8.0, 4.0, 1.0):
        point, seen[s] = paths.look(clock(s))
        assert (point == s).all()
    point, value = paths.look(clock(3.0))  # 1 is known, so a step to 3 ends there
    assert (point == 1).all()
    assert torch.equal(value, seen[1.0])
    paths.walk(clock(1.0) == 1, point, value)
    seen[3.0] = paths.look(clock(3.0))[1]
    point, value = paths.look(clock(7.9))  # the last known point before it
    assert (point == 4).all()
    assert torch.equal(value, seen[4.0])  # refinement keeps known values
    point, value = paths.look(clock(8.0))
    assert torch.equal(value, seen[8.0])
    paths.walk(point == 8, point, value)
    seen[9.0] = paths.look(clock(9.0))[1]
    times = torch.tensor(sorted(seen), dtype=torch.float64)
    W = torch.stack([seen[s][:, 0] for s in sorted(seen)])
    exact = torch.minimum(times[:, None], times)
    se = ((exact**2 + times[:, None] * times) / n).sqrt()
    assert ((W @ W.T / n - exact).abs() < 4.5 * se).all()
    assert (W.mean(1).abs() < 4.5 * (times / n).sqrt()).all()


def recorded(monkeypatch, base):
    """Record a sampler's paths of class ``base``.

    Returns [attempts, rejections], and the paths' ends.
    """
    counts, ends = [0, 0], []

    class Recorded(base):
        def __init__(self, *args):
            super().__init__(*args)
            self.start = self.now

        def walk(self, accept, s, value):
            counts[0] += len(accept)
            counts[1] += int((~accept).sum())
            super().walk(accept, s, value)

        def keep(self, mask):
            ends.append((self.here[~mask] / (self.now - self.start[0])[~mask, None].sqrt()).flatten())
            super().keep(mask)

    monkeypatch.setattr(adaptive, "BrownianPaths", Recorded)
    return counts, ends


@pytest.mark.slow
@pytest.mark.parametrize(("paths", "biased"), [(BrownianPaths, False), (Redrawn, True)])
def test_rejections_do_not_bias(monkeypatch, paths, biased):
    """Compare a linear SDE with its exact mean and variance.

    Noise and samples have a known end. The bound is 4 standard errors (one false alarm in 4000 seeds). With redrawn
    increments they are more than 10 off.
    """
    n, sde = 40_000, S.VPSDE()
    counts, ends = recorded(monkeypatch, paths)
    t_max, t_min = sde.time_of(-6.0).item(), sde.time_of(4.0).item()
    start = sde.perturb(GAUSSIAN.sample(n, generator(1)), t_max, generator(2))[0]
    sampler = AdaptiveSDE(3e-3, 3e-4, first_step=1e6, t_min=t_min, t_max=t_max, last="none")
    x = S.sample(GAUSSIAN.model(sde), (n, 1), sampler, start=start, generator=generator(3))
    assert counts[1] > 0.2 * counts[0]
    noise = z_scores(torch.cat(ends), 1.0)
    alpha, sigma = sde.alpha(t_min), sde.sigma(t_min)
    law = z_scores(x - alpha * 0.7, alpha**2 * 0.09 + sigma**2)
    if biased:
        assert noise > 10
        assert law > 10
    else:
        assert noise < 4
        assert law < 4


# ---- laws --------------------------------------------------------------------------------------------------------

SDES = {
    "vp": S.VPSDE(),
    "subvp": S.SubVPSDE(),
    "ve": S.VESDE(),
    "flow": S.FlowSDE(),
    "ddpm": S.DDPM.linear(1000),
    "ncsn": S.NCSN.geometric(0.01, 50.0, 232),
}


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES)
def test_E2_samples_match_the_mixture(sde):
    """Compare samples by the energy test at level 0.001 each.

    A false alarm in 170 seeds for the six; the seed is fixed.
    """
    x = S.sample(MIXTURE.model(SDES[sde]), (600, 2), AdaptiveSDE(), generator=generator(1))
    assert energy_test(x, MIXTURE.sample(600, generator(2))) > 0.001


@pytest.mark.slow
def test_a_huge_first_step_is_bounded():
    """Take one step from pure noise to clean data.

    Euler's and the improved step agree on the data's mean.
    """
    x = S.sample(MIXTURE.model(S.VPSDE()), (600, 2), AdaptiveSDE(first_step=1e6), generator=generator(1))
    assert energy_test(x, MIXTURE.sample(600, generator(2))) > 0.001


def test_a_model_without_moments():
    """Compare samples by the energy test at level 0.001."""
    model = MIXTURE.model(S.VESDE())
    model.moments = None
    x = S.sample(model, (600, 2), AdaptiveSDE(0.03, 0.003), generator=generator(1))
    assert energy_test(x, MIXTURE.sample(600, generator(2))) > 0.001


def test_any_rank_and_number_of_states():
    gm = S.GaussianMixture(torch.randn(3, 1, 2, 3, generator=generator()), 0.04)
    states = list(S.trajectory(gm.model(S.VPSDE()), (5, 1, 2, 3), AdaptiveSDE(0.1, 0.01), 4, generator=generator()))
    assert [s.step for s in states] == [0, 1, 2, 3, 4, 4]
    assert all(a.t > b.t and a.calls < b.calls for a, b in itertools.pairwise(states))
    assert all(s.x.shape == (5, 1, 2, 3) and s.x.isfinite().all() for s in states)
    assert all(s.x0.shape == s.x.shape for s in states[1:])


# ---- orders ------------------------------------------------------------------------------------------------------


def linear_errors(steps, c=0.3, variance=1.0, start=0.5, end=20.0):
    """Return the ``(strong, weak)`` error of fixed steps for data N(0, c).

    y and x0 are linear in the noise. The second moments of (y, last x0, exact y) are propagated exactly, without draws
    or statistical error. The exact u_s = R u + I has var I = R h and cov(I, B) = (1 + c s)/c log R, R = (1 + c s)/(1 +
    c theta). ``variance`` differs from c, so that the weights of the step are not exact.
    """
    grid = torch.logspace(math.log10(start), math.log10(end), steps + 1, dtype=torch.float64)
    gain = c * start / (1 + c * start)
    v = torch.tensor([1.0, gain, 1.0], dtype=torch.float64)
    P = (c + 1 / start) * torch.outer(v, v)
    basis = torch.eye(3, dtype=torch.float64)[..., None]
    for a, b in itertools.pairwise(grid):
        R, h = (1 + c * b) / (1 + c * a), b - a
        ones = torch.ones(3, 1, dtype=torch.float64)
        y, x0, _ = improved_euler(*basis, a * ones, b * ones, variance, lambda y, b=b: c * b / (1 + c * b) * y)
        A, G = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
        A[0, :2], A[1, :2], A[2, 2] = y[:2, 0], x0[:2, 0], R * a / b
        G[0, 0], G[1, 0], G[2, 1] = y[2, 0], x0[2, 0], 1 / b
        both = (1 + c * b) / c * R.log()
        P = A @ P @ A.T + G @ torch.stack([torch.stack([h, both]), torch.stack([both, R * h])]) @ G.T
    assert P[2, 2].item() == pytest.approx(c + 1 / end, rel=1e-9)
    return (P[0, 0] - 2 * P[0, 2] + P[2, 2]).sqrt().item(), (P[0, 0] - P[2, 2]).abs().item()


def test_declared_orders_are_measured():
    """Strong order 1, weak order 2 (slopes within 0.2)."""
    counts = (100, 200, 400)
    strong, weak = zip(*(linear_errors(n) for n in counts), strict=True)
    assert measured_order(strong, [1 / n for n in counts]) == pytest.approx(1, abs=0.2)
    assert measured_order(weak, [1 / n for n in counts]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("theta", "s"), [(1e-6, 1e-3), (0.3, 1.0), (50.0, 120.0)])
def test_a_step_is_the_exact_transition_of_a_gaussian(theta, s):
    """Compare mean and variance of a step for data N(m, c).

    The mean is the posterior's, and the variance is that of u's transition, R h.
    """
    c, m = 0.7, 0.4
    y = torch.tensor([[1.5], [1.5]], dtype=torch.float64)

    def x0(y, theta):
        return (m + c * theta * y) / (1 + c * theta)

    times = (torch.full_like(y, theta), torch.full_like(y, s))
    increment = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    y_s, _, _ = improved_euler(y, x0(y, theta), increment, *times, c, lambda y: x0(y, s))
    R = (1 + c * s) / (1 + c * theta)
    assert y_s[0].item() == pytest.approx((theta * 1.5 + x0(1.5, theta) * (s - theta)) / s, rel=1e-12)
    assert (y_s[1] - y_s[0]).item() * s == pytest.approx(math.sqrt(R), rel=1e-12)


@pytest.mark.slow
def test_the_strong_error_falls_with_the_tolerance(monkeypatch):
    """Compare with a run at a far smaller tolerance on the same paths.

    The Brownian paths are known on a fine grid.
    """
    n, sde = 64, S.VPSDE()
    ends = {"t_max": sde.time_of(-6.0).item(), "t_min": sde.time_of(4.0).item(), "last": "none"}
    grid = torch.linspace(4.0, -6.0, 3000, dtype=torch.float64).exp()  # the far end first

    class Known(BrownianPaths):
        def __init__(self, start, like, generator):
            super().__init__(start, like, generator)
            steps = -torch.diff(grid).flip(0)[:, None, None]
            W = (steps.sqrt() * torch.randn(len(steps), *like.shape, generator=generator, dtype=like.dtype)).cumsum(0)
            self.points, self.values = grid[:-1, None].expand(-1, len(like)).clone(), W.flip(0)

    monkeypatch.setattr(adaptive, "BrownianPaths", Known)
    monkeypatch.setattr(adaptive, "MAX_DEPTH", 10_000)
    start = sde.perturb(MIXTURE.sample(n, generator(1)), ends["t_max"], generator(2))[0]

    def run(rtol):
        sampler = AdaptiveSDE(rtol, rtol / 10, **ends)
        return S.sample(MIXTURE.model(sde), (n, 2), sampler, start=start, generator=generator(3))

    exact = run(3e-4)
    errors = [(run(rtol) - exact).norm(dim=1).median().item() for rtol in (0.3, 0.03, 0.003)]
    assert errors[1] < errors[0] / 1.5
    assert errors[2] < errors[1] / 1.5


# ---- independence of the batch ------------------------------------------------------------------------------------


class Shifted(Model):
    """The mixture moved by cond["shift"] ``(B, 2)``."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde = inner, inner.sde

    def estimate(self, x, level, cond=None):
        inner = self.inner.estimate(x - level.alpha * cond["shift"].to(x), level)
        return inner._replace(x0=inner.x0 + cond["shift"].to(x))


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch():
    """Compare seven samples together with seven alone.

    Each has its generator and its row of cond.
    """
    model = Shifted(MIXTURE.model(S.VPSDE()))
    shift = torch.randn(7, 2, generator=generator(9)) * 3
    together = S.sample(model, (7, 2), AdaptiveSDE(), cond={"shift": shift}, generator=generators(range(7)))
    for i in range(7):
        alone = S.sample(model, (1, 2), AdaptiveSDE(), cond={"shift": shift[i : i + 1]}, generator=generators([i]))
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


def test_reproducible_and_random():
    model = MIXTURE.model(S.VESDE())
    a, b, c = (S.sample(model, (20, 2), AdaptiveSDE(0.1, 0.01), generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_cond_rows_follow_their_samples():
    """Check that samples that finish at different times keep their shifts.

    The shifts are 0, 100 or 200; the mixture is within 4 of 0.
    """
    shift = 100.0 * torch.arange(30)[:, None].remainder(3).expand(30, 2)
    model = Shifted(MIXTURE.model(S.VPSDE()))
    x = S.sample(model, (30, 2), AdaptiveSDE(0.01, 0.01), cond={"shift": shift}, generator=generator())
    assert ((x - shift).abs() < 5).all()


# ---- errors ------------------------------------------------------------------------------------------------------


class Broken(Shifted):
    """A model that gives NaN for some samples at late times.

    Those whose x0 has a first coordinate above 1.
    """

    def estimate(self, x, level, cond=None):
        inner = self.inner.estimate(x, level)
        broken = (inner.x0[:, :1] > 1) & (level.sigma < 0.3)
        return inner._replace(x0=inner.x0.masked_fill(broken, math.nan))


def test_nan_from_the_network_is_located():
    with pytest.raises(NonFiniteError, match=r"t = 0\.\d+, call \d+, samples \[\d+"):
        S.sample(Broken(MIXTURE.model(S.VPSDE())), (20, 2), AdaptiveSDE(), generator=generator())


@pytest.mark.parametrize("settings", [{"rtol": 1e-30, "atol": 1e-30}, {"rtol": 1e-6, "atol": 1e-9, "max_calls": 50}])
def test_an_unreachable_tolerance_is_located(settings):
    with pytest.raises(
        ToleranceError, match=r"sample \d+ is at t = \S+ with a step of \S+ \(\S+ of .*\) after \d+ calls"
    ):
        S.sample(MIXTURE.model(S.VPSDE()), (4, 2), AdaptiveSDE(**settings), generator=generator())


def test_the_memory_of_rejections_is_bounded(monkeypatch):
    monkeypatch.setattr(adaptive, "MAX_DEPTH", 1)
    with pytest.raises(ToleranceError):
        S.sample(MIXTURE.model(S.VPSDE()), (4, 2), AdaptiveSDE(first_step=1e6), generator=generator())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"rtol": 0.0}, "rtol"),
        ({"atol": -1.0}, "atol"),
        ({"rtol": math.nan}, "rtol"),
        ({"first_step": 0.0}, "first_step"),
        ({"max_calls": 0}, "max_calls"),
    ],
)
def test_bad_settings(settings, name):
    with pytest.raises(ArgumentError, match=name):
        AdaptiveSDE(**settings)


def test_ends_without_noise_are_refused():
    with pytest.raises(ArgumentError, match="t_min"):
        S.sample(MIXTURE.model(S.VPSDE()), (4, 2), AdaptiveSDE(t_min=0.0), generator=generator())


def test_a_list_of_generators_has_one_per_sample():
    model = MIXTURE.model(S.VPSDE())
    with pytest.raises(ArgumentError, match="generator"):
        S.sample(model, (4, 2), AdaptiveSDE(), start=torch.zeros(4, 2), generator=generators(range(3)))
