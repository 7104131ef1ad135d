"""The families of processes, each a relation between alpha and sigma.

A noise schedule drives each. Notation: beta(t) is the rate and B(t) its integral, see
:mod:`scoresde.sde.schedules`; snr = (alpha/sigma)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import DataError, DTypeError
from scoresde.sde.base import SDE
from scoresde.sde.schedules import (
    AnyRate,
    CosineRate,
    GeometricNoise,
    LinearNoise,
    LinearRate,
    NoiseSchedule,
    RateSchedule,
)
from scoresde.sde.tensors import log1mexp

FINER, WIDER = 10.0, 20.0  # shares of the finest and the largest length
COMPARED = 1024  # items whose distances are compared

_Schedule = TypeVar("_Schedule", RateSchedule, NoiseSchedule)


class Lengths(Protocol):
    """Lengths of data, such as :class:`scoresde.data.DataScale`."""

    @property
    def finest(self) -> float | None:
        """The finest one, or None."""

    @property
    def largest(self) -> float:
        """The largest one."""


class Measured(Protocol):
    """Data that know their lengths, such as :class:`scoresde.Data`."""

    @property
    def data_scale(self) -> Lengths | None:
        """The lengths, or None for items that are all the same."""

    @property
    def bin_width(self) -> float:
        """The width of the bins of integers, or 0."""

    def few(self, most: int) -> Tensor:
        """Return some items in model space."""


def _short(value: object) -> str:
    """Return the repr of a setting, without the ".0" of a whole float."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else repr(value)


@dataclass(frozen=True, init=False, repr=False)
class _Scheduled(SDE, Generic[_Schedule]):
    """A process that a schedule determines: equal if the schedules are."""

    schedule: _Schedule

    #: schedules that a constructor of the class makes, and its name; "" is the class itself
    constructors: ClassVar[dict[type, str]] = {}

    def __init__(self, schedule: _Schedule):
        object.__setattr__(self, "schedule", schedule)

    @property
    def config(self) -> dict[str, Any]:
        constructor = self.constructors.get(type(self.schedule))
        if constructor is None:
            return super().config
        name = f"{self.name}-{constructor}" if constructor else self.name
        return {"name": name, **_settings(self.schedule)}

    def __repr__(self) -> str:
        name = type(self).__name__
        constructor = self.constructors.get(type(self.schedule))
        if constructor is None:
            return f"{name}(schedule={self.schedule!r})"
        settings = ", ".join(f"{key}={_short(value)}" for key, value in _settings(self.schedule).items())
        return f"{name}.{constructor}({settings})" if constructor else f"{name}({settings})"


def _settings(schedule: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(schedule).items() if schedule.__dataclass_fields__[key].init}


class _RateSDE(_Scheduled[RateSchedule]):
    """What VP and sub-VP share: alpha = exp(-B/2) and f(x, t) = -beta x / 2."""

    constructors: ClassVar = {LinearRate: "", CosineRate: "cosine"}

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, *, schedule: RateSchedule | None = None):
        super().__init__(LinearRate(beta_min, beta_max) if schedule is None else schedule)

    @classmethod
    def cosine(cls, s: float = 0.008) -> Self:
        """Make the process with the cosine schedule (P10).

        alpha(1) = 0 and beta(1) = inf; see :class:`~scoresde.sde.schedules.CosineRate`.

        References: Nichol & Dhariwal 2021, eq. 17.
        """
        return cls(schedule=CosineRate(s))

    @classmethod
    def from_beta(cls, beta: Callable[[Tensor], Tensor]) -> Self:
        """Make the process with any positive, smooth rate beta(t).

        ``beta`` is a function of a tensor of times; see :class:`~scoresde.sde.schedules.AnyRate`.
        """
        return cls(schedule=AnyRate(beta))

    def beta(self, t: Tensor) -> Tensor:
        """Return the rate beta(t)."""
        return self.schedule.rate(t)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.schedule.integral(t)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.schedule.rate(t)

    @property
    def prior_std(self) -> float:
        return 1.0


@checked
class VPSDE(_RateSDE):
    r"""Variance preserving (E4): sigma^2 = 1 - alpha^2.

        dx = -beta x/2 dt + sqrt(beta) dW,  alpha = exp(-B/2)

    It is the limit of DDPM (P1), and DDPM itself when beta is piecewise constant (:class:`scoresde.DDPM`). With data
    of unit variance every marginal has unit variance. The prior is N(0, I).

    Args:
        beta_min: Rate at the data, positive, default 0.1. The rate is linear in t.
        beta_max: Rate at t = 1, at least ``beta_min``, default 20.
        schedule: Another :class:`~scoresde.sde.schedules.RateSchedule`. None: the linear one.

    Raises:
        ArgumentError: Rates that are not positive or decrease.

    References: Song et al. 2021, eq. 32.
    """

    _equation = r"dx = -\tfrac12\beta(t)\,x\,dt + \sqrt{\beta(t)}\,dW"

    name = "vp"

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * log1mexp(self.schedule.integral(t))

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        b = self.schedule.integral(t)
        return torch.where(b == math.inf, 0.0, 0.5 * self.schedule.rate(t) / torch.expm1(b))

    def squared_diffusion(self, t: Tensor) -> Tensor:
        return self.schedule.rate(t)

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return self.schedule.inverse(torch.logaddexp(-log_snr, torch.zeros_like(log_snr)))


@checked
class SubVPSDE(_RateSDE):
    r"""Sub-VP (E5): sigma = 1 - alpha^2, never above VP's.

        dx = -beta x/2 dt + sqrt(beta (1 - exp(-2B))) dW,  alpha = exp(-B/2)

    The arguments, the prior and the errors are those of :class:`VPSDE`.

    References: Song et al. 2021, eq. 29.
    """

    _equation = r"dx = -\tfrac12\beta(t)\,x\,dt + \sqrt{\beta(t)\,(1 - \alpha(t)^4)}\,dW"

    name = "subvp"

    def log_sigma(self, t: Tensor) -> Tensor:
        return log1mexp(self.schedule.integral(t))

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        b = self.schedule.integral(t)
        return torch.where(b == math.inf, 0.0, self.schedule.rate(t) / torch.expm1(b))

    def squared_diffusion(self, t: Tensor) -> Tensor:
        return -self.schedule.rate(t) * torch.expm1(-2 * self.schedule.integral(t))

    def _time_of(self, log_snr: Tensor) -> Tensor:
        log_sigma = math.log(2) - torch.nn.functional.softplus(
            0.5 * torch.logaddexp(torch.zeros_like(log_snr), log_snr + math.log(4)), threshold=700
        )  # sigma = 2 / (1 + sqrt(1 + 4 snr)), the positive root of snr sigma^2 + sigma - 1 = 0
        small = log_sigma < -math.log(2)
        b = torch.where(small, -torch.log1p(-log_sigma.exp()), -2 * log_sigma - log_snr)
        return self.schedule.inverse(b)


@checked
class VESDE(_Scheduled[NoiseSchedule]):
    r"""Variance exploding (E3): alpha = 1.

        dx = sqrt(d sigma^2/dt) dW

    It is the limit of NCSN, and NCSN itself when sigma^2 interpolates its levels (:class:`scoresde.NCSN`). The prior
    is N(0, sigma_max^2 I).

    Args:
        sigma_min: sigma(0), positive, in units of the data, default 0.01. Choose it well below the data's finest
            detail. sigma is geometric in t.
        sigma_max: sigma(1), above ``sigma_min``, default 50.
        schedule: Another :class:`~scoresde.sde.schedules.NoiseSchedule`. None: the geometric one.

    Raises:
        ArgumentError: Values of sigma that are not positive or do not increase.

    References: Song et al. 2021, eq. 30.
    """

    _equation = r"dx = \sqrt{d\sigma(t)^2/dt}\,dW"

    name = "ve"
    constructors: ClassVar = {GeometricNoise: "", LinearNoise: "linear"}

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, schedule: NoiseSchedule | None = None):
        super().__init__(GeometricNoise(sigma_min, sigma_max) if schedule is None else schedule)

    @classmethod
    def linear(cls, sigma_max: float = 80.0) -> Self:
        """Make EDM's process, sigma(t) = sigma_max t.

        References: Karras et al. 2022, where sigma itself is the time.
        """
        return cls(schedule=LinearNoise(sigma_max))

    @classmethod
    @checked
    def for_data(cls, data: Measured, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Self:
        """Make the geometric process whose noise suits these data.

            sigma_min = finest/10,    sigma_max = max(largest distance, 20 largest length)

        Finest and largest are the lengths of :class:`scoresde.data.DataScale`; for integers, finest is at most the std
        of a bin. The first noise costs about (sigma_min/finest)^4/4 nats a dimension. The last one hides all but the
        moments of the data. The distance is that of any two of 1024 items.

        Args:
            data: A :class:`scoresde.Data`, or one mapped from the disk.
            sigma_min, sigma_max: Values to take instead. None: as above.

        Raises:
            DTypeError: A tensor or an array.
            DataError: Data that do not tell their finest length, where it is needed: fewer than 64 different items.

        References: Song & Ermon 2020, technique 1 (the largest distance).
        """
        if not hasattr(data, "data_scale") or not hasattr(data, "bin_width"):
            raise DTypeError("data", type(data).__name__, "a scoresde.Data, which knows its lengths")
        scale = data.data_scale
        if sigma_min is None:
            if scale is None or scale.finest is None:
                raise DataError("data", "fewer than 64 different items", "more of them, or sigma_min as a number")
            bin_std = data.bin_width / math.sqrt(12)
            sigma_min = min(scale.finest, bin_std or math.inf) / FINER
        if sigma_max is None:
            if scale is None:
                raise DataError("data", "items that are all the same", "items that vary, or sigma_max as a number")
            sigma_max = max(torch.pdist(data.few(COMPARED).flatten(1)).max().item(), WIDER * scale.largest)
        return cls(sigma_min, sigma_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return self.schedule.log_sigma(t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        return self.schedule.log_sigma_rate(t)

    def squared_diffusion(self, t: Tensor) -> Tensor:
        return self.schedule.variance_rate(t)

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return self.schedule.inverse(-0.5 * log_snr)


@checked
@dataclass(frozen=True)
class FlowSDE(SDE):
    r"""The path of flow matching as an SDE: alpha = 1 - t, sigma = t.

        dx = -x/(1-t) dt + sqrt(2t/(1-t)) dW

    Rectified flows and models trained by flow matching are its probability flow: their regression target
    dx/dt = eps - x_0 is the prediction ``"flow"``. The prior is N(0, I). At t = 1, where alpha = 0, f and g are
    infinite.

    References: Lipman et al. 2023; Liu et al. 2023, with the data at t = 0.
    """

    _equation = r"dx = -\frac{x}{1-t}\,dt + \sqrt{\frac{2t}{1-t}}\,dW"

    name = "flow"

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def log_sigma_rate(self, t: Tensor) -> Tensor:
        return 1 / t

    def squared_diffusion(self, t: Tensor) -> Tensor:
        return 2 * t / (1 - t)

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "flow"}
