"""The law of the start, at t_max."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from scoresde.errors import ShapeError, UnknownNameError
from scoresde.models import Model
from scoresde.models.conditions import Condition
from scoresde.random import Generators, randn
from scoresde.sampling.base import Sampler

#: ``"matched"``: the Gaussian with the moments of p_{t_max}; ``"sde"``: that of the process
Prior = Literal["matched", "sde"]
PRIORS: tuple[str, ...] = ("matched", "sde")


def draw_start(
    model: Model,
    shape: Sequence[int],
    sampler: Sampler,
    cond: Condition,
    prior: Prior,
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Draw x at t_max ``(B, *D)``.

        matched: N(alpha m, alpha^2 C + sigma^2 I),    sde: N(0, prior_std^2 I)

    The matched prior needs the mean m and the covariance C of the data. Where the model does not know them, or under a
    condition, the start is that of the process. :func:`scoresde.log_likelihood` uses the same laws.

    Args:
        model: Score model.
        shape: ``(B, *D)``.
        sampler: The sampler, which knows t_max.
        cond: Condition of the run.
        prior: Name of the law.
        generator: Source of the noise.
        device, dtype: Those of the start.

    Raises:
        UnknownNameError: ``prior`` is no law.
        ShapeError: D is not the shape of the model's data.
    """
    if prior not in PRIORS:
        raise UnknownNameError("prior", prior, PRIORS)
    moments = model.moments
    if prior == "sde" or moments is None or not model.knows_mean(cond):
        return model.sde.prior_sample(shape, generator, device, dtype)
    if tuple(shape[1:]) != tuple(moments.mean.shape):
        expected = ", ".join(map(str, ("B", *moments.mean.shape)))
        raise ShapeError("shape", tuple(shape), f"({expected}), the shape of the model's data")
    time = torch.tensor([sampler.start_time(model.sde)], dtype=torch.float64)
    level = model.sde.levels(time)[0]
    noise = randn(tuple(shape), generator, device, dtype)
    gaussian = moments.gaussian(noise)
    std = (level.alpha**2 * gaussian.values + level.sigma**2).sqrt()
    x = level.alpha * gaussian.mean + gaussian.from_eigen(std * noise.reshape(len(noise), -1))
    return x.reshape(tuple(shape))
