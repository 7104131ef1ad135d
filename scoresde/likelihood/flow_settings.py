"""Settings of the likelihood by the probability flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from scoresde.checks import whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.flow.ode import ODE_METHODS
from scoresde.flow.tableaux import FIXED
from scoresde.likelihood.divergence import Divergence
from scoresde.likelihood.trace import Gradients

End = Literal["heun", "half-tweedie", "none"]
Prior = Literal["matched", "sde"]

MULTISTEP = "multistep"
ON_FIXED_GRIDS = (MULTISTEP, *FIXED)
DEFAULT_STEPS = 20  # of the other methods on fixed grids
DEFAULT_TOLERANCE = 1e-6  # of adaptive methods


@dataclass(frozen=True)
class FlowSettings:
    """Settings of :func:`log_likelihood`, checked once.

    They are its arguments of the same names.
    """

    divergence: Divergence | None = None
    rtol: float | None = None
    atol: float | None = None
    method: str | None = None
    steps: int | None = None
    t_min: float | None = None
    t_max: float | None = None
    end: End = "heun"
    prior: Prior = "matched"
    chunk: int | None = None
    differentiable: Gradients | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.solver, (MULTISTEP, *ODE_METHODS)),
            ("end", self.end, get_args(End)),
            ("prior", self.prior, get_args(Prior)),
            ("differentiable", self.differentiable or "direct", get_args(Gradients)),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        if self.differentiable and not self.fixed_grid:
            expected = "a method on a fixed grid, such as 'multistep', for a differentiable likelihood"
            raise ArgumentError("method", repr(self.method), expected)
        if self.solver == MULTISTEP and self.end == "half-tweedie":
            raise ArgumentError("end", repr(self.end), "'heun' or 'none' for the method 'multistep'")
        for name, number in (("chunk", self.chunk), ("steps", self.steps)):
            if number is not None:
                whole(name, number)

    @property
    def solver(self) -> str:
        """The method; unset, ``"multistep"``, or ``"dopri5"`` with an ``rtol``."""
        if self.method is not None:
            return self.method
        return MULTISTEP if self.rtol is None else "dopri5"

    @property
    def fixed_grid(self) -> bool:
        """True if the method has a fixed grid."""
        return self.solver in ON_FIXED_GRIDS

    @property
    def tolerances(self) -> tuple[float, float]:
        """``(rtol, atol)`` of an adaptive method, with the default for each."""
        rtol, atol = (DEFAULT_TOLERANCE if value is None else value for value in (self.rtol, self.atol))
        return rtol, atol
