"""Classes of data, by Bayes' rule from conditional likelihoods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import ArgumentError, ShapeError
from scoresde.likelihood.divergence import Divergence
from scoresde.likelihood.probability_flow import log_likelihood
from scoresde.likelihood.results import Classification
from scoresde.models import Model
from scoresde.models.conditions import LABEL, check_labels
from scoresde.random import Generators, check_generators


@checked
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
    r"""Classify data by Bayes' rule, from the likelihood of each class (E9).

        log p(y | x_0) = log p(x_0 | y) + log p(y) - log sum_k p(x_0 | k) p(k)

    Each log p(x_0 | y) is that of :func:`log_likelihood` with ``cond={"y": y}`` and the SDE's own prior. All classes
    have the same random probes. The work is that of K likelihoods, the memory that of one.

    Args:
        model: Conditional model.
        x0: Data ``(B, *D)`` in the model's units, floating-point; integer data dequantised.
        classes: Number of classes K, or the labels to choose from. None: all that the network knows.
        prior: Weights p(y) of the classes, K positive numbers. None: equal weights.
        divergence, steps, chunk: As in :func:`log_likelihood`.
        generator: Source of the probes, or a list of B of them, one a sample. None: torch's default.

    Returns:
        The log-posterior of each class ``(B, K)``, with the likelihoods behind it.

    Raises:
        ArgumentError: fewer than two classes, a label twice or one that the network does not know, a weight that is not
            positive.
        ShapeError: another number of weights than classes.

    References: Song et al. 2021, section 4.3, for the likelihood; Li et al. 2023 classify by a bound instead.
    """
    if x0.ndim == 0:
        raise ShapeError("x0", (), "(B, *D)")
    labels = _labels(model, classes, x0.device)
    weights = torch.ones(len(labels)) if prior is None else torch.as_tensor(prior)
    weights = weights.detach().to("cpu", torch.float64)
    if weights.shape != (len(labels),):
        raise ShapeError("prior", tuple(weights.shape), f"({len(labels)},), one weight a class")
    if not bool((weights > 0).all() and weights.isfinite().all()):
        raise ArgumentError("prior", weights.tolist(), "positive numbers")
    # each class starts from the same states of the generators
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    check_generators(generator)
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    states = [g.get_state() for g in generators]
    found = []
    for label in labels:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
        result = log_likelihood(
            model,
            x0,
            divergence,
            generator=generator,
            steps=steps,
            cond={LABEL: label.expand(len(x0))},
            prior="sde",  # the matched one has the mean of all classes
            chunk=chunk,
        )
        found.append(result)
    log_p = torch.stack([result.log_prob for result in found], 1)
    joint = log_p + weights.log().to(log_p)
    return Classification(joint.log_softmax(1), log_p, torch.stack([result.stderr for result in found], 1), labels)


def _labels(model: Model, classes: int | Sequence[int] | None, device: torch.device) -> Tensor:
    """Return the labels to choose from, ``(K,)``."""
    known = model.classes
    wanted = known if classes is None else classes
    if wanted is not None and not isinstance(wanted, Iterable):
        wanted = range(whole("classes", wanted))
    if wanted is None or len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise ArgumentError("classes", classes, "a number of classes, or a list of two or more different labels")
    labels = torch.tensor([int(k) for k in wanted], device=device)
    if int(labels.min()) < 0:
        raise ArgumentError("classes", int(labels.min()), "labels of 0 or more")
    return check_labels(labels, len(labels), known, "classes")
