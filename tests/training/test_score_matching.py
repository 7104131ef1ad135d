"""Explicit, implicit, denoising and sliced score matching.

All have the same expectation, gradient and minimum.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import scoresde as S
from scoresde.errors import ArgumentError, CheckpointError, DTypeError, ShapeError, UnknownNameError
from scoresde.random import DISTRIBUTIONS, ShardedGenerator
from scoresde.training.sliced import FORMS, projections
from tests.families import FAMILIES
from tests.generators import generator
from tests.marks import first_fast
from tests.reference.score_matching import ncsn_loss


class Linear(S.Model):
    """eps_theta = sum_k theta_k phi_k(x, t), with four smooth features.

    One feature is the exact answer for a mixture.
    """

    def __init__(self, exact, theta=(0.7, 0.2, -0.3, 0.2)):
        super().__init__()
        self.exact, self.sde = exact, exact.sde
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def estimate(self, x, level, cond=None):
        scaled = x / (level.alpha**2 + level.sigma**2) ** 0.5
        features = (
            self.exact.estimate(x, level).eps,
            level.sigma * torch.tanh(scaled.flip(1)),
            torch.sin(2 * scaled) * scaled.flip(1),
            torch.cos(scaled) * torch.exp(-scaled.square().mean(1, keepdim=True)),
        )
        eps = sum(theta * phi for theta, phi in zip(self.theta, features, strict=True))
        return S.Estimate((x - level.sigma * eps) / level.alpha, eps, level)


OBJECTIVES = {
    "denoising": S.DenoisingScoreMatching,
    "implicit": S.ImplicitScoreMatching,
    "implicit-uncontrolled": lambda **k: S.ImplicitScoreMatching(control=None, **k),
    "sliced": S.SlicedScoreMatching,
    "sliced-uncontrolled": lambda **k: S.SlicedScoreMatching(control=None, **k),
    "sliced-rademacher": lambda **k: S.SlicedScoreMatching(2, "rademacher", **k),
    "sliced-gaussian": lambda **k: S.SlicedScoreMatching(3, "gaussian", **k),
    "plain": lambda **k: S.SlicedScoreMatching(form="plain", **k),
    "plain-uncontrolled": lambda **k: S.SlicedScoreMatching(2, "rademacher", "plain", control=None, **k),
    "finite-difference": lambda **k: S.SlicedScoreMatching(form="finite-difference", **k),
    "finite-difference-uncontrolled": lambda **k: S.SlicedScoreMatching(
        2, "gaussian", "finite-difference", control=None, **k
    ),
}


def gradients(objective, model, x):
    """Return the gradient of each batch's mean loss, ``(batches, K)``.

    Batch i has the same x_t in every objective.
    """
    rows = []
    for i, batch in enumerate(x):
        loss = objective(model, batch, generator=generator(1000 + i)).mean()
        rows.append(torch.autograd.grad(loss, model.theta)[0])
    return torch.stack(rows)


def check_gradients(make, sde, mixture, batches, size=200, **settings):
    """Compare the mean gradient with that of explicit score matching.

    Both see the same x_t and agree within 3 standard errors for each of 4 parameters. The false-alarm rate of a case is
    about 4 * 0.003 = 1.2 % over seeds; the seeds are fixed.
    """
    model = Linear(mixture.model(sde))
    x = mixture.sample(batches * size, generator(1)).reshape(batches, size, *mixture.shape)
    truth = gradients(S.ExplicitScoreMatching(model.exact, **settings), model, x)
    difference = gradients(make(**settings), model, x) - truth
    mean, stderr = difference.mean(0), difference.std(0) / math.sqrt(batches)
    assert (mean.abs() < 3 * stderr).all(), mean / stderr
    assert (truth.mean(0).abs() > 10 * stderr).any()  # the gradient is not zero


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_S1_S2_S3_S4_every_gradient_is_explicit_score_matchings(name, mixture_2d):
    check_gradients(OBJECTIVES[name], S.VPSDE(), mixture_2d, 60)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoising", "sliced", "finite-difference"])
@pytest.mark.parametrize("weighting", ["likelihood", "min-snr", "edm"])
def test_S3_S4_under_every_weighting(weighting, objective, mixture_2d):
    check_gradients(OBJECTIVES[objective], S.VPSDE(), mixture_2d, 60, weighting=weighting, t_max=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["implicit-uncontrolled", "sliced", "sliced-uncontrolled", "plain-uncontrolled"])
def test_S2_S4_in_sixteen_dimensions(name, mixture_16d):
    """Check the scale E[v v'] = I of projections.

    Without it the loss is off by a factor of n.
    """
    check_gradients(OBJECTIVES[name], S.VESDE(0.01, 10.0), mixture_16d, 40, 100)


@first_fast("sde", FAMILIES)
def test_S2_S3_S4_one_expectation_for_every_process(sde, mixture_2d):
    """Compare the mean losses of a wrong model on the same x_t.

    They agree within 4.5 standard errors of 4000 samples (false alarm 7e-6 per comparison).
    """
    model = Linear(mixture_2d.model(FAMILIES[sde]))
    x0 = mixture_2d.sample(4000, generator(1))
    with torch.no_grad():
        losses = {name: make()(model, x0, generator=generator(2)) for name, make in OBJECTIVES.items()}
    for name, loss in losses.items():
        difference = loss - losses["denoising"]
        assert difference.mean().abs() <= 4.5 * difference.std() / math.sqrt(len(x0)), name


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoising", "sliced", "finite-difference"])
@pytest.mark.parametrize("sampling", ["levels", 0.3])
def test_S3_S4_at_discrete_levels_and_at_one(sampling, objective, mixture_2d):
    check_gradients(OBJECTIVES[objective], S.DDPM.cosine(20), mixture_2d, 60, time_sampling=sampling)


def test_S1_the_loss_of_a_shifted_score_is_the_shifts_square(mixture_2d):
    sde = S.VPSDE()
    exact = mixture_2d.model(sde)
    x0 = mixture_2d.sample(50, generator(1))
    assert S.ExplicitScoreMatching(exact)(exact, x0, generator=generator(2)).max() == 0

    class Shifted(S.Model):
        def __init__(self):
            super().__init__()
            self.sde = sde

        def estimate(self, x, level, cond=None):  # the score is off by (1, 1)
            return S.Estimate(x, exact.estimate(x, level).eps - level.sigma, level)

    loss = S.ExplicitScoreMatching(exact, weighting=lambda model, t: 1 / model.sde.sigma(t) ** 2)(Shifted(), x0)
    torch.testing.assert_close(loss, torch.full((50,), 2.0, dtype=torch.float64), rtol=1e-4, atol=0)


def test_S1_a_target_of_another_process_has_equal_log_snr(mixture_2d):
    model = Linear(mixture_2d.model(S.VPSDE()))
    x0 = mixture_2d.sample(50, generator(1))
    own = S.ExplicitScoreMatching(model.exact)(model, x0, generator=generator(2))
    other = S.ExplicitScoreMatching(mixture_2d.model(S.VESDE.linear(200.0)))(model, x0, generator=generator(2))
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-8)


def test_S1_a_teacher_gives_its_score_and_takes_no_gradient():
    """Train a student that equals its teacher under another process.

    The loss is zero, and gradients reach the student alone.
    """
    torch.manual_seed(0)
    net = S.ResidualMLP((2,), width=8, blocks=1)
    nn.init.normal_(net.head[-1].weight)
    teacher = S.ScoreModel(net, S.VESDE.linear(), "edm", time_input="log_snr")
    objective, x0 = S.ExplicitScoreMatching(teacher, t_max=0.9), torch.randn(20, 2, generator=generator(1))
    with torch.no_grad():
        assert objective(teacher.with_sde(S.VPSDE()), x0, generator=generator(2)).max() < 1e-6
    student = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE())
    objective(student, x0, generator=generator(2)).mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in student.parameters())


def test_N2_twice_the_papers_objective_is_the_simple_loss():
    """Evaluate each level once with the same noise.

    The loss is twice the paper's objective, to float32's rounding of the times.
    """
    sde = S.NCSN.geometric(0.1, 5.0, 6)
    means = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64)
    model = Linear(S.GaussianMixture(means, 0.3).model(sde))
    x = np.array([0.4, -0.2, 1.1])
    objective = S.DenoisingScoreMatching(time_sampling="levels")
    terms = objective.terms(model, torch.from_numpy(x).expand(6, 3), generator=generator(5))
    order = terms.t.argsort()
    g = generator(5)
    torch.rand(1, generator=g)
    noises = torch.randn(6, 3, generator=g, dtype=torch.float64)[order].numpy()

    def score(x, sigma):
        t = sde.times[int(np.argmin(np.abs(sde.sigmas.numpy() - sigma)))].item()
        with torch.no_grad():
            return model(torch.from_numpy(x)[None], t).score[0].numpy()

    literal = ncsn_loss(score, x, sde.sigmas.numpy(), noises)
    assert terms.loss.mean().item() == pytest.approx(2 * literal, rel=1e-5)


def test_N2_the_literal_loss_of_a_known_score():
    """Check the reference itself: s = 0 gives |z|^2 / 2 at every level."""
    noises = np.array([[1.0, 2.0], [0.5, 0.5]])
    assert ncsn_loss(lambda x, sigma: 0 * x, np.zeros(2), [1.0, 0.1], noises) == pytest.approx((2.5 + 0.25) / 2)


# ---- projections and differences -------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_S4_projections_have_unit_second_moment(distribution):
    """Check E[v v'] = I, each entry within 5 standard errors.

    The false-alarm rate is 2e-5. v is +-1, or |v|^2 = n on the sphere.
    """
    v = projections(distribution, 4, torch.zeros(10_000, 5, dtype=torch.float64), generator(1))
    assert v.shape == (4, 10_000, 5)
    outer = torch.einsum("pbi,pbj->pbij", v, v).flatten(0, 1)
    stderr = (outer.std(0) / math.sqrt(len(outer))).clamp(min=1e-12)
    assert ((outer.mean(0) - torch.eye(5)).abs() <= 5 * stderr).all()
    if distribution == "rademacher":
        assert (v.abs() == 1).all()
    if distribution == "sphere":
        torch.testing.assert_close(v.square().sum(-1), torch.full((4, 10_000), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("t", [0.002, 0.1, 0.5, 1.0])
def test_S4_finite_differences_at_every_noise_level(t, dtype, mixture_2d):
    """Compare finite differences with the derivative, same projections.

    Truncation (h^2) and rounding (1/h) stay below 0.3 % of the loss, of order n = 2.
    """
    model = Linear(mixture_2d.model(S.VPSDE()))
    model.theta.data = model.theta.data.to(dtype)
    x0 = mixture_2d.sample(300, generator(1)).to(dtype)
    exact, finite = (
        S.SlicedScoreMatching(2, form=form, time_sampling=t)(model, x0, generator=generator(3))
        for form in ("reduced", "finite-difference")
    )
    assert (exact - finite).abs().max() < 0.006


def test_S4_the_difference_is_of_second_order(mixture_2d):
    model = Linear(mixture_2d.model(S.VPSDE()))
    x0 = mixture_2d.sample(300, generator(1))

    def loss(**settings):
        return S.SlicedScoreMatching(time_sampling=0.3, **settings)(model, x0, generator=generator(3))

    errors = [(loss(form="finite-difference", step=h) - loss()).abs().mean().item() for h in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_S4_more_projections_less_variance(mixture_16d):
    """Compare sixteen projections with one.

    The variance due to the projections falls to 1/16, here within 20 %.
    """
    model = Linear(mixture_16d.model(S.VPSDE()))
    x0 = mixture_16d.sample(2000, generator(1))
    with torch.no_grad():
        exact = S.ImplicitScoreMatching(time_sampling=0.4)(model, x0, generator=generator(2))
        few, many = (
            (S.SlicedScoreMatching(m, time_sampling=0.4)(model, x0, generator=generator(2)) - exact).var()
            for m in (1, 16)
        )
    assert many / few == pytest.approx(1 / 16, rel=0.2)


# ---- every network, any rank -----------------------------------------------------------------------------------------

FORMS_AND_EXACT = [S.SlicedScoreMatching(2, form=form) for form in FORMS] + [S.ImplicitScoreMatching()]


def networks():
    yield S.ResidualMLP((3,), width=8, blocks=2), (3,)
    for fused in (False, True):
        yield (
            S.UNet(
                (2, 4, 4), channels=4, num_groups=2, heads=2, attention=(0, -1), fused_attention=fused, zero_init=False
            ),
            (2, 4, 4),
        )
    yield S.UNet((1, 5), channels=4, num_groups=2, multipliers=(1,), heads=2, zero_init=False), (1, 5)


@first_fast("objective", FORMS_AND_EXACT, ids=repr)
@first_fast("index", range(4))
def test_second_derivatives_of_every_network(index, objective, float64):
    """Compare the gradient with a central difference of the loss.

    Along a random direction, to 1e-6 of its size.
    """
    torch.manual_seed(0)
    net, shape = list(networks())[index]
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    model = S.ScoreModel(net, S.VPSDE(), "velocity")
    x0 = torch.randn(3, *shape, generator=generator(1))

    def loss():
        return objective(model, x0, generator=generator(2)).mean()

    parameters = list(model.parameters())
    directions = [torch.randn(p.shape, generator=generator(3)) for p in parameters]
    grads = torch.autograd.grad(loss(), parameters)
    along = sum((a * b).sum() for a, b in zip(grads, directions, strict=True))
    values = []
    for h in (1e-5, -2e-5):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += h * d
        values.append(loss().item())
    assert along.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("objective", FORMS_AND_EXACT, ids=repr)
def test_fused_attention_is_replaced_inside_objectives(objective):
    """Check fused attention, which has no second derivative, in an objective.

    Outside an objective it raises; inside, kernels that differentiate twice compute the same function.
    """

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, time_input):
            h = (self.scale * x)[:, None, :, None]
            return nn.functional.scaled_dot_product_attention(h, h, h)[:, 0, :, 0]

    net, x0 = Attention(), torch.randn(3, 4, generator=generator(1), requires_grad=True)
    (first,) = torch.autograd.grad(net(x0, None).sum(), x0, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative"):
        torch.autograd.grad(first.sum(), net.scale)
    loss = objective(S.ScoreModel(net, S.VPSDE()), x0.detach(), generator=generator(2)).mean()
    assert torch.autograd.grad(loss, net.scale)[0].isfinite()


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 5, 3), (4, 2, 2, 2), (4, 1, 2, 2, 1)])
@pytest.mark.parametrize("form", [*FORMS, "implicit"])
def test_any_rank(form, shape):
    """Compare the loss of eps_theta = x with its closed form.

    |x|^2 - 2 sigma n + n; the plain form has (v'x)^2 in place of |x|^2. Agreement is to the rounding of the time, which
    is drawn in float32.
    """

    class Identity(S.Model):
        sde = S.VPSDE()

        def estimate(self, x, level, cond=None):
            return S.Estimate(x, 1.0 * x, level)

    settings = {"control": None, "time_sampling": 0.3}
    x0 = torch.randn(shape, generator=generator(), dtype=torch.float64)
    implicit = form == "implicit"
    objective = S.ImplicitScoreMatching(**settings) if implicit else S.SlicedScoreMatching(2, form=form, **settings)
    loss = objective(Identity(), x0, generator=generator(1))
    g = generator(1)
    x_t, _ = S.VPSDE().perturb(x0, 0.3, g)
    x_t = x_t.reshape(4, -1)
    square, n = x_t.square().sum(1), x_t.shape[1]
    if form == "plain":
        square = (projections("sphere", 2, x_t, g) * x_t).sum(2).square().mean(0)
    torch.testing.assert_close(loss, square - 2 * S.VPSDE().sigma(0.3) * n + n, rtol=1e-5, atol=1e-5)


ALL = [S.DenoisingScoreMatching(), *FORMS_AND_EXACT]


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_a_samples_loss_does_not_depend_on_its_batch(objective):
    """Evaluate samples with a generator each, alone and in a batch.

    Labels stay with their samples.
    """
    torch.manual_seed(0)
    net = S.ResidualMLP((2,), width=8, blocks=1, classes=3)
    nn.init.normal_(net.head[-1].weight)
    model = S.ScoreModel(net, S.VPSDE())
    x0, y = torch.randn(5, 2, generator=generator(1)), torch.tensor([0, 1, 2, 1, 0])

    def loss(rows):
        return objective(model, x0[rows], {"y": y[rows]}, [generator(100 + i) for i in rows])

    everyone = loss(list(range(5)))
    torch.testing.assert_close(loss([3, 1]), everyone[[3, 1]], rtol=1e-5, atol=1e-5)
    assert (objective(model, x0, {"y": (y + 1) % 3}, [generator(100 + i) for i in range(5)]) != everyone).all()


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_shares_of_a_generator_draw_the_whole_batchs_numbers(objective):
    model, x0 = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), "edm"), torch.randn(6, 2)
    whole = objective(model, x0, generator=generator(2))
    for index in range(2):
        share = ShardedGenerator().of(index, 2, 6)
        share.manual_seed(2)
        torch.testing.assert_close(objective(model, x0[index::2], generator=share), whole[index::2])


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_without_grad_the_loss_is_the_same_number(objective):
    torch.manual_seed(0)
    model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), S.VPSDE(), "edm")
    x0 = torch.randn(5, 2, generator=generator(1))
    with_grad = objective(model, x0, generator=generator(2))
    with torch.no_grad():
        without = objective(model, x0, generator=generator(2))
    assert with_grad.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_grad.detach(), without)


# ---- it learns -------------------------------------------------------------------------------------------------------


def fisher_divergence(objective, mixture, sde, steps, seed=0):
    """Train a small network and return its divergence from the truth.

    Every call has the same start and data; the divergence is taken over all noise levels.
    """
    torch.manual_seed(seed)
    net = S.ResidualMLP((2,), width=48, blocks=2)
    model = S.ScoreModel(net, sde, "edm", time_input="log_snr", data_std=mixture.moments.std)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 40) * (1 + math.cos(math.pi * i / steps)) / 2
    )
    data, g = mixture.sample(20_000, generator(1)).float(), generator(2)
    for _ in range(steps):
        x0 = data[torch.randint(len(data), (256,), generator=g)]
        optimizer.zero_grad()
        (objective(model, x0, generator=g).mean() / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x0 = mixture.sample(10_000, generator(3)).float()
        return S.ExplicitScoreMatching(mixture.model(sde))(model, x0, generator=generator(4)).mean().item()


@pytest.mark.slow
def test_S4_sliced_score_matching_learns_as_well_as_denoising():
    """Train sliced and denoising score matching for equal steps in the plane.

    The Fisher divergence is within 1.5 times denoising's; before training it is 20 times larger.
    """
    mixture = S.GaussianMixture(torch.tensor([[0.0, 1.0], [1.0, -0.5], [-1.0, -0.5]]), torch.tensor([0.05, 0.1, 0.02]))
    objectives = {
        "denoising": S.DenoisingScoreMatching(),
        "sliced": S.SlicedScoreMatching(),
        "finite-difference": S.SlicedScoreMatching(form="finite-difference"),
    }
    reached = {name: fisher_divergence(objective, mixture, S.VPSDE(), 120) for name, objective in objectives.items()}
    assert reached["sliced"] < 1.5 * reached["denoising"], reached
    assert reached["finite-difference"] < 1.5 * reached["denoising"], reached


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused(mixture_2d):
    with pytest.raises(UnknownNameError, match="did you mean 'rademacher'"):
        S.SlicedScoreMatching(distribution="rademachr")
    with pytest.raises(UnknownNameError, match="form"):
        S.SlicedScoreMatching(form="exact")
    with pytest.raises(ArgumentError, match=r"`projections` must be .*, got 0"):
        S.SlicedScoreMatching(0)
    with pytest.raises(ArgumentError, match="step"):
        S.SlicedScoreMatching(step=0.0)
    with pytest.raises(ArgumentError, match="control"):
        S.ImplicitScoreMatching(control=0.0)
    with pytest.raises(ArgumentError, match=r"`target` must be .*, got GaussianMixture"):
        S.ExplicitScoreMatching(mixture_2d)
    model = mixture_2d.model(S.VPSDE())
    with pytest.raises(DTypeError, match=r"`x0` must be .*, got torch\.int64"):
        S.SlicedScoreMatching()(model, torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match="x0"):
        S.SlicedScoreMatching()(model, torch.zeros(0, 2))
    with pytest.raises(CheckpointError, match="nothing here learns"):
        S.SlicedScoreMatching().load_state_dict({"squares": torch.zeros(1)})


def test_finite_differences_refuse_dropout_that_is_active():
    model = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1, dropout=0.1), S.VPSDE())
    objective = S.SlicedScoreMatching(form="finite-difference")
    with pytest.raises(ArgumentError, match="without active dropout"):
        objective(model, torch.zeros(2, 2))
    assert objective(model.eval(), torch.zeros(2, 2)).shape == (2,)
