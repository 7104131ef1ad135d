"""Items in memory, and the affine map between them and model space.

====  =====================================================================================
raw   an item as it came
K     number of values of integer items, which are 0..K-1
u     noise of dequantisation, U[0, 1)
y     raw + u for integers, which fills [0, K); raw for continuous data
x     the item in model space, scale * y + shift; integers fill [-1, 1), floats have std 1
D, d  shape of one item, and number of its entries
====  =====================================================================================

A data object owns its scale and number of values, so a likelihood reads its offset from :attr:`Data.log_volume`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.data.data_scale import MOST_DIMENSIONS, DataScale
from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, DataError, DTypeError, ShapeError
from scoresde.random import Generators

MAX_VALUES = 2**16
CHUNK = 4096  # items that `moments` holds in float64 at a time
CHANNELS = (1, 3, 4)
NORMALIZATIONS = ("features", "standard", "none", "given")
MEASURED = 8192  # most items whose lengths are measured
CONSTANT = 64 * torch.finfo(torch.float64).eps  # std over |mean| of a feature that does not vary


@checked
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Data(Dataset[dict[str, Tensor]]):
    """A map-style dataset in memory that knows its scale and number of values.

    Args:
        name: the name that reports use.
        raw: items ``(N, *D)``, moved to the CPU: integers 0..K-1, or finite floats.
        labels: class of each item, integers ``(N,)``. None: unlabelled.
        num_values: K, from 2 to 65536, for integers. None: floats.
        scale, shift: the map to model space, x = scale * y + shift. None: derived. Integers always have scale = 2/K
            and shift = -1. Floats have 1/std and -mean/std.
        normalize: how floats get their map. "features": each feature of vectors (D of rank 1) has its mean and std, and
            ``scale`` and ``shift`` are tensors ``(D,)``; features that do not vary keep the scale 1.
            "standard": one std for all entries, and one mean, or one for each feature of vectors. By :meth:`split`
            both are measured again on the training part. "none": x = raw. "given": scale and shift never change. None:
            "features" for vectors, else "standard".
        image: whether items are images ``(C, H, W)`` or ``(H, W)``. None: they are if D is ``(C, H, W)`` with C = 1,
            3 or 4.
        class_names: names of the labels 0, 1, ... None: unnamed.
        columns: names of the entries of vectors, as a table has them. None: unnamed.
        missing: whether NaN are values that are missing. Everything measured is then of the observed ones, and the loss
            of a training leaves the others out. False: NaN is an error.

    Raises:
        DataError: NaN or infinity, no items, values outside 0..K-1, integers without ``num_values``, floats with it,
            labels that do not fit. Floats that are all the same, which have no std to be scaled by.
        DTypeError: ``raw`` is neither integer nor real.
        ArgumentError: an invalid ``normalize``, ``scale`` or ``image``.
    """

    name: str
    raw: Tensor
    labels: Tensor | None = None
    num_values: int | None = None
    scale: float | Tensor | None = None
    shift: float | Tensor | None = None
    normalize: Literal["features", "standard", "none", "given"] | None = None
    image: bool | None = None
    class_names: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    missing: bool = False

    def __post_init__(self) -> None:
        raw = self.raw
        if not isinstance(raw, Tensor):
            raise DTypeError("raw", type(raw).__name__, "a torch.Tensor")
        if raw.ndim < 2 or raw.numel() == 0:
            raise DataError("raw", f"shape {tuple(raw.shape)}", "a tensor (N, *D) with N >= 1 and D of rank 1 or more")
        self._set(raw=raw.detach().cpu())
        if self.normalize is None:
            self._set(normalize="features" if raw.ndim == 2 else "standard")
        if self.normalize not in NORMALIZATIONS or (self.normalize == "features" and raw.ndim != 2):
            expected = "'standard', 'none' or 'given'" + (", or 'features'" if raw.ndim == 2 else "")
            raise ArgumentError("normalize", repr(self.normalize), f"{expected} for items {self.shape}")
        if self.image and len(self.shape) not in (2, 3):
            raise ArgumentError("image", f"True for items {self.shape}", "False unless items are (C, H, W) or (H, W)")
        if self.columns is not None and (len(self.shape) != 1 or len(self.columns) != self.shape[0]):
            raise ArgumentError(
                "columns", f"{len(self.columns)} names for items {self.shape}", "one name for each entry"
            )
        if self.raw.is_floating_point():
            self._check_floats()
        else:
            self._check_integers()
        self._check_labels()

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _check_integers(self) -> None:
        raw = self.raw
        if raw.is_complex():
            raise DTypeError("raw", raw.dtype, "integers or real floats")
        if self.num_values is None:
            expected = "the number of values that the integers can take (8-bit images: 256)"
            raise DataError("num_values", f"None for {raw.dtype} items", expected)
        try:
            K = whole("num_values", self.num_values, 2)
        except ArgumentError:
            K = 0
        if not 2 <= K <= MAX_VALUES:
            raise DataError("num_values", repr(self.num_values), f"an integer from 2 to {MAX_VALUES}")
        low, high = int(raw.min()), int(raw.max())
        if low < 0 or high >= K:
            raise DataError("raw", f"values from {low} to {high}", f"integers 0..{K - 1} (num_values={K})")
        if any(isinstance(value, Tensor) for value in (self.scale, self.shift)) or (
            self.scale not in (None, 2.0 / K) or self.shift not in (None, -1.0)
        ):
            raise ArgumentError("scale, shift", f"{self.scale}, {self.shift}", f"None, or 2/{K} and -1, for integers")
        narrow = raw.to(torch.uint8 if K <= 256 else torch.int32)
        self._set(raw=narrow, num_values=K, scale=2.0 / K, shift=-1.0)

    def _check_floats(self) -> None:
        if self.raw.dtype not in (torch.float32, torch.float64):
            self._set(raw=self.raw.float())
        raw = self.raw
        if self.num_values is not None:
            raise DataError("num_values", f"{self.num_values} for {raw.dtype} items", "None for continuous items")
        bad = ~torch.isfinite(raw) & ~self._unobserved
        if bad.any():
            first = tuple(bad.nonzero()[0].tolist())
            where = (
                f"the first at {first}"
                if self.columns is None
                else f"the first in row {first[0]} of {self.columns[first[1]]!r}"
            )
            expected = "finite numbers; with missing=True NaN are missing values"
            raise DataError("raw", f"{int(bad.sum())} NaN or infinite values, {where}", expected)
        if self.scale is None or self.shift is None:
            self._set(**self._measured_map())
        scale, shift = (torch.as_tensor(value, dtype=torch.float64) for value in (self.scale, self.shift))
        if not bool(((scale > 0) & (scale < math.inf)).all()):
            raise ArgumentError("scale", self.scale, "positive numbers")
        for name, value in (("scale", scale), ("shift", shift)):
            if value.ndim and value.shape != self.shape:
                raise ShapeError(name, tuple(value.shape), f"one number, or {self.shape}, one for each entry")

    def _measured_map(self) -> dict[str, float | Tensor]:
        if self.normalize == "given":
            raise ArgumentError("normalize", "'given' without scale and shift", "'standard' or 'none'")
        if self.normalize == "none":
            return {"scale": 1.0, "shift": 0.0}
        y = self.raw.double()
        mean = y.nanmean(0) if y.ndim == 2 else y.nanmean()
        variance = (y - mean).square()
        std = (variance.nanmean(0) if self.normalize == "features" else variance.nanmean()).sqrt()
        if not bool(mean.isfinite().all()):
            raise DataError("raw", "entries that no item has", "at least one observed value of each entry")
        constant = std <= CONSTANT * mean.abs()
        if constant.all():
            raise DataError("raw", "items that are all the same", "items that vary, unless normalize='none'")
        if self.normalize == "features":
            std = torch.where(constant, 1.0, std)
        scale, shift = 1 / std, -mean / std
        return {"scale": scale if scale.ndim else float(scale), "shift": shift if shift.ndim else float(shift)}

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        if not isinstance(self.labels, Tensor) or self.labels.is_floating_point() or self.labels.is_complex():
            raise DataError("labels", getattr(self.labels, "dtype", type(self.labels).__name__), "an integer tensor")
        if self.labels.shape != (len(self),):
            expected = f"one integer for each item, ({len(self)},)"
            raise DataError("labels", f"shape {tuple(self.labels.shape)}", expected)
        if self.labels.min() < 0:
            raise DataError("labels", f"the value {int(self.labels.min())}", "classes 0, 1, ...")
        self._set(labels=self.labels.long().cpu())

    @property
    def _unobserved(self) -> Tensor:
        """True where a value is missing, ``(N, *D)`` or ``()``."""
        return self.raw.isnan() if self.missing else torch.tensor(False)

    @property
    def complete(self) -> Data:
        """The items without missing values.

        Raises:
            DataError: every item has a missing value.
        """
        if not self.missing:
            return self
        rows = (~self._unobserved.flatten(1).any(1)).nonzero()[:, 0]
        if not len(rows):
            raise DataError(self.name, "missing values in every item", "at least one item without them")
        return dataclasses.replace(self.subset(rows), missing=False)

    def __len__(self) -> int:
        return self.raw.shape[0]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return item ``index`` as a mapping.

        "x" is in model space without noise (:meth:`bin_centres`); "label" is there if the data have labels.
        """
        item = {"x": self.bin_centres(self.raw[index])}
        return item if self.labels is None else {**item, "label": self.labels[index]}

    def __repr__(self) -> str:
        kind = "continuous" if self.num_values is None else f"integers 0..{self.num_values - 1}"
        return f"Data({self.name!r}, {len(self)} items of shape {self.shape}, {kind})"

    @property
    def shape(self) -> tuple[int, ...]:
        """D, the shape of one item."""
        return tuple(self.raw.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether items are images."""
        return len(self.shape) == 3 and self.shape[0] in CHANNELS if self.image is None else self.image

    @property
    def classes(self) -> int | None:
        """Number of classes. None: unlabelled data."""
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @property
    def scaling(self) -> Scaling:
        """The map between raw items and model space."""
        assert self.scale is not None  # both are set by __post_init__
        assert self.shift is not None
        return Scaling(self.scale, self.shift, self.num_values, self.raw.dtype if self.num_values is None else None)

    @property
    def log_volume(self) -> float:
        """log |dx/dy|, the sum of log(scale) over entries, in nats an item.

            log p(y) = log p(x) + log_volume

        For integers E_u log p(y) is a lower bound of log P(raw) (Theis et al. 2016, section 3.1).
        """
        return self.scaling.log_volume(math.prod(self.shape))

    @property
    def bin_width(self) -> float:
        """Width in model space of the bin of an integer, 0 for floats."""
        return self.scaling.bin_width

    @checked
    def to_model(
        self,
        raw: Tensor,
        generator: Generators = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Map items to model space with noise: :meth:`Scaling.to_model`."""
        return self.scaling.to_model(raw, generator, dtype)

    @checked
    def bin_centres(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Map items to model space without noise: :meth:`Scaling.bin_centres`."""
        return self.scaling.bin_centres(raw, dtype)

    @checked
    def to_raw(self, x: Tensor) -> Tensor:
        """Map x back from model space, in the dtype of ``raw``."""
        return self.scaling.to_raw(x).to(self.raw.dtype)

    @cached_property
    def _black_and_white(self) -> tuple[float, float]:
        """The values of y that :meth:`to_image` shows as black and white."""
        if self.num_values is not None:
            return 0.5, self.num_values - 0.5
        low, high = float(self.raw.min()), float(self.raw.max())
        if low >= 0 and high <= 1:
            return 0.0, 1.0
        return (-1.0, 1.0) if low >= -1 and high <= 1 else (low, max(high, low + 1e-12))

    @checked
    def to_image(self, x: Tensor) -> Tensor:
        """Map model-space ``(B, *D)`` to images ``(B, C, H, W)`` in [0, 1].

        The integer 0 is black and K-1 white. Floats are shown from 0 to 1 or from -1 to 1 if all data lie within, and
        otherwise from the least to the greatest value of the data.

        Raises:
            DataError: the items are not images.
            ShapeError: ``x`` is not ``(B, *D)``.
        """
        if not self.is_image:
            raise DataError("data", f"items of shape {self.shape}", "images, (C, H, W) with C = 1, 3 or 4")
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError("x", tuple(x.shape), f"(B, {', '.join(map(str, self.shape))})")
        low, high = self._black_and_white
        y = self.scaling.unscale(x)
        picture = ((y - low) / (high - low)).clamp(0, 1)
        return picture if len(self.shape) == 3 else picture[:, None]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean ``D`` and the covariance of x over all items.

        Both are float64. The covariance divides by N. Of missing values, each mean is over the items that have it, each
        covariance over those that have both, and negative eigenvalues become 0. It is ``(d, d)`` for items flattened to
        d numbers, and only its diagonal ``(d,)`` if d > 1024. It includes the noise of dequantisation, scale^2/12 in
        each variance.
        """
        N, d = len(self), math.prod(self.shape)
        full = d <= MOST_DIMENSIONS
        if self.missing:
            return self._observed_moments(full)
        mean = torch.zeros(d, dtype=torch.float64)
        for part in torch.split(self.raw, CHUNK):
            mean += self.bin_centres(part, torch.float64).flatten(1).sum(0) / N
        covariance = torch.zeros((d, d) if full else (d,), dtype=torch.float64)
        for part in torch.split(self.raw, CHUNK):
            z = self.bin_centres(part, torch.float64).flatten(1) - mean
            covariance += (z.T @ z if full else z.square().sum(0)) / N
        if self.bin_width:
            (covariance.diagonal() if full else covariance).add_(self.bin_width**2 / 12)
        return mean.reshape(self.shape), covariance

    def _observed_moments(self, full: bool) -> tuple[Tensor, Tensor]:
        """Return mean and covariance over the observed values."""
        x = self.bin_centres(self.raw, torch.float64).flatten(1)
        known, mean = ~x.isnan(), x.nanmean(0)
        z = torch.where(known, x - mean, 0.0)
        if not full:
            return mean.reshape(self.shape), z.square().sum(0) / known.sum(0).clamp(min=1)
        count = known.double().T @ known.double()
        values, vectors = torch.linalg.eigh(z.T @ z / count.clamp(min=1))
        return mean.reshape(self.shape), (vectors * values.clamp(min=0)) @ vectors.T

    @checked
    def few(self, most: int = MEASURED) -> Tensor:
        """Return at most ``most`` items in model space, evenly spaced, in float64.

        Integers are dequantised. A missing value becomes that of another item, drawn at random.
        """
        raw = self.raw[:: -(-len(self) // whole("most", most))]
        if self.missing:
            raw = _filled(raw, self.raw)
        return self.to_model(raw, torch.Generator().manual_seed(0), torch.float64)

    @cached_property
    def data_scale(self) -> DataScale | None:
        """The lengths of the data in model space, measured on 8192 items.

        None: the items are all the same.
        """
        return DataScale.of(self.few(), self.bin_width or None)

    @checked
    def subset(self, indices: Tensor | Sequence[int]) -> Data:
        """Return the items at ``indices``, with this object's scale and shift."""
        index = torch.as_tensor(indices, dtype=torch.long)
        N = len(self)
        if index.ndim != 1 or len(index) == 0 or index.min() < -N or index.max() >= N:
            got = f"{int(index.min())}..{int(index.max())}" if index.numel() else "none"
            got += f" in shape {tuple(index.shape)}"
            raise ArgumentError("indices", got, f"a vector of one or more integers from {-N} to {N - 1}")
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, raw=self.raw[index], labels=labels)

    @checked
    def take(self, n: int, seed: int | None = None) -> Data:
        """Return ``n`` items with this object's scale and shift.

        Args:
            n: number of items, from 1 to N.
            seed: seed of the choice. None: the first n.

        Raises:
            ArgumentError: ``n`` is not such a number.
        """
        n = whole("n", n)
        if n > len(self):
            raise ArgumentError("n", n, f"an integer from 1 to {len(self)}, the number of items of {self.name!r}")
        if seed is None:
            return self.subset(torch.arange(n))
        return self.subset(
            torch.randperm(len(self), generator=torch.Generator().manual_seed(whole("seed", seed, 0)))[:n]
        )

    @checked
    def scaled_like(self, other: Data | Scaling) -> Data:
        """Return the same items with the scale and shift of ``other``.

        A test set takes the scale of its training set, and new data that of a model (``model.scaling``).

        Raises:
            DataError: shapes or numbers of values differ.
        """
        if isinstance(other, Scaling):
            if self.num_values != other.num_values:
                expected = f"items with num_values {other.num_values}, as in the scaling"
                raise DataError(self.name, f"items with num_values {self.num_values}", expected)
        elif (self.shape, self.num_values) != (other.shape, other.num_values):
            expected = f"items {other.shape} with num_values {other.num_values}, as in {other.name!r}"
            raise DataError(self.name, f"items {self.shape} with num_values {self.num_values}", expected)
        normalize = self.normalize if self.num_values else "given"
        return dataclasses.replace(self, scale=other.scale, shift=other.shift, normalize=normalize)

    @checked
    def split(self, held_out: int | float, seed: int = 0) -> tuple[Data, Data]:
        """Return a training part and a held-out part, chosen by a permutation.

        The scale of floats by their std is measured again on the training part; the held-out part takes that scale.

        Args:
            held_out: size of the held-out part, a count from 1 to N - 1 or a fraction in (0, 1).
            seed: seed of the permutation.

        Raises:
            ArgumentError: ``held_out`` leaves one of the parts empty.
        """
        N = len(self)
        count = count_of(held_out, N)
        if count >= N:
            raise ArgumentError("held_out", held_out, f"a count from 1 to {N - 1} or a fraction in (0, 1)")
        order = torch.randperm(N, generator=torch.Generator().manual_seed(whole("seed", seed, 0)))
        test, train = self.subset(order[:count]), self.subset(order[count:])
        if self.num_values is None and self.normalize in ("features", "standard"):
            train = dataclasses.replace(train, scale=None, shift=None)
            test = test.scaled_like(train)
        return train, test


def _filled(raw: Tensor, donors: Tensor) -> Tensor:
    """Return items whose missing entries are those of random other items."""
    generator = torch.Generator().manual_seed(0)
    columns = raw.flatten(1).clone()
    for column, known in zip(columns.T, donors.flatten(1).T, strict=True):
        gaps, values = column.isnan(), known[~known.isnan()]
        if len(values):
            column[gaps] = values[torch.randint(len(values), (int(gaps.sum()),), generator=generator)]
    return columns.reshape(raw.shape)


def count_of(held_out: int | float, n: int) -> int:
    """Return ``held_out`` as a number of items out of ``n``.

    A count of 1 or more is returned as it is; a fraction in (0, 1) is rounded to a count of at least 1.

    Raises:
        ArgumentError: ``held_out`` is neither.
    """
    if isinstance(held_out, float) and 0 < held_out < 1:
        return max(1, round(held_out * n))
    try:
        return whole("held_out", held_out)
    except ArgumentError:
        raise ArgumentError("held_out", repr(held_out), "a positive count, or a fraction in (0, 1)") from None
