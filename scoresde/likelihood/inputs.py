"""Checks of the data that likelihoods take, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import finite, whole
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, DataError, DeviceError, DTypeError, ShapeError
from scoresde.models import Model
from scoresde.models.conditions import Condition, condition_rows
from scoresde.models.model import check_model
from scoresde.random import spawn_generators

#: The largest value of some images, as a fraction of the grey values, below which they are taken for images of fewer.
LEAST_USE = 1 / 8
#: Distance from a bin's centre or edge, in half bins, up to which a value counts as not dequantised.
NEAR_BIN = 1e-3


def check_data(model: Model, x0: Tensor) -> None:
    """Refuse data without a density: integers, raw or only scaled.

    Args:
        model: The score model.
        x0: Data ``(B, *D)`` in the model's units.

    Raises:
        DTypeError: ``x0`` is not floating-point.
        ShapeError: not ``(B, *D)``, or D is not the shape of the model's moments.
        DeviceError: ``x0`` is not on the model's device.
        NonFiniteError: NaN or infinity in ``x0``; names the samples.
        DataError: integer data that were scaled but not dequantised.
    """
    check_model(model)
    if not isinstance(x0, Tensor):
        raise DTypeError("x0", type(x0).__name__, "a floating-point tensor (B, *D), see model.to_model(raw)")
    if not x0.is_floating_point():
        raise DTypeError("x0", x0.dtype, "floating-point data (integers have no density: use bits_per_dim)")
    if x0.ndim < 1 or len(x0) == 0:
        raise ShapeError("x0", tuple(x0.shape), "(B, *D) with B >= 1")
    if model.moments is not None and x0.shape[1:] != model.moments.mean.shape:
        expected = ", ".join(map(str, ("B", *model.moments.mean.shape)))
        raise ShapeError("x0", tuple(x0.shape), f"({expected}), the shape of the model's data")
    if x0.device != model.device:
        raise DeviceError("x0", x0.device, f"on the model's device, {model.device}")
    finite(x0, "x0")
    scaling = model.scaling
    if scaling is not None and scaling.num_values is not None:
        half_bins = 2 * scaling.unscale(x0)
        if bool(((half_bins - half_bins.round()).abs() < NEAR_BIN).all()):
            raise DataError("x0", f"{scaling.num_values} exact grey values", "dequantised (bits_per_dim does so)")


def check_items(model: Model, x: Tensor, name: str = "x0") -> None:
    """Refuse items of another shape than the model's data.

    Args:
        model: The score model. Its moments know the shape; a network checks for itself.
        x: Items ``(N, *D)``.
        name: The argument that messages name.

    Raises:
        ShapeError: another shape, or no item.
    """
    if x.ndim < 2 or len(x) == 0:
        raise ShapeError(name, tuple(x.shape), "(N, *D) with N >= 1 and D of rank 1 or more")
    if model.moments is not None and x.shape[1:] != model.moments.mean.shape:
        shape = ", ".join(map(str, model.moments.mean.shape))
        raise ShapeError(name, tuple(x.shape), f"(N, {shape}), the shape of the model's data")


def check_images(model: Model, images: Tensor, scaling: Scaling | None, check_num_values: bool = True) -> Scaling:
    """Refuse anything but integer images that the model was made for.

    Args:
        model: The score model.
        images: Integers ``(N, *D)`` from 0 to num_values - 1.
        scaling: The map to the model's units.
        check_num_values: Refuse several images none of which uses more than an eighth of the grey values.

    Returns:
        ``scaling``, which is known.

    Raises:
        ArgumentError: no scaling with a number of grey values is known.
        DTypeError: the images are not integers.
        ShapeError: not ``(N, *D)``, or D is not the model's.
        DataError: values outside 0 to num_values - 1, or too few grey values in use (say 0 to 15 of 256).
    """
    if scaling is None or scaling.num_values is None:
        raise ArgumentError("scaling", scaling, "a Scaling with num_values, where the model has none")
    if not isinstance(images, Tensor):
        raise DTypeError("images", type(images).__name__, "a tensor of integers")
    scaling.check_integers(images, "images")
    check_items(model, images, "images")
    highest = int(images.max())
    if check_num_values and len(images) > 1 and highest + 1 < LEAST_USE * scaling.num_values:
        raise DataError(
            "images",
            f"values 0..{highest} for {scaling.num_values} grey values",
            "images that use their grey values, unless check_num_values=False or the scaling has fewer",
        )
    return scaling


class Batch(NamedTuple):
    """A batch of items: their rows, condition and generators.

    There is a generator for each item, or None for torch's default.
    """

    rows: slice
    cond: Condition
    generators: list[torch.Generator] | None


def item_batches(count: int, batch: int, cond: Condition, generator: torch.Generator | None) -> Iterator[Batch]:
    """Cut items into batches, each item with its own stream of random numbers.

    Args:
        count: Items.
        batch: Items per batch; the last batch may be smaller.
        cond: Tensors ``(count, ...)`` by name, or None.
        generator: Source of the items' seeds, or None.

    Raises:
        ArgumentError: ``batch`` is not a positive integer.
    """
    for begin in range(0, count, whole("batch", batch)):
        rows = slice(begin, min(begin + batch, count))
        yield Batch(rows, condition_rows(cond, rows), spawn_generators(generator, rows.stop - begin))
