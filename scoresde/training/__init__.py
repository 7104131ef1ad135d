"""Training: objectives, time sampling, moving averages, the trainer and its checkpoints."""

from scoresde.training.checkpoints import best_checkpoint, latest_checkpoint, load_average
from scoresde.training.classifier import NoiseAwareClassifier, fit_classifier
from scoresde.training.distributed import Ranks, over_ranks, process_group
from scoresde.training.ema import EMA
from scoresde.training.muon import Muon, hidden_weights
from scoresde.training.objectives import DenoisingScoreMatching, ExplicitScoreMatching, Objective, Terms
from scoresde.training.signals import on_signals
from scoresde.training.sliced import ImplicitScoreMatching, SlicedScoreMatching
from scoresde.training.tensorboard import TensorBoard
from scoresde.training.times import (
    FixedTime,
    Levels,
    LogNormal,
    LossAware,
    TimeSampling,
    UniformLogSNR,
    UniformTime,
)
from scoresde.training.trainer import Record, Skip, Trainer, TrainerConfig
from scoresde.training.variational import VLB, HybridVLB
from scoresde.training.weightings import EDM, MinSNR, Sigmoid, Theorem1, Weighting

__all__ = [
    "EDM",
    "EMA",
    "VLB",
    "DenoisingScoreMatching",
    "ExplicitScoreMatching",
    "FixedTime",
    "HybridVLB",
    "ImplicitScoreMatching",
    "Levels",
    "LogNormal",
    "LossAware",
    "MinSNR",
    "Muon",
    "NoiseAwareClassifier",
    "Objective",
    "Ranks",
    "Record",
    "Sigmoid",
    "Skip",
    "SlicedScoreMatching",
    "TensorBoard",
    "Terms",
    "Theorem1",
    "TimeSampling",
    "Trainer",
    "TrainerConfig",
    "UniformLogSNR",
    "UniformTime",
    "Weighting",
    "best_checkpoint",
    "fit_classifier",
    "hidden_weights",
    "latest_checkpoint",
    "load_average",
    "on_signals",
    "over_ranks",
    "process_group",
]
