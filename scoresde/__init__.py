"""scoresde: score-based generative models in continuous time.

One forward process (VP, sub-VP, VE, and DDPM and NCSN as exact special cases), one model interface, and samplers,
likelihoods and training written once for all of them. The equations are in docs/equations.md.
"""

from scoresde.data import Data, Scaling, load_data
from scoresde.likelihood import BitsPerDim, Exact, Hutchinson, Likelihood, Uniform, bits_per_dim, log_likelihood
from scoresde.models import Estimate, GaussianMixture, Model, Moments, ScoreModel
from scoresde.nets import ResidualMLP, UNet
from scoresde.sampling import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    sample,
    trajectory,
)
from scoresde.sde import DDPM, NCSN, SDE, VESDE, VPSDE, FlowSDE, SubVPSDE
from scoresde.training import EMA, DenoisingScoreMatching, Record, Trainer, TrainerConfig
from scoresde.version import __version__

__all__ = [
    "DDIM",
    "DDPM",
    "EMA",
    "NCSN",
    "SDE",
    "VESDE",
    "VPSDE",
    "Ancestral",
    "BitsPerDim",
    "Data",
    "DenoisingScoreMatching",
    "Estimate",
    "EulerMaruyama",
    "Exact",
    "FlowSDE",
    "GaussianMixture",
    "Hutchinson",
    "Langevin",
    "Likelihood",
    "Model",
    "Moments",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Record",
    "ResidualMLP",
    "ReverseDiffusion",
    "Scaling",
    "ScoreModel",
    "SubVPSDE",
    "Trainer",
    "TrainerConfig",
    "UNet",
    "Uniform",
    "__version__",
    "bits_per_dim",
    "load_data",
    "log_likelihood",
    "sample",
    "trajectory",
]
