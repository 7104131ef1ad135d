"""Run samplers: sample, trajectory, encode and decode.

A run works without autograd and with the model in evaluation mode. Both are restored whenever control returns to the
caller, between two states of a :func:`trajectory` too. The loops never synchronise with the device: the samples are
checked once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import finite, wholes
from scoresde.errors import ArgumentError, DeviceError, DTypeError, ShapeError
from scoresde.models import Model, chunked, in_own_dtype
from scoresde.models import autocast as in_low_precision
from scoresde.models.conditions import Condition, check_condition
from scoresde.models.evaluation import evaluation
from scoresde.models.wrappers import Remembering
from scoresde.random import Generators, device_named
from scoresde.sampling.base import Sampler, State
from scoresde.sampling.multistep import DPMSolver
from scoresde.sampling.progress import ProgressLine
from scoresde.sampling.record import Record, check_scale
from scoresde.sampling.samplers import ProbabilityFlow
from scoresde.sampling.start import Prior, draw_start


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a sampler: its arguments, checked once.

    Args:
        name: Name that error messages use for ``start``.

    The other arguments and the errors are those of :func:`sample`.

    Attributes:
        network: ``model``, cut into chunks and in low precision where the run says so.
    """

    model: Model
    shape: Sequence[int]
    sampler: Sampler
    steps: int | None = None
    start: Tensor | None = None
    cond: Condition = None
    generator: Generators = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    chunk: int | None = None
    autocast: torch.dtype | None = None
    progress: bool = False
    prior: Prior = "matched"
    name: str = "start"
    network: Model = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise ArgumentError("sampler", repr(self.sampler), "a sampler, such as DPMSolver()")
        network = self.model if self.autocast is None else in_low_precision(self.model, self.autocast)
        if self.autocast is None and self.dtype not in (None, self.model.dtype):
            network = in_own_dtype(network)
        network = network if self.chunk is None else chunked(network, self.chunk)
        object.__setattr__(self, "network", network)

        shape = wholes("shape", self.shape)
        object.__setattr__(self, "shape", shape)
        if not shape:
            raise ShapeError("shape", shape, "(B, *D), with a batch axis at least")
        check_condition(self.cond, shape[0], self.model.classes)

    def x(self) -> Tensor:
        """Return x at t_max ``(B, *D)``: the start, or a draw of the prior."""
        device = self.model.device if self.device is None else device_named(self.device)
        dtype = self.model.dtype if self.dtype is None else self.dtype
        if not dtype.is_floating_point:
            raise DTypeError("dtype", dtype, "a floating-point dtype")
        if self.start is None:
            return draw_start(
                self.model, self.shape, self.sampler, self.cond, self.prior, self.generator, device, dtype
            )
        if tuple(self.start.shape) != self.shape:
            raise ShapeError(self.name, tuple(self.start.shape), f"of the shape of the samples, {self.shape}")
        if self.start.device != device:
            raise DeviceError(self.name, self.start.device, f"on the model's device, {device}")
        return self.start.detach().to(dtype)

    def states(self) -> Iterator[State]:
        """Return the states of the run; the start is drawn immediately."""
        return self._states(self.x())

    def _states(self, x: Tensor) -> Iterator[State]:
        """Yield the states from ``x`` on, and check the last one."""
        record = Record()
        with ExitStack() as stack:
            line, network = None, self.network
            if network.self_condition and self.sampler.keeps_rows and self.name == "start":
                network = Remembering(network)
            if self.progress:
                line = stack.enter_context(ProgressLine(self.sampler))
                network = line.counting(network)
            for state in self.sampler.trajectory(network, x, self.steps, self.cond, self.generator):
                record.add(state)
                if line is not None:
                    line.show(state)
                yield state
        finite(state.x, record.first_bad)
        unit = self.sampler.assumes_unit_scale and self.model.calibration is None
        check_scale(self.model, record, state, unit=unit)


@checked
def sample(
    model: Model,
    shape: Sequence[int],
    sampler: Sampler | None = None,
    steps: int | None = None,
    start: Tensor | None = None,
    cond: Condition = None,
    generator: Generators = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
    autocast: torch.dtype | None = None,
    prior: Prior = "matched",
    progress: bool = False,
    callback: Callable[[State], None] | None = None,
) -> Tensor:
    """Draw samples from a model, without autograd and with dropout off.

    Args:
        model: Score model.
        shape: Shape ``(B, *D)`` of the samples.
        sampler: Method, default :class:`DPMSolver`.
        steps: Number of steps, in the sampler's own units. None: the sampler's default.
        start: Start ``(B, *D)`` at t_max. None: a draw from the prior.
        cond: Tensors ``(B, ...)`` by name for the network, or None.
        generator: Source of all randomness: one generator, or a list of B, one a sample. None: torch's default.
        device: Device of the samples. None: the model's.
        dtype: Floating dtype of the samples. None: the model's.
        chunk: Largest number of samples in one network call; it does not change the samples. None: no limit.
        autocast: Dtype in which the network runs, ``torch.bfloat16`` or ``torch.float16``; the sampler keeps ``dtype``.
            None: the model's.
        prior: Law of the start where none is given. ``"matched"`` (default): the Gaussian with the mean and covariance
            of p_{t_max}, where the model knows them and there is no condition. ``"sde"``: that of the process.
        progress: Whether to show a line with steps and network calls, default False.
        callback: Function called with each :class:`State`, without autograd. None: no call.

    Returns:
        Samples ``(B, *D)`` at t = 0.

    Raises:
        ShapeError, DTypeError, DeviceError, ArgumentError: Arguments do not fit.
        ToleranceError: An adaptive method cannot reach its tolerance; names t, the step and the calls.
        NonFiniteError: The network gave NaN or infinity; names the first step that shows it, and the samples.

    Warns:
        SamplingWarning: Samples left the scale of the data, or show that an assumed scale is wrong.

    Notes:
        The default takes 20 network calls along the probability flow. On the mixtures of 8 Gaussians of
        benchmarks/quality.py its endpoint error over sqrt(d) is 7e-4 in 2 dimensions and 3e-3 in 64. With 50 calls it
        is 2e-5 and 3e-4. Calibrated (:func:`scoresde.calibrate`) it is 4e-4 and 1e-3, and 8e-6 and 4e-5.
    """
    with evaluation(model, autograd=False):
        run = Run(
            model=model,
            shape=shape,
            sampler=DPMSolver() if sampler is None else sampler,
            steps=steps,
            start=start,
            cond=cond,
            generator=generator,
            device=device,
            dtype=dtype,
            chunk=chunk,
            autocast=autocast,
            prior=prior,
            progress=progress,
        )
        return _last(run.states(), callback)


@checked
def trajectory(
    model: Model,
    shape: Sequence[int],
    sampler: Sampler | None = None,
    steps: int | None = None,
    start: Tensor | None = None,
    cond: Condition = None,
    generator: Generators = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
    autocast: torch.dtype | None = None,
    prior: Prior = "matched",
    progress: bool = False,
) -> Iterator[State]:
    """Iterate over the states of a run, from the noise to the samples.

    Arguments and errors are those of :func:`sample`. A NonFiniteError comes after the last state. Between two states
    the model and autograd are as the caller has them.

    Returns:
        Iterator over :class:`State`; the first is the start, the last has the samples.
    """
    undisturbed = evaluation(model, autograd=False)
    with undisturbed:
        run = Run(
            model=model,
            shape=shape,
            sampler=DPMSolver() if sampler is None else sampler,
            steps=steps,
            start=start,
            cond=cond,
            generator=generator,
            device=device,
            dtype=dtype,
            chunk=chunk,
            autocast=autocast,
            prior=prior,
            progress=progress,
        )
        states = run.states()
    return _one_by_one(states, undisturbed)


def _one_by_one(states: Iterator[State], undisturbed: evaluation) -> Iterator[State]:
    """Yield the states, inside the context only while computing the next."""
    while True:
        with undisturbed:
            state = next(states, None)
        if state is None:
            return
        yield state


@checked
def encode(
    model: Model,
    x0: Tensor,
    sampler: Sampler | None = None,
    steps: int | None = None,
    cond: Condition = None,
    *,
    chunk: int | None = None,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Encode data into latents by running a sampler backwards (D6, E11).

        x_T = Phi_{0->T}(x_0),    Phi the sampler's map from t_max to 0, inverted

    With :class:`ProbabilityFlow`, :func:`decode` inverts this to the solver's tolerance. With :class:`DDIM` it does so
    to first order in the step.

    Args:
        model: Score model.
        x0: Data ``(B, *D)``, floating-point, on the model's device.
        sampler: ``ProbabilityFlow(...)`` (default) or ``DDIM()``.
        steps, cond, chunk, autocast: See :func:`sample`.

    Returns:
        Latents ``(B, *D)`` at t_max, in the dtype of x0.

    Raises:
        ArgumentError: The sampler cannot run backwards.
        DTypeError, DeviceError, ShapeError: Data or conditions do not fit.
        ToleranceError: An adaptive method cannot reach its tolerance.
        NonFiniteError: NaN or infinity in x0 or from the network; names the samples.

    References: Song, Meng & Ermon 2021, section 4.3; Song et al. 2021, section 4.3.
    """
    run = Run(
        model=model,
        shape=_floating("x0", x0).shape,
        sampler=_deterministic(sampler),
        steps=steps,
        start=x0,
        cond=cond,
        dtype=x0.dtype,
        chunk=chunk,
        autocast=autocast,
        name="x0",
    )
    with evaluation(model, autograd=False):
        return finite(run.sampler.inverse(run.network, run.x(), steps, cond), "the latents")


@checked
def decode(
    model: Model,
    z: Tensor,
    sampler: Sampler | None = None,
    steps: int | None = None,
    cond: Condition = None,
    *,
    chunk: int | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> Tensor:
    """Decode latents into data with a deterministic sampler (E11).

    Args:
        model: Score model.
        z: Latents ``(B, *D)`` at t_max, floating-point, on the model's device.
        sampler: Deterministic sampler, default ``ProbabilityFlow()``.
        steps, cond, chunk, autocast, progress: See :func:`sample`.

    Returns:
        Data ``(B, *D)``, in the dtype of z.

    Raises:
        ArgumentError: The sampler draws noise.
        DTypeError, DeviceError, ShapeError, ToleranceError, NonFiniteError: As for :func:`encode`.
    """
    run = Run(
        model=model,
        shape=_floating("z", z).shape,
        sampler=_deterministic(sampler),
        steps=steps,
        start=z,
        cond=cond,
        dtype=z.dtype,
        chunk=chunk,
        autocast=autocast,
        progress=progress,
        name="z",
    )
    with evaluation(model, autograd=False):
        return _last(run.states())


def _last(states: Iterator[State], callback: Callable[[State], None] | None = None) -> Tensor:
    """Run to the end, and return the samples."""
    for state in states:
        if callback is not None:
            callback(state)
    return state.x


def _deterministic(sampler: Sampler | None) -> Sampler:
    """Return the sampler, if it draws no noise. None: the default."""
    sampler = ProbabilityFlow() if sampler is None else sampler
    if not isinstance(sampler, Sampler) or not sampler.deterministic:
        raise ArgumentError("sampler", repr(sampler), "deterministic, such as ProbabilityFlow() or DDIM()")
    return sampler


def _floating(name: str, x: Tensor) -> Tensor:
    """Return x if it is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DTypeError(name, getattr(x, "dtype", type(x).__name__), "a floating-point tensor (B, *D)")
    return x
