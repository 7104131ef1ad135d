r"""Variational bounds on -log p of a chain (P4) and of a reverse SDE (E12).

Symbols:
    x_t = alpha x_0 + sigma eps; eps_theta: the network's noise; n: entries of an item.
    s < t: two levels. Delta = log_snr(s) - log_snr(t). rho = 2 log(sigma_t/sigma_s).
    beta^v beta~^(1-v): the variance of the model's step from t to s, with P7's exponent v.

Every term is an error of the predicted noise, whatever the network predicts:

    KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t))
        = sum [v rho + e^{-v rho} - 1 + e^{-v rho} (e^Delta - 1) (eps - eps_theta)^2] / 2,

a sum over the entries. This is P5 for every SDE, and nothing is divided by alpha. For Delta -> 0 the sum over the
levels becomes int |eps - eps_theta|^2 d log_snr / 2, the denoising loss with likelihood weighting.

These bounds are on the likelihood of the chain, or of the reverse SDE, with this network. The probability flow is
another model unless the score is exact (:func:`scoresde.log_likelihood`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.data import Scaling, TruncatedNormal
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.likelihood.bound_levels import ContinuousStrata, DiscreteStrata, Strata
from scoresde.likelihood.bound_terms import DRAWS, BatchTerms, BoundPlan, joined
from scoresde.likelihood.flow_settings import Prior
from scoresde.likelihood.inputs import check_data, check_images, check_items, item_batches
from scoresde.likelihood.results import VariationalBound, seed_of
from scoresde.models import Gaussian, Model
from scoresde.models.conditions import Condition, check_condition, condition_rows
from scoresde.models.evaluation import evaluation
from scoresde.models.kernels import EXPONENTS, VARIANCES
from scoresde.models.model import check_model
from scoresde.sde import HostLevel
from scoresde.sde.tensors import state_dtype

Reconstruction = Literal["discretised", "gaussian"]

DRAWN_LEVELS = 128  # per item, in continuous time


@dataclass(frozen=True)
class BoundSettings:
    """Settings of :func:`variational_bound`, checked once.

    They are its arguments of the same names.
    """

    levels: int | None = None
    continuous: bool | None = None
    variance: str | None = None
    reconstruction: Reconstruction | None = None
    t_min: float | None = None
    t_max: float | None = None
    prior: Prior = "matched"
    control: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("reconstruction", self.reconstruction or "gaussian", get_args(Reconstruction)),
            ("prior", self.prior, get_args(Prior)),
            ("variance", self.variance or "posterior", VARIANCES),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        if self.levels is not None and whole("levels", self.levels) % DRAWS:
            raise ArgumentError("levels", self.levels, "an even number: two in each stratum")


@checked
@torch.no_grad()
def variational_bound(
    model: Model,
    x0: Tensor,
    *,
    levels: int | None = None,
    continuous: bool | None = None,
    variance: str | None = None,
    reconstruction: Reconstruction | None = None,
    scaling: Scaling | None = None,
    cond: Condition = None,
    t_min: float | None = None,
    t_max: float | None = None,
    prior: Prior = "matched",
    control: bool = True,
    generator: torch.Generator | None = None,
    batch: int = 128,
    check_num_values: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> VariationalBound:
    r"""Estimate a variational bound on -log p (P4, E12).

        -log p(x_0) <= L_T + sum_i L_{i-1} + L_0

    It bounds the likelihood of a DDPM or an NCSN (P4), or of an SDE (E12). L_T is the divergence of the prior. Of a
    discrete process each L_{i-1} is the divergence of a step back (:func:`~scoresde.models.kernels.step_kl`), and L_0 =
    -log p_theta(x_0 | x_1) is the decoder at the first level. In continuous time the steps become

        int_{t_min}^{t_max} (g^2/(2 sigma^2)) E|eps - eps_theta|^2 dt = int E|eps - eps_theta|^2 d log_snr / 2,

    and the decoder is N(x0_theta, (sigma/alpha)^2 I) at t_min. With the exact score this is -log p(x_0) itself.

    Each level is drawn twice, with fresh noise, which gives the standard errors. The Gaussian with the data's moments
    is the control variate: its terms are subtracted, and added in closed form. The noise that is left is that of the
    network's difference from it.

    Args:
        model: Score model; it is evaluated in evaluation mode.
        x0: Data ``(N, *D)``: integers from 0 to num_values - 1 as they are stored, or floats in the model's units.
        levels: Noise levels drawn per item, even: two from each of levels/2 strata of log-SNR. None: all levels of a
            discrete process, twice; 128 in continuous time.
        continuous: True for E12 instead of P4 under a discrete process. None: as the process is.
        variance: Variance of the steps by its name in P7, for discrete processes: ``"posterior"`` (beta~),
            ``"forward"`` (beta) or ``"learned"``. None: learned if the model has it, else posterior.
        reconstruction: ``"gaussian"``: the chain starts from the data and ends in a density; integers are dequantised
            uniformly. ``"discretised"``: the chain starts from the bin centres of integers, and the decoder gives
            masses to bins. It suits models trained on bin centres. Models trained on dequantised data score worse, as
            they also model the density within each bin. None: discretised for integers under a discrete process, as in
            the papers, else gaussian.
        scaling: Map to the model's units. None: the model's.
        cond: Tensors ``(N, ...)`` by name. None: unconditional.
        t_min, t_max: Ends in continuous time. None: the defaults for the SDE; for ``"discretised"`` the t_min of
            :class:`~scoresde.data.TruncatedNormal`.
        prior: ``"matched"`` (default) or ``"sde"``, as in :func:`log_likelihood`.
        control: Use the control variate if the model knows the data's moments, default True. From bin centres it is
            used only where the noise hides the bins.
        generator: Seeds a stream of random numbers for each item, so that results do not depend on the batch. None:
            torch's default.
        batch: Items per batch, default 128.
        check_num_values: As in :func:`bits_per_dim`.
        callback: Function of (items done, items in all), called after each batch.

    Returns:
        The bound of each item, its terms and standard errors.

    Raises:
        DTypeError, DataError, ShapeError: data that do not fit the model.
        ArgumentError: an odd number of levels; ends given for a discrete process; a decoder for another kind of data; a
            t_min without noise or a t_max without signal; learned variances that the model does not have.
        UnknownNameError: an unknown variance, reconstruction or prior.
        NonFiniteError: NaN or infinity in the data or from the network; names the samples.

    References: Ho et al. 2020, equation 5; Nichol & Dhariwal 2021, section 3; Song et al. 2021b, theorem 3; Kingma et
    al. 2021, equations 11 to 18.
    """
    # 1. checks of the settings and of the data
    settings = BoundSettings(levels, continuous, variance, reconstruction, t_min, t_max, prior, control)
    check_model(model)
    integers = isinstance(x0, Tensor) and not x0.is_floating_point() and not x0.is_complex()
    if integers:
        scaling = check_images(model, x0, model.scaling if scaling is None else scaling, check_num_values)
    else:
        check_data(model, x0)
        check_items(model, x0)
        scaling = None
    check_condition(cond, len(x0), model.classes)
    # 2. levels, variances, decoder and the two Gaussians
    plan = _plan(model, x0, settings, scaling, cond)
    # 3. the terms of each batch
    parts = []
    for rows, some, generators in item_batches(len(x0), batch, cond, generator):
        parts.append(BatchTerms(plan, x0[rows], some, generators).estimates())
        if callback is not None:
            callback(rows.stop, len(x0))
    # 4. the result
    terms = joined(parts)
    return VariationalBound(
        bound=terms.prior + terms.diffusion.sum(1) + terms.reconstruction,
        stderr=terms.variance.sqrt(),
        prior=terms.prior,
        diffusion=terms.diffusion,
        reconstruction=terms.reconstruction,
        log_snr=torch.tensor(plan.strata.edges, dtype=torch.float64),
        calls=DRAWS * (len(plan.strata) + 1),
        dims=x0[0].numel(),
        integers=integers,
        kind="continuous" if plan.variance is None else "discrete",
        variance=plan.variance,
        decoder="discretised" if plan.discretised else "gaussian",
        t_min=plan.first.t,
        t_max=plan.last.t,
        seed=seed_of(generator),
    )


def _plan(model: Model, x0: Tensor, settings: BoundSettings, scaling: Scaling | None, cond: Condition) -> BoundPlan:
    """Choose levels, variances and decoder.

    ``scaling`` is None for continuous data.
    """
    discrete = _is_discrete(model, settings)
    discretised = _is_discretised(settings, discrete=discrete, integers=scaling is not None)
    first, last = _ends(model, settings, scaling if discretised else None, discrete=discrete)
    variance = settings.variance
    if discrete and variance is None:
        variance = "learned" if _learns_variance(model, x0, first.t, cond) else "posterior"
    # less noise than this shows the bins, and the data are no Gaussian
    control_below = -2 * math.log(scaling.bin_width / 2) if discretised and scaling is not None else math.inf
    like = torch.empty(0, device=model.device)
    like = like.to(state_dtype(like))
    moments = None if model.moments is None else model.moments.gaussian(like)
    prior = moments if settings.prior == "matched" else None
    if prior is None:  # N(0, prior_std^2 I) = N(alpha m, alpha^2 C + sigma^2 I) for m = 0 and C = c I
        c = (model.sde.prior_std**2 - last.sigma**2) / last.alpha**2
        prior = Gaussian.isotropic(like.new_zeros(1, x0[0].numel()), c)
    strata = _strata(model, settings, (first, last), variance if discrete else None, control_below)
    return BoundPlan(
        model=model,
        strata=strata,
        first=first,
        last=last,
        variance=variance if discrete else None,
        prior=prior,
        moments=moments if settings.control else None,
        scaling=scaling,
        discretised=discretised,
        decoder_std=None if discrete else first.rho,
        dtype=like.dtype,
    )


def _is_discrete(model: Model, settings: BoundSettings) -> bool:
    """Return True for a bound of a discrete process, False for an SDE."""
    discrete = model.sde.times is not None and not settings.continuous
    if settings.continuous is False and not discrete:
        raise ArgumentError("continuous", False, f"True or None, as {model.sde!r} is in continuous time")
    if discrete and (settings.t_min, settings.t_max) != (None, None):
        ends = (settings.t_min, settings.t_max)
        raise ArgumentError("t_min, t_max", ends, "None for a discrete process (or continuous=True)")
    return discrete


def _is_discretised(settings: BoundSettings, *, discrete: bool, integers: bool) -> bool:
    """Return True if the decoder gives masses to bins."""
    if settings.reconstruction == "discretised" and not integers:
        raise ArgumentError("reconstruction", "'discretised' for continuous data", "'gaussian', or the data integers")
    return settings.reconstruction == "discretised" or (settings.reconstruction is None and integers and discrete)


def _ends(
    model: Model, settings: BoundSettings, binned: Scaling | None, *, discrete: bool
) -> tuple[HostLevel, HostLevel]:
    """Return the first and the last level.

    ``binned`` is the scaling of a chain that starts from bin centres, or None.
    """
    sde, t_min = model.sde, settings.t_min
    if discrete and sde.times is not None:
        t_min, t_max = sde.times[[0, -1]].tolist()
    else:
        if t_min is None and binned is not None:
            t_min = sde.time_of(TruncatedNormal().log_snr(binned)).item()
        t_min, t_max = model.time_range(t_min, settings.t_max)
    first, last = sde.levels(torch.tensor([t_min, t_max], dtype=torch.float64))
    if not first.sigma > 0:
        raise ArgumentError("t_min", t_min, "a time with noise, sigma(t_min) > 0")
    if not last.alpha > 0:
        raise ArgumentError("t_max", t_max, "a time with a signal left, alpha(t_max) > 0")
    return first, last


def _strata(
    model: Model, settings: BoundSettings, ends: tuple[HostLevel, HostLevel], variance: str | None, control_below: float
) -> Strata:
    """Return the strata; ``variance`` is None in continuous time."""
    if variance is not None and model.sde.times is not None:
        return DiscreteStrata(model.sde, model.sde.times, settings.levels, EXPONENTS[variance], control_below)
    first, last = (level.log_snr for level in ends)
    drawn = DRAWN_LEVELS if settings.levels is None else settings.levels
    return ContinuousStrata(model.sde, first, last, drawn, control_below)


def _learns_variance(model: Model, x0: Tensor, t: float, cond: Condition) -> bool:
    """Return True if the model learns variances, by evaluating it once."""
    x = torch.zeros(1, *x0.shape[1:], dtype=model.dtype, device=model.device)
    with evaluation(model):
        return model(x, t, condition_rows(cond, slice(1))).v is not None
