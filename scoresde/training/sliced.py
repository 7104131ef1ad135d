"""Implicit and sliced score matching: no target, but the trace of the network's own Jacobian."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde.checks import whole
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.models import Model
from scoresde.models.predictions import total_std
from scoresde.random import rand, randn
from scoresde.sde import Level
from scoresde.sde.tensors import flat
from scoresde.training.objectives import Perturbed, ScoreMatching
from scoresde.training.time_sampling import TimeSampling
from scoresde.training.weightings import Weighting

DISTRIBUTIONS = ("sphere", "rademacher", "gaussian")
#: the default scale of the control variate: about that of clusters, strokes and edges in data of unit scale
CONTROL = 0.3
FORMS = ("reduced", "plain", "finite-difference")


def projections(distribution: str, count: int, x: Tensor, generator) -> Tensor:
    """Random directions v ``(count, B, n)`` for flat x ``(B, n)``, each with E[v v'] = I.

    ``"rademacher"`` entries are +-1; ``"gaussian"`` N(0, 1); ``"sphere"`` is uniform on |v|^2 = n.
    """
    shape = (len(x), count, x.shape[1])  # the samples first: they are what generators are shared out by
    if distribution == "rademacher":
        v = torch.where(rand(shape, generator, device=x.device) < 0.5, -1.0, 1.0).to(x.dtype)
    else:
        v = randn(shape, generator, x.device, x.dtype)
        if distribution == "sphere":
            v = v * (shape[2] ** 0.5 / torch.linalg.vector_norm(v, dim=-1, keepdim=True))
    return v.transpose(0, 1)


class _Stein(ScoreMatching):
    r"""lambda(t) (|s|^2 + 2 tr grad s), which is w (|eps_theta|^2 - 2 sigma tr(d eps_theta/dx)), plus w n.

    Stein's identity E[eps . eps_theta(x_t)] = sigma E[tr(d eps_theta/dx)], an integration by parts over eps, makes the
    mean that of denoising score matching: hence the constant w n. Stated for eps the loss is of order n at every noise
    level, whatever sigma: neither of its terms is divided by sigma.

    The identity is also a control variate. For any number c the trace may be replaced by
    (1 - c) sigma tr(d eps_theta/dx) + c eps . eps_theta without a change of the mean. Where the noise hides the data,
    eps is nearly known from x_t and the second has little variance; where it does not, the first. With
    c = sigma^2/(alpha^2 l^2 + sigma^2), l = ``control`` s_d the scale of the data's structure, the gradient is quieter
    than that of either (docs/score_matching.md measures it); c = 1 would be denoising score matching, c = 0 is the
    papers' form.
    """

    def __init__(self, control: float | None, weighting, time_sampling, t_min, t_max):
        if control is not None and not control > 0:
            raise ArgumentError("control", control, "a positive number, or None")
        super().__init__(weighting, time_sampling, t_min, t_max)
        self.control = control

    def error(self, model, at, cond, generator):
        learning = torch.is_grad_enabled()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            eps, square, trace = self.moments(model, at, cond, learning, generator)
            if self.control is not None:
                alpha, sigma = (a.reshape(-1) for a in (at.level.alpha, at.level.sigma))
                c = (sigma / total_std(alpha, sigma, self.control * getattr(model, "data_std", 1.0))) ** 2
                trace = (1 - c) * trace + c * (flat(at.eps) * eps).sum(1)
        return square - 2 * trace + eps.shape[1]

    @abstractmethod
    def moments(self, model: Model, at: Perturbed, cond, learning: bool, generator) -> tuple[Tensor, Tensor, Tensor]:
        """eps_theta ``(B, n)``, and estimates ``(B,)`` of |eps_theta|^2 and sigma tr(d eps_theta/dx)."""


class ImplicitScoreMatching(_Stein):
    r"""Implicit score matching (S2): lambda(t) (|s_theta|^2 + 2 tr grad s_theta) with the exact trace, for small n.

    It equals explicit score matching up to a constant, from samples of p_t alone. The trace takes n vector-Jacobian
    products. Source: Hyvarinen (2005).

    Args:
        control: the scale of the data's structure in units of the model's ``data_std`` (1, if it has none), for a
            control variate made of x_t's own noise: the same mean, less variance. None is the paper's form, which
            does not know that noise.
        weighting, time_sampling, t_min, t_max: as for :class:`~scoresde.DenoisingScoreMatching`.
    """

    def __init__(
        self,
        control: float | None = CONTROL,
        weighting: str | Weighting | Callable[[Model, Tensor], Tensor] = "simple",
        time_sampling: str | float | TimeSampling | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        super().__init__(control, weighting, time_sampling, t_min, t_max)

    def moments(self, model, at, cond, learning, generator):
        x = at.x_t.detach().requires_grad_()
        eps = flat(model.estimate(x, at.level, cond).eps)
        trace = torch.zeros_like(eps[:, 0])
        for i in range(eps.shape[1]):
            (row,) = torch.autograd.grad(
                eps[:, i].sum(), x, create_graph=learning, retain_graph=True, materialize_grads=True
            )
            trace = trace + flat(row)[:, i]
        return eps, eps.square().sum(1), at.level.sigma.reshape(-1) * trace


class SlicedScoreMatching(_Stein):
    r"""Sliced score matching (S4): implicit score matching with the trace by random projections v, E[v v'] = I.

    lambda(t) times the mean over the projections of

    - ``"reduced"``: |s|^2 + 2 v' grad s v, the variance-reduced form;
    - ``"plain"``: (v's)^2 + 2 v' grad s v;
    - ``"finite-difference"``: |s|^2 + 2 v' grad s v from s(x + h sigma v) and s(x - h sigma v), their mean for s and
      their difference for the derivative: a single call of the network on a larger batch, and no second derivative.
      Its error is of order h^2, the same at every noise level as the step is measured in sigma.

    All have the mean of :class:`ImplicitScoreMatching`, so of denoising score matching. Source: Song et al.
    (2019); for the finite differences Pang et al. (2020).

    Args:
        projections: per sample.
        distribution: ``"sphere"``, |v|^2 = n (the isotropic part of the Jacobian adds no variance),
            ``"rademacher"``, +-1 (nor does its diagonal), or ``"gaussian"``.
        form: above.
        step: h of the finite differences.
        control: the scale of the data's structure in units of the model's ``data_std`` (1, if it has none), for a
            control variate made of x_t's own noise: the same mean, less variance. None is the paper's form, which
            does not know that noise.
        weighting, time_sampling, t_min, t_max: as for :class:`~scoresde.DenoisingScoreMatching`.

    Raises:
        UnknownNameError: another form or distribution.
        ArgumentError: fewer than one projection, a step that is not positive; when called with finite differences, a
            network with active dropout, which would differ between the two sides.
    """

    def __init__(
        self,
        projections: int = 1,
        distribution: str = "sphere",
        form: str = "reduced",
        step: float = 0.01,
        control: float | None = CONTROL,
        weighting: str | Weighting | Callable[[Model, Tensor], Tensor] = "simple",
        time_sampling: str | float | TimeSampling | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        if distribution not in DISTRIBUTIONS:
            raise UnknownNameError("distribution", distribution, DISTRIBUTIONS)
        if form not in FORMS:
            raise UnknownNameError("form", form, FORMS)
        if not step > 0:
            raise ArgumentError("step", step, "a positive number, in units of sigma")
        super().__init__(control, weighting, time_sampling, t_min, t_max)
        self.projections = whole("projections", projections)
        self.distribution, self.form, self.step = distribution, form, float(step)

    def moments(self, model, at, cond, learning, generator):
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
        return eps, square, at.level.sigma.reshape(-1) * torch.stack(traces).mean(0)

    def _differences(self, model: Model, at: Perturbed, cond, v: Tensor):
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in model.modules()):
            raise ArgumentError("form", repr(self.form), "another form, or a network without active dropout")
        m, h = self.projections, self.step
        shift = h * at.level.sigma * v.reshape(m, *at.x_t.shape)
        x = torch.cat([at.x_t + shift, at.x_t - shift]).flatten(0, 1)
        level = Level(*(field.repeat(2 * m, *(1,) * (field.ndim - 1)) for field in at.level))
        cond = cond and {name: value.repeat(2 * m, *(1,) * (value.ndim - 1)) for name, value in cond.items()}
        right, left = model.estimate(x, level, cond).eps.reshape(2, *v.shape)
        middle, slope = (right + left) / 2, (right - left) / (2 * h)  # sigma (d eps/dx) v
        return middle.mean(0), middle.square().sum(2).mean(0), (slope * v).sum(2).mean(0)

    def __repr__(self):
        return (
            f"SlicedScoreMatching({self.projections}, {self.distribution!r}, {self.form!r}, control={self.control}, "
            f"weighting={self.weighting!r}, time_sampling={self.time_sampling!r})"
        )
