"""Build the objects of a run from its settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.app.config import DataConfig, LikelihoodConfig, RunConfig, SampleConfig
from scoresde.app.processes import make_sde
from scoresde.app.terminal import say
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
from scoresde.nets.sizing import unet_for
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
from scoresde.training import (
    DenoisingScoreMatching,
    NoiseAwareClassifier,
    Sigmoid,
    SlicedScoreMatching,
    Trainer,
)

PREDICTORS = {"reverse-diffusion": ReverseDiffusion, "ancestral": Ancestral, "euler-maruyama": EulerMaruyama}
OBJECTIVES = {"denoising": DenoisingScoreMatching, "sliced": SlicedScoreMatching}


def given(**settings: Any) -> dict[str, Any]:
    """Return the settings that are not None, as arguments of a function."""
    return {name: value for name, value in settings.items() if value is not None}


def mapped(config: DataConfig) -> tuple[Mapped, Data]:
    """Return training data on the disk, and the file's last items in memory."""
    for name, value in _reading(config).items():
        if value and name not in ("num_values", "layout"):
            raise ConfigError(f"data.{name}", value, "left out with data.mmap")
    whole = map_array(config.source, config.labels, config.num_values, config.layout)
    if config.n is not None:
        raise ConfigError("data.n", config.n, "null with data.mmap")
    usual = min(count_of(HELD_OUT, len(whole)), len(whole.sample))  # what fits in memory
    return whole.split(usual if config.held_out is None else count_of(config.held_out, len(whole)))


def _reading(config: DataConfig) -> dict[str, Any]:
    """Return the settings that say how a source is read."""
    names = ("num_values", "size", "key", "grayscale", "layout", "labels_from", "columns", "label_column", "missing")
    return {name: getattr(config, name) for name in names}


def data(config: DataConfig) -> tuple[Data, Data]:
    """Return training and held-out data in memory.

    Of training data on the disk these are 16384 items at equal distances.
    """
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
        **_reading(config),
    )


def complete_data(config: DataConfig) -> tuple[Data, Data]:
    """Return the items of :func:`data` without missing values.

    Likelihoods and comparisons are of these.
    """
    train, held_out = data(config)
    if held_out.missing and len(held_out.complete) < len(held_out):
        say(f"{len(held_out) - len(held_out.complete)} of {len(held_out)} held-out items have missing values: left out")
    return train.complete, held_out.complete


def other_data(run: RunConfig, source: str) -> Data:
    """Return all items of a file or folder, or the held-out part of a source.

    Columns and named classes are those of the run's own data, which the model knows by their numbers.

    Raises:
        ConfigError: other columns, or classes that the run does not have.
    """
    config = replace(run.data, source=source)
    if source.replace("_", "-") in SOURCES:
        return data(config)[1]
    items = load_whole(source, **_reading(config)).complete
    named = run.train.conditional and items.class_names is not None
    return _numbered_as(data(run.data)[0], items, named) if named or items.columns is not None else items


def _numbered_as(own: Data, items: Data, named: bool) -> Data:
    """Return items with the columns and classes of others."""
    if own.columns is not None and items.columns != own.columns:
        expected = f"{', '.join(own.columns)}, as in training (data.columns chooses and orders them)"
        raise ConfigError("data.columns", ", ".join(items.columns or ()) or "none", expected)
    names, known = items.class_names, own.class_names
    if not named or names is None or known is None or names == known or items.labels is None:
        return items
    if unknown := [name for name in names if name not in known]:
        raise ConfigError("data", f"{items.name!r} with the class {unknown[0]!r}", f"the classes {', '.join(known)}")
    numbers = torch.tensor([known.index(name) for name in names])
    return replace(items, labels=numbers[items.labels], class_names=known)


def net(config: RunConfig, train: Data | Mapped) -> torch.nn.Module:
    """Return the network with weights drawn by ``train.seed``.

    ``"auto"`` is an MLP for vectors and a U-Net for everything else, which grows with the size of the items unless
    channels or multipliers are given.
    """
    name, options = config.net.name, dict(config.net.options)
    if name == "auto":
        name = "mlp" if len(train.shape) == 1 else "unet"
        if name == "unet" and not {"channels", "multipliers"} & options.keys():
            options |= unet_for(train.shape)
    if config.model.time_input == "time" and options.get("embedding", "sinusoidal") == "sinusoidal":
        options.setdefault("embedding_scale", 1000.0)  # the sines' frequencies suit inputs that span hundreds
    if config.train.conditional:
        if train.classes is None:
            raise ConfigError("train.conditional", True, f"false, as {train.name!r} is not labelled")
        options.setdefault("classes", train.classes)
    if config.train.augment:
        options.setdefault("augmented", True)
    shape = list(train.shape)
    if config.model.self_condition:  # the estimate of x0 beside x
        options.setdefault("out_channels", shape[0])
        shape[0] *= 2
    return build_net({"name": name, "shape": shape, **options}, seed=config.train.seed)


def model(config: RunConfig, train: Data | Mapped) -> ScoreModel:
    """Return an untrained model with the training data's scaling and moments."""
    settings = given(time_input=config.model.time_input, data_std=config.model.data_std)
    settings["self_condition"] = config.model.self_condition
    return ScoreModel.for_data(
        net(config, train), make_sde(config.sde, train), train, config.model.predicts, **settings
    )


def dequantization(config: RunConfig, model: ScoreModel) -> tuple[Dequantization | None, float | None]:
    """Return the dequantisation and the first time of training.

    None: the default of either.
    """
    name = config.train.dequantization
    if name == "uniform":
        return None, None
    if model.scaling is None or model.scaling.num_values is None:
        raise ConfigError("train.dequantization", repr(name), "'uniform' (without effect, as the data are continuous)")
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


def net_shape(net: torch.nn.Module) -> tuple[int, ...]:
    """Return the shape ``(*D)`` of the items that a registered network takes."""
    return tuple(cast("dict[str, Any]", net.config)["shape"])


def labels(
    config: SampleConfig, model: ScoreModel, n: int, classifier: NoiseAwareClassifier | None = None
) -> Tensor | None:
    """Return the class labels ``(n,)`` to draw; None for a model without them.

    A classifier that guides the model gives it classes.

    Raises:
        ConfigError: a label for a model without classes, or a class unknown to the model or the classifier.
    """
    known = [model.classes, None if classifier is None else classifier.classes]
    if known == [None, None]:
        if config.label is not None:
            expected = "null without sample.classifier, as the model was trained without labels"
            raise ConfigError("sample.label", config.label, expected)
        return None
    classes = min(count for count in known if count is not None)
    if config.label is None:
        return torch.arange(n) % classes
    if config.label >= classes:
        raise ConfigError("sample.label", config.label, f"a class from 0 to {classes - 1}")
    return torch.full((n,), config.label)


def classifier(config: SampleConfig, model: ScoreModel) -> NoiseAwareClassifier | None:
    """Return the classifier that guides, if the settings name one.

    Raises:
        CheckpointError: a folder without a classifier.
        ConfigError: a classifier of items of another shape, or under another process than the model.
    """
    if config.classifier is None:
        return None
    found = NoiseAwareClassifier.from_pretrained(config.classifier, model.device)
    shape = item_shape(model)
    if math.prod(net_shape(found.net)) != math.prod(shape):
        got = f"{config.classifier}, of {math.prod(net_shape(found.net))} entries"
        raise ConfigError("sample.classifier", got, f"a classifier of items {shape}, as the model has")
    if found.sde.config != model.sde.config:
        raise ConfigError("sample.classifier", f"{config.classifier}, under {found.sde}", f"one under {model.sde}")
    return found


def guided(config: SampleConfig, model: ScoreModel, classifier: NoiseAwareClassifier | None = None) -> Model:
    """Return the model with classifier-free and classifier guidance, if set."""
    found: Model = model
    if config.guidance != 1:
        found = classifier_free_guidance(
            model, config.guidance, **given(interval=config.interval, rescale=config.rescale)
        )
    if classifier is None:
        return found
    conditional = model.classes is not None
    return classifier_guidance(found, classifier, conditional=conditional, **given(scale=config.scale))


def cond(model: ScoreModel, labels: Tensor | None, classifier: NoiseAwareClassifier | None = None) -> Condition:
    """Return the condition: the labels, if network or classifier uses them.

    Raises:
        DataError: data without labels for a model with classes.
    """
    if model.classes is None and classifier is None:
        return None
    if labels is None:
        raise DataError("data", "items without labels", "labelled items for a model with classes")
    return {"y": labels.to(model.device)}


def check_fits(model: ScoreModel, data: Data) -> None:
    """Refuse data of another kind than the model's.

    Raises:
        ShapeError: items of another shape.
        ArgumentError: continuous data for a model of integers, or integers for one of continuous data.
    """
    shape = item_shape(model)
    if data.shape != shape:
        raise ShapeError(
            "data", f"{data.name!r}, items of shape {data.shape}", f"of shape {shape}, as in the model's training"
        )
    own = None if model.scaling is None else model.scaling.num_values
    if (data.num_values is None) != (own is None):
        kinds = ["continuous" if n is None else "integer" for n in (data.num_values, own)]
        raise ArgumentError(
            "data", f"{data.name!r}, {kinds[0]} values", f"{kinds[1]} values, as in the model's training"
        )


def scaling(model: ScoreModel) -> Scaling:
    """Return the model's map from the data's units to its own.

    Raises:
        CheckpointError: the model was saved without one.
    """
    if model.scaling is None:
        raise CheckpointError("run", "a model without a scaling", "a model that was trained on data")
    return model.scaling


def item_shape(model: ScoreModel) -> tuple[int, ...]:
    """Return D, the shape of the items that the model takes."""
    shape = net_shape(model.net)
    return (shape[0] // 2, *shape[1:]) if model.self_condition else shape
