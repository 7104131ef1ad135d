"""Labs 6 to 10: DDIM, likelihood, annealing, inpainting, any process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.course.tasks import Slip, Task, draw
from scoresde.data import Scaling
from scoresde.models import GaussianMixture
from scoresde.sde import DDPM, VESDE, VPSDE, FlowSDE

_VP = VPSDE()
_DDPM = DDPM.linear(50, 0.001, 0.2)
_X, _Z = draw(6), draw(6, seed=1)

# ---- 6: DDIM ---------------------------------------------------------------------------------------------------------


def _levels(s: float, t: float) -> tuple[float, float, float, float]:
    """Return alpha_t, sigma_t, alpha_s, sigma_s of the VP process."""
    return _VP.alpha(t).item(), _VP.sigma(t).item(), _VP.alpha(s).item(), _VP.sigma(s).item()


def _implicit(x: Tensor, eps: Tensor, a_t: float, s_t: float, a_s: float, s_s: float) -> Tensor:
    """Return D3 with eta = 0, from the library's family of posteriors."""
    t, s = (0.6, 0.3) if abs(a_t - _VP.alpha(0.6).item()) < 1e-12 else (0.9, 0.2)
    return _VP.posterior(x, (x - s_t * eps) / a_t, s, t, 0.0)[0]


def _std(eta: float, a_t: float, s_t: float, a_s: float, s_s: float) -> float:
    t, s = (0.6, 0.3) if abs(a_t - _VP.alpha(0.6).item()) < 1e-12 else (0.9, 0.2)
    return _VP.posterior_coefficients(s, t, eta)[2].item()


_PAIRS = (_levels(0.3, 0.6), _levels(0.2, 0.9))
_LAB6 = (
    Task(
        6,
        "ddim",
        ("x", "eps", "alpha_t", "sigma_t", "alpha_s", "sigma_s"),
        [(_X, _Z, *pair) for pair in _PAIRS],
        _implicit,
        (
            Slip(
                "x_0 = (x - sigma_t eps)/alpha_t: the division is missing.",
                lambda x, e, a, s, b, r: b * (x - s * e) + r * e,
            ),
            Slip(
                "The noise at the end is that of level s: sigma_s eps, not sigma_t eps.",
                lambda x, e, a, s, b, r: b * (x - s * e) / a + s * e,
            ),
            Slip(
                "This is the estimate of x_0, shrunk: its noise is missing.",
                lambda x, e, a, s, b, r: b * (x - s * e) / a,
            ),
        ),
        "The same noise, at another level: no new randomness.",
    ),
    Task(
        6,
        "noise",
        ("eta", "alpha_t", "sigma_t", "alpha_s", "sigma_s"),
        [(eta, *pair) for eta in (0.5, 1.0) for pair in _PAIRS],
        _std,
        (
            Slip(
                "That is the variance. The standard deviation is its root.",
                lambda n, a, s, b, r: n**2 * (s**2 - (a / b * r) ** 2) * r**2 / s**2,
            ),
            Slip("sigma_s/sigma_t is missing.", lambda n, a, s, b, r: n * (s**2 - (a / b * r) ** 2) ** 0.5),
            Slip(
                "sigma_{t|s}^2 = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2: the ratio of the alphas is missing.",
                lambda n, a, s, b, r: n * abs(s**2 - r**2) ** 0.5 * r / s,
            ),
        ),
        "eta = 1 is the ancestral step, eta = 0 the flow.",
    ),
)

# ---- 7: likelihood ---------------------------------------------------------------------------------------------------

_POINTS = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
_MIXTURE = GaussianMixture([[-1.2], [0.4], [1.1]], [0.02, 0.05, 0.01], [0.3, 0.5, 0.2])
_MODEL = _MIXTURE.model(_VP)


def _field(t: float) -> tuple[Tensor, Tensor, Tensor]:
    f, g = _VP.drift(_POINTS, t), _VP.diffusion(torch.tensor(t, dtype=torch.float64))
    return f, g, _MODEL(_POINTS, t).score


def _velocity(f: Tensor, g: Tensor, score: Tensor) -> Tensor:
    """Return E8 by its form in x_0 and eps: dx/dt = alpha' x_0 + sigma' eps."""
    t = torch.tensor(next(t for t in (0.2, 0.5, 0.8) if torch.equal(_field(t)[0], f)), dtype=torch.float64)
    estimate = _MODEL(_POINTS, t.item())
    slopes = []
    for function in (_VP.alpha, _VP.sigma):
        time = t.clone().requires_grad_()
        slopes.append(torch.autograd.grad(function(time), time)[0])
    return slopes[0] * estimate.x0 + slopes[1] * estimate.eps


def _bits(log_p: Tensor, dims: int, num_values: int) -> Tensor:
    """Return bits/dim of 8-bit data from log p in model units."""
    volume = Scaling.for_integers(num_values).log_volume(dims)
    return -(log_p + volume) / (dims * math.log(2))


_LAB7 = (
    Task(
        7,
        "velocity",
        ("f", "g", "score"),
        [_field(t) for t in (0.2, 0.5, 0.8)],
        _velocity,
        (
            Slip(
                "That is the reverse SDE's drift. Without noise half of g^2 score is right.",
                lambda f, g, s: f - g**2 * s,
            ),
            Slip("The sign: the flow forwards moves against the score.", lambda f, g, s: f + g**2 * s / 2),
            Slip("g enters squared.", lambda f, g, s: f - g * s / 2),
        ),
        "E8: the same densities, without noise.",
    ),
    Task(
        7,
        "log_p0",
        ("log_p1", "divergence"),
        [(-3.0, 2.5), (1.0, -0.7)],
        lambda log_p1, divergence: log_p1 + divergence,
        (
            Slip(
                "Where the flow spreads (divergence > 0) the density falls on the way to t = 1: add the integral.",
                lambda log_p1, d: log_p1 - d,
            ),
            Slip("Densities multiply, their logarithms add.", lambda log_p1, d: log_p1 * d),
        ),
        "E9: one integral along the path.",
    ),
    Task(
        7,
        "bits_per_dim",
        ("log_p", "dims", "num_values"),
        [
            (torch.tensor([-50.0, 12.0], dtype=torch.float64), 64, 16),
            (torch.tensor([900.0], dtype=torch.float64), 784, 256),
        ],
        _bits,
        (
            Slip(
                "The map of the integers onto [-1, 1) is missing: each entry adds log(2/num_values).",
                lambda p, d, k: -p / (d * math.log(2)),
            ),
            Slip("Nats are not bits: divide by log 2.", lambda p, d, k: -(p + d * math.log(2 / k)) / d),
            Slip("Per dimension: divide by dims.", lambda p, d, k: -(p + d * math.log(2 / k)) / math.log(2)),
            Slip(
                "The volume has the other sign: a bin is 2/num_values wide.",
                lambda p, d, k: -(p - d * math.log(2 / k)) / (d * math.log(2)),
            ),
        ),
        "The unit that papers report.",
    ),
)

# ---- 8: low density and annealing ------------------------------------------------------------------------------------

_LAB8 = (
    Task(
        8,
        "langevin",
        ("x", "score", "a", "z"),
        [(_X, _Z, 0.01, draw(6, seed=3)), (_X, _Z, 0.3, draw(6, seed=4))],
        lambda x, score, a, z: x + a * score + math.sqrt(2 * a) * z,
        (
            Slip(
                "The noise is sqrt(2a): with sqrt(a) the samples are too narrow.",
                lambda x, s, a, z: x + a * s + a**0.5 * z,
            ),
            Slip("The noise is sqrt(2a), not 2a.", lambda x, s, a, z: x + a * s + 2 * a * z),
            Slip("The noise is missing: this climbs to a mode, and stays there.", lambda x, s, a, z: x + a * s),
            Slip("The sign: the score points uphill.", lambda x, s, a, z: x - a * s + (2 * a) ** 0.5 * z),
        ),
        "S5: a chain that leaves p as it is, in the limit of small a.",
    ),
    Task(
        8,
        "step_size",
        ("sigma_i", "sigma_min", "e"),
        [(1.0, 0.1, 2e-5), (0.1, 0.1, 2e-5), (10.0, 0.01, 1e-6)],
        lambda sigma_i, sigma_min, e: e * math.exp(2 * (math.log(sigma_i) - math.log(sigma_min))),
        (
            Slip("The ratio enters squared: steps go with the variance.", lambda i, m, e: e * i / m),
            Slip("The ratio is the other one: large noise takes large steps.", lambda i, m, e: e * m**2 / i**2),
            Slip("Relative to the least sigma: divide by its square.", lambda i, m, e: e * i**2),
        ),
        "N3: the same signal-to-noise at each level.",
    ),
)

# ---- 9: inpainting and Bayes -----------------------------------------------------------------------------------------

_MASK = torch.tensor([True, False, True, True, False, False])


def _pulled(x0: Tensor, y: float, noise: float, prior: float) -> Tensor:
    """Return the posterior's mean by the library's mixture."""
    found = [
        GaussianMixture(mean.reshape(1, 1), prior**2).posterior(torch.ones(1, 1), torch.tensor([y]), noise).means[0, 0]
        for mean in x0
    ]
    return torch.stack(found)


_LAB9 = (
    Task(
        9,
        "overwrite",
        ("x", "known", "mask", "alpha", "sigma", "eps"),
        [(_X, _Z, _MASK, 0.6, 0.8, draw(6, seed=3))],
        lambda x, known, mask, a, s, eps: mask * (a * known + s * eps) + ~mask * x,
        (
            Slip(
                "The known part is clean. At this level it carries noise: alpha known + sigma eps.",
                lambda x, k, m, a, s, e: torch.where(m, k, x),
            ),
            Slip("The noise is missing.", lambda x, k, m, a, s, e: torch.where(m, a * k, x)),
            Slip("alpha is missing.", lambda x, k, m, a, s, e: torch.where(m, k + s * e, x)),
            Slip(
                "The mask is the other way round: it is True where the data are known.",
                lambda x, k, m, a, s, e: torch.where(m, x, a * k + s * e),
            ),
        ),
        "N4: simple, and not the posterior (see the distances in this lab).",
    ),
    Task(
        9,
        "posterior_mean",
        ("mean", "y", "noise", "prior_std"),
        [(_X, 0.5, 0.3, 1.2)],
        _pulled,
        (
            Slip(
                "Standard deviations are not weights: take their squares, the variances.",
                lambda m, y, n, p: m + p / (p + n) * (y - m),
            ),
            Slip(
                "The weights have changed places: a precise observation pulls more.",
                lambda m, y, n, p: m + n**2 / (p**2 + n**2) * (y - m),
            ),
            Slip("The mean is not halfway: it goes by the variances.", lambda m, y, n, p: (m + y) / 2),
        ),
        "Bayes' rule for two Gaussians, of which every guided sampler is made.",
    ),
)

# ---- 10: one network, any process ------------------------------------------------------------------------------------


def _betas(abar: Tensor) -> Tensor:
    return DDPM.from_alphas_bar(abar).betas


def _at_ve(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return x and sigma under a VE process of the same log-SNR."""
    t = _VP.time_of(2 * math.log(alpha / sigma)).item()
    other = VESDE.linear(1e3)
    level = other.levels(other.time_of(_VP.log_snr(t)).reshape(1))[0]
    return torch.cat([x * (level.alpha / alpha), torch.tensor([level.sigma], dtype=torch.float64)])


_ABAR = _DDPM.alphas_bar[[4, 19, 34, 49]]
_LAB10 = (
    Task(
        10,
        "respaced_betas",
        ("abar",),
        [(_ABAR,)],
        _betas,
        (
            Slip(
                "The first beta is missing its own level: before it abar is 1.",
                lambda a: 1 - a / torch.cat([a[:1], a[:-1]]),
            ),
            Slip("beta is 1 minus the ratio of neighbours.", lambda a: a / torch.cat([a.new_ones(1), a[:-1]])),
            Slip("That divides the wrong way round.", lambda a: 1 - torch.cat([a.new_ones(1), a[:-1]]) / a),
        ),
        "P12: a shorter chain with the marginals of the long one.",
    ),
    Task(
        10,
        "to_ve",
        ("x", "alpha", "sigma"),
        [(_X, _VP.alpha(t).item(), _VP.sigma(t).item()) for t in (0.3, 0.7)],
        _at_ve,
        (
            Slip("Divide x by alpha: VE does not shrink.", lambda x, a, s: torch.cat([a * x, x.new_tensor([s / a])])),
            Slip(
                "sigma is divided by alpha too: only the ratio is the same.",
                lambda x, a, s: torch.cat([x / a, x.new_tensor([s])]),
            ),
            Slip("x is divided by alpha too.", lambda x, a, s: torch.cat([x, x.new_tensor([s / a])])),
        ),
        "At equal sigma/alpha all processes are one.",
    ),
    Task(
        10,
        "drift_and_noise",
        ("x", "t"),
        [(_X, 0.3), (_X, 0.6)],
        lambda x, t: torch.cat(
            [
                FlowSDE().drift(x[:, None], t)[:, 0],
                FlowSDE().diffusion(torch.tensor(t, dtype=torch.float64)).reshape(1) ** 2,
            ]
        ),
        (
            Slip(
                "f = alpha'/alpha x, with alpha = 1 - t: the sign of alpha' is negative.",
                lambda x, t: torch.cat([x / (1 - t), x.new_tensor([2 * t / (1 - t)])]),
            ),
            Slip(
                "g^2 = d sigma^2/dt - 2 (alpha'/alpha) sigma^2: the second term is missing.",
                lambda x, t: torch.cat([-x / (1 - t), x.new_tensor([2 * t])]),
            ),
            Slip(
                "f is the rate times x: divide alpha' by alpha.",
                lambda x, t: torch.cat([-x, x.new_tensor([2 * t / (1 - t)])]),
            ),
        ),
        "E1 for flow matching: a path is a process.",
    ),
)

SECOND = (*_LAB6, *_LAB7, *_LAB8, *_LAB9, *_LAB10)
