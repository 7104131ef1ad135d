"""Samplers: the reverse SDE by predictor and corrector, and the probability flow."""

from scoresde.sampling.grids import time_grid, time_range
from scoresde.sampling.multistep import DPMSolver
from scoresde.sampling.samplers import DDIM, PredictorCorrector, ProbabilityFlow, Sampler, State, sample, trajectory
from scoresde.sampling.steps import Ancestral, Corrector, EulerMaruyama, Implicit, Langevin, Predictor, ReverseDiffusion

__all__ = [
    "DDIM",
    "Ancestral",
    "Corrector",
    "DPMSolver",
    "EulerMaruyama",
    "Implicit",
    "Langevin",
    "Predictor",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Sampler",
    "State",
    "sample",
    "time_grid",
    "time_range",
    "trajectory",
]
