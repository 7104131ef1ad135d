"""Runge-Kutta solvers, on equal steps and with a step size per sample.

Symbols:
    s: time of the equation. h: step, positive; ``direction`` (1 or -1) is its sign.
    k: slopes at the stages of a step. f: slope at its start.
    error: estimated error of a step in units of the tolerance, ``(B,)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.errors import NonFiniteError, ToleranceError
from scoresde.flow.problem import SHOWN, Control, Field, Problem, Solution
from scoresde.flow.tableaux import Tableau

SHORTEST = 1e-14  # step in units of the span, below which the tolerance is out of reach


def stages(field: Field, s: Tensor, y: Tensor, h: Tensor, tableau: Tableau, f: Tensor, rows: Tensor) -> list[Tensor]:
    """Return the slopes ``(B, n)`` at the stages of one step h ``(B,)``.

    f is the first of them.
    """
    k = [f]
    column = h[:, None]
    for c, a in zip(tableau.c[1:], tableau.a, strict=True):
        k.append(field(s + c * h, y + column * weighted(a, k), rows))
    return k


def weighted(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """Return the sum of weighted slopes; slopes of weight zero cost nothing."""
    terms = [w * k_i for w, k_i in zip(weights, k, strict=True) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def solve_fixed(problem: Problem, tableau: Tableau, steps: int) -> Solution:
    """Solve a problem on equal steps."""
    y, rows = problem.y, problem.rows
    grid = torch.linspace(problem.start, problem.end, steps + 1, dtype=torch.float64).tolist()
    for s0, s1 in itertools.pairwise(grid):
        s, h = y.new_full((len(y),), s0), y.new_full((len(y),), s1 - s0)
        k = stages(problem.field, s, y, h, tableau, problem.field(s, y, rows), rows)
        y = y + h[:, None] * weighted(tableau.b, k)
    return Solution(y, steps * len(tableau.b))


class AdaptiveRun:
    """An adaptive solution with a time, step and error norm per sample.

    No sample's path therefore depends on its batch. Samples that have reached the end leave the batch.

    Args:
        problem: The problem.
        tableau: A method with an embedded one.
        control: Tolerances and messages.
    """

    def __init__(self, problem: Problem, tableau: Tableau, control: Control):
        self.field, self.tableau, self.control = problem.field, tableau, control
        self.start, self.span = problem.start, abs(problem.end - problem.start)
        self.direction = 1.0 if problem.end > problem.start else -1.0
        self.rows, self.y, self.result = problem.rows, problem.y, problem.y.clone()
        self.passed = self.y.new_zeros(len(self.y))  # how far each sample has come, 0..span
        self.f = self.field(self.time(), self.y, self.rows)
        self.h = self._first_step()
        self.last_error = torch.ones_like(self.h)
        self.calls = 2

    def time(self) -> Tensor:
        """Return each sample's time s, ``(B,)``."""
        return self.start + self.direction * self.passed

    def run(self) -> Solution:
        """Return the solution at the end."""
        while len(self.rows):  # this length is the one wait for the device per step
            self._check_calls()
            last = self.passed + self.h >= self.span * (1 - 1e-12)
            self.h = torch.where(last, self.span - self.passed, self.h)
            # 1. one step of the method, and the estimate of its error
            y_new, f_new, error = self._attempt()
            # 2. accept it where the error is small, and choose the next step
            accept = (error <= 1) & error.isfinite()
            self._advance(y_new, f_new, error, accept)
            self._check_steps(error)
            # 3. samples at the end leave
            self._leave(accept & last)
        return Solution(self.result, self.calls)

    def _first_step(self) -> Tensor:
        """Return each sample's first step (Hairer, Norsett & Wanner 1993, II.4)."""
        control, y, f, norm = self.control, self.y, self.f, self.control.norm
        scale = control.atol + control.rtol * y.abs()
        d0, d1 = norm(y / scale), norm(f / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).nan_to_num(nan=1e-6).clamp(max=self.span)
        step = self.direction * h0
        f1 = self.field(self.time() + step, y + step[:, None] * f, self.rows)
        d2 = norm((f1 - f) / scale) / h0
        largest = torch.maximum(d1, d2)
        h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / largest) ** (1 / self.tableau.order))
        return torch.minimum(100 * h0, torch.where(h1.isnan(), 1e-3 * h0, h1)).clamp(max=self.span)

    def _attempt(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(y, f, error)`` at the end of a step of h."""
        control, tableau, step = self.control, self.tableau, self.direction * self.h
        k = stages(self.field, self.time(), self.y, step, tableau, self.f, self.rows)
        self.calls += len(tableau.b) - 1
        y_new = self.y + step[:, None] * weighted(tableau.b, k)
        difference = step[:, None] * weighted(tableau.error or (), k)
        error = control.norm(difference / (control.atol + control.rtol * torch.maximum(self.y.abs(), y_new.abs())))
        return y_new, k[-1], error

    def _advance(self, y_new: Tensor, f_new: Tensor, error: Tensor, accept: Tensor) -> None:
        """Move the samples whose step is accepted, and set the next step of all.

        The controller is proportional-integral (Hairer & Wanner 1996, IV.2, with their beta = 0.04 for order 5).
        """
        order = self.tableau.order
        safe = error.nan_to_num(nan=1e10, posinf=1e10).clamp(min=1e-10)
        factor = 0.9 * safe ** (-0.85 / order) * self.last_error ** (0.2 / order)
        factor = torch.where(accept, factor.clamp(0.2, 10.0), (0.9 * safe ** (-1 / order)).clamp(0.1, 1.0))
        self.y = torch.where(accept[:, None], y_new, self.y)
        self.f = torch.where(accept[:, None], f_new, self.f)
        self.passed = torch.where(accept, self.passed + self.h, self.passed)
        self.last_error = torch.where(accept, safe.clamp(min=1e-4), self.last_error)
        self.h = self.h * factor

    def _leave(self, done: Tensor) -> None:
        """Store the results of samples at the end, and keep the others."""
        if not bool(done.any()):
            return
        self.result = self.result.index_put((self.rows[done],), self.y[done])
        keep = ~done
        self.rows, self.y, self.f = self.rows[keep], self.y[keep], self.f[keep]
        self.passed, self.h, self.last_error = self.passed[keep], self.h[keep], self.last_error[keep]

    def _where(self, sample: Tensor) -> str:
        """Return the words for the time and step of the first of some samples."""
        s, h = self.time()[sample][0].item(), self.direction * self.h[sample][0].item()
        return self.control.where(s, h)

    def _check_calls(self) -> None:
        if self.calls + len(self.tableau.b) <= self.control.max_calls:
            return
        at = self._where(torch.ones_like(self.h, dtype=torch.bool))
        raise ToleranceError(
            f"{self.control.tolerances} not reached after {self.calls} calls: {len(self.rows)} samples have not "
            f"arrived, sample {self.rows[0].item()} is at {at}"
        )

    def _check_steps(self, error: Tensor) -> None:
        bad = self.h < SHORTEST * self.span
        if not bool(bad.any()):
            return
        at, samples = self._where(bad), self.rows[bad]
        if not bool(error.isfinite()[bad].all()):
            raise NonFiniteError(self.control.not_finite(at, self.calls, samples))
        raise ToleranceError(
            f"{self.control.tolerances} cannot be reached: at {at}, {self.calls} calls, "
            f"samples {samples.tolist()[:SHOWN]}"
        )
