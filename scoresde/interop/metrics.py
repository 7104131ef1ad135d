"""Images for other libraries' metrics, and the metrics themselves.

A folder of PNG files is what clean-fid and torch-fidelity read, an .npz with ``arr_0`` ``(N, H, W, 3)`` what the
evaluator of guided-diffusion (ADM) reads.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.argument_types import checked
from scoresde.checks import whole
from scoresde.errors import ArgumentError, DataError, DTypeError, ScoreSDEWarning, ShapeError, warn
from scoresde.extras import optional
from scoresde.files import write_atomically
from scoresde.random import device_named

USUAL = 50_000  # images in the papers' figures
NEIGHBOURS = 3  # of precision and recall
ROWS = 1000  # of distances at once


def _images(name: str, images: Tensor) -> Tensor:
    """Return images ``(N, C, H, W)`` of 8 bits with one or three channels.

    Raises:
        DTypeError, ShapeError: Other tensors.
    """
    if images.dtype != torch.uint8:
        raise DTypeError(name, images.dtype, "8-bit images, torch.uint8 (model.to_data(x).to(torch.uint8))")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ShapeError(name, tuple(images.shape), "(N, C, H, W), with 1 or 3 channels")
    return images.cpu()


def _colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


@checked
def write_png_folder(images: Tensor, folder: str | Path) -> Path:
    """Write images as ``00000.png``, and so on; return the folder.

    Images of an earlier call are replaced.

    Args:
        images: 8-bit images ``(N, C, H, W)`` with one or three channels.
        folder: The folder.

    Raises:
        DTypeError, ShapeError: Other tensors.
    """
    from PIL import Image

    folder = Path(folder)
    pixels = _images("images", images).permute(0, 2, 3, 1).numpy()
    for old in folder.glob("*.png"):
        if old.stem.isdecimal():
            old.unlink()
    for number, image in enumerate(pixels):
        with io.BytesIO() as file:
            Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "png")
            write_atomically(folder / f"{number:05d}.png", file.getvalue())
    return folder


@checked
def write_adm_npz(images: Tensor, path: str | Path) -> Path:
    """Write images as ``arr_0`` ``(N, H, W, 3)`` of 8 bits; return the path.

    Args:
        images: 8-bit images ``(N, C, H, W)``. Gray ones are repeated to three channels.
        path: The .npz file.

    Raises:
        DTypeError, ShapeError: Other tensors.
    """
    pixels = _colour(_images("images", images)).permute(0, 2, 3, 1).contiguous().numpy()
    if Path(path).is_dir():
        raise ArgumentError("path", f"{path}, a folder", "the path of a file")
    with io.BytesIO() as file:
        np.savez(file, pixels)
        return write_atomically(Path(path), file.getvalue())


@checked
def image_metrics(
    samples: Tensor,
    reference: Tensor,
    features: Callable[[Tensor], Tensor] | None = None,
    *,
    subset: int = 1000,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, float]:
    """Compare samples with images by the metrics that papers report.

    Args:
        samples, reference: 8-bit images ``(N, C, H, W)`` and ``(M, C, H, W)``.
        features: Function of images ``(B, 3, H, W)`` of 8 bits to features ``(B, d)``. None: the Inception network, as
            torch-fidelity has it (extra ``metrics``), which it downloads at the first use.
        subset: Size of the subsets of the kernel distance, at most N and M; default 1000.
        device: Device of the features, default the CPU.
        seed: Seed of these subsets.

    Returns:
        By name: "fid", "kid", "kid_std", "precision", "recall", and with Inception "is" and "is_std". The Frechet
        distance is biased upwards by about 1/N.

    Raises:
        MissingExtraError: torch-fidelity or, with ``features``, torchmetrics is not installed.
        DTypeError, ShapeError, DataError: Other tensors, or features that do not fit.

    Warns:
        ScoreSDEWarning: Fewer samples than the 50,000 of papers, with which figures cannot be compared.

    References: Heusel et al. 2017 (Frechet distance); Binkowski et al. 2018 (kernel distance); Salimans et al. 2016
    (Inception score); Kynkaanniemi et al. 2019 (precision and recall).
    """
    samples, reference = _images("samples", samples), _images("reference", reference)
    subset = min(whole("subset", subset, 2), len(samples), len(reference))
    if subset < 2:
        raise ArgumentError("samples, reference", f"{len(samples)} and {len(reference)} images", "two images or more")
    if len(samples) < USUAL:
        text = f"metrics of {len(samples)} samples: the Frechet distance is biased upwards by about 1/N."
        warn(f"{text} Papers take {USUAL:,}; compare with figures of the same number only.", ScoreSDEWarning)
    device, seed = device_named(device), whole("seed", seed, 0)
    if features is None:
        return _by_torch_fidelity(samples, reference, subset, device, seed)
    return _by_torchmetrics(samples, reference, features, subset, device, seed)


class _Items(torch.utils.data.Dataset[Tensor]):
    """Colour images one by one, as torch-fidelity reads them."""

    def __init__(self, images: Tensor):
        self.images = _colour(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def _by_torch_fidelity(
    samples: Tensor, reference: Tensor, subset: int, device: torch.device, seed: int
) -> dict[str, float]:
    """Return the metrics of Inception features."""
    library = optional("torch_fidelity", "metrics")
    found = library.calculate_metrics(
        input1=_Items(samples),
        input2=_Items(reference),
        cuda=device.type == "cuda",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=subset,
        rng_seed=seed,
        verbose=False,
    )
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "is": "inception_score_mean",
        "is_std": "inception_score_std",
        "precision": "precision",
        "recall": "recall",
    }
    return {ours: float(found[theirs]) for ours, theirs in names.items() if theirs in found}


class _Features(nn.Module):
    """A function of images as torchmetrics wants it, which keeps its results."""

    def __init__(self, features: Callable[[Tensor], Tensor], device: torch.device):
        super().__init__()
        self.features, self.device, self.num_features = features, device, 0

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.features(_colour(images).to(self.device))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError("features' result", shape, f"({len(images)}, d), one row an image")
        if not bool(found.isfinite().all()):
            raise DataError("features' result", "NaN or infinity", "finite numbers")
        return found.double().cpu()

    def of(self, images: Tensor, chunk: int = 100) -> Tensor:
        """Return the features of all images, ``(N, d)``."""
        return torch.cat([self(images[i : i + chunk]) for i in range(0, len(images), chunk)])


def _by_torchmetrics(
    samples: Tensor,
    reference: Tensor,
    features: Callable[[Tensor], Tensor],
    subset: int,
    device: torch.device,
    seed: int,
) -> dict[str, float]:
    """Return the metrics of any features."""
    library = optional("torchmetrics.image.fid", "metrics")
    kernels = optional("torchmetrics.image.kid", "metrics")
    read = _Features(features, device)
    fake, real = read.of(samples), read.of(reference)
    given = _Given(fake.shape[1])
    frechet = library.FrechetInceptionDistance(feature=given, normalize=False).set_dtype(torch.float64)
    kernel = kernels.KernelInceptionDistance(feature=given, subset_size=subset).set_dtype(torch.float64)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):  # it draws its subsets from torch's global state
        torch.default_generator.manual_seed(seed)
        kid, kid_std = kernel.compute()
    precision, recall = _inside(fake, real), _inside(real, fake)
    return {
        "fid": float(frechet.compute()),
        "kid": float(kid),
        "kid_std": float(kid_std),
        "precision": precision,
        "recall": recall,
    }


class _Given(nn.Module):
    """Features that are known, as torchmetrics takes its network."""

    def __init__(self, dim: int):
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features


def _inside(points: Tensor, manifold: Tensor) -> float:
    """Return the part of points within a neighbour's radius of a manifold.

    The radius of a point of the manifold is the distance to its third neighbour.
    """
    k = min(NEIGHBOURS, len(manifold) - 1)
    rows = range(0, len(manifold), ROWS)
    radius = torch.cat([torch.cdist(manifold[i : i + ROWS], manifold).kthvalue(k + 1, dim=1)[0] for i in rows])
    found = [(torch.cdist(points[i : i + ROWS], manifold) <= radius).any(dim=1) for i in range(0, len(points), ROWS)]
    return float(torch.cat(found).double().mean())
