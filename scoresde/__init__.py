"""scoresde: score-based generative models in continuous time.

One forward process (VP, sub-VP, VE, and DDPM and NCSN as exact special cases), one model interface, and samplers,
likelihoods and training written once for all of them. The equations are in docs/equations.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scoresde.version import __version__

if TYPE_CHECKING:  # at run time a name is imported when it is first asked for, so that `scoresde --help` needs no torch
    from scoresde.data import Data, Scaling, TruncatedNormal, Uniform, load_data
    from scoresde.likelihood import (
        BitsPerDim,
        Classification,
        Exact,
        Hutchinson,
        HutchPP,
        Likelihood,
        VariationalBound,
        bits_per_dim,
        classify,
        log_likelihood,
        variational_bound,
    )
    from scoresde.models import (
        Blur,
        Colorize,
        Downsample,
        Estimate,
        GaussianMixture,
        Inpainting,
        LinearFunction,
        LinearOperator,
        Matrix,
        Model,
        Moments,
        PartialFourier,
        ScoreModel,
        classifier_free_guidance,
        classifier_guidance,
        clipped,
        conditioned,
        dps,
        dynamic_threshold,
        gaussian_data,
        gaussian_kernel,
        load_mask,
        moment_matching,
        pigdm,
        radial_mask,
        replacement,
        with_likelihood,
    )
    from scoresde.nets import DiT, ResidualMLP, UNet
    from scoresde.sampling import (
        DDIM,
        AdaptiveSDE,
        Ancestral,
        AnnealedLangevin,
        DPMSolver,
        EulerMaruyama,
        Heun,
        Langevin,
        Particles,
        PredictorCorrector,
        ProbabilityFlow,
        Resampling,
        ReverseDiffusion,
        SingleStep,
        decode,
        encode,
        interpolate,
        langevin_dynamics,
        sample,
        temper,
        trajectory,
    )
    from scoresde.sde import DDPM, NCSN, SDE, VESDE, VPSDE, FlowSDE, SubVPSDE
    from scoresde.training import (
        EMA,
        VLB,
        DenoisingScoreMatching,
        ExplicitScoreMatching,
        HybridVLB,
        ImplicitScoreMatching,
        NoiseAwareClassifier,
        Record,
        SlicedScoreMatching,
        Trainer,
        TrainerConfig,
        fit_classifier,
    )

__all__ = [
    "DDIM",
    "DDPM",
    "EMA",
    "NCSN",
    "SDE",
    "VESDE",
    "VLB",
    "VPSDE",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "BitsPerDim",
    "Blur",
    "Classification",
    "Colorize",
    "DPMSolver",
    "Data",
    "DenoisingScoreMatching",
    "DiT",
    "Downsample",
    "Estimate",
    "EulerMaruyama",
    "Exact",
    "ExplicitScoreMatching",
    "FlowSDE",
    "GaussianMixture",
    "Heun",
    "HutchPP",
    "Hutchinson",
    "HybridVLB",
    "ImplicitScoreMatching",
    "Inpainting",
    "Langevin",
    "Likelihood",
    "LinearFunction",
    "LinearOperator",
    "Matrix",
    "Model",
    "Moments",
    "NoiseAwareClassifier",
    "PartialFourier",
    "Particles",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Record",
    "Resampling",
    "ResidualMLP",
    "ReverseDiffusion",
    "Scaling",
    "ScoreModel",
    "SingleStep",
    "SlicedScoreMatching",
    "SubVPSDE",
    "Trainer",
    "TrainerConfig",
    "TruncatedNormal",
    "UNet",
    "Uniform",
    "VariationalBound",
    "__version__",
    "bits_per_dim",
    "classifier_free_guidance",
    "classifier_guidance",
    "classify",
    "clipped",
    "conditioned",
    "decode",
    "dps",
    "dynamic_threshold",
    "encode",
    "fit_classifier",
    "gaussian_data",
    "gaussian_kernel",
    "interpolate",
    "langevin_dynamics",
    "load_data",
    "load_mask",
    "log_likelihood",
    "moment_matching",
    "pigdm",
    "radial_mask",
    "replacement",
    "sample",
    "temper",
    "trajectory",
    "variational_bound",
    "with_likelihood",
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
