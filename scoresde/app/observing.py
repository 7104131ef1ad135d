"""What ``inpaint``, ``colorize`` and ``restore`` observe of an item.

    y = A x_0 + noise * z,   z ~ N(0, I)

All is in model space, in which images run from -1 to 1 and other data have the standard deviation 1.

========  ==============================================
x_0, D    an item and its shape
A, y, E   the operator, an observation and its shape
noise     standard deviation of the observation's noise
========  ==============================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scoresde.app.masks import mask_of, space_axes
from scoresde.checks import positive, whole
from scoresde.data import Data
from scoresde.errors import ArgumentError, UnknownNameError
from scoresde.guidance import (
    Blur,
    Colorize,
    Downsample,
    Inpainting,
    LinearOperator,
    Matrix,
    PartialFourier,
    gaussian_kernel,
    radial_mask,
)

CUT_OFF = 3  # standard deviations at which a Gaussian kernel ends


class Problem(NamedTuple):
    """An observation of an item.

    Attributes:
        name: name of the folder with the results.
        title: what is observed, in words.
        operator: A.
        look: the map from y ``(B, *E)`` to something to look at, of the shape of x; NaN where nothing was observed.
        seen: number of entries of y that are observations.
        unknown: which entries of x are to be found, ``(*D)`` of bool.
        facts: what the operator was made of, as JSON-able values.
    """

    name: str
    title: str
    operator: LinearOperator
    look: Callable[[Tensor], Tensor]
    seen: int
    unknown: Tensor
    facts: dict[str, Any]


def inpainting(data: Data, mask: str, seed: int = 0) -> Problem:
    """Observe some entries of each item.

    Args:
        data: the items.
        mask: name or file of a mask, see :func:`~scoresde.app.masks.mask_of`.
        seed: seed of a random mask.
    """
    known = mask_of(mask, data.shape, data.is_image, seed)
    share = known.double().mean().item()

    def look(y: Tensor) -> Tensor:
        return torch.where(known, y, math.nan)

    name = f"inpaint-{Path(mask).stem if Path(mask).is_file() else mask.replace(':', '-')}"
    title = f"Inpainting, {100 * share:.0f} % known ({mask})"
    return Problem(name, title, Inpainting(known), look, int(known.sum()), ~known, {"mask": mask, "known": share})


def colorization(data: Data) -> Problem:
    """Observe the mean of the three channels.

    Raises:
        ArgumentError: the items are not images of three channels.
    """
    if not data.is_image or data.shape[0] != 3:
        raise ArgumentError("run", f"a model of items {data.shape}", "a model of colour images, (3, H, W)")
    operator = Colorize(data.shape)
    return _mixing("colorize", "Colouring", operator, lambda y: y.expand(len(y), *data.shape), {})


def restoration(
    data: Data,
    task: str,
    factor: int | None = None,
    width: float | None = None,
    lines: int | None = None,
    seed: int = 0,
) -> Problem:
    """Observe items by a named task.

    Args:
        data: the items.
        task: "superresolution" (means of blocks) and "bicubic" observe an item at 1/``factor`` of its resolution;
            "deblur" under a Gaussian of standard deviation ``width`` with periodic borders, cut off at 3 widths or at
            the size of the item; "projection" by one random projection for each ``factor`` entries; "tomography" by
            the Fourier coefficients of an image along ``lines`` lines.
        factor: positive integer, default 2.
        width: width of the blur in pixels, default 1.
        lines: number of lines, default 8.
        seed: seed of the random projections.

    Raises:
        UnknownNameError: an unknown task.
        ArgumentError: a setting that the task does not have, or an invalid one.
    """
    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    setting, observe = TASKS[task]
    given = {"factor": factor, "width": width, "lines": lines}
    for name, value in given.items():
        if value is not None and name != setting:
            raise ArgumentError(name, value, f"left out for the task {task}, which has a {setting}")
    return observe(data, given[setting], seed)


def _superresolution(data: Data, factor: float | None, seed: int, kernel: Literal["box", "bicubic"] = "box") -> Problem:
    axes, n = space_axes(data.shape, data.is_image), 2 if factor is None else whole("factor", factor)

    def enlarge(y: Tensor) -> Tensor:
        for axis in range(y.ndim - axes, y.ndim):
            y = y.repeat_interleave(n, axis)
        return y

    name = f"{'superresolution' if kernel == 'box' else kernel}-{n}"
    title, operator = f"Super-resolution by {n} ({kernel} kernel)", Downsample(data.shape, n, kernel, axes)
    return _mixing(name, title, operator, enlarge, {"factor": n, "kernel": kernel})


def _bicubic(data: Data, factor: float | None, seed: int) -> Problem:
    return _superresolution(data, factor, seed, "bicubic")


def _deblur(data: Data, width: float | None, seed: int) -> Problem:
    width = 1.0 if width is None else positive("width", width)
    axes = space_axes(data.shape, data.is_image)
    radius = min(math.ceil(CUT_OFF * width), (min(data.shape[-axes:]) - 1) // 2)
    operator = Blur(data.shape, gaussian_kernel(width, axes, radius))
    return _mixing(f"deblur-{width:g}", f"Deblurring, width {width:g}", operator, lambda y: y, {"width": width})


def _projection(data: Data, factor: float | None, seed: int) -> Problem:
    entries = math.prod(data.shape)
    n = 2 if factor is None else whole("factor", factor)
    if n > entries:
        raise ArgumentError("factor", n, f"an integer from 1 to {entries}, the number of entries of an item")
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(entries // n, entries, generator=generator, dtype=torch.float64) / math.sqrt(entries)
    operator = Matrix(matrix, data.shape)
    title = f"{len(matrix)} random projections of {entries} entries"
    return _mixing(f"projection-{n}", title, operator, operator.pinv, {"factor": n})


def _tomography(data: Data, lines: float | None, seed: int) -> Problem:
    if not data.is_image:
        raise ArgumentError("task", "tomography", f"another task for items {data.shape}, which are not images")
    n = 8 if lines is None else whole("lines", lines)
    operator = PartialFourier(radial_mask((data.shape[-2], data.shape[-1]), n), data.shape)
    problem = _mixing(f"tomography-{n}", f"Tomography along {n} lines", operator, operator.pinv, {"lines": n})
    return problem._replace(seen=int(operator.mask.expand(data.shape).sum()))


#: by name: the setting that the task has, and what observes the data given that setting and a seed
TASKS: dict[str, tuple[str, Callable[[Data, float | None, int], Problem]]] = {
    "superresolution": ("factor", _superresolution),
    "bicubic": ("factor", _bicubic),
    "deblur": ("width", _deblur),
    "projection": ("factor", _projection),
    "tomography": ("lines", _tomography),
}


def _mixing(
    name: str, title: str, operator: LinearOperator, look: Callable[[Tensor], Tensor], facts: dict[str, Any]
) -> Problem:
    """Return a problem in which all entries of x are unknown."""
    seen, unknown = math.prod(operator.y_shape), torch.ones(operator.shape, dtype=torch.bool)
    return Problem(name, title, operator, look, seen, unknown, facts)
