"""Ordinary differential equations for a batch of independent samples.

Every method treats the samples as separate problems. The adaptive ones keep a time, a step and an error norm per
sample, so that no sample's path depends on its batch. (A solver with one step for the whole batch cannot do that.) The
solvers of torchdiffeq and scipy are available by name.
"""

from __future__ import annotations

from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import ArgumentError, ShapeError, UnknownNameError
from scoresde.flow.foreign_solvers import SCIPY, TORCHDIFFEQ, solve_scipy, solve_torchdiffeq
from scoresde.flow.problem import MAX_CALLS, Control, Field, Norm, Problem, Solution, Where, as_they_are, rms
from scoresde.flow.runge_kutta import AdaptiveRun, solve_fixed
from scoresde.flow.tableaux import ADAPTIVE, FIXED, TABLEAUX

#: the methods that `integrate` knows
ODE_METHODS = (*ADAPTIVE, *FIXED, *TORCHDIFFEQ, *SCIPY)


@checked
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
    max_calls: int = MAX_CALLS,
    where: Where = as_they_are,
) -> Solution:
    """Solve dy/ds = field(s, y) for every row of ``y``.

    Args:
        field: Function of s ``(B,)``, y ``(B, n)`` and the indices of these samples in the batch.
        y: States at ``start``, ``(B, n)``.
        start, end: Times.
        method: Adaptive per sample ``"dopri5"``, ``"bosh3"``. On ``steps`` equal steps ``"euler"``, ``"midpoint"``,
            ``"heun"``, ``"rk4"``. From torchdiffeq ``"dopri8"``, ``"adaptive_heun"``, ``"explicit_adams"``,
            ``"implicit_adams"``: one step for the batch; the worst sample's error decides. From scipy ``"RK23"``,
            ``"RK45"``, ``"DOP853"``, ``"Radau"``, ``"BDF"``, ``"LSODA"``: one sample at a time, in float64 on the CPU,
            as reference. Default ``"dopri5"``.
        rtol, atol: Relative and absolute tolerance of adaptive methods, positive, default 1e-5.
        steps: Number of steps of methods on equal steps.
        norm: Size of an error in units of the tolerance, ``(B,)`` from ``(B, n)``, default root mean square.
        max_calls: Most calls of the field of an adaptive method, default 20,000.
        where: Words for a time and a step in messages, where s is not the time that the user knows.

    Raises:
        UnknownNameError: No method has this name.
        ArgumentError: A tolerance is not positive; ``steps`` is missing where the method needs it.
        ToleranceError: The tolerance cannot be reached (names the time, the step, the calls).
        NonFiniteError: The method is adaptive and the field returned NaN or infinity.
    """
    if method not in ODE_METHODS:
        raise UnknownNameError("method", method, ODE_METHODS)
    if y.ndim != 2 or not y.is_floating_point():
        raise ShapeError("y", f"{tuple(y.shape)} of {y.dtype}", "states (B, n), floating point")
    problem, control = Problem(field, y, start, end), Control(rtol, atol, norm, max_calls, where)
    if method in FIXED:
        if steps is None:
            raise ArgumentError("steps", steps, f"the number of steps of the fixed-step method {method!r}")
        return solve_fixed(problem, TABLEAUX[method], whole("steps", steps))
    if method in ADAPTIVE:
        return AdaptiveRun(problem, TABLEAUX[method], control).run()
    if method in TORCHDIFFEQ:
        return solve_torchdiffeq(problem, method, control, steps)
    return solve_scipy(problem, method, control)
