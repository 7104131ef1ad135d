"""Unbiased estimates of the terms of a variational bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import finite
from scoresde.data import Scaling
from scoresde.errors import ArgumentError
from scoresde.likelihood.bound_levels import Strata
from scoresde.models import Estimate, Gaussian, Model
from scoresde.models.conditions import Condition
from scoresde.models.evaluation import evaluation
from scoresde.models.kernels import EXPONENTS, decoder_std, discretised_gaussian, step_kl
from scoresde.random import Generators, rand, randn
from scoresde.sde import HostLevel
from scoresde.sde.tensors import as_column, flat

DRAWS = 2  # of each term, so that their difference gives the standard error


@dataclass(frozen=True, eq=False)
class BoundPlan:
    """What all batches of a bound have in common.

    Attributes:
        model: the score model.
        strata: the levels between the first and the last.
        first, last: the first level, next to the data, and the last.
        variance: name of the steps' variance (P7), None in continuous time.
        prior: Gaussian of the prior, in the scale of the data.
        moments: Gaussian of the data's moments, the control variate. None: no control variate.
        scaling: map from integers to the model's units; None for continuous data.
        discretised: True if the decoder gives masses to bins, and the chain starts from their centres.
        decoder_std: standard deviation of the decoder. None: P7's of a discrete process.
        dtype: of the sums.
    """

    model: Model
    strata: Strata
    first: HostLevel
    last: HostLevel
    variance: str | None
    prior: Gaussian
    moments: Gaussian | None
    scaling: Scaling | None
    discretised: bool
    decoder_std: float | None
    dtype: torch.dtype

    @property
    def noise_width(self) -> float:
        """Width of the bins that uniform noise fills, 0 for none."""
        return 0.0 if self.scaling is None or self.discretised else self.scaling.bin_width


class TermEstimates(NamedTuple):
    """Estimates of the terms in nats.

    ``prior`` ``(B,)``, ``diffusion`` ``(B, J)``, ``reconstruction`` ``(B,)``, and the variance of their sum ``(B,)``.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    variance: Tensor


class _Evaluation(NamedTuple):
    """A fresh draw at one level, and the network's estimate for it.

    x_0, eps and eps_theta ``(B, *D)`` are in the dtype of the sums.
    """

    x0: Tensor
    eps: Tensor
    eps_theta: Tensor
    estimate: Estimate


class BatchTerms:
    """Draws of the terms for one batch of items.

    Args:
        plan: What all batches share.
        items: The items ``(B, *D)``: integers if the plan has a scaling, else in the model's units.
        cond: Tensors ``(B, ...)`` by name, or None.
        generator: Source of all noise.
    """

    def __init__(self, plan: BoundPlan, items: Tensor, cond: Condition, generator: Generators) -> None:
        self.plan, self.cond, self.generator = plan, cond, generator
        items = items.to(plan.model.device)
        self.centre = items.to(plan.dtype) if plan.scaling is None else plan.scaling.bin_centres(items, plan.dtype)
        self.raw = items if plan.discretised else None

    def estimates(self) -> TermEstimates:
        """Estimate all terms from two draws of each.

        Raises:
            NonFiniteError: NaN or infinity from the network; names the samples.
        """
        plan = self.plan
        # 1. two draws of each term; their difference gives the variance of the mean
        pairs = finite(self.pairs(), "the network's estimate")
        means, variance = pairs.mean(2), pairs.diff(dim=2).square().sum((1, 2)) / DRAWS**2
        # 2. add what the control variate has subtracted, in closed form
        if plan.moments is not None:
            z2 = self.second_moment(plan.moments)
            means[:, :-1] += plan.strata.expected(plan.moments, z2)
            if not plan.discretised:
                error = plan.moments.mean_noise_error(math.exp(plan.first.log_snr), z2)
                means[:, -1] += self.decoder_coefficient() * error
        # 3. the scaling's offset, and the prior's divergence in closed form
        if plan.scaling is not None and plan.noise_width:
            means[:, -1] -= plan.scaling.log_volume(flat(self.centre).shape[1])
        prior = plan.prior.prior_kl(math.exp(plan.last.log_snr), self.second_moment(plan.prior))
        return TermEstimates(prior, means[:, :-1], means[:, -1], variance)

    def pairs(self) -> Tensor:
        """Draw each term twice, ``(B, J + 1, 2)``, the decoder's last."""
        strata = self.plan.strata
        with evaluation(self.plan.model):
            shape = (len(self.centre), len(strata), DRAWS)
            u = rand(shape, self.generator, self.centre.device, self.centre.dtype)
            steps = [torch.stack([self.step(j, u[:, j, k]) for k in range(DRAWS)], 1) for j in range(len(strata))]
            return torch.stack([*steps, torch.stack([self.decode() for _ in range(DRAWS)], 1)], 1)

    def second_moment(self, gaussian: Gaussian) -> Tensor:
        """Return E z^2 ``(B, n)`` over the dequantisation.

        z is x_0 - m in the Gaussian's eigenbasis.
        """
        return gaussian.centre(flat(self.centre)).square() + self.plan.noise_width**2 / 12

    def step(self, j: int, u: Tensor) -> Tensor:
        """Return the term of stratum j ``(B,)`` at the offsets u ``(B,)``."""
        s, t, weight = self.plan.strata.draw(j, u)
        x0, eps, eps_theta, estimate = self.evaluate(t)
        if s is None:
            value = 0.5 * flat(eps - eps_theta).square().sum(1)
        else:
            value = step_kl(self.plan.model.sde, s, t, eps, eps_theta, self.exponent(estimate))
        return weight * self.less_control(value, self.plan.strata.coefficient(s, t), t, x0, eps)

    def decode(self) -> Tensor:
        """Return -log p_theta(x_0 | x_t) ``(B,)`` at the first level.

        It is that of the integers if the bins have masses.
        """
        sde, t = self.plan.model.sde, self.plan.first.t
        x0, eps, eps_theta, estimate = self.evaluate(t)
        std = self.plan.decoder_std
        width = decoder_std(sde, self.exponent(estimate)) if std is None else std
        if self.raw is not None and self.plan.scaling is not None:
            return discretised_gaussian(self.raw, estimate.x0.to(self.centre.dtype), width, self.plan.scaling)
        z = math.exp(-0.5 * sde.log_snr(t).item()) * (eps - eps_theta) / width  # (x_0 - x0_theta)/std
        log_std = width.log() if isinstance(width, Tensor) else math.log(width)
        value = flat(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)
        return self.less_control(value, self.decoder_coefficient(), t, x0, eps)

    def decoder_coefficient(self) -> float:
        """Return the factor of |eps - eps_G|^2 for :meth:`decode`."""
        sde, std = self.plan.model.sde, self.plan.decoder_std
        if std is None:
            std = float(decoder_std(sde, EXPONENTS[self.plan.variance or "posterior"]))
        return 0.5 * (math.exp(-0.5 * sde.log_snr(self.plan.first.t).item()) / std) ** 2

    def evaluate(self, t: float | Tensor) -> _Evaluation:
        """Evaluate the network at t, for a fresh draw of dequantisation and noise."""
        dtype, wide, device = self.plan.model.dtype, self.centre.dtype, self.centre.device
        x0, eps = self.centre, randn(self.centre.shape, self.generator, device, dtype)
        if self.plan.noise_width:
            x0 = x0 + self.plan.noise_width * (rand(x0.shape, self.generator, device, wide) - 0.5)
        x0 = x0.to(dtype)
        level = self.plan.model.sde.level(t, x0)
        estimate = self.plan.model.estimate(level.alpha * x0 + level.sigma * eps, level, self.cond)
        return _Evaluation(x0.to(wide), eps.to(wide), estimate.eps.to(wide), estimate)

    def exponent(self, estimate: Estimate) -> float | Tensor:
        """Return P7's exponent of the steps' variance, fixed or learned."""
        if self.plan.variance != "learned":
            return EXPONENTS[self.plan.variance or "posterior"]
        if estimate.v is None:
            expected = "'posterior' or 'forward', as the model has no learned variances"
            raise ArgumentError("variance", "'learned'", expected)
        return estimate.v.to(self.centre.dtype)

    def less_control(
        self, value: Tensor, coefficient: float | Tensor, t: float | Tensor, x0: Tensor, eps: Tensor
    ) -> Tensor:
        """Subtract the control variate ``coefficient`` |eps - eps_G|^2."""
        if self.plan.moments is None:
            return value
        snr = as_column(torch.exp(self.plan.model.sde.log_snr(t)), flat(eps))
        return value - coefficient * self.plan.moments.noise_error(snr, flat(x0), flat(eps))


def joined(parts: Sequence[TermEstimates]) -> TermEstimates:
    """Join the estimates of several batches, in float64 on the CPU."""
    return TermEstimates(
        *(torch.cat([value.cpu().double() for value in column]) for column in zip(*parts, strict=True))
    )
