"""What holds for every sampler, and a run's options.

The options are chunk, autocast and progress.
"""

import itertools
import math

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, DTypeError, NonFiniteError, ToleranceError
from scoresde.models import autocast, chunked
from scoresde.sampling import Implicit
from tests.families import UserSDE
from tests.generators import generator
from tests.marks import first_fast
from tests.sampling.problems import MIXTURE, SDES, LearnedVariance

PREDICTORS = {
    "none": None,
    "reverse-diffusion": S.ReverseDiffusion(),
    "euler-maruyama": S.EulerMaruyama(),
    "ancestral": S.Ancestral(),
    "ancestral-forward": S.Ancestral("forward"),
    "ancestral-learned": S.Ancestral("learned"),
    "implicit": Implicit(0.3),
}
CORRECTORS = {"none": None, "langevin": S.Langevin(), "annealed": S.AnnealedLangevin(1e-6)}
PAIRS = [pair for pair in itertools.product(PREDICTORS, CORRECTORS) if pair != ("none", "none")]
FIXED = {
    "dpm": (S.DPMSolver(), 8),
    "dpm-stochastic": (S.DPMSolver(stochastic=True), 8),
    "single-step-2": (S.SingleStep(2), 9),
    "single-step-3": (S.SingleStep(3), 10),
    "heun": (S.Heun(), 5),
    "heun-churn": (S.Heun(4.0), 5),
    "ddim": (S.DDIM(), 8),
    "ddim-eta": (S.DDIM(0.5), 8),
    "rk4": (S.ProbabilityFlow("rk4"), 4),
    "heun-ode": (S.ProbabilityFlow("heun"), 6),
    **{f"{p}+{c}": (S.PredictorCorrector(PREDICTORS[p], CORRECTORS[c]), 8) for p, c in PAIRS},
    "corrector-first": (S.PredictorCorrector(S.Ancestral(), S.Langevin(), corrector_first=True), 8),
}
ADAPTIVE = {
    "dopri5": (S.ProbabilityFlow(), None),
    "bosh3": (S.ProbabilityFlow("bosh3", 1e-3, 1e-3), None),
    "adaptive-sde": (S.AdaptiveSDE(0.1, 0.01), None),
}
SAMPLERS = FIXED | ADAPTIVE


class Shifted(S.Model):
    """N(m, 1/4 I) for samples of any rank, with an exponent v per entry.

    m is the sample's own ``cond["mean"]`` or 0.
    """

    def __init__(self, sde):
        super().__init__()
        self.sde = sde

    def estimate(self, x, level, cond=None):
        mean = torch.zeros_like(x) if cond is None else cond["mean"]
        assert len(mean) == len(x)
        centred = (x - level.alpha * mean) / (0.25 * level.alpha**2 + level.sigma**2)
        x0, eps = mean + 0.25 * level.alpha * centred, level.sigma * centred
        return S.Estimate(x0, eps, level, torch.sigmoid(x))


# ---- every sampler -----------------------------------------------------------------------------------------------


@first_fast(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@first_fast("name", SAMPLERS)
def test_samples_depend_on_their_seeds_alone(name, dtype, tolerance):
    """Compare a sample alone, in a batch, and in chunks of 3.

    It has its own generator.
    """
    (sampler, steps), model = SAMPLERS[name], LearnedVariance(MIXTURE.model(SDES["vp"]))

    def draw(seeds, **settings):
        generators = [generator(seed) for seed in seeds]
        return S.sample(model, (len(seeds), 2), sampler, steps, generator=generators, dtype=dtype, **settings)

    many = draw(range(7))
    assert many.dtype == dtype
    assert torch.equal(many, draw(range(7)))
    assert not torch.isclose(many, draw(range(7, 14))).any()
    scale = 1 + many.abs().max().item()
    for one in (0, 5):
        assert (draw([one])[0] - many[one]).abs().max() <= tolerance * scale
    assert (draw(range(7), chunk=3) - many).abs().max() <= tolerance * scale


@first_fast("name", SAMPLERS)
def test_conditions_reach_the_network_row_by_row(name):
    """Check that each sample has its mean.

    In chunks too, and where finished samples leave the batch.
    """
    sampler, steps = SAMPLERS[name]
    means = torch.tensor([[-8.0], [0.0], [9.0], [-8.0], [9.0]], dtype=torch.float64)
    settings = {"cond": {"mean": means}, "generator": generator(), "dtype": means.dtype, "chunk": 2}
    x = S.sample(Shifted(SDES["vp"]), (5, 1), sampler, steps, **settings)
    assert x.isfinite().all()
    if not name.startswith("none"):  # a corrector alone needs more steps
        assert (x - means).abs().max() < 3.5


@first_fast("name", SAMPLERS)
def test_any_rank(name):
    sampler, steps = SAMPLERS[name]
    for shape in ((3,), (3, 2), (3, 3, 5), (3, 2, 4, 4)):
        x = S.sample(Shifted(SDES["vp"]), shape, sampler, steps, generator=generator())
        assert x.shape == shape
        assert x.isfinite().all()


@first_fast("sde", SDES)
@first_fast(("predictor", "corrector"), [pair for pair in PAIRS if pair[0] != "none"])
@pytest.mark.filterwarnings("ignore:.*out of the scale:scoresde.errors.SamplingWarning")
def test_E7_few_steps_stay_finite_and_sane(sde, predictor, corrector):
    """Check that samples are finite and, with more steps, near the data.

    Near: means within 2 standard deviations, stds at most 3 times as large. The number of steps is 1 with the exact
    posterior and 5 with the others. Euler-Maruyama has 20, since its steps must be small against the process's rates.
    """
    sampler = S.PredictorCorrector(PREDICTORS[predictor], CORRECTORS[corrector])
    std = MIXTURE.moments.covariance.diagonal().sqrt()
    sane_from = {"ancestral": 1, "implicit": 1, "euler-maruyama": 20}.get(predictor, 5)
    for steps in (1, 2, 5, 10, 20):
        x = S.sample(
            LearnedVariance(MIXTURE.model(SDES[sde])), (60, 2), sampler, steps, generator=generator(), dtype=std.dtype
        )
        assert x.isfinite().all()
        if steps >= sane_from:
            assert ((x.mean(0) - MIXTURE.moments.mean).abs() < 2 * std).all()
            assert (x.std(0) < 3 * std).all()


# ---- chunk and autocast ------------------------------------------------------------------------------------------


class Widths(torch.nn.Module):
    """A network that records its batch sizes and its dtypes.

    The dtypes are those in which it multiplies.
    """

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.dtypes = torch.nn.Linear(2, 2), [], set()
        torch.nn.init.eye_(self.layer.weight)

    def forward(self, x, time_input, shift=0.0):
        assert len(x) == len(time_input)
        self.seen.append(len(x))
        y = self.layer(x)
        self.dtypes.add(y.dtype)
        return y + shift


def test_the_network_sees_at_most_a_chunk():
    net = Widths()
    model = S.ScoreModel(net, S.VPSDE())
    cond = {"shift": torch.randn(7, 2, generator=generator())}
    z, rk4 = torch.randn(7, 2, generator=generator()), S.ProbabilityFlow("rk4")
    for run in (
        lambda chunk: S.sample(model, (7, 2), S.DDIM(), 4, start=z, cond=cond, chunk=chunk),
        lambda chunk: [*S.trajectory(model, (7, 2), S.DPMSolver(), 4, start=z, cond=cond, chunk=chunk)][-1].x,
        lambda chunk: S.encode(model, z, rk4, 4, cond, chunk=chunk),
        lambda chunk: S.decode(model, z, rk4, 4, cond, chunk=chunk),
    ):
        whole, net.seen = run(None), []
        pieces = run(3)
        assert max(net.seen) == 3
        torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)


def test_a_level_of_each_sample_is_cut_with_it():
    model, x = LearnedVariance(MIXTURE.model(S.VPSDE())), torch.randn(7, 2, generator=generator(), dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    for name in ("x0", "eps", "v"):
        pieces, whole = (getattr(m(x, t), name) for m in (chunked(model, 3), model))
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)
    assert chunked(model, 3).moments is model.moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_is_for_the_network_alone(dtype):
    net = Widths()
    model, start = S.ScoreModel(net, S.VPSDE()), torch.randn(5, 2, generator=generator(), dtype=dtype)
    settings = {"start": start, "dtype": dtype}
    x = S.sample(model, start.shape, S.DDIM(), 5, autocast=torch.bfloat16, **settings)
    assert x.dtype == dtype
    assert net.dtypes == {torch.bfloat16}
    precise = S.sample(model.to(dtype), start.shape, S.DDIM(), 5, **settings)
    assert 0 < (x - precise).abs().max() < 0.05 * precise.abs().max()
    estimate = autocast(model.float(), torch.bfloat16)(start, 0.5)
    assert estimate.x0.dtype == estimate.eps.dtype == dtype
    z = S.encode(model, start, S.DDIM(), 3, autocast=torch.bfloat16)
    assert S.decode(model, z, S.DDIM(), 3, autocast=torch.bfloat16, chunk=2).dtype == dtype


def test_bad_switches_are_refused():
    model = Shifted(S.VPSDE())
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ArgumentError, match=r"`chunk` must be .*, got"):
            S.sample(model, (2, 2), chunk=bad)
    for bad in (torch.float32, "bfloat16", True):
        with pytest.raises(DTypeError, match=r"`autocast` must be .*, got"):
            S.trajectory(model, (2, 2), autocast=bad)
    with pytest.raises(ArgumentError, match=r"`autocast` must be .*, got torch\.bfloat16 on .meta."):
        autocast(S.ScoreModel(torch.nn.Linear(2, 2, device="meta"), S.VPSDE()), torch.bfloat16)


# ---- what a run restores ------------------------------------------------------------------------------------------


def dropping(sde=None):
    """Return a model with dropout and the training modes of its parts.

    One part is frozen.
    """
    net = S.ResidualMLP((2,), width=16, blocks=1)
    net.dropout, net.frozen = torch.nn.Dropout(0.5), torch.nn.Linear(2, 2).eval()
    net.register_forward_hook(lambda net, inputs, output: net.dropout(output))
    model = S.ScoreModel(net, sde or S.VPSDE(), "data")
    torch.nn.init.normal_(list(net.parameters())[-3], generator=generator())
    return model, [module.training for module in model.modules()]


def test_dropout_is_off_during_a_run():
    model, flags = dropping()
    start = torch.randn(20, 2, generator=generator())

    def now():
        return [module.training for module in model.modules()]

    def check(state):
        assert not any(now())  # the run is not over

    x = S.sample(model, (20, 2), S.DDIM(), 3, start=start, callback=check)
    z = S.encode(model, x, S.DDIM(), 3)
    assert now() == flags
    iterator = S.trajectory(model, (20, 2), S.DDIM(), 3, start=start)
    next(iterator), next(iterator)
    assert now() == flags  # between two states too
    with pytest.raises(RuntimeError, match="stop"):
        S.sample(
            model, (20, 2), S.DDIM(), 3, start=start, callback=lambda state: (_ for _ in ()).throw(RuntimeError("stop"))
        )
    handle = model.net.register_forward_hook(lambda *_: 1 / 0)
    for broken in (lambda: S.sample(model, (2, 2)), lambda: S.encode(model, x), lambda: S.decode(model, z)):
        with pytest.raises(ZeroDivisionError):
            broken()
        assert now() == flags
    handle.remove()
    model.eval()
    assert torch.equal(S.sample(model, (20, 2), S.DDIM(), 3, start=start), x)
    assert torch.equal(S.encode(model, x, S.DDIM(), 3), z)


def test_runs_keep_no_graph():
    model, start = dropping()[0], torch.randn(4, 2, generator=generator(), requires_grad=True)
    for state in S.trajectory(model, (4, 2), S.DPMSolver(), 4, start=start):
        assert torch.is_grad_enabled()
        assert not state.x.requires_grad
    assert not S.encode(model, start).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpm", "reverse-diffusion+langevin", "euler-maruyama+none", "dopri5", "adaptive-sde"])
def test_inference_mode_changes_nothing(name):
    """This includes a process whose rates come from autograd."""
    sampler, steps = SAMPLERS[name]
    for sde in (S.VPSDE(), UserSDE()):
        model = Shifted(sde)
        x = S.sample(model, (3, 2), sampler, steps, generator=generator())
        with torch.inference_mode():
            start = sde.prior_sample((3, 2), generator())
            again = S.sample(model, (3, 2), sampler, steps, generator=generator())
            S.decode(model, start)
            assert torch.is_inference_mode_enabled()
        assert torch.equal(again, x)
        assert not again.is_inference()


def test_progress_shows_steps_and_calls(capsys):
    model = Shifted(S.VPSDE())
    S.sample(model, (3, 2), S.DDIM(), 7, generator=generator(), progress=True)
    shown = capsys.readouterr()
    assert "DDIM()" in shown.err
    assert "7/7 steps 8 network calls" in " ".join(shown.err.split())
    assert not shown.out
    S.decode(model, torch.zeros(3, 2), S.Heun(), 3, progress=True)
    assert "3/3 steps 7 network calls" in " ".join(capsys.readouterr().err.split())
    S.sample(model, (3, 2), S.DDIM(), 7, generator=generator())
    assert not capsys.readouterr().err


# ---- errors ------------------------------------------------------------------------------------------------------


class Broken(Shifted):
    """A model that gives NaN or infinity for sample 1 at t < 0.5."""

    def __init__(self, value):
        super().__init__(S.VPSDE())
        self.value = value

    def estimate(self, x, level, cond=None):
        estimate = super().estimate(x, level)
        wrong = (cond["row"] == 1) & torch.as_tensor(level.t < 0.5).reshape(-1, 1)
        return S.Estimate(*(v.masked_fill(wrong, self.value) for v in estimate[:2]), level, estimate.v)


ROWS = {"row": torch.arange(3)[:, None].expand(3, 2)}


@first_fast("value", [math.nan, math.inf])
@first_fast("name", FIXED)
def test_nan_from_the_network_is_located(name, value):
    """Check that the step starts at a state of the run and ends below t = 0.5."""
    sampler, steps = FIXED[name]
    with pytest.raises(NonFiniteError, match=r"step \d+ of \d+, from t = .*: .* in 1 of 3 samples \(1\)") as error:
        S.sample(Broken(value), (3, 2), sampler, steps, cond=ROWS, generator=generator())
    before, after = (float(word) for word in str(error.value).split("from t = ")[1].split(":")[0].split(" to "))
    times = [state.t for state in S.trajectory(Shifted(S.VPSDE()), (3, 2), sampler, steps, generator=generator())]
    assert any(math.isclose(before, t, rel_tol=1e-5, abs_tol=1e-9) for t in times)
    assert after < 0.5
    if name == "ddim":  # t = 1, .875, ...: the step from .375 is the first whose call is below .5
        assert "step 6 of 8" in str(error.value)


@first_fast("name", ["dopri5", "bosh3", "RK45", "dopri8"])
def test_nan_in_an_adaptive_solver_is_located(name):
    with pytest.raises(NonFiniteError, match=r"t = 0\.[45]\d* .*samples \[1\]"):
        S.sample(Broken(math.nan), (3, 2), S.ProbabilityFlow(name, 1e-3, 1e-3), cond=ROWS, generator=generator())


def test_nan_in_start_and_data_is_located():
    model, bad = Shifted(S.VPSDE()), torch.zeros(3, 2)
    bad[2] = math.nan
    with pytest.raises(NonFiniteError, match=r"the start: .* in 1 of 3 samples \(2\)"):
        S.sample(model, (3, 2), S.DDIM(), 3, start=bad)
    with pytest.raises(NonFiniteError, match=r"the latents: .* in 1 of 3 samples \(2\)"):
        S.encode(model, bad, S.DDIM(), 3)


class Rough(Shifted):
    """A field for which no step is small enough."""

    def estimate(self, x, level, cond=None):
        return super().estimate(x, level)._replace(eps=1e9 * torch.sin(1e13 * x))


@pytest.mark.parametrize("name", ["dopri5", "bosh3", "RK45", "dopri8"])
def test_an_unreachable_tolerance_is_located(name):
    flow = S.ProbabilityFlow(name, 1e-9, 1e-9)
    with pytest.raises(ToleranceError, match=r"t = \S+ with a step of \S+ \(lambda = \S+\).* \d+ calls"):
        S.sample(Rough(S.VPSDE()), (2, 2), flow, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_whole_and_positive(name):
    for bad in (0, -3, 2.0, True):
        with pytest.raises(ArgumentError, match=r"`steps` must be .*, got"):
            S.sample(Shifted(S.VPSDE()), (2, 2), SAMPLERS[name][0], bad)
