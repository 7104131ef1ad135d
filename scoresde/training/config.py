"""Settings of the trainer, and the names that objectives accept.

This module does not import torch. Checks, docstrings, the ``train`` section of a YAML file and the help of the command
line are read off the fields here. A new setting is a new field and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scoresde.errors import ArgumentError
from scoresde.settings import Setting, Settings, explained, setting

Optimizer = Literal["adam", "adamw", "muon"]
LRDecay = Literal["none", "cosine", "linear", "inverse-sqrt"]
Precision = Literal["float32", "bfloat16", "float16", "auto"]
OnNaN = Literal["stop", "skip"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
WeightingName = Literal["simple", "likelihood", "sigmoid", "min-snr", "edm", "theorem-1"]
TimeSamplingName = Literal["uniform", "low-discrepancy", "log-snr", "log-normal", "levels", "loss-aware"]

AVERAGE = "ema"  # the name of a single average


def check_half_lives(half_life: float | Mapping[str, float], name: str = "half_life") -> dict[str, float]:
    """Return half-lives by name; a number is that of an average ``"ema"``.

    Raises:
        ArgumentError: an empty mapping, a name that is no word, or a half-life that is not a positive number.
    """
    one = Setting(name, float | Mapping[str, float], None, "", {">": 0})
    checked = one.check(half_life)
    lives: dict[str, float] = checked if isinstance(checked, dict) else {AVERAGE: checked}
    if not lives:
        raise ArgumentError(name, half_life, "at least one half-life")
    for key in lives:
        if not key.replace("-", "_").isidentifier():
            raise ArgumentError(name, repr(key), "a mapping with names of letters, digits, - and _, such as 'slow'")
    return lives


@explained
@dataclass(frozen=True)
class TrainerConfig(Settings):
    """Settings of a :class:`Trainer`."""

    steps: int = setting(20_000, "optimiser steps in all", ge=1)
    minutes: float | None = setting(
        None, "minutes to train for, instead of steps; saving, measuring and hooks do not count", gt=0
    )
    batch_size: int = setting(128, "items per step, over all devices and accumulated pieces together", ge=1)
    optimizer: Optimizer = setting(
        "adam", "adamw: with weight_decay; muon: orthogonal steps on the hidden layers' weights, Adam's on all others"
    )
    weight_decay: float = setting(
        0.01, "adamw: share lr x weight_decay of each weight that a step takes away; the others have none", ge=0
    )
    lr: float = setting(5e-4, "learning rate after the warm-up", gt=0)
    warmup: int = setting(500, "steps over which the learning rate rises linearly from 0", ge=0)
    lr_decay: LRDecay = setting(
        "cosine",
        "how the learning rate falls to 0 after the warm-up; none keeps it constant, inverse-sqrt ends above 0",
    )
    decay_after: int = setting(10_000, "inverse-sqrt: steps after which the rate falls as 1/sqrt(step)", ge=1)
    betas: tuple[float, float] = setting(
        (0.9, 0.99), "decay rates of Adam's gradients and squared gradients", ge=0, lt=1
    )
    clip: float | None = setting(1.0, "largest norm of the gradient; None: no clipping", gt=0)
    accumulate: int = setting(1, "pieces in which a batch passes through the network, to save memory", ge=1)
    ema_half_life: float | Mapping[str, float] = setting(
        0.05,
        "half-life of the averaged weights in steps, or below 1 as a fraction of all steps; several by name, the first "
        "is the default",
        gt=0,
    )
    precision: Precision = setting(
        "float32",
        "precision of the network's matrix products and convolutions; float16 scales the loss; auto: bfloat16 if it is "
        "measured to be faster on this device",
    )
    compile: bool | str = setting(False, "run the network through torch.compile; a text names the backend")
    channels_last: bool = setting(False, "store images channels last, faster on CUDA devices with tensor cores")
    on_nan: OnNaN = setting(
        "stop", "what to do if the loss is NaN or infinite: stop, or skip up to 100 such steps in a row"
    )
    conditional: bool = setting(False, "condition the network on the class labels")
    label_dropout: float = setting(
        0.0, "probability of hiding a label in training, for classifier-free guidance (conditional)", ge=0, le=1
    )
    conditions: Mapping[str, float] | None = setting(
        None,
        "further entries of the items (mappings) that reach the network by name, each with the probability of hiding"
        " it behind zeros; None: none",
    )
    augment: float = setting(
        0.0,
        "probability of each of EDM's changes of images (mirrors, scale, rotation, stretch, shift), for a "
        "network with the option augmented",
        ge=0,
        le=1,
    )
    flip: bool = setting(False, "mirror half of the images at random, left to right")
    workers: int = setting(0, "processes that read ahead data which are not in memory", ge=0)
    log_every: int = setting(20, "steps between records", ge=1)
    checkpoint_every: int = setting(1_000, "steps between checkpoints", ge=1)
    patience: int | None = setting(
        None, "stop after this many checkpoints without a better held-out loss; None: train to the end", ge=1
    )
    snapshot_every: int | None = setting(
        None,
        "steps between snapshots of two averages, from which post_hoc_average makes one of any length; None: none",
        ge=1,
    )
    keep: int = setting(2, "checkpoints to keep, besides the best on held-out data", ge=1)
    seed: int = setting(0, "seed of batches, times and noise, and of the weights of a new run", ge=0)
    device: DeviceName = setting("auto", "device to compute on; auto: CUDA if available, else MPS, else the CPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_half_lives(self.ema_half_life, "ema_half_life")
        if self.accumulate > self.batch_size:
            raise ArgumentError("accumulate", self.accumulate, f"at most batch_size = {self.batch_size}")
        if self.label_dropout and not self.conditional:
            raise ArgumentError("label_dropout", self.label_dropout, "0 unless `conditional` is true")
        for name, hidden in (self.conditions or {}).items():
            if not isinstance(hidden, (int, float)) or not 0 <= hidden <= 1:
                raise ArgumentError(f"conditions[{name!r}]", repr(hidden), "a probability in [0, 1]")

    def learning_rate(self, step: int, elapsed: float | None = None) -> float:
        """Return the learning rate of a step, counted from 0.

        It rises linearly during the warm-up, and is then constant or falls. The inverse square root is that of EDM2,
        lr / sqrt(max(step / decay_after, 1)) (Karras et al. 2024, eq. 67).

        Args:
            step: number of the step.
            elapsed: share of ``minutes`` that has passed. None: the rate falls with the steps after the warm-up.
        """
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup))
        past = max(0, step - self.warmup) / max(1, self.steps - self.warmup) if elapsed is None else elapsed
        past = min(1.0, past)
        if self.lr_decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * past))
        elif self.lr_decay == "linear":
            rate *= 1 - past
        elif self.lr_decay == "inverse-sqrt":
            rate /= math.sqrt(max(1.0, (step + 1) / self.decay_after))
        return rate

    def half_lives(self, steps: int) -> dict[str, float]:
        """Return the half-lives by name, in steps, for a run of ``steps`` steps."""
        lives = check_half_lives(self.ema_half_life)
        return {name: life if life >= 1 else max(1.0, life * steps) for name, life in lives.items()}


@explained
@dataclass(frozen=True)
class ClassifierConfig(Settings):
    """Settings of :func:`fit_classifier`."""

    steps: int = setting(2000, "training steps", ge=1)
    batch_size: int = setting(128, "items per step", ge=1)
    lr: float = setting(1e-3, "learning rate at the start; it falls to 0 along a cosine", gt=0)
