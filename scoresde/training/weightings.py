"""How the noise levels are weighed against one another in a score-matching loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Model
from scoresde.models.kernels import ddim_weight
from scoresde.sde import SDE
from scoresde.sde.tables import Table
from scoresde.training.time_sampling import (
    LevelGrid,
    Levels,
    LogNormal,
    TimeSampling,
    UniformLogSNR,
    UniformTime,
    snr_rate,
)


class Weighting(ABC):
    """w(t) = lambda(t) / sigma(t)^2, the weight of |eps - eps_theta|^2, where lambda(t) is that of |s - s_theta|^2.

    An objective's mean is that of w(t) |eps - eps_theta|^2 over t ~ U(t_min, t_max), or over discrete levels.
    """

    @abstractmethod
    def __call__(self, model: Model, t: Tensor) -> Tensor:
        """w ``(B,)`` at t ``(B,)``; what is known of the process and the data is the model's."""

    def time_sampling(self) -> TimeSampling:
        """The sampling of t that suits it best."""
        return UniformTime()

    def __repr__(self):
        return f"{type(self).__name__}()"


class Simple(Weighting):
    """w = 1, lambda = sigma^2: L_simple of DDPM (P6) and, in other symbols, the weighting of NCSN (N2)."""

    def __call__(self, model, t):
        return torch.ones_like(t)


class Likelihood(Weighting):
    """w = g^2/sigma^2, lambda = g^2 (E6).

    Half the loss bounds the negative log-likelihood up to a constant (Song et al. 2021b, E12).
    """

    def __call__(self, model, t):
        return snr_rate(model.sde, t)

    def time_sampling(self):
        return UniformLogSNR()


class Sigmoid(Weighting):
    r"""w = (g^2/sigma^2) (1 + gain / (1 + snr e^-bias)): likelihood's, and more where there is much noise.

    On log-SNR it is the constant weight of the likelihood plus ``gain`` times a sigmoid that falls from 1 to 0 about
    log-SNR = ``bias``: finer detail is learnt for the likelihood, coarser shape so many times more for the samples. The
    weight never rises with the SNR, so half the loss still bounds a likelihood up to a constant: a mean of those of the
    data and of data with noise.

    Source: Kingma & Gao (2023, theorem 1; the sigmoid is theirs and Hoogeboom et al.'s, 2024), here with a floor.

    Args:
        gain: how much more low log-SNRs weigh, 0 or more; 0 is :class:`Likelihood`.
        bias: the log-SNR about which the weight falls.
    """

    def __init__(self, gain: float = 20.0, bias: float = 2.0):
        if not 0 <= gain < math.inf:
            raise ArgumentError("gain", gain, "a number, 0 or more")
        if not math.isfinite(bias):
            raise ArgumentError("bias", bias, "a finite log-SNR")
        self.gain, self.bias = float(gain), float(bias)

    def __call__(self, model, t):
        return snr_rate(model.sde, t) * (1 + self.gain * torch.sigmoid(self.bias - model.sde.log_snr(t)))

    def time_sampling(self):
        return UniformLogSNR()

    def __repr__(self):
        return f"Sigmoid(gain={self.gain:g}, bias={self.bias:g})"


class MinSNR(Weighting):
    """w = min(1, gamma/snr), that is min(snr, gamma) on the error of x_0 (Hang et al. 2023; gamma = 5 there)."""

    def __init__(self, gamma: float = 5.0):
        if not gamma > 0:
            raise ArgumentError("gamma", gamma, "a positive number")
        self.gamma = float(gamma)

    def __call__(self, model, t):
        return (self.gamma * torch.exp(-model.sde.log_snr(t))).clamp(max=1)

    def __repr__(self):
        return f"MinSNR({self.gamma:g})"


class EDM(Weighting):
    """EDM's loss: (r^2 + s_d^2)/(r s_d)^2 on the error of x_0, r = sigma/alpha, log r ~ N(P_mean, P_std^2).

    On the error of eps it is w = (r^2 + s_d^2)/s_d^2 times the density of t under that law; with its own time sampling,
    :class:`~scoresde.training.time_sampling.LogNormal`, the density cancels (up to the mass beyond t_min and t_max) and each
    draw counts as in the paper: every level starts with the same loss. Source: Karras et al. (2022, table 1).

    Args:
        P_mean, P_std: of log r.
        data_std: s_d; None takes the model's ``data_std`` (1, if it has none).
    """

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, data_std: float | None = None):
        if data_std is not None and not data_std > 0:
            raise ArgumentError("data_std", data_std, "a positive number, or None")
        self.law, self.data_std = LogNormal(P_mean, P_std), data_std

    def __call__(self, model, t):
        data_std = getattr(model, "data_std", 1.0) if self.data_std is None else self.data_std
        ratio = torch.exp(-model.sde.log_snr(t)) / data_std**2
        return (1 + ratio) * self.law.density(model.sde, t)

    def time_sampling(self):
        return self.law

    def __repr__(self):
        return f"EDM(P_mean={self.law.P_mean:g}, P_std={self.law.P_std:g}, data_std={self.data_std})"


class DDIMVariational(Weighting):
    r"""w = N gamma_i at level i of N: the loss is the variational objective J of DDIM's q_eta, up to a constant (D4).

    gamma_i |eps - eps_theta|^2 = KL(q_eta(x_{i-1} | x_i, x_0) || q_eta(x_{i-1} | x_i, f_theta)), the closed form of
    :func:`~scoresde.likelihood.bounds.ddim_weight`; at eta = 1 it is P5 with s_i^2 = beta~_i. The last step, to the
    data, is p_theta(x_0 | x_1) = N(f_theta, eta^2 sigma_1^2 I). Being positive, gamma_i does not move the minimum of
    its term: a network trained with one eta, or on L_simple, serves them all. Source: Song, Meng & Ermon (2021,
    theorem 1).

    Args:
        eta: of the family, in (0, 1] (at eta = 0 every gamma_i is infinite).
        count: the number of levels, for a process that has none of its own.
    """

    def __init__(self, eta: float = 1.0, count: int | None = None):
        if not 0 < eta <= 1:
            raise ArgumentError("eta", eta, "a number in (0, 1]")
        self.eta, self.levels = float(eta), Levels(count)
        self._table: tuple[SDE, LevelGrid, Table] | None = None

    def gamma(self, sde: SDE) -> Tensor:
        """gamma_1 .. gamma_N, float64 on the CPU."""
        grid = self.levels.grid(sde)
        t = grid.time(torch.arange(1, grid.count + 1), torch.float64)
        first = 1 / (2 * self.eta**2 * sde.alpha(t[:1]) ** 2)
        return torch.cat([first, ddim_weight(sde, t[:-1], t[1:], self.eta)])

    def __call__(self, model, t):
        grid = self.levels.grid(model.sde)
        if self._table is None or self._table[0] is not model.sde or self._table[1] != grid:
            self._table = model.sde, grid, Table(grid.count * self.gamma(model.sde))
        return self._table[2].like(t)[grid.index(t) - 1]

    def time_sampling(self):
        return self.levels

    def __repr__(self):
        return f"DDIMVariational(eta={self.eta:g}, count={self.levels.count})"


class _Given(Weighting):
    def __init__(self, function: Callable[[Model, Tensor], Tensor]):
        self.function = function

    def __call__(self, model, t):
        return self.function(model, t)

    def __repr__(self):
        return repr(self.function)


WEIGHTINGS: dict[str, type[Weighting]] = {
    "simple": Simple,
    "likelihood": Likelihood,
    "sigmoid": Sigmoid,
    "min-snr": MinSNR,
    "edm": EDM,
    "theorem-1": DDIMVariational,
}


def resolve_weighting(weighting: str | Weighting | Callable[[Model, Tensor], Tensor]) -> Weighting:
    """The weighting of that name, the object itself, or a function ``(model, t) -> (B,)`` as one.

    Raises:
        UnknownNameError: no weighting has that name.
    """
    if isinstance(weighting, Weighting):
        return weighting
    if callable(weighting):
        return _Given(weighting)
    if weighting not in WEIGHTINGS:
        raise UnknownNameError("weighting", weighting, WEIGHTINGS)
    return WEIGHTINGS[weighting]()
