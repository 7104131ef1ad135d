"""The one interface that samplers, likelihoods and training see."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import numbers
from scoresde.data import DataScale, Scaling
from scoresde.errors import ArgumentError, DTypeError
from scoresde.models.calibration import Calibration
from scoresde.models.conditions import Condition, check_condition
from scoresde.models.estimate import Estimate
from scoresde.models.moments import Moments
from scoresde.random import Generators
from scoresde.sde import SDE, Level
from scoresde.sde.grids import time_range
from scoresde.sde.times import is_concrete

REACHED = 1e-4, 1e-3  # relative and absolute distance of log-SNRs that count as equal, in float32


class Model(nn.Module):
    """A score model under an SDE.

    Subclasses give :meth:`estimate`; everything else follows from it.

    Attributes:
        sde: The forward process.
        moments: Mean and covariance of the data, which likelihoods match their prior to. None: unknown.
        data_scale: The lengths of the data, in the model's units. None: those that the moments tell, if any.
        scaling: The map from the data's units to the model's. None: unknown.
        calibration: What the default sampler measured on this model (:func:`scoresde.calibrate`). None: nothing.
        any_noise: Whether the estimate is valid at less noise than at the default t_min, where no network is trained.
        guidance: Scale w by which the estimate goes past that of the plain model, 1 for none. Samplers are more careful
            where it is large.
        self_condition: Whether the network also takes its estimate of x0 from the call before, as the condition "x0".
    """

    sde: SDE
    moments: Moments | None = None
    data_scale: DataScale | None = None
    calibration: Calibration | None = None
    any_noise: bool = True
    self_condition: bool = False
    guidance: float = 1.0
    scaling: Scaling | None = None

    @abstractmethod
    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        """Return the estimate at one noise level.

        Args:
            x: Noisy samples x_t, ``(B, *D)``.
            level: A level made by ``sde.level`` or ``sde.levels``.
            cond: Condition, tensors ``(B, ...)`` by name.
        """

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition = None) -> Estimate:
        """Return the estimate at a time.

        Args:
            x: Noisy samples x_t, ``(B, *D)``.
            t: Time in [0, 1]: a number, ``()`` or ``(B,)``.
            cond: Condition, tensors ``(B, ...)`` by name.

        Raises:
            DTypeError: ``x`` is not floating-point.
            ShapeError: ``t`` has another shape.
            ArgumentError: ``t`` is outside [0, 1]; ``cond`` is not a mapping from names to tensors, or has a label that
                is no class.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise DTypeError("x", getattr(x, "dtype", type(x).__name__), "a floating-point tensor (B, *D)")
        check_condition(cond, x.shape[0], self.classes)
        return self.estimate(x, self.sde.level(t, x), cond)

    if TYPE_CHECKING:  # nn.Module declares __call__ as returning Any

        def __call__(self, x: Tensor, t: float | Tensor, cond: Condition = None) -> Estimate: ...

    def knows_mean(self, cond: Condition = None) -> bool:
        """Return True if ``moments.mean`` is the mean of the data given ``cond``.

        With a condition, the moments give only the scale.
        """
        return self.moments is not None and cond is None

    def known_scale(self) -> DataScale | None:
        """Return ``data_scale``, or what the moments tell of it.

        None: nothing is known.
        """
        if self.data_scale is not None or self.moments is None:
            return self.data_scale
        return DataScale.of_moments(self.moments)

    def detail(self) -> float | None:
        """Return the finest length for which time may start earlier than usual.

        None: it is unknown, or the model is not valid there.
        """
        scale = self.known_scale()
        return None if scale is None or not self.any_noise else scale.finest

    @property
    def first_time(self) -> float | None:
        """The earliest time that the network knows. None: there is no limit."""
        return None

    def time_range(
        self, t_min: float | None = None, t_max: float | None = None, finest: float | None = None
    ) -> tuple[float, float]:
        """Return the ends of time for this model.

        The arguments and the errors are those of :func:`scoresde.sde.time_range`. The default t_min is not before
        ``first_time``.
        """
        if t_min is None and self.first_time is not None:
            t_min = max(self.first_time, time_range(self.sde, None, t_max, finest)[0])
        return time_range(self.sde, t_min, t_max, finest)

    @checked
    def to_model(self, raw: Tensor | ArrayLike, generator: Generators = None) -> Tensor:
        """Map items from the data's units to the model's.

        They get the model's dtype and device. Integers are dequantised: x = scale (raw + u) + shift with u ~ U[0, 1).
        A density changes by log p(raw) = log p(x) + ``scaling.log_volume(n)`` for n entries.

        Args:
            raw: Items ``(B, *D)`` as the data have them, a tensor or an array.
            generator: Source of u, one generator or a list of B. None: torch's default.

        Returns:
            x ``(B, *D)``. A model without a scaling takes the data's units as its own.

        Raises:
            DTypeError: Integers where the data are continuous, or floats where they are integers.
            DataError: Integers outside 0..num_values-1.
            ShapeError: Items of another shape than the data's, where each entry has its own scale.
        """
        scaling, raw = Scaling() if self.scaling is None else self.scaling, numbers("raw", raw)
        if scaling.num_values is not None:
            scaling.check_integers(raw)
        return scaling.to_model(raw, generator, self.dtype).to(self.device)

    @checked
    def to_data(self, x: Tensor) -> Tensor:
        """Map samples from the model's units to the data's.

        Args:
            x: Samples ``(B, *D)``.

        Raises:
            ShapeError: As in :meth:`to_model`.

        Returns:
            Items ``(B, *D)``, in the dtype of the data. Integers are int64 and within 0..num_values-1.
        """
        return x if self.scaling is None else self.scaling.to_raw(x)

    def with_sde(self, sde: SDE) -> Model:
        """Return this model under another SDE, by matching log-SNR.

        For a respaced DDPM this is P12.
        """
        return Rescheduled(self, sde)

    @property
    def classes(self) -> int | None:
        """The number of classes that the network knows. None: none, or unknown."""
        return None

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters or buffers; the CPU if it has none."""
        first: Tensor | None = next(self.parameters(), None)
        if first is None:
            first = next(self.buffers(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the model's parameters or buffers.

        It is torch's default if there are none.
        """
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()


def check_model(model: object, name: str = "model") -> None:
    """Refuse what is no model.

    Raises:
        DTypeError: a network without its SDE, or anything else.
    """
    if not isinstance(model, Model):
        expected = "a scoresde.Model; ScoreModel(net, sde) makes one of a network"
        raise DTypeError(name, type(model).__name__, expected)


class Wrapper(Model):
    """A model around another one.

    It has the SDE, moments, scales, classes, device and dtype of the wrapped model. Subclasses give :meth:`estimate`.

    Args:
        model: The wrapped model.

    Attributes:
        same_flow: Whether the estimate is that of the wrapped model, whose calibration then holds.
    """

    same_flow: ClassVar[bool] = False

    def __init__(self, model: Model):
        super().__init__()
        check_model(model)
        self.model, self.sde = model, model.sde
        self.moments, self.data_scale, self.scaling = model.moments, model.known_scale(), model.scaling
        self.any_noise, self.self_condition = model.any_noise, model.self_condition
        self.guidance, self.calibration = model.guidance, model.calibration if self.same_flow else None

    def knows_mean(self, cond: Condition = None) -> bool:
        return self.moments is not None and self.model.knows_mean(cond)

    @property
    def first_time(self) -> float | None:
        return self.model.first_time

    @property
    def classes(self) -> int | None:
        return self.model.classes

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype


class Rescheduled(Wrapper):
    """A model of one process, used under another with the same log-SNRs.

        x0'(x', t') = x0(x' alpha/alpha', t),    log_snr(t) = log_snr'(t')

    At equal log-SNR, x'/alpha' and x/alpha have the same law, so x0 and eps are the same numbers. Respacing a DDPM
    (P12) is the case alpha' = alpha.

    Args:
        model: The model.
        sde: The other process.

    Raises:
        ArgumentError: When called at a time whose log-SNR the model's process does not reach. Times on an accelerator
            are not checked, as that would wait for it.

    References: Song et al. (2021, appendix); Karras et al. (2022).
    """

    same_flow = True

    def __init__(self, model: Model, sde: SDE):
        super().__init__(model)
        self.sde = sde

    @property
    def first_time(self) -> float | None:
        first = self.model.first_time
        return None if first is None else self.sde.time_of(self.model.sde.log_snr(first)).item()

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        inner = self.model.sde
        if isinstance(level.log_snr, Tensor):
            own = inner.level_at(inner.time_of(level.log_snr), x)
            if is_concrete(level.log_snr):
                found = torch.as_tensor(own.log_snr)
                wrong = ~torch.isclose(found, level.log_snr, rtol=REACHED[0], atol=REACHED[1]).reshape(-1)
                if wrong.any():
                    worst = int(wrong.nonzero()[0])
                    self._refuse(*(torch.as_tensor(v).reshape(-1)[worst].item() for v in (level.t, level.log_snr)))
        else:
            own = inner.level(inner.time_of(level.log_snr), x)
            if not math.isclose(float(own.log_snr), level.log_snr, rel_tol=1e-6, abs_tol=1e-6):
                self._refuse(float(level.t), level.log_snr)
        estimate = self.model.estimate(x * (own.alpha / level.alpha), own, cond)
        return estimate._replace(level=level)

    def _refuse(self, t: float, log_snr: float) -> None:
        """Raise the error of a time that the model's process does not reach."""
        inner = self.model.sde
        low, high = inner.log_snr(1.0).item(), inner.log_snr(0.0).item()
        raise ArgumentError(
            "t",
            f"{t:.6g}, where log-SNR is {log_snr:.6g}",
            f"a time with log-SNR in [{low:.6g}, {high:.6g}], the range of the model's own {inner!r}",
        )
