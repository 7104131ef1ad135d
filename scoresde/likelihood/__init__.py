"""Exact likelihoods by the probability flow, and bits per dimension."""

from scoresde.likelihood.bits_per_dim import BitsPerDim, Uniform, bits_per_dim
from scoresde.likelihood.divergence import Divergence, Exact, Hutchinson
from scoresde.likelihood.log_likelihood import Likelihood, log_likelihood

__all__ = ["BitsPerDim", "Divergence", "Exact", "Hutchinson", "Likelihood", "Uniform", "bits_per_dim", "log_likelihood"]
