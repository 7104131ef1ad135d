"""From settings to objects: pure wiring, one function for each part of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.app.config import DataConfig, LikelihoodConfig, RunConfig, SampleConfig, SDEConfig
from scoresde.data import (
    SOURCES,
    Data,
    Dequantization,
    Mapped,
    Scaling,
    TruncatedNormal,
    load_data,
    load_whole,
    map_array,
)
from scoresde.data.dataset import count_of
from scoresde.data.sources import HELD_OUT
from scoresde.errors import ArgumentError, CheckpointError, ConfigError, DataError, ShapeError
from scoresde.flow.tableaux import ADAPTIVE
from scoresde.guidance import classifier_free_guidance, classifier_guidance
from scoresde.likelihood.divergence import Divergence, Exact, Hutchinson, default_divergence
from scoresde.models import Model, ScoreModel
from scoresde.models.conditions import Condition
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
from scoresde.sde import DDPM, SDE, build_sde
from scoresde.training import (
    DenoisingScoreMatching,
    NoiseAwareClassifier,
    Sigmoid,
    SlicedScoreMatching,
    Trainer,
)

PREDICTORS = {"reverse-diffusion": ReverseDiffusion, "ancestral": Ancestral, "euler-maruyama": EulerMaruyama}
OBJECTIVES = {"denoising": DenoisingScoreMatching, "sliced": SlicedScoreMatching}
_BETAS, _SIGMAS = ("beta_min", "beta_max"), ("sigma_min", "sigma_max")
#: for each process the settings that it takes, and the names of its arguments for them
SDE_OPTIONS: dict[str, dict[str, str]] = {
    "vp": {name: name for name in _BETAS},
    "subvp": {name: name for name in _BETAS},
    "ve": {name: name for name in _SIGMAS},
    "ddpm": {"levels": "N", "beta_min": "beta_start", "beta_max": "beta_end"},
}


def given(**settings: Any) -> dict[str, Any]:
    """Return the settings that are not None, the arguments of a function whose defaults stand for the others."""
    return {name: value for name, value in settings.items() if value is not None}


def mapped(config: DataConfig) -> tuple[Mapped, Data]:
    """Training data that stay on the disk, and held-out data in memory: the last items of the file."""
    whole = map_array(config.source, config.labels, config.num_values)
    if config.n is not None:
        raise ConfigError("data.n", config.n, "null with data.mmap")
    return whole.split(count_of(HELD_OUT if config.held_out is None else config.held_out, len(whole)))


def data(config: DataConfig) -> tuple[Data, Data]:
    """Training and held-out data in memory; of training data left on the disk, 16384 at equal distances."""
    if config.mmap:
        train, held_out = mapped(config)
        return train.sample, held_out
    if config.labels is not None:
        raise ConfigError("data.labels", config.labels, "null without data.mmap: an .npz file holds labels itself")
    return load_data(
        config.source,
        config.held_out,
        config.seed,
        n=config.n,
        num_values=config.num_values,
        size=config.size,
        key=config.key,
        grayscale=config.grayscale,
    )


def all_data(config: DataConfig) -> Data:
    """All items of a file or folder in their own order; the held-out part of a named source."""
    if config.source.replace("_", "-") in SOURCES:
        return data(config)[1]
    return load_whole(
        config.source, num_values=config.num_values, size=config.size, key=config.key, grayscale=config.grayscale
    )


def sde(config: SDEConfig) -> SDE:
    """Return the forward process; what is None takes the process's own default.

    Raises:
        ConfigError: settings that the process cannot have; names the key.
    """
    options = SDE_OPTIONS.get(config.name, {})
    values = given(**{key: getattr(config, key) for key in options})
    arguments = {options[key]: value for key, value in values.items()}
    try:
        return DDPM.linear(**arguments) if config.name == "ddpm" else build_sde({"name": config.name, **arguments})
    except ArgumentError as error:
        shown = ", ".join(f"{value:g}" for value in values.values())
        keys = ", ".join(f"sde.{key}" for key in values)
        raise ConfigError(keys, shown, f"settings of the process {config.name!r} ({error})") from error


def net(config: RunConfig, train: Data) -> torch.nn.Module:
    """The network, its weights drawn with ``train.seed``. "auto" is an MLP for vectors, a U-Net otherwise."""
    name, options = config.net.name, dict(config.net.options)
    if name == "auto":
        name = "mlp" if len(train.shape) == 1 else "unet"
    if config.model.time_input == "time" and options.get("embedding", "sinusoidal") == "sinusoidal":
        options.setdefault("embedding_scale", 1000.0)  # the sines' frequencies suit labels that span hundreds
    if config.train.conditional:
        if train.classes is None:
            raise ConfigError("train.conditional", True, f"labelled data, which {train.name!r} is not")
        options.setdefault("classes", train.classes)
    return build_net({"name": name, "shape": list(train.shape), **options}, seed=config.train.seed)


def model(config: RunConfig, train: Data) -> ScoreModel:
    """An untrained model of the training data, which keeps their scaling and moments."""
    settings = given(time_input=config.model.time_input, data_std=config.model.data_std)
    return ScoreModel.for_data(net(config, train), sde(config.sde), train, config.model.predicts, **settings)


def dequantization(config: RunConfig, model: ScoreModel) -> tuple[Dequantization | None, float | None]:
    """The law of the noise in the bins of integer data, and the time from which on to train; None: the default."""
    name = config.train.dequantization
    if name == "uniform":
        return None, None
    if model.scaling.num_values is None:
        raise ConfigError("train.dequantization", repr(name), "'uniform', which does nothing: the data are continuous")
    law = TruncatedNormal()
    return law, None if name == "none" else model.sde.time_of(law.log_snr(model.scaling)).item()


def trainer(config: RunConfig, model: ScoreModel, folder: str | Path | None) -> Trainer:
    """Return a trainer that writes its checkpoints into ``folder``."""
    train = config.train
    law, t_min = dequantization(config, model)
    weighting = Sigmoid(**given(gain=train.sigmoid_gain)) if train.weighting == "sigmoid" else train.weighting
    settings = given(weighting=weighting, time_sampling=train.time_sampling, t_min=t_min)
    return Trainer(model, OBJECTIVES[train.objective](**settings), train.trainer, folder, law)


def langevin(config: SampleConfig) -> Langevin:
    """Return the corrector."""
    return Langevin(**given(snr=config.snr))


def sampler(config: SampleConfig) -> tuple[Sampler, int | None]:
    """Return the sampler and its number of steps (None: its default)."""
    if config.sampler == "pc":
        corrector = langevin(config) if config.corrector == "langevin" else None
        predictor = None if config.predictor is None else PREDICTORS[config.predictor]()
        return PredictorCorrector(corrector=corrector, **given(predictor=predictor)), config.steps
    if config.sampler in ("dpm", "ddim"):
        return {"dpm": DPMSolver, "ddim": DDIM}[config.sampler](), config.steps
    method = config.method or (None if config.steps is None else "rk4")
    if config.steps is not None and method in ADAPTIVE:
        raise ConfigError(
            "sample.steps", config.steps, f"null, as {method!r} chooses its own steps, or sample.method=rk4"
        )
    return ProbabilityFlow(**given(method=method, rtol=config.rtol, atol=config.atol)), config.steps


def divergence(config: LikelihoodConfig, n: int) -> Divergence:
    """Return the trace estimator for data of ``n`` entries."""
    if config.divergence == "exact" or (config.divergence == "auto" and isinstance(default_divergence(n), Exact)):
        return Exact()
    return Hutchinson(**given(probes=config.probes))


def labels(
    config: SampleConfig, model: ScoreModel, n: int, classifier: NoiseAwareClassifier | None = None
) -> Tensor | None:
    """The classes ``(n,)`` to draw, or None for a model without classes that no classifier guides.

    Raises:
        ConfigError: a label for a model without classes, or one that the model or the classifier does not have.
    """
    known = [model.net.config.get("classes"), None if classifier is None else classifier.net.config["out_channels"]]
    if known == [None, None]:
        if config.label is not None:
            expected = "null, or a sample.classifier: the model was trained without labels"
            raise ConfigError("sample.label", config.label, expected)
        return None
    classes = min(count for count in known if count is not None)
    if config.label is None:
        return torch.arange(n) % classes
    if config.label >= classes:
        raise ConfigError("sample.label", config.label, f"a class from 0 to {classes - 1}")
    return torch.full((n,), config.label)


def classifier(config: SampleConfig, model: ScoreModel) -> NoiseAwareClassifier | None:
    """The classifier to guide by, if the settings name one.

    Raises:
        CheckpointError: not a folder with a classifier.
        ConfigError: a classifier of items of another shape or under another process than the model's.
    """
    if config.classifier is None:
        return None
    found = NoiseAwareClassifier.from_pretrained(config.classifier, model.device)
    shape = tuple(model.net.config["shape"])
    if math.prod(found.net.config["shape"]) != math.prod(shape):
        got = f"{config.classifier}, of {math.prod(found.net.config['shape'])} entries"
        raise ConfigError("sample.classifier", got, f"one of items {shape}, as the model's")
    if found.sde.config != model.sde.config:
        raise ConfigError("sample.classifier", f"{config.classifier}, under {found.sde}", f"one under {model.sde}")
    return found


def guided(config: SampleConfig, model: ScoreModel, classifier: NoiseAwareClassifier | None = None) -> Model:
    """The model with classifier-free guidance, where a scale is set, and with that of a classifier, if there is one."""
    found: Model = model
    if config.guidance != 1:
        found = classifier_free_guidance(
            model, config.guidance, **given(interval=config.interval, rescale=config.rescale)
        )
    if classifier is None:
        return found
    conditional = model.net.config.get("classes") is not None
    return classifier_guidance(found, classifier, conditional=conditional, **given(scale=config.scale))


def cond(model: ScoreModel, labels: Tensor | None, classifier: NoiseAwareClassifier | None = None) -> Condition:
    """What the model is told besides x and t: the labels, if its network or the classifier that guides it knows any.

    Raises:
        DataError: the model knows classes, the data have no labels.
    """
    if model.net.config.get("classes") is None and classifier is None:
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
    if (data.num_values is None) != (model.scaling.num_values is None):
        kinds = ["continuous" if n is None else "integer" for n in (data.num_values, model.scaling.num_values)]
        raise ArgumentError("data", f"{data.name!r}, {kinds[0]} values", f"{kinds[1]} ones, as in the model's training")


def scaling(model: ScoreModel) -> Scaling:
    """Return the model's map from the data's units to its own.

    Raises:
        CheckpointError: the model was saved without one.
    """
    if model.scaling is None:
        raise CheckpointError("run", "a model without a scaling", "a model that was trained on data")
    return model.scaling


def item_shape(model: ScoreModel) -> tuple[int, ...]:
    """Return D, the shape of the items that the network takes."""
    config: Any = model.net.config
    return tuple(config["shape"])
