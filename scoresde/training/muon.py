"""The Muon optimiser: momentum with orthogonal steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import positive
from scoresde.errors import DTypeError, ShapeError

#: coefficients of a s + b s^3 + c s^5, which five times in a row maps singular values in [0.003, 1] to about [0.7, 1.2]
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
MOMENTUM = 0.95
RMS = 0.2  # root mean square of an update in units of the learning rate, about that of Adam
CONDITIONING = {"conditioning", "modulation"}  # submodules that read the class label
LEAST = 16  # least rows and columns of a matrix that Muon trains


def orthogonalized(matrix: Tensor) -> Tensor:
    r"""Return about :math:`U V^\top` for a matrix :math:`U S V^\top`.

    This is five rounds of X <- a X + b X X^T X + c (X X^T)^2 X, started at X = matrix/|matrix|_F. All rounds are
    polynomials of the first X X^T and are computed on it, as it is smaller than X for most kernels.

    Args:
        matrix: ``(..., m, n)``, floating point.

    References: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalized(matrix.mT).mT
    x = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    gram, product = x @ x.mT, None
    for left in reversed(range(ROUNDS)):
        factor = B * gram + C * gram @ gram
        factor.diagonal(dim1=-2, dim2=-1).add_(A)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor if left else gram
    return torch.matmul(cast(Tensor, product), x)


@checked
def hidden_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights that Muon suits.

    These are the weights of linear layers and convolutions with at least 16 inputs and outputs.

    A convolution's inputs are those of all its taps. The first and last layers of most networks, embeddings, norms and
    biases are excluded. So are submodules called ``conditioning`` or ``modulation``, which read the time and the class
    label in the networks of this package.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = {
        cast(nn.Parameter, m.weight): None
        for name, m in module.named_modules()
        if isinstance(m, layers) and m.weight.requires_grad and not CONDITIONING.intersection(name.split("."))
    }
    return [w for w in weights if min(len(w), w[0].numel()) >= LEAST]


@checked
class Muon(torch.optim.Optimizer):
    r"""Nesterov momentum with orthogonal steps on weight matrices W (m x n).

    .. math:: M \leftarrow \mu M + (1 - \mu) G,\quad
              W \leftarrow W - 0.2\,\eta \sqrt{\max(m, n)}\; O\big(\mu M + (1 - \mu) G\big)

    with G the gradient, mu = 0.95 and O of :func:`orthogonalized`. The factor makes an update's root mean square that
    of Adam's at the same learning rate, so that the two share one. Kernels of convolutions are matrices whose rows are
    output channels. It is meant for :func:`hidden_weights`; Adam trains all other parameters.

    Args:
        params: Parameters with two axes or more.
        lr: Learning rate, positive.

    Raises:
        ShapeError: a parameter of fewer than two axes.
        ArgumentError: a learning rate that is not positive.

    References: Jordan et al. 2024; Liu et al. 2025, "Muon is scalable for LLM training", section 2.2 (the factor).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float):
        params = [] if isinstance(params, Tensor) or not hasattr(params, "__iter__") else list(params)
        if not params or not all(isinstance(p, Tensor) and p.is_leaf for p in params):
            raise DTypeError("params", ", ".join(type(p).__name__ for p in params) or "none", "parameters")
        super().__init__(params, {"lr": positive("lr", lr)})
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim < 2:
                raise ShapeError("params", tuple(p.shape), "weights of two axes or more")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Do one update, or none if ``found_inf`` is a tensor other than 0."""
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
