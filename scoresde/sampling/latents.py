"""The latent space of a deterministic sampler: paths and spread (E11).

Symbols:
    z: latents ``(B, *D)``, x at t_max. m: mean of the prior. w: weight of a point on a path.
    r, d: norm and direction of a latent. theta: angle between two latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import SHOWN, whole
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from scoresde.models import Model
from scoresde.sde.grids import time_range
from scoresde.sde.tensors import broadcast, flat, state_dtype


@checked
def interpolate(
    z0: Tensor, z1: Tensor, weights: int | Sequence[float] | Tensor = 8, *, spherical: bool = True
) -> Tensor:
    """Interpolate between latents; decoded, the path joins two data (E11).

    Spherical interpolation follows the great circle. With norms r_i, directions d_i = z_i/r_i and theta the angle
    between them,

        z_w = ((1 - w) r_0 + w r_1) [sin((1 - w) theta) d_0 + sin(w theta) d_1] / sin theta

    The norm changes linearly from one end to the other; for equal norms this is DDIM's slerp. Straight interpolation is
    z_w = (1 - w) z_0 + w z_1. ``decode(model, z.flatten(0, 1))`` decodes the whole path at once.

    Args:
        z0, z1: Latents ``(B, *D)`` of any rank, each pair by itself.
        weights: K weights in [0, 1], or the number of equal steps from z0 to z1, K - 1, default 8.
        spherical: Whether to follow the great circle, default True; else a straight line.

    Returns:
        Latents ``(K, B, *D)``. w = 0 and w = 1 give z0 and z1 bit for bit.

    Raises:
        DTypeError, ShapeError, DeviceError: Latents do not fit.
        ArgumentError: Weights are outside [0, 1]. For spherical interpolation: a latent is zero and has no direction,
            or two are opposite and no single great circle joins them; names the samples.

    Notes:
        Latents of n entries lie near the sphere of radius sqrt(n) times the prior's standard deviation. Straight lines
        leave it, midway between two independent latents by a factor sqrt(2), for a region without training noise.

    References: Song, Meng & Ermon 2021, section 5.3, eq. 67; Song et al. 2021, section 4.3.
    """
    _check_latents("z0", z0)
    _check_latents("z1", z1)
    if z0.shape != z1.shape:
        raise ShapeError("z1", tuple(z1.shape), f"of the shape of z0, {tuple(z0.shape)}")
    if z0.device != z1.device:
        raise DeviceError("z1", z1.device, f"on the device of z0, {z0.device}")
    dtype = torch.promote_types(z0.dtype, z1.dtype)
    w = _weights(weights).to(z0.device, state_dtype(z0))[:, None, None]
    a, b = (flat(z).to(state_dtype(z0)) for z in (z0, z1))
    z = _great_circle(a, b, w, torch.finfo(dtype).eps ** 0.5) if spherical else (1 - w) * a + w * b
    z = torch.where(w == 0, a, torch.where(w == 1, b, z))
    return z.reshape(len(w), *z0.shape).to(dtype)


def _great_circle(a: Tensor, b: Tensor, w: Tensor, tolerance: float) -> Tensor:
    """Return the points between two latents on their great circle.

    Shapes: a and b ``(B, n)``, w ``(K, 1, 1)``, points ``(K, B, n)``. Latents with |d_0 + d_1| below ``tolerance`` are
        opposite.
    """
    r0, r1 = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    for name, norm in (("z0", r0), ("z1", r1)):
        _refuse(norm[:, 0] == 0, name, "zero latents", "latents with a direction, unless spherical=False")
    d0, d1 = a / r0, b / r1
    apart, together = (d0 - d1).norm(dim=1, keepdim=True), (d0 + d1).norm(dim=1, keepdim=True)
    expected = "joined to z0 by a single great circle, unless spherical=False"
    _refuse(together[:, 0] < tolerance, "z1", "latents opposite to z0", expected)
    theta = 2 * torch.atan2(apart, together)
    # sin(w theta)/sin(theta), also where theta = 0
    c0, c1 = (v * torch.sinc(v * theta / torch.pi) / torch.sinc(theta / torch.pi) for v in (1 - w, w))
    path: Tensor = torch.lerp(r0, r1, w) * (c0 * d0 + c1 * d1)
    return path


@checked
def temper(model: Model, z: Tensor, temperature: float | Tensor, t_max: float | None = None) -> Tensor:
    """Scale the spread of latents about the prior's mean m (E11).

        z' = m + temperature (z - m)

    Latents z ~ N(m, S) become N(m, temperature^2 S). The decoded samples have the density

        log p'(x) = log p(x) + log N(z; m, temperature^2 S) - log N(z; m, S),    z the latent of x

    For Gaussian data the flow is linear and p' is p^(1/temperature^2), normalised: the spread about the mean is
    multiplied by the temperature in every direction. In general it is not. Every mode keeps its basin of latents, and
    modes with latents near m gain weight.

    Args:
        model: Model whose prior it is: m = alpha(t_max) E[x_0] if its moments are known, else 0.
        z: Latents ``(B, *D)`` at t_max.
        temperature: 0 or more, one number or ``(B,)``. 0 gives m for all latents, 1 gives z bit for bit.
        t_max: Time of the latents in [0, 1]. None: the default for the SDE.

    Returns:
        Latents ``(B, *D)``.

    Raises:
        DTypeError, ShapeError: Latents do not fit the model, or temperatures have another shape.
        ArgumentError: A temperature is negative.
    """
    _check_latents("z", z)
    tau = torch.as_tensor(temperature, device=z.device if isinstance(temperature, Tensor) else "cpu")
    tau = tau if tau.is_floating_point() else tau.double()
    if not bool(((tau >= 0) & tau.isfinite()).all()):
        raise ArgumentError("temperature", tau.tolist(), "0 or more")
    if model.moments is None:
        m = torch.zeros((), dtype=z.dtype, device=z.device)
    elif model.moments.mean.shape == z.shape[1:]:
        _, t_max = time_range(model.sde, None, t_max)
        m = (model.sde.alpha(t_max) * model.moments.mean).to(z)
    else:
        expected = f"of the model's shape, (B, {', '.join(map(str, model.moments.mean.shape))})"
        raise ShapeError("z", tuple(z.shape), expected)
    tau = broadcast(tau, z, "temperature")
    return torch.where(tau == 1, z, m + tau * (z - m))


def _check_latents(name: str, z: Tensor) -> None:
    """Raise an error unless z is a floating-point tensor ``(B, *D)``."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise DTypeError(name, getattr(z, "dtype", type(z).__name__), "floating-point latents (B, *D)")
    if z.ndim < 2:
        raise ShapeError(name, tuple(z.shape), "(B, *D) with D of rank 1 or more")


def _weights(weights: int | Sequence[float] | Tensor) -> Tensor:
    """Return the weights of a path, float64 ``(K,)``."""
    if isinstance(weights, Integral):
        return torch.linspace(0, 1, whole("weights", weights) + 1, dtype=torch.float64)
    w = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if w.ndim != 1 or not len(w):
        raise ShapeError("weights", tuple(w.shape), "a number of steps, or a vector of weights")
    if not bool(((w >= 0) & (w <= 1)).all()):
        raise ArgumentError("weights", w.tolist()[:SHOWN], "numbers in [0, 1]: 0 gives z0, 1 gives z1")
    return w


def _refuse(bad: Tensor, name: str, what: str, expected: str) -> None:
    """Raise an ArgumentError that names the samples, if any is bad."""
    if bool(bad.any()):
        samples = ", ".join(map(str, bad.nonzero().flatten().tolist()[:SHOWN]))
        raise ArgumentError(name, f"{what} (samples {samples})", expected)
