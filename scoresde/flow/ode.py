"""Ordinary differential equations for a batch of independent samples.

Every method treats the samples as separate problems: the adaptive ones keep a time, a step and an error norm per
sample, so that no sample's path depends on its batch. (A solver with one step for the whole batch cannot do that.)
The solver families of torchdiffeq and scipy are at hand by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ArgumentError, NonFiniteError, ToleranceError, UnknownNameError

#: dy/ds = f(s, y) for s ``(B,)`` and y ``(B, n)``; ``rows`` says which samples of the batch these are.
Field = Callable[[Tensor, Tensor, Tensor], Tensor]
#: the size of an error in tolerances, ``(B,)``, from ``(B, n)``
Norm = Callable[[Tensor], Tensor]
#: what messages say of a time s and a (signed) step there
Where = Callable[[float, float], str]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: its coefficients and its declared order.

    ``error`` holds b - b*, the difference to the embedded method; None for a method without one. The last stage of
    those with one is the next step's first.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None


TABLEAUX = {
    tableau.name: tableau
    for tableau in (
        Tableau("euler", 1, (0.0,), (), (1.0,)),
        Tableau("midpoint", 2, (0.0, 0.5), ((0.5,),), (0.0, 1.0)),
        Tableau("heun", 2, (0.0, 1.0), ((1.0,),), (0.5, 0.5)),
        Tableau("rk4", 4, (0.0, 0.5, 0.5, 1.0), ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
        Tableau(  # Bogacki & Shampine 1989
            "bosh3",
            3,
            (0.0, 1 / 2, 3 / 4, 1.0),
            ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
            (2 / 9, 1 / 3, 4 / 9, 0.0),
            (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        ),
        Tableau(  # Dormand & Prince 1980
            "dopri5",
            5,
            (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
            (
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
                (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
            ),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
            (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        ),
    )
}

ADAPTIVE = tuple(name for name, tableau in TABLEAUX.items() if tableau.error)
FIXED = tuple(name for name, tableau in TABLEAUX.items() if not tableau.error)
TORCHDIFFEQ = ("dopri8", "adaptive_heun", "explicit_adams", "implicit_adams")
SCIPY = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
METHODS = (*ADAPTIVE, *FIXED, *TORCHDIFFEQ, *SCIPY)


class Solution(NamedTuple):
    """The end state ``(B, n)``, the calls of the field (of the batch; the most of any sample if adaptive)."""

    y: Tensor
    calls: int


def rms(error: Tensor) -> Tensor:
    """The root mean square over the entries of each sample, ``(B,)``."""
    return error.square().mean(1).sqrt()


def as_they_are(s: float, h: float) -> str:
    """The time and the step as they are."""
    return f"s = {s:.6g} with a step of {abs(h):.3g}"


def integrate(
    field: Field,
    y: Tensor,
    start: float,
    end: float,
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    norm: Norm = rms,
    max_calls: int = 20_000,
    where: Where = as_they_are,
) -> Solution:
    """Solve dy/ds = field(s, y) from ``start`` to ``end`` for every row of ``y`` ``(B, n)``.

    Args:
        method: adaptive per sample ``"dopri5"``, ``"bosh3"``; on ``steps`` equal steps ``"euler"``, ``"midpoint"``,
            ``"heun"``, ``"rk4"``; from torchdiffeq ``"dopri8"``, ``"adaptive_heun"``,
            ``"explicit_adams"``, ``"implicit_adams"`` (one step for the batch, the worst sample's error decides); from
            scipy ``"RK23"``, ``"RK45"``, ``"DOP853"``, ``"Radau"``, ``"BDF"``, ``"LSODA"`` (one sample at a time, in
            float64 on the CPU: the reference).
        where: what messages say of a time and a step, where s is not what the caller's caller knows.

    Raises:
        UnknownNameError: no such method.
        ToleranceError: the tolerance cannot be reached (names the time, the step, the calls).
        NonFiniteError: the field gave NaN or infinity, and the method is adaptive.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not value > 0:
            raise ArgumentError(name, value, "a positive tolerance")
    if method in FIXED:
        if steps is None or steps < 1:
            raise ArgumentError("steps", steps, f"the number of steps of the fixed-step method {method!r}")
        return _fixed(field, y, start, end, TABLEAUX[method], steps)
    if method in ADAPTIVE:
        return _adaptive(field, y, start, end, TABLEAUX[method], rtol, atol, norm, max_calls, where)
    if method in TORCHDIFFEQ:
        return _torchdiffeq(field, y, start, end, method, rtol, atol, norm, steps, where)
    return _scipy(field, y, start, end, method, rtol, atol, where)


def _stages(
    field: Field, s: Tensor, y: Tensor, h: Tensor, tableau: Tableau, first: Tensor, rows: Tensor
) -> list[Tensor]:
    k = [first]
    column = h[:, None]
    for c, a in zip(tableau.c[1:], tableau.a, strict=True):
        increment = sum(a_j * k_j for a_j, k_j in zip(a, k, strict=True) if a_j)
        k.append(field(s + c * h, y + column * increment, rows))
    return k


def _fixed(field: Field, y: Tensor, start: float, end: float, tableau: Tableau, steps: int) -> Solution:
    rows = torch.arange(len(y), device=y.device)
    grid = torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()
    for s0, s1 in itertools.pairwise(grid):
        s, h = y.new_full((len(y),), s0), y.new_full((len(y),), s1 - s0)
        k = _stages(field, s, y, h, tableau, field(s, y, rows), rows)
        y = y + h[:, None] * sum(b * k_i for b, k_i in zip(tableau.b, k, strict=True) if b)
    return Solution(y, steps * len(tableau.b))


def _first_step(field, s, y, f, rows, direction, span, tableau, rtol, atol, norm) -> Tensor:
    """The starting step of Hairer, Norsett & Wanner (1993), II.4, per sample."""
    scale = atol + rtol * y.abs()
    d0, d1 = norm(y / scale), norm(f / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).nan_to_num(nan=1e-6).clamp(max=span)
    f1 = field(s + direction * h0, y + (direction * h0)[:, None] * f, rows)
    d2 = norm((f1 - f) / scale) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / largest) ** (1 / tableau.order))
    return torch.minimum(100 * h0, torch.where(h1.isnan(), 1e-3 * h0, h1)).clamp(max=span)


def _adaptive(field, y, start, end, tableau, rtol, atol, norm, max_calls, where) -> Solution:
    direction, span = (1.0, end - start) if end > start else (-1.0, start - end)
    rows = torch.arange(len(y), device=y.device)
    result = y.clone()
    passed = y.new_zeros(len(y))  # how far each sample has come, 0..span
    f = field(start + direction * passed, y, rows)
    h = _first_step(field, start + direction * passed, y, f, rows, direction, span, tableau, rtol, atol, norm)
    calls, last_error = 2, torch.ones_like(h)
    while len(rows):  # finished samples leave; asking whether any is left is the one wait per step
        if calls + len(tableau.b) > max_calls:
            at = where(start + direction * passed[0].item(), direction * h[0].item())
            raise ToleranceError(
                f"rtol={rtol:g}, atol={atol:g} not reached after {calls} calls: {len(rows)} samples are on their way, "
                f"sample {rows[0].item()} at {at}"
            )
        last = passed + h >= span * (1 - 1e-12)
        h = torch.where(last, span - passed, h)
        s, step = start + direction * passed, direction * h
        k = _stages(field, s, y, step, tableau, f, rows)
        calls += len(tableau.b) - 1
        y_new = y + step[:, None] * sum(b * k_i for b, k_i in zip(tableau.b, k, strict=True) if b)
        difference = step[:, None] * sum(e * k_i for e, k_i in zip(tableau.error, k, strict=True) if e)
        error = norm(difference / (atol + rtol * torch.maximum(y.abs(), y_new.abs())))
        finite = error.isfinite()
        accept = (error <= 1) & finite
        # a proportional-integral controller (Hairer & Wanner 1996, IV.2, with their beta = 0.04 for order 5)
        safe = error.nan_to_num(nan=1e10, posinf=1e10).clamp(min=1e-10)
        factor = 0.9 * safe ** (-0.85 / tableau.order) * last_error ** (0.2 / tableau.order)
        factor = torch.where(accept, factor.clamp(0.2, 10.0), (0.9 * safe ** (-1 / tableau.order)).clamp(0.1, 1.0))
        y = torch.where(accept[:, None], y_new, y)
        f = torch.where(accept[:, None], k[-1], f)
        passed = torch.where(accept, passed + h, passed)
        last_error = torch.where(accept, safe.clamp(min=1e-4), last_error)
        h = h * factor
        if bool((h < 1e-14 * span).any()):
            bad = h < 1e-14 * span
            at = where(start + direction * passed[bad][0].item(), direction * h[bad][0].item())
            samples = rows[bad].tolist()[:8]
            if not bool(finite[bad].all()):
                raise NonFiniteError(f"the field gave NaN or infinity at {at}, {calls} calls, samples {samples}")
            raise ToleranceError(
                f"rtol={rtol:g}, atol={atol:g} cannot be reached: at {at}, {calls} calls, samples {samples}"
            )
        done = accept & last
        if bool(done.any()):
            result = result.index_put((rows[done],), y[done])
            keep = ~done
            y, f, h, passed, last_error, rows = (v[keep] for v in (y, f, h, passed, last_error, rows))
    return Solution(result, calls)


def _torchdiffeq(field, y, start, end, method, rtol, atol, norm, steps, where) -> Solution:
    from torchdiffeq import odeint

    rows = torch.arange(len(y), device=y.device)
    calls, asked = 0, []

    def function(s, flat):
        nonlocal calls
        calls += 1
        state = flat.reshape(y.shape)
        value = field(s.to(y.dtype).expand(len(y)), state, rows)
        asked[:] = [*asked[-1:], (s, value)]
        return value.flatten()

    times = torch.tensor([start, end], dtype=y.dtype, device=y.device)
    # to step exactly onto the end: beyond it torchdiffeq would interpolate, to a lower order than the method's
    options = {"norm": lambda error: norm(error.reshape(y.shape)).max(), "step_t": times[1:]}
    if method in ("explicit_adams", "implicit_adams"):
        if steps is None:
            raise ArgumentError("steps", None, f"the number of steps of {method!r}")
        options = {"step_size": abs(end - start) / steps}
    try:
        flat = odeint(function, y.flatten(), times, rtol=rtol, atol=atol, method=method, options=options)[-1]
    except AssertionError as error:  # torchdiffeq's word for an underflow of the step
        (before, _), (s, value) = asked[0], asked[-1]
        at = where(before.item(), (s - before).item())
        bad = ~value.isfinite().all(1)
        if bool(bad.any()):
            raise NonFiniteError(
                f"the field gave NaN or infinity at {at}, {calls} calls, samples {rows[bad].tolist()[:8]}"
            ) from error
        raise ToleranceError(f"{method} with rtol={rtol:g}, atol={atol:g}, at {at}, {calls} calls: {error}") from error
    return Solution(flat.reshape(y.shape), calls)


def _scipy(field, y, start, end, method, rtol, atol, where) -> Solution:
    from scipy.integrate import solve_ivp

    ends, most = [], 0
    for i in range(len(y)):
        row, asked = torch.tensor([i], device=y.device), []

        def function(s, state, row=row, i=i, asked=asked):
            s_row = torch.tensor([s], dtype=y.dtype, device=y.device)
            state = torch.as_tensor(state, dtype=y.dtype).to(y.device)[None]
            value = field(s_row, state, row)[0].double().cpu().numpy()
            if not np.isfinite(value).all():  # scipy would go on with it, some methods for ever
                at = where(s, s - asked[-1] if asked else 0.0)
                raise NonFiniteError(f"the field gave NaN or infinity at {at}, samples [{i}]")
            asked[:] = [s]
            return value

        first = y[i].detach().double().cpu().numpy()
        solution = solve_ivp(
            function, (start, end), first, method=method, rtol=max(rtol, 100 * np.finfo(float).eps), atol=atol
        )
        if not solution.success:
            s = solution.t[-1]
            raise ToleranceError(
                f"{method}, sample {i}: {solution.message} (at {where(s, asked[-1] - s)}, {solution.nfev} calls)"
            )
        ends.append(torch.as_tensor(solution.y[:, -1], dtype=y.dtype))
        most = max(most, solution.nfev)
    return Solution(torch.stack(ends).to(y.device), most)
