"""Our default sampler as a scheduler of diffusers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import positive, whole
from scoresde.data import DataScale
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.extras import optional
from scoresde.interop.processes import PREDICTIONS
from scoresde.models import Estimate, Model
from scoresde.models.conditions import Condition
from scoresde.models.predictions import prediction_row, solve
from scoresde.sampling import DPMSolver
from scoresde.sampling.multistep import MultistepRun
from scoresde.sde import DDPM, SDE, FlowSDE, Level

GUIDED = 7.5  # the usual scale of text-to-image pipelines
#: betas of their schedules by name
_BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda low, high, n: torch.linspace(low, high, n, dtype=torch.float32),
    "scaled_linear": lambda low, high, n: torch.linspace(low**0.5, high**0.5, n, dtype=torch.float32) ** 2,
    "squaredcos_cap_v2": lambda low, high, n: DDPM.cosine(n).betas.float(),
    "sigmoid": lambda low, high, n: torch.sigmoid(torch.linspace(-6, 6, n)) * (high - low) + low,
}


class _Known(Model):
    """What a run needs to know of a model: its process and scale."""

    any_noise = False

    def __init__(self, sde: SDE, data_scale: DataScale | None, first: float | None, guidance: float):
        super().__init__()
        self.sde, self.data_scale, self._first, self.guidance = sde, data_scale, first, guidance

    @property
    def first_time(self) -> float | None:
        return self._first

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        raise ArgumentError("model", "a scheduler's", "that of the pipeline")


def _ddpm(config: Mapping[str, Any]) -> DDPM:
    """Return the process of a scheduler's configuration."""
    if config["beta_schedule"] not in _BETAS:
        raise UnknownNameError("beta_schedule", config["beta_schedule"], _BETAS)
    if config["trained_betas"] is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float32)
    else:
        make = _BETAS[config["beta_schedule"]]
        betas = make(config["beta_start"], config["beta_end"], config["num_train_timesteps"])
    ddpm = DDPM.from_alphas_bar(torch.cumprod(1 - betas, 0).double())
    return ddpm.rescale_zero_terminal_snr() if config["rescale_betas_zero_snr"] else ddpm


class Steps:
    """The steps of :class:`scoresde.DPMSolver` between calls of a pipeline.

    Attributes:
        timesteps: What the network gets for the time at each call.
        init_noise_sigma: Standard deviation of the start, 1.
    """

    order = 1
    init_noise_sigma = 1.0
    timesteps: Tensor
    num_inference_steps: int | None = None

    if TYPE_CHECKING:

        @property
        def config(self) -> Mapping[str, Any]:
            """The settings, which diffusers keeps."""

    def _set_up(self) -> None:
        """Make the process of the settings."""
        config = self.config
        if config["prediction_type"] not in PREDICTIONS:
            raise UnknownNameError("prediction_type", config["prediction_type"], PREDICTIONS)
        is_flow, levels = config["prediction_type"] == "flow_prediction", config["num_train_timesteps"]
        if config["flow_matching"] is not None:
            is_flow = config["flow_matching"]
        self.predicts = "flow" if is_flow else PREDICTIONS[config["prediction_type"]]
        self.sde: SDE = FlowSDE() if is_flow else _ddpm(config)
        typical, finest, scale = config["typical"], config["finest"], None
        if typical is not None or finest is not None:
            typical = positive("typical", 1.0 if typical is None else typical)
            scale = DataScale(typical, typical, positive("finest", typical / 30 if finest is None else finest))
        first = None if is_flow else 1 / levels
        self.known = _Known(self.sde, scale, first, GUIDED if config["guided"] else 1.0)
        self.run: MultistepRun | None = None
        self.timesteps = torch.from_numpy(np.arange(levels)[::-1].copy())

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Plan a run of this number of network calls."""
        self.num_inference_steps = whole("num_inference_steps", num_inference_steps)
        plan, _ = DPMSolver().plan(self.known, self.num_inference_steps)
        times = torch.tensor([level.t for level in plan.levels], dtype=torch.float64)
        n = self.config["num_train_timesteps"]
        labels = times * n if isinstance(self.sde, FlowSDE) else times * n - 1
        self.timesteps = labels.to(device=device, dtype=torch.float32)
        self.run = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample: our networks get x itself."""
        return sample

    def moved(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        """Return x at the next call from what the network returned.

        Args:
            model_output: F ``(B, *D)``, or with as many channels more for a learned variance.
            timestep: Time of the call, one of ``timesteps`` in their order.
            sample: x ``(B, *D)`` of the call.

        Raises:
            ArgumentError: A step before :meth:`set_timesteps`, or out of its order.
        """
        if self.num_inference_steps is None:
            raise ArgumentError("num_inference_steps", None, "set by set_timesteps before the first step")
        if self.run is None or self.run.done == self.run.calls:
            self.run = self._begun(sample, timestep)
        run = self.run
        if not isinstance(timestep, Tensor) or timestep.device.type == "cpu":  # elsewhere nothing waits for it
            place = self.num_inference_steps - run.calls + run.done
            if abs(float(timestep) - float(self.timesteps[place])) > 1e-3:
                expected = f"the next of `timesteps`, {float(self.timesteps[place]):g}"
                raise ArgumentError("timestep", float(timestep), expected)
        level, run.x = run.levels[run.done], sample
        F = model_output.chunk(2, dim=1)[0] if model_output.shape[1] == 2 * sample.shape[1] else model_output
        p, q = prediction_row(self.predicts, level.alpha, level.sigma)
        run.correct(solve(F.to(sample.dtype), sample, level.alpha, level.sigma, p, q)[0])
        run.predict()
        return run.x

    def _begun(self, sample: Tensor, timestep: Any) -> MultistepRun:
        """Return a run that begins at a time: the first, or a later one."""
        place = int((self.timesteps - float(timestep)).abs().argmin())
        if place == 0:
            return MultistepRun(DPMSolver(), self.known, sample, self.num_inference_steps, None, None)
        assert self.num_inference_steps is not None
        plan, settings = DPMSolver().plan(self.known, self.num_inference_steps)
        times = [level.t for level in plan.levels[place:]]
        sampler = DPMSolver(settings.order, corrector=settings.corrector, grid=times)
        return MultistepRun(sampler, self.known, sample, None, None, None)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return alpha x_0 + sigma eps at times of the network."""
        n = self.config["num_train_timesteps"]
        t = timesteps / n if isinstance(self.sde, FlowSDE) else (timesteps + 1) / n
        level = self.sde.level(t.to(original_samples.device, torch.float64).expand(len(original_samples)), noise)
        return (level.alpha * original_samples + level.sigma * noise).to(original_samples.dtype)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


@functools.cache
def scheduler_class() -> type[Steps]:
    """Return ``DPMSolverScheduler``, a class of diffusers.

    It is made at its first use, as diffusers may not be installed.

    Raises:
        MissingExtraError: Diffusers is not installed.
    """
    library = optional("diffusers")
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

    class DPMSolverScheduler(Steps, SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # theirs are untyped
        """The default sampler of scoresde as a scheduler of diffusers. ::

            pipe.scheduler = DPMSolverScheduler.from_config(pipe.scheduler.config)

        It is :class:`scoresde.DPMSolver`, an exponential multistep solver with a corrector, of an order that follows
        from the number of calls.

        Args:
            num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type,
            rescale_betas_zero_snr: As for diffusers' own schedulers.
            flow_matching: Whether the network is one of flow matching. None (default): it is if ``prediction_type`` is
                "flow_prediction".
            shift: Of flow matching, kept for other schedulers; the levels here follow from the data's scale.
            guided: Whether guidance is strong, as in text-to-image pipelines, so that steps should be of first order.
                Default False.
            typical, finest: Lengths of the data in the network's units: their spread, and the detail that matters.
                None: 1 and 1/30.
        """

        config_name = "scheduler_config.json"  # type: ignore[assignment]  # theirs is None
        _compatibles = [scheduler.name for scheduler in _karras(library)]  # noqa: RUF012  # as theirs

        @register_to_config  # type: ignore[untyped-decorator]  # theirs are untyped
        def __init__(
            self,
            num_train_timesteps: int = 1000,
            beta_start: float = 0.0001,
            beta_end: float = 0.02,
            beta_schedule: str = "linear",
            trained_betas: Any = None,
            prediction_type: str = "epsilon",
            rescale_betas_zero_snr: bool = False,
            flow_matching: bool | None = None,
            shift: float = 1.0,
            guided: bool = False,
            typical: float | None = None,
            finest: float | None = None,
        ):
            self._set_up()

        def step(
            self,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            generator: torch.Generator | None = None,
            return_dict: bool = True,
            **ignored: Any,
        ) -> Any:
            """Take the step after a network call, see :meth:`Steps.moved`.

            Args:
                model_output, timestep, sample: The call.
                generator: Not used, as the flow has no noise.
                return_dict: Whether to return an object instead of a tuple.
                ignored: Further arguments of other schedulers, such as ``eta``.
            """
            x = self.moved(model_output, timestep, sample)
            return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    DPMSolverScheduler.__module__, DPMSolverScheduler.__qualname__ = "scoresde.interop.diffusers", "DPMSolverScheduler"
    found: type[Steps] = DPMSolverScheduler
    return found


def _karras(library: Any) -> Any:
    """Return the schedulers that a pipeline may exchange for ours."""
    return library.schedulers.scheduling_utils.KarrasDiffusionSchedulers
