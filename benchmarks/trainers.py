"""Independent trainers of image models behind one interface.

Each peer builds its network, trains it by its trainer or loop with its settings, and samples with its sampler. Then it
hands the network over as a :class:`~scoresde.ScoreModel` under the process it was trained for, so that our samplers and
likelihoods apply. :meth:`Peer.check` proves that the hand-over is exact. :mod:`benchmarks.equal_time` uses them.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks import common
from scoresde import DDIM, DDPM, VESDE, Ancestral, Data, PredictorCorrector, ScoreModel, sample
from scoresde.data import Scaling
from scoresde.errors import CheckpointError, UnknownNameError
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors
from scoresde.guidance import clipped
from scoresde.models import Moments
from scoresde.training.ema import EMA

NEVER = 10**9  # steps between what is left out
Stop = Callable[[], bool]  # called after each step; whether the time is over


def import_with_torchvision(name: str) -> ModuleType:
    """Import a module that needs torchvision's Python code, not its operators.

    A torchvision that does not belong to the installed torch may lack the library of its operators. Its import then
    fails, because it describes two of them all the same. They are declared here, without a body.
    """
    try:
        return import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", arguments)
        return import_module(name)


def defaults(function: Callable, *names: str) -> dict[str, Any]:
    """Return the default values of some parameters of a function."""
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in names}


class Peer(ABC):
    """A network of another package, and that package's way to train it.

    Args:
        shape: shape (C, H, W) of the images.
        settings: values that replace some of :attr:`settings`.
        seed: seed of the weights.

    Attributes:
        settings: all settings of the training, by the package's own names.
        net: the network; after :meth:`train` it has its averaged weights.

    Raises:
        UnknownNameError: a setting is not one of the package's.
    """

    package: str
    module: str
    #: what was set in another way than the package does by default, and why
    remarks: str
    #: settings at which a run of seconds makes sense
    quick: ClassVar[Mapping[str, Any]]
    #: calls of the peer's sampler in its documentation
    own_calls: int

    def __init__(self, shape: Sequence[int], settings: Mapping[str, Any] | None = None, seed: int = 0):
        self.shape, self.peer = tuple(shape), self.load()
        self.settings = self.default_settings()
        for name, value in (settings or {}).items():
            if name not in self.settings:
                raise UnknownNameError("--peer-set", name, self.settings)
            self.settings[name] = tuple(value) if isinstance(value, list) else value
        torch.manual_seed(seed)
        self.net = self.build()

    @classmethod
    def load(cls) -> ModuleType:
        """Import the package."""
        return import_with_torchvision(cls.module)

    @abstractmethod
    def default_settings(self) -> dict[str, Any]:
        """Return all settings, with the package's own defaults where it has them."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the untrained network."""

    @abstractmethod
    def prepare(self, data: Data, folder: Path) -> Callable[[Stop], None]:
        """Return a function that trains on ``data`` until it is stopped.

        ``folder`` is for files. This preparation is not timed.
        """

    @abstractmethod
    def score_model(self) -> ScoreModel:
        """Return the network under its process."""

    @abstractmethod
    def own_samples(self, n: int, calls: int) -> Tensor:
        """Return ``n`` images in [0, 1] by the package's own sampler.

        It draws from torch's default generator.
        """

    @abstractmethod
    def check(self, raw: Tensor) -> dict[str, float]:
        """Return the largest differences between the package's results and ours.

        They are taken over losses of ``raw`` images and over samples.
        """

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images in an optimiser step."""

    @property
    def ends(self) -> tuple[float | None, ...]:
        """Return where its flow may end.

        One end is the lowest level it was trained at; None stands for our default.
        """
        times = getattr(self.score_model().sde, "times", None)
        return (None,) if times is None else (times[0].item(), None)

    @property
    def weights(self) -> int:
        """The number of trained weights."""
        return sum(p.numel() for p in self.net.parameters())

    @property
    def scaling(self) -> Scaling:
        """The map 2 raw/255 - 1 at bin centres, as all of them scale 8-bit images."""
        return Scaling(2 / 255, -1 - 1 / 255, 256)

    def model(self, data: Data) -> ScoreModel:
        """Return :meth:`score_model` with the moments of the training data."""
        mean, covariance = data.moments()
        ratio = self.scaling.scale / data.scaling.scale
        shift = self.scaling.shift - ratio * data.scaling.shift
        model = self.score_model()
        model.moments = Moments(ratio * mean.double() + shift, ratio**2 * covariance.double())
        return model.eval().requires_grad_(False)

    def draw(self, n: int, calls: int, batch: int = 250, seed: int = 0) -> tuple[Tensor, float]:
        """Return raw samples ``(n, C, H, W)`` in uint8, and the seconds they took.

        The package's own sampler draws them.
        """
        torch.manual_seed(seed)
        begun, drawn = time.perf_counter(), []
        for begin in range(0, n, batch):
            with redirect_stderr(io.StringIO()):  # a bar for each batch
                x = self.own_samples(min(batch, n - begin), calls)
            drawn.append((x * 255 + 0.5).clamp(0, 255).to(torch.uint8))
        return torch.cat(drawn), time.perf_counter() - begun

    def save(self, folder: Path, **facts) -> None:
        """Save weights, settings and facts."""
        with atomic_folder(folder) as new:
            save_tensors(self.net.state_dict(), new / "peer.safetensors")
            found = {"package": self.package, "version": common.version(self.package), "shape": list(self.shape)}
            (new / "peer.json").write_text(json.dumps(found | {"settings": self.settings, **facts}, indent=1) + "\n")


class DenoisingDiffusion(Peer):
    """The peer denoising-diffusion-pytorch.

    It has its own Unet, GaussianDiffusion and Trainer, which reads PNG files.
    """

    package, module = "denoising-diffusion-pytorch", "denoising_diffusion_pytorch.denoising_diffusion_pytorch"
    remarks = (
        "dim and dim_mults for a like number of weights (28 -> 14 -> 7); not mirrored (augment_horizontal_flip=False), "
        "as the test images are not; no samples or FID while it trains"
    )
    quick: ClassVar = {"dim": 8, "dim_mults": (1, 2)}
    own_calls = 250

    def default_settings(self):
        return {
            "dim": 20,
            "dim_mults": (1, 2, 4),
            **defaults(self.peer.GaussianDiffusion.__init__, "timesteps", "objective", "beta_schedule"),
            **defaults(self.peer.GaussianDiffusion.__init__, "min_snr_loss_weight", "ddim_sampling_eta"),
            **defaults(self.peer.Trainer.__init__, "train_batch_size", "gradient_accumulate_every", "train_lr"),
            **defaults(self.peer.Trainer.__init__, "adam_betas", "max_grad_norm", "ema_decay", "ema_update_every"),
            "augment_horizontal_flip": False,
        }

    @property
    def batch(self):
        return self.settings["train_batch_size"] * self.settings["gradient_accumulate_every"]

    def build(self):
        return self.peer.Unet(self.settings["dim"], dim_mults=self.settings["dim_mults"], channels=self.shape[0])

    def diffusion(self, **others):
        """Return their diffusion around the network; ``others`` replace settings."""
        names = ("timesteps", "objective", "beta_schedule", "min_snr_loss_weight", "ddim_sampling_eta")
        options = {name: self.settings[name] for name in names} | others
        return self.peer.GaussianDiffusion(self.net, image_size=self.shape[1:], **options).eval()

    def prepare(self, data, folder):
        from PIL import Image

        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        for i, raw in enumerate(data.raw):
            Image.fromarray(raw.squeeze(0).numpy() if len(raw) == 1 else raw.permute(1, 2, 0).numpy()).save(
                images / f"{i:06d}.png"
            )
        diffusion = self.diffusion()
        trained = "train_batch_size gradient_accumulate_every train_lr adam_betas max_grad_norm ema_decay"
        names = (*trained.split(), "ema_update_every", "augment_horizontal_flip")
        os.environ["ACCELERATE_USE_CPU"] = "true"
        trainer = self.peer.Trainer(
            diffusion,
            images,
            **{name: self.settings[name] for name in names},
            train_num_steps=NEVER,
            save_and_sample_every=NEVER,
            calculate_fid=False,
            results_folder=str(folder),
        )

        def train(stop: Stop) -> None:
            def after_step(*_) -> None:
                if stop():
                    trainer.train_num_steps = 0  # the loop ends with this step

            trainer.opt.optimizer.register_step_post_hook(after_step)
            trainer.train()
            self.net.load_state_dict(trainer.ema.ema_model.model.state_dict())

        return train

    def score_model(self, timesteps: int | None = None):
        timesteps = self.settings["timesteps"] if timesteps is None else timesteps
        betas = getattr(self.peer, f"{self.settings['beta_schedule']}_beta_schedule")(timesteps)
        predicts = {"pred_v": "velocity", "pred_noise": "noise", "pred_x0": "data"}[self.settings["objective"]]
        return ScoreModel(self.net, DDPM(betas), predicts, time_input="ddpm", scaling=self.scaling)

    def own_samples(self, n, calls):
        return self.diffusion(sampling_timesteps=calls).sample(batch_size=n)

    @torch.no_grad()
    def check(self, raw):
        theirs, model, found = self.diffusion(), self.score_model().eval(), {}
        x01, generator = raw.float() / 255, torch.Generator().manual_seed(0)
        index = torch.randint(self.settings["timesteps"], (len(raw),), generator=generator)
        noise = torch.randn(raw.shape, generator=generator)
        loss = theirs(x01, times=index, noise=noise, loss_reduction="none")
        level = model.sde.level((index + 1) / self.settings["timesteps"], noise)
        x0 = model.scaling.bin_centres(raw)
        target = {"velocity": level.alpha * noise - level.sigma * x0, "noise": noise, "data": x0}[model.predicts]
        F = model.predict(level.alpha * x0 + level.sigma * noise, level)
        ours = (F - target).square().flatten(1).mean(1) * theirs.loss_weight[index]
        found["denoising loss"] = ((ours - loss).abs() / loss).max().item()

        shape = (4, *self.shape)
        torch.manual_seed(1)
        a = 2 * self.diffusion(sampling_timesteps=10).sample(batch_size=4) - 1
        start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        if self.settings["timesteps"] % 10 == 0 and self.settings["ddim_sampling_eta"] == 0:
            b = sample(clipped(model), shape, DDIM(t_min=0.0, t_max=1.0), 10, start)
            found["DDIM, 10 steps"] = (a - b).abs().max().item()
        torch.manual_seed(1)
        a = 2 * self.diffusion(timesteps=20).sample(batch_size=4) - 1
        generator = torch.Generator().manual_seed(1)
        start = torch.randn(shape, generator=generator)
        ancestral = PredictorCorrector(Ancestral(), grid="levels")
        b = sample(clipped(self.score_model(20)), shape, ancestral, None, start, generator=generator)
        found["ancestral, 20 levels"] = (a - b).abs().max().item()
        return found


class _Sigma(nn.Module):
    """smalldiffusion's network, which takes sigma in the shape (B, 1, 1, 1)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x, sigma.reshape(-1, 1, 1, 1))


class SmallDiffusion(Peer):
    """The peer smalldiffusion.

    It has its own U-Net, schedule, training loop and sampler, as in its example for Fashion-MNIST.
    """

    package, module = "smalldiffusion", "smalldiffusion"
    remarks = (
        "as in its examples/fashion_mnist_unet.py, but for ch=32 in place of 64, for a like number of weights, and a "
        "batch of 64: one of 1024 would leave it some 200 steps; not mirrored, as the test images are not"
    )
    quick: ClassVar = {"ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
    own_calls = 20

    def default_settings(self):
        return {
            "ch": 32,
            "ch_mult": (1, 1, 2),
            "attn_resolutions": (14,),
            **defaults(self.peer.Unet.__init__, "num_res_blocks", "dropout"),
            "sigma_min": 0.01,
            "sigma_max": 20.0,
            "N": 800,
            "batch_size": 64,
            "lr": 7e-4,
            "ema_decay": 0.999,
            "gam": 1.6,
        }

    @property
    def batch(self):
        return self.settings["batch_size"]

    def build(self):
        C, H, _ = self.shape
        names = ("ch", "ch_mult", "attn_resolutions", "num_res_blocks", "dropout")
        return self.peer.Scaled(self.peer.Unet)(H, C, C, **{name: self.settings[name] for name in names})

    def schedule(self):
        """Return their schedule."""
        return self.peer.ScheduleLogLinear(**{name: self.settings[name] for name in ("N", "sigma_min", "sigma_max")})

    def prepare(self, data, folder):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        images = 2 * (data.raw.float() / 255) - 1
        loader = torch.utils.data.DataLoader(images, batch_size=self.settings["batch_size"], shuffle=True)
        loop = partial(self.peer.training_loop, loader, self.net, self.schedule(), epochs=NEVER, lr=self.settings["lr"])
        half_life = torch.log(torch.tensor(0.5)) / torch.log(torch.tensor(self.settings["ema_decay"]))

        def train(stop: Stop) -> None:
            average = EMA(self.net, half_life.item())
            for i, _ in enumerate(loop()):  # it hands out each step before it is made
                average.update()
                if i and stop():
                    break
            self.net.load_state_dict(average.state_dict())

        return train

    def score_model(self):
        sde = VESDE(self.settings["sigma_min"], self.settings["sigma_max"])
        return ScoreModel(_Sigma(self.net), sde, "noise", time_input="sigma", scaling=self.scaling)

    def own_samples(self, n, calls):
        sigmas = self.schedule().sample_sigmas(calls)
        *_, x = self.peer.samples(self.net, sigmas, gam=self.settings["gam"], batchsize=n)
        return (x + 1) / 2

    @torch.no_grad()
    def check(self, raw):
        model, generator = self.score_model().eval(), torch.Generator().manual_seed(0)
        x0 = 2 * (raw.float() / 255) - 1
        index = torch.randint(self.settings["N"], (len(raw),), generator=generator)
        noise = torch.randn(raw.shape, generator=generator)
        sigma = self.schedule()[index].reshape(-1, 1, 1, 1)
        each = partial(nn.functional.mse_loss, reduction="none")
        loss = type(self.net).get_loss(self.net, x0, sigma, noise, loss=lambda: each).flatten(1).mean(1)
        x_t = model.scaling.bin_centres(raw) + sigma * noise
        ours = (model(x_t, index / (self.settings["N"] - 1)).eps - noise).square().flatten(1).mean(1)
        found = {"denoising loss": ((ours - loss).abs() / loss).max().item()}

        sigmas = model.sde.sigma(torch.linspace(1, 0, 11, dtype=torch.float64)).float()
        start = sigmas[0] * torch.randn((4, *self.shape), generator=generator)
        *_, a = self.peer.samples(self.net, sigmas, xt=start)
        b = sample(model, start.shape, DDIM(t_min=0.0, t_max=1.0, last="none"), 10, start)
        return found | {"DDIM, 10 steps": (a - b).abs().max().item()}


PEERS: dict[str, type[Peer]] = {peer.package: peer for peer in (DenoisingDiffusion, SmallDiffusion)}


def load_peer(folder: Path) -> tuple[Peer, dict[str, Any]]:
    """Return a trained peer as :meth:`Peer.save` left it, and the saved facts.

    Raises:
        CheckpointError: there is none, or it does not fit.
    """
    facts = read_json(folder / "peer.json", "peer")
    try:
        peer = PEERS[facts["package"]](facts["shape"], facts["settings"])
        peer.net.load_state_dict(load_tensors(folder / "peer.safetensors"))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError("peer", f"{folder} ({error})", "a folder written by Peer.save") from error
    peer.net.eval()
    return peer, facts
