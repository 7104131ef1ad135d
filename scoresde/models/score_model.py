"""A network under an SDE: what it predicts, what it is told about time, and how it is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde.data import Scaling
from scoresde.errors import ArgumentError, CheckpointError, NonFiniteError, ScoreSDEError, ShapeError
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors
from scoresde.models.base import Model
from scoresde.models.estimate import Estimate
from scoresde.models.labels import resolve_label
from scoresde.models.moments import Moments
from scoresde.models.predictions import prediction_row, solve, total_std
from scoresde.nets import build_net
from scoresde.sde import SDE, Level, build_sde

FORMAT = "scoresde-model-1"


class ScoreModel(Model):
    """A network ``net(x, label, **cond)`` as a score model (P11, E6).

    Args:
        net: a module from x ``(B, *D)`` and a label ``(B,)`` to a tensor of x's shape.
        sde: the forward process it is trained for.
        predicts: what its output means, a row of :data:`~scoresde.models.predictions.PREDICTIONS`.
        label: what it is told about the time, a name in :data:`~scoresde.models.labels.LABELS` or a function
            ``(level, sde) -> number or (B,)``. Default ``"time"``: t itself.
        data_std: the standard deviation s_d of the data, used by ``"edm"`` and ``scale_input``.
        scale_input: divide the network's input by S = sqrt(alpha^2 s_d^2 + sigma^2), so that it has unit variance
            at every level (EDM's c_in). Default: only for ``"edm"``.
        scaling: from the data's units to the model's, kept with the model for bits/dim and samples.
        moments: mean and covariance of the data, kept with the model for the likelihood's prior.
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        predicts: str = "noise",
        *,
        label="time",
        data_std: float = 1.0,
        scale_input: bool | None = None,
        scaling: Scaling | None = None,
        moments: Moments | None = None,
    ):
        super().__init__()
        prediction_row(predicts, 0.5, 0.5)  # refuse an unknown name here, not at the first call
        if not data_std > 0:
            raise ArgumentError("data_std", data_std, "a positive number")
        self.net, self.sde, self.predicts, self.label = net, sde, predicts, label
        self._label = resolve_label(label)
        self.data_std = float(data_std)
        self.scale_input = predicts == "edm" if scale_input is None else scale_input
        self.scaling, self.moments = scaling, moments

    def predict(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """The network's own output F = p x_0 + q eps at a level."""
        label, label_dtype = self._label(level, self.sde), torch.promote_types(x.dtype, torch.float32)
        if isinstance(label, Tensor):
            label = label.to(label_dtype).expand(len(x))
        else:
            label = torch.full((len(x),), label, dtype=label_dtype, device=x.device)
        if self.scale_input:
            x = x / total_std(level.alpha, level.sigma, self.data_std)
        F = self.net(x, label, **(cond or {}))
        if F.shape != x.shape:
            raise ShapeError("net's output", tuple(F.shape), f"the shape of x, {tuple(x.shape)}")
        return F

    def estimate(self, x, level, cond=None):
        F = self.predict(x, level, cond)
        p, q = prediction_row(self.predicts, level.alpha, level.sigma, self.data_std)
        return Estimate(*solve(F, x, level.alpha, level.sigma, p, q), level)

    # ---- saving ----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> dict:
        """All but the weights, as JSON-able values.

        Raises:
            ArgumentError: the SDE, the network or the label cannot be rebuilt from a description.
        """
        if not hasattr(self.net, "config"):
            raise ArgumentError("net", type(self.net).__name__, "a registered network with a `config` (register_net)")
        if callable(self.label):
            raise ArgumentError("label", repr(self.label), "a label known by name, to be saved")
        return {
            "format": FORMAT,
            "sde": self.sde.config,
            "net": self.net.config,
            "predicts": self.predicts,
            "label": self.label,
            "data_std": self.data_std,
            "scale_input": self.scale_input,
            "scaling": None if self.scaling is None else self.scaling.config,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, all or nothing.

        Raises:
            CheckpointError: the folder cannot be written; what it held before is untouched.
        """
        with atomic_folder(folder) as new:
            self.write_pretrained(new)

    def write_pretrained(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """The files of :meth:`save_pretrained` into an existing folder, with the network's weights or other ones."""
        tensors = {f"net.{key}": value for key, value in (weights or self.net.state_dict()).items()}
        if self.moments is not None:
            tensors |= {"moments.mean": self.moments.mean, "moments.covariance": self.moments.covariance}
        save_tensors(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> ScoreModel:
        """The model saved in ``folder``, in evaluation mode. Only safetensors and JSON are read, never a pickle.

        Raises:
            CheckpointError: not a folder with a model, a truncated or foreign file, weights that do not fit.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json", "folder")
        if config.pop("format", None) != FORMAT:
            raise CheckpointError("folder", folder, f"a model written by save_pretrained (format {FORMAT!r})")
        tensors = load_tensors(folder / "model.safetensors")
        moments = None
        if "moments.mean" in tensors:
            moments = Moments(tensors.pop("moments.mean"), tensors.pop("moments.covariance"))
        try:
            scaling = config.pop("scaling")
            model = cls(
                build_net(config.pop("net")),
                build_sde(config.pop("sde")),
                scaling=None if scaling is None else Scaling.from_config(scaling),
                moments=moments,
                **config,
            )
            model.net.load_state_dict({key.removeprefix("net."): value for key, value in tensors.items()})
        except (KeyError, TypeError, RuntimeError, ScoreSDEError) as error:
            raise CheckpointError("folder", f"{folder} ({error})", "a model this version can build") from error
        return model.to(device).eval()


def check_finite(x: Tensor, what: str) -> Tensor:
    """``x`` ``(B, ...)`` itself, or a NonFiniteError that names the samples with NaN or infinity (waits for the device)."""
    bad = ~x.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        samples = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
        raise NonFiniteError(f"{what}: NaN or infinity in {len(samples)} of {len(x)} samples ({shown})")
    return x
