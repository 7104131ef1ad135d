"""A fixed condition: from a model of p(x_0 | c) to one of p(x_0 | c = 3)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, DTypeError
from scoresde.models.conditions import LABEL, Condition, check_labels
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model, Wrapper
from scoresde.sde import Level


def class_labels(cond: Condition, x: Tensor, classes: int | None = None) -> Tensor:
    """Return the class labels ``(B,)`` of a condition, checked.

    Raises:
        ArgumentError, DTypeError, ShapeError: The labels are missing, or not ``(B,)`` int64 below ``classes``.
    """
    if cond is None or LABEL not in cond:
        raise ArgumentError(f"cond[{LABEL!r}]", None, f"the class labels of the samples, ({len(x)},) int64")
    return check_labels(cond[LABEL], len(x), classes)


def without_labels(cond: Condition) -> Condition:
    """Return a condition without its class labels, None if nothing is left."""
    return {name: value for name, value in (cond or {}).items() if name != LABEL} or None


class _Conditioned(Wrapper):
    def __init__(self, model: Model, cond: Mapping[str, Tensor]):
        super().__init__(model)
        self.names = tuple(cond)
        for name, value in cond.items():
            self.register_buffer(f"cond_{name}", value)

    def knows_mean(self, cond: Condition = None) -> bool:
        return False

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        given = dict(cond or {})
        for name in self.names:
            if name in given:
                raise ArgumentError(f"cond[{name!r}]", "a second value", "left out, as the model has it fixed")
        fixed = {name: self.get_buffer(f"cond_{name}") for name in self.names}
        fixed = {name: value.expand(len(x), *value.shape) for name, value in fixed.items()}
        return self.model.estimate(x, level, {**given, **fixed})

    def extra_repr(self) -> str:
        return f"names={self.names}"


@checked
def conditioned(model: Model, cond: Mapping[str, int | float | Tensor]) -> Model:
    """Return the model with a condition fixed, the same for all samples.

    Args:
        model: A conditional model.
        cond: By name a number, or a tensor WITHOUT the batch axis, ``(*E)``; ``{"y": 3}`` gives p(x_0 | y = 3). Values
            that differ between samples go with the call instead, ``sample(model, shape, cond={"y": labels})``.

    Raises:
        DTypeError: A value is neither a number nor a tensor.
        ArgumentError: ``cond`` is empty, or the network does not have the class ``y``. When called: a ``cond`` has one
            of the fixed names.
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
