"""Classes of data, by Bayes from the likelihoods of a conditional model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import ArgumentError, ShapeError
from scoresde.likelihood.divergence import Divergence, Generators
from scoresde.likelihood.probability_flow import log_likelihood
from scoresde.models import Model
from scoresde.models.conditions import LABEL, check_labels


class Classification(NamedTuple):
    """What :func:`classify` finds, for K classes.

    Attributes:
        log_posterior: log p(y = k | x_0), ``(B, K)``.
        log_likelihood: log p(x_0 | y = k) in nats, ``(B, K)``.
        stderr: the standard error of each likelihood from its random probes, ``(B, K)``. The probes are the same for
            all classes, so that differences between them are the more certain.
        classes: the labels that the columns stand for, ``(K,)``.
    """

    log_posterior: Tensor
    log_likelihood: Tensor
    stderr: Tensor
    classes: Tensor

    @property
    def label(self) -> Tensor:
        """The most probable class of each sample, ``(B,)``."""
        return self.classes[self.log_posterior.argmax(1)]


def _labels(model: Model, classes: int | Sequence[int] | None, device) -> Tensor:
    known = model.classes
    classes = known if classes is None else classes
    if isinstance(classes, int) and not isinstance(classes, bool):
        classes = range(classes)
    if classes is None or isinstance(classes, bool) or len(classes) < 2 or len(set(classes)) < len(classes):
        raise ArgumentError("classes", classes, "how many there are, or a list of two or more different labels")
    labels = torch.tensor([int(k) for k in classes], device=device)
    if int(labels.min()) < 0:
        raise ArgumentError("classes", int(labels.min()), "labels of 0 or more")
    return check_labels(labels, len(labels), known, "classes")


def classify(
    model: Model,
    x0: Tensor,
    classes: int | Sequence[int] | None = None,
    prior: Tensor | Sequence[float] | None = None,
    *,
    divergence: Divergence | None = None,
    steps: int | None = None,
    generator: Generators = None,
    chunk: int | None = None,
) -> Classification:
    r"""The classes of data by Bayes, log p(y | x_0) = log p(x_0 | y) + log p(y) - log sum_k p(x_0 | k) p(k).

    Each log p(x_0 | y) is that of :func:`log_likelihood` (E9) with ``cond={"y": y}`` and the SDE's own prior, from the
    same random probes for every class: K likelihoods' work, in the memory of one.

    Args:
        model: a conditional model.
        x0: data ``(B, *D)`` in the model's units, floating-point; integer data dequantised.
        classes: their number K, or the labels to choose among; None for all that the network knows.
        prior: weights p(y) of the classes, K positive numbers; equal by default.
        divergence, steps, chunk: as in :func:`log_likelihood`.
        generator: a torch.Generator for the probes, or a list of B of them, one a sample.

    Raises:
        ArgumentError: fewer than two classes, a label twice or one the network does not have, weights that are not
            positive. ShapeError: another number of weights. What :func:`log_likelihood` raises.

    Source: Song et al. 2021, section 4.3 (the likelihood); Li et al. 2023 (classification by a bound in its place).
    """
    labels = _labels(model, classes, x0.device)
    weights = torch.ones(len(labels)) if prior is None else torch.as_tensor(prior)
    weights = weights.detach().to("cpu", torch.float64)
    if weights.shape != (len(labels),):
        raise ShapeError("prior", tuple(weights.shape), f"({len(labels)},), one weight a class")
    if not bool((weights > 0).all() and weights.isfinite().all()):
        raise ArgumentError("prior", weights.tolist(), "positive numbers")
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    states = [g.get_state() for g in generators]
    found = []
    for label in labels:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
        given = {"cond": {LABEL: label.expand(len(x0))}, "prior": "sde"}  # the matched one has the mean of all classes
        found.append(log_likelihood(model, x0, divergence, generator=generator, steps=steps, chunk=chunk, **given))
    log_p = torch.stack([result.log_prob for result in found], 1)
    joint = log_p + weights.log().to(log_p)
    return Classification(joint.log_softmax(1), log_p, torch.stack([result.stderr for result in found], 1), labels)
