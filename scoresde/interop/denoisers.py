"""Denoisers of k-diffusion, azula, EDM and others, and scores of sbi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import positive
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, DTypeError
from scoresde.interop.paths import Coefficients, OnPath, check_path
from scoresde.models import Moments, ScoreModel
from scoresde.nets.adapted import adapt, tensor_of
from scoresde.sde import DDPM, VESDE

_OBJECTIVES = {"pred_noise": "noise", "pred_x0": "data", "pred_v": "velocity"}


@checked
def from_k_diffusion(denoiser: Callable[..., Any], sigma_max: float | None = None, **settings: Any) -> ScoreModel:
    """Return the score model of a denoiser of k-diffusion. ::

        model = ScoreModel.from_k_diffusion(denoiser, sigma_max=80)

    Args:
        denoiser: Denoiser ``(x, sigma, **cond)`` to x_0, x = x_0 + sigma eps: ``Denoiser``, ``VDenoiser``,
            ``CompVisDenoiser`` and so on.
        sigma_max: Largest noise. None: that of the denoiser's levels, if it has any.
        settings: Further settings of :class:`ScoreModel`.

    Returns:
        The model in evaluation mode, under a VESDE with sigma = sigma_max t.

    Raises:
        DTypeError: ``denoiser`` cannot be called.
        ArgumentError: ``sigma_max`` is None, and the denoiser has no levels.

    References: Karras et al. 2022.
    """
    if not callable(denoiser):
        raise DTypeError("denoiser", type(denoiser).__name__, "a denoiser (x, sigma)")
    if sigma_max is None:
        found = getattr(denoiser, "sigma_max", None)
        if found is None:
            raise ArgumentError("sigma_max", None, "the largest sigma of the training, as the denoiser has no levels")
        sigma_max = float(found)
    data_std = getattr(denoiser, "sigma_data", None)
    settings = ({} if data_std is None else {"data_std": float(data_std)}) | settings
    net = adapt(denoiser, time="sigma")
    return ScoreModel(net, VESDE.linear(positive("sigma_max", sigma_max)), "data", **settings).eval()


@checked
def from_edm(net: Callable[..., Any], sigma_max: float = 80.0, **settings: Any) -> ScoreModel:
    """Return the score model of a preconditioned network of EDM or EDM2. ::

        model = ScoreModel.from_edm(net)

    Args:
        net: Network ``(x, sigma, class_labels)`` to x_0: ``EDMPrecond``, ``VPPrecond``, ``VEPrecond``,
            ``iDDPMPrecond``, or EDM2's ``Precond``. Class labels are vectors, ``cond={"class_labels": one_hot}``.
        sigma_max: Largest noise, default 80; less where the network's own limit is less, and the nearest level of a
            network that knows levels only (``iDDPMPrecond``).
        settings: Further settings of :class:`ScoreModel`.

    Returns:
        The model in evaluation mode, under a VESDE with sigma = sigma_max t. Its data are 8-bit images, unless the
        channels are not those of images, as for EDM2's latents.

    Raises:
        DTypeError: ``net`` cannot be called.

    References: Karras et al. 2022, 2024.
    """
    if not callable(net):
        raise DTypeError("net", type(net).__name__, "a preconditioned network (x, sigma)")
    limit = float(getattr(net, "sigma_max", sigma_max))
    found: dict[str, Any] = {"data_std": float(getattr(net, "sigma_data", 0.5))}
    if getattr(net, "img_channels", 3) in (1, 3):
        found["scaling"] = Scaling.for_integers(256)
    largest = min(positive("sigma_max", sigma_max), limit)
    if callable(round_sigma := getattr(net, "round_sigma", None)):  # to a level that the network knows
        largest = float(round_sigma(torch.tensor(largest, dtype=torch.float64)))
    sde = VESDE.linear(largest)
    return ScoreModel(adapt(net, time="sigma"), sde, "data", **(found | settings)).eval()


class _Mean(nn.Module):
    """An azula denoiser that returns the mean."""

    def __init__(self, denoiser: Callable[..., Any]):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return tensor_of(self.denoiser(x, t.to(x.dtype), **cond), "mean")


@checked
def from_azula(denoiser: object, **settings: Any) -> ScoreModel:
    """Return the score model of a denoiser of azula. ::

        model = ScoreModel.from_azula(denoiser)

    Args:
        denoiser: Denoiser ``(x_t, t, **cond)`` with a ``schedule``, such as ``KarrasDenoiser(backbone, VPSchedule())``.
        settings: Further settings of :class:`ScoreModel`.

    Returns:
        The model in evaluation mode, under a VESDE of the schedule's ratios sigma/alpha.

    Raises:
        DTypeError: It has no schedule.
        ArgumentError: A schedule whose sigma/alpha does not grow with its time.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not callable(denoiser) or not callable(schedule):
        raise DTypeError("denoiser", type(denoiser).__name__, "a denoiser of azula, with a schedule")

    def path(t: Tensor) -> Coefficients:
        alpha, sigma = schedule(t)
        return Coefficients(alpha, sigma, torch.ones_like(alpha), torch.zeros_like(sigma))

    on_path = OnPath(_Mean(denoiser), path, 0.0, 1.0)
    return ScoreModel(on_path, check_path(on_path), "data", time_input="sigma", **settings).eval()


class _Score(nn.Module):
    """An estimator of sbi that returns its score."""

    def __init__(self, estimator: Any):
        super().__init__()
        self.estimator = estimator

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if "condition" not in cond:
            raise ArgumentError("cond['condition']", None, "the observations (B, *E)")
        return tensor_of(self.estimator.score(x, cond["condition"], t.to(x.dtype)), None)


@checked
def from_sbi(estimator: Any, **settings: Any) -> ScoreModel:
    """Return the score model of a score estimator of sbi. ::

        model = ScoreModel.from_sbi(inference.train())
        x = sample(model, (1000, 3), cond={"condition": observation.expand(1000, -1)})

    Args:
        estimator: Score estimator of NPSE: ``VPScoreEstimator``, ``SubVPScoreEstimator`` or ``VEScoreEstimator``.
        settings: Further settings of :class:`ScoreModel`.

    Returns:
        The model in evaluation mode, under a VESDE of the estimator's ratios sigma/alpha. It takes the observations as
        ``cond={"condition": (B, *E)}``, and samples parameters in the units of the estimator.

    Raises:
        DTypeError: It is no score estimator.

    References: Sharrock et al. 2024; Song et al. 2021.
    """
    if not all(callable(getattr(estimator, name, None)) for name in ("score", "mean_t_fn", "std_fn")):
        raise DTypeError("estimator", type(estimator).__name__, "a score estimator of sbi, such as VPScoreEstimator")

    def path(t: Tensor) -> Coefficients:
        alpha, sigma = estimator.mean_t_fn(t).reshape(t.shape), estimator.std_fn(t).reshape(t.shape)
        return Coefficients(alpha, sigma, torch.zeros_like(alpha), -1 / sigma)

    on_path = OnPath(_Score(estimator), path, float(estimator.t_min), float(estimator.t_max))
    mean, std = getattr(estimator, "mean_0", None), getattr(estimator, "std_0", None)
    if isinstance(mean, Tensor) and isinstance(std, Tensor):  # of the parameters, by which it standardises
        shape = tuple(estimator.input_shape)
        variance = (std.double() ** 2).expand(shape).reshape(-1)
        settings = {"moments": Moments(mean.double().expand(shape).contiguous(), variance.contiguous())} | settings
    return ScoreModel(on_path, check_path(on_path), "data", time_input="sigma", **settings).eval()


class _TwoInputs(nn.Module):
    """A network that takes its estimate before as a third argument."""

    def __init__(self, net: Callable[..., Any]):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time_input: Tensor) -> Tensor:
        x, before = x.chunk(2, dim=1)
        result: Tensor = self.net(x, time_input, before)
        return result


@checked
def from_denoising_diffusion(diffusion: Any, **settings: Any) -> ScoreModel:
    """Return the score model of denoising-diffusion-pytorch's class. ::

        model = ScoreModel.from_denoising_diffusion(diffusion)

    Args:
        diffusion: A ``GaussianDiffusion``, with the network in it.
        settings: Further settings of :class:`ScoreModel`.

    Returns:
        The model in evaluation mode, under a DDPM of its levels. Its data are 8-bit images if it normalises them itself
        (``auto_normalize``).

    Raises:
        DTypeError: It is no ``GaussianDiffusion``.
    """
    net, alphas_bar = getattr(diffusion, "model", None), getattr(diffusion, "alphas_cumprod", None)
    objective = getattr(diffusion, "objective", None)
    if not callable(net) or not isinstance(alphas_bar, Tensor) or objective not in _OBJECTIVES:
        expected = "a GaussianDiffusion of denoising-diffusion-pytorch"
        raise DTypeError("diffusion", type(diffusion).__name__, expected)
    remembers = bool(getattr(net, "self_condition", False))
    found: dict[str, Any] = {"self_condition": remembers}
    if getattr(diffusion, "auto_normalize", True) and diffusion.normalize(torch.zeros(1)).item() == -1:
        found["scaling"] = Scaling.for_integers(256)
    inner = _TwoInputs(net) if remembers else adapt(net)
    sde = DDPM.from_alphas_bar(alphas_bar.double().cpu())
    return ScoreModel(inner, sde, _OBJECTIVES[objective], time_input="ddpm", **(found | settings)).eval()
