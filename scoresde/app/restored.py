"""Restored items: figures, pictures and records.

The figures compare them with the truth, and the records lie in a run's folder. Shapes, for N items of shape D with S
samples each: truth ``(N, *D)``, observations y ``(N, *E)``, samples x ``(N, S, *D)``.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.app import plots
from scoresde.app.observing import Problem
from scoresde.app.runs import RunFolder
from scoresde.app.scoring import figure, mean_and_error
from scoresde.data import Data
from scoresde.errors import RunFolderError

FOLDER = "restored"  # of a run
ARRAYS, SHEET, FIGURES = "arrays.npz", "sheet.png", "figures.json"
SHOWN, IMAGES, CURVES = 3, 12, 6  # of a sheet: samples of an item, images, and items of other kinds


def measure(problem: Problem, truth: Tensor, y: Tensor, x: Tensor, peak: float | None) -> dict[str, dict[str, Any]]:
    """Return figures by name.

    Each is a mean over the items with its standard error.

    - ``residual``: root mean square of y - A x. If the samples are from p(x_0 | y), it is that of the noise.
    - ``rmse`` and ``psnr``: errors of the unknown entries.
    - ``coverage``: share of the unknown entries within 2 standard deviations of the samples' mean.

    Args:
        problem: what was observed.
        truth, y, x: ``(N, *D)``, ``(N, *E)``, ``(N, S, *D)``.
        peak: the range of x, for the PSNR in dB. None: no PSNR.
    """
    N, S = x.shape[:2]
    operator = problem.operator.cpu()
    truth, y, x = truth.double(), y.double(), x.double()
    r = operator.residual(y.repeat_interleave(S, 0), x.flatten(0, 1))
    residual = (r.reshape(N, -1).square().sum(1) / (S * problem.seen)).sqrt()
    mean, std = x.mean(1)[:, problem.unknown], x.std(1)[:, problem.unknown]
    of_mean = (mean - truth[:, problem.unknown]).square().mean(1).sqrt()
    of_samples = (x - truth[:, None])[:, :, problem.unknown].square().mean((1, 2)).sqrt()
    covered = ((mean - truth[:, problem.unknown]).abs() <= 2 * std).double().mean(1)
    values = {"residual": residual, "rmse of the mean": of_mean, "rmse of a sample": of_samples}
    if peak is not None:
        values |= {f"psnr of {w}": 20 * torch.log10(peak / values[f"rmse of {w}"]) for w in ("the mean", "a sample")}
    return {name: mean_and_error(value) for name, value in (values | {"coverage": covered}).items()}


def expected_coverage(samples: int) -> float:
    """Return the coverage of 2 standard deviations for a Gaussian posterior.

    Mean and deviation come from S draws, so (truth - mean)/std is sqrt(1 + 1/S) times Student's t with S - 1 degrees
    of freedom.
    """
    from scipy.stats import t

    return float(2 * t.cdf(2 / math.sqrt(1 + 1 / samples), samples - 1) - 1)


def peak_of(data: Data) -> float | None:
    """Return the range of images in model space. None: other data.

    It is that from black to white for integers, and from the least to the greatest value for floats.
    """
    if not data.is_image:
        return None
    raw = data.num_values - 1.0 if data.num_values is not None else (data.raw.max() - data.raw.min()).item()
    return torch.as_tensor(data.scaling.scale).mean().item() * raw


def pack(problem: Problem, data: Data, truth: Tensor, y: Tensor, x: Tensor, record: dict[str, Any]) -> bytes:
    """Return all arrays, and the record as JSON, as the bytes of an .npz file."""
    tensors = {"truth": truth, "observation": y, "samples": x, "mean": x.mean(1), "std": x.std(1)}
    tensors |= {"raw": data.raw, "samples_raw": data.to_raw(x), "unknown": problem.unknown}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays, config=np.array(json.dumps(record)))
        return file.getvalue()


def rows_of(record: dict[str, Any], sign: str = "+-") -> list[tuple[str, str]]:
    """Return ``(what, value)`` of a record in the order of reading."""
    found = {name: figure(values, sign) for name, values in record["figures"].items()}
    return [
        (f"rms of y - A x (noise {record['noise']:g})", found["residual"]),
        *((f"{name.replace('rmse', 'RMSE')}, unknown entries", found[name]) for name in found if name[:4] == "rmse"),
        *((f"{name.replace('psnr', 'PSNR')} (dB)", found[name]) for name in found if name[:4] == "psnr"),
        (f"within 2 std (a Gaussian posterior: {record['expected_coverage']:.3f})", found["coverage"]),
    ]


def load_records(run: RunFolder) -> list[tuple[dict[str, Any], bytes]]:
    """Return ``(record, picture)`` of all that was restored, by name.

    Raises:
        RunFolderError: a damaged file.
    """
    found = []
    for path in sorted((run.path / FOLDER).glob(f"*/{FIGURES}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            rows_of(record)
            found.append((record, path.with_name(SHEET).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError("run", f"{path} ({error!r})", "a folder with intact files of a restoration") from error
    return found


def sheet(problem: Problem, data: Data, truth: Tensor, y: Tensor, x: Tensor) -> tuple[bytes, str]:
    """Return ``(picture, caption)`` of the first items.

    Images stand in rows, points in the plane; other items are drawn as curves.
    """
    few = slice(IMAGES if data.is_image else CURVES)
    truth, seen, x = truth[few].float(), problem.look(y[few].float()), x[few].float()
    mean, std, shown = x.mean(1), x.std(1), x[:, :SHOWN]
    peak = peak_of(data)
    if peak is not None:
        top = std.max().item() or 1.0
        spread = (std / top).reshape(len(std), -1, *data.shape[-2:])
        columns = {
            "truth": [data.to_image(truth)],
            "seen": [data.to_image(seen)],
            "samples": [data.to_image(shown[:, i]) for i in range(shown.shape[1])],
            "mean": [data.to_image(mean)],
            "std": [spread],
        }
        text = f"White in the column std is {100 * top / peak:.0f} % of the range from black to white."
        return plots.columns_of_images(columns), text + (" Blue was not seen." if seen.isnan().any() else "")
    if data.shape == (2,):
        scaled = [data.scaling.unscale(value) for value in (truth, x)]
        text = "Crosses: the truth. Dots: samples from p(x_0 | y). Grey: data."
        return plots.restored_points(data.raw, *scaled), text
    text = "Dashed: the truth. Dots: what was seen. Thin lines: samples. Band: 2 standard deviations about their mean."
    truth, seen, mean, std = (value.flatten(1) for value in (truth, seen, mean, std))
    return plots.restored_curves(truth, seen, mean, std, shown.flatten(2)), text
