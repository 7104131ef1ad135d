"""Datasets by name: those of Hugging Face, and those of torchvision.

``hf:mnist``, ``hf:user/name``, ``hf:user/name:configuration`` and ``torchvision:CIFAR10`` are such names. They are
downloaded at the first use, into the cache of their library; offline they come from there.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scoresde.argument_types import checked
from scoresde.data.dataset import Data
from scoresde.data.foreign import LABEL_KEYS, X_KEYS, MapStyle, from_dataset
from scoresde.errors import DataError, UnknownNameError
from scoresde.extras import optional

HOSTS = ("hf", "torchvision")
TEST_SPLITS = ("test", "validation", "valid")


def is_hosted(source: object) -> bool:
    """Return whether a source is the name of a hosted dataset."""
    host, colon, _ = str(source).partition(":")
    return bool(colon) and host in HOSTS


def load_hosted(
    source: str, size: tuple[int, int] | None = None, grayscale: bool = False, n: int | None = None
) -> tuple[Data, Data | None]:
    """Return the training set of a hosted dataset, and its test set.

    Args:
        source: Name, see the head of this file.
        size: Height and width to which images are cropped and resized. None: as they are.
        grayscale: Whether to convert images to gray.
        n: Read the first n items only. None: all.

    Raises:
        MissingExtraError: The library is not installed.
        DataError: The dataset cannot be loaded; the message has the library's reason.
    """
    host, _, name = source.partition(":")
    parts = _splits_of_hugging_face(name) if host == "hf" else _splits_of_torchvision(name)
    read = [from_dataset(_Pictures(part, size, grayscale), name, n=n) for part in parts]
    return read[0], read[1] if len(read) > 1 else None


class _Pictures:
    """A dataset whose images have one mode and perhaps one size.

    Other entries than x and the label, such as texts, are left out.
    """

    def __init__(self, dataset: MapStyle, size: tuple[int, int] | None, grayscale: bool):
        self.dataset, self.size, self.mode = dataset, size, "L" if grayscale else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            keys = [next((key for key in keys if key in item), None) for keys in (X_KEYS, LABEL_KEYS)]
            return {key: self._picture(item[key]) for key in keys if key is not None} or item
        if isinstance(item, (tuple, list)) and item:
            return (self._picture(item[0]), *item[1:2])
        return self._picture(item)

    def _picture(self, x: Any) -> Any:
        if not hasattr(x, "getbands"):  # no image of Pillow
            return x
        from PIL import Image, ImageOps

        mode = self.mode or ("L" if x.mode in ("1", "L", "LA") else "RGB")
        x = x if x.mode == mode else x.convert(mode)
        return x if self.size is None else ImageOps.fit(x, self.size[::-1], Image.Resampling.LANCZOS)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def _loaded(name: str, split: str, *, streaming: bool = False) -> Any:
    """Return a split of a dataset of Hugging Face.

    Raises:
        DataError: The library cannot load it.
    """
    library = optional("datasets")
    path, _, configuration = name.partition(":")
    try:
        return library.load_dataset(path, configuration or None, split=split, streaming=streaming)
    except ImportError:
        raise
    except Exception as error:  # of many kinds, from the network to the builder
        reason = " ".join(str(error).split())[:300]
        expected = "the name of a dataset on the hub, or one in the cache if there is no network"
        raise DataError("source", f"hf:{name}, split {split!r} ({type(error).__name__}: {reason})", expected) from error


def _splits_of_hugging_face(name: str) -> list[MapStyle]:
    """Return the training split and, if there is one, a test split."""
    found = [_loaded(name, "train")]
    for split in TEST_SPLITS:
        with contextlib.suppress(DataError):
            return [*found, _loaded(name, split)]
    return found


@checked
def stream_hosted(source: str, split: str = "train") -> Any:
    """Return a stream of a dataset of Hugging Face. ::

        Trainer(model, objective, config).fit(stream_hosted("hf:imagenet-1k"))

    The dataset is never downloaded whole.

    Args:
        source: ``"hf:name"`` or ``"hf:name:configuration"``.
        split: Name of the split, default "train".

    Returns:
        An ``IterableDataset`` of the library ``datasets``.

    Raises:
        MissingExtraError: The library is not installed.
        DataError: The dataset cannot be loaded, or another source.
    """
    host, _, name = source.partition(":")
    if host != "hf" or not name:
        raise DataError("source", repr(source), "'hf:' and the name of a dataset of Hugging Face")
    return _loaded(name, split, streaming=True)


# ---- torchvision -----------------------------------------------------------------------------------------------------


def _folder() -> Path:
    """Return the folder of downloaded datasets, ``SCORESDE_DATA`` if set."""
    return Path(os.environ.get("SCORESDE_DATA", Path.home() / ".cache" / "scoresde"))


def _splits_of_torchvision(name: str) -> list[MapStyle]:
    """Return the training set of a dataset of torchvision, and its test set."""
    library = optional("torchvision.datasets", "datasets")
    known = [one for one in library.__all__ if one[0].isupper()]
    if name not in known:
        raise UnknownNameError("source", f"torchvision:{name}", [f"torchvision:{one}" for one in known])
    return list(_made(getattr(library, name), name))


def _made(dataset: Any, name: str) -> Iterator[MapStyle]:
    """Yield the training set and the test set, as the class has them."""
    taken = inspect.signature(dataset).parameters
    if "train" in taken:
        kinds: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in taken:
        kinds = [{"split": "train"}, {"split": "test"}]
    else:
        kinds = [{}]
    download = {"download": True} if "download" in taken else {}
    for kind in kinds:
        try:
            yield dataset(str(_folder() / name), **kind, **download)
        except ImportError:
            raise
        except Exception as error:  # of many kinds, from the network to the format
            reason = " ".join(str(error).split())[:300]
            expected = f"a dataset that can be downloaded, or that is in {_folder() / name}"
            raise DataError("source", f"torchvision:{name} ({type(error).__name__}: {reason})", expected) from error
