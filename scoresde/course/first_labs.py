"""Labs 1 to 5: forwards, backwards, training, the chain, the bound.

Symbols: a DDPM's beta, and abar for the products of 1 - beta up to a level; alpha, sigma of any process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.course.tasks import Slip, Task, draw
from scoresde.models import GaussianMixture, prediction_row, step_kl
from scoresde.sampling import EulerMaruyama
from scoresde.sde import DDPM, VPSDE

_VP = VPSDE()
_DDPM = DDPM.linear(50, 0.001, 0.2)
_MIXTURE = GaussianMixture([[-1.2], [0.4], [1.1]], [0.02, 0.05, 0.01], [0.3, 0.5, 0.2])
_MODEL = _MIXTURE.model(_VP)
_X, _Z = draw(6), draw(6, seed=1)


def _level(i: int) -> tuple[float, float, float]:
    """Return beta, abar, and abar of the level before, of level i."""
    before = 1.0 if i == 1 else _DDPM.alphas_bar[i - 2].item()
    return _DDPM.betas[i - 1].item(), _DDPM.alphas_bar[i - 1].item(), before


# ---- 1: one step, all steps ------------------------------------------------------------------------------------------


def _step(x: Tensor, beta: float, z: Tensor) -> Tensor:
    """Return P1 from the process itself: the transition over a level."""
    i = int((_DDPM.betas - beta).abs().argmin()) + 1
    scale, std = _DDPM.transition(_DDPM.time(i - 1), _DDPM.time(i))
    return scale * x + std * z


_LAB1 = (
    Task(
        1,
        "step",
        ("x", "beta", "z"),
        [(_X, _DDPM.betas[i].item(), _Z) for i in (0, 10, 49)],
        _step,
        (
            Slip(
                "The square roots have changed places: sqrt(beta) is the noise, sqrt(1 - beta) what is left of x.",
                lambda x, beta, z: beta**0.5 * x + (1 - beta) ** 0.5 * z,
            ),
            Slip(
                "beta is the variance of the noise, so its standard deviation has a square root.",
                lambda x, beta, z: (1 - beta) ** 0.5 * x + beta * z,
            ),
            Slip(
                "1 - beta/2 is only the first order of sqrt(1 - beta): the variance would not stay 1.",
                lambda x, beta, z: (1 - beta / 2) * x + beta**0.5 * z,
            ),
            Slip(
                "x keeps its square root too: the factor is sqrt(1 - beta).", lambda x, b, z: (1 - b) * x + b**0.5 * z
            ),
        ),
        "The variance of white data stays 1, whatever beta is.",
    ),
    Task(
        1,
        "jump",
        ("x0", "abar", "eps"),
        [(_X, _DDPM.alphas_bar[i].item(), _Z) for i in (0, 10, 49)],
        lambda x0, abar, eps: math.sqrt(abar) * x0 + math.sqrt(1 - abar) * eps,
        (
            Slip("abar is alpha squared: take its square root.", lambda x0, a, e: a * x0 + (1 - a) ** 0.5 * e),
            Slip("1 - abar is a variance: take its square root.", lambda x0, a, e: a**0.5 * x0 + (1 - a) * e),
            Slip(
                "The variances add up to 1, not the standard deviations: sqrt(1 - abar), not 1 - sqrt(abar).",
                lambda x0, a, e: a**0.5 * x0 + (1 - a**0.5) * e,
            ),
        ),
        "Fifty steps, or one jump: the same law (P2).",
    ),
)

# ---- 2: backwards ----------------------------------------------------------------------------------------------------

_POINTS = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def _at(t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, g and the score of the mixture at a time."""
    f, g = _VP.drift(_POINTS, t), _VP.diffusion(torch.tensor(t, dtype=torch.float64))
    return f, g, _MODEL(_POINTS, t).score


def _euler_drift(f: Tensor, g: Tensor, score: Tensor) -> Tensor:
    """Return E2's drift, read off a step of Euler and Maruyama."""
    t = next(t for t in (0.2, 0.5, 0.8) if torch.equal(_at(t)[0], f))
    c = EulerMaruyama().coefficients(_VP, t, t - 1e-3)
    eps = -_VP.sigma(t) * score
    return (_POINTS - (c.x * _POINTS + c.eps * eps)) / 1e-3


def _tweedie(x: Tensor, score: Tensor, scale: float, std: float) -> Tensor:
    """Return E[x_s | x_t] of P5, from the posterior's mean."""
    s, t = 0.3, 0.6
    return _VP.posterior(x, _MODEL(x, t).x0, s, t)[0]


_SCALE, _STD = (value.item() for value in _VP.transition(0.3, 0.6))
_LAB2 = (
    Task(
        2,
        "reverse_drift",
        ("f", "g", "score"),
        [_at(t) for t in (0.2, 0.5, 0.8)],
        _euler_drift,
        (
            Slip(
                "Half of g^2 is the flow's drift (E8). With noise it is the whole.",
                lambda f, g, score: f - g**2 * score / 2,
            ),
            Slip(
                "The sign: backwards in time the score pulls towards the data, f - g^2 score.",
                lambda f, g, score: f + g**2 * score,
            ),
            Slip("g is a standard deviation a square root of time: it enters squared.", lambda f, g, s: f - g * s),
            Slip("f is missing: time runs backwards, but the drift is still there.", lambda f, g, s: -(g**2) * s),
        ),
        "Its density solves the Fokker-Planck equation backwards.",
    ),
    Task(
        2,
        "one_step_mean",
        ("x_t", "score", "alpha_ts", "sigma_ts"),
        [(_POINTS, _MODEL(_POINTS, 0.6).score, _SCALE, _STD)],
        _tweedie,
        (
            Slip(
                "The variance of the step goes before the score, so sigma_ts is squared.",
                lambda x, s, a, d: (x + d * s) / a,
            ),
            Slip("The sign: the score points to where x came from.", lambda x, s, a, d: (x - d**2 * s) / a),
            Slip("The step shrank x by alpha_ts: divide by it.", lambda x, s, a, d: x + d**2 * s),
            Slip("Divide by alpha_ts, do not multiply.", lambda x, s, a, d: (x + d**2 * s) * a),
        ),
        "The exact mean of a step of any length, for any data: the mean of a DDPM.",
    ),
)

# ---- 3: train it yourself --------------------------------------------------------------------------------------------


def _net(x: Tensor, t: Tensor) -> Tensor:
    """Return a fixed function that stands for a network."""
    return torch.sin(3 * x) + t[:, None] * x


def _loss_inputs() -> list[tuple[object, ...]]:
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    x0, eps = draw(3, 2), draw(3, 2, seed=2)
    return [(_net, x0, t, eps, _VP.alpha(t)[:, None], _VP.sigma(t)[:, None])]


def _simple(net: object, x0: Tensor, t: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return L_simple by the score's loss and its weight sigma^2 (P6, E6)."""
    x = alpha * x0 + sigma * eps
    score = prediction_row("score", alpha, sigma)[1] * _net(x, t)
    return (sigma**2 * (score + eps / sigma) ** 2).mean()


_LAB3 = (
    Task(
        3,
        "loss",
        ("net", "x0", "t", "eps", "alpha", "sigma"),
        _loss_inputs(),
        _simple,
        (
            Slip(
                "x_t lacks alpha: the data shrink while noise comes in.",
                lambda net, x0, t, e, a, s: ((net(x0 + s * e, t) - e) ** 2).mean(),
            ),
            Slip(
                "sigma is the noise's standard deviation: it is not squared in x_t.",
                lambda net, x0, t, e, a, s: ((net(a * x0 + s**2 * e, t) - e) ** 2).mean(),
            ),
            Slip(
                "The network sees the clean x_0. It must see x_t.",
                lambda net, x0, t, e, a, s: ((net(x0, t) - e) ** 2).mean(),
            ),
            Slip(
                "The sign of eps: the network predicts the noise, not its negative.",
                lambda net, x0, t, e, a, s: ((net(a * x0 + s * e, t) + e) ** 2).mean(),
            ),
            Slip(
                "The target is the noise eps. x_0 is another prediction, with other weights.",
                lambda net, x0, t, e, a, s: ((net(a * x0 + s * e, t) - x0) ** 2).mean(),
            ),
        ),
        "This is L_simple, and score matching with the weight sigma^2.",
    ),
    Task(
        3,
        "score_of",
        ("eps", "sigma"),
        [(_X, 0.3), (_Z, 1.7)],
        lambda eps, sigma: prediction_row("score", 1.0, sigma)[1] * eps,
        (
            Slip("The score points against the noise: a minus.", lambda eps, sigma: eps / sigma),
            Slip("Divide by sigma once: -eps/sigma.", lambda eps, sigma: -eps / sigma**2),
            Slip("Divide by sigma, do not multiply.", lambda eps, sigma: -eps * sigma),
        ),
        "One network, two names: noise and score.",
    ),
)

# ---- 4: the ancestral step is a step of the reverse SDE --------------------------------------------------------------


def _ancestral(x: Tensor, eps: Tensor, beta: float, abar: float, before: float, z: Tensor) -> Tensor:
    """Return P9, from the posterior of the process."""
    i = int((_DDPM.betas - beta).abs().argmin()) + 1
    x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
    mean, std = _DDPM.posterior(x, x0, _DDPM.time(i - 1), _DDPM.time(i))
    return mean + std * z


def _std(beta: float, abar: float, before: float) -> float:
    return math.sqrt((1 - before) / (1 - abar) * beta)


_LAB4 = (
    Task(
        4,
        "ancestral",
        ("x", "eps", "beta", "abar", "abar_before", "z"),
        [(_X, _Z, *_level(i), draw(6, seed=3)) for i in (1, 10, 50)],
        _ancestral,
        (
            Slip(
                "The noise has the standard deviation sqrt(beta~): a square root is missing.",
                lambda x, e, b, a, p, z: (x - b / (1 - a) ** 0.5 * e) / (1 - b) ** 0.5 + (1 - p) / (1 - a) * b * z,
            ),
            Slip(
                "eps is divided by sqrt(1 - abar), the noise in x_t.",
                lambda x, e, b, a, p, z: (x - b * e) / (1 - b) ** 0.5 + _std(b, a, p) * z,
            ),
            Slip(
                "The noise is missing: every step draws some, the last one excepted.",
                lambda x, e, b, a, p, z: (x - b / (1 - a) ** 0.5 * e) / (1 - b) ** 0.5,
            ),
            Slip(
                "Divide by sqrt(1 - beta): the step forwards shrank x by it.",
                lambda x, e, b, a, p, z: x - b / (1 - a) ** 0.5 * e + _std(b, a, p) * z,
            ),
            Slip(
                "This is the larger variance, beta. The part asks for beta~.",
                lambda x, e, b, a, p, z: (x - b / (1 - a) ** 0.5 * e) / (1 - b) ** 0.5 + b**0.5 * z,
            ),
        ),
        "P9: the posterior of the chain, with the network's x_0.",
    ),
    Task(
        4,
        "euler",
        ("x", "score", "beta", "h", "z"),
        [(_X, _Z, 3.0, 0.01, draw(6, seed=3))],
        lambda x, score, beta, h, z: x - (-0.5 * beta * x - beta * score) * h + math.sqrt(beta * h) * z,
        (
            Slip(
                "The noise of a step of length h has the variance beta h: the root goes over both.",
                lambda x, s, b, h, z: x + (b / 2 * x + b * s) * h + b**0.5 * h * z,
            ),
            Slip(
                "Half of the score is the flow's.", lambda x, s, b, h, z: x + (x + s) * b / 2 * h + (b * h) ** 0.5 * z
            ),
            Slip(
                "Backwards the shrinking is undone: x grows by beta/2 x h.",
                lambda x, s, b, h, z: x + (-b / 2 * x + b * s) * h + (b * h) ** 0.5 * z,
            ),
        ),
        "Expand P9 in beta, and this is what is left.",
    ),
)

# ---- 5: the bound ----------------------------------------------------------------------------------------------------


def _gamma(beta: float, abar: float, before: float) -> Tensor:
    """Return P5's weight, from the divergence of two posteriors."""
    i = int((_DDPM.betas - beta).abs().argmin()) + 1
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    return step_kl(_DDPM, _DDPM.time(i - 1), _DDPM.time(i), one, none)


_LAB5 = (
    Task(
        5,
        "gamma",
        ("beta", "abar", "abar_before"),
        [_level(i) for i in (2, 10, 50)],
        _gamma,
        (
            Slip("The factor 1/2 of a Gaussian's exponent is missing.", lambda b, a, p: b / ((1 - b) * (1 - p))),
            Slip(
                "That is the weight with beta as the variance. The part asks for beta~.",
                lambda b, a, p: b / (2 * (1 - b) * (1 - a)),
            ),
            Slip("1/(1 - beta) is missing: the mean is divided by sqrt(1 - beta).", lambda b, a, p: b / (2 * (1 - p))),
        ),
        "L_simple drops this weight, and nothing else.",
    ),
    Task(
        5,
        "prior_kl",
        ("abar", "x0"),
        [(0.02, 0.7), (0.4, -1.3)],
        lambda abar, x0: float(
            torch.distributions.kl_divergence(
                torch.distributions.Normal(torch.tensor(abar, dtype=torch.float64).sqrt() * x0, math.sqrt(1 - abar)),
                torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0),
            )
        ),
        (
            Slip("The logarithm of the variance is missing.", lambda a, x0: (a * x0**2 + 1 - a - 1) / 2),
            Slip("The squared mean, abar x0^2, is missing.", lambda a, x0: (1 - a - 1 - math.log(1 - a)) / 2),
            Slip("The half is missing.", lambda a, x0: a * x0**2 - a - math.log(1 - a)),
            Slip(
                "The mean is sqrt(abar) x0, so its square is abar x0^2.",
                lambda a, x0: ((a * x0) ** 2 - a - math.log(1 - a)) / 2,
            ),
        ),
        "L_T: what the prior costs. It does not depend on the network.",
    ),
)

FIRST = (*_LAB1, *_LAB2, *_LAB3, *_LAB4, *_LAB5)
