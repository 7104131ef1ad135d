"""Typed settings of a run: defaults, a preset for the data, a YAML file, dotted overrides; the later wins.

Every key is a field with a type, a range and one line of explanation; the command line's help, the saved
``config.yaml`` and the reference table are all read off these fields.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from scoresde.errors import ConfigError, UnknownNameError
from scoresde.files import write_atomically
from scoresde.nets.presets import PRESETS as NET_PRESETS
from scoresde.nets.presets import net_preset


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class DataConfig(_Section):
    """What to learn, and how much of it to hold out."""

    source: str = Field("digits", min_length=1, description="digits, the name of a 2-D toy, or a path to data")
    held_out: int | float | None = Field(
        None, gt=0, description="items held out: a count, or a fraction below 1; null: the source's default"
    )
    seed: int = Field(0, ge=0, description="seed of the split and of generated toy data")
    n: int | None = Field(None, ge=2, description="use this many items; null: all there are")
    num_values: int | None = Field(None, ge=2, description="number of integer levels of the data; null: from its type")
    size: int | None = Field(None, ge=1, description="crop and resize images to size x size pixels; null: as they are")
    key: str | None = Field(None, min_length=1, description="name of the array in an .npz file; null: the only one")
    grayscale: bool = Field(False, description="turn colour images to one channel")
    mmap: bool = Field(False, description="leave an .npy file on the disk and read it batch by batch")
    labels: str | None = Field(None, min_length=1, description="an .npy file of classes beside the data (mmap)")

    @field_validator("held_out")
    @classmethod
    def _count_or_fraction(cls, value: int | float | None) -> int | float | None:
        if isinstance(value, float) and value >= 1:
            raise ConfigError("data.held_out", value, "a whole number >= 1 (a count) or a fraction between 0 and 1")
        return value


class SDEConfig(_Section):
    """The forward process."""

    name: Literal["vp", "vp-cosine", "subvp", "ve", "flow", "ddpm"] = Field(
        "vp", description="family and schedule of the SDE"
    )
    beta_min: float = Field(0.1, ge=0, description="rate beta at t = 0 (vp, subvp); the first beta of a ddpm: 1e-4")
    beta_max: float = Field(20.0, gt=0, description="rate beta at t = 1 (vp, subvp); the last beta of a ddpm: 0.02")
    levels: int = Field(1000, ge=2, description="levels of a ddpm")
    sigma_min: float = Field(0.01, gt=0, description="noise standard deviation at t = 0 (ve)")
    sigma_max: float = Field(50.0, gt=0, description="noise standard deviation at t = 1 (ve)")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.beta_max < self.beta_min:
            raise ConfigError("sde.beta_max", self.beta_max, f"a number >= sde.beta_min = {self.beta_min}")
        if self.name == "ddpm" and not 0 < self.beta_min <= self.beta_max < 1:
            raise ConfigError("sde.beta_max", self.beta_max, "betas between 0 and 1 for a ddpm, such as 1e-4 and 0.02")
        if self.sigma_max <= self.sigma_min:
            raise ConfigError("sde.sigma_max", self.sigma_max, f"a number > sde.sigma_min = {self.sigma_min}")
        return self


class ModelConfig(_Section):
    """How the network's output is read."""

    predicts: Literal["noise", "data", "velocity", "score", "flow", "edm"] = Field(
        "edm", description="what the network puts out; edm mixes data and noise by the signal-to-noise ratio"
    )
    time_input: Literal["log_snr", "time", "ddpm", "score_sde_vp"] = Field(
        "log_snr", description="what the network is told about t"
    )
    data_std: float | None = Field(
        None, gt=0, description="standard deviation of the data in model space (edm); null: measured"
    )


class NetConfig(_Section):
    """The network."""

    name: Literal["auto", "unet", "dit", "mlp"] = Field(
        "auto", description="architecture; auto: unet for images, else mlp"
    )
    options: dict[str, Any] = Field({}, description="options of the network's builder, e.g. {channels: 64}")


class TrainConfig(_Section):
    """Training: objective, optimiser, bookkeeping."""

    steps: int = Field(20_000, ge=1, description="optimiser steps")
    batch_size: int = Field(128, ge=1, description="items in a step")
    minutes: float | None = Field(
        None, gt=0, description="train for so long instead of train.steps, saving and measuring not counted"
    )
    optimizer: Literal["adam", "muon"] = Field(
        "adam", description="muon: orthogonal steps on the hidden layers' weights, Adam's on all others"
    )
    lr: float = Field(5e-4, gt=0, description="learning rate after the warm-up")
    warmup: int = Field(500, ge=0, description="steps over which the learning rate rises from 0")
    beta2: float = Field(0.99, gt=0, lt=1, description="decay rate of Adam's squared gradients; the gradients' is 0.9")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    ema_half_life: float = Field(
        0.05, gt=0, description="half-life of the weights' moving average: steps, or a fraction of train.steps if < 1"
    )
    ema_extra: dict[str, float] = Field(
        {}, description="further averages of the weights by name, such as {slow: 0.2}; half-lives as above"
    )
    objective: Literal["denoising", "sliced"] = Field(
        "denoising", description="score matching against the noise that was added, or by random projections"
    )
    weighting: Literal["simple", "likelihood", "sigmoid", "min-snr", "edm"] = Field(
        "simple",
        description="weight of the loss over t: sigma^2 (samples), g^2 (likelihoods), sigmoid (both), min-SNR or EDM's",
    )
    sigmoid_gain: float = Field(20.0, ge=0, description="how much more the sigmoid weighting weighs low log-SNRs")
    time_sampling: Literal["uniform", "low-discrepancy", "log-snr", "log-normal", "levels"] = Field(
        "low-discrepancy", description="how a batch's times are drawn; log-snr suits likelihood, log-normal edm"
    )
    dequantization: Literal["uniform", "truncated-normal", "none"] = Field(
        "uniform",
        description="noise in the bins of integer data; truncated-normal: bin centres, and times from where the "
        "process's own noise fills the bins",
    )
    conditional: bool = Field(False, description="tell the network the labels: a model of each class")
    label_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of labels hidden in training, for classifier-free guidance (conditional)"
    )
    flip: bool = Field(False, description="mirror half of the images at random, left to right")
    accumulate: int = Field(1, ge=1, description="pieces in which a batch goes through the network, to save memory")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the network's matrix products and convolutions; float16 with loss scaling"
    )
    compile: bool = Field(False, description="run the network through torch.compile")
    channels_last: bool = Field(False, description="hold images channels last: faster on CUDA with tensor cores")
    on_nan: Literal["stop", "skip"] = Field("stop", description="what to do where the loss is NaN or infinite")
    workers: int = Field(0, ge=0, description="processes that read data ahead (mmap)")
    lr_decay: Literal["none", "cosine", "linear"] = Field("cosine", description="learning rate after the warm-up")
    checkpoint_every: int = Field(1_000, ge=1, description="steps between checkpoints")
    log_every: int = Field(20, ge=1, description="steps between lines of the log")
    keep: int = Field(2, ge=1, description="checkpoints kept, besides the best on held-out data; others are removed")
    sample_every: int | None = Field(None, ge=1, description="steps between pictures of samples; null: none")
    tensorboard: bool = Field(False, description="write the log for TensorBoard as well")
    seed: int = Field(0, ge=0, description="seed of weights, batches, times and noise")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute; auto: the fastest")
    deterministic: bool = Field(False, description="refuse operations whose result can change between runs")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name, value in self.ema_extra.items():
            if not value > 0 or not name.replace("-", "_").isidentifier() or name == "ema":
                raise ConfigError(
                    "train.ema_extra", f"{name}: {value}", "names, other than ema, of positive half-lives"
                )
        if self.label_dropout and not self.conditional:
            raise ConfigError("train.label_dropout", self.label_dropout, "0, or train.conditional=true")
        if self.accumulate > self.batch_size:
            raise ConfigError("train.accumulate", self.accumulate, f"at most train.batch_size = {self.batch_size}")
        return self


class SampleConfig(_Section):
    """Drawing samples."""

    sampler: Literal["pc", "ode", "dpm", "ddim"] = Field(
        "dpm", description="predictor-corrector, the probability-flow ODE, its multistep solver, or DDIM"
    )
    steps: int | None = Field(None, ge=1, description="steps from noise to data; null: the sampler's default")
    n: int = Field(64, ge=1, description="samples to draw")
    label: int | None = Field(None, ge=0, description="class to draw (conditional models); null: all in turn")
    guidance: float = Field(
        1.0, ge=0, description="scale of classifier-free guidance (models trained with label_dropout); 1: none"
    )
    interval: list[float] | None = Field(
        None, description="log-SNR [low, high] between which there is classifier-free guidance; null: everywhere"
    )
    rescale: float = Field(
        0.0, ge=0, le=1, description="how far classifier-free guidance keeps the contrast of the conditional model"
    )
    classifier: str | None = Field(
        None, min_length=1, description="folder of a classifier to guide by, made by `scoresde classifier`; null: none"
    )
    scale: float = Field(1.0, ge=0, description="scale of the guidance by the classifier")
    predictor: Literal["reverse-diffusion", "ancestral", "euler-maruyama"] = Field(
        "reverse-diffusion", description="step of the reverse SDE (pc)"
    )
    corrector: Literal["langevin", "none"] = Field(
        "langevin", description="Langevin step after each predictor step (pc)"
    )
    snr: float = Field(0.16, gt=0, description="signal-to-noise ratio that sets the corrector's step size (pc)")
    method: str | None = Field(
        None,
        min_length=1,
        description="solver (ode); null: dopri5, which adapts its steps, or rk4 if steps are given",
    )
    rtol: float = Field(1e-5, gt=0, description="relative tolerance of adaptive solvers (ode)")
    atol: float = Field(1e-5, gt=0, description="absolute tolerance of adaptive solvers (ode)")
    seed: int = Field(0, ge=0, description="seed of the draw")
    batch: int = Field(256, ge=1, description="samples drawn at a time; does not change the samples")

    @model_validator(mode="after")
    def _guidance_fits(self) -> Self:
        if self.interval is not None and not (len(self.interval) == 2 and self.interval[0] < self.interval[1]):
            raise ConfigError("sample.interval", self.interval, "two log-SNRs [low, high] with low < high, or null")
        for name in ("interval", "rescale"):
            if self.guidance == 1 and getattr(self, name):
                raise ConfigError(f"sample.{name}", getattr(self, name), "none without sample.guidance")
        if self.classifier is None and self.scale != 1:
            raise ConfigError("sample.scale", self.scale, "1 without sample.classifier")
        return self


class LikelihoodConfig(_Section):
    """Log-likelihood by the probability flow."""

    n: int | None = Field(None, ge=1, description="held-out items to score; null: all")
    method: str = Field("multistep", min_length=1, description="ODE solver")
    steps: int | None = Field(
        None, ge=1, description="network calls (multistep), or steps of another fixed-step solver; null: its default"
    )
    rtol: float = Field(1e-5, gt=0, description="relative tolerance of an adaptive solver")
    atol: float = Field(1e-5, gt=0, description="absolute tolerance of an adaptive solver")
    divergence: Literal["auto", "exact", "hutchinson"] = Field(
        "auto", description="trace of the Jacobian; auto: exact for few dimensions, else hutchinson"
    )
    probes: int = Field(1, ge=1, description="random probes of the Hutchinson estimate at each network call")
    dequantizations: int = Field(1, ge=1, description="noise draws averaged per integer-valued item")
    t_min: float | None = Field(None, gt=0, lt=1, description="time at which the flow meets the data; null: default")
    seed: int = Field(0, ge=0, description="seed of probes and dequantisation")
    batch: int = Field(256, ge=1, description="items scored at a time; does not change the results")


class RunConfig(_Section):
    """All settings of a run, one section for each part of it."""

    data: DataConfig = Field(default_factory=DataConfig)
    sde: SDEConfig = Field(default_factory=SDEConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    net: NetConfig = Field(default_factory=NetConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)
    likelihood: LikelihoodConfig = Field(default_factory=LikelihoodConfig)

    @model_validator(mode="after")
    def _can_be_guided(self) -> Self:
        if self.sample.guidance != 1 and not self.train.label_dropout:
            raise ConfigError("sample.guidance", self.sample.guidance, "1, or a model trained with train.label_dropout")
        return self


class Preset(NamedTuple):
    """Settings for kinds of data: taken when ``data.source`` is one of ``sources``, unless a preset is named."""

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
    """Name of the preset that belongs to a data source (``_`` and ``-`` alike), or None."""
    return next((name for name, preset in PRESETS.items() if source.replace("_", "-") in preset.sources), None)


def load_config(
    path: str | os.PathLike | None = None, preset: str | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Resolve a run's settings: defaults < preset < YAML file < overrides.

    ``preset`` names an entry of ``PRESETS``, or a network's of ``scoresde.nets.PRESETS``; None picks by
    ``data.source``, ``"none"`` takes none. ``overrides`` are texts like ``"train.steps=100"``, their values read as
    YAML. ``net.options`` of the file replaces the preset's as a whole, and a preset's net gives way to another
    ``net.name``; an override adds to what is there.

    Raises ``ConfigError`` for an unreadable or malformed file (with the line), an unknown key (with the nearest one), a
    value of the wrong type or out of range; ``UnknownNameError`` for an unknown preset.
    """
    given = _read(path) if path is not None else {}
    patch: dict[str, Any] = {}
    for override in overrides:
        _apply(patch, override)

    explicit = _merge(copy.deepcopy(given), patch)
    source = (explicit.get("data") or {}).get("source", DataConfig().source)
    if preset is None:
        preset = preset_for(source) if isinstance(source, str) else None
    elif preset != "none" and preset not in PRESETS and preset not in NET_PRESETS:
        raise UnknownNameError("preset", preset, (*PRESETS, *NET_PRESETS, "none"))

    base = copy.deepcopy(PRESETS[preset].settings) if preset in PRESETS else {}
    if preset in NET_PRESETS:
        chosen_net = net_preset(preset)
        options = {key: value for key, value in chosen_net.net.items() if key not in ("name", "shape")}
        base = {**chosen_net.run, "net": {"name": chosen_net.net["name"], "options": options}}
    net, chosen = base.get("net", {}), (explicit.get("net") or {}).get("name")
    if chosen is not None and chosen != net.get("name"):
        base.pop("net", None)
    elif "options" in (given.get("net") or {}):
        net.pop("options", None)
    values = _merge(_merge(base, given), patch)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _translate(error, values) from None


def save_config(config: RunConfig, path: str | os.PathLike) -> Path:
    """Write every setting, each with its explanation, as YAML that ``load_config`` reads back unchanged. Atomic."""
    lines = ["# All settings of this run, each with what it means."]
    for section, info in RunConfig.model_fields.items():
        values = getattr(config, section)
        lines += ["", f"{section}:  # {_summary(info.annotation)}"]
        for name, field in type(values).model_fields.items():
            entry = f"  {name}: {_yaml(getattr(values, name))}"
            lines.append(f"{entry:<36}  # {field.description}")
    return write_atomically(path, "\n".join(lines) + "\n")


class Setting(NamedTuple):
    """One key as a reader needs it: ``train.steps``, 20000, ``a whole number >= 1``, ``optimiser steps``."""

    key: str
    default: Any
    accepts: str
    description: str


def settings(section: str | None = None) -> Iterator[Setting]:
    """Every setting, in order, or those of one section. Raises ``UnknownNameError`` for an unknown section."""
    if section is not None and section not in RunConfig.model_fields:
        raise UnknownNameError("section", section, RunConfig.model_fields)
    for name, info in RunConfig.model_fields.items():
        if section in (None, name):
            for leaf, field in info.annotation.model_fields.items():
                yield Setting(f"{name}.{leaf}", field.get_default(), _accepts(field), field.description)


def config_reference() -> str:
    """Markdown: a table of every key, its default, what it accepts and what it does; then the presets."""
    lines = ["# Settings", "", "A YAML file has one mapping per section; an override is `section.key=value`."]
    for section, info in RunConfig.model_fields.items():
        lines += ["", f"## {section}", "", _summary(info.annotation), ""]
        lines += ["| key | default | accepts | what it does |", "| --- | --- | --- | --- |"]
        for key, default, accepts, description in settings(section):
            lines.append(f"| `{key}` | `{_yaml(default)}` | {accepts} | {description} |")
    lines += ["", "## Presets", "", "Taken by the data source; a file and overrides win over them.", ""]
    lines += ["| preset | data.source | settings |", "| --- | --- | --- |"]
    for name, preset in PRESETS.items():
        pairs = (f"`{s}.{k}={_yaml(v)}`" for s, block in preset.settings.items() for k, v in block.items())
        lines.append(f"| {name} | {', '.join(preset.sources)} | {' '.join(pairs)} |")
    return "\n".join(lines) + "\n"


# --- reading ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-4`` as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        where = f" on line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(what, f"malformed YAML{where} ({problem})", "well-formed YAML") from None


def _read(path: str | os.PathLike) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"config file {os.fspath(path)!r}", reason, "a readable YAML file") from None
    values = _parse(text, f"config file {os.fspath(path)!r}")
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"config file {os.fspath(path)!r}", _kind(values), f"sections: {_listed(_sections())}")
    return _checked(values or {})


def _apply(patch: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError("override", repr(override), "section.key=value, such as train.steps=100")
    value = _parse(text, key)
    for name in reversed(key.split(".")):
        value = {name: value}
    _merge(patch, _checked(value))


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on it in place, mappings merged key by key."""
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            _merge(old, value)
        else:
            base[key] = copy.deepcopy(value)
    return base


# --- errors ----------------------------------------------------------------------------------------------------------


def _sections() -> dict[str, type[_Section]]:
    return {name: info.annotation for name, info in RunConfig.model_fields.items()}


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` without its empty sections; raises at an unknown key or a section that is no mapping."""
    sections = _sections()
    for section, block in values.items():
        if section not in sections:
            raise _unknown(f"{section}.{next(iter(block))}" if isinstance(block, dict) and block else str(section))
        fields = sections[section].model_fields
        if block is not None and not isinstance(block, dict):
            raise ConfigError(section, _kind(block), f"a section with the keys {_listed(fields)}")
        for key, value in (block or {}).items():
            if key not in fields:
                raise _unknown(f"{section}.{key}")
            if isinstance(value, dict) and get_origin(fields[key].annotation) is not dict:
                raise ConfigError(f"{section}.{key}", _kind(value), _accepts(fields[key]))
    return {section: block for section, block in values.items() if block is not None}


def _unknown(key: str) -> ConfigError:
    """The error for a key that is no setting, with the nearest one that is."""
    known = [setting.key for setting in settings()]
    section, _, leaf = key.rpartition(".")
    if section in _sections():
        pool = [name for name in known if name.startswith(f"{section}.")]
        expected = f"a key of {section}: {_listed(name.removeprefix(f'{section}.') for name in pool)}"
        near = difflib.get_close_matches(key, pool, n=1, cutoff=0.8)  # a slip of the pen in the right section
    else:
        expected = f"a key of a section: {_listed(_sections())}"
        near = difflib.get_close_matches(key, known if section else _sections(), n=1, cutoff=0.8)
    near = near or [name for name in known if name.endswith(f".{leaf}")]  # the right name in the wrong section
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return ConfigError(key, "an unknown key", expected + (f" (did you mean {near[0]!r}?)" if near else ""))


def _translate(error: ValidationError, values: Mapping[str, Any]) -> ConfigError:
    """The first of pydantic's complaints, in our words."""
    first = error.errors(include_url=False)[0]
    own = (first.get("ctx") or {}).get("error")
    if isinstance(own, ConfigError):
        return own
    section, key = first["loc"][:2]
    field, got = _sections()[section].model_fields[key], values[section][key]
    expected = _accepts(field)
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    near = difflib.get_close_matches(str(got), choices, n=1, cutoff=0.5)
    return ConfigError(f"{section}.{key}", repr(got), expected + (f" (did you mean {near[0]!r}?)" if near else ""))


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list of numbers",
    dict: "a mapping",
}
_BOUNDS = {
    annotated_types.Ge: ("ge", ">="),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "<="),
    annotated_types.Lt: ("lt", "<"),
}


def _accepts(field: FieldInfo) -> str:
    """What a field takes, in words: its type, range and whether null will do."""
    annotation, origin = field.annotation, get_origin(field.annotation)
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(annotation)))}"
    options = get_args(annotation) if origin in (types.UnionType, Union) else (annotation,)
    kinds = [get_origin(o) or o for o in options if o is not types.NoneType and (o is not int or float not in options)]
    bounds = [f"{_BOUNDS[type(m)][1]} {getattr(m, _BOUNDS[type(m)][0])}" for m in field.metadata if type(m) in _BOUNDS]
    text = " or ".join(_WORDS[kind] for kind in kinds) + (f" {' and '.join(bounds)}" if bounds else "")
    return f"{text}, or null" if types.NoneType in options else text


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _listed(names: Any) -> str:
    return ", ".join(names)


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _summary(section: type[_Section]) -> str:
    return section.__doc__.splitlines()[0]
