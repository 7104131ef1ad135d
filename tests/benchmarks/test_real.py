"""The benchmark of real data: it runs on idx files, part by part.

It measures what it says it measures.
"""

import csv
import json
import struct

import numpy as np
import pytest
import torch

from benchmarks import real, real_measures
from scoresde import VPSDE, Data, GaussianMixture
from scoresde.data import Scaling
from scoresde.errors import ArgumentError, DataError, RunFolderError, UnknownNameError

# networks that are hardly trained, and few calls
pytestmark = pytest.mark.filterwarnings("ignore::scoresde.errors.ScoreSDEWarning")

THREADS = ["--threads", str(torch.get_num_threads())]
TINY = [
    "--set=data.n=40",
    "--set=net.options={channels: 8, multipliers: [1], blocks: 1, num_groups: 2, dropout: 0.0}",
    "--set=train.batch_size=4",
    "--minutes=0.005",
]
SMALL = ["--images=6", "--check=3", "--flow-calls=18", "--samples=24", "--calls=2,3", "--epochs=1"]


def write_idx(path, array):
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Write idx files of 48 training and 32 test images.

    They have 8 x 8 pixels and are bright above or below.
    """
    folder, generator = tmp_path_factory.mktemp("idx"), np.random.default_rng(0)
    for part, n in (("train", 48), ("t10k", 32)):
        labels = np.arange(n, dtype=np.uint8) % 2
        images = generator.integers(0, 100, (n, 8, 8), dtype=np.uint8)
        images[labels == 0, :4] += 150
        images[labels == 1, 4:] += 150
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="module")
def run(fashion, tmp_path_factory):
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    real.main(["--data", str(fashion), "--out", str(folder), *TINY, *SMALL, *THREADS])
    return folder


@pytest.mark.slow
def test_a_run_keeps_everything(run):
    kept = {path.name for path in run.iterdir()}
    assert kept >= {"config.yaml", "log.jsonl", "checkpoints", "classifier", "results.json", "likelihood.csv"}
    assert kept >= {"samples-2.npz", "samples-3.npz", "nearest.npz", "sheet.png", "real.md", "real.csv"}
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"train", "likelihood", "frechet", "sheet"}
    assert results["train"]["minutes"] == 0.005
    found = results["likelihood"]
    assert (found["nfe"], found["n"], found["check"]["calls"]) == (18, 6, 36)
    with (run / "likelihood.csv").open() as file:
        bits = [float(row["bits_per_dim"]) for row in csv.DictReader(file)]
    assert found["prefixes"][0]["value"] == pytest.approx(np.mean(bits))
    assert found["prefixes"][0]["stderr"] == pytest.approx(np.std(bits, ddof=1) / 6**0.5)
    assert [(row["calls"], row["n"]) for row in results["frechet"]["samples"]] == [(2, 24), (3, 24)]
    text = (run / "real.md").read_text()
    assert " weights, on cpu; " in text
    for line in ("## Training", "## Bits/dim", "## Frechet distance", "noise of sd 16", "## Nearest training images"):
        assert line in text


@pytest.mark.slow
def test_a_part_is_run_again_and_another_run_is_compared(run, fashion, tmp_path, capsys):
    """Repeat parts with another training seed.

    The first run's classifier is used, and the differences are paired.
    """
    other = tmp_path / "two"
    options = ["--data", str(fashion), "--out", str(other), *SMALL, *THREADS]
    real.main([*options, *TINY, "--seed=1", "--parts=train,frechet", "--classifier", str(run)])
    assert not (other / "classifier").exists()
    before = (other / "samples-2.npz").read_bytes()
    real.main([*options, "--parts=likelihood,frechet", "--classifier", str(run), "--against", str(run)])
    assert (other / "samples-2.npz").read_bytes() == before
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (run, other))
    ours, theirs = (np.array(found["likelihood"]["bits"]) for found in (second, first))
    (row,) = second["against"]["rows"]
    assert row["value"] == pytest.approx((ours - theirs).mean())
    assert row["stderr"] == pytest.approx((ours - theirs).std(ddof=1) / 6**0.5)
    assert first["frechet"]["real"] == second["frechet"]["real"]
    with pytest.raises(ArgumentError, match=r"`--out` must be .*, got .*train\.seed = 1"):
        real.main([*options, *TINY])
    with pytest.raises(ArgumentError, match=r"`--out` must be .*, got .*data\.source = "):
        real.main(["--out", str(other), "--data", "elsewhere", *THREADS])


def test_figures_do_not_depend_on_the_batch_and_are_paired(fashion):
    """Compare image by image, with the same noise.

    Other batches, a prefix, and other numbers of calls.
    """
    _, test = real_measures.load(fashion)
    mean = test.moments()[0].flatten()[None]
    model = GaussianMixture(mean, torch.tensor(0.09)).model(VPSDE())
    image = Data("image", test.raw.flatten(1), num_values=256)
    settings = {"calls": 30, "scaling": Scaling.for_integers(256)}
    whole = real_measures.likelihood(model, image.raw[:8], batch=8, **settings)
    part = real_measures.likelihood(model, image.raw[:5], batch=2, **settings)
    assert torch.allclose(part.bits, whole.bits[:5], atol=1e-6)
    finer = real_measures.likelihood(model, image.raw[:8], **{**settings, "calls": 60})
    assert torch.allclose(finer.bits, whole.bits, atol=2e-3)

    some, _ = real_measures.draw(model, 6, (64,), 4, scaling=settings["scaling"], batch=6)
    again, _ = real_measures.draw(model, 4, (64,), 4, scaling=settings["scaling"], batch=3)
    assert torch.equal(again, some[:4])
    assert some.dtype == torch.uint8


def test_nearest_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    items, queries = torch.rand(50, 7, generator=generator), torch.rand(9, 7, generator=generator)
    distances, index = real_measures.nearest(queries, items, chunk=4)
    every = torch.cdist(queries.double(), items.double())
    assert torch.equal(index, every.argmin(1))
    assert torch.allclose(distances, every.amin(1), atol=1e-6)
    assert real_measures.nearest(items[:3], items)[0].max() < 1e-6


def test_memorised_images_are_found():
    """Check the two figures for fresh images and for copies.

    2000 fresh distances give 1 % and 1/2 (within 4 standard errors, 1 seed of 10,000 fails); copies do not.
    """
    generator = torch.Generator().manual_seed(0)
    test, fresh = torch.rand(2, 2000, generator=generator, dtype=torch.float64) + 1
    found = real_measures.memory(fresh, test)
    assert abs(found.near.value - 0.01) < 4 * found.near.stderr < 0.02
    assert abs(found.area.value - 0.5) < 4 * found.area.stderr < 0.05
    copies = torch.where(torch.arange(2000) < 200, 0.1, fresh)
    found = real_measures.memory(copies, test)
    assert found.near.value == pytest.approx(0.109, abs=0.005)
    assert found.area.value == pytest.approx(0.55, abs=0.02)


def test_errors_name_the_mistake(fashion, tmp_path):
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        real.main(["--data", str(tmp_path), *THREADS])
    with pytest.raises(UnknownNameError, match="did you mean 'frechet'"):
        real.main(["--parts", "frechett"])
    with pytest.raises(ArgumentError, match=r"`--images` must be .*, got 1"):
        real.main(["--images", "1"])
    with pytest.raises(RunFolderError, match="does not exist"):
        real.main(["--data", str(fashion), "--out", str(tmp_path / "none"), "--parts", "sheet", *THREADS])
