"""Bits per dimension of integer data, with nothing unexplained in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.data import Scaling
from scoresde.errors import ArgumentError
from scoresde.likelihood.divergence import Divergence
from scoresde.likelihood.log_likelihood import log_likelihood
from scoresde.models import Model
from scoresde.sampling.grids import check_steps
from scoresde.sde.times import streams


@dataclass(frozen=True)
class Uniform:
    """Uniform dequantisation: raw + u, u ~ U[0, 1)^n, whose density bounds the probability of raw from below.

    log P(raw) >= E_u log p(raw + u) (Theis et al. 2016): bits/dim are an upper bound, tight for a fine model.

    Args:
        samples: independent draws of u per image, averaged.
    """

    samples: int = 1

    def __post_init__(self):
        check_steps(self.samples, "samples")


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of a set of images, and all that is needed to state them.

    Attributes:
        bits: per image ``(N,)``, bits/dim: -log2 p(raw + u) / n.
        stderr: per image ``(N,)``, from probes and dequantisation draws; NaN where a single one of both was used.
        nats: per image ``(N,)``, log p(raw + u).
        mean, mean_stderr: over the images; the standard error is that of the mean over images, and holds the noise of
            probes and draws.
        offset: bits/dim due to the scaling alone, -log2(scale); included in ``bits``.
        n, dims, nfe, t_min, method: how many images and entries, network calls per image, the end, the solver.
    """

    bits: Tensor
    stderr: Tensor
    nats: Tensor
    mean: float
    mean_stderr: float
    offset: float
    n: int
    dims: int
    nfe: int
    t_min: float
    method: str

    def __str__(self):
        return (
            f"{self.mean:.4f} +- {self.mean_stderr:.4f} bits/dim (N = {self.n}, {self.method}, {self.nfe} calls, "
            f"t_min = {self.t_min:.3g})"
        )


def bits_per_dim(
    model: Model,
    images: Tensor,
    dequantization: Uniform | None = None,
    *,
    scaling: Scaling | None = None,
    cond: Mapping[str, Tensor] | None = None,
    divergence: Divergence | None = None,
    method: str = "rk4",
    steps: int | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    generator: torch.Generator | None = None,
    batch: int = 128,
    t_min: float | None = None,
    end: str = "heun",
    prior: str = "matched",
    callback: Callable[[int, int], None] | None = None,
) -> BitsPerDim:
    """Bits per dimension of integer images under the model, by the probability flow.

    bits/dim = -[log p(x) + n log(scale)] / (n ln 2) with x = scale (raw + u) + shift: the offset is the scaling's own.

    Args:
        model: a score model.
        images: integers ``(N, *D)`` 0..levels-1, as they are stored: neither scaled nor dequantised.
        dequantization: :class:`Uniform` (the default, one draw).
        scaling: the map to the model's units; default: the one kept with the model.
        cond: tensors ``(N, ...)`` by name.
        batch: images per batch; every image counts, the last batch may be smaller. Each image has its own stream of
            random numbers, seeded by ``generator``: the results do not depend on the batch.
        callback: called with (images done, images in all) after each batch.
        divergence, method, steps, rtol, atol, generator, t_min, end, prior: as in :func:`log_likelihood`; the default
            here is ``"rk4"`` with fresh probes at every stage.

    Raises:
        DTypeError: images that are not integers.
        DataError: values outside 0..levels-1.
        ArgumentError: no scaling with levels is known.
    """
    dequantization = Uniform() if dequantization is None else dequantization
    scaling = getattr(model, "scaling", None) if scaling is None else scaling
    if scaling is None or scaling.levels is None:
        raise ArgumentError("scaling", scaling, "a Scaling with levels: the model keeps none")
    scaling.check_integers(images, "images")
    N, dims = len(images), images[0].numel()
    volume = scaling.log_volume(dims)
    nats, variance, nfe = [], [], 0
    for begin in range(0, N, check_steps(batch, "batch")):
        part = slice(begin, begin + batch)
        some = None if cond is None else {name: value[part] for name, value in cond.items()}
        draws, some_generators = [], streams(generator, len(images[part]))
        for _ in range(dequantization.samples):
            x = scaling.to_model(images[part], some_generators, model.dtype).to(model.device)
            draws.append(
                log_likelihood(
                    model, x, divergence, rtol, atol, method, some_generators,
                    steps=steps, cond=some, t_min=t_min, end=end, prior=prior,
                )
            )  # fmt: skip
        log_prob = torch.stack([draw.log_prob for draw in draws]).cpu().double() + volume
        nats.append(log_prob.mean(0))
        if len(draws) > 1:  # the spread over draws holds that of the probes
            variance.append(log_prob.var(0) / len(draws))
        else:
            variance.append(draws[0].stderr.cpu().double() ** 2)
        nfe, t_min = max(nfe, *(draw.nfe for draw in draws)), draws[0].t_min
        if callback is not None:
            callback(min(begin + batch, N), N)
    nats = torch.cat(nats)
    per_bit = dims * math.log(2)
    bits = -nats / per_bit
    mean_stderr = (bits.std() / math.sqrt(N)).item() if N > 1 else math.nan
    return BitsPerDim(
        bits,
        torch.cat(variance).sqrt() / per_bit,
        nats,
        bits.mean().item(),
        mean_stderr,
        -volume / per_bit,
        N,
        dims,
        nfe * dequantization.samples,
        t_min,
        method,
    )
