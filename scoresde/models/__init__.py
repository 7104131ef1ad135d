"""Networks as score models, and models with exact scores."""

from scoresde.models.base import Model
from scoresde.models.estimate import Estimate, Unguided
from scoresde.models.gaussian_mixture import GaussianMixture, GaussianMixtureModel
from scoresde.models.guidance import classifier_free_guidance, classifier_guidance, conditioned
from scoresde.models.inverse import dps, gaussian_data, moment_matching, pigdm, replacement, with_likelihood
from scoresde.models.moments import Moments
from scoresde.models.operators import (
    Blur,
    Colorize,
    Downsample,
    Inpainting,
    LinearFunction,
    LinearOperator,
    Matrix,
    PartialFourier,
    Separable,
    gaussian_kernel,
    load_mask,
    radial_mask,
)
from scoresde.models.predictions import PREDICTIONS, prediction_row
from scoresde.models.score_model import ScoreModel
from scoresde.models.thresholding import clipped, dynamic_threshold
from scoresde.models.wrappers import autocast, chunked

__all__ = [
    "PREDICTIONS",
    "Blur",
    "Colorize",
    "Downsample",
    "Estimate",
    "GaussianMixture",
    "GaussianMixtureModel",
    "Inpainting",
    "LinearFunction",
    "LinearOperator",
    "Matrix",
    "Model",
    "Moments",
    "PartialFourier",
    "ScoreModel",
    "Separable",
    "Unguided",
    "autocast",
    "chunked",
    "classifier_free_guidance",
    "classifier_guidance",
    "clipped",
    "conditioned",
    "dps",
    "dynamic_threshold",
    "gaussian_data",
    "gaussian_kernel",
    "load_mask",
    "moment_matching",
    "pigdm",
    "prediction_row",
    "radial_mask",
    "replacement",
    "with_likelihood",
]
