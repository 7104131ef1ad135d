"""Features of the time input and of the class, for all networks.

The time input is any scalar that the caller derives from the time: t itself, 1000 t, log sigma, ... The features only
assume a scale on which it varies, set by ``scale``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import positive, whole
from scoresde.errors import ArgumentError, DTypeError, ShapeError, UnknownNameError

AUGMENTATIONS = 9  # numbers that say how an image was augmented


def _even(dim: int) -> int:
    dim = whole("dim", dim, least=2)
    if dim % 2:
        raise ArgumentError("dim", dim, "an even number, half sines, half cosines")
    return dim


def _waves(phase: Tensor) -> Tensor:
    return torch.cat((phase.sin(), phase.cos()), dim=-1)


def _at_least_float32(time_input: Tensor) -> Tensor:
    return time_input.to(torch.promote_types(time_input.dtype, torch.float32))


@checked
class Sinusoidal(nn.Module):
    r"""Sines and cosines at geometrically spaced frequencies.

    .. math:: \big[\sin(\omega_k\, s\, \ell),\; \cos(\omega_k\, s\, \ell)\big]_{k=0}^{d/2-1},
              \qquad \omega_k = P^{-k/(d/2)}

    with the time input :math:`\ell`, ``scale`` s, ``dim`` d and ``max_period`` P. The frequencies run from 1 down to
    almost 1/P, so :math:`s\,\ell` should span hundreds for the features to differ. Take s = 1 for time inputs in
    [0, 1000], s = 1000 for those in [0, 1]. The frequencies are computed, not stored, in the dtype of the time input
    (float32 at least), and are as accurate as that dtype.

    Shapes: time input ``(...)`` to ``(..., dim)``.

    Args:
        dim: Number of features, even.
        max_period: P, positive, default 10000.
        scale: s, positive, default 1.

    Raises:
        ArgumentError: A value outside these ranges.

    References: Vaswani et al. 2017, section 3.5; Ho, Jain, Abbeel 2020, appendix B.
    """

    def __init__(self, dim: int, max_period: float = 10000.0, scale: float = 1.0):
        super().__init__()
        self.dim = _even(dim)
        self.max_period, self.scale = positive("max_period", max_period), positive("scale", scale)

    def forward(self, time_input: Tensor) -> Tensor:
        time_input = _at_least_float32(time_input)
        k = torch.arange(self.dim // 2, dtype=time_input.dtype, device=time_input.device)
        omega = torch.exp(k * (-2 * math.log(self.max_period) / self.dim))
        return _waves(self.scale * time_input[..., None] * omega)

    def extra_repr(self) -> str:
        return f"{self.dim}, max_period={self.max_period:g}, scale={self.scale:g}"


@checked
class Fourier(nn.Module):
    r"""Sines and cosines at random Gaussian frequencies, drawn once.

    .. math:: \big[\sin(2\pi w_k \ell),\; \cos(2\pi w_k \ell)\big]_{k=1}^{d/2}, \qquad w_k \sim N(0, \text{scale}^2)

    with the time input :math:`\ell` and ``dim`` d. The frequencies are a buffer, the same for the same ``seed`` on
    every device, and saved with the weights. The default ``scale`` suits time inputs that vary over about 1, such as t
    in [0, 1] or log sigma.

    Shapes: time input ``(...)`` to ``(..., dim)``.

    Args:
        dim: Number of features, even.
        scale: Standard deviation of the frequencies, positive, default 16.
        seed: Seed of the frequencies, 0 or more, default 0.

    Raises:
        ArgumentError: A value outside these ranges.

    References: Tancik et al. 2020, section 6; for time, Song et al. 2021, appendix C.
    """

    w: Tensor

    def __init__(self, dim: int, scale: float = 16.0, seed: int = 0):
        super().__init__()
        self.dim, self.scale, self.seed = _even(dim), positive("scale", scale), whole("seed", seed, least=0)
        generator = torch.Generator().manual_seed(self.seed)
        w = torch.randn(self.dim // 2, generator=generator, device="cpu", dtype=torch.float32) * self.scale
        self.register_buffer("w", w.to(torch.get_default_device()))

    def forward(self, time_input: Tensor) -> Tensor:
        time_input = _at_least_float32(time_input)
        return _waves(2 * math.pi * time_input[..., None] * self.w.to(time_input.dtype))

    def extra_repr(self) -> str:
        return f"{self.dim}, scale={self.scale:g}, seed={self.seed}"


@checked
class LabelEmbedding(nn.Module):
    """A learned vector for each class, and one for "no class".

    Classifier-free guidance needs the latter. The classes are 0 .. ``classes`` - 1; -1 (any negative number) and
    ``None`` stand for no class. The caller must refuse a class >= ``classes``: a check here would make every step wait
    for the device. The lookup of such a class fails on the CPU and is undefined elsewhere.

    Shapes: ``y`` ``(B,)``, int64, to ``(B, dim)``; ``None`` to ``(1, dim)``.

    Args:
        classes: Number of classes.
        dim: Length of the vectors.
        null: Whether there is a vector for "no class", default True.

    Raises:
        ArgumentError: A number that is not a positive integer; when called, no class without a vector for it.
        DTypeError: When called, class labels that are not int64.
        ShapeError: When called, class labels of any rank but 1.

    References: Ho, Salimans 2022, section 3.2 (the null token).
    """

    def __init__(self, classes: int, dim: int, null: bool = True):
        super().__init__()
        self.classes, self.null = whole("classes", classes), null
        self.table = nn.Embedding(self.classes + null, whole("dim", dim))

    def forward(self, y: Tensor | None) -> Tensor:
        if y is None:
            if not self.null:
                raise ArgumentError("y", None, f'classes in 0..{self.classes - 1}: this network knows no "no class"')
            return self.table.weight[self.classes :]
        if y.dtype != torch.int64:
            raise DTypeError("y", y.dtype, "torch.int64 class labels")
        if y.ndim != 1:
            raise ShapeError("y", tuple(y.shape), "of shape (B,), one class for each sample")
        try:
            vectors: Tensor = self.table(torch.where(y < 0, self.classes, y))
        except IndexError as error:  # on the CPU; elsewhere nothing waits for the device
            expected = f"classes in 0..{self.classes - 1}{', or -1 for no class' if self.null else ''}"
            raise ArgumentError("y", f"labels up to {int(y.max())}, down to {int(y.min())}", expected) from error
        return vectors


class Conditioning(nn.Module):
    """Time input and class as one vector for each sample.

        SiLU(MLP(features(time_input)) + class vector)

    Shapes: time input ``()`` or ``(B,)``, y ``(B,)`` or ``None``, to ``(batch, dim)``.

    Args:
        features: Number of features of the time input, even.
        dim: Length of the result.
        classes: Number of classes. None: an unconditional network.
        embedding: ``"sinusoidal"`` (default) for :class:`Sinusoidal`, ``"fourier"`` for :class:`Fourier`.
        embedding_scale: Scale of the time input, positive, default 1. :class:`Fourier` has 16 times this scale.
        embedding_seed: Seed of the Fourier frequencies, default 0.
        augmented: Whether labels of augmentations ``(B, 9)`` are added too, by a linear layer. Default False.
        null_class: Whether there is a vector for "no class", default True.

    Raises:
        UnknownNameError: Another ``embedding``.
        ArgumentError: A number outside its range; when called, labels for a network that does not have them.
        ShapeError: When called, class labels of another batch size.
    """

    def __init__(
        self,
        features: int,
        dim: int,
        classes: int | None = None,
        embedding: str = "sinusoidal",
        embedding_scale: float = 1.0,
        embedding_seed: int = 0,
        augmented: bool = False,
        null_class: bool = True,
    ):
        super().__init__()
        self.features: nn.Module
        positive("embedding_scale", embedding_scale)
        if embedding == "sinusoidal":
            self.features = Sinusoidal(features, scale=embedding_scale)
        elif embedding == "fourier":
            self.features = Fourier(features, scale=16.0 * embedding_scale, seed=embedding_seed)
        else:
            raise UnknownNameError("embedding", embedding, ("sinusoidal", "fourier"))
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.classes = None if classes is None else LabelEmbedding(classes, dim, null_class)
        self.augmentations = nn.Linear(AUGMENTATIONS, dim, bias=False) if augmented else None

    def forward(self, time_input: Tensor, y: Tensor | None, batch: int, augment: Tensor | None = None) -> Tensor:
        h = self.mlp(self.features(time_input.expand(batch)).to(self.mlp[0].weight.dtype))
        if self.classes is not None:
            if y is not None and y.shape[:1] != (batch,):
                raise ShapeError("y", tuple(y.shape), f"of shape ({batch},), one class for each sample of x")
            h = h + self.classes(y)
        elif y is not None:
            got = f"class labels of shape {tuple(y.shape)}"
            raise ArgumentError("y", got, "None, since the network has no classes")
        if augment is not None:
            if self.augmentations is None:
                raise ArgumentError("augment", "labels of augmentations", "None, as the network is not `augmented`")
            if augment.shape != (batch, AUGMENTATIONS):
                raise ShapeError("augment", tuple(augment.shape), f"of shape ({batch}, {AUGMENTATIONS})")
            h = h + self.augmentations(augment.to(h.dtype))
        return nn.functional.silu(h)
