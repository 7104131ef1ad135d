"""Schedulers of diffusers as our processes, grids and samplers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import ArgumentError, DTypeError, ScoreSDEWarning, warn
from scoresde.guidance import clipped, dynamic_threshold
from scoresde.models import Model
from scoresde.sampling import DDIM, Ancestral, DPMSolver, Heun, PredictorCorrector, Sampler
from scoresde.sde import DDPM, SDE, VESDE, FlowSDE

#: what their networks predict, by their names and ours
PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity", "flow_prediction": "flow"}
#: theirs by ours
THEIRS = {ours: theirs for theirs, ours in PREDICTIONS.items()}
_NO_SCORE = ("Consistency", "CMStochastic", "LCM", "TCD", "VQDiffusion", "Amused", "Wuerstchen", "FlowMap")
_VARIANCES = {"fixed_small": "posterior", "fixed_large": "forward", "learned_range": "learned"}
_DDIM = ("DDIMScheduler", "DDIMParallelScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
_MULTISTEP = "DPMSolverMultistepScheduler"


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """Return a scheduler's configuration.

    Raises:
        DTypeError: It is no scheduler of diffusers.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping) or not hasattr(scheduler, "set_timesteps"):
        raise DTypeError("scheduler", type(scheduler).__name__, "a scheduler of diffusers, such as DDIMScheduler()")
    return config


def name_of(scheduler: Any) -> str:
    return type(scheduler).__name__


def _is_flow(scheduler: Any) -> bool:
    config = config_of(scheduler)
    return "FlowMatch" in name_of(scheduler) or bool(config.get("use_flow_sigmas"))


@checked
def process_of(scheduler: object) -> tuple[SDE, dict[str, Any]]:
    """Return the process of a scheduler of diffusers, and its settings.

    Args:
        scheduler: Scheduler.

    Returns:
        The process: a DDPM of its ``alphas_cumprod``, a FlowSDE for flow matching, or a VESDE for its EDM and score_sde
        schedulers. The settings are ``predicts``, ``time_input`` and what else :class:`ScoreModel` needs.

    Raises:
        DTypeError: It is no scheduler of diffusers.
        ArgumentError: Its networks have no score, as those of consistency models; or another kind of prediction.
    """
    config, name = config_of(scheduler), name_of(scheduler)
    if any(part in name for part in _NO_SCORE):
        raise ArgumentError("scheduler", name, "one of a diffusion or flow model, whose network tells a score")
    known = getattr(scheduler, "sde", None)
    if isinstance(known, SDE):  # our own scheduler
        time_input = "ddpm"
        if isinstance(known, FlowSDE):
            _check_setting(config, "num_train_timesteps", 1000)
            time_input = "scaled_time"
        return known, {"predicts": getattr(scheduler, "predicts", "noise"), "time_input": time_input}
    if _is_flow(scheduler):
        return _flow_of(config, name)
    if name.startswith("EDM"):
        _check_setting(config, "prediction_type", "epsilon")
        settings = {"predicts": "edm", "time_input": "edm", "data_std": config["sigma_data"]}
        return VESDE.linear(config["sigma_max"]), settings
    if name == "ScoreSdeVeScheduler":
        sde = VESDE(config["sigma_min"], config["sigma_max"])
        return sde, {"predicts": "score", "time_input": "score_sde_ve"}
    alphas_bar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas_bar, torch.Tensor):
        expected = "one with levels alphas_cumprod, or one of flow matching, EDM or score_sde"
        raise ArgumentError("scheduler", name, expected)
    alphas_bar = alphas_bar.double().cpu().clone()
    if config.get("rescale_betas_zero_snr"):
        alphas_bar[-1] = 0.0  # some schedulers put 2^-24 there, to divide by it
    predicts = _predicts(config, "epsilon")
    # one of them gives its network the logarithm of sigma
    by_noise = predicts == "velocity" and config.get("timestep_type") == "continuous"
    return DDPM.from_alphas_bar(alphas_bar), {"predicts": predicts, "time_input": "edm" if by_noise else "ddpm"}


def _flow_of(config: Mapping[str, Any], name: str) -> tuple[SDE, dict[str, Any]]:
    """Return the process of flow matching, and its settings."""
    for setting, value in (("num_train_timesteps", 1000), ("invert_sigmas", False)):
        _check_setting(config, setting, value)
    predicts = "flow" if "FlowMatch" in name else _predicts(config, "flow_prediction")
    return FlowSDE(), {"predicts": predicts, "time_input": "scaled_time"}


def _predicts(config: Mapping[str, Any], default: str) -> str:
    """Return our name of what a scheduler's networks predict."""
    theirs = config.get("prediction_type", default)
    if theirs not in PREDICTIONS:
        raise ArgumentError("scheduler", f"one with prediction_type={theirs!r}", f"one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[theirs]


def _check_setting(config: Mapping[str, Any], name: str, value: object) -> None:
    """Refuse a scheduler with another value of a setting."""
    if config.get(name, value) != value:
        raise ArgumentError("scheduler", f"one with {name}={config[name]!r}", f"one with {name}={value!r}")


@checked
def grid_of(scheduler: object, steps: int) -> list[float]:
    """Return the times of a scheduler's steps, from noise to data. ::

        x = sample(model, shape, DDIM(grid=grid_of(pipeline.scheduler, 50)))

    Args:
        scheduler: Scheduler of diffusers, of any kind that :func:`process_of` knows. It stays unchanged.
        steps: Number of its inference steps.

    Returns:
        The times of the network calls, and the time of the end: 0, or that of its least level, where
        ``set_alpha_to_one`` is False or ``final_sigmas_type`` is "sigma_min".

    Raises:
        DTypeError, ArgumentError: As in :func:`process_of`; or a grid that does not decrease, as that of PNDM.

    Warns:
        ScoreSDEWarning: Its steps do not end where the next ones begin, as those of its DDIM with spacing "linspace".
            Ours do.
    """
    sde, _ = process_of(scheduler)
    config = config_of(scheduler)
    mine: Any = copy.deepcopy(scheduler)
    mine.set_timesteps(whole("steps", steps))
    if isinstance(sde, FlowSDE):
        sigmas = getattr(mine, "sigmas", None)
        if sigmas is None:  # our own scheduler
            sigmas = [*(mine.timesteps.double() / 1000).tolist(), 0.0]
        times = _distinct([float(sigma) for sigma in sigmas])
    elif isinstance(sde, VESDE):
        if not hasattr(mine, "sigmas") or name_of(scheduler) == "ScoreSdeVeScheduler":
            return [*(float(t) for t in mine.timesteps), 0.0]
        sigmas = torch.as_tensor(mine.sigmas, dtype=torch.float64)
        times = [*_distinct(sde.time_of(-2 * sigmas[sigmas > 0].log()).tolist()), 0.0]
    else:
        times = _level_times(sde, mine, config)
    if any(a <= b for a, b in itertools.pairwise(times)):
        raise ArgumentError(
            "scheduler", name_of(scheduler), "one whose steps go from noise to data, once through each level"
        )
    return times


def _distinct(times: list[float]) -> list[float]:
    """Return times without neighbours that are the same, as Heun's have."""
    return [t for i, t in enumerate(times) if i == 0 or t != times[i - 1]]


def _level_times(sde: SDE, scheduler: Any, config: Mapping[str, Any]) -> list[float]:
    """Return the times of steps on the levels of a DDPM."""
    assert sde.times is not None
    levels, counted = len(sde.times), [float(k) for k in scheduler.timesteps]
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) == len(counted) + 1:
        noise = [float(sigma) for sigma in sigmas]
        last = 0.0 if noise[-1] == 0 else 1 / levels
        return [*_distinct([_time(sde, k, sigma) for k, sigma in zip(counted, noise, strict=False)]), last]
    ratio = config.get("num_train_timesteps", levels) // len(counted)
    if "DDIM" in name_of(scheduler):
        ends = [k - ratio for k in counted]
        if any(abs(end - k) > 0.5 for end, k in zip(ends, counted[1:], strict=False)):
            i = next(i for i, k in enumerate(counted[1:]) if abs(ends[i] - k) > 0.5)
            message = f"{name_of(scheduler)} steps from {counted[i]:g} to {ends[i]:g}, but calls the network at "
            warn(message + f"{counted[i + 1]:g} next. Here both are {counted[i + 1]:g}.", ScoreSDEWarning, stacklevel=3)
    whole_way = config.get("set_alpha_to_one", True) or "DDPM" in name_of(scheduler)
    times = _distinct([(k + 1) / levels for k in counted])
    return times + ([0.0] if whole_way else [1 / levels] if times[-1] > 1 / levels else [])


def _time(sde: SDE, k: float, sigma: float) -> float:
    """Return the time of a level of theirs: k if it is whole, or of its noise."""
    assert sde.times is not None
    if abs(k - round(k)) < 1e-3:
        t = (round(k) + 1) / len(sde.times)
        rho = float(sde.levels(torch.tensor([t], dtype=torch.float64))[0].rho)
        if abs(rho - sigma) <= 1e-3 * rho or rho == float("inf"):
            return t
    return float(sde.time_of(torch.tensor(-2.0 * torch.tensor(sigma).log().item(), dtype=torch.float64)))


@checked
def sampler_of(scheduler: object, steps: int, eta: float = 0.0) -> Sampler:
    """Return our sampler that takes the steps of a scheduler of diffusers. ::

        x = sample(limited_as(scheduler, model), shape, sampler_of(scheduler, 50))

    Args:
        scheduler: ``DDPMScheduler``, ``DDIMScheduler``, ``EulerDiscreteScheduler``, ``HeunDiscreteScheduler``,
            ``FlowMatchEulerDiscreteScheduler`` or ``DPMSolverMultistepScheduler`` of order 1 or 2.
        steps: Number of its inference steps.
        eta: Noise of DDIM, as its ``step`` takes it, default 0.

    Raises:
        ArgumentError: Another scheduler; the message lists these.
    """
    config, name, grid = config_of(scheduler), name_of(scheduler), grid_of(scheduler, steps)
    inner = grid[:-1] if grid[-1] == 0 else grid
    if name in _DDIM:
        return DDIM(eta, grid=grid, last="none")
    if name in ("DDPMScheduler", "DDPMParallelScheduler"):
        kind = config.get("variance_type", "fixed_small")
        if kind not in _VARIANCES:
            raise ArgumentError("scheduler", f"one with variance_type={kind!r}", f"one of {', '.join(_VARIANCES)}")
        return PredictorCorrector(Ancestral(_VARIANCES[kind]), grid=grid, last="none")  # type: ignore[arg-type]
    if name == "HeunDiscreteScheduler":
        return Heun(grid=grid, last="none")
    if (
        name == _MULTISTEP
        and config["solver_order"] <= 2
        and config["algorithm_type"] == "dpmsolver++"
        and grid[-1] == 0
    ):
        order = config["solver_order"]
        midpoint = order == 2 and config["solver_type"] == "midpoint"
        return DPMSolver(order, corrector=False, grid=inner, last="tweedie", midpoint=midpoint)
    expected = (
        f"one of {', '.join((*_DDIM, 'DDPMScheduler', 'HeunDiscreteScheduler'))}, or {_MULTISTEP} of order 1 or 2"
    )
    raise ArgumentError("scheduler", name, expected)


@checked
def limited_as(scheduler: object, model: Model) -> Model:
    """Return the model with x0 limited as a scheduler of diffusers limits it.

    That is by ``thresholding`` or ``clip_sample``. DDIM keeps eps as the network gave it.

    Args:
        scheduler: Scheduler.
        model: The model.
    """
    config = config_of(scheduler)
    keep_eps = "DDIM" in name_of(scheduler)
    if config.get("thresholding"):
        percentile, largest = 100 * config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return dynamic_threshold(model, percentile, largest=largest, keep_eps=keep_eps)
    if config.get("clip_sample"):
        bound = config.get("clip_sample_range", 1.0)
        return clipped(model, -bound, bound, keep_eps=keep_eps)
    return model
