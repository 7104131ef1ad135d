"""The Muon optimiser: momentum whose step on a matrix of weights is made orthogonal."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from scoresde.errors import ArgumentError, ShapeError

#: odd quintic a s + b s^3 + c s^5 that, applied five times, brings singular values of 0.003 to 1 to about 0.7 to 1.2
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
MOMENTUM = 0.95
RMS = 0.2  # of an update, in units of the learning rate: about that of Adam's
LABEL = {"conditioning", "modulation"}  # submodules that read the label
LEAST = 16  # rows and columns of a matrix that is worth it


def orthogonalized(matrix: Tensor) -> Tensor:
    r"""About :math:`U V^\top` where ``matrix`` is :math:`U S V^\top`: its singular values brought near 1.

    Five rounds of X <- a X + b X X^T X + c (X X^T)^2 X, started at X = matrix/|matrix|_F. All rounds are polynomials of
    the first X X^T, so they are worked out on that: it is the smaller, by far for most kernels.

    Args:
        matrix: ``(..., m, n)``, floating point.

    Source: Jordan et al. (2024, "Muon: an optimizer for hidden layers in neural networks").
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalized(matrix.mT).mT
    x = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    gram, whole = x @ x.mT, None
    for left in reversed(range(ROUNDS)):
        factor = B * gram + C * gram @ gram
        factor.diagonal(dim1=-2, dim2=-1).add_(A)
        whole = factor if whole is None else factor @ whole
        gram = factor @ gram @ factor if left else gram
    return whole @ x


def hidden_weights(module: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon suits: of linear layers and convolutions with 16 inputs and outputs or more.

    A convolution's inputs are those of all its taps. First and last layers of most networks, embeddings, norms and
    biases are not among them, nor what reads the label: submodules called ``conditioning`` or ``modulation``, as those
    of our networks.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = {
        m.weight: None
        for name, m in module.named_modules()
        if isinstance(m, layers) and m.weight.requires_grad and not LABEL.intersection(name.split("."))
    }
    return [w for w in weights if min(len(w), w[0].numel()) >= LEAST]


class Muon(torch.optim.Optimizer):
    r"""Nesterov momentum whose step on each weight matrix W (m x n) is made orthogonal.

    .. math:: M \leftarrow \mu M + (1 - \mu) G,\quad
              W \leftarrow W - 0.2\,\eta \sqrt{\max(m, n)}\; O\big(\mu M + (1 - \mu) G\big)

    with G the gradient, mu = 0.95 and O of :func:`orthogonalized`. The factor makes an update's root mean square that
    of Adam's at the same learning rate, so that the two share one. Kernels of convolutions are matrices whose rows are
    output channels. Made for :func:`hidden_weights`; all other parameters are Adam's.

    Args:
        params: the parameters, each of two axes or more.
        lr: learning rate, positive.

    Raises:
        ShapeError: a parameter of fewer than two axes.
        ArgumentError: a learning rate that is not positive.

    Source: Jordan et al. (2024); the factor: Liu et al. (2025, "Muon is scalable for LLM training", section 2.2).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float):
        if not lr > 0:
            raise ArgumentError("lr", lr, "a positive number")
        super().__init__(params, {"lr": lr})
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim < 2:
                raise ShapeError("params", tuple(p.shape), "weights of two axes or more")

    @torch.no_grad()
    def step(self) -> None:
        """One update; none where the attribute ``found_inf``, a tensor, is there and is not 0."""
        skip = getattr(self, "found_inf", None)
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                grad = p.grad if skip is None else torch.where(skip > 0, momentum, p.grad)
                momentum.lerp_(grad, 1 - MOMENTUM)
                matrix = grad.lerp(momentum, MOMENTUM).flatten(1)
                by_shape.setdefault(tuple(matrix.shape), []).append((p, matrix))
            for shape, found in by_shape.items():
                updates = orthogonalized(torch.stack([matrix for _, matrix in found]))
                size = RMS * group["lr"] * max(shape) ** 0.5
                size = size if skip is None else size * (skip <= 0)
                for (p, _), update in zip(found, updates, strict=True):
                    p.sub_(size * update.reshape(p.shape))
