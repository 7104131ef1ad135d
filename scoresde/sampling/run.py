"""The face of the samplers: sample, trajectory, encode and decode.

A run works without autograd and with the model in evaluation mode; both are as they were whenever it is not at work,
between two states of a :func:`trajectory` too. The loops never wait for the device: at the end it is asked whether all
went well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from scoresde.checks import samples_with_nan, wholes
from scoresde.errors import ArgumentError, DeviceError, DTypeError, NonFiniteError, ShapeError
from scoresde.models import Model, autocast, chunked
from scoresde.models.conditions import Condition
from scoresde.models.evaluation import evaluation
from scoresde.sampling.multistep import DPMSolver
from scoresde.sampling.progress import ProgressLine
from scoresde.sampling.samplers import ProbabilityFlow, Sampler, State
from scoresde.sde.tensors import flat


def _start(
    model: Model, shape, start: Tensor | None, cond: Condition, generator, device, dtype, name: str = "start"
) -> Tensor:
    shape = wholes("shape", shape)
    if not shape:
        raise ShapeError("shape", shape, "(B, *D), with a batch axis at least")
    device = torch.device(device) if device is not None else model.device
    dtype = model.dtype if dtype is None else dtype
    for key, value in (cond or {}).items():
        if value.shape[:1] != shape[:1]:
            raise ShapeError(f"cond[{key!r}]", tuple(value.shape), f"({shape[0]}, ...), one row a sample")
    if start is None:
        return model.sde.prior_sample(shape, generator, device, dtype)
    if tuple(start.shape) != shape:
        raise ShapeError(name, tuple(start.shape), f"the shape asked for, {shape}")
    if start.device != device:
        raise DeviceError(name, start.device, f"the model's device, {device}")
    return start.detach().to(dtype)


def _wrapped(model: Model, chunk: int | None, dtype: torch.dtype | None) -> Model:
    if dtype is not None:
        model = autocast(model, dtype)
    return model if chunk is None else chunked(model, chunk)


def _check(x: Tensor, where: Callable[[], str]) -> None:
    """A NonFiniteError that names the samples, if ``x`` has NaN or infinity: the one wait for the device of a run."""
    if x.is_meta:  # has no values
        return
    finite = flat(x).isfinite().all(1)
    if not bool(finite.all()):
        samples = (~finite).nonzero().flatten().tolist()
        raise NonFiniteError(f"{samples_with_nan(samples, len(x))} {where()}")


def trajectory(
    model: Model,
    shape,
    sampler: Sampler | None = None,
    steps: int | None = None,
    start: Tensor | None = None,
    cond: Condition = None,
    generator=None,
    *,
    device=None,
    dtype=None,
    chunk: int | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> Iterator[State]:
    """Iterate over the states of a sampling run, from the noise to the samples.

    Arguments and errors are those of :func:`sample`; a NonFiniteError comes after the last state. Between two states
    the model and autograd are as the caller has them.
    """
    settings = (model, shape, sampler, steps, start, cond, generator, device, dtype, chunk, autocast, progress)
    undisturbed = evaluation(model, autograd=False)
    with undisturbed:
        states = _begin(*settings)
    return _one_by_one(states, undisturbed)


def _one_by_one(states: Iterator[State], undisturbed: evaluation) -> Iterator[State]:
    while True:
        with undisturbed:
            state = next(states, None)
        if state is None:
            return
        yield state


def _begin(
    model, shape, sampler, steps, start, cond, generator, device, dtype, chunk, autocast, progress
) -> Iterator[State]:
    sampler = DPMSolver() if sampler is None else sampler
    if not isinstance(sampler, Sampler):
        raise ArgumentError("sampler", repr(sampler), "a sampler, such as DPMSolver() or PredictorCorrector()")
    wrapped = _wrapped(model, chunk, autocast)
    x = _start(model, shape, start, cond, generator, device, dtype)
    return _states(wrapped, sampler, x, steps, cond, generator, progress)


def _states(model, sampler, x, steps, cond, generator, progress) -> Iterator[State]:
    """The states of a run; at its end it is asked whether all of them are finite."""
    with ExitStack() as stack:
        show = None
        if progress:
            line = stack.enter_context(ProgressLine(sampler))
            model, show = line.counting(model), line.show
        seen, sums = [], []  # of each state one number, NaN or infinite if an entry of x is
        for state in sampler.trajectory(model, x, steps, cond, generator):
            sums.append(state.x.sum())
            seen.append((state.step, state.t))
            if show is not None:
                show(state)
            yield state

    def where() -> str:
        finite = torch.stack(sums).isfinite().tolist()
        first = finite.index(False) if False in finite else len(seen) - 1
        if not first:
            return "in the start"
        (_, before), (step, t) = seen[first - 1], seen[first]
        return f"since step {step} of {state.steps}, from t = {before:.6g} to {t:.6g}"

    _check(state.x, where)


def sample(
    model: Model,
    shape,
    sampler: Sampler | None = None,
    steps: int | None = None,
    start: Tensor | None = None,
    cond: Condition = None,
    generator=None,
    *,
    device=None,
    dtype=None,
    chunk: int | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[State], None] | None = None,
) -> Tensor:
    """Draw samples ``(B, *D)`` from the model, without autograd and with dropout off.

    The default, :class:`DPMSolver` with 20 network calls, follows the probability flow: on the mixtures of 8 Gaussians
    of benchmarks/quality.py in 2 (64) dimensions to an endpoint error over sqrt(d) of 3e-4 (1.5e-3); 50 calls leave
    9e-6 (9e-5).

    Args:
        model: a score model.
        shape: ``(B, *D)``.
        sampler: :class:`DPMSolver` (the default), :class:`PredictorCorrector`, :class:`ProbabilityFlow`...
        steps: how many steps, of the sampler's own kind; None is its default.
        start: x at t_max ``(B, *D)``, instead of a draw from the prior.
        cond: tensors ``(B, ...)`` by name, passed to the network.
        generator: a torch.Generator, or a list of B of them, one a sample; all randomness comes from it.
        device, dtype: of the samples; default: the model's.
        chunk: the most samples that the network sees at once, None for all. The samples do not depend on it.
        autocast: ``torch.bfloat16`` or ``torch.float16``, to run the network in it, not the sampler.
        progress: show a line with steps and network calls.
        callback: called with each :class:`State`, without autograd too.

    Raises:
        ShapeError, DTypeError, DeviceError, ArgumentError: arguments that do not fit.
        ToleranceError: an adaptive method cannot reach its tolerance (names t, the step and the calls).
        NonFiniteError: NaN or infinity from the network (names the first step it shows after, and the samples).
    """
    settings = (model, shape, sampler, steps, start, cond, generator, device, dtype, chunk, autocast, progress)
    with evaluation(model, autograd=False):
        state = None
        for state in _begin(*settings):
            if callback is not None:
                callback(state)
        return state.x


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
    """The latent x at t_max ``(B, *D)`` of data x0: the deterministic sampler run backwards (D6, E11).

    With :class:`ProbabilityFlow` :func:`decode` gives x0 back to the solver's tolerance; with :class:`DDIM` to first
    order in the step.

    Args:
        x0: data ``(B, *D)``, floating-point, on the model's device.
        sampler: ``ProbabilityFlow(...)`` (the default) or ``DDIM()``.
        steps, cond, chunk, autocast: as in :func:`sample`.

    Raises:
        ArgumentError: a sampler that cannot run backwards.
        DTypeError, DeviceError, ShapeError: data or conditions that do not fit.
        ToleranceError: an adaptive method cannot reach its tolerance.
        NonFiniteError: NaN or infinity in x0 or from the network (names the samples).

    Source: Song, Meng & Ermon 2021, section 4.3; Song et al. 2021, section 4.3.
    """
    sampler, wrapped = _deterministic(sampler), _wrapped(model, chunk, autocast)
    x0 = _data(model, x0, "x0", cond)
    with evaluation(model, autograd=False):
        z = sampler.inverse(wrapped, x0, steps, cond)
        _check(z, lambda: "in the latents")
    return z


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
    """The data ``(B, *D)`` of latents z at t_max: a deterministic sampler started there (E11).

    Args:
        z: latents ``(B, *D)``, floating-point, on the model's device; the samples have their dtype.
        sampler: a deterministic one; the default is ``ProbabilityFlow()``.
        steps, cond, chunk, autocast, progress: as in :func:`sample`.

    Raises:
        ArgumentError: a sampler that draws noise.
        DTypeError, DeviceError, ShapeError, ToleranceError, NonFiniteError: as for :func:`encode`.
    """
    sampler = _deterministic(sampler)
    z = _data(model, z, "z", cond)
    settings = {"dtype": z.dtype, "chunk": chunk, "autocast": autocast, "progress": progress}
    return sample(model, z.shape, sampler, steps, start=z, cond=cond, device=z.device, **settings)


def _deterministic(sampler: Sampler | None) -> Sampler:
    sampler = ProbabilityFlow() if sampler is None else sampler
    if not isinstance(sampler, Sampler) or not sampler.deterministic:
        raise ArgumentError("sampler", repr(sampler), "a deterministic one: ProbabilityFlow(), DDIM(eta=0)...")
    return sampler


def _data(model: Model, x: Tensor, name: str, cond: Condition) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DTypeError(name, getattr(x, "dtype", type(x).__name__), "a floating-point tensor (B, *D)")
    return _start(model, x.shape, x, cond, None, None, x.dtype, name=name)
