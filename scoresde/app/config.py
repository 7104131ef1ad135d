"""The settings of a run, one frozen dataclass for each section of a file.

Each key is a field with a type, a range and one line of explanation (:mod:`scoresde.settings`). Files, the command
line's help and the table of settings are read off these fields. The keys of ``train`` that a trainer takes come from
:class:`~scoresde.training.TrainerConfig`. None leaves a value to the library: the default of the class or function
that it configures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_type_hints

from scoresde.data.options import LabelsFrom, Layout
from scoresde.errors import ArgumentError, ConfigError, UnknownNameError
from scoresde.settings import Settings, setting, settings_of
from scoresde.training.config import TimeSamplingName, TrainerConfig, WeightingName

SDEName = Literal["vp", "vp-cosine", "subvp", "ve", "ve-linear", "flow", "ddpm", "ddpm-cosine", "ncsn"]
Predicts = Literal["noise", "data", "velocity", "score", "flow", "edm"]
TimeInput = Literal["log_snr", "time", "sigma", "ddpm", "improved_ddpm", "ncsn", "score_sde_vp", "score_sde_ve", "edm"]
NetName = Literal["auto", "unet", "dit", "mlp"]
ObjectiveName = Literal["denoising", "sliced"]
DequantizationName = Literal["uniform", "truncated-normal", "none"]
SamplerName = Literal["pc", "ode", "dpm", "ddim"]
PredictorName = Literal["reverse-diffusion", "ancestral", "euler-maruyama"]
CorrectorName = Literal["langevin", "none"]
DivergenceName = Literal["auto", "exact", "hutchinson"]

CORRUPTED = 120  # held-out images that `scoresde evaluate` corrupts in each way
CHUNK = 256  # items that go through the network together unless a setting says otherwise


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """What to learn, and how much of it to hold out."""

    source: str = setting("digits", "name or path of the data: digits, a 2-D toy such as two-moons, a file or a folder")
    held_out: int | float | None = setting(
        None, "items to hold out: a count, or a fraction below 1; None: the source's default", gt=0
    )
    seed: int = setting(0, "seed of the split and of generated toy data", ge=0)
    n: int | None = setting(None, "use this many items; None: all", ge=2)
    num_values: int | None = setting(None, "number of values of integer data; None: from their type", ge=2)
    size: int | None = setting(None, "crop and resize images to size x size pixels; None: as they are", ge=1)
    key: str | None = setting(None, "name of the array in an .npz file; None: the only one")
    grayscale: bool = setting(False, "convert colour images to one channel")
    layout: Layout | None = setting(
        None, "order of an array's axes: channels-first, channels-last or no-channels; None: from its shape"
    )
    labels_from: LabelsFrom | None = setting(
        None, "where the classes of images come from: folders, names (dog_1.png) or none; None: folders"
    )
    columns: str | None = setting(
        None, "columns of a table to learn, with commas between them; None: all but the labels"
    )
    label_column: str | None = setting(None, "column of a table with the classes; None: no labels")
    missing: bool = setting(False, "take NaN and empty cells for missing values, which the loss leaves out")
    mmap: bool = setting(False, "leave an .npy file on the disk and read it batch by batch")
    labels: str | None = setting(None, "an .npy file of class labels beside the data (mmap)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.held_out, float) and self.held_out >= 1:
            raise ArgumentError("held_out", self.held_out, "an integer >= 1 (a count) or a fraction between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class SDEConfig(Settings):
    """The forward process."""

    name: SDEName = setting("vp", "family and noise schedule of the SDE")
    beta_min: float | None = setting(
        None, "rate beta at t = 0 (vp, subvp), first beta (ddpm); None: as the process sets it", ge=0
    )
    beta_max: float | None = setting(
        None, "rate beta at t = 1 (vp, subvp), last beta (ddpm); None: as the process sets it", gt=0
    )
    levels: int | None = setting(
        None, "number of noise levels (ddpm, ddpm-cosine, ncsn); None: as the process sets it", ge=2
    )
    sigma_min: float | None = setting(
        None,
        "noise standard deviation at t = 0 (ve), first level (ncsn); None: a tenth of the finest length of the data",
        gt=0,
    )
    sigma_max: float | None = setting(
        None,
        "noise standard deviation at t = 1 (ve, ve-linear), last level (ncsn); None: above all lengths of the data",
        gt=0,
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """How the model reads the network's output."""

    predicts: Predicts = setting("edm", "what the network predicts; edm mixes data and noise by the noise level")
    time_input: TimeInput | None = setting(None, "what the network receives for the time; None: log_snr")
    data_std: float | None = setting(None, "standard deviation of the data in model units (edm); None: measured", gt=0)
    self_condition: bool = setting(False, "let the network see its estimate of the data from the call before")


@dataclass(frozen=True, kw_only=True)
class NetConfig(Settings):
    """The network."""

    name: NetName = setting("auto", "architecture; auto: unet for images and series, mlp for vectors")
    options: dict[str, Any] = setting({}, "options of the network's builder, such as {channels: 64}")


@dataclass(frozen=True)
class TrainConfig(TrainerConfig):
    """Training: optimiser, objective, bookkeeping."""

    objective: ObjectiveName = setting(
        "denoising", "score matching against the added noise (denoising), or by random projections (sliced)"
    )
    weighting: WeightingName | None = setting(
        None,
        "weight of the loss over t: simple for samples, likelihood, sigmoid for both; None: as the objective sets it",
    )
    sigmoid_gain: float | None = setting(
        None, "how much more the sigmoid weighting weighs low log-SNRs; None: as the weighting sets it", ge=0
    )
    time_sampling: TimeSamplingName | None = setting(
        None, "how a batch's times are drawn; None: as suits the weighting"
    )
    dequantization: DequantizationName = setting(
        "uniform",
        "noise in the bins of integer data; truncated-normal: bin centres, and times from where the process's own "
        "noise fills the bins",
    )
    sample_every: int | None = setting(None, "steps between pictures of samples; None: no pictures", ge=1)
    tensorboard: bool = setting(False, "write the log for TensorBoard as well")
    wandb: bool = setting(False, "send the log to Weights & Biases as well (WANDB_PROJECT names the project)")
    mlflow: bool = setting(False, "send the log to MLflow as well (MLFLOW_TRACKING_URI names the server)")
    deterministic: bool = setting(False, "refuse operations whose result can change between runs")

    @property
    def trainer(self) -> TrainerConfig:
        """The trainer's part of these settings."""
        return TrainerConfig(**{one.name: getattr(self, one.name) for one in fields(TrainerConfig)})


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Settings):
    """Drawing samples."""

    sampler: SamplerName = setting(
        "dpm", "predictor-corrector (pc), probability-flow ODE (ode), its multistep solver (dpm), or DDIM (ddim)"
    )
    steps: int | None = setting(
        None, "steps from noise to data, network calls for dpm; None: as the sampler sets it", ge=1
    )
    n: int = setting(64, "samples to draw", ge=1)
    label: int | None = setting(None, "class to draw (conditional models); None: all in turn", ge=0)
    guidance: float = setting(
        1.0,
        "scale of classifier-free guidance (models trained with label_dropout): 1 is none, 2 or 3 sharper classes",
        ge=0,
    )
    interval: tuple[float, float] | None = setting(
        None, "log-SNRs low and high between which classifier-free guidance acts; None: everywhere"
    )
    rescale: float | None = setting(
        None, "how far classifier-free guidance keeps the contrast of the unguided model; None: not at all", ge=0, le=1
    )
    classifier: str | None = setting(
        None, "folder of a classifier that guides, made by `scoresde classifier`; None: no classifier"
    )
    scale: float | None = setting(
        None, "scale of the classifier's guidance: 1 is Bayes' rule, 0 none, more sharper classes; None: 1", ge=0
    )
    predictor: PredictorName | None = setting(None, "step of the reverse SDE (pc); None: as the sampler sets it")
    corrector: CorrectorName = setting("langevin", "Langevin step after each predictor step, or none (pc)")
    snr: float | None = setting(
        None, "signal-to-noise ratio that sets the corrector's step size (pc); None: as the corrector sets it", gt=0
    )
    method: str | None = setting(None, "ODE solver (ode); None: as the sampler sets it, or rk4 if steps are given")
    rtol: float | None = setting(
        None, "relative tolerance of adaptive solvers (ode); None: as the sampler sets it", gt=0
    )
    atol: float | None = setting(
        None, "absolute tolerance of adaptive solvers (ode); None: as the sampler sets it", gt=0
    )
    seed: int = setting(0, "seed of the draw", ge=0)
    batch: int = setting(CHUNK, "samples drawn at a time; does not change the samples", ge=1)
    calibration_paths: int = setting(
        16, "paths on which the default sampler is fitted to the model after training; 0: it is not", ge=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_paths in (1, 2):
            raise ArgumentError("calibration_paths", self.calibration_paths, "0, or 3 or more")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ArgumentError("interval", list(self.interval), "two log-SNRs [low, high] with low < high, or None")
        for name in ("interval", "rescale"):
            if self.guidance == 1 and getattr(self, name):
                raise ArgumentError(name, getattr(self, name), "None without sample.guidance")
        if self.classifier is None and self.scale is not None:
            raise ArgumentError("scale", self.scale, "None without sample.classifier")


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(Settings):
    """Log-likelihood by the probability flow."""

    n: int | None = setting(None, "held-out items to score; None: all", ge=1)
    method: str | None = setting(None, "ODE solver; None: multistep")
    steps: int | None = setting(
        None, "network calls (multistep), or steps of another fixed-step solver; None: as the solver sets them", ge=1
    )
    rtol: float | None = setting(None, "relative tolerance of an adaptive solver; None: as the solver sets it", gt=0)
    atol: float | None = setting(
        None,
        "tolerance of log p in nats a dimension (multistep), or absolute tolerance of an adaptive solver; None: as the "
        "solver sets it",
        gt=0,
    )
    divergence: DivergenceName = setting(
        "auto", "trace of the Jacobian; auto: exact for few dimensions, else hutchinson"
    )
    probes: int | None = setting(
        None, "random probes of the Hutchinson estimate at each network call; None: as the estimate sets them", ge=1
    )
    dequantizations: int | None = setting(
        None, "noise draws averaged per integer-valued item; None: as the dequantisation sets it", ge=1
    )
    t_min: float | None = setting(
        None, "time at which the flow meets the data; None: as the process sets it", gt=0, lt=1
    )
    seed: int = setting(0, "seed of probes and dequantisation", ge=0)
    batch: int = setting(CHUNK, "items scored at a time; does not change the results", ge=1)


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(Settings):
    """Restoring items from observations: options of commands, not of a run."""

    method: str = setting(
        "pigdm", "how observations guide the model: pigdm, gaussian-data, moment-matching, dps or replacement"
    )
    noise: float = setting(
        0.05,
        "standard deviation of the observation's noise; images run from -1 to 1, other data have deviation 1",
        ge=0,
    )
    scale: float | None = setting(None, "step size of dps; None: as dps sets it")
    sampler: str | None = setting(None, "sampler: particles, dpm, resampling or pc; None: as suits the method")
    particles: int | None = setting(
        None, "particles per sample, weighted to correct the method's error, 1: none; None: as the method sets it", ge=1
    )
    steps: int | None = setting(None, "steps from noise to data; None: as the sampler sets it", ge=1)
    samples: int = setting(8, "samples per item", ge=2)
    limit: int = setting(8, "number of items to restore", ge=1)
    label: int | None = setting(None, "class label of the items, for a conditional model; None: unknown", ge=0)
    seed: int = setting(0, "seed of noise and samples", ge=0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run, one section for each part of it."""

    data: DataConfig = field(default_factory=DataConfig)
    sde: SDEConfig = field(default_factory=SDEConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    net: NetConfig = field(default_factory=NetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)

    def __post_init__(self) -> None:
        if self.sample.guidance != 1 and not self.train.label_dropout:
            raise ConfigError("sample.guidance", self.sample.guidance, "1, or a model trained with train.label_dropout")


#: the sections in order, with the class of each
SECTIONS: dict[str, type[Settings]] = get_type_hints(RunConfig)


class Key(NamedTuple):
    """One key: its name, default, what it accepts, and its explanation."""

    key: str
    default: Any
    accepts: str
    text: str


def keys(section: str | None = None) -> Iterator[Key]:
    """Yield every key in order, or those of one section.

    Raises:
        UnknownNameError: an unknown section.
    """
    if section is not None and section not in SECTIONS:
        raise UnknownNameError("section", section, SECTIONS)
    for name, cls in SECTIONS.items():
        if section in (None, name):
            for one in settings_of(cls):
                yield Key(f"{name}.{one.name}", one.default, in_yaml(one.accepts), in_yaml(one.text))


def in_yaml(text: str) -> str:
    """Return a text with None written as YAML writes it."""
    return text.replace("None", "null")
