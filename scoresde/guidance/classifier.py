r"""Classifier guidance (Song et al. 2021; Dhariwal & Nichol 2021).

Assumption: a classifier gives p(y | x_t) at every noise level. By Bayes the score of p_t(x | y) is s + g,
g = grad log p_t(y | x_t) (E10). With x_t = alpha x0 + sigma eps, score = -eps/sigma and a scale w this is

    x0' = x0 + w (sigma^2/alpha) g,    eps' = eps - w sigma g.

w = 1 is p(x_0 | y) and w = 0 is p(x_0). For any other w the score is that of p_t(x) p_t(y | x)^w. The result is then
not the diffusion of any distribution; larger w trades diversity for fidelity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import number
from scoresde.errors import ArgumentError, DTypeError, ShapeError
from scoresde.guidance.conditioning import class_labels, without_labels
from scoresde.models.conditions import Condition, of_class
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model, Wrapper
from scoresde.sde import Level
from scoresde.sde.grids import LOG_SNR_MIN

#: log p(y | x_t) ``(B,)``, or logits of all classes ``(B, K)``, from x_t ``(B, *D)``, t ``(B,)`` and y ``(B,)``
LogProbOfClass = Callable[[Tensor, Tensor, Tensor], Tensor]
SCALE = "a finite number: 0 for no guidance, 1 for the conditional distribution"  # what w must be


def _times(level: Level, x: Tensor) -> Tensor:
    """Return the level's time as ``(B,)``, at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(level.t, Tensor):
        return level.t.to(dtype).expand(len(x))
    return torch.full((len(x),), level.t, dtype=dtype, device=x.device)


class _ClassifierGuided(Wrapper):
    def __init__(self, model: Model, log_p_y: LogProbOfClass, scale: float, conditional: bool):
        super().__init__(model)
        self.log_p_y, self.scale, self.conditional = log_p_y, scale, conditional
        self.guidance = max(abs(scale), 1.0)
        self.last = self.sde.levels(self.sde.time_of(LOG_SNR_MIN).reshape(1))[0]  # with a signal

    def knows_mean(self, cond: Condition = None) -> bool:
        unguided = not self.scale and not self.conditional
        return super().knows_mean(without_labels(cond) if unguided else cond)

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        y = class_labels(cond, x, self.model.classes if self.conditional else None)
        estimate = self.model.estimate(x, level, cond if self.conditional else without_labels(cond))
        if not self.scale:
            return estimate
        signal = self.with_signal(level)
        shift = (self.scale * signal.sigma**2 / signal.alpha) * self.gradient(x, signal, y)
        return Estimate(estimate.x0 + shift, estimate.eps - level.ratio * shift, level, estimate.v)

    def with_signal(self, level: Level) -> Level:
        """Return the level, or where alpha = 0 the noisiest of the default levels.

        At alpha = 0 g vanishes like alpha, and (sigma^2/alpha) g has a limit, which is taken there.
        """
        if not isinstance(level.alpha, Tensor) and level.alpha > 0:
            return level
        last = self.last
        if not isinstance(level.alpha, Tensor):
            return last
        none = level.alpha <= 0
        times = none.reshape(-1) if none.ndim else none
        return Level(
            torch.where(times, last.t, torch.as_tensor(level.t)),
            torch.where(none, last.alpha, level.alpha),
            torch.where(none, last.sigma, torch.as_tensor(level.sigma)),
            torch.where(times, last.log_snr, torch.as_tensor(level.log_snr)),
        )

    def gradient(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """Return grad log p(y | x_t) ``(B, *D)``.

        It is differentiable where the caller differentiates.
        """
        tracked = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            z = x if tracked else x.detach().requires_grad_()
            log_p = self.log_p_y(z, _times(level, x), y)
            if isinstance(log_p, Tensor) and log_p.ndim == 2 and len(log_p) == len(x):
                log_p = of_class(log_p.log_softmax(1), y)
            if not isinstance(log_p, Tensor) or log_p.shape != (len(x),):
                shape = tuple(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
                raise ShapeError("log_p_y's result", shape, f"of shape ({len(x)},), or logits ({len(x)}, K)")
            if not log_p.requires_grad:
                raise ArgumentError("log_p_y's result", "no gradient", "a function of x_t that autograd follows")
            return torch.autograd.grad(log_p.sum(), z, create_graph=tracked)[0].to(x.dtype)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, conditional={self.conditional}"


@checked
def classifier_guidance(
    model: Model, log_p_y: LogProbOfClass, scale: float = 1.0, *, conditional: bool = False
) -> Model:
    """Return the model, guided by a classifier to the classes ``cond["y"]``.

    With the exact p(y | x_t) and ``scale=1`` it is the exact model of p(x_0 | y). With ``scale=0`` it is the model
    itself, bit for bit. Labels are ``(B,)`` int64, -1 for "no class".

    Args:
        model: The model.
        log_p_y: Function ``(x_t (B, *D), t (B,), y (B,))`` to log p(y | x_t) ``(B,)`` or logits ``(B, K)``, for each
            sample alone and differentiable in x_t. A :class:`~scoresde.training.NoiseAwareClassifier` serves, or the
            ``log_responsibilities`` of a :class:`~scoresde.models.GaussianMixtureModel`.
        scale: w, any finite number, default 1.
        conditional: Whether the model receives ``y`` too, default False.

    Raises:
        DTypeError: ``log_p_y`` is not callable.
        ArgumentError, DTypeError, ShapeError: ``scale`` is not a finite number. When called: the labels are missing,
            out of range, or of another shape or dtype, or the classifier's result does not fit.

    Notes:
        Non-finite gradients are not checked here; samplers and likelihoods raise NonFiniteError.

    References: Song et al. (2021, appendix I); Dhariwal & Nichol (2021, section 4).
    """
    if not callable(log_p_y):
        raise DTypeError("log_p_y", type(log_p_y).__name__, "a function (x_t, t, y) -> log p(y | x_t)")
    return _ClassifierGuided(model, log_p_y, number("scale", scale, SCALE), conditional)
