"""A model at work: in evaluation mode, and without what its user does not need, for a while."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from scoresde.models.model import Model


class evaluation:
    """A context in which all parts of ``model`` are in evaluation mode. It can be entered again after it was left.

    On leaving, training mode, autograd and ``requires_grad`` are restored as they were on entering.

    Args:
        model: the model.
        autograd: if False, autograd is off inside, and inference mode too: rates of a user's process come from
            autograd, which inference mode forbids.
        parameters: if False, no parameter requires a gradient inside. A backward pass is then for x alone, and no
            layer keeps its input for its weights.
    """

    def __init__(self, model: Model, *, autograd: bool = True, parameters: bool = True):
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
