"""Networks of diffusers: U-Nets, DiT, and transformers of SD3 and Flux."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.errors import ArgumentError, ShapeError
from scoresde.extras import optional
from scoresde.nets.configured import configured, plain

#: names of x, the time and the class in the networks' ``forward``, in the order of search
_X, _TIME, _LABEL = ("sample", "hidden_states"), ("timestep", "timesteps"), ("class_labels", "y")
_FLUX = "FluxTransformer2DModel"


def network_class(kind: str) -> Any:
    """Return the class of a network of diffusers.

    Raises:
        ArgumentError: Diffusers has no network of this name.
    """
    library = optional("diffusers")
    found = getattr(library, kind, None) if kind.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, library.ModelMixin)):
        raise ArgumentError("kind", repr(kind), "a network of diffusers, such as 'UNet2DModel'")
    return found


@checked
@configured("diffusers")
class DiffusersNet(nn.Module):
    """A network of diffusers as one of ours.

    ``net(x, time_input, y=None, **cond)``: y becomes its class labels; other conditions have the names of its
    arguments, such as ``encoder_hidden_states``. A class of -1 is the null class of a DiT. The transformer of Flux gets
    2 x 2 patches and their positions.

    Args:
        kind: Name of its class, such as ``"UNet2DModel"``.
        options: Its configuration.
        scheduler: Configuration of the scheduler that it came with, which :func:`~scoresde.interop.diffusers.
            to_diffusers` writes again. None: none.

    Raises:
        MissingExtraError: Diffusers is not installed.
        ArgumentError: Diffusers has no network of this name, or it takes no time.
    """

    def __init__(self, kind: str, options: Mapping[str, Any], scheduler: Mapping[str, Any] | None = None):
        super().__init__()
        self.net: nn.Module = network_class(kind).from_config(dict(options))
        taken = inspect.signature(self.net.forward).parameters
        self._x, self._time = (next((name for name in names if name in taken), None) for names in (_X, _TIME))
        self._label = next((name for name in _LABEL if name in taken), None)
        self._packed = kind == _FLUX
        if self._x is None or self._time is None:
            raise ArgumentError("kind", repr(kind), "a network with a time and a sample as its arguments")
        self._null = options.get("num_embeds_ada_norm") if kind == "DiTTransformer2DModel" else None

    @classmethod
    def of(cls, net: Any, scheduler: Mapping[str, Any] | None = None) -> DiffusersNet:
        """Return a network of diffusers, with its weights, as one of ours."""
        options = plain("net.config", {key: value for key, value in net.config.items() if not key.startswith("_")})
        with torch.device("meta"):
            made = cls(type(net).__name__, options, scheduler)
        made.net = net
        return made

    @property
    def out_channels(self) -> int | None:
        """Channels of its output. None: those of the input."""
        found: int | None = getattr(self.net, "config", {}).get("out_channels")
        return found

    def forward(self, x: Tensor, time_input: Tensor, y: Tensor | None = None, **cond: Any) -> Tensor:
        given = {str(self._x): x, str(self._time): time_input, **cond}
        if y is not None:
            if self._label is None:
                raise ArgumentError("cond['y']", "class labels", f"none: {type(self.net).__name__} has no classes")
            given[self._label] = y if self._null is None else torch.where(y < 0, self._null, y)
        if self._packed:
            return self._unpatched(self.net(**given | self._patched(x, cond), return_dict=False)[0], x)
        result: Tensor = self.net(**given, return_dict=False)[0]
        return result

    def _patched(self, x: Tensor, cond: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return 2 x 2 patches of x as a sequence, and all positions."""
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ShapeError("x", tuple(x.shape), "(B, C, H, W) with even H and W")
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        patches = torch.unflatten(torch.unflatten(x, 2, (rows, 2)), 4, (columns, 2)).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
        places[..., 1] += torch.arange(rows, device=x.device, dtype=x.dtype)[:, None]
        places[..., 2] += torch.arange(columns, device=x.device, dtype=x.dtype)
        found = {"hidden_states": patches.flatten(3).flatten(1, 2), "img_ids": places.flatten(0, 1)}
        texts = cond.get("encoder_hidden_states")
        if isinstance(texts, Tensor) and "txt_ids" not in cond:
            found["txt_ids"] = torch.zeros(texts.shape[1], 3, device=x.device, dtype=x.dtype)
        return found

    @staticmethod
    def _unpatched(patches: Tensor, like: Tensor) -> Tensor:
        """Join patches to the shape of ``like``."""
        rows, columns = like.shape[2] // 2, like.shape[3] // 2
        patches = torch.unflatten(torch.unflatten(patches, 1, (rows, columns)), 3, (-1, 2, 2))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
