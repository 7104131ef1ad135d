"""The device that a training or a command computes on."""

from __future__ import annotations

import torch

from scoresde.errors import ArgumentError


def pick_device(name: str) -> torch.device:
    """Return the device of that name.

    ``"auto"`` is CUDA if available, else MPS, else the CPU.

    Raises:
        ArgumentError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name, False):
        names = ", ".join(kind for kind, there in available.items() if there)
        raise ArgumentError("device", repr(name), f"an available device: {names}")
    return torch.device(name)
