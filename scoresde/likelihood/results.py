"""What the functions of this room return."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.data import Dequantization


def mean_and_stderr(values: Tensor) -> tuple[float, float]:
    """Return the mean of values ``(N,)`` and its standard error.

    The latter is NaN for a single value.
    """
    return values.mean().item(), (values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def seed_of(generator: torch.Generator | None) -> int | None:
    """Return the seed that a generator started from; None without one."""
    return None if generator is None else generator.initial_seed()


def _summary(values: Tensor) -> str:
    mean, stderr = mean_and_stderr(values.detach().double())
    return f"{mean:.6g} +- {stderr:.2g}"


class Likelihood(NamedTuple):
    """Log-densities of a batch, and how they were computed.

    Attributes:
        log_prob: log p(x_0) in nats, ``(B,)``, float64 where the device has it.
        stderr: standard error of ``log_prob`` from the random probes, ``(B,)``. 0 for an exact trace; NaN for a single
            probe that was kept for the whole path.
        latent: x at t_max, ``(B, *D)``.
        nfe: network evaluations, the most of any sample for methods that adapt per sample.
        t_min, t_max: the times between which the network was evaluated.
        below: nats ``(B,)`` that the stretch from t_min to 0 adds to log p, where the flow is extrapolated. 0 for a
            path that begins at t_min.
        prior_gap: log-density of the matched prior at the latent less that of the SDE's own prior, in nats ``(B,)``.
            NaN if the model does not know the moments of its data.
        defect: correction of log p in nats ``(B,)`` for the residual of the path, already made: log p without it is
            ``log_prob - defect``. Only the method ``"multistep"`` has one, others have 0.
        method: the solver used; ``"multistep, dopri5"`` if some samples needed both.
        error: estimated size of the error of ``log_prob`` in nats ``(B,)``: of the path, of the stretch below the first
            level, and of the end of the process. Probes are not in it. NaN for adaptive methods that were chosen by
            the caller, whose tolerances bound it.
    """

    log_prob: Tensor
    stderr: Tensor
    latent: Tensor
    nfe: int
    t_min: float
    t_max: float
    below: Tensor
    prior_gap: Tensor
    defect: Tensor
    method: str
    error: Tensor

    def __repr__(self) -> str:
        return (
            f"Likelihood(log_prob {_summary(self.log_prob)} nats over {len(self.log_prob)} samples, "
            f"stderr <= {self.stderr.max().item():.2g}, error <= {self.error.max().item():.2g}, "
            f"{self.method}, {self.nfe} calls, t from {self.t_min:.3g} to {self.t_max:.3g})"
        )


@dataclass(frozen=True, repr=False)
class BitsPerDim:
    """Bits per dimension of images, with all that a report of them needs.

    Attributes:
        bits: bits/dim of each image ``(N,)``, the bound -log2 P(raw)/n of the dequantisation, a mean over its draws.
        stderr: standard error of ``bits`` from probes and draws, ``(N,)``; from probes alone for a single draw.
        stderr_probes, stderr_draws: its two parts. The second is NaN, not known, for a single draw.
        nats: bound of log P(raw) of each image, ``(N,)``.
        mean, mean_stderr: mean over the images, and its standard error. The latter is the spread over images and so
            includes the noise of probes and draws. NaN for one image.
        offset: bits/dim due to the scaling alone, -log2(scale); included in ``bits``.
        n, dims: images, and entries of each.
        nfe: network calls per image, all draws together.
        t_min: the time at which the flow begins.
        below, prior_gap: bits/dim ``(N,)`` that are included in ``bits``, as in :class:`Likelihood`.
        defect, error: bits/dim ``(N,)``, as in :class:`Likelihood`.
        method, accuracy: the solver, and its ``{"rtol", "atol"}`` or ``{"steps"}`` (None: its default).
        dequantization: its distribution and number of draws.
        seed: seed of the generator, None without one.
    """

    bits: Tensor
    stderr: Tensor
    stderr_probes: Tensor
    stderr_draws: Tensor
    nats: Tensor
    mean: float
    mean_stderr: float
    offset: float
    n: int
    dims: int
    nfe: int
    t_min: float
    below: Tensor
    prior_gap: Tensor
    defect: Tensor
    error: Tensor
    method: str
    accuracy: dict[str, float | int | None]
    dequantization: Dequantization
    seed: int | None

    #: the columns of :meth:`rows`
    COLUMNS = ("index", "nats", "bits_per_dim", "stderr")

    def rows(self) -> list[tuple[int, float, float, float]]:
        """Return a row of :attr:`COLUMNS` for each image, for a CSV file.

        The standard error is in bits/dim.
        """
        columns = (self.nats.tolist(), self.bits.tolist(), self.stderr.tolist())
        return list(zip(range(self.n), *columns, strict=True))

    @property
    def noise(self) -> float:
        """Standard error of the mean from probes and draws alone.

        It is that of the mean over these very images.
        """
        return float(self.stderr.square().sum().sqrt().item() / self.n)

    def __str__(self) -> str:
        accuracy = ", ".join(f"{name} = {value:g}" for name, value in self.accuracy.items() if value is not None)
        return (
            f"{self.mean:.4f} +- {self.mean_stderr:.4f} bits/dim (N = {self.n}, {self.dequantization}, {self.method}"
            f"{', ' if accuracy else ''}{accuracy}, {self.nfe} calls, t_min = {self.t_min:.3g}, seed {self.seed})"
        )

    def __repr__(self) -> str:
        return f"BitsPerDim({self})"


@dataclass(frozen=True, repr=False)
class VariationalBound:
    """An upper bound on -log p of each item in nats, term by term.

    The terms are unbiased estimates. With control variates, an estimate of a term near 0 may be negative.

    Attributes:
        bound: sum of the terms ``(N,)``: -log p(x_0) <= E[bound]; for integer data -log P(raw).
        stderr: standard error of ``bound`` from noise, levels and dequantisation, ``(N,)``. The terms have heavy tails:
            with 32 pairs of draws on mixtures, intervals of 95 % covered 88 to 94 %.
        prior: KL(q(x_T | x_0) || p(x_T)) ``(N,)``, in closed form.
        diffusion: the levels' terms ``(N, J)``. If all levels of a chain are used, these are L_{i-1} for i = 2..N;
            otherwise those of the J strata of log-SNR.
        reconstruction: E[-log p_theta(x_0 | x at the first level)] ``(N,)``, with the scaling's offset.
        log_snr: edges of the terms in ``diffusion``, ``(J + 1,)``.
        calls: network calls per item.
        dims: entries of an item.
        integers: True if the data are integers, and the unit is bits/dim.
        kind: ``"discrete"`` or ``"continuous"``.
        variance: of the chain's steps (P7), None in continuous time.
        decoder: ``"discretised"`` or ``"gaussian"``.
        t_min, t_max: times of the first and the last level.
        seed: seed of the generator, None without one.
    """

    bound: Tensor
    stderr: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    log_snr: Tensor
    calls: int
    dims: int
    integers: bool
    kind: str
    variance: str | None
    decoder: str
    t_min: float
    t_max: float
    seed: int | None

    @property
    def unit(self) -> str:
        """``"bits/dim"`` for integer data, ``"nats"`` for continuous data."""
        return "bits/dim" if self.integers else "nats"

    def in_unit(self, nats: Tensor) -> Tensor:
        """Convert nats per item to :attr:`unit`."""
        return nats / (self.dims * math.log(2)) if self.integers else nats

    @property
    def bits(self) -> Tensor:
        """The bound in bits/dim, ``(N,)``; may be negative for continuous data."""
        return self.bound / (self.dims * math.log(2))

    @property
    def mean(self) -> float:
        """Mean over the items, in :attr:`unit`."""
        return float(self.in_unit(self.bound).mean().item())

    @property
    def mean_stderr(self) -> float:
        """Standard error of :attr:`mean`, from the spread over items.

        It includes the noise of the terms. NaN for one item.
        """
        return mean_and_stderr(self.in_unit(self.bound))[1]

    def terms(self) -> dict[str, tuple[float, float]]:
        """Return the mean of each term and its standard error, by name.

        Both are over the items, in :attr:`unit`.
        """
        parts = {"prior": self.prior, "diffusion": self.diffusion.sum(1), "reconstruction": self.reconstruction}
        return {name: mean_and_stderr(self.in_unit(values)) for name, values in parts.items()}

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {mean:.4f}" for name, (mean, _) in self.terms().items())
        return (
            f"<= {self.mean:.4f} +- {self.mean_stderr:.4f} {self.unit} = {parts} "
            f"(N = {len(self.bound)}, {self.kind}, {self.calls} calls, t_min = {self.t_min:.3g})"
        )

    def __repr__(self) -> str:
        return f"VariationalBound({self})"


class Classification(NamedTuple):
    """Probabilities of K classes, and the likelihoods behind them.

    Attributes:
        log_posterior: log p(y = k | x_0), ``(B, K)``.
        log_likelihood: log p(x_0 | y = k) in nats, ``(B, K)``.
        stderr: standard error of each likelihood from its random probes, ``(B, K)``. All classes have the same probes,
            so the differences between them are more certain.
        classes: labels of the columns, ``(K,)``.
    """

    log_posterior: Tensor
    log_likelihood: Tensor
    stderr: Tensor
    classes: Tensor

    @property
    def label(self) -> Tensor:
        """The most probable class of each sample, ``(B,)``."""
        return self.classes[self.log_posterior.argmax(1)]

    def __repr__(self) -> str:
        labels, certainty = self.classes.tolist(), self.log_posterior.max(1).values.exp().mean().item()
        return (
            f"Classification({len(self.stderr)} samples, classes {labels}, mean p(label | x) = {certainty:.3f}, "
            f"stderr <= {self.stderr.max().item():.2g} nats)"
        )
