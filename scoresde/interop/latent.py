"""Models of latents, with the autoencoder around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import number, positive
from scoresde.errors import DTypeError, ShapeError
from scoresde.interop.diffusers import from_diffusers, parts_of
from scoresde.models import Estimate, Model, Wrapper
from scoresde.models.conditions import Condition
from scoresde.random import Generators, randn
from scoresde.sde import Level


@checked
class LatentModel(Wrapper):
    """A model of latents z, with the autoencoder that made them.

        z = scale (E(image) - shift),    image = D(z / scale + shift)

    It samples latents: :func:`scoresde.sample` with the shape of a latent, then :meth:`decode`. Its likelihoods are
    those of the latents, log p(z). They are no likelihoods of images, as the decoder's part is missing, and
    :func:`scoresde.bits_per_dim` refuses it.

    Args:
        model: Model of the latents.
        autoencoder: Autoencoder of diffusers, or any module with ``encode`` and ``decode``. They return a tensor, or an
            object with ``latent_dist`` or ``latents``, and ``sample``.
        scale, shift: Of the latents. None: those of the autoencoder's configuration, or 1 and 0.

    Raises:
        DTypeError: The autoencoder lacks ``encode`` or ``decode``.

    References: Rombach et al. 2022.
    """

    same_flow = True

    def __init__(self, model: Model, autoencoder: nn.Module, scale: float | None = None, shift: float | None = None):
        super().__init__(model)
        for name in ("encode", "decode"):
            if not callable(getattr(autoencoder, name, None)):
                raise DTypeError("autoencoder", type(autoencoder).__name__, "a module with encode and decode")
        config = getattr(autoencoder, "config", {})
        self.autoencoder = autoencoder
        known = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
        self.scale = positive("scale", known[0] if scale is None else scale)
        self.shift = number("shift", known[1] if shift is None else shift)
        self.scaling = None  # of images, of which this is no model

    @classmethod
    @checked
    def from_diffusers(cls, pipeline: object, **settings: Any) -> LatentModel:
        """Return the model of a latent pipeline, as that of Stable Diffusion.

        Args:
            pipeline: The pipeline, or its name or folder.
            settings: Further settings of :class:`ScoreModel`.

        Raises:
            MissingExtraError: Diffusers is not installed.
            DTypeError: The pipeline has no autoencoder.
        """
        network, scheduler, autoencoder = parts_of(pipeline, None)
        if autoencoder is None:
            raise DTypeError("pipeline", type(pipeline).__name__, "a pipeline with an autoencoder, `vae` or `vqvae`")
        return cls(from_diffusers(network, scheduler, **settings), autoencoder).eval()

    def estimate(self, x: Tensor, level: Level, cond: Condition = None) -> Estimate:
        return self.model.estimate(x, level, cond)

    @torch.no_grad()
    def encode(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Return the latents of images.

        Args:
            images: Images ``(B, C, H, W)`` in [-1, 1], or in the autoencoder's own range.
            generator: Source of noise for an autoencoder with a distribution. None: its mode, without noise.

        Raises:
            ShapeError: The images are no batch.
        """
        if images.ndim < 3:
            raise ShapeError("images", tuple(images.shape), "(B, C, *D)")
        found = self.autoencoder.encode(images)  # type: ignore[operator]  # checked to be callable
        spread = getattr(found, "latent_dist", None)
        if spread is None:
            z = found if isinstance(found, Tensor) else found.latents
        else:
            z = (
                spread.mode()
                if generator is None
                else spread.mean
                + spread.std * randn(tuple(spread.mean.shape), generator, spread.mean.device, spread.mean.dtype)
            )
        return self.scale * (z - self.shift)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the images ``(B, C, H, W)`` of latents, in [-1, 1]."""
        found = self.autoencoder.decode(z / self.scale + self.shift)  # type: ignore[operator]  # checked to be callable
        return found if isinstance(found, Tensor) else found.sample

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, shift={self.shift:g}"
