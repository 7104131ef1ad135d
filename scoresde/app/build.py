"""From settings to objects: pure wiring, one function for each part of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scoresde.app.config import DataConfig, LikelihoodConfig, RunConfig, SampleConfig, SDEConfig
from scoresde.data import SOURCES, Data, load_data, load_whole
from scoresde.errors import ArgumentError, ConfigError, DataError, ShapeError
from scoresde.likelihood.divergence import Divergence, Exact, Hutchinson, default_divergence
from scoresde.models import ScoreModel
from scoresde.nets import build_net
from scoresde.sampling import (
    DDIM,
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Sampler,
)
from scoresde.sampling.ode import ADAPTIVE
from scoresde.sde import SDE, build_sde
from scoresde.training import DenoisingScoreMatching, Trainer, TrainerConfig

PREDICTORS = {"reverse-diffusion": ReverseDiffusion, "ancestral": Ancestral, "euler-maruyama": EulerMaruyama}
#: which settings of the section each process takes
SDE_OPTIONS = {"vp": ("beta_min", "beta_max"), "subvp": ("beta_min", "beta_max"), "ve": ("sigma_min", "sigma_max")}


def data(config: DataConfig) -> tuple[Data, Data]:
    """Training and held-out data."""
    return load_data(
        config.source,
        config.held_out,
        config.seed,
        n=config.n,
        levels=config.levels,
        size=config.size,
        key=config.key,
        grayscale=config.grayscale,
    )


def all_data(config: DataConfig) -> Data:
    """All items of a file or folder in their own order; the held-out part of a named source."""
    if config.source.replace("_", "-") in SOURCES:
        return data(config)[1]
    return load_whole(config.source, levels=config.levels, size=config.size, key=config.key, grayscale=config.grayscale)


def sde(config: SDEConfig) -> SDE:
    """The forward process."""
    return build_sde(
        {"name": config.name, **{option: getattr(config, option) for option in SDE_OPTIONS.get(config.name, ())}}
    )


def net(config: RunConfig, train: Data) -> torch.nn.Module:
    """The network, its weights drawn with ``train.seed``. "auto" is an MLP for vectors, a U-Net otherwise."""
    name, options = config.net.name, dict(config.net.options)
    if name == "auto":
        name = "mlp" if len(train.shape) == 1 else "unet"
    if config.model.label == "time" and options.get("embedding", "sinusoidal") == "sinusoidal":
        options.setdefault("embedding_scale", 1000.0)  # the sines' frequencies suit labels that span hundreds
    if config.train.conditional:
        if train.classes is None:
            raise ConfigError("train.conditional", True, f"labelled data, which {train.name!r} is not")
        options.setdefault("classes", train.classes)
    return build_net({"name": name, "shape": list(train.shape), **options}, seed=config.train.seed)


def model(config: RunConfig, train: Data) -> ScoreModel:
    """An untrained model of the training data, which keeps their scaling and moments."""
    settings = {} if config.model.data_std is None else {"data_std": config.model.data_std}
    return ScoreModel.for_data(
        net(config, train), sde(config.sde), train, config.model.predicts, label=config.model.label, **settings
    )


def trainer(config: RunConfig, model: ScoreModel, folder: str | Path) -> Trainer:
    """A trainer that writes its checkpoints into ``folder``."""
    c = config.train
    half_life = c.ema_half_life if c.ema_half_life >= 1 else max(1.0, c.ema_half_life * c.steps)
    return Trainer(
        model,
        DenoisingScoreMatching(c.weighting, c.time_sampling),
        TrainerConfig(
            steps=c.steps,
            batch_size=c.batch_size,
            lr=c.lr,
            warmup=c.warmup,
            lr_decay=c.lr_decay,
            clip=c.clip,
            ema_half_life=half_life,
            log_every=c.log_every,
            checkpoint_every=c.checkpoint_every,
            keep=c.keep,
            seed=c.seed,
            device=c.device,
            conditional=c.conditional,
        ),
        folder,
    )


def sampler(config: SampleConfig) -> tuple[Sampler, int | None]:
    """The sampler and its number of steps (None: its default)."""
    if config.sampler == "pc":
        corrector = Langevin(config.snr) if config.corrector == "langevin" else None
        return PredictorCorrector(PREDICTORS[config.predictor](), corrector), config.steps
    if config.sampler in ("dpm", "ddim"):
        return {"dpm": DPMSolver, "ddim": DDIM}[config.sampler](), config.steps
    method = config.method or ("dopri5" if config.steps is None else "rk4")
    if config.steps is not None and method in ADAPTIVE:
        raise ConfigError(
            "sample.steps", config.steps, f"null, as {method!r} chooses its own steps, or sample.method=rk4"
        )
    return ProbabilityFlow(method, config.rtol, config.atol), config.steps


def divergence(config: LikelihoodConfig, n: int) -> Divergence:
    """The trace estimator for data of ``n`` entries."""
    if config.divergence == "exact" or (config.divergence == "auto" and isinstance(default_divergence(n), Exact)):
        return Exact()
    return Hutchinson(config.probes)


def labels(config: SampleConfig, model: ScoreModel, n: int) -> Tensor | None:
    """The classes ``(n,)`` to draw, or None for a model without classes.

    Raises:
        ConfigError: a label for a model without classes, or one that the model does not have.
    """
    classes = model.net.config.get("classes")
    if classes is None:
        if config.label is not None:
            raise ConfigError("sample.label", config.label, "null: the model was trained without labels")
        return None
    if config.label is None:
        return torch.arange(n) % classes
    if config.label >= classes:
        raise ConfigError("sample.label", config.label, f"a class from 0 to {classes - 1}")
    return torch.full((n,), config.label)


def cond(model: ScoreModel, labels: Tensor | None) -> Mapping[str, Tensor] | None:
    """What the network is told besides x and t: the labels, if it knows classes.

    Raises:
        DataError: the model knows classes, the data have no labels.
    """
    if model.net.config.get("classes") is None:
        return None
    if labels is None:
        raise DataError("data", "items without labels", "labelled items: the model is one of each class")
    return {"y": labels.to(model.device)}


def check_fits(model: ScoreModel, data: Data) -> None:
    """Refuse data that the model is no model of.

    Raises:
        ShapeError: items of another shape.
        ArgumentError: continuous data for a model of integers, or the other way round.
    """
    shape = tuple(model.net.config["shape"])
    if data.shape != shape:
        raise ShapeError("data", f"{data.name!r}, items of shape {data.shape}", f"{shape}, as in the model's training")
    if (data.levels is None) != (model.scaling.levels is None):
        kinds = ["continuous" if levels is None else "integer" for levels in (data.levels, model.scaling.levels)]
        raise ArgumentError("data", f"{data.name!r}, {kinds[0]} values", f"{kinds[1]} ones, as in the model's training")
