r"""Variational bounds on -log p: of a discrete chain, term by term (P4), and of the reverse SDE (E12).

With x_t = alpha x_0 + sigma eps every term is an error of the predicted noise, whatever the network predicts. From a
level t to the next, s < t, with Delta = log_snr(s) - log_snr(t), rho = 2 log(sigma_t/sigma_s) and the variance
beta^v beta~^(1-v) of P7 for the model's step,

    KL(q(x_s | x_t, x_0) || p_theta(x_s | x_t))
        = sum [v rho + e^{-v rho} - 1 + e^{-v rho} (e^Delta - 1) (eps - eps_theta)^2] / 2,

over the entries: P5 for every SDE, and nothing is divided by alpha. For Delta -> 0 the sum over the levels becomes
int |eps - eps_theta|^2 d log_snr / 2, the denoising loss with likelihood weighting.

What these bounds bound is the likelihood of the chain, or of the reverse SDE, with this network; not that of the
probability flow (:func:`scoresde.log_likelihood`), which is another model unless the score is exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.checks import finite, whole
from scoresde.data import Scaling, TruncatedNormal
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.likelihood.bits import check_images, check_shape, mean_and_stderr, parts, seed_of
from scoresde.likelihood.probability_flow import PRIORS, check_data
from scoresde.models import Estimate, Model, Moments
from scoresde.models.conditions import Condition, condition_rows
from scoresde.models.evaluation import evaluation
from scoresde.models.kernels import EXPONENTS, VARIANCES, decoder_std, discretised_gaussian, step_kl
from scoresde.random import rand, randn
from scoresde.sde import SDE
from scoresde.sde.grids import time_range
from scoresde.sde.tensors import as_column, flat, state_dtype

RECONSTRUCTIONS = ("discretised", "gaussian")
#: levels drawn per image for an SDE
DRAWN = 128


# ---- a Gaussian stand-in, whose terms are known ----------------------------------------------------------------------


class _Gaussian:
    """Terms in closed form of the model that is exact for N(m, C), in the eigenbasis of C with eigenvalues lambda.

    For data x_0 with z = V'(x_0 - m), snr = (alpha/sigma)^2 and e = V' eps the error of its noise is
    r = snr lambda/(1 + snr lambda) e - sqrt(snr)/(1 + snr lambda) z. It serves as control variate, whose
    expectation is known, and (with m = 0, C of the prior) as the prior of the bound.
    """

    def __init__(self, mean: Tensor, values: Tensor, vectors: Tensor | None):
        self.mean, self.values, self.vectors = mean, values, vectors

    @classmethod
    def of(cls, moments: Moments, like: Tensor) -> _Gaussian:
        vectors = None if moments.vectors is None else moments.vectors.to(like)
        return cls(flat(moments.mean.to(like)[None]), moments.values.to(like), vectors)

    def rotate(self, x: Tensor) -> Tensor:
        return x if self.vectors is None else x @ self.vectors

    def error(self, snr: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """|eps - eps_G|^2 ``(B,)`` for flat x0 and eps."""
        gain = 1 + snr * self.values
        r = (snr * self.values * self.rotate(eps) - snr.sqrt() * self.rotate(x0 - self.mean)) / gain
        return r.square().sum(1)

    def mean_error(self, snr: float, z2: Tensor) -> Tensor:
        """E_eps |eps - eps_G|^2 ``(B,)`` from z^2 ``(B, n)``."""
        gain = 1 + snr * self.values
        return (snr * self.values / gain).square().sum() + z2 @ (snr / gain.square())

    def integrated_error(self, snr: float, z2: Tensor) -> Tensor:
        """The antiderivative in log_snr of :meth:`mean_error`, ``(B,)``."""
        gain = 1 + snr * self.values
        return (gain.log() + 1 / gain).sum() + z2 @ (snr / gain)

    def prior_kl(self, snr: float, z2: Tensor) -> Tensor:
        """KL(N(alpha x_0, sigma^2 I) || N(alpha m, alpha^2 C + sigma^2 I)) ``(B,)``."""
        return 0.5 * (self.integrated_error(snr, z2) - z2.shape[1])


# ---- the levels of the chain -----------------------------------------------------------------------------------------


class _Path(ABC):
    """The levels between the first and the last, cut into strata of log-SNR, ``edges`` ``(J + 1,)`` decreasing.

    ``cap`` is the log-SNR below which the control variate is used.
    """

    sde: SDE
    edges: list[float]
    cap: float

    @property
    def strata(self) -> int:
        return len(self.edges) - 1

    def log_snr(self, j: int, u: Tensor) -> Tensor:
        return self.edges[j] + (self.edges[j + 1] - self.edges[j]) * u

    @abstractmethod
    def draw(self, j: int, u: Tensor) -> tuple[float | Tensor | None, float | Tensor, float | Tensor]:
        """``(s, t, weight)`` at the places ``u`` ``(B,)`` in [0, 1) of stratum j; s None: no step, a density."""

    @abstractmethod
    def coefficient(self, s: float | Tensor | None, t: float | Tensor) -> float | Tensor:
        """Of |eps - eps_G|^2 in the control variate of a step from t to s."""

    @abstractmethod
    def expected(self, gaussian: _Gaussian, z2: Tensor) -> Tensor:
        """What the Gaussian's terms are on average, ``(B, J)``."""


class _Continuum(_Path):
    """E12: the density |eps - eps_theta|^2 / 2 in log-SNR."""

    def __init__(self, sde: SDE, first: float, last: float, drawn: int, cap: float):
        self.sde, self.cap = sde, cap
        self.edges = torch.linspace(first, last, drawn // 2 + 1, dtype=torch.float64).tolist()

    def draw(self, j, u):
        return None, self.sde.time_of(self.log_snr(j, u)), self.edges[j] - self.edges[j + 1]

    def coefficient(self, s, t):
        return 0.5 * (self.sde.log_snr(t) < self.cap)

    def expected(self, gaussian, z2):
        edges = [min(edge, self.cap) for edge in self.edges]
        values = torch.stack([gaussian.integrated_error(math.exp(edge), z2) for edge in edges], 1)
        return -0.5 * values.diff(dim=1)


class _Chain(_Path):
    """P4: the levels of a discrete process, all of them or as many as are drawn.

    A level's term is spread evenly over its step in log-SNR, so that levels are drawn in proportion to their steps.
    """

    def __init__(self, sde: SDE, drawn: int | None, v: float, cap: float):
        self.sde, self.v, self.cap, self.times = sde, v, cap, sde.times
        self.all = drawn is None or len(sde.times) == 1
        self.log_snrs = sde.log_snr(self.times)
        self.steps = -self.log_snrs.diff()
        self.edges = self.log_snrs.tolist()
        if not self.all:
            first, last = self.edges[0], self.edges[-1]
            self.edges = torch.linspace(first, last, drawn // 2 + 1, dtype=torch.float64).tolist()

    def draw(self, j, u):
        if self.all:
            return self.times[j].item(), self.times[j + 1].item(), 1.0
        times, steps = self.times.to(u), self.steps.to(u)
        below = torch.searchsorted(-self.log_snrs.to(u), -self.log_snr(j, u), right=True) - 1
        below = below.clamp(0, len(steps) - 1)
        return times[below], times[below + 1], (self.edges[j] - self.edges[j + 1]) / steps[below]

    def coefficient(self, s, t):
        log_snr = self.sde.log_snr(t)
        weight = 0.5 * torch.expm1(self.sde.log_snr(s) - log_snr) * (log_snr < self.cap)
        return weight * (self.sde.sigma(s) / self.sde.sigma(t)) ** (2 * self.v)

    def expected(self, gaussian, z2):
        if not len(self.steps):
            return z2.new_zeros(len(z2), 0)
        c = self.coefficient(self.times[:-1], self.times[1:]).tolist()
        snrs = self.log_snrs[1:].exp().tolist()
        terms = torch.stack([c[i] * gaussian.mean_error(snrs[i], z2) for i in range(len(c))], 1)
        if self.all:
            return terms
        edges = torch.tensor(self.edges, dtype=torch.float64)
        low = torch.maximum(edges[1:, None], self.log_snrs[1:])  # the part of each stratum in each step
        overlap = (torch.minimum(edges[:-1, None], self.log_snrs[:-1]) - low).clamp(min=0)
        return terms @ (overlap / self.steps).T.to(terms)


# ---- the bound -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VariationalBound:
    """An upper bound on -log p of each item, in nats, term by term, and how it was found.

    Attributes:
        bound: ``(N,)``, the sum of the terms: -log p(x_0) <= E[bound], for integer data -log P(raw).
        stderr: ``(N,)``, its standard error, from noise, levels and dequantisation (of 32 pairs of draws on mixtures
            intervals of 95 % held 88-94 %: the terms have heavy tails).
        prior: ``(N,)``, KL(q(x_T | x_0) || p(x_T)), in closed form.
        diffusion: ``(N, J)``, the levels' terms: of a chain whose levels are all used L_{i-1} for i = 2..N; otherwise
            of the J strata of log-SNR.
        reconstruction: ``(N,)``, E[-log p_theta(x_0 | x at the first level)], with what the scaling adds.
        log_snr: ``(J + 1,)``, the edges of the terms in ``diffusion``.
        calls: network calls an item.
        dims: entries of an item.
        integers: whether the data are integers, and the unit bits/dim.
        kind: ``"discrete"`` or ``"continuous"``.
        variance: of the chain's steps (P7), None in continuous time.
        decoder: ``"discretised"`` or ``"gaussian"``.
        t_min, t_max: the first and the last level.
        seed: of the generator, None without one.

    Terms are unbiased estimates; with control variates one that is nearly 0 may come out negative.
    """

    bound: Tensor
    stderr: Tensor
    prior: Tensor
    diffusion: Tensor = field(repr=False)
    reconstruction: Tensor
    log_snr: Tensor = field(repr=False)
    calls: int
    dims: int
    integers: bool
    kind: str
    variance: str | None
    decoder: str
    t_min: float
    t_max: float
    seed: int | None

    @property
    def unit(self) -> str:
        """``"bits/dim"`` for integer data, ``"nats"`` for continuous data."""
        return "bits/dim" if self.integers else "nats"

    def in_unit(self, nats: Tensor) -> Tensor:
        """Nats an item in :attr:`unit`."""
        return nats / (self.dims * math.log(2)) if self.integers else nats

    @property
    def bits(self) -> Tensor:
        """The bound in bits/dim, ``(N,)``; of continuous data too, where it may be negative."""
        return self.bound / (self.dims * math.log(2))

    @property
    def mean(self) -> float:
        """The mean over the items, in :attr:`unit`."""
        return self.in_unit(self.bound).mean().item()

    @property
    def mean_stderr(self) -> float:
        """The standard error of :attr:`mean` over the items (NaN for one), which holds that of each item."""
        return mean_and_stderr(self.in_unit(self.bound))[1]

    def terms(self) -> dict[str, tuple[float, float]]:
        """Mean over the items and its standard error, in :attr:`unit`, of prior, diffusion and reconstruction."""
        parts = {"prior": self.prior, "diffusion": self.diffusion.sum(1), "reconstruction": self.reconstruction}
        return {name: mean_and_stderr(self.in_unit(values)) for name, values in parts.items()}

    def __str__(self):
        parts = " + ".join(f"{name} {mean:.4f}" for name, (mean, _) in self.terms().items())
        return (
            f"<= {self.mean:.4f} +- {self.mean_stderr:.4f} {self.unit} = {parts} "
            f"(N = {len(self.bound)}, {self.kind}, {self.calls} calls, t_min = {self.t_min:.3g})"
        )


class _Terms:
    """Draws of the terms for one batch of items, each unbiased.

    Args:
        model, variance, gaussian, scaling, cond: as their names say; gaussian None: no control variate.
        centre: the data ``(B, *D)``, or the centres of their bins, in the dtype of the sums.
        raw: the integers, if the decoder gives masses to bins.
        width: of the bins that uniform noise is to fill, 0 for none.
        std: of the decoder, or None: P7's of a discrete process.
        generator: of all noise.
    """

    def __init__(self, model, path, variance, gaussian, scaling, cond, centre, raw, width, std, generator):
        self.model, self.sde, self.path, self.variance = model, model.sde, path, variance
        self.gaussian, self.scaling, self.cond = gaussian, scaling, cond
        self.centre, self.raw, self.width, self.std, self.generator = centre, raw, width, std, generator

    def places(self) -> Tensor:
        """Where in each stratum its two draws are, ``(B, J, 2)`` in [0, 1)."""
        shape = (len(self.centre), self.path.strata, 2)
        return rand(shape, self.generator, self.centre.device, self.centre.dtype)

    def second_moment(self, gaussian: _Gaussian) -> Tensor:
        """E z^2 ``(B, n)`` over the dequantisation."""
        return gaussian.rotate(flat(self.centre) - gaussian.mean).square() + self.width**2 / 12

    def answer(self, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Estimate]:
        """``(x_0, eps, eps_theta, estimate)`` at t for a fresh draw of dequantisation and noise."""
        dtype, wide, device = self.model.dtype, self.centre.dtype, self.centre.device
        x0, eps = self.centre, randn(self.centre.shape, self.generator, device, dtype)
        if self.width:
            x0 = x0 + self.width * (rand(x0.shape, self.generator, device, wide) - 0.5)
        x0 = x0.to(dtype)
        level = self.sde.level(t, x0)
        estimate = self.model.estimate(level.alpha * x0 + level.sigma * eps, level, self.cond)
        return x0.to(wide), eps.to(wide), estimate.eps.to(wide), estimate

    def exponent(self, estimate: Estimate) -> float | Tensor:
        if self.variance != "learned":
            return EXPONENTS[self.variance]
        if estimate.v is None:
            raise ArgumentError("variance", "'learned'", "'posterior' or 'forward': the model has no learned variances")
        return estimate.v.to(self.centre.dtype)

    def less_control(self, value: Tensor, coefficient: float | Tensor, t: float | Tensor, x0: Tensor, eps: Tensor):
        """``value`` less the Gaussian's own term, ``coefficient`` |eps - eps_G|^2."""
        if self.gaussian is None:
            return value
        snr = as_column(torch.exp(self.sde.log_snr(t)), flat(eps))
        return value - coefficient * self.gaussian.error(snr, flat(x0), flat(eps))

    def step(self, j: int, u: Tensor) -> Tensor:
        """Stratum j's term ``(B,)`` from a level drawn at the places u ``(B,)`` of it."""
        s, t, weight = self.path.draw(j, u)
        x0, eps, eps_theta, estimate = self.answer(t)
        if s is None:
            value = 0.5 * flat(eps - eps_theta).square().sum(1)
        else:
            value = step_kl(self.sde, s, t, eps, eps_theta, self.exponent(estimate))
        return weight * self.less_control(value, self.path.coefficient(s, t), t, x0, eps)

    def decoder_coefficient(self, t: float) -> float:
        """Of |eps - eps_G|^2 in the control variate of :meth:`decode`."""
        std = decoder_std(self.sde, EXPONENTS[self.variance]) if self.std is None else self.std
        return 0.5 * (math.exp(-0.5 * self.sde.log_snr(t).item()) / std) ** 2

    def decode(self, t: float) -> Tensor:
        """-log p_theta(x_0 | x_t) ``(B,)`` at the first level t, of the integers if they are given."""
        x0, eps, eps_theta, estimate = self.answer(t)
        std = decoder_std(self.sde, self.exponent(estimate)) if self.std is None else self.std
        if self.raw is not None:
            return discretised_gaussian(self.raw, estimate.x0.to(self.centre.dtype), std, self.scaling)
        z = math.exp(-0.5 * self.sde.log_snr(t).item()) * (eps - eps_theta) / std  # (x_0 - x0_theta)/std
        log_std = std.log() if isinstance(std, Tensor) else math.log(std)
        value = flat(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)
        return self.less_control(value, self.decoder_coefficient(t), t, x0, eps)

    def pairs(self, t: float) -> Tensor:
        """Two draws of each term, ``(B, J + 1, 2)``, the decoder's at the first level t last; in evaluation mode."""
        with evaluation(self.model):
            u = self.places()
            steps = [torch.stack([self.step(j, u[:, j, k]) for k in range(2)], 1) for j in range(self.path.strata)]
            return torch.stack([*steps, torch.stack([self.decode(t) for _ in range(2)], 1)], 1)


def _learns_variance(model: Model, x0: Tensor, t: float, cond: Condition) -> bool:
    """Whether the model's estimates have v, by asking it about the first item."""
    some = condition_rows(cond, slice(1))
    x = torch.zeros(1, *x0.shape[1:], dtype=model.dtype, device=model.device)
    with evaluation(model):
        return model(x, t, some).v is not None


@torch.no_grad()
def variational_bound(
    model: Model,
    x0: Tensor,
    *,
    levels: int | None = None,
    continuous: bool | None = None,
    variance: str | None = None,
    reconstruction: str | None = None,
    scaling: Scaling | None = None,
    cond: Condition = None,
    t_min: float | None = None,
    t_max: float | None = None,
    prior: str = "matched",
    control: bool = True,
    generator: torch.Generator | None = None,
    batch: int = 128,
    check_num_values: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> VariationalBound:
    r"""A variational bound -log p(x_0) <= L_T + sum L_{i-1} + L_0 of a DDPM or an NCSN (P4), or of an SDE (E12).

    Of a discrete process: the prior's divergence, one divergence a step back (:func:`step_kl`) and the decoder
    -log p_theta(x_0 | x_1) at the first level. In continuous time the steps become

        int_{t_min}^{t_max} (g^2/(2 sigma^2)) E|eps - eps_theta|^2 dt = int E|eps - eps_theta|^2 d log_snr / 2,

    and the decoder is N(x0_theta, (sigma/alpha)^2 I) at t_min. With the exact score this is -log p(x_0) itself.

    Each level is drawn from twice, with fresh noise, so that every standard error is honest. As control variate the
    Gaussian with the data's moments is subtracted, for which the terms are known in closed form: the noise that is left
    is that of the network's difference to it.

    Args:
        model: a score model; it is used in evaluation mode.
        x0: data ``(N, *D)``: integers 0..num_values-1 as they are stored, or floats in the model's units.
        levels: even, how many levels are drawn for each item, two from each of levels/2 strata of log-SNR. None: all
            levels of a discrete process, twice; 128 in continuous time.
        continuous: E12 instead of P4 for a discrete process; None asks the process.
        variance: of the steps, a name of P7: ``"posterior"`` (beta~), ``"forward"`` (beta) or ``"learned"``; None is
            learned where the model has it, ``"posterior"`` elsewhere. Discrete processes only.
        reconstruction: ``"gaussian"``: the chain starts from the data and ends in a density; integers are dequantised
            uniformly, as they are in training by default. ``"discretised"``: it starts from the integers' bin centres,
            and the decoder gives masses to bins; for models trained on bin centres (another pays for the inside of the
            bins), in continuous time from the t_min of :class:`~scoresde.data.TruncatedNormal`, the default t_min then. None
            is ``"discretised"`` for integers under a discrete process, as in the papers, and ``"gaussian"`` otherwise.
        scaling: the map to the model's units; default: the one kept with the model.
        cond: tensors ``(N, ...)`` by name.
        t_min, t_max: the ends in continuous time; None takes the defaults for the SDE.
        prior: ``"matched"`` or ``"sde"``, as in :func:`log_likelihood`.
        control: use the control variate, if the model knows the data's moments; from bin centres only at noise that
            hides the bins.
        generator: of all noise; each item has its own stream, so that the results do not depend on the batch.
        batch: items per batch.
        check_num_values: as in :func:`bits_per_dim`.
        callback: called with (items done, items in all) after each batch.

    Raises:
        DTypeError, DataError, ShapeError: data that do not fit the model.
        ArgumentError: an odd number of levels; ends given for a discrete process; a decoder for another kind of data; a
            t_min without noise; learned variances that the model has not.
        UnknownNameError: an unknown variance, reconstruction or prior.
        NonFiniteError: NaN or infinity in the data or from the network (names the samples).

    Source: Ho et al. (2020, eq. 5); Nichol & Dhariwal (2021, section 3); Song et al. (2021b, theorem 3); Kingma et
    al. (2021, eqs. 11-18).
    """
    sde = model.sde
    integers = isinstance(x0, Tensor) and not x0.is_floating_point() and not x0.is_complex()
    scaling = model.scaling if scaling is None else scaling
    if integers:
        check_images(model, x0, scaling, check_num_values)
    else:
        check_data(model, x0)
        check_shape(model, x0)
    discrete = sde.times is not None and not continuous
    if continuous is False and not discrete:
        raise ArgumentError("continuous", False, f"True or None: {sde!r} has no levels of its own")
    if reconstruction is None:
        reconstruction = "discretised" if integers and discrete else "gaussian"
    for name, value, known in (("reconstruction", reconstruction, RECONSTRUCTIONS), ("prior", prior, PRIORS)):
        if value not in known:
            raise UnknownNameError(name, value, known)
    if reconstruction == "discretised" and not integers:
        raise ArgumentError("reconstruction", "'discretised' for continuous data", "integers, or 'gaussian'")
    if levels is not None and whole("levels", levels) % 2:
        raise ArgumentError("levels", levels, "an even number: two in each stratum")
    if variance is not None and variance not in VARIANCES:
        raise UnknownNameError("variance", variance, VARIANCES)

    if discrete:
        if (t_min, t_max) != (None, None):
            raise ArgumentError("t_min, t_max", (t_min, t_max), "None for a discrete process (or continuous=True)")
        t_min, t_max = sde.times[[0, -1]].tolist()
    else:
        if t_min is None and reconstruction == "discretised":
            t_min = sde.time_of(TruncatedNormal().log_snr(scaling)).item()
        t_min, t_max = time_range(sde, t_min, t_max)
    first, last = sde.levels(torch.tensor([t_min, t_max], dtype=torch.float64))
    if not first.sigma > 0:
        raise ArgumentError("t_min", t_min, "a time with noise, sigma(t_min) > 0")
    if not last.alpha > 0:
        raise ArgumentError("t_max", t_max, "a time with a signal left, alpha(t_max) > 0")
    if discrete and variance is None:
        variance = "learned" if _learns_variance(model, x0, t_min, cond) else "posterior"

    N, n = len(x0), x0[0].numel()
    like = torch.empty(0, device=model.device)
    like = like.to(state_dtype(like))
    gaussian = None if model.moments is None else _Gaussian.of(model.moments, like)
    prior_gaussian = gaussian if prior == "matched" else None
    if prior_gaussian is None:  # N(0, prior_std^2 I) = N(alpha m, alpha^2 C + sigma^2 I) for m = 0 and C = c I
        c = (sde.prior_std**2 - last.sigma**2) / last.alpha**2
        prior_gaussian = _Gaussian(like.new_zeros(1, n), like.new_full((n,), c), None)
    discretised = reconstruction == "discretised"
    cap = -2 * math.log(scaling.scale / 2) if discretised else math.inf  # less noise shows the bins: no Gaussian
    if discrete:
        path, std = _Chain(sde, levels, EXPONENTS[variance], cap), None
    else:
        path = _Continuum(sde, first.log_snr, last.log_snr, DRAWN if levels is None else levels, cap)
        std = first.rho
    width = scaling.scale if integers and not discretised else 0.0
    columns = {name: [] for name in ("prior", "diffusion", "reconstruction", "variance")}
    for part, some, generators in parts(N, batch, cond, generator):
        raw = x0[part].to(model.device) if integers else None
        centre = scaling.bin_centres(raw, like.dtype) if integers else x0[part].to(like.dtype)
        terms = _Terms(
            model, path, variance, gaussian if control else None, scaling, some,
            centre, raw if discretised else None, width, std, generators,
        )  # fmt: skip
        pairs = terms.pairs(t_min)
        finite(pairs, "the network's estimate")
        means, variances = pairs.mean(2), pairs.diff(dim=2).square().sum((1, 2)) / 4
        if terms.gaussian is not None:
            z2 = terms.second_moment(gaussian)
            means[:, :-1] += path.expected(gaussian, z2)
            if not discretised:
                means[:, -1] += terms.decoder_coefficient(t_min) * gaussian.mean_error(math.exp(first.log_snr), z2)
        if width:
            means[:, -1] -= scaling.log_volume(n)
        kl = prior_gaussian.prior_kl(math.exp(last.log_snr), terms.second_moment(prior_gaussian))
        for column, values in zip(columns.values(), (kl, means[:, :-1], means[:, -1], variances), strict=True):
            column.append(values.cpu().double())
        if callback is not None:
            callback(part.stop, N)

    kl, diffusion, decoder, variances = (torch.cat(column) for column in columns.values())
    return VariationalBound(
        bound=kl + diffusion.sum(1) + decoder,
        stderr=variances.sqrt(),
        prior=kl,
        diffusion=diffusion,
        reconstruction=decoder,
        log_snr=torch.tensor(path.edges, dtype=torch.float64),
        calls=2 * path.strata + 2,
        dims=n,
        integers=integers,
        kind="discrete" if discrete else "continuous",
        variance=variance if discrete else None,
        decoder=reconstruction,
        t_min=t_min,
        t_max=t_max,
        seed=seed_of(generator),
    )
