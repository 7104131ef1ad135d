"""Solvers of torchdiffeq and scipy, with the errors of this package."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ArgumentError, NonFiniteError, ToleranceError
from scoresde.flow.problem import Control, Problem, Solution

MULTISTEP = ("explicit_adams", "implicit_adams")  # on equal steps
TORCHDIFFEQ = ("dopri8", "adaptive_heun", *MULTISTEP)
SCIPY = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")


def solve_torchdiffeq(problem: Problem, method: str, control: Control, steps: int | None) -> Solution:
    """Solve a problem by torchdiffeq.

    The step is one for the whole batch; the worst sample's error decides.
    """
    from torchdiffeq import odeint

    y, rows = problem.y, problem.rows
    calls, last_two = 0, list[tuple[Tensor, Tensor]]()

    def function(s: Tensor, flat: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        value = problem.field(s.to(y.dtype).expand(len(y)), flat.reshape(y.shape), rows)
        last_two[:] = [*last_two[-1:], (s, value)]
        return value.flatten()

    times = torch.tensor([problem.start, problem.end], dtype=y.dtype, device=y.device)
    # a step must end at the last time: past it torchdiffeq would interpolate, to a lower order than the method's
    options = {"norm": lambda error: control.norm(error.reshape(y.shape)).max(), "step_t": times[1:]}
    if method in MULTISTEP:
        if steps is None:
            raise ArgumentError("steps", None, f"the number of steps of {method!r}")
        options = {"step_size": abs(problem.end - problem.start) / steps}
    tolerances = {"rtol": control.rtol, "atol": control.atol}
    try:
        flat: Tensor = odeint(function, y.flatten(), times, method=method, options=options, **tolerances)[-1]
    except AssertionError as error:  # torchdiffeq's error for an underflow of the step
        (before, _), (s, value) = last_two[0], last_two[-1]
        at = control.where(before.item(), (s - before).item())
        bad = ~value.isfinite().all(1)
        if bool(bad.any()):
            raise NonFiniteError(control.not_finite(at, calls, rows[bad])) from error
        raise ToleranceError(f"{method} with {control.tolerances}, at {at}, {calls} calls: {error}") from error
    return Solution(flat.reshape(y.shape), calls)


def solve_scipy(problem: Problem, method: str, control: Control) -> Solution:
    """Solve a problem by scipy, as reference.

    It takes one sample at a time, in float64 on the CPU.
    """
    solved = [_solve_row(problem, i, method, control) for i in range(len(problem.y))]
    y = torch.stack([state for state, _ in solved]).to(problem.y.device)
    return Solution(y, max((calls for _, calls in solved), default=0))


def _solve_row(problem: Problem, i: int, method: str, control: Control) -> tuple[Tensor, int]:
    """Return the end of sample i on the CPU, and the calls that it took."""
    from scipy.integrate import solve_ivp

    y, row, last = problem.y, torch.tensor([i], device=problem.y.device), list[float]()

    def function(s: float, state: np.ndarray) -> np.ndarray:
        s_row = torch.tensor([s], dtype=y.dtype, device=y.device)
        state_row = torch.as_tensor(state, dtype=y.dtype).to(y.device)[None]
        value: np.ndarray = problem.field(s_row, state_row, row)[0].double().cpu().numpy()
        if not np.isfinite(value).all():  # scipy would continue, some methods for ever
            at = control.where(s, s - last[-1] if last else 0.0)
            raise NonFiniteError(f"the field returned NaN or infinity at {at}, samples [{i}]")
        last[:] = [s]
        return value

    first = y[i].detach().double().cpu().numpy()
    rtol = max(control.rtol, 100 * np.finfo(float).eps)
    solution = solve_ivp(function, (problem.start, problem.end), first, method=method, rtol=rtol, atol=control.atol)
    if not solution.success:
        s = solution.t[-1]
        at = control.where(s, last[-1] - s)
        raise ToleranceError(f"{method}, sample {i}: {solution.message} (at {at}, {solution.nfev} calls)")
    return torch.as_tensor(solution.y[:, -1], dtype=y.dtype), solution.nfev
