"""Training: objectives, time sampling, moving averages, the trainer and its checkpoints."""

from scoresde.training.ema import EMA
from scoresde.training.objectives import DenoisingScoreMatching, Objective
from scoresde.training.times import TimeSampling, UniformLogSNR, UniformTime
from scoresde.training.trainer import Record, Trainer, TrainerConfig

__all__ = [
    "EMA",
    "DenoisingScoreMatching",
    "Objective",
    "Record",
    "TimeSampling",
    "Trainer",
    "TrainerConfig",
    "UniformLogSNR",
    "UniformTime",
]
