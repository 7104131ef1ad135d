"""Bits per dimension: offset, dequantisation, errors and records.

The offset is derived, and every image counts.
"""

import math

import pytest
import torch

import scoresde as S
from scoresde.errors import ArgumentError, DataError, DTypeError, ShapeError
from scoresde.random import spawn_generators
from tests.generators import generator

K = 17
SCALING = S.data.Scaling.for_integers(K)
GAUSSIAN = S.GaussianMixture(torch.zeros(1, 1, 2, 3), 0.2)
MODEL = GAUSSIAN.model(S.VPSDE())
IMAGES = torch.randint(0, K, (11, 1, 2, 3), generator=generator())

# fewer calls than log p needs
pytestmark = pytest.mark.filterwarnings("ignore::scoresde.errors.LikelihoodWarning")


def test_bits_per_dim_is_the_closed_form():
    """Compare with -log2 of the scaled Gaussian density at raw + u.

    There is no other term.
    """
    result = S.bits_per_dim(
        MODEL, IMAGES, scaling=SCALING, divergence=S.Exact(), steps=60, generator=generator(1), batch=11
    )
    u = [torch.rand(IMAGES.shape[1:], generator=g, dtype=torch.float64) for g in spawn_generators(generator(1), 11)]
    raw = IMAGES + torch.stack(u)
    x = 2 * raw / K - 1
    per_entry = -0.5 * x.square() / 0.2 - 0.5 * math.log(2 * math.pi * 0.2) + math.log(2 / K)
    torch.testing.assert_close(result.bits, -per_entry.mean((1, 2, 3)) / math.log(2), rtol=0, atol=2e-4)
    assert result.mean == pytest.approx(result.bits.mean().item())
    assert result.mean_stderr == pytest.approx((result.bits.std() / math.sqrt(11)).item())
    assert result.offset == pytest.approx(-math.log2(2 / K))
    assert (result.n, result.dims) == (11, 6)


def test_the_offset_takes_the_scale_out():
    """Compare with a model of data scaled twice as wide: equal bits/dim."""
    wide = S.data.Scaling(2 * SCALING.scale, 2 * SCALING.shift, K)
    other = S.GaussianMixture(torch.zeros(1, 1, 2, 3), 4 * 0.2).model(S.VPSDE())
    settings = {"divergence": S.Exact(), "steps": 60}
    first = S.bits_per_dim(MODEL, IMAGES, scaling=SCALING, generator=generator(1), **settings)
    again = S.bits_per_dim(other, IMAGES, scaling=wide, generator=generator(1), **settings)
    torch.testing.assert_close(first.bits, again.bits, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_the_last_batch_counts():
    seen = []
    result = S.bits_per_dim(
        MODEL, IMAGES, scaling=SCALING, generator=generator(), batch=4, callback=lambda done, n: seen.append((done, n))
    )
    assert result.bits.shape == (11,)
    assert seen == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.slow
def test_the_batch_does_not_change_the_results():
    """Compare batches of 11, 4 and 1: they agree to 1e-6.

    Each image has its own dequantisation and probes.
    """
    settings = {"scaling": SCALING, "divergence": S.Hutchinson(2), "steps": 24}
    whole, some, single = (
        S.bits_per_dim(MODEL, IMAGES, generator=generator(), batch=batch, **settings).bits for batch in (11, 4, 1)
    )
    torch.testing.assert_close(some, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-6)
    chunked = S.bits_per_dim(MODEL, IMAGES, generator=generator(), chunk=3, **settings).bits
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)


def test_the_standard_error_of_several_draws():
    """Compare the standard error with the spread of 300 means.

    One image 300 times, 4 draws each: they agree within 20 %.
    """
    settings = {"scaling": SCALING, "divergence": S.Exact(), "steps": 24, "batch": 300}
    result = S.bits_per_dim(
        MODEL, IMAGES[:1].expand(300, -1, -1, -1), S.data.Uniform(4), generator=generator(), **settings
    )
    reported = result.stderr.square().mean().sqrt()
    assert (reported / result.bits.std()).item() == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(result.stderr_draws, result.stderr)
    assert result.stderr_probes.max() == 0
    assert result.noise == pytest.approx((reported / math.sqrt(300)).item())


def test_standard_errors_of_probes_and_draws_add_up():
    """Check that the variances of probes and draws add up.

    With one draw that of the draws is unknown and the total is the probes'.
    """
    settings = {"scaling": SCALING, "divergence": S.Hutchinson(2, "gaussian"), "steps": 24}
    several = S.bits_per_dim(MODEL, IMAGES, S.data.Uniform(6), generator=generator(), **settings)
    assert (several.stderr_probes > 0).all()
    known = several.stderr_draws > 0  # 0: the draws' share drowned in the probes'
    parts = several.stderr_probes[known].square() + several.stderr_draws[known].square()
    torch.testing.assert_close(parts, several.stderr[known].square())
    single = S.bits_per_dim(MODEL, IMAGES, generator=generator(), **settings)
    assert single.stderr_draws.isnan().all()
    assert torch.equal(single.stderr, single.stderr_probes)
    assert several.nfe == 6 * single.nfe
    shares = several.stderr_probes.square().mean() / single.stderr_probes.square().mean()
    assert shares.item() == pytest.approx(1 / 6, rel=0.4)


P = torch.tensor([0.3, 0.05, 0.1, 0.2, 0.05, 0.1, 0.15, 0.05], dtype=torch.float64)
EIGHT = S.data.Scaling.for_integers(8)
CENTRES = EIGHT.bin_centres(torch.arange(8)[:, None], torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("sde", [S.VPSDE(), S.VESDE(), S.FlowSDE()], ids=["vp", "ve", "flow"])
def test_truncated_normal_bounds_the_probability(sde):
    """Compare with log P + log Z for a distribution on 8 values.

    The score is exact, and Z = erf(3/sqrt(2)) is the noise that is kept. Neighbouring bins leak into the bin: below .01
    nats on average.
    """
    model = S.GaussianMixture(CENTRES, 1e-6, P).model(sde)
    raw = torch.arange(8)[:, None]
    result = S.bits_per_dim(
        model,
        raw,
        S.data.TruncatedNormal(),
        scaling=EIGHT,
        divergence=S.Exact(),
        method="dopri5",
        generator=generator(),
    )
    assert result.t_min == pytest.approx(sde.time_of(2 * math.log(3 * 8)).item())
    excess = result.nats - P.log() - math.log(math.erf(3 / math.sqrt(2)))
    assert excess.min() > -2e-3
    assert excess.mean() < 0.01
    at = sde.levels(torch.tensor([result.t_min], dtype=torch.float64))[0]
    x, log_weight = S.data.TruncatedNormal().draw(
        raw, EIGHT, at.alpha, at.sigma, spawn_generators(generator(), 8), torch.float64
    )
    torch.testing.assert_close(result.nats, model.log_prob(x, result.t_min) + log_weight, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_truncated_normal_is_tighter_than_uniform():
    """Check uniform noise: it puts points where bin centres have no density."""
    model = S.GaussianMixture(CENTRES, 1e-4, P).model(S.VPSDE())
    raw = torch.multinomial(P, 30, replacement=True, generator=generator())[:, None]
    settings = {"scaling": EIGHT, "divergence": S.Exact(), "method": "dopri5"}
    truncated, uniform = (
        S.bits_per_dim(model, raw, law, generator=generator(1), **settings).mean
        for law in (S.data.TruncatedNormal(), S.data.Uniform())
    )
    entropy = -P.log2()[raw[:, 0]].mean().item()
    assert entropy - 0.01 < truncated < entropy + 0.05
    assert uniform > entropy + 0.5


@pytest.mark.slow
def test_the_models_own_scaling_is_used():
    net = S.UNet((1, 4, 4), channels=8, multipliers=(1,), attention=())
    model = S.ScoreModel(net, S.VPSDE(), scaling=SCALING)
    images = torch.randint(0, K, (3, 1, 4, 4), generator=generator())
    own = S.bits_per_dim(model, images, generator=generator(), steps=24)
    given = S.bits_per_dim(model, images, scaling=SCALING, generator=generator(), steps=24)
    assert torch.equal(own.bits, given.bits)


def test_the_result_states_its_settings():
    """Check the rows for a file, and the one-line summary.

    It states N, dequantisation, solver, accuracy, calls, t_min and seed.
    """
    result = S.bits_per_dim(MODEL, IMAGES, S.data.Uniform(2), scaling=SCALING, steps=24, generator=generator(9))
    assert result.COLUMNS == ("index", "nats", "bits_per_dim", "stderr")
    rows = result.rows()
    assert [row[0] for row in rows] == list(range(11))
    assert rows[3][1:] == (result.nats[3].item(), result.bits[3].item(), result.stderr[3].item())
    assert (result.seed, result.accuracy, result.dequantization) == (9, {"steps": 24}, S.data.Uniform(2))
    for word in ("N = 11", "Uniform(samples=2)", result.method, "steps = 24", f"{result.nfe} calls", "seed 9"):
        assert word in str(result)
    adaptive = S.bits_per_dim(
        MODEL, IMAGES[:1], scaling=SCALING, method="dopri5", rtol=1e-3, atol=1e-4, generator=generator(9)
    )
    assert adaptive.accuracy == {"rtol": 1e-3, "atol": 1e-4}
    assert (adaptive.below.isfinite() & (adaptive.below != 0)).all()
    assert adaptive.prior_gap.abs().max() < 1e-3
    assert math.isnan(adaptive.mean_stderr)


def test_bad_input_is_refused():
    with pytest.raises(DTypeError, match="images"):
        S.bits_per_dim(MODEL, IMAGES.float(), scaling=SCALING)
    with pytest.raises(DTypeError, match="images"):
        S.bits_per_dim(MODEL, IMAGES.numpy(), scaling=SCALING)
    with pytest.raises(DataError, match=r"values 0\.\.17|17"):
        S.bits_per_dim(MODEL, IMAGES + 1, scaling=SCALING)
    with pytest.raises(ArgumentError, match="scaling"):
        S.bits_per_dim(MODEL, IMAGES)
    with pytest.raises(ArgumentError, match="scaling"):
        S.bits_per_dim(MODEL, IMAGES, scaling=S.data.Scaling(2.0, 1.0))
    with pytest.raises(ShapeError, match=r"`images` must be .*, got \(11, 1, 6\)"):
        S.bits_per_dim(MODEL, IMAGES.reshape(11, 1, 6), scaling=SCALING)
    with pytest.raises(ShapeError, match="images"):
        S.bits_per_dim(MODEL, IMAGES[:0], scaling=SCALING)
    with pytest.raises(ArgumentError, match="samples"):
        S.data.Uniform(0)
    with pytest.raises(ArgumentError, match=r"`end` must be .*, got 'heun'"):
        S.bits_per_dim(MODEL, IMAGES, S.data.TruncatedNormal(), scaling=SCALING, end="heun")
    with pytest.raises(ArgumentError, match="sigma"):
        S.bits_per_dim(MODEL, IMAGES, S.data.TruncatedNormal(), scaling=SCALING, t_min=0.0)


def test_num_values_that_do_not_fit_are_refused():
    """Refuse images 0..15 with 256 grey values, and 0..255 with 16.

    Dark images pass unchecked.
    """
    few, many = IMAGES.clamp(max=15), IMAGES * 15
    with pytest.raises(DataError, match=r"got values 0\.\.15 for 256 grey values"):
        S.bits_per_dim(MODEL, few, scaling=S.data.Scaling.for_integers(256))
    with pytest.raises(DataError, match=r"`images` must be integers 0\.\.15.*, got values 0\.\.240"):
        S.bits_per_dim(MODEL, many, scaling=S.data.Scaling.for_integers(16))
    dark = S.bits_per_dim(MODEL, few, scaling=S.data.Scaling.for_integers(256), check_num_values=False, steps=24)
    assert dark.bits.isfinite().all()
    single = S.bits_per_dim(MODEL, few[:1], scaling=S.data.Scaling.for_integers(256), steps=24)
    assert single.n == 1


@pytest.mark.slow
@pytest.mark.parametrize(("num_values", "reaches"), [(5, False), (256, True)])
def test_the_flow_begins_below_the_width_of_the_bins(num_values, reaches):
    """Check that the first level lies below the width of 8-bit bins.

    The flow is smooth in rho^2 there. Wide bins leave the first level as it is.
    """
    gm = S.GaussianMixture([[-0.6, 0.2], [0.5, -0.4]], [0.3, 0.4])
    x, found = gm.sample(20, torch.Generator().manual_seed(0)), {}
    for scaling in (None, S.data.Scaling.for_integers(num_values)):
        model = gm.model(S.VPSDE(beta_min=0.01))
        model.scaling = scaling
        found[scaling is None] = S.log_likelihood(model, x, S.Exact(), steps=100)
        torch.testing.assert_close(found[scaling is None].log_prob, gm.log_prob(x), rtol=0, atol=2e-3)
    if reaches:
        rho = math.exp(-0.5 * model.sde.log_snr(torch.tensor(found[False].t_min, dtype=torch.float64)))
        assert found[False].t_min < found[True].t_min
        assert rho == pytest.approx(math.exp(-0.8) * 2 / num_values / math.sqrt(12), rel=1e-3)
    else:
        assert found[False].t_min == found[True].t_min
