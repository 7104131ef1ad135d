"""Models of other libraries, as class methods of ``ScoreModel``.

Each calls a function of :mod:`scoresde.interop`, which has its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import scoresde.models as models


class Doors:
    """Ways to a :class:`ScoreModel` from what another library trained."""

    @staticmethod
    def from_diffusers(source: object, scheduler: object = None, **settings: Any) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_diffusers`."""
        from scoresde.interop import from_diffusers

        return from_diffusers(source, scheduler, **settings)

    @staticmethod
    def from_score_sde(
        path: str | Path,
        config: Any,
        sde: str = "ve",
        weights: str = "ema",
        *,
        continuous: bool = True,
        **settings: Any,
    ) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_score_sde`."""
        from scoresde.interop import from_score_sde

        return from_score_sde(path, config, sde, weights, continuous=continuous, **settings)

    @staticmethod
    def from_adm(
        path: str | Path,
        config: Mapping[str, Any],
        schedule: str | None = None,
        *,
        levels: int | None = None,
        **settings: Any,
    ) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_adm`."""
        from scoresde.interop import from_adm

        return from_adm(path, config, schedule, levels=levels, **settings)

    @staticmethod
    def from_edm(net: Callable[..., Any], sigma_max: float = 80.0, **settings: Any) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_edm`."""
        from scoresde.interop import from_edm

        return from_edm(net, sigma_max, **settings)

    @staticmethod
    def from_k_diffusion(
        denoiser: Callable[..., Any], sigma_max: float | None = None, **settings: Any
    ) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_k_diffusion`."""
        from scoresde.interop import from_k_diffusion

        return from_k_diffusion(denoiser, sigma_max, **settings)

    @staticmethod
    def from_azula(denoiser: object, **settings: Any) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_azula`."""
        from scoresde.interop import from_azula

        return from_azula(denoiser, **settings)

    @staticmethod
    def from_denoising_diffusion(diffusion: object, **settings: Any) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_denoising_diffusion`."""
        from scoresde.interop import from_denoising_diffusion

        return from_denoising_diffusion(diffusion, **settings)

    @staticmethod
    def from_flow_matching(net: Callable[..., Any], scheduler: object = None, **settings: Any) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_flow_matching`."""
        from scoresde.interop import from_flow_matching

        return from_flow_matching(net, scheduler, **settings)

    @staticmethod
    def from_torchcfm(
        net: Callable[..., Any], sigma: float = 0.0, *, order: str = "tx", **settings: Any
    ) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_torchcfm`."""
        from scoresde.interop import from_torchcfm

        return from_torchcfm(net, sigma, order=order, **settings)

    @staticmethod
    def from_sbi(estimator: object, **settings: Any) -> models.ScoreModel:
        """See :func:`scoresde.interop.from_sbi`."""
        from scoresde.interop import from_sbi

        return from_sbi(estimator, **settings)

    @staticmethod
    def downloaded(name: str, revision: str | None = None, token: str | None = None) -> Path:
        """See :func:`scoresde.interop.hub.download`."""
        from scoresde.interop.hub import download

        return download(name, revision, token)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Upload the model to the hub, see :func:`scoresde.interop.push_to_hub`."""
        from scoresde.interop import push_to_hub

        return push_to_hub(self, repo_id, **settings)  # type: ignore[arg-type]  # mixed into ScoreModel
