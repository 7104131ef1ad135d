"""Pipelines and networks of diffusers here, and our models there.

A scheduler of diffusers is a process and a way to sample it. Its process is our DDPM, FlowSDE or VESDE. Its way to
sample is a sampler of ours on the same levels (:func:`sampler_of`), around a model with the same limits
(:func:`limited_as`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scoresde.argument_types import checked
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, CheckpointError, DTypeError
from scoresde.extras import optional
from scoresde.files import atomic_folder
from scoresde.interop.processes import THEIRS, config_of, grid_of, limited_as, name_of, process_of, sampler_of
from scoresde.interop.schedulers import scheduler_class
from scoresde.models import ScoreModel
from scoresde.models.pretrained import bare
from scoresde.nets.adapted import Adapted
from scoresde.nets.configured import plain
from scoresde.nets.description import describe_net
from scoresde.nets.diffusers_net import DiffusersNet
from scoresde.sde import DDPM, VESDE

__all__ = ["from_diffusers", "grid_of", "limited_as", "process_of", "sampler_of", "to_diffusers"]


def _opened(name: str | Path) -> Any:
    """Return a pipeline by its name or folder.

    Raises:
        CheckpointError: Diffusers cannot load it; its reason follows.
    """
    library = optional("diffusers")
    try:
        return library.DiffusionPipeline.from_pretrained(name)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError("source", f"{name!s} ({reason})", "the name or folder of a pipeline") from error


def parts_of(source: Any, scheduler: Any) -> tuple[Any, Any, Any]:
    """Return the network, the scheduler and the VAE of a pipeline."""
    if isinstance(source, (str, Path)):
        source = _opened(source)
    network = source
    if not isinstance(source, torch.nn.Module):
        network = next(
            (found for key in ("unet", "transformer") if (found := getattr(source, key, None)) is not None), None
        )
        scheduler = getattr(source, "scheduler", None) if scheduler is None else scheduler
    if not isinstance(network, torch.nn.Module) or not hasattr(network, "from_config"):
        raise DTypeError(
            "source", type(source).__name__, "a pipeline or a network of diffusers, or the name of a pipeline"
        )
    if scheduler is None:
        raise ArgumentError("scheduler", None, "the scheduler that the network was trained with, as it is no pipeline")
    return network, scheduler, getattr(source, "vae", None) or getattr(source, "vqvae", None)


@checked
def from_diffusers(source: object, scheduler: object = None, **settings: Any) -> ScoreModel:
    """Return the score model of a pipeline or a network of diffusers. ::

        model = ScoreModel.from_diffusers(DDPMPipeline.from_pretrained("google/ddpm-cifar10-32"))

    Args:
        source: A pipeline with a ``unet`` or a ``transformer``, such a network itself, or the name or folder of a
            pipeline, which diffusers loads.
        scheduler: Scheduler that the network was trained with. None: that of the pipeline.
        settings: Further settings of :class:`ScoreModel`, such as ``moments``, which take precedence.

    Returns:
        The model in evaluation mode. Class labels are ``cond={"y": labels}``; texts and the like have the names of the
        network's own arguments, such as ``cond={"encoder_hidden_states": states}``. The network is trained, saved and
        loaded as any of ours. The data of a ``UNet2DModel`` with one or three channels are taken to be 8-bit images
        (``scaling=None`` says that they are not). Limits of the scheduler (``clip_sample``) are no part of the model,
        see :func:`limited_as`. The model of a latent pipeline is one of latents, see :class:`~scoresde.interop.latent.
        LatentModel`.

    Raises:
        MissingExtraError: Diffusers is not installed.
        DTypeError, ArgumentError: Another object, or a scheduler without a score (:func:`process_of`).
    """
    optional("diffusers")
    network, scheduler, vae = parts_of(source, scheduler)
    sde, found = process_of(scheduler)
    kept = plain("scheduler.config", dict(config_of(scheduler))) | {"_class_name": name_of(scheduler)}
    net = DiffusersNet.of(network, kept)
    if type(network).__name__ == "FluxTransformer2DModel":
        found["time_input"] = "time"  # it multiplies by 1000 itself
    channels = getattr(network, "config", {}).get("in_channels")
    if net.out_channels is not None and channels is not None and net.out_channels == 2 * channels:
        if config_of(scheduler).get("variance_type") == "learned":
            raise ArgumentError("scheduler", "one with variance_type='learned'", "variance_type='learned_range'")
        found["learned_variance"] = True
    if vae is None and not isinstance(sde, VESDE) and channels in (1, 3) and type(network).__name__ == "UNet2DModel":
        found["scaling"] = Scaling.for_integers(256)
    model = ScoreModel(net, sde, **(found | settings))
    return model.eval()


@checked
def to_diffusers(model: ScoreModel, folder: str | Path) -> Path:
    """Write a model as a pipeline that diffusers loads. ::

        to_diffusers(model, "mine")
        pipeline = DDPMPipeline.from_pretrained("mine")

    Args:
        model: A model whose network is one of diffusers' (:meth:`ScoreModel.from_diffusers`, ``adapt(unet)``), under a
            DDPM. One that came with a scheduler of DDPM or DDIM keeps it, and its weights, bit for bit.
        folder: Folder to write, new or empty.

    Returns:
        The folder.

    Raises:
        MissingExtraError: Diffusers is not installed.
        ArgumentError: A network or process that its pipeline does not know.
    """
    library, folder = optional("diffusers"), Path(folder)
    net = bare(model.net)
    network = net.net if isinstance(net, (DiffusersNet, Adapted)) else net
    if not isinstance(network, library.UNet2DModel):
        raise ArgumentError(
            "model", f"one with a {type(network).__name__}", "one whose network is a UNet2DModel of diffusers"
        )
    if not isinstance(model.sde, DDPM) or model.predicts not in THEIRS or model.time_input != "ddpm":
        got = f"{model.sde!r}, predicts={model.predicts!r}, time_input={model.time_input!r}"
        raise ArgumentError("model", got, "a DDPM with time_input='ddpm', predicting noise, data or velocity")
    if folder.is_dir() and any(folder.iterdir()):
        raise ArgumentError(
            "folder", f"{folder}, which holds {next(folder.iterdir()).name}", "a new or an empty folder"
        )
    came = describe_net(net).get("scheduler")
    scheduler = _scheduler_for(library, model, came)
    kind = "DDIMPipeline" if "DDIM" in name_of(scheduler) else "DDPMPipeline"
    pipeline = getattr(library, kind)(network, scheduler)
    with atomic_folder(folder) as new:
        pipeline.save_pretrained(new)
    return folder


def _scheduler_for(library: Any, model: ScoreModel, came: Mapping[str, Any] | None) -> Any:
    """Return the scheduler that a model came with, or one of its levels."""
    assert isinstance(model.sde, DDPM)
    name = None if came is None else came["_class_name"]
    if came is not None and name in ("DDPMScheduler", "DDIMScheduler"):
        found = getattr(library, name).from_config({key: came[key] for key in came if not key.startswith("_")})
        sde, settings = process_of(found)
        if sde == model.sde and settings["predicts"] == model.predicts:  # what a caller has not replaced
            return found
    return library.DDPMScheduler(
        num_train_timesteps=model.sde.N,
        trained_betas=model.sde.betas.tolist(),
        prediction_type=THEIRS[model.predicts],
        clip_sample=False,
        variance_type="learned_range" if model.learned_variance else "fixed_small",
    )


def __getattr__(name: str) -> Any:
    """Make ``DPMSolverScheduler`` at its first use."""
    if name == "DPMSolverScheduler":
        return scheduler_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
