"""Implicit and sliced score matching, by traces of the Jacobian.

Symbols: x ``(B, n)`` the flattened x_t, eps_theta = -sigma s_theta, w = lambda/sigma^2, v a random projection.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Model
from scoresde.models.conditions import Condition, map_condition
from scoresde.models.predictions import total_std
from scoresde.random import DISTRIBUTIONS, Distribution, Generators, rand, randn
from scoresde.sde import Level
from scoresde.sde.tensors import flat
from scoresde.training.objectives import Perturbed, ScoreMatching

Form = Literal["reduced", "plain", "finite-difference"]
FORMS: tuple[str, ...] = get_args(Form)
#: default scale of the control variate: about that of clusters, strokes and edges in data of unit scale
CONTROL = 0.3


def projections(distribution: Distribution, count: int, x: Tensor, generator: Generators) -> Tensor:
    """Draw random directions v ``(count, B, n)``, each with E[v v'] = I.

    ``"rademacher"`` entries are +-1; ``"gaussian"`` N(0, 1); ``"sphere"`` is uniform on |v|^2 = n.
    """
    shape = (len(x), count, x.shape[1])  # samples first, as generators are split over them
    if distribution == "rademacher":
        v = torch.where(rand(shape, generator, device=x.device) < 0.5, -1.0, 1.0).to(x.dtype)
    else:
        v = randn(shape, generator, x.device, x.dtype)
        if distribution == "sphere":
            v = v * (shape[2] ** 0.5 / torch.linalg.vector_norm(v, dim=-1, keepdim=True))
    return v.transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class _Stein(ScoreMatching):
    r"""An objective with the trace of the Jacobian of s in it.

        lambda(t) (|s|^2 + 2 tr grad s) = w (|eps_theta|^2 - 2 sigma tr(d eps_theta/dx)), plus w n

    Stein's identity E[eps . eps_theta(x_t)] = sigma E[tr(d eps_theta/dx)] is an integration by parts over eps. It makes
    the mean that of denoising score matching, hence the constant w n. Stated for eps, the loss is of order n at every
    noise level: neither of its terms is divided by sigma.

    The identity is also a control variate. For any number c the trace may be replaced by

        (1 - c) sigma tr(d eps_theta/dx) + c eps . eps_theta

    without changing the mean. At high noise x_t nearly determines eps, and the second term has little variance; at low
    noise the first has. With c = sigma^2/(alpha^2 l^2 + sigma^2), l = ``control`` s_d the scale of the data's
    structure, the gradient has less variance than with either term alone (docs/score_matching.md measures it). c = 1
    would be denoising score matching, and c = 0 is the papers' form.
    """

    control: float | None = CONTROL

    def __post_init__(self) -> None:
        if self.control is not None:
            object.__setattr__(self, "control", positive("control", self.control))
        super().__post_init__()

    def error(self, model: Model, at: Perturbed, cond: Condition, generator: Generators) -> Tensor:
        learning = torch.is_grad_enabled()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            eps, square, trace = self.moments(model, at, cond, learning, generator)
            if self.control is not None:
                alpha, sigma = (cast(Tensor, a).reshape(-1) for a in (at.level.alpha, at.level.sigma))
                c = (sigma / total_std(alpha, sigma, self.control * getattr(model, "data_std", 1.0))) ** 2
                trace = (1 - c) * trace + c * (flat(at.eps) * eps).sum(1)
        return square - 2 * trace + eps.shape[1]

    @abstractmethod
    def moments(
        self, model: Model, at: Perturbed, cond: Condition, learning: bool, generator: Generators
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return eps_theta, its square and the trace.

        These are eps_theta ``(B, n)``, and estimates ``(B,)`` of |eps_theta|^2 and sigma tr(d eps_theta/dx). With
        ``learning`` the graph stays, for a gradient of the loss.
        """


@checked
@dataclass(frozen=True)
class ImplicitScoreMatching(_Stein):
    r"""Implicit score matching (S2) with the exact trace, for small n.

        lambda(t) (|s_theta|^2 + 2 tr grad s_theta)

    It equals explicit score matching up to a constant, from samples of p_t alone. The trace takes n vector-Jacobian
    products.

    Args:
        control: Scale of the data's structure in units of the model's ``data_std`` (1, if it has none), default 0.3. It
            sets a control variate made of x_t's noise: the same mean, less variance. None: the paper's form, which does
            not use that noise.
        weighting, time_sampling, t_min, t_max: As for :class:`~scoresde.DenoisingScoreMatching`, by keyword.

    References: Hyvarinen 2005.
    """

    control: float | None = CONTROL

    def moments(
        self, model: Model, at: Perturbed, cond: Condition, learning: bool, generator: Generators
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = at.x_t.detach().requires_grad_()
        eps = flat(model.estimate(x, at.level, cond).eps)
        trace = torch.zeros_like(eps[:, 0])
        for i in range(eps.shape[1]):
            (row,) = torch.autograd.grad(
                eps[:, i].sum(), x, create_graph=learning, retain_graph=True, materialize_grads=True
            )
            trace = trace + flat(row)[:, i]
        return eps, eps.square().sum(1), cast(Tensor, at.level.sigma).reshape(-1) * trace


@checked
@dataclass(frozen=True)
class SlicedScoreMatching(_Stein):
    r"""Sliced score matching (S4), with a trace by random projections.

    With projections v, E[v v'] = I, the loss is lambda(t) times the mean over the projections of

    - ``"reduced"``: |s|^2 + 2 v' grad s v, the variance-reduced form;
    - ``"plain"``: (v's)^2 + 2 v' grad s v;
    - ``"finite-difference"``: |s|^2 + 2 v' grad s v from s(x + h sigma v) and s(x - h sigma v). Their mean estimates s
      and their difference the derivative. It takes a single call of the network on a larger batch, and no second
      derivative. Its error is of order h^2, and the same at every noise level, as sigma scales the step.

    All have the mean of :class:`ImplicitScoreMatching`, hence of denoising score matching.

    Args:
        projections: Number of projections per sample, default 1.
        distribution: ``"sphere"``, |v|^2 = n (the isotropic part of the Jacobian adds no variance), the default;
            ``"rademacher"``, +-1 (its diagonal adds none); or ``"gaussian"``.
        form: One of the forms above, default ``"reduced"``.
        step: h of the finite differences, in units of sigma, default 0.01.
        control: As for :class:`ImplicitScoreMatching`.
        weighting, time_sampling, t_min, t_max: As for :class:`~scoresde.DenoisingScoreMatching`, by keyword.

    Raises:
        UnknownNameError: an unknown form or distribution.
        ArgumentError: fewer than one projection, or a step that is not positive. When called with finite differences,
            a network with active dropout, which would differ between the two sides.

    References: Song et al. 2019; Pang et al. 2020 (finite differences).
    """

    projections: int = 1
    distribution: Distribution = "sphere"
    form: Form = "reduced"
    step: float = 0.01
    control: float | None = field(default=CONTROL, kw_only=True)

    def __post_init__(self) -> None:
        for name, known in (("distribution", DISTRIBUTIONS), ("form", FORMS)):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        object.__setattr__(self, "step", positive("step", self.step))
        object.__setattr__(self, "projections", whole("projections", self.projections))
        super().__post_init__()

    def moments(
        self, model: Model, at: Perturbed, cond: Condition, learning: bool, generator: Generators
    ) -> tuple[Tensor, Tensor, Tensor]:
        v = projections(self.distribution, self.projections, flat(at.x_t), generator)
        if self.form == "finite-difference":
            return self._differences(model, at, cond, v)
        x = at.x_t.detach().requires_grad_()
        eps = flat(model.estimate(x, at.level, cond).eps)
        traces = []
        for direction in v:
            (row,) = torch.autograd.grad(
                eps, x, direction, create_graph=learning, retain_graph=True, materialize_grads=True
            )
            traces.append((flat(row) * direction).sum(1))
        square = eps.square().sum(1) if self.form == "reduced" else (eps * v).sum(2).square().mean(0)
        return eps, square, cast(Tensor, at.level.sigma).reshape(-1) * torch.stack(traces).mean(0)

    def _differences(self, model: Model, at: Perturbed, cond: Condition, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the moments by finite differences along v ``(m, B, n)``."""
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in model.modules()):
            raise ArgumentError("form", repr(self.form), "another form, or a network without active dropout")
        m, h = self.projections, self.step
        shift = h * at.level.sigma * v.reshape(m, *at.x_t.shape)
        x = torch.cat([at.x_t + shift, at.x_t - shift]).flatten(0, 1)
        level = Level(*(entry.repeat(2 * m, *(1,) * (entry.ndim - 1)) for entry in map(torch.as_tensor, at.level)))
        cond = map_condition(lambda value: value.repeat(2 * m, *(1,) * (value.ndim - 1)), cond)
        right, left = model.estimate(x, level, cond).eps.reshape(2, *v.shape)
        middle, slope = (right + left) / 2, (right - left) / (2 * h)  # sigma (d eps/dx) v
        return middle.mean(0), middle.square().sum(2).mean(0), (slope * v).sum(2).mean(0)
