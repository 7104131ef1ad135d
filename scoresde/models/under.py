"""One network, many names: a model under another SDE than the one it was trained on."""

from __future__ import annotations

import math

from scoresde.errors import ArgumentError
from scoresde.models.base import Model
from scoresde.models.estimate import Estimate
from scoresde.sde import SDE


class ModelUnder(Model):
    """A model trained on one process, used under another with the same range of log-SNR.

    At equal log-SNR x'/alpha' and x/alpha have the same law, so x0 and eps are the same numbers (Song et al. 2021,
    appendix; Karras et al. 2022): x0'(x', t') = x0(x' alpha/alpha', t) where log_snr(t) = log_snr'(t'). Respacing a
    DDPM (P12) is the case where alpha' = alpha.

    Raises:
        ArgumentError: at a time, known to the host, whose log-SNR the model's own process does not reach.
    """

    def __init__(self, model: Model, sde: SDE):
        super().__init__()
        self.model, self.sde = model, sde
        self.moments, self.scaling = model.moments, getattr(model, "scaling", None)

    def knows_mean(self, cond=None):
        return self.model.knows_mean(cond)

    def estimate(self, x, level, cond=None):
        inner = self.model.sde
        if isinstance(level.log_snr, float):
            own = inner.level(inner.time_of(level.log_snr), x)
            if not math.isclose(own.log_snr, level.log_snr, rel_tol=1e-6, abs_tol=1e-6):
                low, high = inner.log_snr(1.0).item(), inner.log_snr(0.0).item()
                raise ArgumentError(
                    "t",
                    f"{level.t:.6g}, where log-SNR is {level.log_snr:.6g}",
                    f"log-SNR in [{low:.6g}, {high:.6g}], the range of the {inner!r} the model was made for",
                )
        else:
            own = inner.level_at(inner.time_of(level.log_snr), x)
        estimate = self.model.estimate(x * (own.alpha / level.alpha), own, cond)
        return Estimate(estimate.x0, estimate.eps, level, estimate.v)
