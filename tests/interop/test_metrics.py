"""Images in the layouts of other libraries, and their metrics."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import extras
from scoresde.errors import ArgumentError, DTypeError, MissingExtraError, ScoreSDEWarning, ShapeError
from scoresde.interop import image_metrics, write_adm_npz, write_png_folder


def images(n=40, channels=3, low=0, high=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n, channels, 4, 5), generator=generator, dtype=torch.uint8)


def means(batch):
    """Return features: the mean of each channel, and a product."""
    flat = batch.double().flatten(2).mean(2)
    return torch.cat([flat, flat[:, :1] * flat[:, 1:2] / 100], dim=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layouts_of_other_libraries(tmp_path, channels):
    pictures = images(3, channels)
    folder = write_png_folder(pictures, tmp_path / "samples")
    write_png_folder(pictures[:2], folder)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png"]
    read = np.asarray(Image.open(files[1]))
    assert np.array_equal(read if channels == 3 else read[..., None], pictures[1].permute(1, 2, 0))
    with np.load(write_adm_npz(pictures, tmp_path / "samples.npz")) as arrays:
        assert arrays["arr_0"].shape == (3, 4, 5, 3)
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"][..., :channels], pictures.permute(0, 2, 3, 1))


@pytest.mark.filterwarnings("ignore:metrics of")
def test_the_frechet_distance_is_that_of_two_gaussians():
    pytest.importorskip("torchmetrics")
    a, b = images(400), images(300, low=50, seed=1)
    found = image_metrics(a, b, means)
    x, y = means(a), means(b)
    (m, c), (n, d) = ((v.mean(0), v.T.cov()) for v in (x, y))
    values, vectors = torch.linalg.eigh(c)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()
    expected = (m - n).square().sum() + c.trace() + d.trace() - 2 * cross
    assert found["fid"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["kid"] > 0


@pytest.mark.filterwarnings("ignore:metrics of")
def test_precision_and_recall_count_neighbours():
    pytest.importorskip("torchmetrics")
    a, b = images(60), images(60, low=200, seed=1)
    far = image_metrics(a, b, means)
    same = image_metrics(a, a, means)
    assert (far["precision"], far["recall"]) == (0.0, 0.0)
    assert (same["precision"], same["recall"]) == (1.0, 1.0)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert image_metrics(a, b, means) == far  # the seed


def test_few_samples_are_warned_of():
    pytest.importorskip("torchmetrics")
    with pytest.warns(ScoreSDEWarning, match="biased upwards"):
        image_metrics(images(), images(seed=1), means)


@pytest.mark.filterwarnings("ignore:metrics of")
def test_inception_features_are_torch_fidelitys(monkeypatch):
    """Check the settings of a stand-in, as the network is a download."""
    asked = {}

    def calculate_metrics(**settings):
        asked.update(settings)
        assert settings["input1"][0].shape == (3, 4, 5)
        assert settings["input1"][0].dtype == torch.uint8
        return {"frechet_inception_distance": 3.0, "inception_score_mean": 2.0, "precision": 0.5}

    module = types.ModuleType("torch_fidelity")
    module.calculate_metrics, module.__spec__ = calculate_metrics, object()
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    found = image_metrics(images(8, 1), images(9, 1, seed=1))
    assert found == {"fid": 3.0, "is": 2.0, "precision": 0.5}
    assert (asked["kid_subset_size"], asked["cuda"], asked["prc"], len(asked["input2"])) == (8, False, True, 9)


@pytest.mark.filterwarnings("ignore:metrics of")
def test_what_is_missing_or_does_not_fit_is_named(monkeypatch, tmp_path):
    with pytest.raises(DTypeError, match="uint8"):
        write_png_folder(torch.zeros(1, 3, 4, 4), tmp_path)
    with pytest.raises(ShapeError, match="1 or 3 channels"):
        write_adm_npz(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), tmp_path / "x.npz")
    with pytest.raises(ArgumentError, match="two images"):
        image_metrics(images(1), images(), means)
    pytest.importorskip("torchmetrics")
    with pytest.raises(ShapeError, match="one row an image"):
        image_metrics(images(), images(), lambda batch: batch)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="torch_fidelity"):
        image_metrics(images(), images())
    with pytest.raises(MissingExtraError, match="torchmetrics"):
        image_metrics(images(), images(), means)
