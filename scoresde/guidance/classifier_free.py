r"""Classifier-free guidance (Ho & Salimans 2022).

Assumption: one network was trained with and without labels. By Bayes its two estimates then give the gradient of the
classifier that it implies, sigma grad log p_t(y | x_t) = eps(x_t) - eps(x_t, y). With a scale w

    eps' = eps(x_t) + w (eps(x_t, y) - eps(x_t)),    x0' = x0(x_t) + w (x0(x_t, y) - x0(x_t)).

w = 1 is the conditional model and w = 0 the unconditional one (Ho & Salimans' own w is one less). For any other w the
result is not the diffusion of any distribution; larger w trades diversity for fidelity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import number
from scoresde.errors import ArgumentError, ShapeError
from scoresde.guidance.classifier import SCALE
from scoresde.guidance.conditioning import class_labels, without_labels
from scoresde.models.conditions import LABEL, NO_CLASS, Condition, map_condition
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model, Wrapper
from scoresde.sde import Level

Value = TypeVar("Value", float | Tensor, Tensor)


def _twice(value: Value) -> Value:
    """Return the values of a batch that holds each sample twice."""
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value


class _ClassifierFree(Wrapper):
    def __init__(
        self,
        model: Model,
        scale: float,
        interval: tuple[float, float] | None,
        rescale: float,
        null: Mapping[str, Any],
    ):
        super().__init__(model)
        self.null = null
        self.scale, self.interval, self.rescale = scale, interval, rescale
        self.guidance = max(abs(scale), 1.0)

    def knows_mean(self, cond: Condition = None) -> bool:
        return super().knows_mean(cond if self.scale else without_labels(cond))

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        given = dict(cond or {})
        none = self.without(given, x)
        if self.scale == 0:
            return self.model.estimate(x, level, none)
        inside = self.inside(level)
        if self.scale == 1 or inside is False:
            return self.model.estimate(x, level, given)
        # 1. both estimates by one call, each sample with its label and without
        both = map_condition(lambda *values: torch.cat(values), given, none)
        twice = Level(*(_twice(value) for value in level))
        estimate = self.model.estimate(torch.cat([x, x]), twice, both)
        (x0, x0_none), (eps, eps_none) = estimate.x0.chunk(2), estimate.eps.chunk(2)
        v = None if estimate.v is None else estimate.v.chunk(2)[0]
        # 2. the extrapolation from one to the other
        guided = x0_none + self.scale * (x0 - x0_none), eps_none + self.scale * (eps - eps_none)
        if self.rescale:
            guided = self.rescaled(*guided, x0, level)
        # 3. samples whose level is outside the interval
        if isinstance(inside, Tensor):
            inside = inside.reshape(-1, *(1,) * (x.ndim - 1))
            guided = torch.where(inside, guided[0], x0), torch.where(inside, guided[1], eps)
        return Estimate(*guided, level, v)

    def without(self, given: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """Return the condition with labels and other values hidden.

        Raises:
            ArgumentError, DTypeError, ShapeError: see :func:`classifier_free_guidance`.
        """
        none = dict(given)
        if LABEL in given or not self.null:
            none[LABEL] = torch.full_like(class_labels(given, x, self.model.classes), NO_CLASS)
        for name, value in self.null.items():
            if name not in given:
                expected = f"a condition with {name!r}, for which `null` has a value"
                raise ArgumentError("cond", f"{', '.join(map(repr, given)) or 'nothing'}", expected)
            none[name] = _hidden(f"null[{name!r}]", value, given[name])
        return none

    def inside(self, level: Level) -> bool | Tensor:
        """Return True if the level is in the interval; ``(B,)`` if per sample."""
        if self.interval is None:
            return True
        low, high = self.interval
        return (level.log_snr >= low) & (level.log_snr <= high)

    def rescaled(self, x0: Tensor, eps: Tensor, target: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return x0 with the standard deviation of ``target``, and its eps.

        With ``rescale`` phi < 1 the standard deviation goes that part of the way.
        """
        std, wanted = (value.reshape(len(x0), -1).std(1, correction=0) for value in (x0, target))
        factor = torch.where(std > 0, wanted / std, 1.0)
        factor = (1 - self.rescale + self.rescale * factor).reshape(-1, *(1,) * (x0.ndim - 1))
        return factor * x0, eps + level.ratio * (1 - factor) * x0

    def extra_repr(self) -> str:
        return f"scale={self.scale}, interval={self.interval}, rescale={self.rescale}"


def _hidden(name: str, value: Any, like: Any) -> Any:
    """Return ``value`` for each sample, in the shape of what it hides."""
    if isinstance(like, Mapping):
        if not isinstance(value, Mapping) or not set(value) <= set(like):
            raise ArgumentError(name, type(value).__name__, f"a mapping with names among {sorted(like)}")
        return {key: _hidden(f"{name}[{key!r}]", value[key], one) if key in value else one for key, one in like.items()}
    try:
        return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like).contiguous()
    except (RuntimeError, TypeError, ValueError) as error:
        shape = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise ShapeError(name, shape, f"a number, or of shape {tuple(like.shape[1:])}") from error


@checked
def classifier_free_guidance(
    model: Model,
    scale: float,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    null: Mapping[str, Any] | None = None,
) -> Model:
    """Return the model, guided to its condition without a classifier.

    The condition is the labels ``cond["y"]``, the values that ``null`` names, or both.

        eps' = eps(x_t) + w (eps(x_t, y) - eps(x_t))

    Both estimates come from one call for twice the batch. For w = 1 and w = 0 a plain call gives the conditional and
    the unconditional model, bit for bit.

    Args:
        model: A model trained with some labels dropped (``TrainerConfig(conditional=True, label_dropout=0.15)``).
        scale: w, any finite number.
        interval: Log-SNR ``(low, high)``. Outside the interval, where guidance harms or does nothing, the conditional
            model is used, at one call. An interval (a, b) of EDM's sigma is (-2 log b, -2 log a). None: everywhere.
        rescale: phi in [0, 1], against contrast that grows with w, default 0. x0' is multiplied by
            phi std(x0(x_t, y))/std(x0') + 1 - phi, with the standard deviation over the entries of a sample.
        null: What the network was given in training where a value of the condition was hidden, by name: a number, or a
            tensor of the value's shape ``(...)``, or a mapping where the condition has one. :class:`TrainerConfig`'s
            ``conditions`` hides by zeros. None: there are labels alone, hidden by -1.

    Raises:
        ArgumentError, DTypeError, ShapeError: ``scale``, ``interval`` or ``rescale`` is out of range. When called: the
            labels are missing, out of range, or of another shape or dtype.

    References: Ho & Salimans (2022, eq. 6); Kynkaanniemi et al. (2024, section 3) for the interval; Lin et al. (2024,
        section 3.4) for the rescaling.
    """
    if interval is not None:
        low_high = tuple(interval)
        if len(low_high) != 2 or not low_high[0] < low_high[1]:
            raise ArgumentError("interval", low_high, "log-SNRs (low, high) with low < high")
        interval = low_high[0], low_high[1]
    if not 0 <= rescale <= 1:
        raise ArgumentError("rescale", rescale, "a number in [0, 1]")
    if null is not None and not isinstance(null, Mapping):
        raise ArgumentError("null", type(null).__name__, "a mapping from names to tensors or numbers")
    return _ClassifierFree(model, number("scale", scale, SCALE), interval, float(rescale), dict(null or {}))
