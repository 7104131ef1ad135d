"""The reverse SDE with a step size that each sample adapts for itself.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    theta = alpha^2/sigma^2: the SNR, the time variable of this sampler. y = x/alpha. u = theta y.
    B: a Brownian motion in theta, W its increment over a step from theta to s.
    v: variance of the data. R: ratio of 1 + v theta at the ends of a step.

In theta and u the reverse SDE (E2) is

    du = x0(x, t) dtheta + dB

No linear part is left, and the noise is additive with rate one. Euler's step in it is the exponential Euler step in
log-SNR, which is ancestral sampling (D3 with eta = 1). The pair of an Euler and an improved step is
Jolicoeur-Martineau et al.'s (2021); the time variable, the weights of the improved step and the refined noise are ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import NonFiniteError, ToleranceError
from scoresde.flow.problem import rms
from scoresde.models import Model
from scoresde.models.conditions import Condition, condition_rows
from scoresde.random import Generators
from scoresde.sampling.base import Sampler, State
from scoresde.sampling.brownian import BrownianPaths
from scoresde.sde.grids import check_finite_log_snr
from scoresde.sde.tensors import broadcast, flat, state_dtype

# Largest ratio of theta + 1/v at the ends of a step. Over larger steps Euler's and the improved one always agree.
LARGEST_RATIO = 4.0
MAX_DEPTH = 256  # points known ahead on a path; a rejection adds at most one
SAMPLES_NAMED = 8  # that an error message lists
# The next step is the last one times SAFETY error^EXPONENT, within the bounds of the factor below. The error is of
# order 3/2 in the step, as the noise in x0 is its largest part.
SAFETY, EXPONENT = 0.9, -2 / 3
SMALLEST_AFTER_ACCEPTING, LARGEST_AFTER_ACCEPTING = 0.3, 5.0
SMALLEST_AFTER_REJECTING, LARGEST_AFTER_REJECTING = 0.1, 0.7


@checked
@dataclass(frozen=True, repr=False)
class AdaptiveSDE(Sampler):
    """The reverse SDE with steps adapted per sample (E2).

    In theta = alpha^2/sigma^2 and y = x/alpha, the sampler takes Euler's step and an improved one on the same Brownian
    increment (:func:`improved_euler`). It accepts the improved one if

        rms(y - y_Euler) <= atol + rtol rms(y),    rms over the entries of the sample

    The weak order is 2 (strong order 1) at one network call an attempt: the estimate that improves a step also starts
    the next one. No step multiplies theta + 1/v by more than 4, with v the variance of the data.

    A rejected step is tried again, smaller, on the same path, refined by the Brownian bridge (:class:`BrownianPaths`).
    Rejections thus do not bias the noise. Each sample has a separate time, step and path, and finished samples leave
    the batch. With a list of generators a sample does not depend on the rest of its batch.

    Args:
        rtol: Tolerance of a step relative to the size of y, positive, default 1e-2.
        atol: Tolerance of a step in units of the data, positive, default 1e-3. Detail of the data near atol is lost: a
            spread of 20 atol comes out a few per cent too wide.
        first_step: First step tried, in theta, positive. None (default): rtol/v, or theta/10 if that is larger.
        max_calls: Largest number of network calls, default 20000.
        t_min, t_max, last: See :class:`Sampler`.

    v comes from the model's moments. If they are unknown, v is 1 and no step multiplies theta by more than 4.

    ``steps`` is the number of states of a trajectory, 1 by default. They are uniform in log-SNR, and steps end on them.

    Raises:
        ArgumentError: A tolerance or a first step is not positive; in a run, log-SNR is infinite at one of the ends.
        ToleranceError: The tolerance is not reached; names t, the step and the calls.
        NonFiniteError: The network gave NaN or infinity; names t, the call and the samples.

    Notes:
        Measured on mixtures of 3 and 8 Gaussians under VP, with atol = rtol/10: the mean of -log p over the samples
        minus the entropy, in nats, and the mean network calls of a sample.

        ====  =================  ===================  ====================
        rtol  d = 2 (+- .01)     d = 16 (+- .04)      d = 64 (+- .14)
        ====  =================  ===================  ====================
        0.1    .00 at 23 calls    .08 at 20 calls      .69 at 21 calls
        0.01   .00 at 83 calls   -.02 at 60 calls     -.24 at 58 calls
        ====  =================  ===================  ====================

    References: Jolicoeur-Martineau et al. 2021; Rackauckas & Nie 2017.
    """

    rtol: float = 1e-2
    atol: float = 1e-3
    first_step: float | None = field(default=None, kw_only=True)
    max_calls: int = field(default=20_000, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(rtol=positive("rtol", self.rtol), atol=positive("atol", self.atol))
        if self.first_step is not None:
            self._store(first_step=positive("first_step", self.first_step))
        self._store(max_calls=whole("max_calls", self.max_calls))

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        sde, steps = model.sde, 1 if steps is None else steps
        t_min, t_max = model.time_range(self.t_min, self.t_max)
        check_finite_log_snr(sde, t_min, t_max)
        start, end = (sde.log_snr(t).item() for t in (t_max, t_min))
        grid = torch.linspace(start, end, steps + 1, dtype=torch.float64)
        levels = sde.levels(torch.tensor([t_max, *sde.time_of(grid[1:-1]).tolist(), t_min], dtype=torch.float64))
        yield State(x, t_max, None, 0, steps, 0)
        walk = _Walk(self, model, x, levels[0].alpha, math.exp(start), cond)
        for i, (before, level) in enumerate(itertools.pairwise(levels), start=1):
            walk.to(math.exp(before.log_snr), math.exp(level.log_snr), generator)
            x_s, x0 = (v.reshape(x.shape).to(x.dtype) for v in (level.alpha * walk.y, walk.x0))
            yield State(x_s, level.t, x0, i, steps, walk.calls)


def improved_euler(
    y: Tensor,
    x0: Tensor,
    increment: Tensor,
    theta: Tensor,
    s: Tensor,
    variance: float,
    estimate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one improved Euler step from theta to s.

        dy = (x0 - y) dtheta/theta + dB/theta

    Euler's step is y_e = q y + (1 - q) x0 + W/s, q = theta/s. The improved one adds

        w (1 - q) (x0(y_e, s) - x0),    w = min(1, R/(1 + sqrt(R))),    R = (1 + v s)/(1 + v theta)

    w = 1/2 + O(s - theta), so the weak order is 2. For data N(m, v I) these weights, without the bound 1, give the
    exact transition for every step, where the trapezoid (w = 1/2) contracts.

    The next step starts from x0(y_e, s), moved towards x0(y, s) by half of the change it has for data N(m, v I). On
    mixtures the whole change makes samples too wide, by as much as no change makes them too narrow.

    Args:
        y: Samples ``(B, n)`` at theta.
        x0: Their estimates ``(B, n)``.
        increment: W ``(B, n)``.
        theta, s: Ends of the step, ``(B, 1)``.
        variance: v.
        estimate: Function from y ``(B, n)`` at s to x0.

    Returns:
        ``(y at s, x0 at s, y - y_e)``, each ``(B, n)``.
    """
    q = theta / s
    euler = q * y + (1 - q) * x0 + increment / s
    x0_s = estimate(euler)
    R = (1 + variance * s) / (1 + variance * theta)
    change = (R / (1 + R.sqrt())).clamp(max=1.0) * (1 - q) * (x0_s - x0)
    return euler + change, x0_s + 0.5 * (1 - 1 / (1 + variance * s)) * change, change


class _Walk:
    """The state of a batch on its way.

    Attributes:
        y, x0: y = x/alpha and its estimate, flat ``(B, n)``.
        h: Next step to try, in theta, ``(B,)``.
        calls: Network calls so far.
    """

    def __init__(
        self, sampler: AdaptiveSDE, model: Model, x: Tensor, alpha: float, theta: float, cond: Condition
    ) -> None:
        self.sampler, self.model, self.shape, self.cond, self.calls = sampler, model, x.shape[1:], cond, 0
        self.variance = 1.0 if model.moments is None else model.moments.std**2
        self.room = 0.0 if model.moments is None else (LARGEST_RATIO - 1) / max(self.variance, 1e-300)
        self.y = flat(x).to(state_dtype(x)) / alpha
        first = sampler.first_step
        if first is None:
            first = max(sampler.rtol / max(self.variance, 1e-300), 0.1 * theta)
        self.h = self.y.new_full((len(x),), first)
        self.x0 = self.estimate(torch.full_like(self.h, theta), self.y, torch.arange(len(x), device=x.device))

    def estimate(self, theta: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Return x0 ``(b, n)`` for y ``(b, n)`` of the samples ``rows``.

        Each sample is at its theta ``(b,)``.
        """
        sde = self.model.sde
        t = sde.time_of(theta.log())
        x = (broadcast(sde.alpha(t), y) * y).reshape(len(y), *self.shape).to(self.model.dtype)
        cond = condition_rows(self.cond, rows)
        x0 = flat(self.model.estimate(x, sde.level_at(t, x), cond).x0).to(y.dtype)
        self.calls += 1
        finite = x0.isfinite().all(1)
        if not bool(finite.all()):
            raise NonFiniteError(
                f"the network gave NaN or infinity at t = {t[~finite][0].item():.6g}, call {self.calls}, "
                f"samples {rows[~finite].tolist()[:SAMPLES_NAMED]}"
            )
        return x0

    def to(self, start: float, end: float, generator: Generators) -> None:
        """Take the whole batch from theta = ``start`` to ``end``."""
        y, x0, h = self.y, self.x0, self.h
        paths = BrownianPaths(start, y, generator)
        rows = torch.arange(len(y), device=y.device)
        ends = [torch.empty_like(v) for v in (y, x0, h)]
        while len(rows):
            # 1. try a step, up to a point of the path
            theta = paths.now
            self._check_progress(theta, h, rows, paths.depth)
            s, value = paths.look(torch.minimum(theta + h, LARGEST_RATIO * theta + self.room).clamp(max=end))
            y_s, x0_s, change = improved_euler(
                y,
                x0,
                value - paths.here,
                theta[:, None],
                s[:, None],
                self.variance,
                partial(self.estimate, s, rows=rows),
            )
            # 2. accept it where the error is within the tolerance
            error = rms(change) / (self.sampler.atol + self.sampler.rtol * rms(y_s))
            accept = error <= 1
            paths.walk(accept, s, value)
            y, x0 = (torch.where(accept[:, None], new, old) for new, old in ((y_s, y), (x0_s, x0)))
            # 3. choose the next step
            h = _next_step(h, s - theta, error, accept)
            # 4. put aside the samples that have come to the end
            done = paths.now >= end
            if bool(done.any()):
                for total, part in zip(ends, (y, x0, h), strict=True):
                    total[rows[done]] = part[done]
                y, x0, h, rows = (v[~done] for v in (y, x0, h, rows))
                paths.keep(~done)
        self.y, self.x0, self.h = ends

    def _check_progress(self, theta: Tensor, h: Tensor, rows: Tensor, depth: int) -> None:
        """Raise a ToleranceError when calls, memory or step sizes run out."""
        relative = h / theta
        smallest = 1e3 * torch.finfo(h.dtype).eps
        if self.calls < self.sampler.max_calls and depth <= MAX_DEPTH and not bool((relative < smallest).any()):
            return
        worst = relative.argmin()
        ends = torch.stack([theta[worst], theta[worst] + h[worst]]).double().log()
        t, s = self.model.sde.time_of(ends).tolist()
        raise ToleranceError(
            f"rtol={self.sampler.rtol:g}, atol={self.sampler.atol:g} not reached: sample {rows[worst].item()} is at "
            f"t = {t:.6g} with a step of {t - s:.3g} ({relative[worst].item():.3g} of alpha^2/sigma^2) "
            f"after {self.calls} calls"
        )


def _next_step(h: Tensor, taken: Tensor, error: Tensor, accept: Tensor) -> Tensor:
    """Return the next step to try ``(b,)``.

    Args:
        h: Step that was wanted.
        taken: Step that was tried, at most h.
        error: Its error in tolerances.
        accept: Whether it was accepted.
    """
    factor = SAFETY * error.clamp(min=1e-10) ** EXPONENT
    longer = taken * factor.clamp(SMALLEST_AFTER_ACCEPTING, LARGEST_AFTER_ACCEPTING)
    # a step that was cut short by a known point says nothing against h
    longer = torch.where(taken < 0.999 * h, torch.maximum(h, longer), longer)
    return torch.where(accept, longer, taken * factor.clamp(SMALLEST_AFTER_REJECTING, LARGEST_AFTER_REJECTING))
