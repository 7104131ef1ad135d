"""Checkpoints of improved-diffusion and guided-diffusion (ADM).

Their U-Net is ours with ``layout="adm"``. Their level k = 0..N-1 is our time (k + 1)/N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, CheckpointError, DTypeError
from scoresde.guidance.classifier import LogProbOfClass
from scoresde.interop.checkpoints import choice, read_torch, tensors_of
from scoresde.models import ScoreModel
from scoresde.nets import UNet
from scoresde.nets.unet_blocks import Attention, ResBlock, Stage
from scoresde.sde import DDPM, SDE

SCHEDULES: dict[str, Callable[[int], DDPM]] = {"linear": DDPM.linear, "cosine": DDPM.cosine}
#: multipliers of their scripts by the size of the images
MULTIPLIERS = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}
CLASSES = 1000  # of ImageNet, which their scripts assume


def _ints(value: object) -> tuple[int, ...]:
    """Return integers from a sequence, or from a text such as "32,16"."""
    parts: Any = value.split(",") if isinstance(value, str) else value
    return tuple(int(part) for part in parts)


def _network_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of their ``UNetModel``.

    Args:
        config: These arguments, or those of their scripts (``--num_channels`` and so on).
    """
    if "model_channels" in config:
        return dict(config)
    if "num_channels" not in config:
        expected = "the arguments of their UNetModel (model_channels, ...) or of their scripts (num_channels, ...)"
        raise ArgumentError("config", f"one with {', '.join(map(repr, config)) or 'nothing'}", expected)
    size = whole("config['image_size']", config.get("image_size", 64))
    multipliers = config.get("channel_mult") or MULTIPLIERS.get(size)
    if multipliers is None:
        raise ArgumentError("config['channel_mult']", None, f"multipliers, as {size} pixels have no default")
    names = ["image_size", "num_res_blocks", "num_heads", "num_head_channels", "num_heads_upsample", "dropout"]
    names += ["use_scale_shift_norm", "resblock_updown", "use_new_attention_order"]
    passed = {name: config[name] for name in names if name in config}
    script = {"num_res_blocks": 2, "num_heads": 4, "use_scale_shift_norm": True, "image_size": size}
    seen = _ints(config.get("attention_resolutions", "16,8"))
    return (
        script
        | passed
        | {
            "in_channels": 3,
            "model_channels": config["num_channels"],
            "out_channels": 6 if config.get("learn_sigma") else 3,
            "attention_resolutions": [size // resolution for resolution in seen],
            "channel_mult": _ints(multipliers),
            "num_classes": CLASSES if config.get("class_cond") else None,
        }
    )


def _network(settings: Mapping[str, Any]) -> UNet:
    """Return our U-Net for the arguments of theirs, with random weights."""
    for name in ("image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks"):
        if name not in settings:
            raise ArgumentError("config", f"one without {name!r}", "the arguments of their UNetModel")
    multipliers = _ints(settings.get("channel_mult", (1, 2, 4, 8)))
    if multipliers[0] != 1:
        raise ArgumentError("config['channel_mult']", multipliers, "multipliers that begin with 1")
    heads, width = settings.get("num_heads", 1), settings.get("num_head_channels", -1)
    if settings.get("num_heads_upsample", -1) not in (-1, heads):
        raise ArgumentError("config['num_heads_upsample']", settings["num_heads_upsample"], "-1, as on the way down")
    if not settings.get("conv_resample", True) or settings.get("dims", 2) != 2:
        raise ArgumentError("config['conv_resample'], config['dims']", "other values", "True and 2")
    factors = _ints(settings.get("attention_resolutions", ()))
    size, classes = settings["image_size"], settings.get("num_classes")
    return UNet(
        (settings["in_channels"], size, size),
        channels=settings["model_channels"],
        multipliers=multipliers,
        blocks=settings["num_res_blocks"],
        attention=[k for k in range(len(multipliers)) if 2**k in factors],
        heads=heads,
        head_channels=None if width == -1 else width,
        dropout=float(settings.get("dropout", 0.0)),
        classes=classes,
        null_class=classes is None,
        out_channels=settings["out_channels"],
        scale_shift=settings.get("use_scale_shift_norm", False),
        num_groups=32,
        layout="adm",
        resample="block" if settings.get("resblock_updown", False) else "conv",
    )


def _parts(net: UNet) -> Iterator[tuple[nn.Module, str]]:
    """Yield the blocks of our U-Net and the prefix of each in theirs.

    The order is that of our modulations.
    """
    place = 1
    for halve, stages in zip(net.halve, net.down, strict=True):
        if not isinstance(halve, nn.Identity):
            yield halve, f"input_blocks.{place}.0" + ("" if isinstance(halve, ResBlock) else ".op")
            place += 1
        for stage in stages if isinstance(stages, nn.ModuleList) else ():
            yield from _stage(stage, f"input_blocks.{place}.", 0)
            place += 1
    yield from _stage(net.middle, "middle_block.", 0)
    if net.last is not None:
        yield net.last, "middle_block.2"
    place = 0
    for enlarge, stages in zip(net.enlarge, net.up, strict=True):
        if not isinstance(enlarge, nn.Identity):  # theirs ends the resolution before
            seen = 2 if place and _attends(net, place - 1) else 1
            prefix = f"output_blocks.{place - 1}.{seen}"
            yield enlarge, prefix + ("" if isinstance(enlarge, ResBlock) else ".conv")
        for stage in stages if isinstance(stages, nn.ModuleList) else ():
            yield from _stage(stage, f"output_blocks.{place}.", 0)
            place += 1


def _attends(net: UNet, place: int) -> bool:
    """Return whether the block at a place of the way up has attention."""
    stages = [stage for stages in net.up for stage in (stages if isinstance(stages, nn.ModuleList) else ())]
    stage = stages[place]
    return isinstance(stage, Stage) and isinstance(stage.attend, Attention)


def _stage(stage: nn.Module, prefix: str, first: int) -> Iterator[tuple[nn.Module, str]]:
    """Yield a stage's block and its attention."""
    if isinstance(stage, Stage):
        yield stage.block, f"{prefix}{first}"
        if isinstance(stage.attend, Attention):
            yield stage.attend, f"{prefix}{first + 1}"


_BLOCK = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
_BLOCK |= {"skip": "skip_connection"}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}


class _Reader:
    """Hands out their tensors by name, and tells which are left."""

    def __init__(self, tensors: Mapping[str, Tensor], path: str | Path):
        self.left, self.path = dict(tensors), path

    def take(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            CheckpointError: There is none of this name.
        """
        if name not in self.left:
            raise CheckpointError("path", f"{self.path}, without {name}", "a checkpoint of the network in `config`")
        return self.left.pop(name)

    def copy(self, layer: nn.Module, prefix: str, legacy_heads: int = 0) -> None:
        """Copy weights and biases into a layer.

        Args:
            layer: Our layer.
            prefix: Their name.
            legacy_heads: Heads of queries, keys and values that are ordered head by head. 0: ours, or another layer.
        """
        for name, parameter in layer.named_parameters():
            value = self.take(f"{prefix}.{name}")
            if legacy_heads:
                value = torch.unflatten(value, 0, (legacy_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            self.put(parameter, value.reshape(*value.shape, *(1,) * (parameter.ndim - value.ndim)), prefix)

    def put(self, parameter: Tensor, value: Tensor, name: str) -> None:
        """Copy a tensor, of the same shape."""
        if value.shape != parameter.shape:
            got = f"{self.path}, whose {name} is of shape {tuple(value.shape)}"
            raise CheckpointError("path", got, f"one of the network in `config`, of shape {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.copy_(value)


def _load(net: UNet, tensors: Mapping[str, Tensor], legacy: bool, path: str | Path) -> None:
    """Copy their weights into our U-Net."""
    reader = _Reader(tensors, path)
    first, second = net.conditioning.mlp[0], net.conditioning.mlp[2]
    reader.copy(first, "time_embed.0")
    with torch.no_grad():  # their cosines come before their sines
        first.get_parameter("weight").copy_(first.get_parameter("weight").roll(net.stem.out_channels // 2, dims=1))
    reader.copy(second, "time_embed.2")
    if net.conditioning.classes is not None:
        reader.copy(net.conditioning.classes.table, "label_emb")
    reader.copy(net.stem, "input_blocks.0.0")
    weights, biases = [], []
    for part, prefix in _parts(net):
        if isinstance(part, ResBlock):
            for ours, theirs in _BLOCK.items():
                reader.copy(part.get_submodule(ours), f"{prefix}.{theirs}")
            weights.append(reader.take(f"{prefix}.emb_layers.1.weight"))
            biases.append(reader.take(f"{prefix}.emb_layers.1.bias"))
        elif isinstance(part, Attention):
            for ours, theirs in _ATTENTION.items():
                heads = part.heads if legacy and ours == "qkv" else 0
                reader.copy(part.get_submodule(ours), f"{prefix}.{theirs}", heads)
        else:
            reader.copy(part, prefix)
    reader.put(net.modulation.weight, torch.cat(weights), "emb_layers")
    reader.put(net.modulation.bias, torch.cat(biases), "emb_layers")
    reader.copy(net.head[0], "out.0")
    reader.copy(net.head[2], "out.2")
    if reader.left:
        got = f"{path}, with {len(reader.left)} more tensors, such as {next(iter(reader.left))}"
        raise CheckpointError("path", got, "a checkpoint of the network in `config`")


@checked
def from_adm(
    path: str | Path,
    config: Mapping[str, Any],
    schedule: str | None = None,
    *,
    levels: int | None = None,
    **settings: Any,
) -> ScoreModel:
    """Load a checkpoint of improved-diffusion or guided-diffusion (ADM).

    The file is read as tensors alone (``weights_only``).

    Args:
        path: Checkpoint, such as ``256x256_diffusion.pt`` or ``ema_0.9999_250000.pt``.
        config: Their arguments: those of their scripts (``{"image_size": 64, "num_channels": 192, "class_cond": True,
            "learn_sigma": True, ...}``), or those of their ``UNetModel``.
        schedule: ``"linear"`` or ``"cosine"``. None: ``config["noise_schedule"]``, or "linear".
        levels: Number of levels. None: ``config["diffusion_steps"]``, or 1000.
        settings: Further settings of :class:`ScoreModel`, such as ``moments``.

    Returns:
        The model in evaluation mode, with learned variances if the network has them. Its data are 8-bit images. A
        network with classes takes ``cond={"y": labels}`` and knows no "no class".

    Raises:
        CheckpointError: The file is not such a checkpoint, or its network is not that of ``config``.
        ArgumentError: Arguments that are missing or not supported; another schedule.

    References: Nichol, Dhariwal 2021; Dhariwal, Nichol 2021, and the code of both.
    """
    schedule = choice("schedule", schedule or config.get("noise_schedule", "linear"), tuple(SCHEDULES))
    arguments = _network_settings(config)
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        net = _network(arguments)
    _load(net, tensors_of(read_torch(path), path), not arguments.get("use_new_attention_order", False), path)
    count = whole("levels", config.get("diffusion_steps", 1000) if levels is None else levels)
    learned = arguments["out_channels"] == 2 * arguments["in_channels"]
    rescaled = config.get("rescale_timesteps", False)
    settings = {"scaling": Scaling.for_integers(256), "learned_variance": learned} | settings
    predicts = "data" if config.get("predict_xstart") else "noise"
    time_input = "improved_ddpm" if rescaled else "ddpm"
    return ScoreModel(net, SCHEDULES[schedule](count), predicts, time_input=time_input, **settings).eval()


@checked
def adm_classifier(classifier: Callable[..., Tensor], sde: SDE, *, rescaled: bool = False) -> LogProbOfClass:
    """Return a classifier of guided-diffusion for ``classifier_guidance``. ::

        guided = classifier_guidance(model, adm_classifier(classifier, model.sde), scale=1.0, conditional=True)

    Args:
        classifier: Their classifier, which takes ``(x, k)`` with levels k = 0..N-1 and returns logits ``(B, K)``.
        sde: The process of the model, a DDPM of N levels.
        rescaled: Whether it takes 1000 k/N (``rescale_timesteps``) instead of k, default False.

    Returns:
        A function (x_t, t, y) to logits.

    Raises:
        DTypeError: The process has no levels.

    References: Dhariwal, Nichol 2021, section 4.
    """
    if sde.times is None:
        raise DTypeError("sde", type(sde).__name__, "a DDPM, whose levels the classifier counts")
    count = len(sde.times)

    def logits(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        k = t * count - 1
        return classifier(x, k * (1000 / count) if rescaled else k)

    return logits
