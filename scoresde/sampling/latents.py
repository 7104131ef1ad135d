"""The latent space of a deterministic sampler (E11): moving between latents, and about their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from scoresde.models import Model
from scoresde.sde.grids import time_range
from scoresde.sde.tensors import broadcast, flat, state_dtype


def _latents(z: Tensor, name: str) -> Tensor:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise DTypeError(name, getattr(z, "dtype", type(z).__name__), "floating-point latents (B, *D)")
    if z.ndim < 2:
        raise ShapeError(name, tuple(z.shape), "(B, *D) with D of rank 1 or more")
    return z


def _weights(weights: int | Sequence[float] | Tensor) -> Tensor:
    if isinstance(weights, int):
        return torch.linspace(0, 1, whole("weights", weights) + 1, dtype=torch.float64)
    w = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if w.ndim != 1 or not len(w):
        raise ShapeError("weights", tuple(w.shape), "a number of steps, or a vector of weights")
    if not bool(((w >= 0) & (w <= 1)).all()):
        raise ArgumentError("weights", w.tolist()[:8], "numbers in [0, 1]: 0 gives z0, 1 gives z1")
    return w


def _refuse(bad: Tensor, name: str, what: str, expected: str) -> None:
    if bool(bad.any()):
        samples = ", ".join(map(str, bad.nonzero().flatten().tolist()[:8]))
        raise ArgumentError(name, f"{what} (samples {samples})", expected)


def interpolate(z0: Tensor, z1: Tensor, weights: int | Sequence[float] | Tensor = 8, *, spherical: bool = True):
    r"""Latents between z0 and z1, ``(K, B, *D)``: decoded, a path from one datum to another (E11).

    Spherical, along the great circle: with norms r_i, directions d_i = z_i/r_i and the angle theta between them,

        z_w = ((1 - w) r_0 + w r_1) [sin((1 - w) theta) d_0 + sin(w theta) d_1] / sin theta,

    so that norms go evenly from one to the other (for equal norms it is the slerp of DDIM). Latents of n entries lie
    near the sphere of radius sqrt(n) times the prior's standard deviation; straight lines, z_w = (1 - w) z_0 + w z_1,
    leave it (midway between two independent latents by a factor sqrt(2)) for where the model saw no noise like it.
    w = 0 and w = 1 give z0 and z1 bit for bit. ``decode(model, z.flatten(0, 1))`` takes the whole path at once.

    Args:
        z0, z1: latents ``(B, *D)``, of any rank, each pair by itself.
        weights: K - 1 equal steps from z0 to z1, or the K weights in [0, 1].
        spherical: along the great circle, or else straight.

    Raises:
        DTypeError, ShapeError, DeviceError: latents that do not fit.
        ArgumentError: weights outside [0, 1]; spherical, for latents without a direction (zero) or opposite ones, which
            no great circle joins more than any other (names the samples).

    Source: Song, Meng & Ermon (2021, section 5.3, eq. 67); Song et al. (2021, section 4.3).
    """
    _latents(z0, "z0")
    _latents(z1, "z1")
    if z0.shape != z1.shape:
        raise ShapeError("z1", tuple(z1.shape), f"the shape of z0, {tuple(z0.shape)}")
    if z0.device != z1.device:
        raise DeviceError("z1", z1.device, f"the device of z0, {z0.device}")
    dtype = torch.promote_types(z0.dtype, z1.dtype)
    w = _weights(weights).to(z0.device, state_dtype(z0))[:, None, None]
    a, b = (flat(z).to(state_dtype(z0)) for z in (z0, z1))
    if spherical:
        norms = [z.norm(dim=1, keepdim=True) for z in (a, b)]
        for name, norm in zip(("z0", "z1"), norms, strict=True):
            _refuse(norm[:, 0] == 0, name, "zero latents", "latents with a direction, or spherical=False")
        d0, d1 = (z / norm for z, norm in zip((a, b), norms, strict=True))
        apart, together = (d0 - d1).norm(dim=1, keepdim=True), (d0 + d1).norm(dim=1, keepdim=True)
        opposite = together[:, 0] < torch.finfo(dtype).eps ** 0.5
        _refuse(opposite, "z1", "latents opposite to z0", "directions that one great circle joins, or spherical=False")
        theta = 2 * torch.atan2(apart, together)
        # sin(w theta)/sin(theta), also where theta = 0
        c0, c1 = (v * torch.sinc(v * theta / torch.pi) / torch.sinc(theta / torch.pi) for v in (1 - w, w))
        z = (torch.lerp(*norms, w)) * (c0 * d0 + c1 * d1)
    else:
        z = (1 - w) * a + w * b
    z = torch.where(w == 0, a, torch.where(w == 1, b, z))
    return z.reshape(len(w), *z0.shape).to(dtype)


def temper(model: Model, z: Tensor, temperature: float | Tensor, t_max: float | None = None) -> Tensor:
    r"""Latents drawn towards the prior's mean m, or away from it: m + temperature (z - m), ``(B, *D)`` (E11).

    Latents z ~ N(m, S) become N(m, temperature^2 S). The decoded samples have, with z the latent of x,

        log p'(x) = log p(x) + log N(z; m, temperature^2 S) - log N(z; m, S).

    Where the data are Gaussian the flow is linear and p' is p^(1/temperature^2), normalised: the spread about the mean
    is multiplied by the temperature in every direction. In general it is not: every mode keeps its basin of latents,
    and those near m gain. At 0 all latents are m, whose sample is one mode-like point; 1 gives z back bit for bit.

    Args:
        model: whose prior it is: m = alpha(t_max) E[x_0] if the model knows the data's moments, 0 otherwise.
        z: latents ``(B, *D)`` at t_max.
        temperature: 0 or more, one number or ``(B,)``.
        t_max: the time of the latents; None takes the default for the SDE.

    Raises:
        DTypeError, ShapeError: latents that do not fit the model; temperatures of another shape.
        ArgumentError: a negative temperature.
    """
    _latents(z, "z")
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
        raise ShapeError("z", tuple(z.shape), f"(B, {', '.join(map(str, model.moments.mean.shape))})")
    tau = broadcast(tau, z, "temperature")
    return torch.where(tau == 1, z, m + tau * (z - m))
