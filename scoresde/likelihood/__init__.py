"""Exact likelihoods by the probability flow, bits per dimension, and variational bounds."""

from scoresde.data import TruncatedNormal, Uniform
from scoresde.likelihood.bits_per_dim import BitsPerDim, bits_per_dim
from scoresde.likelihood.bounds import VariationalBound, ddim_weight, discretised_gaussian, step_kl, variational_bound
from scoresde.likelihood.classification import Classification, classify
from scoresde.likelihood.divergence import Divergence, Exact, Hutchinson, HutchPP
from scoresde.likelihood.log_likelihood import Likelihood, log_likelihood

__all__ = [
    "BitsPerDim",
    "Classification",
    "Divergence",
    "Exact",
    "HutchPP",
    "Hutchinson",
    "Likelihood",
    "TruncatedNormal",
    "Uniform",
    "VariationalBound",
    "bits_per_dim",
    "classify",
    "ddim_weight",
    "discretised_gaussian",
    "log_likelihood",
    "step_kl",
    "variational_bound",
]
