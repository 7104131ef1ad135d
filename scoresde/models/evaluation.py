"""A context in which a model is in evaluation mode."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from scoresde.models.model import Model, check_model


class evaluation:
    """A context in which all parts of a model are in evaluation mode.

    On leaving, training mode, autograd and ``requires_grad`` are restored as they were on entering. The context can be
    entered again after it was left.

    Args:
        model: The model.
        autograd: Whether autograd stays on inside, default True. With False, inference mode is off too: the rates of a
            user's process come from autograd, which inference mode forbids.
        parameters: Whether parameters may require gradients inside, default True. With False, a backward pass is for x
            alone, and no layer keeps its input for its weights.
    """

    def __init__(self, model: Model, *, autograd: bool = True, parameters: bool = True):
        check_model(model)
        self.modules, self.autograd = list(model.modules()), autograd
        self.parameters = [] if parameters else list(model.parameters())

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for module in self.modules:
                if module.training:
                    module.training = False
                    stack.callback(setattr, module, "training", True)
            for parameter in self.parameters:
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    stack.callback(parameter.requires_grad_, True)
            if not self.autograd:
                if torch.is_inference_mode_enabled():
                    stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            self.restore = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self.restore.close()
