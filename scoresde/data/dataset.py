"""The data object: items as they came, and the affine map between them and the space the model lives in.

Model space is x = scale · y + shift. For integers with K num_values y = raw + u, u ~ U[0, 1), fills [0, K) and x fills
[-1, 1]; for continuous data y = raw and x is standardised. Because the object owns scale and num_values, a likelihood takes
its offset from :attr:`Data.log_volume` and nobody types one in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scoresde.data.scaling import Scaling
from scoresde.errors import ArgumentError, DataError, DTypeError, ShapeError

MAX_VALUES = 2**16
FULL_COVARIANCE = 1024  # dimensions up to which `moments` gives the whole covariance matrix
CHUNK = 4096  # items held in float64 at a time by `moments`
CHANNELS = (1, 3, 4)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Data(Dataset):
    """A map-style dataset in memory that knows its scale and its number of num_values.

    Args:
        name: what reports call it.
        raw: items ``(N, *D)``, kept on the CPU: integers 0..K-1, or finite floats.
        labels: class of each item, integers ``(N,)``, or None.
        num_values: K, from 2 to 65536, for integers; None for floats.
        scale, shift: the map to model space, x = scale · y + shift. Derived when None. Integers: scale = 2/K,
            shift = -1, always. Floats: 1/std and -mean/std, with one std for all dimensions and one mean, or, for
            vectors (D of rank 1), a mean per feature (shift is then a ``(D,)`` tensor).
        normalize: for floats. "standard": measured, and measured anew on the training part by :meth:`split`;
            "none": x = raw; "given": scale and shift are kept whatever happens.
        image: whether items are pictures ``(C, H, W)`` or ``(H, W)``; None: they are when C is 1, 3 or 4.
        class_names: names of the labels 0, 1, ... or None.

    Raises:
        DataError: NaN or infinity, no items, values outside 0..K-1, integers without ``num_values``, floats with it,
            labels that do not fit, constant floats with normalize="standard".
        DTypeError: ``raw`` is neither integer nor real.
        ArgumentError: ``normalize``, ``scale`` or ``image`` cannot be.
    """

    name: str
    raw: Tensor
    labels: Tensor | None = None
    num_values: int | None = None
    scale: float | None = None
    shift: float | Tensor | None = None
    normalize: str = "standard"
    image: bool | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        raw = self.raw
        if not isinstance(raw, Tensor):
            raise DTypeError("raw", type(raw).__name__, "a torch.Tensor")
        if raw.ndim < 2 or raw.numel() == 0:
            raise DataError("raw", f"shape {tuple(raw.shape)}", "at least one item, (N, *D) with D of rank 1 or more")
        self._set(raw=raw.detach().cpu())
        if self.normalize not in ("standard", "none", "given"):
            raise ArgumentError("normalize", repr(self.normalize), "'standard', 'none' or 'given'")
        if self.image and len(self.shape) not in (2, 3):
            raise ArgumentError("image", f"True for items {self.shape}", "items (C, H, W) or (H, W)")
        if self.raw.is_floating_point():
            self._check_floats()
        else:
            self._check_integers()
        self._check_labels()

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _check_integers(self) -> None:
        raw, K = self.raw, self.num_values
        if raw.is_complex():
            raise DTypeError("raw", raw.dtype, "integers or real floats")
        if K is None:
            raise DataError(
                "num_values", f"None for {raw.dtype} items", "the number of integer num_values (8-bit images: 256)"
            )
        if isinstance(K, bool) or not isinstance(K, int) or not 2 <= K <= MAX_VALUES:
            raise DataError("num_values", repr(K), f"an integer from 2 to {MAX_VALUES}")
        low, high = int(raw.min()), int(raw.max())
        if low < 0 or high >= K:
            raise DataError("raw", f"values from {low} to {high}", f"integers 0..{K - 1} (num_values={K})")
        if self.scale not in (None, 2.0 / K) or (self.shift is not None and self.shift != -1.0):
            raise ArgumentError(
                "scale, shift", f"{self.scale}, {self.shift}", f"None: {K} num_values have 2/{K} and -1"
            )
        self._set(raw=raw.to(torch.uint8 if K <= 256 else torch.int32), scale=2.0 / K, shift=-1.0)

    def _check_floats(self) -> None:
        if self.raw.dtype not in (torch.float32, torch.float64):
            self._set(raw=self.raw.float())
        raw = self.raw
        if self.num_values is not None:
            raise DataError(
                "num_values", f"{self.num_values} for {raw.dtype} items", "integer items, or None for continuous"
            )
        bad = ~torch.isfinite(raw)
        if bad.any():
            first = tuple(bad.nonzero()[0].tolist())
            raise DataError("raw", f"{int(bad.sum())} NaN or infinite values, the first at {first}", "finite numbers")
        if self.scale is None or self.shift is None:
            self._set(**self._measure())
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ArgumentError("scale", self.scale, "a positive number")

    def _measure(self) -> dict[str, float | Tensor]:
        if self.normalize == "given":
            raise ArgumentError("normalize", "'given' without scale and shift", "both, or 'standard' or 'none'")
        if self.normalize == "none":
            return {"scale": 1.0, "shift": 0.0}
        y = self.raw.double()
        mean = y.mean(0) if y.ndim == 2 else y.mean()
        std = float((y - mean).square().mean().sqrt())
        if std == 0.0:
            raise DataError("raw", "items that are all the same", "items that vary, or normalize='none'")
        shift = -mean / std
        return {"scale": 1.0 / std, "shift": shift if shift.ndim else float(shift)}

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        if not isinstance(self.labels, Tensor) or self.labels.is_floating_point() or self.labels.is_complex():
            raise DataError("labels", getattr(self.labels, "dtype", type(self.labels).__name__), "an integer tensor")
        if self.labels.shape != (len(self),):
            raise DataError("labels", f"shape {tuple(self.labels.shape)}", f"one for each item, ({len(self)},)")
        if self.labels.min() < 0:
            raise DataError("labels", f"the value {int(self.labels.min())}", "classes 0, 1, ...")
        self._set(labels=self.labels.long().cpu())

    def __len__(self) -> int:
        return self.raw.shape[0]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Item ``index``: "x" in model space without noise (:meth:`bin_centres`), and its "label" if there is one."""
        item = {"x": self.bin_centres(self.raw[index])}
        return item if self.labels is None else {**item, "label": self.labels[index]}

    def __repr__(self) -> str:
        kind = "continuous" if self.num_values is None else f"{self.num_values} num_values"
        return f"Data({self.name!r}, {len(self)} items of shape {self.shape}, {kind})"

    @property
    def shape(self) -> tuple[int, ...]:
        """D, the shape of one item."""
        return tuple(self.raw.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether items are pictures."""
        return len(self.shape) == 3 and self.shape[0] in CHANNELS if self.image is None else self.image

    @property
    def classes(self) -> int | None:
        """Number of classes, or None without labels."""
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @property
    def scaling(self) -> Scaling:
        """The map between raw items and model space."""
        return Scaling(self.scale, self.shift, self.num_values)

    @property
    def log_volume(self) -> float:
        """log |dx/dy| = D log(scale), nats an item: log p(y) = log p(x) + log_volume.

        For integers E_u log p(y) is a lower bound of log P(raw) (Theis et al. 2016, section 3.1).
        """
        return self.scaling.log_volume(math.prod(self.shape))

    def to_model(
        self, raw: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Items in model space, dequantised with ``generator`` if they are integers: see :meth:`Scaling.to_model`."""
        return self.scaling.to_model(raw, generator, dtype)

    def bin_centres(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Items in model space without noise: the middle of each bin; floats as in :meth:`to_model`."""
        return self.scaling.bin_centres(raw, dtype)

    def to_raw(self, x: Tensor) -> Tensor:
        """Back from model space, in the dtype of ``raw``: see :meth:`Scaling.to_raw`."""
        return self.scaling.to_raw(x).to(self.raw.dtype)

    @cached_property
    def _range(self) -> tuple[float, float]:
        """The raw values shown as black and white."""
        if self.num_values is not None:
            return 0.5, self.num_values - 0.5
        low, high = float(self.raw.min()), float(self.raw.max())
        if low >= 0 and high <= 1:
            return 0.0, 1.0
        return (-1.0, 1.0) if low >= -1 and high <= 1 else (low, max(high, low + 1e-12))

    def to_image(self, x: Tensor) -> Tensor:
        """Pictures to look at: model-space ``(B, *D)`` to ``(B, C, H, W)`` in [0, 1].

        Level 0 is black and level K-1 white; floats run from 0 to 1, or -1 to 1, if they all fit there, and otherwise
        from the least to the greatest value of the data.

        Raises:
            DataError: the items are not images.
            ShapeError: ``x`` is not ``(B, *D)``.
        """
        if not self.is_image:
            raise DataError("to_image", f"items of shape {self.shape}", "images, (C, H, W) with C = 1, 3 or 4")
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError("x", tuple(x.shape), f"(B, {', '.join(map(str, self.shape))})")
        low, high = self._range
        y = self.scaling.unscale(x)
        picture = ((y - low) / (high - low)).clamp(0, 1)
        return picture if len(self.shape) == 3 else picture[:, None]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``D`` and covariance of x, float64, over all items (divided by N), noise of dequantisation included.

        The covariance is ``(d, d)`` for items flattened to d numbers, and only its diagonal ``(d,)`` when d > 1024.
        Dequantisation moves the mean by scale/2 and adds scale²/12 to each variance.
        """
        N, d = len(self), math.prod(self.shape)
        full = d <= FULL_COVARIANCE
        mean = torch.zeros(d, dtype=torch.float64)
        for part in self.raw.split(CHUNK):
            mean += self.bin_centres(part, torch.float64).flatten(1).sum(0) / N
        covariance = torch.zeros((d, d) if full else (d,), dtype=torch.float64)
        for part in self.raw.split(CHUNK):
            z = self.bin_centres(part, torch.float64).flatten(1) - mean
            covariance += (z.T @ z if full else z.square().sum(0)) / N
        if self.num_values is not None:
            (covariance.diagonal() if full else covariance).add_(self.scale**2 / 12)
        return mean.reshape(self.shape), covariance

    def subset(self, indices: Tensor | Sequence[int]) -> Data:
        """The items at ``indices``, with this object's scale and shift."""
        index = torch.as_tensor(indices, dtype=torch.long)
        if index.ndim != 1 or len(index) == 0 or index.min() < -len(self) or index.max() >= len(self):
            raise ArgumentError("indices", f"shape {tuple(index.shape)}", f"one or more of 0..{len(self) - 1}")
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, raw=self.raw[index], labels=labels)

    def take(self, n: int, seed: int | None = None) -> Data:
        """The first ``n`` items, or ``n`` items chosen by ``seed``; scale and shift stay."""
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(self):
            raise ArgumentError("n", n, f"an integer from 1 to {len(self)}, the items of {self.name!r}")
        if seed is None:
            return self.subset(torch.arange(n))
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n])

    def scaled_like(self, other: Data) -> Data:
        """The same items with scale and shift of ``other``: a test set takes those of its training set.

        Raises:
            DataError: shapes or num_values differ.
        """
        if (self.shape, self.num_values) != (other.shape, other.num_values):
            expected = f"items {other.shape} with num_values {other.num_values}, as in {other.name!r}"
            raise DataError(self.name, f"items {self.shape} with num_values {self.num_values}", expected)
        normalize = self.normalize if self.num_values else "given"
        return dataclasses.replace(self, scale=other.scale, shift=other.shift, normalize=normalize)

    def split(self, held_out: int | float, seed: int = 0) -> tuple[Data, Data]:
        """(training part, held-out part), chosen by a permutation that ``seed`` fixes.

        Standardised floats are measured anew on the training part, and the held-out part takes that scale.

        Args:
            held_out: a count from 1 to N - 1, or a fraction in (0, 1).
            seed: of the permutation.

        Raises:
            ArgumentError: ``held_out`` leaves one of the parts empty.
        """
        N = len(self)
        count = count_of(held_out, N)
        if not 1 <= count < N:
            raise ArgumentError("held_out", held_out, f"a count from 1 to {N - 1} or a fraction in (0, 1)")
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        test, train = self.subset(order[:count]), self.subset(order[count:])
        if self.num_values is None and self.normalize == "standard":
            train = dataclasses.replace(train, scale=None, shift=None)
            test = test.scaled_like(train)
        return train, test

    def describe(self) -> dict[str, object]:
        """A short summary in plain Python values, for configurations and reports."""
        return {
            "name": self.name,
            "n": len(self),
            "shape": list(self.shape),
            "num_values": self.num_values,
            "scale": self.scale,
            "shift": self.shift.tolist() if isinstance(self.shift, Tensor) else self.shift,
            "classes": self.classes,
        }


def count_of(held_out: int | float, n: int) -> int:
    """``held_out`` as a number of items out of ``n``: a count as it is, a fraction in (0, 1) rounded, at least 1.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(held_out, int) and not isinstance(held_out, bool) and held_out >= 1:
        return held_out
    if isinstance(held_out, float) and 0 < held_out < 1:
        return max(1, round(held_out * n))
    raise ArgumentError("held_out", repr(held_out), "a count of 1 or more, or a fraction in (0, 1)")
