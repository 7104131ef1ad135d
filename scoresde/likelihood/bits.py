"""Bits per dimension of integer data, with every contribution reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.data import Dequantization, Scaling, Uniform
from scoresde.errors import ArgumentError
from scoresde.likelihood.divergence import Divergence
from scoresde.likelihood.flow_settings import End, FlowSettings, Prior
from scoresde.likelihood.inputs import check_images, item_batches
from scoresde.likelihood.probability_flow import solve_likelihood
from scoresde.likelihood.refinement import Estimated, warn_of
from scoresde.likelihood.results import BitsPerDim, Likelihood, mean_and_stderr, seed_of
from scoresde.models import Model
from scoresde.models.conditions import Condition, check_condition
from scoresde.models.model import check_model


@checked
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
    end: End | None = None,
    prior: Prior = "matched",
    check_num_values: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> BitsPerDim:
    """Compute bits/dim of integer images under the probability flow.

        bits/dim = -E[log p(x) + log_weight] / (n ln 2)

    The dequantisation returns x and its log-weight. For uniform noise x = scale (raw + u) + shift and
    log_weight = n log(scale).

    Args:
        model: Score model.
        images: Integers ``(N, *D)`` from 0 to num_values - 1 as they are stored, neither scaled nor dequantised.
        dequantization: :class:`Uniform` (default, one draw), or :class:`TruncatedNormal` for models trained on bin
            centres. With the latter the flow begins at its t_min, unless one is given.
        scaling: Map to the model's units. None: the model's.
        cond: Tensors ``(N, ...)`` by name. None: unconditional.
        generator: Seeds a stream of random numbers for each image, so that results do not depend on the batch. None:
            torch's default.
        batch: Images per batch, default 128. The last batch may be smaller, and counts.
        end: As in :func:`log_likelihood`. None: ``"heun"``, or ``"none"`` for a dequantisation at t_min, which admits
            no other.
        check_num_values: Refuse several images none of which uses more than an eighth of the grey values.
        callback: Function of (images done, images in all), called after each batch.
        divergence, method, steps, rtol, atol, t_min, prior, chunk: As in :func:`log_likelihood`.

    Returns:
        bits/dim of each image, with all contributions and standard errors.

    Raises:
        DTypeError: images that are not integers.
        DataError: values outside 0 to num_values - 1, or none above an eighth of them.
        ShapeError: a shape that the model was not made for.
        ArgumentError: no scaling with num_values is known; an end that does not fit the dequantisation; a t_min without
            noise for :class:`TruncatedNormal`.
    """
    # 1. checks, and where the flow begins
    check_model(model)
    dequantization = Uniform() if dequantization is None else dequantization
    scaling = check_images(model, images, model.scaling if scaling is None else scaling, check_num_values)
    check_condition(cond, len(images), model.classes)
    log_snr = dequantization.log_snr(scaling)
    if log_snr is not None:
        if end not in (None, "none"):
            raise ArgumentError("end", repr(end), f"None or 'none', as {dequantization} begins at t_min")
        end = "none"
        t_min = model.sde.time_of(log_snr).item() if t_min is None else t_min
    level = model.sde.levels(torch.tensor([model.time_range(t_min)[0]], dtype=torch.float64))[0]

    # 2. log-densities of each batch and each draw
    settings = FlowSettings(divergence, rtol, atol, method, steps, t_min, None, end or "heun", prior, chunk)
    parts: list[_Part] = []
    estimated: list[Estimated] = []
    for rows, some, generators in item_batches(len(images), batch, cond, generator):
        draws, weights = [], []
        for _ in range(dequantization.samples):
            x, weight = dequantization.draw(images[rows], scaling, level.alpha, level.sigma, generators, model.dtype)
            weights.append(weight.cpu().double())
            found = solve_likelihood(model, x.to(model.device), settings, generators, some)
            estimated.append(found)
            draws.append(found.likelihood)
        parts.append(_Part.of(draws, weights))
        if callback is not None:
            callback(rows.stop, len(images))

    # 3. the result
    warn_of(estimated)
    accuracy: dict[str, float | int | None] = {"steps": steps}
    if not settings.fixed_grid:
        accuracy = dict(zip(("rtol", "atol"), settings.tolerances, strict=True))
    return _result(parts, images, scaling, dequantization, accuracy, seed_of(generator))


@dataclass(frozen=True, eq=False)
class _Part:
    """Means over the draws of one batch, in nats ``(B,)``.

    The variances are those of the means. ``variance`` is that of probes and draws together, ``variance_probes`` that of
    the probes alone.
    """

    nats: Tensor
    variance: Tensor
    variance_probes: Tensor
    below: Tensor
    prior_gap: Tensor
    defect: Tensor
    error: Tensor
    nfe: int
    t_min: float
    method: str

    @classmethod
    def of(cls, draws: Sequence[Likelihood], weights: Sequence[Tensor]) -> _Part:
        """Average the draws; ``weights`` are the log-weights ``(B,)`` of each."""

        def stacked(values: Sequence[Tensor]) -> Tensor:
            return torch.stack([value.cpu().double() for value in values])

        log_prob = stacked([draw.log_prob for draw in draws]) + torch.stack(list(weights))
        spread = log_prob.var(0) if len(draws) > 1 else torch.zeros_like(log_prob[0])
        return cls(
            nats=log_prob.mean(0),
            variance=spread / len(draws),
            variance_probes=stacked([draw.stderr for draw in draws]).square().mean(0) / len(draws),
            below=stacked([draw.below for draw in draws]).mean(0),
            prior_gap=stacked([draw.prior_gap for draw in draws]).mean(0),
            defect=stacked([draw.defect for draw in draws]).mean(0),
            error=stacked([draw.error for draw in draws]).mean(0),
            nfe=max(draw.nfe for draw in draws),
            t_min=draws[0].t_min,
            method=draws[0].method,
        )


def _result(
    parts: Sequence[_Part],
    images: Tensor,
    scaling: Scaling,
    dequantization: Dequantization,
    accuracy: dict[str, float | int | None],
    seed: int | None,
) -> BitsPerDim:
    """Join the batches and convert nats to bits/dim."""
    # in nats; the noise of the draws is known from two draws on
    dims = images[0].numel()
    per_bit = dims * math.log(2)
    nats, probes = torch.cat([part.nats for part in parts]), torch.cat([part.variance_probes for part in parts])
    if dequantization.samples == 1:
        total, of_draws = probes, torch.full_like(probes, math.nan)
    else:
        total = torch.cat([part.variance for part in parts])
        of_draws = (total - probes).clamp(min=0)
    # in bits/dim
    bits = -nats / per_bit
    mean, mean_stderr = mean_and_stderr(bits)
    return BitsPerDim(
        bits=bits,
        stderr=total.sqrt() / per_bit,
        stderr_probes=probes.sqrt() / per_bit,
        stderr_draws=of_draws.sqrt() / per_bit,
        nats=nats,
        mean=mean,
        mean_stderr=mean_stderr,
        offset=-scaling.log_volume(dims) / per_bit,
        n=len(images),
        dims=dims,
        nfe=max(part.nfe for part in parts) * dequantization.samples,
        t_min=parts[-1].t_min,
        below=-torch.cat([part.below for part in parts]) / per_bit,
        prior_gap=-torch.cat([part.prior_gap for part in parts]) / per_bit,
        defect=-torch.cat([part.defect for part in parts]) / per_bit,
        error=torch.cat([part.error for part in parts]) / per_bit,
        method=parts[-1].method,
        accuracy=accuracy,
        dequantization=dequantization,
        seed=seed,
    )
