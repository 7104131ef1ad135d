r"""Guidance by class: from a model of p(x_0), or of p(x_0 | y), to one that is drawn towards a class y.

The reverse SDE and the flow take the score s + w g, g = grad log p_t(y | x_t) (E10). By x_t = alpha x0 + sigma eps and
score = -eps/sigma that is

    x0' = x0 + w (sigma^2/alpha) g,    eps' = eps - w sigma g.

A classifier tells g by its gradient (:func:`classifier_guidance`); a network trained with and without labels tells it
by Bayes, sigma g = eps(x_t) - eps(x_t, y) (:func:`classifier_free_guidance`). w = 1 is p(x_0 | y), w = 0 is p(x_0).
With other w the score is that of p_t(x) p_t(y | x)^w, which are not the marginals of any one p(x_0): samples lie nearer
to their class or less near, and follow no law that could be stated.

Each takes a model and gives a model, so that every sampler, the flow and the likelihood work with it unchanged. The
classes come with the samples, ``cond={"y": labels}``, ``(B,)`` int64 with -1 for "no class"; :func:`conditioned` fixes
them for a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.models.conditions import LABEL, NO_CLASS, Condition, check_labels, of_class
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.models.wrappers import Wrapper
from scoresde.sde import Level

#: log p(y | x_t) ``(B,)``, or logits of all classes ``(B, K)``, from x_t ``(B, *D)``, t ``(B,)`` and y ``(B,)``
LogProbOfClass = Callable[[Tensor, Tensor, Tensor], Tensor]


# ---- a fixed condition -----------------------------------------------------------------------------------------------


class _Conditioned(Wrapper):
    def __init__(self, model, cond):
        super().__init__(model)
        self.names = tuple(cond)
        for name, value in cond.items():
            self.register_buffer(f"cond_{name}", value)

    def knows_mean(self, cond=None):
        return False

    def estimate(self, x, level, cond=None):
        for name in self.names:
            if name in (cond or {}):
                raise ArgumentError(f"cond[{name!r}]", "a second value", "none: the model has it fixed")
        fixed = {name: getattr(self, f"cond_{name}") for name in self.names}
        fixed = {name: value.expand(len(x), *value.shape) for name, value in fixed.items()}
        return self.model.estimate(x, level, {**(cond or {}), **fixed})


def conditioned(model: Model, cond: Mapping[str, int | float | Tensor]) -> Model:
    """The model with a condition fixed, the same for all samples: of p(x_0 | y = 3) for ``{"y": 3}``.

    Args:
        cond: by name a number, or a tensor WITHOUT the batch axis, ``(*E)``. Values of each sample's own go with the
            call, ``sample(model, shape, cond={"y": labels})``.

    Raises:
        DTypeError: a value that is neither. ArgumentError: no names, or a class ``y`` that the network does not have;
            when called, a ``cond`` with one of the names.
    """
    if not isinstance(cond, Mapping) or not cond:
        raise ArgumentError("cond", repr(cond), "a mapping from names to numbers or tensors, such as {'y': 3}")
    values = {}
    for name, value in cond.items():
        if not isinstance(value, (Tensor, Real)) or isinstance(value, bool):
            raise DTypeError(f"cond[{name!r}]", type(value).__name__, "a number, or a tensor without the batch axis")
        values[name] = torch.as_tensor(value).detach().to(model.device)
    y, classes = values.get(LABEL), model.classes
    if y is not None and classes is not None:
        check_labels(y.reshape(-1), 1, classes)
    return _Conditioned(model, values)


# ---- classifier guidance ---------------------------------------------------------------------------------------------


def _label(cond: Condition, x: Tensor, classes: int | None = None) -> Tensor:
    if LABEL not in (cond or {}):
        raise ArgumentError(f"cond[{LABEL!r}]", None, f"the classes of the samples, ({len(x)},) int64")
    return check_labels(cond[LABEL], len(x), classes)


def _without_label(cond: Condition) -> Condition:
    return {name: value for name, value in (cond or {}).items() if name != LABEL} or None


def _times(level: Level, x: Tensor) -> Tensor:
    """The level's time as ``(B,)``, float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(level.t, Tensor):
        return level.t.to(dtype).expand(len(x))
    return torch.full((len(x),), level.t, dtype=dtype, device=x.device)


class _ClassifierGuided(Wrapper):
    def __init__(self, model, log_p_y, scale, conditional):
        super().__init__(model)
        self.log_p_y, self.scale, self.conditional = log_p_y, scale, conditional

    def knows_mean(self, cond=None):
        unmoved = not self.scale and not self.conditional
        return super().knows_mean(_without_label(cond) if unmoved else cond)

    def estimate(self, x, level, cond=None):
        y = _label(cond, x, self.model.classes if self.conditional else None)
        estimate = self.model.estimate(x, level, cond if self.conditional else _without_label(cond))
        if not self.scale:
            return estimate
        g = self.scale * self.gradient(x, level, y)
        alpha, sigma = level.alpha, level.sigma
        if isinstance(alpha, Tensor):
            ratio = torch.where(alpha > 0, sigma**2 / alpha, 0.0)
        else:
            ratio = sigma**2 / alpha if alpha > 0 else 0.0  # without signal x_t tells nothing of y: g = 0
        return Estimate(estimate.x0 + ratio * g, estimate.eps - sigma * g, level, estimate.v)

    def gradient(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """grad log p(y | x_t) ``(B, *D)``; differentiable where the caller differentiates."""
        tracked = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            z = x if tracked else x.detach().requires_grad_()
            log_p = self.log_p_y(z, _times(level, x), y)
            if isinstance(log_p, Tensor) and log_p.ndim == 2 and len(log_p) == len(x):
                log_p = of_class(log_p.log_softmax(1), y)
            if not isinstance(log_p, Tensor) or log_p.shape != (len(x),):
                shape = tuple(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
                raise ShapeError("log_p_y's result", shape, f"({len(x)},), or logits ({len(x)}, K)")
            if not log_p.requires_grad:
                raise ArgumentError("log_p_y's result", "no gradient", "a function of x_t that autograd follows")
            return torch.autograd.grad(log_p.sum(), z, create_graph=tracked)[0].to(x.dtype)


def _scale(scale: float) -> float:
    if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
        raise ArgumentError("scale", scale, "a finite number: 0 for no guidance, 1 for the conditional law")
    return float(scale)


def classifier_guidance(
    model: Model, log_p_y: LogProbOfClass, scale: float = 1.0, *, conditional: bool = False
) -> Model:
    """The model with w grad log p(y | x_t) of a classifier added to its score, for the classes ``cond["y"]``.

    With the exact p(y | x_t) and w = 1 it is the exact model of p(x_0 | y); w = 0 is the model itself, bit for bit.

    Args:
        log_p_y: ``(x_t (B, *D), t (B,), y (B,))`` to log p(y | x_t) ``(B,)`` or logits ``(B, K)``, row by row and
            differentiable in x_t: a :class:`~scoresde.training.NoiseAwareClassifier`, the ``log_responsibilities`` of a
            :class:`~scoresde.models.GaussianMixtureModel`, or a function of one's own.
        scale: w.
        conditional: whether the model takes ``y`` too; else it never sees it.

    Raises:
        ArgumentError, DTypeError, ShapeError: a scale that is no number; when called, labels that are missing, of
            another shape or dtype or out of range, or a classifier that gives something else. A gradient with NaN or
            infinity is not looked at here: samplers and likelihoods name its samples when they end (NonFiniteError).

    Source: Song et al. 2021, appendix I; Dhariwal & Nichol 2021, section 4.
    """
    if not callable(log_p_y):
        raise DTypeError("log_p_y", type(log_p_y).__name__, "a function (x_t, t, y) -> log p(y | x_t)")
    return _ClassifierGuided(model, log_p_y, _scale(scale), conditional)


# ---- classifier-free guidance ----------------------------------------------------------------------------------------


def _twice(value):
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value


class _ClassifierFree(Wrapper):
    def __init__(self, model, scale, interval, rescale):
        super().__init__(model)
        self.scale, self.interval, self.rescale = scale, interval, rescale

    def knows_mean(self, cond=None):
        return super().knows_mean(cond if self.scale else _without_label(cond))

    def estimate(self, x, level, cond=None):
        y = _label(cond, x, self.model.classes)
        none = {**cond, LABEL: torch.full_like(y, NO_CLASS)}
        if self.scale == 0:
            return self.model.estimate(x, level, none)
        inside = self.inside(level)
        if self.scale == 1 or inside is False:
            return self.model.estimate(x, level, cond)
        both = {name: torch.cat([value, none[name]]) for name, value in cond.items()}
        twice = Level(*(_twice(value) for value in level))
        estimate = self.model.estimate(torch.cat([x, x]), twice, both)
        (x0, x0_none), (eps, eps_none) = estimate.x0.chunk(2), estimate.eps.chunk(2)
        v = None if estimate.v is None else estimate.v.chunk(2)[0]
        guided = x0_none + self.scale * (x0 - x0_none), eps_none + self.scale * (eps - eps_none)
        if self.rescale:
            guided = self.rescaled(*guided, x0, level)
        if isinstance(inside, Tensor):
            inside = inside.reshape(-1, *(1,) * (x.ndim - 1))
            guided = torch.where(inside, guided[0], x0), torch.where(inside, guided[1], eps)
        return Estimate(*guided, level, v)

    def inside(self, level: Level) -> bool | Tensor:
        """Whether the level lies in the interval; ``(B,)`` for levels of each sample's own."""
        if self.interval is None:
            return True
        low, high = self.interval
        return (level.log_snr >= low) & (level.log_snr <= high)

    def rescaled(self, x0: Tensor, eps: Tensor, like: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """The guided x0 with the standard deviation of the conditional one, in part; eps following it."""
        std, target = (value.reshape(len(x0), -1).std(1, correction=0) for value in (x0, like))
        factor = torch.where(std > 0, target / std, 1.0)
        factor = (1 - self.rescale + self.rescale * factor).reshape(-1, *(1,) * (x0.ndim - 1))
        return factor * x0, eps + level.ratio * (1 - factor) * x0


def classifier_free_guidance(
    model: Model, scale: float, interval: tuple[float, float] | None = None, rescale: float = 0.0
) -> Model:
    """eps' = eps(x_t) + w (eps(x_t, y) - eps(x_t)), x0' likewise, for the classes ``cond["y"]``: one doubled call.

    w = 1 is the conditional model and w = 0 the unconditional one, bit for bit and without the doubling; w > 1 draws
    samples nearer to their class, at the cost of variety. (Ho & Salimans' own w is one less.) The model is one whose
    network was trained with some labels dropped (``TrainerConfig(conditional=True, label_dropout=0.15)``).

    Args:
        scale: w.
        interval: log-SNR ``(low, high)``; outside, where guidance does harm or nothing, the model is the conditional
            one, called once. For an interval (a, b) of EDM's sigma that is (-2 log b, -2 log a).
        rescale: phi in [0, 1]: x0' times phi std(x0(x_t, y))/std(x0') + 1 - phi, the deviation over a sample's entries,
            against contrast that grows with w.

    Raises:
        ArgumentError, DTypeError, ShapeError: numbers out of their range; when called, labels that are missing, of
            another shape or dtype or out of range.

    Source: Ho & Salimans 2022, equation 6; Kynkaanniemi et al. 2024, section 3 (interval); Lin et al. 2024, section 3.4
    (rescaling).
    """
    if interval is not None:
        interval = tuple(interval)
        if len(interval) != 2 or not interval[0] < interval[1]:
            raise ArgumentError("interval", interval, "log-SNRs (low, high) with low < high")
    if not 0 <= rescale <= 1:
        raise ArgumentError("rescale", rescale, "a number in [0, 1]")
    return _ClassifierFree(model, _scale(scale), interval, float(rescale))
