"""Linear observations y = A x: what is seen of x, its adjoint, and the spectrum of A A'.

An operator maps x ``(B, *D)`` to y ``(B, *E)``, at any rank of D. A user's own has to bring A and its adjoint (or A
alone: :class:`LinearFunction`); those of this module also know the eigenvectors of A A', so that (c A A' + s^2 I)^{-1}
and the pseudo-inverse are exact and cost no more than A. Others use conjugate gradients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde.errors import ArgumentError, DataError, DTypeError, ShapeError, UnknownNameError
from scoresde.random import randn
from scoresde.sde.tensors import broadcast

PINV_CUTOFF = 1e-10  # eigenvalues of A A' below this fraction of the largest count as zero


def per_sample_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample ``(B, *E)``, as ``(B, 1, ..., 1)``."""
    return (a * b).reshape(len(a), -1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x with ``apply(x)`` = b ``(B, *E)`` for a symmetric positive operator, sample by sample.

    A fixed number of iterations: nothing waits for the device. A sample that has converged stays where it is. (Hestenes
    & Stiefel 1952.)
    """
    x, r = torch.zeros_like(b), b
    p, square = r, per_sample_dot(b, b)
    tiny = square * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        q = apply(p)
        curvature = per_sample_dot(p, q)
        going = (square > tiny) & (curvature > 0)
        step = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
        x, r = x + step * p, r - step * q
        before, square = square, per_sample_dot(r, r)
        p = r + torch.where(going, square / torch.where(going, before, 1.0), 0.0) * p
    return x


class LinearOperator(nn.Module, ABC):
    """y = A x for x of shape D; subclasses give :meth:`A` and :meth:`At`.

    Args:
        shape: D, the shape of one x.
        y_shape: E, the shape of one y.

    Raises:
        ShapeError: from :meth:`check_x`, :meth:`check_y` and whatever uses them: a batch that is not ``(B, *D)``,
            ``(B, *E)``.
    """

    def __init__(self, shape, y_shape):
        super().__init__()
        self.shape, self.y_shape = check_shape(shape), check_shape(y_shape, "y_shape")

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """A x, ``(B, *E)`` for x ``(B, *D)``."""

    @abstractmethod
    def At(self, y: Tensor) -> Tensor:
        """The adjoint A' y, ``(B, *D)`` for y ``(B, *E)``: <A x, y> = <x, A' y>."""

    def forward(self, x: Tensor) -> Tensor:
        """A x with x's shape checked."""
        return self.A(self.check_x(x))

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        """y - A x, ``(B, *E)``."""
        return y - self.A(x)

    def gram_solve(self, r: Tensor, c, s2) -> Tensor:
        """(c A A' + s2 I)^{-1} r for r ``(B, *E)``; c and s2 are numbers, or tensors ``(B, 1, ..., 1)``.

        Here by conjugate gradients, with min(dim y, 100) iterations.
        """
        return conjugate_gradients(lambda u: c * self.A(self.At(u)) + s2 * u, r, min(math.prod(self.y_shape), 100))

    def matrix(self) -> Tensor:
        """A as a float64 matrix ``(m, n)`` on the CPU; for small problems."""
        n = math.prod(self.shape)
        eye = torch.eye(n, dtype=torch.float64).reshape(n, *self.shape)
        return self.A(eye).reshape(n, -1).T.contiguous()

    def observe(self, x: Tensor, noise: float | Tensor, generator=None) -> Tensor:
        """A draw of y = A x + noise z, z ~ N(0, I); ``generator`` as everywhere, one or one a sample."""
        y = self(x)
        scale = broadcast(noise, y, "noise") if isinstance(noise, Tensor) else noise
        return y + scale * randn(y.shape, generator, y.device, y.dtype)

    def check_x(self, x: Tensor, name: str = "x") -> Tensor:
        """``x`` itself if it is a floating-point batch ``(B, *D)``."""
        return _check(x, name, self.shape)

    def check_y(self, y: Tensor, name: str = "y") -> Tensor:
        """``y`` itself if it is a floating-point batch ``(B, *E)``."""
        return _check(y, name, self.y_shape)

    def extra_repr(self):
        return f"{self.shape} -> {self.y_shape}"


class SpectralOperator(LinearOperator):
    """An operator whose A A' is diagonal in a known orthonormal basis of y."""

    @property
    @abstractmethod
    def gram_values(self) -> Tensor:
        """The eigenvalues of A A', which broadcast against y's coordinates ``(*E)``."""

    def into(self, y: Tensor) -> Tensor:
        """y in the eigenbasis; the same coordinates by default."""
        return y

    def out(self, u: Tensor) -> Tensor:
        """Back from the eigenbasis."""
        return u

    @property
    def singular_values(self) -> Tensor:
        """The singular values of A, ``(*E)``."""
        return self.gram_values.clamp(min=0).sqrt().expand(self.y_shape)

    def gram_solve(self, r, c, s2):
        return self.out(self.into(r) / (c * self.gram_values.to(r) + s2))

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverse A' (A A')^+ y ``(B, *D)``: the smallest x with A x nearest to y."""
        values = self.gram_values
        kept = values > PINV_CUTOFF * values.max()
        inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0).to(y)
        return self.At(self.out(self.into(self.check_y(y)) * inverse))


class Inpainting(SpectralOperator):
    """The known entries of x: A x = mask x, with y an image of x's shape whose unknown entries count for nothing.

    Args:
        mask: which entries are known, ``(*D)``; bool, or 0 and 1. With ``shape`` it may be any mask that broadcasts
            to D: one ``(H, W)`` for all channels.
        shape: D; default the mask's.

    Raises:
        ArgumentError: a mask of other values than 0 and 1, or without a known entry.
        ShapeError: a mask that does not broadcast to D.
    """

    def __init__(self, mask: Tensor, shape=None):
        mask = check_mask(mask)
        shape = mask.shape if shape is None else check_shape(shape)
        super().__init__(shape, shape)
        self.register_buffer("mask", expand_mask(mask, self.shape))

    def A(self, x):
        return torch.where(self.mask.to(x.device), x, 0.0)

    At = A

    def residual(self, y, x):
        return torch.where(self.mask.to(x.device), y - x, 0.0)  # whatever stands in y's unknown entries, NaN too

    def gram_solve(self, r, c, s2):  # elsewhere r is zero, and c 0 + s2 may be
        return torch.where(self.mask.to(r.device), r / (c + s2), 0.0)

    @property
    def gram_values(self):
        return self.mask.double()


class Colorize(SpectralOperator):
    """The grey image of a colour one: y ``(B, 1, *space)`` is the mean of x ``(B, C, *space)`` over its channels."""

    def __init__(self, shape):
        shape = check_shape(shape)
        super().__init__(shape, (1, *shape[1:]))

    def A(self, x):
        return x.mean(1, keepdim=True)

    def At(self, y):
        return (y / self.shape[0]).expand(len(y), *self.shape)

    @property
    def gram_values(self):
        return torch.tensor(1 / self.shape[0], dtype=torch.float64)


class Matrix(SpectralOperator):
    """A x for a matrix ``(m, n)`` acting on x flattened, n = prod(D); y is ``(B, m)``. Random projections, say.

    Args:
        matrix: real, finite.
        shape: D; default ``(n,)``.

    Raises:
        ShapeError: not a matrix, or one whose n is not prod(D).
        ArgumentError: NaN or infinity.
    """

    def __init__(self, matrix: Tensor, shape=None):
        matrix = torch.as_tensor(matrix)
        if matrix.ndim != 2 or not matrix.numel():
            raise ShapeError("matrix", tuple(matrix.shape), "(m, n)")
        if matrix.is_complex() or not bool(matrix.isfinite().all()):
            raise ArgumentError("matrix", "complex numbers, NaN or infinity", "finite real numbers")
        m, n = matrix.shape
        super().__init__((n,) if shape is None else shape, (m,))
        if math.prod(self.shape) != n:
            raise ShapeError("matrix", tuple(matrix.shape), f"(m, {math.prod(self.shape)}) for x of shape {self.shape}")
        matrix = matrix.detach().double()
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        self.register_buffer("entries", matrix)
        self.register_buffer("squares", values.clamp(min=0))
        self.register_buffer("basis", vectors)

    def A(self, x):
        return x.reshape(len(x), -1) @ self.entries.to(x).T

    def At(self, y):
        return (y @ self.entries.to(y)).reshape(len(y), *self.shape)

    def into(self, y):
        return y @ self.basis.to(y)

    def out(self, u):
        return u @ self.basis.to(u).T

    @property
    def gram_values(self):
        return self.squares


class Separable(SpectralOperator):
    """One matrix along each of the last axes of x: A = A_1 x ... x A_k (their Kronecker product), other axes untouched.

    Args:
        matrices: ``(m_i, n_i)`` for the last k axes of x, in order.
        shape: D, its last k sizes the n_i.
    """

    def __init__(self, matrices, shape):
        shape, k = check_shape(shape), len(matrices)
        if k > len(shape) or any(M.ndim != 2 or M.shape[1] != n for M, n in zip(matrices, shape[-k:], strict=True)):
            got = [tuple(M.shape) for M in matrices]
            raise ShapeError("matrices", got, f"(m, n) with n the last sizes of {shape}")
        super().__init__(shape, (*shape[:-k], *(M.shape[0] for M in matrices)))
        self.k = k
        for i, M in enumerate(matrices):
            M = M.detach().double()
            values, vectors = torch.linalg.eigh(M @ M.T)
            for name, value in (("factor", M), ("squares", values.clamp(min=0)), ("basis", vectors)):
                self.register_buffer(f"{name}{i}", value)

    def _along(self, x: Tensor, name: str, transpose: bool) -> Tensor:
        for i in range(self.k):
            M, axis = getattr(self, f"{name}{i}").to(x), x.ndim - self.k + i
            x = torch.movedim(torch.movedim(x, axis, -1) @ (M if transpose else M.T), -1, axis)
        return x

    def A(self, x):
        return self._along(x, "factor", False)

    def At(self, y):
        return self._along(y, "factor", True)

    def into(self, y):
        return self._along(y, "basis", True)

    def out(self, u):
        return self._along(u, "basis", False)

    @property
    def gram_values(self):
        values = torch.ones((), dtype=torch.float64, device=self.squares0.device)
        for i in range(self.k):
            values = values[..., None] * getattr(self, f"squares{i}")
        return values


def box(u: Tensor) -> Tensor:
    """The kernel of box averaging: 1 for abs(u) < 1/2."""
    return (u.abs() < 0.5).to(u)


def bicubic(u: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2 (Keys 1981), zero beyond 2."""
    u = u.abs()
    near, far = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return torch.where(u <= 1, near, torch.where(u < 2, far, 0.0))


KERNELS = {"box": box, "bicubic": bicubic}


class Downsample(Separable):
    """x at ``1/factor`` of its resolution along its last ``dims`` axes: super-resolution is its inverse problem.

    Each pixel of y is the mean of x under a kernel stretched by ``factor`` about the pixel's centre, its weights
    normalised to sum to one at the borders too.

    Args:
        shape: D.
        factor: a whole number of at least 2 that divides the last sizes.
        kernel: ``"box"`` (the mean of a block) or ``"bicubic"`` (Keys' kernel, antialiased).
        dims: how many of the last axes; 2 for images.
    """

    def __init__(self, shape, factor: int, kernel: str = "box", dims: int = 2):
        shape = check_shape(shape)
        if kernel not in KERNELS:
            raise UnknownNameError("kernel", kernel, KERNELS)
        if not isinstance(dims, int) or not 1 <= dims <= len(shape):
            raise ArgumentError("dims", dims, f"1 to {len(shape)}, the axes of {shape}")
        if not isinstance(factor, int) or factor < 2 or any(n % factor for n in shape[-dims:]):
            raise ArgumentError("factor", factor, f"a whole number, 2 or more, that divides {shape[-dims:]}")
        super().__init__([self._factor(n, factor, KERNELS[kernel]) for n in shape[-dims:]], shape)

    @staticmethod
    def _factor(n: int, factor: int, kernel) -> Tensor:
        pixels = torch.arange(n, dtype=torch.float64) + 0.5
        weights = kernel(pixels / factor - (torch.arange(n // factor, dtype=torch.float64)[:, None] + 0.5))
        return weights / weights.sum(1, keepdim=True)


class Blur(SpectralOperator):
    """Convolution with a kernel on the last axes of x, with circular borders; A A' is diagonal in Fourier space.

    Args:
        shape: D.
        kernel: odd sizes, one for each of the last axes; its centre is the middle. :func:`gaussian_kernel` makes one.

    Raises:
        ShapeError: a kernel of even size, or larger than x.
    """

    def __init__(self, shape, kernel: Tensor):
        shape = check_shape(shape)
        kernel = torch.as_tensor(kernel).detach().double()
        k = kernel.ndim
        fits = 1 <= k <= len(shape) and all(s % 2 and s <= n for s, n in zip(kernel.shape, shape[-k:], strict=True))
        if not fits:
            raise ShapeError("kernel", tuple(kernel.shape), f"odd sizes, none above the last of {shape}")
        super().__init__(shape, shape)
        self.axes = tuple(range(-k, 0))
        padded = torch.zeros(shape[-k:], dtype=torch.float64)
        padded[tuple(slice(s) for s in kernel.shape)] = kernel
        padded = padded.roll([-(s // 2) for s in kernel.shape], self.axes)
        transfer = torch.fft.fftn(padded, dim=self.axes)
        self.register_buffer("transfer", torch.view_as_real(transfer))

    def _filter(self, x: Tensor, transfer: Tensor) -> Tensor:
        return torch.fft.ifftn(torch.fft.fftn(x, dim=self.axes) * transfer, dim=self.axes).real.to(x.dtype)

    def _transfer(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(self.transfer.to(x))

    def A(self, x):
        return self._filter(x, self._transfer(x))

    def At(self, y):
        return self._filter(y, self._transfer(y).conj())

    def into(self, y):
        return hartley(y, self.axes)

    out = into

    @property
    def gram_values(self):  # even in the frequency, so that the Hartley basis is one of eigenvectors
        return self.transfer.square().sum(-1)


def gaussian_kernel(std: float, dims: int = 2, radius: int | None = None) -> Tensor:
    """A Gaussian kernel of odd size, summing to one; ``std`` in pixels, ``radius`` by default 3 std."""
    if not 0 < std < math.inf:
        raise ArgumentError("std", std, "a positive number of pixels")
    radius = math.ceil(3 * std) if radius is None else radius
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / std) ** 2)
    kernel = line
    for _ in range(dims - 1):
        kernel = kernel[..., None] * line
    return kernel / kernel.sum()


def hartley(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The orthonormal Hartley transform Re F x - Im F x, its own inverse, F the orthonormal Fourier transform.

    At the frequencies k and -k it holds the two real numbers that the Fourier coefficient at k holds (Bracewell 1983).
    """
    transformed = torch.fft.fftn(x, dim=axes, norm="ortho")
    return (transformed.real - transformed.imag).to(x.dtype)


class PartialFourier(SpectralOperator):
    """Some of x's Fourier coefficients, as magnetic resonance and (by lines through 0) tomography see them.

    y is real, ``(B, *D)``: the Hartley transform of x (:func:`hartley`), zero where the mask is. White noise in it is
    white noise in the Fourier coefficients.

    Args:
        mask: which frequencies are seen, over the last axes of D in the order of torch.fft; k and -k together.
        shape: D; default the mask's.

    Raises:
        ArgumentError: not a mask, or k is seen and -k is not.
        ShapeError: a mask that is not over the last sizes of D.
    """

    def __init__(self, mask: Tensor, shape=None):
        mask = check_mask(mask)
        shape = mask.shape if shape is None else check_shape(shape)
        if mask.ndim > len(shape) or mask.shape != shape[len(shape) - mask.ndim :]:
            raise ShapeError("mask", tuple(mask.shape), f"the last sizes of {tuple(shape)}")
        if not torch.equal(mask, mirrored(mask)):
            raise ArgumentError("mask", "a frequency k without -k", "a mask that is even: mask | mirrored(mask)")
        super().__init__(shape, shape)
        self.axes = tuple(range(-mask.ndim, 0))
        self.register_buffer("mask", mask)

    def A(self, x):
        return torch.where(self.mask.to(x.device), hartley(x, self.axes), 0.0)

    def At(self, y):
        return hartley(torch.where(self.mask.to(y.device), y, 0.0), self.axes)

    def residual(self, y, x):
        return torch.where(self.mask.to(x.device), y - hartley(x, self.axes), 0.0)

    def gram_solve(self, r, c, s2):
        return torch.where(self.mask.to(r.device), r / (c + s2), 0.0)

    @property
    def gram_values(self):
        return self.mask.double()


def mirrored(mask: Tensor) -> Tensor:
    """The mask at -k for a mask over frequencies k in the order of torch.fft."""
    axes = tuple(range(mask.ndim))
    return mask.flip(axes).roll((1,) * mask.ndim, axes)


def radial_mask(shape: tuple[int, int], lines: int) -> Tensor:
    """Frequencies on ``lines`` equally turned lines through 0, ``(H, W)``: by the Fourier slice theorem, tomography."""
    H, W = check_shape(shape)
    if not isinstance(lines, int) or lines < 1:
        raise ArgumentError("lines", lines, "a whole number of lines, 1 or more")
    mask, reach = torch.zeros(H, W, dtype=torch.bool), 2 * max(H, W)
    radii = torch.linspace(-0.5, 0.5, reach + 1, dtype=torch.float64)
    for i in range(lines):
        angle = math.pi * i / lines
        rows, columns = (radii * math.sin(angle) * H).round().long(), (radii * math.cos(angle) * W).round().long()
        mask[rows % H, columns % W] = True
    return mask | mirrored(mask)


class LinearFunction(LinearOperator):
    """An operator from a function: A as the user wrote it, and its adjoint, by autograd unless it is given.

    Args:
        A: from x ``(B, *D)`` to ``(B, *E)``, linear, in torch operations.
        shape: D.
        At: the adjoint, or None.

    Raises:
        ArgumentError: A is not linear (looked at once, at random x).
    """

    def __init__(self, A: Callable[[Tensor], Tensor], shape, At: Callable[[Tensor], Tensor] | None = None):
        shape = check_shape(shape)
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        a, b, both = A(x[:1]), A(x[1:]), A(x[:1] - 2 * x[1:])
        if not torch.allclose(a - 2 * b, both, rtol=1e-6, atol=1e-6 * float(both.abs().max() + 1)):
            raise ArgumentError("A", "A(x - 2z) other than A(x) - 2 A(z)", "a linear function")
        super().__init__(shape, a.shape[1:])
        self.function, self.adjoint = A, At

    def A(self, x):
        return self.function(x)

    def At(self, y):
        if self.adjoint is not None:
            return self.adjoint(y)
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.shape, device=y.device, dtype=y.dtype, requires_grad=True)
            return torch.autograd.grad(self.function(x), x, y, create_graph=y.requires_grad)[0]


# ---- checks and masks from files -------------------------------------------------------------------------------------


def _check(x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DTypeError(name, getattr(x, "dtype", type(x).__name__), "a floating-point tensor")
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        raise ShapeError(name, tuple(x.shape), f"(B, {', '.join(map(str, shape))})")
    return x


def check_shape(shape, name: str = "shape") -> tuple[int, ...]:
    """D as a tuple of positive sizes."""
    shape = tuple(shape)
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise ShapeError(name, shape, "positive sizes")
    return shape


def check_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """``mask`` as a bool tensor, if it is one or made of 0 and 1, with a 1 somewhere."""
    if not isinstance(mask, Tensor):
        raise DTypeError(name, type(mask).__name__, "a tensor of bool, or of 0 and 1")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ArgumentError(name, f"values from {mask.min().item():g} to {mask.max().item():g}", "only 0 and 1")
    if not bool(mask.any()):
        raise ArgumentError(name, "0 everywhere", "a 1 at each known entry")
    return mask.bool()


def expand_mask(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return mask.expand(shape).clone()
    except RuntimeError:
        raise ShapeError("mask", tuple(mask.shape), f"a shape that broadcasts to {tuple(shape)}") from None


def load_mask(path: str | Path, shape: tuple[int, ...]) -> Tensor:
    """A mask ``(H, W)`` from an image file: white (255) is known, black (0) is not.

    Args:
        path: a file that Pillow reads.
        shape: D ``(C, H, W)`` or ``(H, W)`` of the data it is for.

    Raises:
        DataError: no such file, not an image, another size, or grey values (a mask saved as JPEG, say).
    """
    from PIL import Image, UnidentifiedImageError

    H, W = check_shape(shape)[-2:]
    try:
        with Image.open(path) as image:
            size, grey = image.size, image.convert("L")
            values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).reshape(size[1], size[0])
    except (OSError, UnidentifiedImageError) as error:
        raise DataError("mask", f"{path} ({error})", "an image file") from None
    if (size[1], size[0]) != (H, W):
        raise DataError("mask", f"{path} of {size[0]}x{size[1]} pixels", f"{W}x{H}, as the data")
    if not bool(((values == 0) | (values == 255)).all()):
        wrong = values[(values > 0) & (values < 255)][0].item()
        raise DataError("mask", f"{path} with a grey value {wrong}", "only black (0) and white (255)")
    return check_mask(values == 255)
