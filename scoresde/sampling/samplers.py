"""Predictor-corrector sampling, DDIM and the probability-flow ODE.

Symbols, besides those of :mod:`scoresde.sampling.base`:
    t -> s: one step of the grid, s < t.
    alpha_{t|s}, sigma_{t|s}: mean scale and standard deviation of the forward transition p(x_t | x_s).
    lambda = log(alpha/sigma).

Predictor-corrector sampling is Song et al. 2021 (algorithm 1); DDIM is Song, Meng & Ermon 2021.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import non_negative, positive, whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.flow.field import ProbabilityFlowField, on_the_flow
from scoresde.flow.ode import ODE_METHODS, integrate
from scoresde.flow.tableaux import ADAPTIVE
from scoresde.models import Estimate, Model
from scoresde.models.conditions import Condition
from scoresde.random import Generators
from scoresde.sampling.base import Draw, GridSampler, Sampler, State, noise_like, undo_last
from scoresde.sampling.steps import Corrector, Implicit, Predictor, ReverseDiffusion
from scoresde.sde import SDE, HostLevel
from scoresde.sde.grids import check_finite_log_snr
from scoresde.sde.tensors import flat, state_dtype


@checked
@dataclass(frozen=True, repr=False)
class PredictorCorrector(GridSampler):
    """The reverse SDE by predictor and corrector (E2, E7).

    Each step takes the predictor from t to s, and then ``corrector_steps`` steps of the corrector at s. Each of them is
    one network call. Without a predictor the corrector works alone, at every time of the grid with noise, the first
    included. With :class:`AnnealedLangevin`, ``grid="levels"`` and ``last="tweedie"`` that is NCSN's sampler (N3, N5).

    Args:
        predictor: Step of the reverse SDE, default :class:`ReverseDiffusion`. None: corrector alone.
        corrector: Step of a Markov chain at s, such as :class:`Langevin`. None (default): predictor alone.
        corrector_steps: Corrector steps at each level, default 1.
        corrector_first: Whether to correct at t before the predictor's step, as the paper's code does, default False.
        last_noise: Whether a last step that ends at the data adds its noise, default False. The paper's code returns
            the mean of that step. :class:`ReverseDiffusion` and :class:`EulerMaruyama` would leave the noise of the
            first level in the samples, of std .01 for DDPM's 1000 levels. :class:`Ancestral` has none there.
        grid: See :class:`GridSampler`, default ``"time"``.
        t_min, t_max, last: See :class:`Sampler`.

    ``steps`` counts predictor steps, 500 by default.

    Raises:
        ArgumentError: Neither a predictor nor a corrector is given.

    References: Song et al. 2021, algorithm 1.
    """

    predictor: Predictor | None = field(default=ReverseDiffusion())
    corrector: Corrector | None = None
    corrector_steps: int = field(default=1, kw_only=True)
    corrector_first: bool = field(default=False, kw_only=True)
    last_noise: bool = field(default=False, kw_only=True)

    usual_steps: ClassVar[int] = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor is None and self.corrector is None:
            raise ArgumentError("predictor, corrector", (None, None), "at least one of the two")
        self._store(corrector_steps=whole("corrector_steps", self.corrector_steps))

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        times = self.times(model, steps)
        levels, t, s = model.sde.levels(times), times[:-1], times[1:]
        alphas = model.sde.transition(s, t)[0].tolist()
        correct = _Correction(self, model, levels, cond, noise_like(x, generator))
        if self.predictor is None:
            yield from correct.alone(x, levels, alphas)
            return

        rows = self.predictor.coefficients(model.sde, t, s).rows()
        if not levels[-1].sigma > 0 and not self.last_noise:
            rows[-1] = rows[-1]._replace(z=0.0)
        yield State(x, levels[0].t, None, 0, len(rows), 0)
        calls = 0
        for i, ((level, target), row, alpha) in enumerate(
            zip(itertools.pairwise(levels), rows, alphas, strict=True), start=1
        ):
            spent = 0
            # 1. correct at t, in the order of the paper's code
            if self.corrector_first:
                x, _, spent = correct(x, level, alpha)
            # 2. predict from t to s
            estimate = model.estimate(x, level, cond)
            x = self.predictor.step(row, x, estimate, target, correct.draw)
            # 3. or correct at s, in the order of the paper's algorithm
            if not self.corrector_first:
                x, _, spent = correct(x, target, alpha)
            calls += 1 + spent
            yield State(x, target.t, estimate.x0, i, len(rows), calls)


class _Correction:
    """The corrector's part of one run."""

    def __init__(
        self, sampler: PredictorCorrector, model: Model, levels: Sequence[HostLevel], cond: Condition, draw: Draw
    ) -> None:
        self.model, self.cond, self.draw, self.steps = model, cond, draw, sampler.corrector_steps
        self.corrector = None if sampler.corrector is None else sampler.corrector.on(levels)

    def __call__(self, x: Tensor, level: HostLevel, alpha: float) -> tuple[Tensor, Estimate | None, int]:
        """Correct x at ``level``; where no noise is left, x needs no correction.

        Args:
            x: Samples ``(B, *D)``.
            level: Their noise level.
            alpha: alpha_{t|s} of the predictor's step to the level.

        Returns:
            ``(x, estimate of the last call, calls)``; without a call the estimate is None.
        """
        if self.corrector is None or not level.sigma > 0:
            return x, None, 0
        estimate = None
        for _ in range(self.steps):
            estimate = self.model.estimate(x, level, self.cond)
            x = self.corrector.step(x, estimate, alpha, self.draw)
        return x, estimate, self.steps

    def alone(self, x: Tensor, levels: Sequence[HostLevel], alphas: Sequence[float]) -> Iterator[State]:
        """Yield the states of a run without a predictor.

        The corrector works at each level that has noise.
        """
        noisy = [level for level in levels if level.sigma > 0]
        yield State(x, noisy[0].t, None, 0, len(noisy), 0)
        calls = 0
        for i, (level, alpha) in enumerate(zip(noisy, [alphas[0], *alphas], strict=False), start=1):
            x, estimate, spent = self(x, level, alpha)
            calls += spent
            yield State(x, level.t, None if estimate is None else estimate.x0, i, len(noisy), calls)


@checked
@dataclass(frozen=True, repr=False)
class DDIM(GridSampler):
    """DDIM for every SDE (D3, D5).

    It is :class:`PredictorCorrector` with the step :class:`Implicit`.

    Args:
        eta: Scale of the noise, 0 or more, default 0. At 0 the sampler is deterministic, a first-order integrator of
            the probability flow (D6). At 1 it is ancestral sampling.
        grid: See :class:`GridSampler`, default ``"time"``.
        t_min, t_max, last: See :class:`Sampler`.

    ``steps`` is 50 by default.

    Raises:
        ArgumentError: ``eta`` is negative.

    References: Song, Meng & Ermon 2021.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(eta=non_negative("eta", self.eta))

    @property
    def deterministic(self) -> bool:
        """Whether the samples are a function of the start alone."""
        return self.eta == 0

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        settings: dict[str, Any] = {"grid": self.grid, "last": self.last}
        if isinstance(self.grid, str):
            settings |= {"t_min": self.t_min, "t_max": self.t_max}
        return PredictorCorrector(Implicit(self.eta), **settings).states(model, x, steps, cond, generator)

    def inverse(self, model: Model, x0: Tensor, steps: int | None, cond: Condition) -> Tensor:
        """Take DDIM's steps backwards, from data x0 to x at t_max (D6).

        x_t = alpha_t x0(x_s, s) + sigma_t eps(x_s, s), from s up to t.
        """
        if not self.deterministic:
            return super().inverse(model, x0, steps, cond)
        times = self.times(model, self.steps_for(steps))
        levels = model.sde.levels(times.flip(0))
        x = undo_last(model, x0, levels[0], self.last, cond)
        for level, target in itertools.pairwise(levels):
            estimate = model.estimate(x, level, cond)
            x = target.alpha * estimate.x0 + target.sigma * estimate.eps
        return x


@checked
@dataclass(frozen=True, repr=False)
class ProbabilityFlow(Sampler):
    """The probability-flow ODE by an ODE solver in lambda (E8).

    Args:
        method: Name of the solver, default ``"dopri5"``; see :func:`scoresde.flow.ode.integrate`. ``"dopri5"`` and
            ``"bosh3"`` adapt the step of each sample. ``"rk4"``, ``"heun"``, ``"midpoint"`` and ``"euler"`` take
            ``steps`` equal steps in lambda. The others are methods of torchdiffeq and scipy.
        rtol: Relative tolerance of the adaptive methods, positive, default 1e-5.
        atol: Absolute tolerance of the adaptive methods, positive, default 1e-5.
        t_min, t_max, last: See :class:`Sampler`.

    ``steps`` is 50 by default. With an adaptive method of ours it is the number of states of a trajectory, 1 by
    default.

    Raises:
        UnknownNameError: No solver has this name.
        ArgumentError: A tolerance is not positive.

    References: Song et al. 2021, section 4.3.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ODE_METHODS:
            raise UnknownNameError("method", self.method, ODE_METHODS)
        self._store(rtol=positive("rtol", self.rtol), atol=positive("atol", self.atol))

    @property
    def default_steps(self) -> int:
        """The number of steps where the caller gives none."""
        return 1 if self.method in ADAPTIVE else 50

    @property
    def deterministic(self) -> bool:
        """Whether the samples are a function of the start alone."""
        return True

    def _ends(self, model: Model) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the run's ends, ``(t_max, t_min)``, as times and as lambdas."""
        t_min, t_max = model.time_range(self.t_min, self.t_max)
        check_finite_log_snr(model.sde, t_min, t_max)
        start, end = (model.sde.log_snr(t).item() / 2 for t in (t_max, t_min))
        return (t_max, t_min), (start, end)

    def _settings(self, sde: SDE) -> dict[str, Any]:
        return {"method": self.method, "rtol": self.rtol, "atol": self.atol, "where": on_the_flow(sde)}

    def inverse(self, model: Model, x0: Tensor, steps: int | None, cond: Condition) -> Tensor:
        """Solve the flow from t_min up to t_max (E11).

        It starts at the x that the last step takes to x0 ``(B, *D)``.
        """
        (_, t_min), (start, end) = self._ends(model)
        level = model.sde.levels(torch.tensor([t_min], dtype=torch.float64))[0]
        x = undo_last(model, x0, level, self.last, cond)
        field = ProbabilityFlowField(model, x.shape[1:], cond)
        y = flat(x).to(state_dtype(x))
        y = integrate(field, y, end, start, steps=self.steps_for(steps), **self._settings(model.sde)).y
        return y.reshape(x.shape).to(x.dtype)

    def states(
        self, model: Model, x: Tensor, steps: int | None, cond: Condition, generator: Generators
    ) -> Iterator[State]:
        steps = self.default_steps if steps is None else steps
        (t_max, t_min), (start, end) = self._ends(model)
        grid = torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()
        times = [t_max, *model.sde.time_at(lam=torch.tensor(grid[1:-1], dtype=torch.float64)).tolist(), t_min]
        field, settings = ProbabilityFlowField(model, x.shape[1:], cond), self._settings(model.sde)
        y = flat(x).to(state_dtype(x))
        calls = 0
        yield State(x, t_max, None, 0, steps, calls)
        for i, (a, b) in enumerate(itertools.pairwise(grid), start=1):
            y, spent = integrate(field, y, a, b, steps=1, **settings)
            calls += spent
            yield State(y.reshape(x.shape).to(x.dtype), times[i], None, i, steps, calls)
