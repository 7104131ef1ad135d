"""Networks as score models, and models with exact scores."""

from scoresde.models.base import Model
from scoresde.models.estimate import Estimate
from scoresde.models.gaussian_mixture import GaussianMixture, GaussianMixtureModel
from scoresde.models.moments import Moments
from scoresde.models.predictions import PREDICTIONS, prediction_row
from scoresde.models.score_model import ScoreModel
from scoresde.models.thresholding import clipped, dynamic_threshold

__all__ = [
    "PREDICTIONS",
    "Estimate",
    "GaussianMixture",
    "GaussianMixtureModel",
    "Model",
    "Moments",
    "ScoreModel",
    "clipped",
    "dynamic_threshold",
    "prediction_row",
]
