"""A network under an SDE: its prediction, its time input, its files."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import positive
from scoresde.data import Data, DataScale, Mapped, Scaling
from scoresde.errors import ArgumentError, CheckpointError, DataWarning, DTypeError, ScoreSDEError, ShapeError, warn
from scoresde.files import atomic_folder, load_tensors, read_json, save_tensors
from scoresde.models.calibration import Calibration
from scoresde.models.conditions import ESTIMATE, Condition
from scoresde.models.doors import Doors
from scoresde.models.estimate import Estimate
from scoresde.models.model import Model
from scoresde.models.moments import Moments
from scoresde.models.predictions import NEEDED, prediction_row, solve, total_std
from scoresde.models.pretrained import (
    FILES,
    FORMAT,
    bare,
    bare_name,
    calibration_beside,
    check_digests,
    is_hub_name,
    locate,
    refuse_other_files,
)
from scoresde.models.time_inputs import COUNTED, TimeInput, resolve_time_input
from scoresde.nets.adapted import not_a_tensor
from scoresde.nets.description import class_needed, describe_net, rebuild_net
from scoresde.random import device_named
from scoresde.sde import SDE, Level, build_sde
from scoresde.sde.times import is_concrete


class Network(Protocol):
    """What the network of a :class:`ScoreModel` must be.

    To be trained, moved or saved it must be a ``torch.nn.Module``. One that is registered by
    :func:`scoresde.nets.register_net` is built again when a model is loaded; another one is passed then
    (``from_pretrained(folder, net=MyNet)``). :func:`scoresde.nets.adapt` makes one of any network.
    """

    def __call__(self, x: Tensor, time_input: Tensor, **cond: Tensor) -> Tensor:
        """Return a tensor of the shape of x, ``(B, *D)``.

        The time input is ``(B,)``, and conditions are ``(B, ...)``.
        """


LARGEST_SHARE = 0.25  # of a bin, which the least noise of a continuous process may be


def _warn_of_coarse_noise(sde: SDE, data: Data | Mapped) -> None:
    """Warn of a process that never shows single bins of integers.

    Discrete processes have decoders for them (P5, the last step of a DDPM).
    """
    if data.bin_width == 0 or sde.times is not None:
        return
    rho = sde.levels(torch.zeros(1, dtype=torch.float64))[0].rho
    if rho > LARGEST_SHARE * data.bin_width:
        message = (
            f"{sde} has a noise of {rho:.3g} at t = 0, {rho / data.bin_width:.2g} of the width of an integer's bin, "
            f"{data.bin_width:.3g} in model units. It blurs neighbouring integers, which costs likelihood. "
            f"VESDE.for_data(data) has less."
        )
        warn(message, DataWarning, stacklevel=3)


def _conditions_of(net: Network) -> frozenset[str] | None:
    """Return the names of a network's arguments besides x and the time.

    None: it takes any, or its arguments are unknown.
    """
    try:
        parameters = list(inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters[2:])


@checked
class ScoreModel(Doors, Model):
    """A network ``net(x, time_input, **cond)`` as a score model (P11, E6).

    Args:
        net: Network from x ``(B, *D)`` and a time input ``(B,)`` to a tensor of the shape of x.
        sde: Forward process it is trained for.
        predicts: Meaning of its output, a row of :data:`~scoresde.models.predictions.PREDICTIONS`, default ``"noise"``.
        time_input: What it receives for the time, a name in :data:`~scoresde.models.time_inputs.TIME_INPUTS` or a
            function ``(level, sde) -> number or (B,)``. None (default): that of an adapted network
            (:func:`scoresde.nets.adapt`), else ``"time"``: t itself.
        data_std: Standard deviation s_d of the data, used by ``"edm"`` and ``scale_input``, default 1.
        scale_input: Whether to divide the network's input by S = sqrt(alpha^2 s_d^2 + sigma^2), so that it has unit
            variance at every level (EDM's c_in). None: only for ``"edm"``.
        scaling: Map from the data's units to the model's, kept for bits/dim and samples.
        moments: Mean and covariance of the data, kept for the prior.
        data_scale: Lengths of the data, kept for the noise levels of samplers and likelihoods. None: those that the
            moments tell.
        learned_variance: Whether the output has twice the channels (dimension 1). The second half u, in [-1, 1], then
            gives P7's v = (u + 1)/2, the convention of Nichol & Dhariwal (2021). Default False.
        self_condition: Whether the network also sees an estimate of x0, that of the call before (Chen et al. 2023). It
            is joined to x along dimension 1, so the network has twice the channels at its input, such as
            ``UNet((2 * C, H, W), out_channels=C)``. Training gives it to half of the samples, :func:`sample` and
            :func:`trajectory` to all; where there is none, as in a likelihood, it is 0. Default False.

    Raises:
        UnknownNameError: ``predicts`` or ``time_input`` is an unknown name.
        ArgumentError: ``data_std`` is not positive.
        DTypeError: ``sde`` is not an SDE, or ``net`` cannot be called.
    """

    any_noise = False

    def __init__(
        self,
        net: Network,
        sde: SDE,
        predicts: str = "noise",
        *,
        time_input: str | TimeInput | None = None,
        data_std: float = 1.0,
        scale_input: bool | None = None,
        scaling: Scaling | None = None,
        moments: Moments | None = None,
        data_scale: DataScale | None = None,
        learned_variance: bool = False,
        self_condition: bool = False,
    ):
        super().__init__()
        if not isinstance(sde, SDE):
            got = f"the class {sde.__name__}" if isinstance(sde, type) else type(sde).__name__
            raise DTypeError("sde", got, "an SDE, such as VPSDE()")
        if not callable(net):
            raise DTypeError("net", type(net).__name__, "a network, such as UNet((1, 28, 28))")
        prediction_row(predicts, 0.5, 0.5)  # refuse an unknown name here, not at the first call
        self.net = cast(nn.Module, net)  # a plain function serves where nothing is trained, moved or saved
        self._taken = _conditions_of(net)
        if time_input is None:
            time_input = getattr(net, "time_input", None) or "time"
        self.sde, self.predicts, self.time_input = sde, predicts, time_input
        self._time_input = resolve_time_input(time_input)
        self.data_std = positive("data_std", data_std)
        self.scale_input = predicts == "edm" if scale_input is None else scale_input
        self.scaling, self.moments, self.learned_variance = scaling, moments, learned_variance
        self.data_scale, self.self_condition = data_scale, self_condition

    @classmethod
    @checked
    def for_data(
        cls,
        net: Network,
        sde: SDE,
        data: Data | Mapped,
        predicts: str = "edm",
        *,
        time_input: str | TimeInput = "log_snr",
        **settings: Any,
    ) -> ScoreModel:
        """Return a model that knows the statistics of its training data.

        These are their scaling, moments, standard deviation and lengths.

        Args:
            net, sde, predicts, time_input: As for the class, but with defaults ``"edm"`` and ``"log_snr"``.
            data: Training data.
            settings: Further settings of the class, which take precedence over what is measured.

        Raises:
            DTypeError: ``data`` is a tensor or an array, whose meaning is unknown.

        Warns:
            DataWarning: The least noise of the process is above a quarter of the bin of integers.
        """
        if not isinstance(data, (Data, Mapped)):
            expected = "a scoresde.Data: Data('mine', tensor), from_array(array) or load_data(path)"
            raise DTypeError("data", type(data).__name__, expected)
        moments = Moments(*data.moments())
        measured: dict[str, Any] = {"data_std": moments.std, "scaling": data.scaling, "moments": moments}
        if "data_scale" not in settings:
            measured["data_scale"] = data.data_scale
        _warn_of_coarse_noise(sde, data)
        return cls(net, sde, predicts, time_input=time_input, **(measured | settings))

    @property
    def classes(self) -> int | None:
        """The number of the network's classes. None: none, or unknown."""
        config: Mapping[str, Any] = getattr(self.net, "config", {})
        return config.get("classes")

    @property
    def first_time(self) -> float | None:
        """The time of the cleanest level that the network knows. None: all.

        It is that of the first level, where the time input counts those of a discrete process. Networks of other
        libraries may have a ``least_ratio`` sigma/alpha instead.
        """
        least: float = getattr(bare(self.net), "least_ratio", 0.0)
        if least > 0:
            return float(self.sde.time_of(-2 * math.log(least)))
        times = self.sde.times
        return None if times is None or self.time_input not in COUNTED else times[0].item()

    def predict(self, x: Tensor, level: Level, cond: Condition = None) -> Tensor:
        """Return the network's output F = p x_0 + q eps at a level.

        If variances are learned, u follows F along dimension 1.

        Args:
            x: Noisy samples, ``(B, *D)``.
            level: The noise level.
            cond: Condition, tensors ``(B, ...)`` by name.

        Raises:
            ShapeError: The network's output has another shape.
        """
        time_input = self._time_input(level, self.sde)
        time_dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(time_input, Tensor):
            time_input = time_input.to(time_dtype).expand(x.shape[0])
        else:
            time_input = torch.full(x.shape[:1], time_input, dtype=time_dtype, device=x.device)
        if self.scale_input:
            x = x / total_std(level.alpha, level.sigma, self.data_std)
        given, seen = dict(cond or {}), x
        if self.self_condition:
            seen = self._joined(x, given.pop(ESTIMATE, None))
        self._check_names(given)
        output: Tensor = self.net(seen, time_input, **given)
        if not isinstance(output, Tensor):
            raise not_a_tensor(output)
        expected = tuple(x.shape)
        if self.learned_variance:
            if x.ndim < 2:
                expected_x = "of shape (B, C, ...), as learned variances are further channels"
                raise ShapeError("x", tuple(x.shape), expected_x)
            expected = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
        if output.shape != expected:
            raise ShapeError("net's output", tuple(output.shape), f"of shape {expected} for x of {tuple(x.shape)}")
        return output

    def _joined(self, x: Tensor, before: Tensor | None) -> Tensor:
        """Return the network's input: x, and the estimate before, in units of s_d."""
        if x.ndim < 2:
            raise ShapeError("x", tuple(x.shape), "of shape (B, C, ...), as the estimate of x0 is further channels")
        if before is None:
            before = torch.zeros_like(x)
        if before.shape != x.shape:
            raise ShapeError(f"cond[{ESTIMATE!r}]", tuple(before.shape), f"of the shape of x, {tuple(x.shape)}")
        return torch.cat([x, before.to(x.dtype) / self.data_std], dim=1)

    def _check_names(self, cond: Condition) -> None:
        """Refuse a condition that the network does not take."""
        if cond and self._taken is not None and not self._taken.issuperset(cond):
            wrong = next(name for name in cond if name not in self._taken)
            names = ", ".join(map(repr, sorted(self._taken))) or "none"
            raise ArgumentError("cond", repr(wrong), f"conditions that the network takes: {names}")

    def extra_repr(self) -> str:
        """Return the process and what the network predicts."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        return f"{self.sde!r}, predicts={self.predicts!r}, time_input={self.time_input!r}, {weights:,} weights"

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        F, v = self.predict(x, level, cond), None
        if self.learned_variance:
            F, u = F.chunk(2, dim=1)
            v = (u + 1) / 2
        self._check_determined(level)
        p, q = prediction_row(self.predicts, level.alpha, level.sigma, self.data_std)
        return Estimate(*solve(F, x, level.alpha, level.sigma, p, q), level, v)

    def _check_determined(self, level: Level) -> None:
        """Raise an error where the prediction leaves x0 or eps open.

        Times on an accelerator are not checked, as that would wait for it.
        """
        for name in NEEDED.get(self.predicts, ()):
            value = getattr(level, name)
            if isinstance(value, Tensor):
                if not is_concrete(value) or bool((value > 0).all()):
                    continue
            elif value > 0:
                continue
            expected = f"times at which {self.predicts!r} determines both x0 and eps"
            raise ArgumentError("t", f"one where {name} = 0", expected)

    # ---- saving ----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """All but the weights, as values that JSON can hold.

        Raises:
            ArgumentError: The SDE or the time input cannot be rebuilt from a description, or the network is no module.
        """
        net = bare(self.net)
        if not isinstance(net, nn.Module):
            raise ArgumentError("net", type(net).__name__, "a torch.nn.Module, to be saved")
        if callable(self.time_input):
            raise ArgumentError("time_input", repr(self.time_input), "the name of a time input, to be saved")
        calibration = {} if self.calibration is None else {"calibration": self.calibration.config}
        return {
            "format": FORMAT,
            "sde": self.sde.config,
            "net": describe_net(net),
            "predicts": self.predicts,
            "time_input": self.time_input,
            "data_std": self.data_std,
            "scale_input": self.scale_input,
            "learned_variance": self.learned_variance,
            "self_condition": self.self_condition,
            "scaling": None if self.scaling is None else self.scaling.config,
            "data_scale": None if self.data_scale is None else asdict(self.data_scale),
        } | calibration

    @checked
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into a folder, all or nothing.

        The files are ``config.json`` and ``model.safetensors``.

        Args:
            folder: A new folder, or that of a saved model, which is replaced.

        Raises:
            CheckpointError: The folder cannot be written, or holds anything else than a model. Its content is
                untouched.
        """
        refuse_other_files(Path(folder))
        with atomic_folder(folder) as new:
            self.write_pretrained(new)

    def write_pretrained(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the files of :meth:`save_pretrained` into an existing folder.

        Args:
            folder: The folder.
            weights: Weights by their names in the network. None: the network's.
        """
        (config, weights_file), described = (folder / name for name in FILES), self.config
        weights = self.net.state_dict() if weights is None else weights
        tensors = {f"net.{bare_name(key, self.net)}": value for key, value in weights.items()}
        if self.moments is not None:
            tensors |= {"moments.mean": self.moments.mean, "moments.covariance": self.moments.covariance}
        save_tensors(tensors, weights_file)
        config.write_text(json.dumps(described, indent=2) + "\n")

    @classmethod
    @checked
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        *,
        net: nn.Module | Callable[..., nn.Module] | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> ScoreModel:
        """Load a saved model, in evaluation mode.

        Only safetensors and JSON are read, never a pickle, and no code of the folder runs.

        Args:
            folder: Folder of the model; or that of a run or a trainer, whose newest checkpoint is taken; or the name (a
                str) of a bundled model. ``"digits"`` is a class-conditional model of scikit-learn's digits (see
                ``scoresde/pretrained/digits/README.md``). Or ``"user/model"`` on the hub of Hugging Face (extra
                ``hub``), from its cache if there is no network. A local folder of that name takes precedence.
            device: Device of the model, default the CPU.
            net: For a network that is not registered: its class, which is built from the saved configuration, or a
                network of it, which takes the weights. None: the network is registered.
            revision, token: Of a model on the hub: its branch, tag or commit, and a token for private ones. None: the
                newest, and the machine's.

        Raises:
            CheckpointError: The folder holds no model, or there is none; a file is truncated or foreign; the weights do
                not fit; the network is not registered and ``net`` is None.
        """
        # 1. the files, none of which is code
        if is_hub_name(folder) and not Path(folder).exists():
            folder = cls.downloaded(str(folder), revision, token)
        folder, device = locate(folder), device_named(device)
        config_file, weights_file = (folder / name for name in FILES)
        config = read_json(config_file, "folder")
        beside = calibration_beside(folder)
        if config.pop("format", None) != FORMAT:
            theirs = ", or for ScoreModel.from_diffusers" if "_diffusers_version" in config else ""
            expected = f"one with a model written by save_pretrained (format {FORMAT!r}){theirs}"
            raise CheckpointError("folder", folder, expected)
        tensors = load_tensors(weights_file)
        check_digests(folder)
        if net is None and (needed := class_needed(config.get("net"))):
            expected = "its class or a network of it, from_pretrained(folder, net=...), as no code is loaded"
            raise CheckpointError("net", f"None, for a folder with the weights of a {needed}", expected)
        # 2. the model
        try:
            moments = None
            if "moments.mean" in tensors:
                moments = Moments(tensors.pop("moments.mean"), tensors.pop("moments.covariance"))
            scaling, calibration = config.pop("scaling"), config.pop("calibration", None) or beside
            lengths = config.pop("data_scale", None)
            model = cls(
                rebuild_net(config.pop("net"), net),
                build_sde(config.pop("sde")),
                scaling=None if scaling is None else Scaling.from_config(scaling),
                moments=moments,
                data_scale=None if lengths is None else DataScale(**lengths),
                **config,
            )
            if calibration is not None:
                model.calibration = Calibration.from_config(calibration)
            model.net.load_state_dict({key.removeprefix("net."): value for key, value in tensors.items()})
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ScoreSDEError) as error:
            expected = "one with a model that this version can build"
            raise CheckpointError("folder", f"{folder} ({error})", expected) from error
        return model.to(device).eval()
