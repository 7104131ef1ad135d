"""Weights of the noise levels in a score-matching loss.

Symbols: lambda(t) weights |s - s_theta|^2 and w = lambda/sigma^2 weights |eps - eps_theta|^2, as s = -eps/sigma.
snr = alpha^2/sigma^2, g^2 the squared diffusion coefficient, s_d the standard deviation of the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import number, positive
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Model
from scoresde.models.kernels import ddim_weight
from scoresde.sde import SDE
from scoresde.sde.tables import Table
from scoresde.training.config import WeightingName
from scoresde.training.discrete_times import Levels
from scoresde.training.time_sampling import LogNormal, TimeSampling, UniformLogSNR, UniformTime, snr_rate

#: a weighting as a function of a model and t ``(B,)``
WeightFunction = Callable[[Model, Tensor], Tensor]


@dataclass(frozen=True)
class Weighting(ABC):
    """w(t) = lambda(t) / sigma(t)^2, the weight of |eps - eps_theta|^2.

    An objective's mean is that of w(t) |eps - eps_theta|^2 over t ~ U(t_min, t_max), or over discrete levels.
    """

    @abstractmethod
    def __call__(self, model: Model, t: Tensor) -> Tensor:
        """Return w ``(B,)`` at t ``(B,)``, for the model's process and data."""

    def time_sampling(self) -> TimeSampling:
        """Return the sampling of t that suits it best."""
        return UniformTime()


@dataclass(frozen=True)
class Simple(Weighting):
    """w = 1, lambda = sigma^2: L_simple of DDPM (P6), weights of NCSN (N2)."""

    def __call__(self, model: Model, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@checked
@dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    """w = g^2/sigma^2, lambda = g^2 (E6).

    Half the loss bounds the negative log-likelihood up to a constant (Song et al. 2021b, E12).
    """

    def __call__(self, model: Model, t: Tensor) -> Tensor:
        return snr_rate(model.sde, t)

    def time_sampling(self) -> TimeSampling:
        return UniformLogSNR()


@checked
@dataclass(frozen=True)
class Sigmoid(Weighting):
    r"""w = (g^2/sigma^2) (1 + gain / (1 + snr e^-bias)), more at high noise.

    In log-SNR this is the constant weight of the likelihood plus ``gain`` times a sigmoid that falls from 1 to 0 around
    log-SNR = ``bias``. High log-SNR keeps the likelihood weight. Low log-SNR has (1 + gain) times that weight, which
    improves samples. The weight never rises with the SNR. Half the loss therefore bounds a negative log-likelihood up
    to a constant: a mean over the data and the data with noise.

    Args:
        gain: Additional weight of low log-SNR, 0 or more, default 20; 0 is :class:`LikelihoodWeighting`.
        bias: log-SNR around which the weight falls, default 2.

    References: Kingma & Gao 2023, theorem 1; Hoogeboom et al. 2024. Their sigmoid has no floor.
    """

    gain: float = 20.0
    bias: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", number("bias", self.bias))
        if number("gain", self.gain) < 0:
            raise ArgumentError("gain", self.gain, "a number >= 0")
        object.__setattr__(self, "gain", float(self.gain))

    def __call__(self, model: Model, t: Tensor) -> Tensor:
        return snr_rate(model.sde, t) * (1 + self.gain * torch.sigmoid(self.bias - model.sde.log_snr(t)))

    def time_sampling(self) -> TimeSampling:
        return UniformLogSNR()


@checked
@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(1, gamma/snr), that is min(snr, gamma) on the error of x_0.

    Args:
        gamma: Largest weight on the error of x_0, positive, default 5.

    References: Hang et al. 2023.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))

    def __call__(self, model: Model, t: Tensor) -> Tensor:
        return (self.gamma * torch.exp(-model.sde.log_snr(t))).clamp(max=1)


@checked
@dataclass(frozen=True)
class EDM(Weighting):
    """EDM's loss, (r^2 + s_d^2)/(r s_d)^2 on the error of x_0.

    Here r = sigma/alpha and log r ~ N(P_mean, P_std^2). On the error of eps it is w = (r^2 + s_d^2)/s_d^2 times the
    density of t under that law. With its own time sampling, :class:`~scoresde.training.time_sampling.LogNormal`, the
    density cancels, up to the mass outside [t_min, t_max]. Each draw then counts as in the paper, and every level
    starts with the same loss.

    Args:
        P_mean: Mean of log r, default -1.2.
        P_std: Standard deviation of log r, positive, default 1.2.
        data_std: s_d, positive. None: the model's ``data_std``, or 1 if it has none.

    References: Karras et al. 2022, table 1.
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    data_std: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "P_mean", number("P_mean", self.P_mean))
        object.__setattr__(self, "P_std", positive("P_std", self.P_std))
        if self.data_std is not None:
            object.__setattr__(self, "data_std", positive("data_std", self.data_std))

    @property
    def law(self) -> LogNormal:
        """The law of log r as a time sampling."""
        return LogNormal(self.P_mean, self.P_std)

    def __call__(self, model: Model, t: Tensor) -> Tensor:
        data_std = getattr(model, "data_std", 1.0) if self.data_std is None else self.data_std
        ratio = torch.exp(-model.sde.log_snr(t)) / data_std**2
        return (1 + ratio) * self.law.density(model.sde, t)

    def time_sampling(self) -> TimeSampling:
        return self.law


@checked
@dataclass(frozen=True)
class DDIMVariational(Weighting):
    r"""w = N gamma_i at level i of N, DDIM's variational objective (D4).

    The loss is the objective J of the family q_eta, up to a constant:
    gamma_i |eps - eps_theta|^2 = KL(q_eta(x_{i-1} | x_i, x_0) || q_eta(x_{i-1} | x_i, f_theta)), in the closed form of
    :func:`~scoresde.models.kernels.ddim_weight`. At eta = 1 it is P5 with s_i^2 = beta~_i. The last step, to the data,
    is p_theta(x_0 | x_1) = N(f_theta, eta^2 sigma_1^2 I). Positive gamma_i do not move the minimum of their terms.
    A network trained with one eta, or on L_simple, therefore serves all of them.

    Args:
        eta: Member of the family, in (0, 1], default 1. At eta = 0 every gamma_i is infinite.
        count: Number of levels, see :class:`~scoresde.training.discrete_times.Levels`.

    References: Song, Meng & Ermon 2021, theorem 1.
    """

    eta: float = 1.0
    count: int | None = None

    def __post_init__(self) -> None:
        if not 0 < number("eta", self.eta) <= 1:
            raise ArgumentError("eta", self.eta, "a number in (0, 1]")
        object.__setattr__(self, "eta", float(self.eta))
        object.__setattr__(self, "count", self.levels.count)

    @property
    def levels(self) -> Levels:
        """The levels that it is defined on."""
        return Levels(self.count)

    def gamma(self, sde: SDE) -> Tensor:
        """Return gamma_1 .. gamma_N, float64 on the CPU."""
        grid = self.levels.grid(sde)
        t = grid.time(torch.arange(1, grid.count + 1), torch.float64)
        first = 1 / (2 * self.eta**2 * sde.alpha(t[:1]) ** 2)
        return torch.cat([first, ddim_weight(sde, t[:-1], t[1:], self.eta)])

    def __call__(self, model: Model, t: Tensor) -> Tensor:
        return _ddim_table(self, model.sde).like(t)[self.levels.grid(model.sde).index_of(t) - 1]

    def time_sampling(self) -> TimeSampling:
        return self.levels


@lru_cache(maxsize=8)
def _ddim_table(weighting: DDIMVariational, sde: SDE) -> Table:
    """Return N gamma_i for every level."""
    gamma = weighting.gamma(sde)
    return Table(len(gamma) * gamma)


@dataclass(frozen=True)
class FunctionWeighting(Weighting):
    """A function ``(model, t) -> w (B,)`` as a weighting."""

    function: WeightFunction

    def __call__(self, model: Model, t: Tensor) -> Tensor:
        return self.function(model, t)


WEIGHTINGS: dict[WeightingName, type[Weighting]] = {
    "simple": Simple,
    "likelihood": LikelihoodWeighting,
    "sigmoid": Sigmoid,
    "min-snr": MinSNR,
    "edm": EDM,
    "theorem-1": DDIMVariational,
}


def resolve_weighting(weighting: str | Weighting | WeightFunction) -> Weighting:
    """Return a weighting: of that name, itself, or a function as one.

    Raises:
        UnknownNameError: an unknown name.
    """
    if isinstance(weighting, Weighting):
        return weighting
    if callable(weighting):
        return FunctionWeighting(weighting)
    if not isinstance(weighting, str) or weighting not in WEIGHTINGS:
        raise UnknownNameError("weighting", weighting, WEIGHTINGS)
    return WEIGHTINGS[weighting]()
