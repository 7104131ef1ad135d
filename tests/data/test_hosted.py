"""Datasets by name, of Hugging Face and of torchvision."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import load_data, stream_hosted
from scoresde.errors import ArgumentError, DataError, MissingExtraError, UnknownNameError
from scoresde.models import ScoreModel
from scoresde.nets import UNet
from scoresde.sde import VPSDE
from scoresde.training import DenoisingScoreMatching, Trainer, TrainerConfig


def pictures(n, size=(6, 8), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@pytest.fixture
def hub(tmp_path):
    """Return the path of a dataset with a train and a test split."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    for split, n in (("train", 10), ("test", 4)):
        columns = {"image": pictures(n), "label": [i % 2 for i in range(n)], "caption": ["text"] * n}
        made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        made.to_parquet(tmp_path / "data" / f"{split}-00000.parquet")
    return tmp_path


def test_a_dataset_of_hugging_face(hub):
    train, test = load_data(f"hf:{hub}")
    expected = torch.from_numpy(np.stack([np.asarray(one) for one in pictures(10)])).permute(0, 3, 1, 2)
    assert torch.equal(train.raw, expected)
    assert train.num_values == 256
    assert train.labels.tolist() == [0, 1] * 5
    assert (len(train), len(test)) == (10, 4)


def test_images_are_resized_and_gray(hub):
    train, test = load_data(f"hf:{hub}", size=4, grayscale=True, n=3)
    assert train.raw.shape == (3, 1, 4, 4)
    assert test.raw.shape == (4, 1, 4, 4)
    with pytest.raises(ArgumentError, match="num_values"):
        load_data(f"hf:{hub}", num_values=3)


def test_a_stream_of_hugging_face_trains(hub):
    stream = stream_hosted(f"hf:{hub}")
    model = ScoreModel(UNet((3, 6, 8), channels=8, num_groups=4, multipliers=(1,)), VPSDE())
    config = TrainerConfig(steps=3, batch_size=4, device="cpu")
    records = Trainer(model, DenoisingScoreMatching(), config).fit(stream)
    assert records is not None
    with pytest.raises(DataError, match="'hf:' and the name"):
        stream_hosted("torchvision:CIFAR10")


def test_a_dataset_that_cannot_be_loaded_says_why(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="cache if there is no network"):
        load_data(f"hf:{tmp_path / 'none'}")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for source in ("hf:mnist", "torchvision:CIFAR10"):
        with pytest.raises(MissingExtraError, match=r"scoresde\[datasets\]"):
            load_data(source)


class Vision:
    """A dataset of torchvision, with its pictures drawn here."""

    def __init__(self, root, train=True, transform=None, download=False):
        assert download
        assert root
        self.items = pictures(6 if train else 3)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index], index % 3


class Split(Vision):
    """One that names its split."""

    def __init__(self, root, split="train", download=False):
        super().__init__(root, split == "train", download=download)


class Broken(Vision):
    """One that cannot be downloaded."""

    def __init__(self, root, train=True, download=False):
        raise RuntimeError("File not found or corrupted")


@pytest.fixture
def vision(monkeypatch, tmp_path):
    made = types.ModuleType("torchvision.datasets")
    made.__all__ = ("Vision", "Split", "Broken", "wrap_dataset")
    made.Vision, made.Split, made.Broken = Vision, Split, Broken
    package = types.ModuleType("torchvision")
    package.__spec__ = object()
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", made)
    monkeypatch.setenv("SCORESDE_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["Vision", "Split"])
def test_a_dataset_of_torchvision(vision, name):
    train, test = load_data(f"torchvision:{name}")
    assert (len(train), len(test)) == (6, 3)
    assert train.raw.shape == (6, 3, 6, 8)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_wrong_names_of_torchvision_are_refused(vision):
    with pytest.raises(UnknownNameError, match="torchvision:Vision"):
        load_data("torchvision:Visoin")
    with pytest.raises(DataError, match=f"{vision.name}.*corrupted"):
        load_data("torchvision:Broken")
