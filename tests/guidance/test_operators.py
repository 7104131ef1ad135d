"""Linear operators: adjoints, spectra, results by hand, and errors."""

import math
import pickle

import pytest
import torch

from scoresde.errors import ArgumentError, DTypeError, ShapeError, UnknownNameError
from scoresde.guidance import (
    Blur,
    Colorize,
    Downsample,
    Inpainting,
    LinearFunction,
    LinearOperator,
    Matrix,
    PartialFourier,
    Separable,
    gaussian_kernel,
    radial_mask,
)
from scoresde.guidance.image_operators import hartley
from scoresde.guidance.masks import mirrored
from scoresde.guidance.solvers import conjugate_gradient_steps, conjugate_gradients


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class UserOperator(LinearOperator):
    """A user's operator.

    It sums each second entry and twice the next.
    """

    def __init__(self):
        super().__init__((6,), (3,))

    def A(self, x):
        return x[:, ::2] + 2 * x[:, 1::2]

    def At(self, y):
        return torch.stack([y, 2 * y], 2).reshape(-1, 6)


SPECTRAL = {
    "inpainting": Inpainting(random(2, 5, 6) > 0),
    "inpainting-series": Inpainting(torch.tensor([1, 0, 1, 1, 0])),
    "inpainting-channels": Inpainting(random(5, 6) > 0, (3, 5, 6)),
    "colorize": Colorize((3, 4, 5)),
    "box": Downsample((2, 6, 9), 3),
    "bicubic": Downsample((2, 12, 8), 2, "bicubic"),
    "box-series": Downsample((12,), 4, dims=1),
    "blur": Blur((2, 7, 6), gaussian_kernel(0.8, radius=2)),
    "blur-lopsided": Blur((6, 5), random(3, 5, seed=1)),
    "blur-volume": Blur((4, 5, 6), gaussian_kernel(0.5, 3, radius=1)),
    "matrix": Matrix(random(3, 8)),
    "matrix-tall": Matrix(random(9, 6), (2, 3)),
    "separable": Separable([random(3, 5), random(2, 4, seed=1)], (2, 5, 4)),
    "fourier": PartialFourier(radial_mask((8, 9), 3), (2, 8, 9)),
    "fourier-series": PartialFourier(torch.tensor([1, 1, 0, 0, 1])),
}
OPERATORS = SPECTRAL | {
    "linear": LinearFunction(lambda x: x.cumsum(2)[..., ::2], (3, 4)),
    "user": UserOperator(),
}
EACH = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
EACH_SPECTRAL = pytest.mark.parametrize("operator", SPECTRAL.values(), ids=SPECTRAL)


@EACH
def test_the_adjoint_is_the_adjoint(operator):
    x, y = random(4, *operator.shape), random(4, *operator.y_shape, seed=1)
    left, right = (operator(x) * y).flatten(1).sum(1), (x * operator.At(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    A = operator.matrix()
    torch.testing.assert_close(x.flatten(1) @ A.T, operator(x).flatten(1), rtol=1e-12, atol=1e-12)


@EACH
def test_the_gram_system_is_solved_per_sample(operator):
    """Compare (c A A' + s^2 I)^{-1} r with a dense solve.

    c and s^2 are given per sample.
    """
    y = operator(random(3, *operator.shape))  # in the range of A, as every residual is
    c, s2 = torch.tensor([0.3, 1.0, 2.0]).double(), torch.tensor([0.5, 0.01, 1.0]).double()
    shaped = (3, *(1,) * (y.ndim - 1))
    u = operator.gram_solve(y, c.reshape(shaped), s2.reshape(shaped)).flatten(1)
    A = operator.matrix()
    for i in range(3):
        dense = c[i] * A @ A.T + s2[i] * torch.eye(len(A), dtype=torch.float64)
        torch.testing.assert_close(u[i], torch.linalg.solve(dense, y[i].flatten()), rtol=1e-8, atol=1e-8)


@EACH_SPECTRAL
def test_singular_values_and_pseudo_inverse(operator):
    A = operator.matrix()
    mine = operator.singular_values.flatten().sort(descending=True)[0]
    true = torch.linalg.svdvals(A)
    n = min(len(mine), len(true))
    torch.testing.assert_close(mine[:n], true[:n], rtol=1e-7, atol=1e-7)
    assert mine[n:].abs().max() < 1e-7 if len(mine) > n else True
    y = random(2, *operator.y_shape, seed=2)
    expected = y.flatten(1) @ torch.linalg.pinv(A, rtol=1e-5).T
    torch.testing.assert_close(operator.pinv(y).flatten(1), expected, rtol=1e-7, atol=1e-7)


def test_operators_follow_dtype_and_are_modules():
    for operator in OPERATORS.values():
        x = random(2, *operator.shape).float()
        assert operator(x).dtype == operator.At(operator(x)).dtype == torch.float32
        assert operator.gram_solve(operator(x), 1.0, 0.1).dtype == torch.float32
    assert {name for name, _ in SPECTRAL["matrix"].named_buffers()} >= {"entries"}


def test_operators_on_simple_images():
    """Compare with results worked out by hand."""
    x = torch.arange(16.0, dtype=torch.float64).reshape(1, 1, 4, 4)
    blocks = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]).double()
    torch.testing.assert_close(Downsample((1, 4, 4), 2)(x), blocks)
    flat = torch.full((1, 1, 8, 8), 3.0, dtype=torch.float64)
    torch.testing.assert_close(Downsample((1, 8, 8), 2, "bicubic")(flat), flat[..., ::2, ::2])
    torch.testing.assert_close(Blur((1, 8, 8), gaussian_kernel(1.0))(flat), flat)
    spot = torch.zeros(1, 5, 5, dtype=torch.float64)
    spot[0, 0, 4] = 1
    kernel = random(3, 3)
    blurred = Blur((5, 5), kernel)(spot)
    torch.testing.assert_close(blurred.roll((1, 2), (1, 2))[0, :3, 0:3], kernel, rtol=1e-12, atol=1e-12)
    x = random(1, 3, 2, 2)
    torch.testing.assert_close(Colorize((3, 2, 2))(x)[0, 0], x[0].mean(0))
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 16, 16)  # bicubic weights preserve straight lines
    lower = Downsample((16, 16), 2, "bicubic")(ramp)[0, 4, 2:-2]
    torch.testing.assert_close(lower, torch.arange(4.5, 12, 2, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_hartley_is_its_own_inverse_and_holds_fourier():
    x, axes = random(2, 5, 6), (-2, -1)
    torch.testing.assert_close(hartley(hartley(x, axes), axes), x)
    fourier, seen = torch.fft.fftn(x, dim=axes, norm="ortho"), hartley(x, axes)
    back = torch.stack([mirrored(s) for s in seen])
    torch.testing.assert_close(torch.complex((seen + back) / 2, (back - seen) / 2), fourier)


def test_unknown_entries_of_y_do_not_matter():
    operator = Inpainting(torch.tensor([True, False, True]))
    y, x = torch.tensor([[1.0, math.nan, 3.0]]), torch.tensor([[0.5, 7.0, 3.0]])
    assert operator.residual(y, x).tolist() == [[0.5, 0.0, 0.0]]


def test_conjugate_gradients_solve_each_sample():
    M = random(4, 5, 5)
    M = M @ M.mT + 0.1 * torch.eye(5).double()
    b = random(4, 5, seed=1)
    b[2] = 0
    for iterations in (5, 50):
        x = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", M, v), b, iterations)
        torch.testing.assert_close(x, torch.linalg.solve(M, b), rtol=1e-8, atol=1e-8)


def test_conjugate_gradients_carry_linear_images():
    """Check the linear images that the solver carries along.

    The images of the directions sum to the image of the solution, and the squares to u' b.
    """
    M, L, b = random(4, 5, 5), random(3, 5, seed=2), random(4, 5, seed=1)
    M = M @ M.mT + 0.1 * torch.eye(5).double()
    steps = [*conjugate_gradient_steps(lambda p: (torch.einsum("bij,bj->bi", M, p), p @ L.T), b, 20)]
    u = torch.linalg.solve(M, b)
    torch.testing.assert_close(sum(step.size * step.image for step in steps), u @ L.T, rtol=1e-7, atol=1e-7)
    fit = sum(step.size * step.square for step in steps)[:, 0]
    torch.testing.assert_close(fit, (u * b).sum(1), rtol=1e-7, atol=1e-7)


def test_observations_are_reproducible_and_have_the_stated_noise():
    operator = Matrix(random(3, 4))
    x = random(4000, 4)
    y = operator.observe(x, 0.2, torch.Generator().manual_seed(1))
    assert torch.equal(y, operator.observe(x, 0.2, torch.Generator().manual_seed(1)))
    std = (y - operator(x)).std().item()  # 12000 numbers, 4 standard errors: false alarm once in 16000
    assert abs(std - 0.2) < 4 * 0.2 / math.sqrt(2 * 12000)
    each = operator.observe(x[:2], torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(each[0], operator(x[:1])[0])


def test_radial_masks_are_even_and_grow():
    masks = [radial_mask((16, 12), lines) for lines in (1, 4, 60)]
    assert [int(m.sum()) for m in masks] == sorted(int(m.sum()) for m in masks)
    assert all(torch.equal(m, mirrored(m)) and m[0, 0] for m in masks)


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: Inpainting(torch.tensor([0.5, 1.0])), ArgumentError, "mask"),
        (lambda: Inpainting(torch.zeros(3)), ArgumentError, "mask"),
        (lambda: Inpainting([1, 0]), DTypeError, "mask"),
        (lambda: Inpainting(torch.tensor([1.0, math.nan])), ArgumentError, "mask"),
        (lambda: Inpainting(torch.ones(2, 3), (1, 4, 4)), ShapeError, "mask"),
        (lambda: PartialFourier(torch.tensor([1, 1, 0, 0])), ArgumentError, "mask"),
        (lambda: PartialFourier(torch.ones(4, 4), (3, 5, 4)), ShapeError, "mask"),
        (lambda: Matrix(torch.ones(3)), ShapeError, "matrix"),
        (lambda: Matrix(torch.ones(3, 4), (5,)), ShapeError, "matrix"),
        (lambda: Matrix(torch.tensor([[math.inf]])), ArgumentError, "matrix"),
        (lambda: Downsample((8, 8), 3), ArgumentError, "factor"),
        (lambda: Downsample((8, 8), 1), ArgumentError, "factor"),
        (lambda: Downsample((8, 8), 2, "lanczos"), UnknownNameError, "kernel"),
        (lambda: Downsample((8,), 2), ArgumentError, "dims"),
        (lambda: Blur((8, 8), torch.ones(2, 2)), ShapeError, "kernel"),
        (lambda: Blur((3, 3), torch.ones(5, 5)), ShapeError, "kernel"),
        (lambda: Separable([torch.ones(2, 3)], (4,)), ShapeError, "matrices"),
        (lambda: LinearFunction(lambda x: x**2, (3,)), ArgumentError, "A"),
        (lambda: Colorize((0, 3)), ShapeError, "shape"),
        (lambda: gaussian_kernel(0.0), ArgumentError, "std"),
        (lambda: radial_mask((4, 4), 0), ArgumentError, "lines"),
        (lambda: Matrix(torch.ones(2, 3))(torch.ones(4, 2)), ShapeError, "x"),
        (lambda: Matrix(torch.ones(2, 3))(torch.ones(3)), ShapeError, "x"),
        (lambda: Matrix(torch.ones(2, 3))(torch.ones(1, 3, dtype=torch.long)), DTypeError, "x"),
        (lambda: Matrix(torch.ones(2, 3)).pinv(torch.ones(1, 3)), ShapeError, "y"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, name):
    with pytest.raises(error, match=f"^`{name}` must be .*, got"):
        make()


@EACH
def test_operators_have_a_repr(operator):
    assert repr(operator) == f"{type(operator).__name__}({operator.shape} -> {operator.y_shape})"


@EACH_SPECTRAL
def test_operators_can_be_pickled(operator):
    x = random(2, *operator.shape)
    assert torch.equal(pickle.loads(pickle.dumps(operator))(x), operator(x))
