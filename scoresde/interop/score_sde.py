"""Checkpoints of score_sde_pytorch: NCSN++, DDPM++ and DDPM.

Their networks are our :class:`~scoresde.nets.NCSNpp`. They predict the noise under VP and sub-VP SDEs, and the score
under a VE SDE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, CheckpointError, DTypeError, UnknownNameError
from scoresde.interop.checkpoints import choice, entry, load_in_order, read_torch, tensors_of
from scoresde.models import ScoreModel
from scoresde.nets import NCSNpp
from scoresde.sde import DDPM, NCSN, SDE, VESDE, VPSDE, SubVPSDE

_COMMON = {"conditional": True, "resamp_with_conv": True, "fir_kernel": [1, 3, 3, 1], "skip_rescale": True}
_COMMON |= {"resblock_type": "biggan", "progressive": "none", "progressive_input": "none", "nonlinearity": "swish"}
_COMMON |= {"progressive_combine": "sum", "init_scale": 0.0, "fourier_scale": 16, "num_scales": 1000, "nf": 128}
_COMMON |= {"beta_min": 0.1, "beta_max": 20.0, "sigma_min": 0.01, "sigma_max": 50.0, "dropout": 0.1}
_CIFAR = {**_COMMON, "ch_mult": [1, 2, 2, 2], "attn_resolutions": [16], "num_res_blocks": 4}
_NCSNPP = {"name": "ncsnpp", "fir": True, "scale_by_sigma": True, "embedding_type": "fourier"}
_NCSNPP |= {"progressive_input": "residual"}
_DDPMPP = {"name": "ncsnpp", "fir": False, "scale_by_sigma": False, "embedding_type": "positional"}
_DDPM = {"name": "ddpm", "fir": False, "scale_by_sigma": False, "embedding_type": "positional", "num_res_blocks": 2}
_LARGE = {**_COMMON, **_NCSNPP, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16]}
_LARGE |= {"progressive": "output_skip", "progressive_input": "input_skip", "dropout": 0.0}
_32, _256 = {"image_size": 32, "num_channels": 3}, {"image_size": 256, "num_channels": 3}

#: the published networks: their settings by name
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10-ncsnpp": {"model": {**_CIFAR, **_NCSNPP}, "data": {**_32, "centered": False}},
    "cifar10-ncsnpp-deep": {
        "model": {**_CIFAR, **_NCSNPP, "num_res_blocks": 8},
        "data": {**_32, "centered": False},
    },
    "cifar10-ddpmpp": {"model": {**_CIFAR, **_DDPMPP}, "data": {**_32, "centered": True}},
    "cifar10-ddpmpp-deep": {
        "model": {**_CIFAR, **_DDPMPP, "num_res_blocks": 8},
        "data": {**_32, "centered": True},
    },
    "cifar10-ddpm": {"model": {**_CIFAR, **_DDPM}, "data": {**_32, "centered": True}},
    "celebahq256-ncsnpp": {"model": {**_LARGE, "sigma_max": 348.0}, "data": {**_256, "centered": False}},
    "ffhq256-ncsnpp": {"model": {**_LARGE, "sigma_max": 348.0}, "data": {**_256, "centered": False}},
    "church256-ncsnpp": {"model": {**_LARGE, "sigma_max": 380.0}, "data": {**_256, "centered": False}},
    "bedroom256-ncsnpp": {"model": {**_LARGE, "sigma_max": 378.0}, "data": {**_256, "centered": False}},
}
#: their processes, and what their networks predict and take for the time
_PROCESSES: dict[str, Callable[[Any, Any, bool], SDE]] = {
    "vp": lambda low, high, continuous: VPSDE(low, high) if continuous else DDPM.linear(1000, low / 1000, high / 1000),
    "subvp": lambda low, high, continuous: SubVPSDE(low, high),
    "ve": lambda low, high, continuous: VESDE(low, high) if continuous else NCSN.geometric(low, high, 1000),
}


def _network(config: Mapping[str, Any]) -> NCSNpp:
    """Return the network of their settings, with random weights."""
    # 1. what is the same for all of theirs
    name = choice("config.model.name", entry(config, "model", "name"), ("ncsnpp", "ddpm"))
    normalization = entry(config, "model", "normalization", "GroupNorm")
    if normalization != "GroupNorm":
        raise ArgumentError("config.model.normalization", repr(normalization), "'GroupNorm'")
    if not entry(config, "model", "resamp_with_conv", True):
        raise ArgumentError("config.model.resamp_with_conv", False, "True")
    multipliers = entry(config, "model", "ch_mult")
    size, seen = entry(config, "data", "image_size"), set(entry(config, "model", "attn_resolutions"))
    shape = (entry(config, "data", "num_channels"), size, size)
    settings: dict[str, Any] = {
        "channels": entry(config, "model", "nf"),
        "multipliers": tuple(multipliers),
        "blocks": entry(config, "model", "num_res_blocks"),
        "attention": [k for k in range(len(multipliers)) if size // 2**k in seen],
        "dropout": entry(config, "model", "dropout", 0.0),
        "conditional": entry(config, "model", "conditional", True),
        "centered": entry(config, "data", "centered"),
        "activation": entry(config, "model", "nonlinearity", "swish"),
    }
    # 2. what differs between their two classes
    scaled = entry(config, "model", "scale_by_sigma", False)
    if name == "ddpm":
        settings |= {"block": "ddpm", "fir": None, "skip_rescale": False, "progressive_input": "none"}
        settings |= {"embedding": "positional", "num_groups": 32}
    else:
        fir = entry(config, "model", "fir", False)
        settings |= {
            "block": entry(config, "model", "resblock_type", "biggan"),
            "fir": tuple(entry(config, "model", "fir_kernel", (1, 3, 3, 1))) if fir else None,
            "skip_rescale": entry(config, "model", "skip_rescale", True),
            "progressive": entry(config, "model", "progressive", "none").lower(),
            "progressive_input": entry(config, "model", "progressive_input", "none").lower(),
            "combine": entry(config, "model", "progressive_combine", "sum").lower(),
            "embedding": entry(config, "model", "embedding_type").lower(),
            "fourier_scale": entry(config, "model", "fourier_scale", 16),
            "init_scale": entry(config, "model", "init_scale", 0.0),
        }
    if scaled and settings["embedding"] == "positional":
        settings["sigmas"] = [float(entry(config, "model", key)) for key in ("sigma_min", "sigma_max", "num_scales")]
    return NCSNpp(shape, scale_by_sigma=scaled, **settings)


def _parameters(content: object, weights: str, path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the trained parameters in their order, and all tensors."""
    if not isinstance(content, Mapping) or not {"model", "ema"} <= set(content):
        found = ", ".join(map(repr, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError("path", f"{path}, which holds {found}", "a checkpoint with the entries 'model' and 'ema'")
    tensors = tensors_of(content["model"], path)
    fixed = {"sigmas", "all_modules.0.W"}  # their levels and Fourier frequencies
    trained = {name: value for name, value in tensors.items() if name not in fixed}
    if weights == "model":
        return trained, tensors
    averages = content["ema"].get("shadow_params") if isinstance(content["ema"], Mapping) else None
    if not isinstance(averages, list) or not all(isinstance(value, Tensor) for value in averages):
        raise CheckpointError("path", f"{path}, which has no averages", "one with a list ema['shadow_params']")
    if len(averages) != len(trained):
        got = f"{path}, with {len(averages)} averages of {len(trained)} parameters"
        raise CheckpointError("path", got, "one average for each parameter")
    return dict(zip(trained, averages, strict=True)), tensors


@checked
def from_score_sde(
    path: str | Path,
    config: Any,
    sde: str = "ve",
    weights: str = "ema",
    *,
    continuous: bool = True,
    **settings: Any,
) -> ScoreModel:
    """Load a checkpoint of score_sde_pytorch.

    The file is read as tensors alone (``weights_only``); its optimiser is ignored.

    Args:
        path: Checkpoint, such as ``checkpoint_24.pth``.
        config: Their settings, a mapping or their ``ConfigDict``, with the sections ``model`` and ``data``. Or the name
            of a published network in :data:`PRESETS`, such as ``"cifar10-ncsnpp"``. The processes' ends come from it.
        sde: Process that it was trained under: ``"ve"`` (default), ``"vp"`` or ``"subvp"``.
        weights: ``"ema"`` (default), the averages, or ``"model"``, the last weights.
        continuous: Whether it was trained in continuous time (default), or at the ``num_scales`` levels of a discrete
            SMLD (``"ve"``) or DDPM (``"vp"``).
        settings: Further settings of :class:`ScoreModel`, such as ``moments``.

    Returns:
        The model in evaluation mode. Its data are 8-bit images, in [-1, 1] or, if not ``centered``, in [0, 1].

    Raises:
        CheckpointError: The file is not such a checkpoint, or its network is not that of ``config``.
        UnknownNameError: Another preset.
        ArgumentError: Settings that are missing or not supported; another process.

    References: Song et al. 2021, and its code, score_sde_pytorch.
    """
    choice("sde", sde, _PROCESSES)
    choice("weights", weights, ("ema", "model"))
    if isinstance(config, str):
        if config not in PRESETS:
            raise UnknownNameError("config", config, PRESETS)
        config = PRESETS[config]
    elif not isinstance(config, Mapping):
        to_dict = getattr(config, "to_dict", None)
        config = to_dict() if callable(to_dict) else config
    if not isinstance(config, Mapping):
        raise DTypeError("config", type(config).__name__, "their settings, a mapping, or the name of a network")
    if not continuous and sde == "subvp":
        raise ArgumentError("continuous", False, "True for a sub-VP SDE, which has no discrete form")
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        net = _network(config)
    trained, tensors = _parameters(read_torch(path), weights, path)
    load_in_order(net, trained, path)
    if net.waves is not None:
        waves = tensors.get("all_modules.0.W")
        if waves is None or waves.shape != net.waves.w.shape:
            raise CheckpointError("path", f"{path}, without Fourier frequencies", f"{len(net.waves.w)} of them")
        net.waves.w.copy_(waves)
    process = _process(sde, config, continuous)
    names = {True: {"ve": "score_sde_ve"}, False: {"vp": "ddpm", "ve": "ncsn"}}
    time_input = names[continuous].get(sde, "score_sde_vp")
    scaling = Scaling.for_integers(256) if net.centered else Scaling(1 / 256, 0.0, 256)
    settings = {"scaling": scaling} | settings
    model = ScoreModel(net, process, "score" if sde == "ve" else "noise", time_input=time_input, **settings)
    return model.eval()


def _process(sde: str, config: Mapping[str, Any], continuous: bool) -> SDE:
    """Return the process of their settings."""
    if whole("config.model.num_scales", entry(config, "model", "num_scales", 1000)) != 1000:
        raise ArgumentError("config.model.num_scales", entry(config, "model", "num_scales"), "1000")
    ends = ("sigma_min", "sigma_max") if sde == "ve" else ("beta_min", "beta_max")
    low, high = (positive(f"config.model.{end}", entry(config, "model", end)) for end in ends)
    return _PROCESSES[sde](low, high, continuous)
