r"""Guidance that is not exact, made so by weights: sequential Monte Carlo with several particles a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.errors import ArgumentError
from scoresde.random import rand
from scoresde.sampling.multistep import MAX_ORDER, combine, multistep_table
from scoresde.sampling.samplers import GridSampler, State, noise_like
from scoresde.sde.grids import Grid, time_grid
from scoresde.sde.tensors import flat


def _log_mean(log_w: Tensor) -> Tensor:
    """log of the mean of exp(log_w) ``(B, P)``, ``(B,)``."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


class Particles(GridSampler):
    r"""The reverse SDE of a guided model, with its guidance as a proposal (twisted diffusion; Wu et al. 2023).

    Each sample is drawn from P particles of its own. A particle takes the step of the guided estimate, and is weighted
    by what it should have been:

        w <- w p(x_s | x_t) L_s(x_s) / (q(x_s | x_t) L_t(x_t)),

    p the step of the model without guidance, one of :class:`DPMSolver` with noise, q that step moved by the guidance,
    and L_t = p_t(y | x_t) as the guidance has it. Where the weights of a
    sample have come to be worth fewer than ``resample`` P particles, the particles are drawn anew by their weights
    (systematic resampling). At the end one particle is taken by its weight. As L_t becomes p(y | x_0) at the end, the
    samples are from p(x_0 | y) as P and the steps grow, whatever the guidance was; a good one needs fewer particles. So
    several separate modes get the weights that are theirs, which guidance alone, an average over modes, misses.

    With few particles a sample is still biased: ``log_weight`` of the run's last :class:`State` is the logarithm of an
    unbiased estimate of p(y), up to a number that is the same for all samples, and averages over many samples of one
    observation become exact, whatever P, with weights in proportion to it: ``state.log_weight.softmax(0) @ state.x``.

    A step is one call of the network on B P rows. Samples do not depend on one another.

    Args:
        particles: P.
        order: of the step without guidance, 1 (the ancestral step) to 5.
        resample: in (0, 1]; 1 resamples at every step.
        grid, t_min, t_max, last: as in :class:`PredictorCorrector`; the default grid is uniform in log-SNR.

    Raises:
        ArgumentError: settings out of their range; at the first step, a model without guidance by an observation. (A
            model cut into chunks or run in low precision is so inside: ``pigdm(chunked(model, 64), ...)``.)
    """

    default_steps = 100

    def __init__(
        self,
        particles: int = 16,
        *,
        order: int = 3,
        resample: float = 0.5,
        grid: Grid = "log_snr",
        t_min: float | None = None,
        t_max: float | None = None,
        last: str = "half-tweedie",
    ):
        super().__init__(grid, t_min, t_max, last)
        self.particles = whole("particles", particles)
        if not isinstance(order, int) or not 1 <= order <= MAX_ORDER:
            raise ArgumentError("order", order, f"1 to {MAX_ORDER}")
        self.order = order
        if not 0 < resample <= 1:
            raise ArgumentError("resample", resample, "a fraction in (0, 1]")
        self.resample = resample

    def states(self, model, x, steps, cond, generator):
        times = time_grid(model.sde, steps, self.grid, self.t_min, self.t_max)
        levels = [level for level in model.sde.levels(times) if level.sigma > 0]
        B, P, steps = len(x), self.particles, len(levels) - 1
        table = multistep_table(tuple(levels), self.order, False, 1.0, None)
        if cond is not None:
            cond = {name: value.repeat_interleave(P, 0) for name, value in cond.items()}
        yield State(x, levels[0].t, None, 0, steps, 0)
        draw = noise_like(x[:, None].expand(B, P, *x.shape[1:]), generator)
        x = x.repeat_interleave(P, 0)
        first = torch.arange(B, device=x.device)[:, None] * P
        even = torch.arange(P, device=x.device, dtype=x.dtype)
        log_w = torch.zeros(B, P, device=x.device, dtype=x.dtype)
        estimate, history = self._guided(model, x, levels[0], cond), []  # estimates of x0 without guidance
        log_z = estimate.unguided.log_p[first[:, 0]]  # of what the particles were drawn anew by
        for i, (target, step) in enumerate(zip(levels[1:], table, strict=True), start=1):
            w = log_w.softmax(1)
            few = (w.square().sum(1, keepdim=True) * (self.resample * P)) > 1
            u = (rand((B, 1), generator, x.device, x.dtype) + even) / P
            ancestors = torch.searchsorted(w.cumsum(1), u).clamp(max=P - 1)
            rows = (first + torch.where(few, ancestors, even.long())).flatten()
            log_z = torch.where(few[:, 0], log_z + _log_mean(log_w), log_z)
            log_w = torch.where(few, 0.0, log_w)
            history = [x0[rows] for x0 in (*history, estimate.unguided.x0)[-self.order :]]
            pull = sum(step.predict) * (estimate.x0[rows] - history[-1])
            z, log_p = draw().reshape(x.shape), estimate.unguided.log_p[rows]
            x = torch.add(combine(step.x * x[rows], step.predict, history) + pull, z, alpha=step.z)
            ratio = -flat(pull * (z / step.z + pull / (2 * step.z**2))).sum(1)  # log p(x_s | x_t)/q(x_s | x_t)
            estimate = self._guided(model, x, target, cond)
            log_w = log_w + (ratio + estimate.unguided.log_p - log_p).reshape(B, P)
            shown, x0 = first[:, 0], estimate.x0
            if i == steps:
                chosen = torch.searchsorted(log_w.softmax(1).cumsum(1), rand((B, 1), generator, x.device, x.dtype))
                shown = first[:, 0] + chosen[:, 0].clamp(max=P - 1)
            yield State(x[shown], target.t, x0[shown], i, steps, i + 1, log_z + _log_mean(log_w))

    @staticmethod
    def _guided(model, x: Tensor, level, cond):
        estimate = model.estimate(x, level, cond)
        if estimate.unguided is None:
            expected = "one guided by an observation, such as pigdm(model, operator, y, noise)"
            raise ArgumentError("model", type(model).__name__, expected)
        return estimate

    def __repr__(self):
        return f"Particles({self.particles})"
