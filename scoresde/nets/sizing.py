"""A U-Net that suits the size of what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: channels and multipliers from a shortest length on
SIZES = {
    0: (32, (1, 2)),
    16: (32, (1, 2, 2)),
    32: (64, (1, 2, 2)),
    64: (64, (1, 1, 2, 2)),
    128: (64, (1, 1, 2, 3, 4)),
    256: (64, (1, 1, 2, 2, 4, 4)),
    1024: (64, (1, 1, 2, 2, 4, 4, 4)),
}


def unet_for(shape: Sequence[int]) -> dict[str, Any]:
    """Return the options ``channels`` and ``multipliers`` for a shape.

    From 8 pixels to CIFAR they are those of the presets: 32 channels and two resolutions for 8 x 8, 32 and three for 28
    x 28, 64 and three for 32 x 32. Larger data have more resolutions, so that the coarsest is about 8 long up to 256.
    Volumes have half the channels.

    Args:
        shape: Shape of a sample, ``(C, *lengths)``.

    References: Dhariwal, Nichol 2021, whose code has the multipliers of 128 and 256 pixels.
    """
    channels, multipliers = next(SIZES[least] for least in sorted(SIZES, reverse=True) if min(shape[1:]) >= least)
    return {"channels": channels // 2 if len(shape) == 4 else channels, "multipliers": list(multipliers)}
