"""A classifier of noisy data for classifier guidance, and its training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.data import Data
from scoresde.data.batches import Batches
from scoresde.errors import ArgumentError, CheckpointError, DataError, NonFiniteError, ScoreSDEError, ShapeError
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors
from scoresde.models import Moments
from scoresde.models.conditions import of_class
from scoresde.models.predictions import total_std
from scoresde.models.pretrained import refuse_other_files
from scoresde.nets import build_net
from scoresde.random import device_named
from scoresde.sde import SDE, build_sde
from scoresde.training.config import ClassifierConfig
from scoresde.training.ema import EMA
from scoresde.training.time_sampling import UniformTime

FORMAT = "scoresde-classifier-1"
CHECK_EVERY = 100  # steps between checks of the loss for NaN


@checked
class NoiseAwareClassifier(nn.Module):
    """A network for log p(y | x_t) at every noise level.

    The network receives x_t / sqrt(alpha^2 s_d^2 + sigma^2) and the log-SNR of t. :func:`fit_classifier` trains it, and
    :func:`~scoresde.guidance.classifier_guidance` takes it. ``classifier(x_t, t, y)`` maps x_t ``(B, *D)``, t ``(B,)``
    or ``()`` and y ``(B,)`` int64 to log p(y | x_t) ``(B,)``, which is 0 for y = -1, "no class". Without y it returns
    log p of all classes, ``(B, K)``.

    Args:
        net: Network ``net(x (B, n), time_input (B,))`` to logits ``(B, K)``, x flattened.
        sde: The process of x_t.
        data_std: Standard deviation s_d of the data, positive, default 1.

    Raises:
        ArgumentError: a standard deviation that is not positive; when called, an unknown class.
        ShapeError, DTypeError: when called, tensors that do not fit.
    """

    def __init__(self, net: nn.Module, sde: SDE, data_std: float = 1.0):
        super().__init__()
        self.net, self.sde, self.data_std = net, sde, positive("data_std", data_std)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(cast("dict[str, Any]", self.net.config)["out_channels"])

    def logits(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Return log p(y | x_t) ``(B, K)`` up to a constant per sample."""
        level = self.sde.level(t, x_t)
        time_input = torch.as_tensor(level.log_snr, dtype=torch.promote_types(x_t.dtype, torch.float32))
        scaled = (x_t / total_std(level.alpha, level.sigma, self.data_std)).reshape(len(x_t), -1)
        dtype = next(self.parameters()).dtype
        logits: Tensor = self.net(scaled.to(dtype), time_input.to(x_t.device).expand(len(x_t)))
        if logits.ndim != 2 or len(logits) != len(x_t):
            raise ShapeError("net's output", tuple(logits.shape), f"({len(x_t)}, K) logits")
        return logits.to(x_t.dtype)

    def forward(self, x_t: Tensor, t: float | Tensor, y: Tensor | None = None) -> Tensor:
        log_p = self.logits(x_t, t).log_softmax(1)
        return log_p if y is None else of_class(log_p, y)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``.

        Args:
            folder: A new folder, or one with a classifier, which is replaced.

        Raises:
            CheckpointError: the folder cannot be written, or holds other files.
            ArgumentError: a network or process that cannot be rebuilt from a description.
        """
        if not hasattr(self.net, "config"):
            raise ArgumentError("net", type(self.net).__name__, "a registered network with a `config` (register_net)")
        config = {"format": FORMAT, "sde": self.sde.config, "net": self.net.config, "data_std": self.data_std}
        refuse_other_files(Path(folder), "classifier")
        with atomic_folder(folder) as new:
            save_tensors(self.net.state_dict(), new / "model.safetensors")
            (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> NoiseAwareClassifier:
        """Return the classifier saved in ``folder``, in evaluation mode.

        Raises:
            CheckpointError: a folder without a classifier, a truncated or foreign file, or weights that do not fit.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json", "folder")
        if config.get("format") != FORMAT:
            raise CheckpointError("folder", folder, f"a classifier written by save_pretrained (format {FORMAT!r})")
        tensors = load_tensors(folder / "model.safetensors")
        try:
            classifier = cls(build_net(config["net"]), build_sde(config["sde"]), config["data_std"])
            classifier.net.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, ScoreSDEError) as error:
            raise CheckpointError("folder", f"{folder} ({error})", "a classifier this version can build") from error
        return classifier.to(device).eval()


@checked
def fit_classifier(
    sde: SDE,
    data: Data,
    net: nn.Module | None = None,
    *,
    steps: int = ClassifierConfig.steps,
    batch_size: int = ClassifierConfig.batch_size,
    lr: float = ClassifierConfig.lr,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
    callback: Callable[[int, float], None] | None = None,
) -> NoiseAwareClassifier:
    """Train a :class:`NoiseAwareClassifier` on -log p(y | x_t), and return it.

    t is uniform between the SDE's default ends. Adam's learning rate falls to 0 along a cosine, and the weights are
    averaged with a half-life of ``steps``/20. The same generator gives the same weights, bit for bit on one device.

    Args:
        sde: The process of x_t.
        data: Labelled data.
        net: See :class:`NoiseAwareClassifier`. None: a residual MLP of width 256 with 3 blocks.
        steps, batch_size, lr: See :class:`~scoresde.training.config.ClassifierConfig`.
        generator: Generator on the CPU for weights, batches, times and noise. None: one seeded by torch's random state.
        device: Device to train on, default the CPU.
        callback: Function called with the step and the mean loss in nats, every 100 steps.

    Raises:
        DataError: data without labels.
        ArgumentError: numbers out of range.
        NonFiniteError: the loss is NaN or infinite (names the step).

    References: Song et al. 2021, appendix I; Dhariwal & Nichol 2021, section 4.
    """
    if data.labels is None:
        raise DataError("data", f"{data.name!r}, data without labels", "labelled data")
    whole("steps", steps)
    positive("lr", lr)
    device = device_named(device)
    # 1. the network
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    if net is None:
        config = {"name": "mlp", "shape": [math.prod(data.shape)], "width": 256, "blocks": 3}
        config["out_channels"] = data.classes
        net = build_net(config, seed=int(torch.randint(2**62, (), generator=generator)))
    classifier = NoiseAwareClassifier(net, sde, Moments(*data.moments()).std).to(device).train()
    # 2. the training
    batches, times = Batches(data, batch_size, generator), UniformTime()
    ema = EMA(net, max(1.0, steps / 20))
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[Tensor] = []
    for step in range(1, steps + 1):
        batch = next(batches)
        x0, y = batch["x"].to(device), batch["label"].to(device)
        t = times.draw(len(x0), sde, None, None, generator, x0.device)[0]
        x_t = sde.perturb(x0, t, generator)[0]
        loss = F.cross_entropy(classifier.logits(x_t, t), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()
        schedule.step()
        ema.update()
        losses.append(loss.detach())
        if step % CHECK_EVERY == 0 or step == steps:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise NonFiniteError(f"the classifier's loss is {mean} by step {step}")
            losses.clear()
            if callback is not None:
                callback(step, mean)
    net.load_state_dict(ema.state_dict())
    return classifier.eval()
