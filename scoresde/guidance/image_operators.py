"""Operators for images, most of them for data of any rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError, ShapeError, UnknownNameError
from scoresde.guidance.masks import check_mask, expand_mask, mirrored
from scoresde.guidance.operators import Separable, SpectralOperator, check_shape


@checked
class Inpainting(SpectralOperator):
    """The known entries of x: A x = mask x, of x's shape.

    What y holds at unknown entries does not matter.

    Args:
        mask: Known entries: bool, or 0 and 1, ``(*D)``. With ``shape``, any mask that broadcasts to D, such as one
            ``(H, W)`` for all channels.
        shape: D. None: the mask's.

    Raises:
        ArgumentError: ``mask`` holds other values than 0 and 1, or no known entry.
        ShapeError: ``mask`` does not broadcast to D.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, shape: Sequence[int] | None = None):
        mask = check_mask(mask)
        shape = mask.shape if shape is None else check_shape(shape)
        super().__init__(shape, shape)
        self.register_buffer("mask", expand_mask(mask, self.shape))

    def A(self, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), x, 0.0)

    def At(self, y: Tensor) -> Tensor:
        return self.A(y)

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), y - x, 0.0)  # NaN at unknown entries of y does no harm

    def gram_solve(self, r: Tensor, c: float | Tensor, s2: float | Tensor) -> Tensor:
        return torch.where(self.mask.to(r.device), r / (c + s2), 0.0)  # elsewhere r is zero, and s2 may be

    @property
    def gram_values(self) -> Tensor:
        return self.mask.double()


@checked
class Colorize(SpectralOperator):
    """The grey image of a colour image, the mean over channels.

    y is ``(B, 1, *space)`` for x ``(B, C, *space)``.

    Args:
        shape: D, ``(C, *space)``.
    """

    def __init__(self, shape: Sequence[int]):
        shape = check_shape(shape)
        super().__init__(shape, (1, *shape[1:]))

    def A(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def At(self, y: Tensor) -> Tensor:
        return (y / self.shape[0]).expand(len(y), *self.shape)

    @property
    def gram_values(self) -> Tensor:
        return torch.tensor(1 / self.shape[0], dtype=torch.float64)


# ---- resolution ------------------------------------------------------------------------------------------------------


def box(u: Tensor) -> Tensor:
    """Return the kernel of box averaging: 1 for abs(u) < 1/2."""
    return (u.abs() < 0.5).to(u)


def bicubic(u: Tensor) -> Tensor:
    """Return Keys' cubic kernel with a = -1/2 (Keys 1981); 0 from 2 on."""
    u = u.abs()
    near, far = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return torch.where(u <= 1, near, torch.where(u < 2, far, 0.0))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"box": box, "bicubic": bicubic}


@checked
class Downsample(Separable):
    """x at ``1/factor`` of its resolution along its last axes.

    Its inverse problem is super-resolution.

    Each pixel of y is the mean of x under a kernel about the pixel's centre, stretched by ``factor``. The weights sum
    to one at the borders too.

    Args:
        shape: D.
        factor: Integer >= 2 that divides the last sizes.
        kernel: ``"box"``, the mean of a block, or ``"bicubic"``, Keys' kernel, antialiased. Default ``"box"``.
        dims: Number of the last axes, default 2 (images).

    Raises:
        ArgumentError: ``factor`` or ``dims`` is out of range.
        UnknownNameError: ``kernel`` is an unknown name.
    """

    def __init__(self, shape: Sequence[int], factor: int, kernel: Literal["box", "bicubic"] = "box", dims: int = 2):
        shape = check_shape(shape)
        if kernel not in KERNELS:
            raise UnknownNameError("kernel", kernel, KERNELS)
        if whole("dims", dims) > len(shape):
            raise ArgumentError("dims", dims, f"an integer from 1 to {len(shape)}, the number of axes of {shape}")
        if whole("factor", factor) < 2 or any(n % factor for n in shape[-dims:]):
            raise ArgumentError("factor", factor, f"an integer >= 2 that divides {shape[-dims:]}")
        super().__init__([self._factor(n, factor, KERNELS[kernel]) for n in shape[-dims:]], shape)

    @staticmethod
    def _factor(n: int, factor: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the matrix ``(n / factor, n)`` for one axis."""
        pixels = torch.arange(n, dtype=torch.float64) + 0.5
        weights = kernel(pixels / factor - (torch.arange(n // factor, dtype=torch.float64)[:, None] + 0.5))
        normalised: Tensor = weights / weights.sum(1, keepdim=True)
        return normalised


# ---- Fourier space ---------------------------------------------------------------------------------------------------


def hartley(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the orthonormal Hartley transform Re F x - Im F x.

    F is the orthonormal Fourier transform. The transform is its own inverse. At the frequencies k and -k the result
    holds the two real numbers of the Fourier coefficient at k (Bracewell 1983).
    """
    transformed: Tensor = torch.fft.fftn(x, dim=axes, norm="ortho")
    return (transformed.real - transformed.imag).to(x.dtype)


@checked
class Blur(SpectralOperator):
    """Convolution with a kernel on the last axes of x, with circular borders.

    A A' is diagonal in Fourier space.

    Args:
        shape: D.
        kernel: Kernel of odd sizes, one for each of the last axes, with its centre in the middle.
            :func:`gaussian_kernel` makes one.

    Raises:
        ShapeError: A size of the kernel is even, or larger than that of x.
    """

    transfer: Tensor

    def __init__(self, shape: Sequence[int], kernel: Tensor):
        shape = check_shape(shape)
        kernel = torch.as_tensor(kernel).detach().double()
        k = kernel.ndim
        fits = 1 <= k <= len(shape) and all(s % 2 and s <= n for s, n in zip(kernel.shape, shape[-k:], strict=True))
        if not fits:
            raise ShapeError("kernel", tuple(kernel.shape), f"of odd sizes, none above the last sizes of {shape}")
        super().__init__(shape, shape)
        self.axes = tuple(range(-k, 0))
        padded = torch.zeros(shape[-k:], dtype=torch.float64)
        padded[tuple(slice(s) for s in kernel.shape)] = kernel
        padded = padded.roll([-(s // 2) for s in kernel.shape], self.axes)
        transfer = torch.fft.fftn(padded, dim=self.axes)
        self.register_buffer("transfer", torch.view_as_real(transfer))

    def _filter(self, x: Tensor, transfer: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fftn(x, dim=self.axes) * transfer
        filtered: Tensor = torch.fft.ifftn(spectrum, dim=self.axes)
        return filtered.real.to(x.dtype)

    def _transfer(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(self.transfer.to(x))

    def A(self, x: Tensor) -> Tensor:
        return self._filter(x, self._transfer(x))

    def At(self, y: Tensor) -> Tensor:
        return self._filter(y, self._transfer(y).conj())

    def to_eigen(self, y: Tensor) -> Tensor:
        return hartley(y, self.axes)

    def from_eigen(self, u: Tensor) -> Tensor:
        return hartley(u, self.axes)

    @property
    def gram_values(self) -> Tensor:  # even in the frequency, so that the Hartley basis is one of eigenvectors
        return self.transfer.square().sum(-1)


@checked
def gaussian_kernel(std: float, dims: int = 2, radius: int | None = None) -> Tensor:
    """Return a Gaussian kernel of odd size that sums to one.

    Args:
        std: Standard deviation in pixels, positive.
        dims: Number of axes, default 2.
        radius: Pixels on each side of the centre. None: 3 std, rounded up.

    Raises:
        ArgumentError: ``std`` is not positive.
    """
    std = positive("std", std)
    radius = whole("radius", math.ceil(3 * std) if radius is None else radius, 0)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / std) ** 2)
    kernel = line
    for _ in range(whole("dims", dims) - 1):
        kernel = kernel[..., None] * line
    return kernel / kernel.sum()


@checked
class PartialFourier(SpectralOperator):
    """Some Fourier coefficients of x.

    Magnetic resonance imaging and tomography observe them.

    y is real, ``(B, *D)``: the Hartley transform of x (:func:`hartley`), and zero outside the mask. White noise in y is
    white noise in the Fourier coefficients.

    Args:
        mask: Observed frequencies over the last axes of D, in the order of torch.fft; k and -k together.
        shape: D. None: the mask's.

    Raises:
        ArgumentError: ``mask`` is not a mask, or holds a frequency k without -k.
        ShapeError: ``mask`` does not have the last sizes of D.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, shape: Sequence[int] | None = None):
        mask = check_mask(mask)
        shape = mask.shape if shape is None else check_shape(shape)
        if mask.ndim > len(shape) or mask.shape != shape[len(shape) - mask.ndim :]:
            raise ShapeError("mask", tuple(mask.shape), f"of the last sizes of {tuple(shape)}")
        if not torch.equal(mask, mirrored(mask)):
            raise ArgumentError("mask", "a frequency k without -k", "even in the frequency: mask | mirrored(mask)")
        super().__init__(shape, shape)
        self.axes = tuple(range(-mask.ndim, 0))
        self.register_buffer("mask", mask)

    def A(self, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), hartley(x, self.axes), 0.0)

    def At(self, y: Tensor) -> Tensor:
        return hartley(torch.where(self.mask.to(y.device), y, 0.0), self.axes)

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), y - hartley(x, self.axes), 0.0)

    def gram_solve(self, r: Tensor, c: float | Tensor, s2: float | Tensor) -> Tensor:
        return torch.where(self.mask.to(r.device), r / (c + s2), 0.0)

    @property
    def gram_values(self) -> Tensor:
        return self.mask.double()
