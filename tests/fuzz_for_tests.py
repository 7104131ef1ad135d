"""Calls of every public callable, with one or two arguments spoiled."""

from __future__ import annotations

import importlib
import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pandas
import torch
from PIL import Image

import scoresde as S
import tests.interop.small as small
from scoresde.training.distributed import Ranks

PACKAGE = Path(S.__file__).parent
#: what a user receives and does not make, what is abstract, and what a process has once
NOT_CALLED = {
    *("Estimate", "Likelihood", "BitsPerDim", "Classification", "VariationalBound", "Solution", "State", "Record"),
    *(
        "Skip",
        "Verdict",
        "Terms",
        "Level",
        "HostLevel",
        "Unguided",
        "NetPreset",
        "DataScale",
        "SolverSettings",
        "Calibration",
    ),
    *("Model", "SDE", "Network", "Wrapper", "LinearOperator", "Sampler", "GridSampler", "Corrector", "Predictor"),
    *("Objective", "Weighting", "TimeSampling", "Draws", "Divergence", "Dequantization", "Logger", "Tableau", "Ranks"),
    *("register_net", "register_sde", "process_group", "on_signals", "MLflow", "WandB", "TensorBoard", "load_digits"),
    *("GaussianMixtureModel", "Conditioning", "net_names", "State"),
    *("push_to_hub", "stream_hosted"),  # they need a network
}

#: parameters whose spoiled values are long work, such as the default of 20,000 steps
LONG = {(S.Trainer, "config"), (S.data.Batches, "workers"), (S.data.stream_batches, "workers")}
#: parameters that take functions, for which any callable is good
FUNCTIONS = {
    *(
        "callback",
        "optimizer",
        "scheduler",
        "field",
        "norm",
        "log_p_y",
        "A",
        "At",
        "log_p_y_given_x0",
        "weighting",
        "transform",
    ),
    *("net", "time_input", "score", "work", "denoiser", "classifier", "autoencoder", "features", "answer"),
}

DATA = S.Data("points", torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))
PIXELS = S.Data("pixels", torch.randint(0, 8, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0)), num_values=8)
SDE = S.VPSDE()
TOY = S.GaussianMixture(torch.zeros(1, 2), 1.0).model(SDE)
LABELLED = S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1, classes=3), SDE)
IMAGES = S.GaussianMixture(torch.zeros(1, 1, 4, 4), 1.0).model(SDE)
INTEGERS = S.ScoreModel.for_data(S.UNet((1, 4, 4), channels=8, num_groups=4, multipliers=(1,)), SDE, PIXELS)
X = torch.zeros(2, 2)
LEARNED = S.ScoreModel(
    S.ResidualMLP((2,), width=8, blocks=1, out_channels=4), S.DDPM([0.1, 0.2, 0.3]), learned_variance=True
)
OBSERVED = S.guidance.pigdm(TOY, S.guidance.Inpainting(torch.tensor([True, False])), torch.zeros(2), 0.1)


def operator() -> S.guidance.Inpainting:
    return S.guidance.Inpainting(torch.tensor([True, False]))


@dataclass(frozen=True)
class Case:
    """A callable, arguments that it accepts, and what to do with the result."""

    call: Callable[..., Any]
    good: dict[str, Any] = field(default_factory=dict)
    then: Callable[[Any], object] = lambda made: None

    def run(self, **spoiled: Any) -> None:
        """Call with some arguments replaced, and use the result."""
        self.then(self.call(**{**self.good, **spoiled}))

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that can be spoiled."""
        found = inspect.signature(self.call).parameters.values()
        named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return [name for name in named if (self.call, name) not in LONG]


def drawn(sampler: Any) -> object:
    return S.sample(TOY, (2, 2), sampler, 3, generator=torch.Generator().manual_seed(0))


def scored(divergence: Any) -> object:
    return S.log_likelihood(TOY, X, divergence, method="euler", steps=2, generator=torch.Generator().manual_seed(0))


def lost(objective: Any) -> object:
    return objective(TOY, X, generator=torch.Generator().manual_seed(0))


def weighed(weighting: Any) -> object:
    return lost(S.DenoisingScoreMatching(weighting))


def timed(sampling: Any) -> object:
    return lost(S.DenoisingScoreMatching(time_sampling=sampling))


def applied(net: Any) -> object:
    x = torch.zeros(2, *net.shape) if hasattr(net, "shape") else X
    return net(x, torch.zeros(2))


def marginal(sde: Any) -> object:
    return sde.log_snr(torch.tensor([0.3, 0.6]))


def measured(operator: Any) -> object:
    return operator.A(torch.zeros(1, *operator.shape))


def guided(model: Any) -> object:
    return S.sample(model, (2, 2), S.DDIM(), 2, generator=torch.Generator().manual_seed(0))


def grey(images: torch.Tensor) -> torch.Tensor:
    return images.double().flatten(1)[:, :2]


def called(net: Any) -> object:
    return net(X, torch.zeros(2))


def streamed(batches: Any) -> object:
    return next(batches)


def folder() -> Path:
    """Return a folder with one file or folder of each kind that is read."""
    path = Path(tempfile.mkdtemp())
    (path / "idx").mkdir()
    (path / "images").mkdir()
    np.save(path / "x.npy", np.zeros((4, 3), np.float32) + np.arange(4, dtype=np.float32)[:, None])
    pixels = bytes([0, 0, 8, 3, *(0, 0, 0, 2), *(0, 0, 0, 4), *(0, 0, 0, 4), *range(32)])
    (path / "x.csv").write_text("a,b\n1,2\n3,5\n")
    (path / "x.idx").write_bytes(pixels)
    (path / "idx" / "train-images-idx3-ubyte").write_bytes(pixels)
    for i in range(2):
        Image.fromarray(np.full((4, 4), 255 * i, np.uint8)).save(path / "images" / f"{i}.png")
    config = S.TrainerConfig(**TRAINED, snapshot_every=1)
    S.Trainer(S.ScoreModel(S.ResidualMLP((2,), width=8, blocks=1), SDE), config=config, folder=path / "trained").fit(
        DATA
    )
    return path


TRAINED: dict[str, Any] = {"steps": 1, "batch_size": 4, "log_every": 1, "device": "cpu"}
FOLDER = folder()
GEN = torch.Generator().manual_seed(0)
SMALL: dict[str, Any] = {"up_block_types": ("UpBlock2D",), "layers_per_block": 1}
SMALL_UNET = diffusers.UNet2DModel(
    sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",), **SMALL
)
DDIM = diffusers.DDIMScheduler()
EIGHT_BITS = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
SCORE_SDE, ADM = small.score_sde_checkpoint(FOLDER), small.adm_checkpoint(FOLDER)

CASES: dict[str, Case] = {
    "AnnealedLangevin": Case(S.AnnealedLangevin, {"step_size": 0.1}),
    "DDPM": Case(S.DDPM, {"betas": [0.1, 0.2, 0.3]}, marginal),
    "NCSN": Case(S.NCSN, {"sigmas": [3.0, 1.0, 0.1]}, marginal),
    "Data": Case(S.Data, {"name": "a", "raw": DATA.raw}, lambda data: data.split(2)),
    "EMA": Case(S.EMA, {"module": torch.nn.Linear(1, 1), "half_life": 3.0}, lambda ema: ema.update()),
    "PowerEMA": Case(S.training.PowerEMA, {"module": torch.nn.Linear(1, 1)}, lambda ema: ema.update()),
    "ExplicitScoreMatching": Case(S.ExplicitScoreMatching, {"target": TOY}, lost),
    "GaussianMixture": Case(
        S.GaussianMixture, {"means": torch.zeros(2, 2), "covariances": 1.0}, lambda made: guided(made.model(SDE))
    ),
    "ScoreModel": Case(S.ScoreModel, {"net": S.ResidualMLP((2,), width=8, blocks=1), "sde": SDE}, guided),
    "Trainer": Case(
        S.Trainer,
        {"model": LABELLED, "config": S.TrainerConfig(**TRAINED)},
        lambda trainer: trainer.fit(DATA),
    ),
    "TrainerConfig": Case(S.TrainerConfig),
    "bits_per_dim": Case(S.bits_per_dim, {"model": INTEGERS, "images": PIXELS.raw[:2], "method": "euler", "steps": 2}),
    "calibrate": Case(S.calibrate, {"model": TOY, "shape": (2,), "calls": (2,), "paths": 4, "reference": 20}),
    "encode": Case(S.encode, {"model": TOY, "x0": X, "steps": 2}),
    "decode": Case(S.decode, {"model": TOY, "z": X, "steps": 2}),
    "interpolate": Case(S.interpolate, {"z0": X + 1, "z1": X - torch.tensor([2.0, 1.0])}),
    "log_likelihood": Case(S.log_likelihood, {"model": TOY, "x0": X, "method": "euler", "steps": 2}),
    "sample": Case(S.sample, {"model": TOY, "shape": (2, 2), "steps": 2}),
    "sample, labels": Case(S.sample, {"model": LABELLED, "shape": (2, 2), "steps": 2, "cond": {"y": X[0].long()}}),
    "trajectory": Case(S.trajectory, {"model": TOY, "shape": (2, 2), "steps": 2}, list),
    "temper": Case(S.temper, {"model": TOY, "z": X, "temperature": 0.9}),
    "variational_bound": Case(S.variational_bound, {"model": TOY, "x0": X, "levels": 4}),
    "load_data": Case(S.load_data, {"source": FOLDER / "x.npy", "held_out": 1}),
    "load_whole": Case(S.data.load_whole, {"source": FOLDER / "x.npy"}),
    "Augmented": Case(S.data.Augmented, {"data": DATA, "transform": torch.clone}, lambda made: made[0]),
    "Batches": Case(S.data.Batches, {"data": DATA, "batch_size": 3, "generator": GEN}, streamed),
    "StreamBatches": Case(
        S.data.StreamBatches, {"data": [torch.zeros(2), torch.ones(2)], "batch_size": 3, "generator": GEN}, streamed
    ),
    "stream_batches": Case(S.data.stream_batches, {"data": DATA, "batch_size": 3, "generator": GEN}, streamed),
    "Mapped": Case(S.data.Mapped, {"array": np.load(FOLDER / "x.npy", mmap_mode="r")}, lambda made: made[0]),
    "Scaling": Case(S.data.Scaling, {}),
    "corrupt": Case(S.data.corrupt, {"data": PIXELS, "kind": "inverted"}),
    "from_array": Case(S.data.from_array, {"array": np.arange(6.0).reshape(3, 2)}),
    "from_dataset": Case(S.data.from_dataset, {"dataset": [torch.zeros(2), torch.ones(2)]}),
    "from_frame": Case(S.data.from_frame, {"frame": pandas.DataFrame({"a": [1.0, 2.0], "b": [0.0, 3.0]})}),
    "load_table": Case(S.data.load_table, {"path": FOLDER / "x.csv"}),
    "load_array": Case(S.data.load_array, {"path": FOLDER / "x.npy"}),
    "load_idx": Case(S.data.load_idx, {"path": FOLDER / "x.idx"}),
    "read_idx": Case(S.data.read_idx, {"path": FOLDER / "x.idx"}),
    "load_idx_folder": Case(S.data.load_idx_folder, {"folder": FOLDER / "idx"}),
    "load_images": Case(S.data.load_images, {"folder": FOLDER / "images"}),
    "load_mask": Case(S.data.load_mask, {"path": FOLDER / "images" / "1.png", "shape": (1, 4, 4)}),
    "load_toy": Case(S.data.load_toy, {"name": "two-moons", "n": 4, "held_out": 2}),
    "map_array": Case(S.data.map_array, {"path": FOLDER / "x.npy"}),
    **{
        name: Case(getattr(S.data, name), {"n": 4}) for name in ("checkerboard", "gaussian_grid", "rings", "swiss_roll")
    },
    "two_moons": Case(S.data.two_moons, {"n": 4}),
    "TruncatedNormal": Case(
        S.data.TruncatedNormal, {}, lambda made: S.bits_per_dim(INTEGERS, PIXELS.raw[:2], made, steps=18)
    ),
    "Uniform": Case(S.data.Uniform, {}, lambda made: S.bits_per_dim(INTEGERS, PIXELS.raw[:2], made, steps=18)),
    "ProbabilityFlowField": Case(
        S.flow.ProbabilityFlowField,
        {"model": TOY, "shape": (2,)},
        lambda field: field(0.5, torch.zeros(2, 2), torch.arange(2)),
    ),
    "integrate": Case(
        S.flow.integrate, {"field": lambda t, y, rows: -y, "y": X + 1, "start": 0.0, "end": 1.0, "steps": 2}
    ),
    "Blur": Case(
        S.guidance.Blur, {"shape": (1, 4, 4), "kernel": torch.ones(3, 3) / 9}, lambda A: A.A(torch.zeros(1, 1, 4, 4))
    ),
    "Colorize": Case(S.guidance.Colorize, {"shape": (3, 4, 4)}, lambda A: A.A(torch.zeros(1, 3, 4, 4))),
    "Downsample": Case(
        S.guidance.Downsample, {"shape": (1, 4, 4), "factor": 2}, lambda A: A.A(torch.zeros(1, 1, 4, 4))
    ),
    "Inpainting": Case(S.guidance.Inpainting, {"mask": torch.tensor([True, False])}, measured),
    "LinearFunction": Case(S.guidance.LinearFunction, {"A": lambda x: x[:, :1], "shape": (2,)}, measured),
    "Matrix": Case(S.guidance.Matrix, {"matrix": torch.ones(1, 2)}, measured),
    "PartialFourier": Case(S.guidance.PartialFourier, {"mask": torch.ones(4, 4, dtype=torch.bool), "shape": (1, 4, 4)}),
    "Separable": Case(S.guidance.Separable, {"matrices": [torch.eye(2), torch.eye(3)], "shape": (2, 3)}),
    "classifier_free_guidance": Case(
        S.guidance.classifier_free_guidance,
        {"model": LABELLED, "scale": 2.0},
        lambda m: S.sample(m, (2, 2), steps=2, cond={"y": torch.tensor([0, 1])}),
    ),
    "classifier_guidance": Case(
        S.guidance.classifier_guidance,
        {"model": TOY, "log_p_y": lambda x, t, y: -x.square().sum(1)},
        lambda m: S.sample(m, (2, 2), steps=2, cond={"y": torch.tensor([0, 1])}),
    ),
    "clipped": Case(S.guidance.clipped, {"model": TOY}, guided),
    "conditioned": Case(S.guidance.conditioned, {"model": LABELLED, "cond": {"y": 1}}, guided),
    "dynamic_threshold": Case(S.guidance.dynamic_threshold, {"model": TOY}, guided),
    **{
        name: Case(
            getattr(S.guidance, name),
            {"model": TOY, "operator": operator(), "y": torch.zeros(2), "noise": 0.1},
            guided,
        )
        for name in ("dps", "gaussian_data", "moment_matching", "pigdm", "replacement")
    },
    "gaussian_kernel": Case(S.guidance.gaussian_kernel, {"std": 1.0}),
    "radial_mask": Case(S.guidance.radial_mask, {"shape": (8, 8), "lines": 3}),
    "with_likelihood": Case(
        S.guidance.with_likelihood,
        {"model": TOY, "log_p_y_given_x0": lambda x0: -x0.square().flatten(1).sum(1)},
        guided,
    ),
    "classify": Case(S.likelihood.classify, {"model": LABELLED, "x0": X, "steps": 18}),
    "Gaussian": Case(S.models.Gaussian, {"mean": torch.zeros(2), "values": torch.ones(2)}),
    "Moments": Case(S.models.Moments, {"mean": torch.zeros(2), "covariance": torch.eye(2)}),
    "autocast": Case(S.models.autocast, {"model": TOY, "dtype": torch.bfloat16}, guided),
    "chunked": Case(S.models.chunked, {"model": TOY, "chunk": 1}, guided),
    "in_own_dtype": Case(S.models.in_own_dtype, {"model": TOY}, guided),
    "ddim_weight": Case(S.models.ddim_weight, {"sde": SDE, "s": 0.2, "t": 0.4}),
    "discretised_gaussian": Case(
        S.models.discretised_gaussian,
        {"raw": PIXELS.raw[:2], "mean": torch.zeros(2, 1, 4, 4), "std": 0.1, "scaling": PIXELS.scaling},
    ),
    "subsequence_weights": Case(S.models.subsequence_weights, {"ddpm": S.DDPM.cosine(4), "steps": [2, 4]}),
    "prediction_row": Case(S.models.prediction_row, {"name": "noise", "alpha": 0.5, "sigma": 0.5}),
    "step_kl": Case(S.models.step_kl, {"sde": SDE, "s": 0.2, "t": 0.4, "eps": X, "eps_theta": X}),
    **{name: Case(getattr(S, name), {"shape": (2,), "width": 8, "blocks": 1}, applied) for name in ("ResidualMLP",)},
    "NCSNpp": Case(S.nets.NCSNpp, {"shape": (1, 4, 4), "channels": 8, "multipliers": (1, 1), "blocks": 1}, applied),
    "adapt": Case(S.nets.adapt, {"net": lambda x, t: x}, called),
    "from_diffusers": Case(S.interop.from_diffusers, {"source": SMALL_UNET, "scheduler": DDIM}),
    "to_diffusers": Case(
        S.interop.to_diffusers, {"model": S.ScoreModel.from_diffusers(SMALL_UNET, DDIM), "folder": FOLDER / "theirs"}
    ),
    **{name: Case(getattr(S.interop, name), {"scheduler": DDIM, "steps": 5}) for name in ("grid_of", "sampler_of")},
    "process_of": Case(S.interop.process_of, {"scheduler": DDIM}),
    "limited_as": Case(S.interop.limited_as, {"scheduler": DDIM, "model": TOY}, guided),
    "from_score_sde": Case(S.interop.from_score_sde, {"path": SCORE_SDE[0], "config": SCORE_SDE[1], "sde": "vp"}),
    "from_adm": Case(S.interop.from_adm, {"path": ADM[0], "config": ADM[1]}),
    "adm_classifier": Case(S.interop.adm_classifier, {"classifier": lambda x, k: x, "sde": S.DDPM.linear(100)}),
    "from_k_diffusion": Case(S.interop.from_k_diffusion, {"denoiser": lambda x, sigma: x, "sigma_max": 80.0}),
    "from_edm": Case(S.interop.from_edm, {"net": lambda x, sigma: x}),
    "from_azula": Case(S.interop.from_azula, {"denoiser": small.Azula()}),
    "from_denoising_diffusion": Case(S.interop.from_denoising_diffusion, {"diffusion": small.GaussianDiffusion()}),
    "from_sbi": Case(S.interop.from_sbi, {"estimator": small.ScoreEstimator()}),
    "from_flow_matching": Case(S.interop.from_flow_matching, {"net": lambda x, t: x}),
    "from_torchcfm": Case(S.interop.from_torchcfm, {"net": lambda t, x: x, "sigma": 0.1}),
    "model_card": Case(S.interop.model_card, {"model": LABELLED}),
    "save_with_card": Case(S.interop.save_with_card, {"model": LABELLED, "folder": FOLDER / "card"}),
    "image_metrics": Case(S.interop.image_metrics, {"samples": EIGHT_BITS, "reference": EIGHT_BITS, "features": grey}),
    "write_png_folder": Case(S.interop.write_png_folder, {"images": EIGHT_BITS, "folder": FOLDER / "png"}),
    "write_adm_npz": Case(S.interop.write_adm_npz, {"images": EIGHT_BITS, "path": FOLDER / "images.npz"}),
    "check": Case(S.course.check, {"lab": 1, "answer": lambda x, beta, z: x}),
    "parts": Case(S.course.parts, {"lab": 1}),
    "start": Case(S.course.start, {"folder": FOLDER / "labs"}),
    "LatentModel": Case(S.interop.LatentModel, {"model": TOY, "autoencoder": diffusers.AutoencoderKL()}, guided),
    "UNet": Case(S.UNet, {"shape": (1, 4, 4), "channels": 8, "num_groups": 4, "multipliers": (1,)}, applied),
    "DiT": Case(S.DiT, {"shape": (1, 4, 4), "width": 16, "blocks": 1, "heads": 2}, applied),
    "Fourier": Case(S.nets.Fourier, {"dim": 4}, lambda made: made(torch.zeros(2))),
    "LabelEmbedding": Case(S.nets.LabelEmbedding, {"classes": 3, "dim": 4}, lambda made: made(torch.tensor([0, 1]))),
    "Sinusoidal": Case(S.nets.Sinusoidal, {"dim": 4}, lambda made: made(torch.zeros(2))),
    "build_net": Case(S.nets.build_net, {"config": {"name": "mlp", "shape": [2], "width": 8, "blocks": 1}}),
    "net_options": Case(S.nets.net_options, {"name": "mlp"}),
    "net_preset": Case(S.nets.net_preset, {"name": "digits-dit"}),
    "langevin_dynamics": Case(
        S.sampling.langevin_dynamics, {"score": TOY, "x": X, "step_size": 0.1, "steps": 2, "t": 0.3}
    ),
    "build_sde": Case(S.sde.build_sde, {"config": {"name": "vp"}}),
    "langevin_step_size": Case(S.sde.langevin_step_size, {"sigma_min": 0.1, "gamma": 1.1, "steps": 3}),
    "largest_sigma": Case(S.sde.largest_sigma, {"data": DATA.raw}),
    "level_ratio": Case(S.sde.level_ratio, {"dim": 3000}),
    "ncsn_for": Case(S.sde.ncsn_for, {"data": torch.ones(4, 3000) * torch.arange(4)[:, None]}),
    "vesde_for": Case(S.sde.vesde_for, {"data": DATA.raw}),
    "number_of_levels": Case(S.sde.number_of_levels, {"dim": 3000, "sigma_min": 0.1, "sigma_max": 2.0}),
    "time_grid": Case(S.sde.time_grid, {"sde": SDE, "steps": 3}),
    "time_range": Case(S.sde.time_range, {"sde": SDE}),
    "variance_ratio": Case(S.sde.variance_ratio, {"r": 1.1, "gamma": 1.1, "steps": 3}),
    "CSVLog": Case(S.training.CSVLog, {"path": FOLDER / "log.csv"}),
    "FixedTime": Case(S.training.FixedTime, {"t": 0.5}, timed),
    **{name: Case(getattr(S.training, name), {}, timed) for name in ("Levels", "LogNormal", "LossAware")},
    **{name: Case(getattr(S.training, name), {}, timed) for name in ("UniformLogSNR", "UniformTime")},
    **{name: Case(getattr(S.training, name), {}, weighed) for name in ("DDIMVariational", "EDM", "MinSNR", "Sigmoid")},
    "LikelihoodWeighting": Case(S.training.LikelihoodWeighting, {}, weighed),
    "Muon": Case(S.training.Muon, {"params": [torch.nn.Parameter(torch.ones(16, 16))], "lr": 0.1}),
    "NoiseAwareClassifier": Case(
        S.training.NoiseAwareClassifier, {"net": S.ResidualMLP((2,), width=8, blocks=1, out_channels=3), "sde": SDE}
    ),
    "best_checkpoint": Case(S.training.best_checkpoint, {"root": FOLDER}),
    "latest_checkpoint": Case(S.training.latest_checkpoint, {"root": FOLDER / "trained"}),
    "load_average": Case(S.training.load_average, {"folder": FOLDER / "trained" / "step-000000001"}),
    "post_hoc_average": Case(S.training.post_hoc_average, {"root": FOLDER / "trained", "half_life": 3}),
    "fit_classifier": Case(
        S.training.fit_classifier,
        {
            "sde": SDE,
            "data": S.Data("a", DATA.raw, torch.arange(16) % 2),
            "steps": 1,
            "batch_size": 2,
            "net": S.ResidualMLP((2,), width=8, blocks=1, out_channels=2),
        },
    ),
    "hidden_weights": Case(S.training.hidden_weights, {"module": torch.nn.Linear(16, 16)}),
    "over_ranks": Case(S.training.over_ranks, {"work": lambda items, g: torch.ones(len(items)), "n": 3}),
    **{name: Case(getattr(S, name), {}, lost) for name in ("DenoisingScoreMatching", "SlicedScoreMatching")},
    **{name: Case(getattr(S, name), {}, lost) for name in ("ImplicitScoreMatching", "VLB")},
    **{name: Case(getattr(S, name), {}, marginal) for name in ("VPSDE", "SubVPSDE", "VESDE", "FlowSDE")},
    **{name: Case(getattr(S, name), {}, scored) for name in ("Exact", "Hutchinson", "HutchPP")},
    **{name: Case(getattr(S, name), {}, drawn) for name in ("AdaptiveSDE", "DDIM", "DPMSolver", "Heun", "SingleStep")},
    **{name: Case(getattr(S, name), {}, drawn) for name in ("ProbabilityFlow", "PredictorCorrector")},
    **{name: Case(getattr(S.sampling, name), {}, drawn) for name in ("Resampling",)},
    **{name: Case(getattr(S, name), {}) for name in ("Ancestral", "EulerMaruyama", "Langevin", "ReverseDiffusion")},
    "HybridVLB": Case(S.HybridVLB, {}, lambda objective: objective(LEARNED, X)),
    "Particles": Case(S.sampling.Particles, {"particles": 2}, lambda sampler: S.sample(OBSERVED, (2, 2), sampler, 2)),
    "Implicit": Case(S.sampling.Implicit, {}),
}

#: methods that users call themselves
CASES |= {
    f"{name}, a method": Case(call, good)
    for name, call, good in (
        ("Data.take", DATA.take, {"n": 2}),
        ("Data.few", DATA.few, {}),
        ("Data.split", DATA.split, {"held_out": 2}),
        ("Data.subset", DATA.subset, {"indices": [0, 1]}),
        ("Data.scaled_like", DATA.scaled_like, {"other": DATA}),
        ("Data.to_model", PIXELS.to_model, {"raw": PIXELS.raw[:2]}),
        ("Data.to_image", PIXELS.to_image, {"x": torch.zeros(2, 1, 4, 4)}),
        ("Scaling.log_volume", PIXELS.scaling.log_volume, {"n": 3}),
        ("GaussianMixture.sample", S.GaussianMixture(torch.zeros(2, 2), 1.0).sample, {"n": 2}),
        ("Model.to_model", INTEGERS.to_model, {"raw": PIXELS.raw[:2]}),
        ("SDE.perturb", SDE.perturb, {"x0": X, "t": 0.5}),
        ("SDE.drift", SDE.drift, {"x": X, "t": 0.5}),
        ("DDPM.linear", S.DDPM.linear, {"N": 1000}),
        ("DDPM.cosine", S.DDPM.cosine, {"N": 10}),
        ("EMA.average", S.EMA(torch.nn.Linear(1, 1), 3.0).average, {}),
        ("VESDE.for_data", S.VESDE.for_data, {"data": DATA, "sigma_min": 0.1}),
        ("ScoreModel.for_data", S.ScoreModel.for_data, {"net": LABELLED.net, "sde": SDE, "data": DATA}),
        ("ScoreModel.from_pretrained", S.ScoreModel.from_pretrained, {"folder": "digits"}),
    )
}

_COMPLEX = torch.zeros(2, 2, dtype=torch.complex64)
#: values of wrong types, shapes, dtypes, devices and ranges
SPOILED: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 2**70, 1.5, -0.5, float("nan"), float("inf"), 1e30, 1e-30, 1j, "x", "", b"x"),
    *((), [], [1, "x"], (1, 2), (0, 2), (-1, 2), {}, {"x": 1}, {"y": "x"}, {3: 4}, set(), object(), int, len),
    *(Path("none"), np.zeros((2, 2)), np.zeros(2, dtype=object), np.float32(0.5), np.int64(2), np.array("x")),
    *(torch.zeros(2), torch.zeros(()), torch.zeros(0, 2), torch.zeros(2, 3), torch.zeros(2, 2), torch.ones(2).long()),
    *(torch.full((2, 2), float("nan")), _COMPLEX, torch.zeros(2, 2).half(), torch.zeros(2, 2, device="meta")),
    *(torch.zeros(2, 2, requires_grad=True), torch.float16, torch.int64, torch.device("meta"), torch.Generator()),
    *(torch.nn.Linear(2, 2), TOY, DATA, SDE, S.DDIM(), S.Exact(), slice(0, 2), range(3), iter([1]), Ranks()),
)


def public() -> Iterator[tuple[str, Any]]:
    """Yield every public callable once, by name."""
    seen = set()
    rooms = [importlib.import_module(f"scoresde.{path.parent.name}") for path in sorted(PACKAGE.glob("*/__init__.pyi"))]
    for module in (S, *rooms):
        for name in module.__all__:
            found = getattr(module, name)
            if callable(found) and not inspect.ismodule(found) and id(found) not in seen:
                seen.add(id(found))
                yield name, found


def uncovered() -> list[str]:
    """Return the public callables that have neither a case nor an exemption."""
    called = {id(case.call) for case in CASES.values()}
    return [name for name, found in public() if id(found) not in called and name not in NOT_CALLED]
