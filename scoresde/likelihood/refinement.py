"""The error of log p, estimated; more calls where it is too large.

The method ``"multistep"`` solves each flow twice, with a third of its calls and with the others. Their difference
estimates the error of the path. Weights of a lower order estimate those at its ends, which both solutions share:

    below the first level: the data may have detail narrower than the noise there;
    above the last level: the process may end before the data are Gaussian.

Samples that miss the tolerance are solved again with twice the calls, and at last by an adaptive method with two
tolerances. Each sample keeps the solution whose estimated error is least.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, LikelihoodWarning, NonFiniteError, ToleranceError, warn
from scoresde.likelihood.flow_settings import DEFAULT_STEPS, End, FlowSettings
from scoresde.likelihood.gaussian_path import PathErrors
from scoresde.likelihood.path_plan import LEAST_CALLS
from scoresde.likelihood.results import Likelihood

COARSE, FINE = 33, (67, 134, 268)  # calls of the solutions, where the caller does not fix them
DEFAULT_ATOL = 1e-3  # in nats a dimension
REACH = 1.2  # by which the last level's lambda is lower at each refinement: a network is not Gaussian at high noise
ADAPTIVE = "dopri5"
ADAPTIVE_TOLERANCES = (1e-5, 1e-7)
ADAPTIVE_CALLS = 2500  # most calls of it, with either tolerance
SHRINKAGE = 0.5  # least gain from a third of the calls to the others; it is 10 or more where the path is resolved
UNRESOLVED = 3.0  # by which the estimates of samples that miss the tolerance grow: two wrong solutions may agree
ROUNDING = 1e-8  # error of log p from rounding, in units of its size, in float64

PATH = (
    "the path between data and noise is not resolved: take more `steps`, or method='dopri5' with a small rtol. Samples "
    "far from the data are the hardest"
)
LOW = (
    "the data have detail narrower than the noise at t_min = {t_min:.3g}: take a smaller t_min, or a process with less "
    "noise at its start"
)
HIGH = (
    "the process ends before the data are Gaussian: scale the data down, or take a process with more noise at its end"
)


class Attempt(NamedTuple):
    """One solution, and what it tells of its error.

    Attributes:
        likelihood: The result.
        errors: Estimated errors, without that of the path.
        path: The part of log p that depends on the path alone, ``(B,)``.
        exact: Whether the traces are exact.
        mean: Mean of the data under the condition, if it was estimated.
    """

    likelihood: Likelihood
    errors: PathErrors
    path: Tensor
    exact: bool
    mean: Tensor | None

    def distance(self, other: Attempt) -> Tensor:
        """Return the error of the path, from a coarser solution, ``(B,)``.

        With random probes only the part without their noise counts, and the error of the trace's rule is added.
        """
        if self.exact:
            return SHRINKAGE * (self.likelihood.log_prob - other.likelihood.log_prob).detach().abs()
        return SHRINKAGE * (self.path - other.path).abs() + self.errors.rule


#: computes some rows (None: all) with further arguments of one run
Run = Callable[..., Attempt]


@dataclass
class Estimated:
    """Log-likelihoods with the parts of their errors, in nats ``(B,)``.

    Attributes:
        likelihood: The result, with ``error`` the sum of the parts.
        parts: The errors of the path, of the data's end and of the noise's end, ``(3, B)``.
        tolerance: The tolerance in nats a sample. Infinity: none.
        dims: Entries of a sample.
    """

    likelihood: Likelihood
    parts: Tensor
    tolerance: float
    dims: int

    @classmethod
    def of(cls, attempt: Attempt, settings: FlowSettings, x0: Tensor, path_error: Tensor | None = None) -> Estimated:
        """Return a solution with the errors of its parts. None: unknown."""
        dims = x0[0].numel()
        found = attempt.likelihood
        if path_error is None:
            parts = torch.full((3, len(x0)), math.nan, dtype=found.stderr.dtype, device=found.stderr.device)
        else:
            parts = torch.stack([path_error, attempt.errors.low, attempt.errors.high])
        atol = DEFAULT_ATOL if settings.atol is None else settings.atol
        made = cls(found, parts, atol * dims if path_error is not None else math.inf, dims)
        made.total()
        return made

    def total(self) -> None:
        """Set ``error`` to the sum of the parts, and the rounding's."""
        rounding = ROUNDING * self.likelihood.log_prob.detach().abs()
        self.likelihood = self.likelihood._replace(error=self.parts.nan_to_num(nan=math.nan).sum(0) + rounding)

    @property
    def missing(self) -> Tensor:
        """The samples whose error is above the tolerance; waits for the device."""
        return (~(self.likelihood.error <= self.tolerance)).nonzero().flatten()

    def take(self, rows: Tensor, better: Estimated, method: str) -> None:
        """Take those rows of another solution whose error is less."""
        old, new = self.likelihood, better.likelihood
        wins = new.error < old.error[rows]
        chosen = rows[wins]

        def merged(name: str) -> Tensor:
            value: Tensor = getattr(old, name).clone()
            value[chosen] = getattr(new, name)[wins].to(value)
            return value

        names = ("log_prob", "stderr", "latent", "below", "prior_gap", "defect", "error")
        self.parts = self.parts.clone()
        self.parts[:, chosen] = better.parts[:, wins]
        values: dict[str, Any] = {name: merged(name) for name in names}
        self.likelihood = old._replace(**values, nfe=old.nfe + new.nfe, method=method)

    def warn(self) -> None:
        """Warn of samples that miss the tolerance, with the cause."""
        warn_of([self])


def warn_of(parts: list[Estimated]) -> None:
    """Warn once of samples that miss the tolerance, with the commonest cause."""
    errors = torch.cat([one.likelihood.error.cpu().double() / one.dims for one in parts])
    causes = torch.cat([one.parts.cpu().double() for one in parts], 1)
    tolerance = parts[0].tolerance / parts[0].dims
    wrong = ~(errors <= tolerance)
    if math.isinf(tolerance) or not bool(wrong.any()):
        return
    most = int(causes[:, wrong].nan_to_num(nan=math.inf).argmax(0).mode().values)
    cause = (PATH, LOW, HIGH)[most].format(t_min=parts[0].likelihood.t_min)
    largest = errors.max().item()
    warn(
        LikelihoodWarning(int(wrong.sum()), len(errors), tolerance, largest, cause),
        stacklevel=4,
    )


def refined(run: Run, settings: FlowSettings, x0: Tensor, mean_known: bool) -> Estimated:
    """Solve by ``"multistep"`` until the estimated error is small enough.

    Args:
        run: Computes rows.
        settings: Those of the likelihood. With ``steps`` or gradients there is no refinement.
        x0: The data.
        mean_known: Whether no call is needed for the mean of the data.
    """
    calls = None if settings.steps is None else settings.steps - int(not mean_known)
    least = 2 * LEAST_CALLS
    if calls is not None and calls < least:
        raise ArgumentError("steps", settings.steps, f"{least + int(not mean_known)} calls or more")
    # 1. two solutions
    coarse_calls, fine_calls = COARSE, FINE[0]
    if calls is not None:
        coarse_calls = max(LEAST_CALLS, calls // 3)
        fine_calls = calls - coarse_calls
    with torch.no_grad():
        before = run(None, calls=coarse_calls, rough=True)
    mean = before.mean
    fine = run(None, calls=fine_calls, mean=mean)
    found = Estimated.of(fine, settings, x0, fine.distance(before))
    found.likelihood = found.likelihood._replace(nfe=before.likelihood.nfe + fine.likelihood.nfe)
    if calls is not None or settings.differentiable:
        return found
    # 2. more calls for the samples that need them
    rows, before, reach = torch.arange(len(x0), device=x0.device), fine, 0.0
    for more in FINE[1:]:
        missing = found.missing
        if not len(missing):
            return found
        where = torch.searchsorted(rows, missing)
        reach += REACH
        fine = run(missing, calls=more, mean=None if mean is None else mean[missing], reach=reach)
        distance = fine.distance(_rows_of(before, where))
        found.take(missing, Estimated.of(fine, settings, x0[missing], distance), found.likelihood.method)
        rows, before = missing, fine
    # 3. an adaptive method for those that are left
    missing = found.missing
    if len(missing):
        hidden = _rows_of(before, torch.searchsorted(rows, missing)).errors
        _adaptively(run, settings, x0, found, missing, mean, hidden)
        found.parts[:, found.missing] *= UNRESOLVED
        found.total()
    return found


def _rows_of(attempt: Attempt, rows: Tensor) -> Attempt:
    """Return a solution's numbers at some rows, for a distance or errors."""
    likelihood = attempt.likelihood._replace(log_prob=attempt.likelihood.log_prob[rows])
    errors = PathErrors(*(error[rows] for error in attempt.errors))
    return attempt._replace(likelihood=likelihood, path=attempt.path[rows], errors=errors)


def _adaptively(
    run: Run,
    settings: FlowSettings,
    x0: Tensor,
    found: Estimated,
    rows: Tensor,
    mean: Tensor | None,
    hidden: PathErrors,
) -> None:
    """Solve some rows by an adaptive method, with two tolerances.

    The looser solution also has a lower order below t_min, so that their difference shows the error there too.
    """
    mean = None if mean is None else mean[rows]
    loose_end: End = "half-tweedie" if settings.end == "heun" else settings.end
    try:
        loose, tight = (
            run(rows, method=ADAPTIVE, tolerance=tolerance, end=end, mean=mean, max_calls=ADAPTIVE_CALLS)
            for tolerance, end in zip(ADAPTIVE_TOLERANCES, (loose_end, settings.end), strict=True)
        )
    except (ToleranceError, NonFiniteError):
        return
    difference = loose.likelihood.log_prob - tight.likelihood.log_prob
    if not tight.exact:
        noise = loose.likelihood.stderr.square() + tight.likelihood.stderr.square()
        difference = (difference.square() - noise).clamp(min=0).sqrt()
    difference = difference.detach().abs()
    at_end = hidden.hidden_low > 0  # the first level is coarse: the solutions differ by their orders below it
    low = hidden.hidden_low + torch.where(at_end, difference, 0.0)
    tight = tight._replace(errors=hidden._replace(low=low, high=hidden.hidden_high))
    better = Estimated.of(tight, settings, x0[rows], torch.where(at_end, 0.0, difference))
    better.likelihood = better.likelihood._replace(nfe=loose.likelihood.nfe + tight.likelihood.nfe)
    found.take(rows, better, f"{found.likelihood.method}, {ADAPTIVE}")


def of_fixed_grid(run: Run, settings: FlowSettings, x0: Tensor) -> Estimated:
    """Solve by a Runge-Kutta method, on equal steps and on half of them.

    With random probes their noise is subtracted from the difference.
    """
    steps = settings.steps or DEFAULT_STEPS
    fine = run(None)
    if steps < 2:
        return Estimated.of(fine, settings, x0)
    with torch.no_grad():
        coarse = run(None, calls=steps // 2)
    difference = (fine.likelihood.log_prob - coarse.likelihood.log_prob).detach()
    if not fine.exact:
        noise = fine.likelihood.stderr.square() + coarse.likelihood.stderr.square()
        difference = (difference.square() - noise).clamp(min=0).sqrt()
    found = Estimated.of(fine, settings, x0, difference.abs())
    found.likelihood = found.likelihood._replace(nfe=coarse.likelihood.nfe + fine.likelihood.nfe)
    return found
