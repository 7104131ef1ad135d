"""The reverse SDE with steps that each sample chooses for itself, on a Brownian path that rejections refine.

In the clock theta = alpha^2/sigma^2 (the SNR) and in u = theta y, y = x/alpha, the reverse SDE (E2) is

    du = x0(x, t) dtheta + dB,    B a Brownian motion in theta:

no linear part is left and the noise is additive with rate one. Euler's step in it is the exponential Euler step in
log-SNR, which is ancestral sampling (D3 with eta = 1).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError, NonFiniteError, ToleranceError
from scoresde.flow.ode import rms
from scoresde.models import Model
from scoresde.models.conditions import Condition, condition_rows
from scoresde.random import randn
from scoresde.sampling.samplers import Sampler, State
from scoresde.sde.grids import time_range
from scoresde.sde.tensors import broadcast, flat, state_dtype

LARGEST_RATIO = 4.0  # of theta + 1/variance at a step's ends
MAX_DEPTH = 256  # known points ahead; a rejection adds at most one


class BrownianPaths:
    """Brownian paths of a batch, one a sample: walked from left to right, and known ahead where they were looked at.

    What was seen of a path is never forgotten until the walk has passed it; between known points new values come from
    the Brownian bridge. So a step may be tried, rejected and made smaller without a change of the noise's law
    (rejection sampling with memory; Rackauckas & Nie 2017).

    Args:
        start: the clock at the start, where the paths are zero.
        like: ``(B, n)``, gives shape, dtype and device.
        generator: a torch.Generator, or a list of B: then sample i draws from its own, and only for itself.
    """

    def __init__(self, start: float, like: Tensor, generator=None):
        self.now, self.here = like.new_full((len(like),), start), torch.zeros_like(like)
        self.generator = list(generator) if isinstance(generator, (list, tuple)) else generator
        if isinstance(self.generator, list) and len(self.generator) != len(like):
            raise ArgumentError(
                "generator", f"a list of {len(self.generator)}", f"one generator or {len(like)}, one a sample"
            )
        # per sample a stack: the nearest point ahead is the last one beyond now; what is not beyond now is free
        self.points = like.new_full((0, len(like)), -math.inf)
        self.values = like.new_zeros((0, *like.shape))

    def look(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """The path at s ``(B,)`` > now, or at the last point before s that is known already: ``(points, values)``."""
        ahead = (self.points > self.now).sum(0)
        rows = torch.arange(len(s), device=s.device)
        known = ahead > 0
        if len(self.points):
            nearest = (ahead - 1).clamp(min=0)
            right, end = self.points[nearest, rows], self.values[nearest, rows]
            new = ~known | (right > s)
        else:
            right, end, new = self.now, self.here, ~known
        if bool(new.any()):
            self._push(rows[new], ahead[new], s[new], known[new], right[new], end[new])
        index = (self.points > s).sum(0)  # the first of the stack that is not beyond s
        return self.points[index, rows], self.values[index, rows]

    def _push(self, rows: Tensor, index: Tensor, s: Tensor, known: Tensor, right: Tensor, end: Tensor):
        """Draw the paths of ``rows`` at s: freely where nothing is known ahead, else between now and ``right``."""
        now, here = self.now[rows], self.here[rows]
        q = torch.where(known, (s - now) / (right - now), 0.0)
        std = ((s - now) * torch.where(known, 1 - q, 1.0)).sqrt()
        generator = self.generator
        if isinstance(generator, list):
            generator = [generator[i] for i in rows.tolist()]
        z = randn(here.shape, generator, here.device, here.dtype)
        if int(index.max()) == len(self.points):
            self.points = torch.cat([self.points, torch.full_like(self.now, -math.inf)[None]])
            self.values = torch.cat([self.values, torch.zeros_like(self.here)[None]])
        self.points[index, rows] = s
        self.values[index, rows] = here + q[:, None] * (end - here) + std[:, None] * z

    @property
    def depth(self) -> int:
        """The most points known ahead of any sample so far."""
        return len(self.points)

    def walk(self, accept: Tensor, s: Tensor, value: Tensor):
        """Go to (s, value), a result of :meth:`look`, where ``accept``."""
        self.now = torch.where(accept, s, self.now)
        self.here = torch.where(accept[:, None], value, self.here)

    def keep(self, mask: Tensor):
        """Let the other samples go."""
        if isinstance(self.generator, list):
            self.generator = [g for g, kept in zip(self.generator, mask.tolist(), strict=True) if kept]
        self.now, self.here = self.now[mask], self.here[mask]
        self.points, self.values = self.points[:, mask], self.values[:, mask]


class AdaptiveSDE(Sampler):
    """The reverse SDE (E2) with steps adapted per sample, and noise that rejected steps do not bias.

    In the clock theta = alpha^2/sigma^2 and in y = x/alpha (see this module) a step compares Euler's with the improved
    one on the same Brownian increment, and keeps the improved one (:func:`step`; Jolicoeur-Martineau et al. 2021). It
    is accepted if the root mean square of their difference over the sample is at most atol + rtol times that of y.
    Weak order 2 (strong order 1) at one network call per attempt: the estimate that improves a step also starts the
    next one. No step may multiply theta + 1/variance by more than 4, as from far away the two steps always agree.

    A rejected step is tried again, smaller, on the same path, refined by the Brownian bridge (:class:`BrownianPaths`);
    noise is never drawn anew. Each sample has its own time, step and path; finished samples leave the batch. With a
    list of generators a sample does not depend on what else is in its batch.

    Measured on mixtures of 3 and 8 Gaussians under VP, the mean of -log p over the samples less the entropy, in nats,
    and the mean network calls of a sample:

        ====  =================  ===================  ====================
        rtol  d = 2 (+- .01)     d = 16 (+- .04)      d = 64 (+- .14)
        ====  =================  ===================  ====================
        0.1    .00 at 23 calls    .08 at 20 calls      .69 at 21 calls
        0.01   .00 at 83 calls   -.02 at 60 calls     -.24 at 58 calls
        ====  =================  ===================  ====================

    Args:
        rtol: tolerance of a step, relative to the size of y.
        atol: tolerance of a step in units of the data; the figures are for rtol / 10. Detail of the data near atol
            is lost: a spread of 20 atol comes out a few per cent too wide.
        first_step: the first step tried, in theta; None is rtol / variance, or theta / 10 if that is more.
        max_calls: network calls after which to give up.
        t_min, t_max, last: as in :class:`Sampler`.

    The variance is that of the model's data (``model.moments``); for a model that does not know it, 1, and theta itself
    is multiplied by 4 at most. ``steps`` is the number of states a trajectory shows, uniform in log-SNR, 1 by default;
    steps end on them.

    Raises:
        ArgumentError: a tolerance or a first step that is not positive; ends where log-SNR is infinite.
        ToleranceError: the tolerance is not reached (names t, the step and the calls).
        NonFiniteError: the network gave NaN or infinity (names t, the call and the samples).
    """

    def __init__(
        self,
        rtol: float = 1e-2,
        atol: float = 1e-3,
        *,
        first_step: float | None = None,
        max_calls: int = 20_000,
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(t_min=t_min, t_max=t_max, last=last)
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not 0 < value < math.inf:
                raise ArgumentError(name, value, "a positive tolerance")
        if first_step is not None and not 0 < first_step < math.inf:
            raise ArgumentError("first_step", first_step, "a positive step in alpha^2/sigma^2, or None")
        self.rtol, self.atol, self.first_step = rtol, atol, first_step
        self.max_calls = whole("max_calls", max_calls)

    def states(self, model, x, steps, cond, generator):
        sde = model.sde
        t_min, t_max = time_range(sde, self.t_min, self.t_max)
        start, end = (sde.log_snr(t).item() for t in (t_max, t_min))
        if not math.isfinite(start) or not math.isfinite(end):
            raise ArgumentError("t_min, t_max", (t_min, t_max), "times where sigma and alpha are not zero")
        grid = torch.linspace(start, end, steps + 1, dtype=torch.float64)
        levels = sde.levels(torch.tensor([t_max, *sde.time_of(grid[1:-1]).tolist(), t_min], dtype=torch.float64))
        yield State(x, t_max, None, 0, steps, 0)
        run = _Run(self, model, x, levels[0].alpha, math.exp(start), cond)
        for i, (before, level) in enumerate(itertools.pairwise(levels), start=1):
            run.to(math.exp(before.log_snr), math.exp(level.log_snr), generator)
            x_s, x0 = (v.reshape(x.shape).to(x.dtype) for v in (level.alpha * run.y, run.x0))
            yield State(x_s, level.t, x0, i, steps, run.calls)

    def __repr__(self):
        return f"AdaptiveSDE(rtol={self.rtol:g}, atol={self.atol:g})"


def step(y: Tensor, x0: Tensor, increment: Tensor, theta: Tensor, s: Tensor, variance: float, estimate):
    """One improved Euler step of dy = (x0 - y) dtheta/theta + dB/theta from theta to s, both ``(B, 1)``.

    Euler's is y_e = r y + (1 - r) x0 + increment/s, r = theta/s; the improved one adds

        w (1 - r) (x0(y_e, s) - x0),    w = min(1, R/(1 + sqrt(R))),    R = (1 + c s)/(1 + c theta).

    w = 1/2 + O(s - theta), so the weak order is 2. c is ``variance``: for data N(m, c I) these weights, not cut at 1,
    give the exact transition for every step, where the trapezoid (w = 1/2) contracts.

    For the next step x0(y_e, s) is moved towards x0(y, s), by half of what it would change for data N(m, c I): all of
    it spreads the samples of mixtures as much too far as none of it contracts them.

    Returns:
        ``(y, x0 at s, y - y_e)``.
    """
    r = theta / s
    euler = r * y + (1 - r) * x0 + increment / s
    x0_s = estimate(euler)
    R = (1 + variance * s) / (1 + variance * theta)
    change = (R / (1 + R.sqrt())).clamp(max=1.0) * (1 - r) * (x0_s - x0)
    return euler + change, x0_s + 0.5 * (1 - 1 / (1 + variance * s)) * change, change


class _Run:
    """The state of a batch between two levels: y = x/alpha and x0, flat ``(B, n)``, the next step tried ``(B,)``."""

    def __init__(self, sampler: AdaptiveSDE, model: Model, x: Tensor, alpha: float, theta: float, cond: Condition):
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
        """x0 for y ``(B, n)``, each sample at its own theta ``(B,)``."""
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
                f"samples {rows[~finite].tolist()[:8]}"
            )
        return x0

    def to(self, start: float, end: float, generator):
        """Take the whole batch from theta = ``start`` to ``end``, each sample in steps of its own."""
        y, x0, h = self.y, self.x0, self.h
        rtol, atol = self.sampler.rtol, self.sampler.atol
        paths = BrownianPaths(start, y, generator)
        rows = torch.arange(len(y), device=y.device)
        ends = [torch.empty_like(v) for v in (y, x0, h)]
        smallest = 1e3 * torch.finfo(y.dtype).eps
        while len(rows):
            theta = paths.now
            relative = h / theta
            if self.calls >= self.sampler.max_calls or paths.depth > MAX_DEPTH or bool((relative < smallest).any()):
                worst = relative.argmin()
                ends = torch.stack([theta[worst], theta[worst] + h[worst]]).double().log()
                t, s = self.model.sde.time_of(ends).tolist()
                raise ToleranceError(
                    f"rtol={rtol:g}, atol={atol:g} not reached: sample {rows[worst].item()} stands at t = {t:.6g} with "
                    f"a step of {t - s:.3g} ({relative[worst].item():.3g} of alpha^2/sigma^2) after {self.calls} calls"
                )
            s, value = paths.look(torch.minimum(theta + h, LARGEST_RATIO * theta + self.room).clamp(max=end))
            y_s, x0_s, change = step(
                y,
                x0,
                value - paths.here,
                theta[:, None],
                s[:, None],
                self.variance,
                lambda euler, s=s, rows=rows: self.estimate(s, euler, rows),
            )
            error = rms(change) / (atol + rtol * rms(y_s))
            accept = error <= 1
            paths.walk(accept, s, value)
            y, x0 = (torch.where(accept[:, None], new, old) for new, old in ((y_s, y), (x0_s, x0)))
            # the difference is of order 3/2: the noise in x0 is its largest part
            taken, factor = s - theta, 0.9 * error.clamp(min=1e-10) ** (-2 / 3)
            longer = taken * factor.clamp(0.3, 5.0)
            longer = torch.where(taken < 0.999 * h, torch.maximum(h, longer), longer)  # cut short by a known point
            h = torch.where(accept, longer, taken * factor.clamp(0.1, 0.7))
            done = paths.now >= end
            if bool(done.any()):
                for total, part in zip(ends, (y, x0, h), strict=True):
                    total[rows[done]] = part[done]
                y, x0, h, rows = (v[~done] for v in (y, x0, h, rows))
                paths.keep(~done)
        self.y, self.x0, self.h = ends
