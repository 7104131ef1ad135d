"""Guidance by observations with every operator.

Compared with dense linear algebra.
"""

import pytest
import torch

from scoresde import VPSDE, DPMSolver, GaussianMixture, sample
from scoresde.guidance import (
    Blur,
    Colorize,
    Downsample,
    Inpainting,
    LinearFunction,
    Matrix,
    PartialFourier,
    Separable,
    dps,
    gaussian_data,
    gaussian_kernel,
    moment_matching,
    pigdm,
    replacement,
)
from scoresde.sampling import Particles
from tests.marks import some_fast

SHAPE, N, SDE, T = (3, 4, 4), 48, VPSDE(), 0.4
LEVEL = SDE.level(T, torch.zeros(1, N, dtype=torch.float64))
RHO = LEVEL.sigma / LEVEL.alpha
ONE = torch.eye(N, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPERATORS = {
    "matrix": Matrix(random(7, N, seed=3) / 7, SHAPE),
    "separable": Separable([random(3, 4, seed=4) / 2], SHAPE),
    "inpainting": Inpainting(torch.arange(N).reshape(SHAPE) % 3 > 0),
    "colorize": Colorize(SHAPE),
    "downsample": Downsample(SHAPE, 2),
    "blur": Blur(SHAPE, gaussian_kernel(1.0, radius=1)),
    "fourier": PartialFourier(torch.tensor([[1, 1, 0, 1]]).expand(4, 4), SHAPE),
    "function-to-lower-rank": LinearFunction(lambda x: x.mean((2, 3)), SHAPE),
    "function-to-higher-rank": LinearFunction(lambda x: x.reshape(-1, 3, 2, 2, 4)[..., :2], SHAPE),
}
METHODS = {  # with the covariance that each assumes for p(x_0 | x_t), given the exact one
    "dps": (dps, lambda C: 0 * ONE),
    "pigdm": (lambda *args: pigdm(*args, variance=0.7), lambda C: 0.7 * RHO**2 / (0.7 + RHO**2) * ONE),
    "gaussian_data": (gaussian_data, lambda C: C),
    "moment_matching": (lambda *args: moment_matching(*args, iterations=N), lambda C: C),
    "dps-scaled": (lambda *args: dps(*args, scale=0.5), None),
    "replacement": (replacement, None),
}
NOISE, NOISES = torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
FORMS = {  # of y ``(3, *E)``: what the method takes, and what the condition holds
    "numbers": lambda y: ((y[0], 0.3), {}),
    "y-per-sample": lambda y: ((y, NOISE), {}),
    "noise-per-sample": lambda y: ((y[0], NOISES), {}),
    "both-per-sample": lambda y: ((y, NOISES), {}),
    "both-in-condition": lambda y: ((None, None), {"observation": y, "observation_noise": NOISES}),
    "y-in-condition": lambda y: ((None, 0.3), {"observation": y}),
    "noise-in-condition": lambda y: ((y[0], None), {"observation_noise": NOISES}),
}
EACH_METHOD = pytest.mark.parametrize("method", METHODS)
EACH_OPERATOR = some_fast("operator", OPERATORS, fast=["matrix"])


@pytest.fixture(scope="module")
def gaussian():
    """Return a Gaussian over images and two covariances.

    The covariances are its own and that of p(x_0 | x_t).
    """
    factor = random(N, N, seed=7)
    covariance = factor @ factor.T / N + 0.05 * ONE
    exact = torch.linalg.inv(torch.linalg.inv(covariance) + ONE / RHO**2)
    return GaussianMixture(random(1, *SHAPE, seed=8), covariance[None]).model(SDE), exact


def moved(method, A, C, r, noise):
    """Return what a method adds to x0 ``(n,)`` for Gaussian data.

    C is the covariance of p(x_0 | x_t).
    """
    one = torch.eye(len(A), dtype=torch.float64)
    if method == "replacement":
        return A.T @ torch.linalg.solve(A @ A.T + (noise / RHO) ** 2 * one, r)
    if method == "dps-scaled":
        u = 0.5 * 1000 / SDE.squared_diffusion(torch.tensor(T, dtype=torch.float64)) * r / r.norm()
    else:
        u = torch.linalg.solve(A @ METHODS[method][1](C) @ A.T + noise**2 * one, r)
    return C @ A.T @ u  # (sigma^2/alpha) J' A' u, as (sigma^2/alpha) J = C


@EACH_METHOD
@EACH_OPERATOR
def test_E10_every_operator_and_form_of_noise(method, operator, gaussian):
    plain, C = gaussian
    y, x = random(3, *operator.y_shape, seed=1), random(3, *SHAPE, seed=2)
    x0 = plain(x, T).x0
    A = operator.matrix()
    seen = A.abs().sum(1) > 1e-12  # y at the other entries does not matter
    for name, form in FORMS.items():
        (own_y, own_noise), cond = form(y)
        model = METHODS[method][0](plain, operator, own_y, own_noise)
        ys = cond.get("observation", own_y).expand_as(y)
        noises = torch.as_tensor(cond.get("observation_noise", own_noise), dtype=torch.float64).expand(3)
        residuals = ys.reshape(3, -1) - x0.reshape(3, -1) @ A.T
        expected = [moved(method, A[seen], C, r[seen], noise) for r, noise in zip(residuals, noises, strict=True)]
        for t in (T, torch.full((3,), T, dtype=torch.float64)):
            difference = (model(x, t, cond or None).x0 - x0).reshape(3, -1)
            torch.testing.assert_close(
                difference, torch.stack(expected), rtol=1e-6, atol=1e-6, msg=f"{name} at t = {t}"
            )


@EACH_METHOD
@EACH_OPERATOR
@pytest.mark.filterwarnings("ignore:.*out of the scale:scoresde.errors.SamplingWarning")  # dps, with 3 steps
def test_samples_of_every_operator(method, operator, gaussian):
    model = METHODS[method][0](gaussian[0], operator)
    cond = {"observation": random(3, *operator.y_shape, seed=1), "observation_noise": NOISES}
    for sampler in (DPMSolver(),) if method in ("replacement", "dps-scaled") else (DPMSolver(), Particles(2)):
        x = sample(model, (3, *SHAPE), sampler, 3, cond=cond, generator=torch.Generator().manual_seed(0))
        assert x.shape == (3, *SHAPE)
        assert x.isfinite().all()
