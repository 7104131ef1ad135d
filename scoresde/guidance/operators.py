"""Linear observations y = A x: operators, adjoints, spectra of A A'.

An operator maps x ``(B, *D)`` to y ``(B, *E)``, at any rank of D. A user's operator gives A and its adjoint, or A alone
(:class:`LinearFunction`). Then (c A A' + s2 I)^{-1} is applied by conjugate gradients. The operators of this package
also know the eigenvectors of A A', so that this inverse and the pseudo-inverse are exact and cost no more than A.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import wholes
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.guidance.solvers import conjugate_gradients
from scoresde.random import Generators, randn
from scoresde.sde.tensors import broadcast

PINV_CUTOFF = 1e-10  # eigenvalues of A A' below this fraction of the largest count as zero
MAX_ITERATIONS = 100  # of conjugate gradients


def check_shape(shape: Sequence[int], name: str = "shape") -> tuple[int, ...]:
    """Return D as a tuple of positive sizes.

    Raises:
        ShapeError: A size is not a positive integer.
    """
    try:
        found = wholes(name, shape)
    except ArgumentError as error:
        raise ShapeError(name, error.got, "a sequence of positive integers") from None
    if not found:
        raise ShapeError(name, found, "a sequence of at least one size")
    return found


def _check(x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DTypeError(name, getattr(x, "dtype", type(x).__name__), "a floating-point tensor")
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        raise ShapeError(name, tuple(x.shape), f"of shape (B, {', '.join(map(str, shape))})")
    return x


class LinearOperator(nn.Module, ABC):
    """An operator y = A x for x of shape D.

    Subclasses give :meth:`A` and :meth:`At`.

    Args:
        shape: D, the shape of one x.
        y_shape: E, the shape of one y.

    Raises:
        ShapeError: From :meth:`check_x`, :meth:`check_y` and what uses them: a batch is not ``(B, *D)`` or ``(B, *E)``.
    """

    def __init__(self, shape: Sequence[int], y_shape: Sequence[int]):
        super().__init__()
        self.shape, self.y_shape = check_shape(shape), check_shape(y_shape, "y_shape")

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """Return A x, ``(B, *E)`` for x ``(B, *D)``."""

    @abstractmethod
    def At(self, y: Tensor) -> Tensor:
        """Return A' y, ``(B, *D)`` for y ``(B, *E)``.

        A' is the adjoint: <A x, y> = <x, A' y>.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return A x after a check of x's shape."""
        return self.A(self.check_x(x))

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y - A x, ``(B, *E)``."""
        return y - self.A(x)

    def gram_solve(self, r: Tensor, c: float | Tensor, s2: float | Tensor) -> Tensor:
        """Return (c A A' + s2 I)^{-1} r, here by conjugate gradients.

        Args:
            r: Right-hand side, ``(B, *E)``.
            c, s2: Numbers, or tensors ``(B, 1, ..., 1)``.
        """
        iterations = min(math.prod(self.y_shape), MAX_ITERATIONS)
        return conjugate_gradients(lambda u: c * self.A(self.At(u)) + s2 * u, r, iterations)

    def matrix(self) -> Tensor:
        """Return A as a float64 matrix ``(m, n)`` on the CPU; for small problems."""
        n = math.prod(self.shape)
        eye = torch.eye(n, dtype=torch.float64).reshape(n, *self.shape)
        return self.A(eye).reshape(n, -1).T.contiguous()

    def observe(self, x: Tensor, noise: float | Tensor, generator: Generators = None) -> Tensor:
        """Draw y = A x + noise z with z ~ N(0, I), ``(B, *E)``.

        Args:
            x: Data, ``(B, *D)``.
            noise: Standard deviation, a number, ``()`` or ``(B,)``.
            generator: One generator, or one for each sample. None: torch's default.
        """
        y = self.A(self.check_x(x))
        scale = broadcast(noise, y, "noise") if isinstance(noise, Tensor) else noise
        return y + scale * randn(y.shape, generator, y.device, y.dtype)

    def check_x(self, x: Tensor, name: str = "x") -> Tensor:
        """Return ``x`` if it is a floating-point batch ``(B, *D)``."""
        return _check(x, name, self.shape)

    def check_y(self, y: Tensor, name: str = "y") -> Tensor:
        """Return ``y`` if it is a floating-point batch ``(B, *E)``."""
        return _check(y, name, self.y_shape)

    def extra_repr(self) -> str:
        return f"{self.shape} -> {self.y_shape}"


class SpectralOperator(LinearOperator):
    """An operator whose A A' is diagonal in a known orthonormal basis of y."""

    @property
    @abstractmethod
    def gram_values(self) -> Tensor:
        """The eigenvalues of A A', which broadcast against ``(*E)``."""

    def to_eigen(self, y: Tensor) -> Tensor:
        """Return y in the eigenbasis of A A'; here the basis is that of y."""
        return y

    def from_eigen(self, u: Tensor) -> Tensor:
        """Return the y with coordinates u in the eigenbasis of A A'."""
        return u

    @property
    def singular_values(self) -> Tensor:
        """The singular values of A, ``(*E)``."""
        return self.gram_values.clamp(min=0).sqrt().expand(self.y_shape)

    def gram_solve(self, r: Tensor, c: float | Tensor, s2: float | Tensor) -> Tensor:
        return self.from_eigen(self.to_eigen(r) / (c * self.gram_values.to(r) + s2))

    def pinv(self, y: Tensor) -> Tensor:
        """Return the pseudo-inverse A' (A A')^+ y, ``(B, *D)``.

        Of all x whose A x is nearest to y it is the one of least norm.
        """
        values = self.gram_values
        kept = values > PINV_CUTOFF * values.max()
        inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0).to(y)
        return self.At(self.from_eigen(self.to_eigen(self.check_y(y)) * inverse))


@checked
class Matrix(SpectralOperator):
    """A matrix ``(m, n)`` acting on x flattened, n = prod(D); y is ``(B, m)``.

    Args:
        matrix: Real finite numbers, ``(m, n)``.
        shape: D. None: ``(n,)``.

    Raises:
        ShapeError: ``matrix`` is not a matrix, or its n is not prod(D).
        ArgumentError: ``matrix`` holds complex numbers, NaN or infinity.
    """

    entries: Tensor
    squares: Tensor
    basis: Tensor

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None):
        matrix = torch.as_tensor(matrix)
        if matrix.ndim != 2 or not matrix.numel():
            raise ShapeError("matrix", tuple(matrix.shape), "of shape (m, n)")
        if matrix.is_complex() or not bool(matrix.isfinite().all()):
            raise ArgumentError("matrix", "complex numbers, NaN or infinity", "a tensor of finite real numbers")
        m, n = matrix.shape
        super().__init__((n,) if shape is None else shape, (m,))
        if math.prod(self.shape) != n:
            expected = f"of shape (m, {math.prod(self.shape)}) for x of shape {self.shape}"
            raise ShapeError("matrix", tuple(matrix.shape), expected)
        matrix = matrix.detach().double()
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        self.register_buffer("entries", matrix)
        self.register_buffer("squares", values.clamp(min=0))
        self.register_buffer("basis", vectors)

    def A(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) @ self.entries.to(x).T

    def At(self, y: Tensor) -> Tensor:
        return (y @ self.entries.to(y)).reshape(len(y), *self.shape)

    def to_eigen(self, y: Tensor) -> Tensor:
        return y @ self.basis.to(y)

    def from_eigen(self, u: Tensor) -> Tensor:
        return u @ self.basis.to(u).T

    @property
    def gram_values(self) -> Tensor:
        return self.squares


@checked
class Separable(SpectralOperator):
    """One matrix along each of the last axes of x.

    A = A_1 x ... x A_k is their Kronecker product.

    Args:
        matrices: ``(m_i, n_i)`` for the last k axes of x, in order.
        shape: D; its last k sizes are the n_i.

    Raises:
        ShapeError: A matrix does not fit its axis.
    """

    def __init__(self, matrices: Sequence[Tensor], shape: Sequence[int]):
        shape, k = check_shape(shape), len(matrices)
        if not 0 < k <= len(shape) or any(
            M.ndim != 2 or M.shape[1] != n for M, n in zip(matrices, shape[-k:], strict=True)
        ):
            got = [tuple(M.shape) for M in matrices]
            raise ShapeError("matrices", got, f"of shapes (m, n) with n the last sizes of {shape}")
        super().__init__(shape, (*shape[:-k], *(M.shape[0] for M in matrices)))
        self.k = k
        for i, M in enumerate(matrices):
            M = M.detach().double()
            values, vectors = torch.linalg.eigh(M @ M.T)
            for name, value in (("factor", M), ("squares", values.clamp(min=0)), ("basis", vectors)):
                self.register_buffer(f"{name}{i}", value)

    def _along(self, x: Tensor, name: str, *, transpose: bool) -> Tensor:
        """Multiply x by one of the stored matrices along each of the last k axes."""
        for i in range(self.k):
            M, axis = self.get_buffer(f"{name}{i}").to(x), x.ndim - self.k + i
            x = torch.movedim(torch.movedim(x, axis, -1) @ (M if transpose else M.T), -1, axis)
        return x

    def A(self, x: Tensor) -> Tensor:
        return self._along(x, "factor", transpose=False)

    def At(self, y: Tensor) -> Tensor:
        return self._along(y, "factor", transpose=True)

    def to_eigen(self, y: Tensor) -> Tensor:
        return self._along(y, "basis", transpose=True)

    def from_eigen(self, u: Tensor) -> Tensor:
        return self._along(u, "basis", transpose=False)

    @property
    def gram_values(self) -> Tensor:
        values = torch.ones((), dtype=torch.float64, device=self.get_buffer("squares0").device)
        for i in range(self.k):
            values = values[..., None] * self.get_buffer(f"squares{i}")
        return values


@checked
class LinearFunction(LinearOperator):
    """An operator from a user's linear function.

    Its adjoint is given, or found by autograd.

    Args:
        A: Linear function from x ``(B, *D)`` to ``(B, *E)``, in torch operations.
        shape: D.
        At: Adjoint, from ``(B, *E)`` to ``(B, *D)``. None: by autograd.

    Raises:
        ArgumentError: A is not linear, as tested once at random x.
    """

    def __init__(
        self, A: Callable[[Tensor], Tensor], shape: Sequence[int], At: Callable[[Tensor], Tensor] | None = None
    ):
        shape = check_shape(shape)
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        a, b, both = A(x[:1]), A(x[1:]), A(x[:1] - 2 * x[1:])
        if not torch.allclose(a - 2 * b, both, rtol=1e-6, atol=1e-6 * float(both.abs().max() + 1)):
            raise ArgumentError("A", "A(x - 2z) other than A(x) - 2 A(z)", "a linear function")
        super().__init__(shape, a.shape[1:])
        self.function, self.adjoint = A, At

    def A(self, x: Tensor) -> Tensor:
        return self.function(x)

    def At(self, y: Tensor) -> Tensor:
        if self.adjoint is not None:
            return self.adjoint(y)
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.shape, device=y.device, dtype=y.dtype, requires_grad=True)
            return torch.autograd.grad(self.function(x), x, y, create_graph=y.requires_grad)[0]
