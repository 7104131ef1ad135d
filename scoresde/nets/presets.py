"""Networks for known data, with the training settings of the papers."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

from scoresde.argument_types import checked
from scoresde.errors import UnknownNameError


class NetPreset(NamedTuple):
    """A network for one kind of data.

    Args:
        data: Name of the data.
        net: Configuration for :func:`~scoresde.nets.build_net`.
        run: Settings of its training by section (sde, model, train), from a paper or from our experiments; empty where
            there are neither. ``train.ema_half_life`` is in steps: a decay of 0.9999 a step halves in
            ln 2 / -ln 0.9999 = 6931 steps.
        source: Where the settings come from.
    """

    data: str
    net: dict[str, Any]
    run: dict[str, dict[str, Any]]
    source: str


_EMA_9999 = math.log(2) / -math.log(0.9999)
_ADAM: dict[str, Any] = {
    "lr": 2e-4,
    "betas": (0.9, 0.999),
    "batch_size": 128,
    "ema_half_life": _EMA_9999,
    "lr_decay": "none",
    "flip": True,
}
_CIFAR10: dict[str, Any] = {
    "name": "unet",
    "shape": [3, 32, 32],
    "channels": 128,
    "multipliers": [1, 2, 2, 2],
    "attention": [1],  # at 16 x 16
    "heads": 1,
    "dropout": 0.1,
    "scale_shift": False,
    "num_groups": 32,
    "init": "xavier",
    "fused_attention": True,
}
_DDPM_RUN: dict[str, dict[str, Any]] = {
    "sde": {"name": "ddpm", "levels": 1000, "beta_min": 1e-4, "beta_max": 0.02},
    "model": {"predicts": "noise", "time_input": "ddpm"},
    "train": {**_ADAM, "steps": 800_000, "warmup": 5000, "clip": 1.0, "weighting": "simple", "time_sampling": "levels"},
}
_VP_RUN: dict[str, dict[str, Any]] = {
    "sde": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
    "model": {"predicts": "noise", "time_input": "score_sde_vp"},
    "train": {
        **_ADAM,
        "steps": 1_300_000,
        "warmup": 5000,
        "clip": 1.0,
        "weighting": "simple",
        "time_sampling": "uniform",
    },
}
_DIT_RUN: dict[str, dict[str, Any]] = {
    **_DDPM_RUN,
    "train": {**_DDPM_RUN["train"], "lr": 1e-4, "batch_size": 256, "steps": 400_000, "warmup": 0, "clip": None},
}
_FASHION_RUN: dict[str, dict[str, Any]] = {  # found by the experiments of docs/experiments.md
    "model": {"predicts": "velocity"},
    "train": {
        "batch_size": 32,
        "optimizer": "muon",
        "lr": 5e-3,
        "warmup": 200,
        "clip": 10.0,
        "precision": "auto",
        "weighting": "sigmoid",
        "sigmoid_gain": 3.0,
        "time_sampling": "log-snr",
    },
}
_DDPMPP = {**_CIFAR10, "layout": "ddpm++", "resample": "block", "skip_rescale": True}
_DIT = {"name": "dit", "patch": 2}

#: every preset by name, ``DATA-NETWORK``
PRESETS: dict[str, NetPreset] = {
    "digits-unet": NetPreset("digits", {"name": "unet", "shape": [1, 8, 8]}, {}, ""),
    "digits-dit": NetPreset("digits", {**_DIT, "shape": [1, 8, 8], "width": 64, "blocks": 5}, {}, ""),
    "fashion-unet": NetPreset(
        "fashion",
        {
            "name": "unet",
            "shape": [1, 28, 28],
            "channels": 64,
            "multipliers": [1, 2, 2],
            "blocks": 2,
            "dropout": 0.1,
        },
        {},
        "",
    ),
    "fashion-unet-small": NetPreset(
        "fashion",
        {"name": "unet", "shape": [1, 28, 28], "channels": 32, "multipliers": [1, 2, 2], "blocks": 1},
        _FASHION_RUN,
        "docs/experiments.md: half an hour on two CPU cores",
    ),
    "fashion-dit": NetPreset(
        "fashion", {**_DIT, "shape": [1, 28, 28], "width": 192, "blocks": 7, "heads": 6, "dropout": 0.1}, {}, ""
    ),
    "cifar10-ddpm": NetPreset(
        "cifar10", {**_CIFAR10, "blocks": 2, "layout": "ddpm"}, _DDPM_RUN, "Ho, Jain, Abbeel 2020, appendix B"
    ),
    "cifar10-ddpm++": NetPreset(
        "cifar10", {**_DDPMPP, "blocks": 4}, _VP_RUN, "Song et al. 2021, appendix H (DDPM++ cont.)"
    ),
    "cifar10-ddpm++-deep": NetPreset(
        "cifar10", {**_DDPMPP, "blocks": 8}, _VP_RUN, "Song et al. 2021, appendix H (DDPM++ cont. deep)"
    ),
    "cifar10-dit": NetPreset(
        "cifar10",
        {**_DIT, "shape": [3, 32, 32], "width": 384, "blocks": 12, "heads": 6, "fused_attention": True},
        _DIT_RUN,
        "Peebles, Xie 2023, section 4 (DiT-S/2 and its training, here on pixels)",
    ),
}


@checked
def net_preset(name: str) -> NetPreset:
    """Return a copy of the preset called ``name``. ::

        net = build_net(net_preset("cifar10-ddpm").net)

    Args:
        name: A name in :data:`PRESETS`.

    Raises:
        UnknownNameError: Another name. The message suggests the nearest.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return copy.deepcopy(PRESETS[name])
