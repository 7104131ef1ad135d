"""scoresde: score-based generative models in continuous time.

One forward process (VP, sub-VP, VE, and DDPM and NCSN as exact special cases), one model interface, and samplers,
likelihoods and training written once for all of them. The equations are in docs/equations.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scoresde.version import __version__

if TYPE_CHECKING:  # at run time a name is imported when it is first asked for, so that `scoresde --help` needs no torch
    from scoresde.data import Data, Scaling, load_data
    from scoresde.likelihood import BitsPerDim, Exact, Hutchinson, Likelihood, Uniform, bits_per_dim, log_likelihood
    from scoresde.models import Estimate, GaussianMixture, Model, Moments, ScoreModel, clipped, dynamic_threshold
    from scoresde.nets import ResidualMLP, UNet
    from scoresde.sampling import (
        DDIM,
        AdaptiveSDE,
        Ancestral,
        AnnealedLangevin,
        DPMSolver,
        EulerMaruyama,
        Heun,
        Langevin,
        PredictorCorrector,
        ProbabilityFlow,
        ReverseDiffusion,
        SingleStep,
        decode,
        encode,
        langevin_dynamics,
        sample,
        trajectory,
    )
    from scoresde.sde import DDPM, NCSN, SDE, VESDE, VPSDE, FlowSDE, SubVPSDE
    from scoresde.training import EMA, DenoisingScoreMatching, Record, Trainer, TrainerConfig

__all__ = [
    "DDIM",
    "DDPM",
    "EMA",
    "NCSN",
    "SDE",
    "VESDE",
    "VPSDE",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "BitsPerDim",
    "DPMSolver",
    "Data",
    "DenoisingScoreMatching",
    "Estimate",
    "EulerMaruyama",
    "Exact",
    "FlowSDE",
    "GaussianMixture",
    "Heun",
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
    "SingleStep",
    "SubVPSDE",
    "Trainer",
    "TrainerConfig",
    "UNet",
    "Uniform",
    "__version__",
    "bits_per_dim",
    "clipped",
    "decode",
    "dynamic_threshold",
    "encode",
    "langevin_dynamics",
    "load_data",
    "log_likelihood",
    "sample",
    "trajectory",
]

_ROOMS = ("sde", "nets", "data", "models", "sampling", "likelihood", "training")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"scoresde.{name}")
    if name in __all__:
        for room in _ROOMS:
            module = import_module(f"scoresde.{room}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'scoresde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
