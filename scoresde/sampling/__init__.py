"""Samplers: the reverse SDE by predictor and corrector, and the probability flow."""

from scoresde.sampling.adaptive import AdaptiveSDE
from scoresde.sampling.grids import time_grid, time_range
from scoresde.sampling.langevin import langevin_dynamics
from scoresde.sampling.latents import interpolate, temper
from scoresde.sampling.multistep import DPMSolver
from scoresde.sampling.particles import Particles
from scoresde.sampling.resampling import Resampling
from scoresde.sampling.run import decode, encode, sample, trajectory
from scoresde.sampling.samplers import DDIM, PredictorCorrector, ProbabilityFlow, Sampler, State
from scoresde.sampling.singlestep import Heun, SingleStep
from scoresde.sampling.steps import (
    Ancestral,
    AnnealedLangevin,
    Corrector,
    EulerMaruyama,
    Implicit,
    Langevin,
    Predictor,
    ReverseDiffusion,
)

__all__ = [
    "DDIM",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DPMSolver",
    "EulerMaruyama",
    "Heun",
    "Implicit",
    "Langevin",
    "Particles",
    "Predictor",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Resampling",
    "ReverseDiffusion",
    "Sampler",
    "SingleStep",
    "State",
    "decode",
    "encode",
    "interpolate",
    "langevin_dynamics",
    "sample",
    "temper",
    "time_grid",
    "time_range",
    "trajectory",
]
