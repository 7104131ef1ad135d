"""The page of benchmarks/real.py: table, text and sheet of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import common  # first: it sets how threads wait

# isort: split
import numpy as np
import torch
from torch import Tensor

from scoresde.app.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mosaic(images: Tensor, columns: int) -> np.ndarray:
    """Return images ``(N, C, H, W)`` as one picture ``(rows H, columns W)``.

    The picture has the means over C. Images that do not fill a row are left out.
    """
    tiles = torch.nn.functional.pad(images.double().mean(1), (1, 1, 1, 1))
    return torch.cat([torch.cat(list(row), 1) for row in tiles.split(columns) if len(row) == columns]).numpy()


def sheet(
    samples: Tensor, real: Tensor, neighbours: dict[str, Tensor], distances: dict[str, tuple[Tensor, Tensor]]
) -> Figure:
    """Draw samples, real images, nearest training images and distances.

    In each pair of rows samples stand above their nearest training images. The upper pair has the first samples. The
    lower pair has those that are nearest to a training image.
    """
    from matplotlib.figure import Figure

    columns = 12
    rows = min(8, len(samples) // columns)
    width, heights = 11, (rows, 4.6, 6)  # in images
    figure = Figure(figsize=(width, sum(heights) * width / 2 / columns + 1.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=heights)

    def show(place: tuple[int, int], title: str, images: np.ndarray) -> None:
        axes = figure.add_subplot(grid[place])
        axes.imshow(images, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")

    show((0, 0), "samples", mosaic(samples[: rows * columns], columns))
    show((0, 1), "test images", mosaic(real[: rows * columns], columns))
    for place, (space, nearest_of) in enumerate(neighbours.items()):
        ours, theirs = distances[space]
        pairs = []
        for chosen in (torch.arange(columns), ours.argsort()[:columns]):
            pairs += [mosaic(torch.cat([samples[chosen], nearest_of[chosen]]), columns)]
        gap = np.zeros((samples.shape[2] // 2, pairs[0].shape[1]))
        title = f"samples above the nearest training images ({space})"
        show((1, place), title, np.concatenate([pairs[0], gap, pairs[1]]))
        axes = figure.add_subplot(grid[2, place])
        bins = np.linspace(0, max(ours.max().item(), theirs.max().item()), 60)
        for d, name in ((ours, "samples"), (theirs, "test images")):
            axes.hist(d.numpy(), bins, weights=np.full(len(d), 1 / len(d)), histtype="step", linewidth=1.6, label=name)
        axes.set(xlabel=f"distance to the nearest training image ({space})", ylabel="share", xlim=(0, None))
        axes.legend(frameon=False)
    return figure


def rows_of(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all figures, one per row."""
    rows = []
    if found := parts.get("likelihood"):
        for row in found["prefixes"]:
            rows.append({"part": "bits/dim", "what": f"first {row['n']} test images", "calls": found["calls"], **row})
        rows.append({"part": "bits/dim", "what": "half the calls less these", **found["check"]})
    for row in parts.get("against", {}).get("rows", ()):
        rows.append({"part": "bits/dim", "what": "less those of the other run", **row})
    if found := parts.get("frechet"):
        rows += [{"part": "frechet", "what": "samples", **row} for row in found["samples"]]
        rows += [{"part": "frechet", "what": name, **row} for name, row in found["real"].items()]
    for space in ("pixels", "features") if "sheet" in parts else ():
        for name in ("near", "area"):
            rows.append({"part": "nearest", "what": f"{name}, {space}", **parts["sheet"][space][name]})
    return rows


def page(run: RunFolder, parts: dict[str, dict[str, Any]]) -> str:
    """Write the results of the parts in Markdown, a section for each."""
    sections = {
        "train": lambda found: _training(found, run),
        "likelihood": _bits_per_dim,
        "against": _against,
        "frechet": _frechet,
        "sheet": _nearest,
    }
    text = [section(parts[part]) for part, section in sections.items() if parts.get(part)]
    if (path := run.path / "sheet.png").is_file() and "sheet" in parts:
        text.append(f"![samples]({path.name})")
    return "\n\n".join(text)


def _training(found: dict[str, Any], run: RunFolder) -> str:
    return (
        f"## Training\n\n{found['minutes']:g} minutes of training steps, {found['steps']} steps of "
        f"{run.config.train.batch_size} images, {found['weights']:,} weights, on {found['device']}; with saving and "
        f"measuring {found['seconds_with_saving'] / 60:.1f} minutes. All settings: `config.yaml` of the run folder."
    )


def _bits_per_dim(found: dict[str, Any]) -> str:
    table = common.markdown(
        ["test images", "bits/dim"], [[f"first {row['n']}", _figure(row)] for row in found["prefixes"]]
    )
    check = found["check"]
    return (
        f"## Bits/dim\n\n{table}\n\n"
        f"{found['method']}, {found['calls']} calls, probes a call: {found['probes']}, {found['dequantization']}, "
        f"t_min = {found['t_min']:.3g}; noise of probes and draws in the mean {found['noise']:.4f}, mean defect "
        f"{found['defect']:.4f}, due to the scaling {found['offset']:+.4f} bits/dim; {found['seconds']:.0f} s. "
        f"Less those by {check['calls']} calls, on the first {check['n']} images: {_figure(check, 4)}."
    )


def _against(found: dict[str, Any]) -> str:
    lines = [[f"first {row['n']}", f"{row['other']:.3f}", _figure(row, 4)] for row in found["rows"]]
    table = common.markdown(["test images", "the other's bits/dim", "this run less the other"], lines)
    return f"## Against `{found['other']}`\n\nOn the same noise and probes.\n\n{table}"


def _frechet(found: dict[str, Any]) -> str:
    lines = [
        [f"samples by {row['calls']} calls", *_distance(row), f"{row['images_per_second']:.1f}"]
        for row in found["samples"]
    ]
    lines += [[name, *_distance(row)] for name, row in found["real"].items()]
    table = common.markdown(["images", "n", "distance", "of it bias", "images/s"], lines)
    made = found["classifier"]
    return (
        f"## Frechet distance\n\n{table}\n\n"
        f"Samples in {found['precision']}. From the {found['reference']['n']} test images, whose features have a "
        f"total variance of {found['reference']['spread']:.0f}. The classifier ({made['from']}) knows "
        f"{100 * made['accuracy']:.2f} +- {100 * made['stderr']:.2f} % of them after {made['epochs']} epochs of "
        f"{made['trained_on']} images."
    )


def _nearest(found: dict[str, Any]) -> str:
    lines = []
    for space in ("pixels", "features"):
        row = found[space]
        near = {name: 100 * value for name, value in row["near"].items()}
        medians = f"{row['median_of_samples']:.3g}, {row['median_of_test_images']:.3g}"
        lines.append([space, f"{_figure(near, 2)} %", _figure(row["area"], 3), medians])
    header = ["distance in", "samples nearer than 1 % of the test images", "AUROC", "medians: samples, test images"]
    return (
        f"## Nearest training images\n\n{found['n']} samples by {found['calls']} calls\n\n"
        f"{common.markdown(header, lines)}\n\n"
        "Fresh images would have 1 % and 0.5. A blurred image is nearer in pixels than a sharp one."
    )


def _figure(row: dict[str, float], digits: int = 3) -> str:
    return f"{row['value']:.{digits}f} +- {row['stderr']:.{digits}f}"


def _distance(row: dict[str, float]) -> list[str]:
    return [str(row["n"]), _figure(row, 2), f"{row['bias']:.2f}"]
