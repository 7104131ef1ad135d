"""Bits per dimension of integer data, with nothing unexplained in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.data import Dequantization, Scaling, Uniform
from scoresde.errors import ArgumentError, DataError, DTypeError, ShapeError
from scoresde.flow.ode import FIXED
from scoresde.likelihood.divergence import Divergence
from scoresde.likelihood.probability_flow import MULTISTEP, log_likelihood
from scoresde.models import Model
from scoresde.models.conditions import Condition, condition_rows
from scoresde.random import spawn_generators
from scoresde.sde.grids import time_range

#: images whose greatest value lies below this fraction of the levels are taken for images of fewer levels
LEAST_USE = 1 / 8


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of a set of images, and all that is needed to state them.

    Attributes:
        bits: per image ``(N,)``, bits/dim: the bound -log2 P(raw) / n of the dequantisation, averaged over its draws.
        stderr: per image ``(N,)``, bits/dim, from probes and draws; with a single draw from probes alone.
        stderr_probes, stderr_draws: its two parts; that of a single draw is NaN (not known).
        nats: per image ``(N,)``, the bound of log P(raw).
        mean, mean_stderr: over the images; the standard error is that of the mean over images (NaN for one image), and
            holds the noise of probes and draws.
        offset: bits/dim due to the scaling alone, -log2(scale); included in ``bits``.
        n, dims: how many images, and entries of each.
        nfe: network calls per image, all draws together.
        t_min: the end of the flow.
        below, prior_gap: bits/dim ``(N,)`` included in ``bits``: that of the stretch from t_min to 0, where the network
            is not asked; and what matching the prior adds to the SDE's own (NaN where the moments are not known).
        defect: bits/dim ``(N,)`` that tell, in absolute value, whether the grid was fine enough
            (:class:`~scoresde.likelihood.probability_flow.Likelihood`).
        method, accuracy: the solver, and its tolerances ``{"rtol", "atol"}`` or ``{"steps"}`` (None: its default).
        dequantization: its law and number of draws.
        seed: of the generator, None without one.
    """

    bits: Tensor
    stderr: Tensor
    stderr_probes: Tensor
    stderr_draws: Tensor
    nats: Tensor
    mean: float
    mean_stderr: float
    offset: float
    n: int
    dims: int
    nfe: int
    t_min: float
    below: Tensor
    prior_gap: Tensor
    defect: Tensor
    method: str
    accuracy: dict[str, float | int | None]
    dequantization: Dequantization
    seed: int | None

    #: the columns of :meth:`rows`
    COLUMNS = ("index", "nats", "bits_per_dim", "stderr")

    def rows(self) -> list[tuple[int, float, float, float]]:
        """A row of :attr:`COLUMNS` for each image, ready for a CSV file; the standard error is in bits/dim."""
        columns = (column.tolist() for column in (self.nats, self.bits, self.stderr))
        return list(zip(range(self.n), *columns, strict=True))

    @property
    def noise(self) -> float:
        """The standard error of the mean from probes and draws alone, for these very images."""
        return (self.stderr.square().sum().sqrt() / self.n).item()

    def __str__(self):
        accuracy = ", ".join(f"{name} = {value:g}" for name, value in self.accuracy.items() if value is not None)
        return (
            f"{self.mean:.4f} +- {self.mean_stderr:.4f} bits/dim (N = {self.n}, {self.dequantization}, {self.method}"
            f"{', ' if accuracy else ''}{accuracy}, {self.nfe} calls, t_min = {self.t_min:.3g}, seed {self.seed})"
        )


def check_shape(model: Model, x: Tensor, name: str = "x0") -> None:
    """Refuse items of another shape than those whose moments the model keeps (a network checks for itself).

    Raises:
        ShapeError: they differ, or there is no item.
    """
    if x.ndim < 2 or len(x) == 0:
        raise ShapeError(name, tuple(x.shape), "(N, *D) with N >= 1 and D of rank 1 or more")
    if model.moments is not None and x.shape[1:] != model.moments.mean.shape:
        raise ShapeError(name, tuple(x.shape), f"(N, {', '.join(map(str, model.moments.mean.shape))}), the model's")


def check_images(model: Model, images: Tensor, scaling: Scaling | None, check_num_values: bool = True) -> None:
    """Refuse what is not a set of integer images the model was made for.

    Raises:
        ArgumentError: no scaling with levels is known.
        DTypeError: not integers.
        ShapeError: not ``(N, *D)``, or D is not the model's.
        DataError: values outside 0..num_values-1; or several images none of which uses more than an eighth of the levels
            (say 0..15 of 256), with ``check_num_values``.
    """
    if scaling is None or scaling.num_values is None:
        raise ArgumentError("scaling", scaling, "a Scaling with levels: the model keeps none")
    if not isinstance(images, Tensor):
        raise DTypeError("images", type(images).__name__, "a tensor of integers")
    scaling.check_integers(images, "images")
    check_shape(model, images, "images")
    highest = int(images.max())
    if check_num_values and len(images) > 1 and highest + 1 < LEAST_USE * scaling.num_values:
        raise DataError(
            "images",
            f"values 0..{highest} for {scaling.num_values} levels",
            "images that use their levels, or a scaling with fewer (check_num_values=False, if they are dark indeed)",
        )


def parts(
    N: int, batch: int, cond: Condition, generator: torch.Generator | None
) -> Iterator[tuple[slice, Condition, list[torch.Generator] | None]]:
    """N items cut into batches: ``(slice, cond, generators)``, a stream of random numbers for each item."""
    for begin in range(0, N, whole("batch", batch)):
        part = slice(begin, min(begin + batch, N))
        some = condition_rows(cond, part)
        yield part, some, spawn_generators(generator, part.stop - begin)


def mean_and_stderr(values: Tensor) -> tuple[float, float]:
    """The mean of values ``(N,)`` and its standard error, NaN for a single value."""
    return values.mean().item(), (values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def seed_of(generator: torch.Generator | None) -> int | None:
    """The seed a generator was started from."""
    return None if generator is None else generator.initial_seed()


def bits_per_dim(
    model: Model,
    images: Tensor,
    dequantization: Dequantization | None = None,
    *,
    scaling: Scaling | None = None,
    cond: Condition = None,
    divergence: Divergence | None = None,
    method: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    generator: torch.Generator | None = None,
    batch: int = 128,
    chunk: int | None = None,
    t_min: float | None = None,
    end: str | None = None,
    prior: str = "matched",
    check_num_values: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> BitsPerDim:
    """Bits per dimension of integer images under the model, by the probability flow.

    bits/dim = -E[log p(x) + log_weight] / (n ln 2): the dequantisation says x and its weight; for uniform noise
    x = scale (raw + u) + shift, and log_weight = n log(scale) is the scaling's own.

    Args:
        model: a score model.
        images: integers ``(N, *D)`` 0..num_values-1, as they are stored: neither scaled nor dequantised.
        dequantization: :class:`Uniform` (the default, one draw), or :class:`TruncatedNormal` for models trained on bin
            centres: then the flow begins at its t_min, unless one is given.
        scaling: the map to the model's units; default: the one kept with the model.
        cond: tensors ``(N, ...)`` by name.
        batch: images per batch; every image counts, the last batch may be smaller. Each image has its own stream of
            random numbers, seeded by ``generator``: the results do not depend on the batch.
        end: as in :func:`log_likelihood`; None is ``"heun"``, or ``"none"`` for a dequantisation at t_min, where
            nothing else fits.
        check_num_values: refuse several images none of which uses more than an eighth of the levels.
        callback: called with (images done, images in all) after each batch.
        divergence, method, steps, rtol, atol, generator, t_min, prior, chunk: as in :func:`log_likelihood`.

    Raises:
        DTypeError: images that are not integers.
        DataError: values outside 0..num_values-1, or that use an eighth of them at most.
        ShapeError: a shape the model was not made for.
        ArgumentError: no scaling with levels is known; an end that does not fit the dequantisation; a t_min without
            noise for :class:`TruncatedNormal`.
    """
    dequantization = Uniform() if dequantization is None else dequantization
    scaling = model.scaling if scaling is None else scaling
    check_images(model, images, scaling, check_num_values)
    log_snr = dequantization.log_snr(scaling)
    if log_snr is not None:
        if end not in (None, "none"):
            raise ArgumentError("end", repr(end), f"None or 'none': {dequantization} begins at t_min")
        end = "none"
        t_min = model.sde.time_of(log_snr).item() if t_min is None else t_min
    level = model.sde.levels(torch.tensor([time_range(model.sde, t_min)[0]], dtype=torch.float64))[0]
    settings = {
        "method": method, "steps": steps, "rtol": rtol, "atol": atol, "t_min": t_min, "end": end or "heun",
        "prior": prior, "chunk": chunk,
    }  # fmt: skip
    N, dims = len(images), images[0].numel()
    columns = {name: [] for name in ("nats", "total", "probes", "below", "prior_gap", "defect")}
    nfe = 0
    for part, some, generators in parts(N, batch, cond, generator):
        draws, weights = [], []
        for _ in range(dequantization.samples):
            x, weight = dequantization.draw(images[part], scaling, level.alpha, level.sigma, generators, model.dtype)
            weights.append(weight.cpu().double())
            x = x.to(model.device)
            draws.append(log_likelihood(model, x, divergence, generator=generators, cond=some, **settings))
        log_prob, stderr, *others = (
            torch.stack([getattr(draw, name).cpu().double() for draw in draws])
            for name in ("log_prob", "stderr", "below", "prior_gap", "defect")
        )
        log_prob = log_prob + torch.stack(weights)
        spread = log_prob.var(0) if len(draws) > 1 else torch.zeros_like(log_prob[0])  # of probes and draws
        values = (log_prob.mean(0), spread / len(draws), stderr.square().mean(0) / len(draws))
        for column, value in zip(columns.values(), (*values, *(other.mean(0) for other in others)), strict=True):
            column.append(value)
        nfe = max(nfe, *(draw.nfe for draw in draws))
        if callback is not None:
            callback(part.stop, N)
    nats, total, probes, below, prior_gap, defect = (torch.cat(column) for column in columns.values())
    per_bit = dims * math.log(2)
    bits = -nats / per_bit
    if dequantization.samples == 1:
        total, of_draws = probes, torch.full_like(probes, math.nan)
    else:
        of_draws = (total - probes).clamp(min=0)
    mean, mean_stderr = mean_and_stderr(bits)
    fixed = draws[0].method in (MULTISTEP, *FIXED)
    return BitsPerDim(
        bits=bits,
        stderr=total.sqrt() / per_bit,
        stderr_probes=probes.sqrt() / per_bit,
        stderr_draws=of_draws.sqrt() / per_bit,
        nats=nats,
        mean=mean,
        mean_stderr=mean_stderr,
        offset=-scaling.log_volume(dims) / per_bit,
        n=N,
        dims=dims,
        nfe=nfe * dequantization.samples,
        t_min=draws[0].t_min,
        below=-below / per_bit,
        prior_gap=-prior_gap / per_bit,
        defect=-defect / per_bit,
        method=draws[0].method,
        accuracy={"steps": steps} if fixed else {"rtol": rtol or 1e-6, "atol": atol or 1e-6},
        dequantization=dequantization,
        seed=seed_of(generator),
    )
