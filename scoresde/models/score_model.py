"""A network under an SDE: what it predicts, what it is told about time, and how it is saved."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde.data import Data, Scaling
from scoresde.errors import ArgumentError, CheckpointError, ScoreSDEError, ShapeError
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors
from scoresde.models.conditions import Condition
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.models.moments import Moments
from scoresde.models.predictions import prediction_row, solve, total_std
from scoresde.models.time_inputs import resolve_time_input
from scoresde.nets import build_net
from scoresde.sde import SDE, Level, build_sde

FORMAT = "scoresde-model-2"
FILES = ("config.json", "model.safetensors")
#: the models that come with the package, a folder each; its README.md says what it is and how it was made
PRETRAINED = Path(__file__).parents[1] / "pretrained"


class ScoreModel(Model):
    """A network ``net(x, time_input, **cond)`` as a score model (P11, E6).

    Args:
        net: a module from x ``(B, *D)`` and a time_input ``(B,)`` to a tensor of x's shape.
        sde: the forward process it is trained for.
        predicts: what its output means, a row of :data:`~scoresde.models.predictions.PREDICTIONS`.
        time_input: what it is told about the time, a name in :data:`~scoresde.models.time_inputs.TIME_INPUTS` or a function
            ``(level, sde) -> number or (B,)``. Default ``"time"``: t itself.
        data_std: the standard deviation s_d of the data, used by ``"edm"`` and ``scale_input``.
        scale_input: divide the network's input by S = sqrt(alpha^2 s_d^2 + sigma^2), so that it has unit variance
            at every level (EDM's c_in). Default: only for ``"edm"``.
        scaling: from the data's units to the model's, kept with the model for bits/dim and samples.
        moments: mean and covariance of the data, kept with the model for the likelihood's prior.
        learned_variance: the network's output has twice the channels (dimension 1); its second half u, in [-1, 1],
            is P7's v = (u + 1)/2 (the convention of Nichol & Dhariwal 2021).
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        predicts: str = "noise",
        *,
        time_input="time",
        data_std: float = 1.0,
        scale_input: bool | None = None,
        scaling: Scaling | None = None,
        moments: Moments | None = None,
        learned_variance: bool = False,
    ):
        super().__init__()
        prediction_row(predicts, 0.5, 0.5)  # refuse an unknown name here, not at the first call
        if not data_std > 0:
            raise ArgumentError("data_std", data_std, "a positive number")
        self.net, self.sde, self.predicts, self.time_input = net, sde, predicts, time_input
        self._time_input = resolve_time_input(time_input)
        self.data_std = float(data_std)
        self.scale_input = predicts == "edm" if scale_input is None else scale_input
        self.scaling, self.moments, self.learned_variance = scaling, moments, learned_variance

    @classmethod
    def for_data(cls, net: nn.Module, sde: SDE, data: Data, predicts: str = "edm", *, time_input="log_snr", **settings):
        """A model that knows the scale, the moments and the standard deviation of the data it will be trained on.

        ``settings`` are those of the class; they win over what is measured.
        """
        moments = Moments(*data.moments())
        measured = {"data_std": moments.std, "scaling": data.scaling, "moments": moments}
        return cls(net, sde, predicts, time_input=time_input, **(measured | settings))

    @property
    def classes(self):
        return getattr(self.net, "config", {}).get("classes")

    def predict(self, x: Tensor, level: Level, cond: Condition = None) -> Tensor:
        """The network's own output at a level: F = p x_0 + q eps, and u beside it if it has learned variances."""
        time_input, time_dtype = self._time_input(level, self.sde), torch.promote_types(x.dtype, torch.float32)
        if isinstance(time_input, Tensor):
            time_input = time_input.to(time_dtype).expand(len(x))
        else:
            time_input = torch.full((len(x),), time_input, dtype=time_dtype, device=x.device)
        if self.scale_input:
            x = x / total_std(level.alpha, level.sigma, self.data_std)
        output = self.net(x, time_input, **(cond or {}))
        expected = x.shape
        if self.learned_variance:
            if x.ndim < 2:
                raise ShapeError("x", tuple(x.shape), "(B, C, ...): learned variances are channels beside the mean's")
            expected = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
        if output.shape != expected:
            raise ShapeError("net's output", tuple(output.shape), f"{tuple(expected)} for x of {tuple(x.shape)}")
        return output

    def estimate(self, x, level, cond=None):
        F, v = self.predict(x, level, cond), None
        if self.learned_variance:
            F, u = F.chunk(2, dim=1)
            v = (u + 1) / 2
        try:
            p, q = prediction_row(self.predicts, level.alpha, level.sigma, self.data_std)
            return Estimate(*solve(F, x, level.alpha, level.sigma, p, q), level, v)
        except ZeroDivisionError:
            raise ArgumentError(
                "t",
                f"{level.t}, where alpha = {level.alpha:g} and sigma = {level.sigma:g}",
                f"a time at which {self.predicts!r} determines both x0 and eps",
            ) from None

    # ---- saving ----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> dict:
        """All but the weights, as JSON-able values.

        Raises:
            ArgumentError: the SDE, the network or the time_input cannot be rebuilt from a description.
        """
        if not hasattr(self.net, "config"):
            raise ArgumentError("net", type(self.net).__name__, "a registered network with a `config` (register_net)")
        if callable(self.time_input):
            raise ArgumentError("time_input", repr(self.time_input), "a time input known by name, to be saved")
        return {
            "format": FORMAT,
            "sde": self.sde.config,
            "net": self.net.config,
            "predicts": self.predicts,
            "time_input": self.time_input,
            "data_std": self.data_std,
            "scale_input": self.scale_input,
            "learned_variance": self.learned_variance,
            "scaling": None if self.scaling is None else self.scaling.config,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, all or nothing.

        Raises:
            CheckpointError: the folder cannot be written, or holds anything else than a model, which would be lost;
                what it held before is untouched.
        """
        folder = Path(folder)
        others = sorted({file.name for file in folder.iterdir()} - set(FILES)) if folder.is_dir() else []
        if others:
            raise CheckpointError("folder", f"{folder}, which holds {others[0]}", "a new folder, or a model's")
        with atomic_folder(folder) as new:
            self.write_pretrained(new)

    def write_pretrained(self, folder: Path, weights: Condition = None) -> None:
        """The files of :meth:`save_pretrained` into an existing folder, with the network's weights or other ones."""
        tensors = {f"net.{key}": value for key, value in (weights or self.net.state_dict()).items()}
        if self.moments is not None:
            tensors |= {"moments.mean": self.moments.mean, "moments.covariance": self.moments.covariance}
        save_tensors(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> ScoreModel:
        """The model saved in ``folder``, in evaluation mode. Only safetensors and JSON are read, never a pickle.

        ``folder`` may also be the name (a str) of a model that comes with the package: ``"digits"``, a
        class-conditional model of scikit-learn's digits (see ``scoresde/pretrained/digits/README.md``). A folder that
        holds a model and is called so is still the folder: what was saved as ``"digits"`` is what is loaded.

        Raises:
            CheckpointError: not a folder with a model nor a known name, a truncated or foreign file, weights that do
                not fit.
        """
        folder = _located(folder)
        config = read_json(folder / "config.json", "folder")
        if config.pop("format", None) != FORMAT:
            raise CheckpointError("folder", folder, f"a model written by save_pretrained (format {FORMAT!r})")
        tensors = load_tensors(folder / "model.safetensors")
        try:
            moments = None
            if "moments.mean" in tensors:
                moments = Moments(tensors.pop("moments.mean"), tensors.pop("moments.covariance"))
            scaling = config.pop("scaling")
            model = cls(
                build_net(config.pop("net")),
                build_sde(config.pop("sde")),
                scaling=None if scaling is None else Scaling.from_config(scaling),
                moments=moments,
                **config,
            )
            model.net.load_state_dict({key.removeprefix("net."): value for key, value in tensors.items()})
        except (KeyError, TypeError, ValueError, RuntimeError, ScoreSDEError) as error:
            raise CheckpointError("folder", f"{folder} ({error})", "a model this version can build") from error
        return model.to(device).eval()


def shipped() -> tuple[str, ...]:
    """The names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in PRETRAINED.glob(f"*/{FILES[0]}")))


def _located(folder: str | Path) -> Path:
    """The folder that is meant: itself, or that of a shipped model of this name."""
    path = Path(folder)
    if isinstance(folder, str) and folder in shipped() and not any((path / name).exists() for name in FILES):
        return PRETRAINED / folder
    if not path.is_dir():
        names = ", ".join(map(repr, shipped()))
        raise CheckpointError("folder", f"{folder}, which is no folder", f"one with a model, or a name: {names}")
    return path
