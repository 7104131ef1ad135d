"""Presets: settings for kinds of data."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from scoresde.errors import UnknownNameError
from scoresde.nets.presets import PRESETS as NET_PRESETS
from scoresde.nets.presets import net_preset


class Preset(NamedTuple):
    """Settings for some sources of data, unless the user names a preset."""

    sources: tuple[str, ...]
    settings: dict[str, dict[str, Any]]


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        ("digits",),
        {
            "sde": {"sigma_min": 0.002, "sigma_max": 20.0},
            "train": {
                "steps": 1500,
                "batch_size": 64,
                "lr": 3e-3,
                "warmup": 100,
                "clip": 10.0,
                "ema_half_life": 0.04,
                "weighting": "likelihood",
                "time_sampling": "log-snr",
                "checkpoint_every": 250,
            },
            "likelihood": {"steps": 80, "batch": 120},
        },
    ),
    "toy2d": Preset(
        ("two-moons", "swiss-roll", "checkerboard", "rings", "gaussian-grid"),
        {
            "sde": {"sigma_min": 0.002, "sigma_max": 20.0},
            "net": {"name": "mlp", "options": {"width": 128, "blocks": 3}},
            "train": {
                "steps": 4000,
                "batch_size": 512,
                "lr": 2e-3,
                "warmup": 100,
                "weighting": "likelihood",
                "time_sampling": "log-snr",
                "checkpoint_every": 1000,
            },
            "sample": {"n": 2000, "batch": 2000},
            "likelihood": {"divergence": "exact", "batch": 2000},
        },
    ),
}


def preset_for(source: str) -> str | None:
    """Return the preset for a data source (``_`` equals ``-``), or None."""
    return next((name for name, preset in PRESETS.items() if source.replace("_", "-") in preset.sources), None)


def preset_settings(name: str | None) -> dict[str, dict[str, Any]]:
    """Return a copy of a preset's settings by section; none for ``"none"``.

    Args:
        name: A name in :data:`PRESETS`, or in ``scoresde.nets.PRESETS`` (a network and the run it was trained in).
            None: as ``"none"``.

    Raises:
        UnknownNameError: an unknown name.
    """
    if name in PRESETS:
        return copy.deepcopy(PRESETS[name].settings)
    if name in NET_PRESETS:
        net, run = net_preset(name).net, net_preset(name).run
        options = {key: value for key, value in net.items() if key not in ("name", "shape")}
        return {**run, "net": {"name": net["name"], "options": options}}
    if name not in (None, "none"):
        raise UnknownNameError("preset", name, (*PRESETS, *NET_PRESETS, "none"))
    return {}
