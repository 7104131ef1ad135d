"""A script that turns a pickle of EDM or EDM2 into a model without code.

Such a pickle is a program: to read it is to run it. Nothing else in scoresde does so. Run this where you trust the
file, in a checkout of EDM's code, which the pickle needs::

    python -m scoresde.interop.edm_pickle edm-cifar10-32x32-uncond-vp.pkl folder

The folder then has weights and JSON alone. ``ScoreModel.from_pretrained(folder, net=EDMPrecond)`` loads it, with the
class of EDM's code.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from scoresde.errors import CheckpointError
from scoresde.models import ScoreModel


def convert(path: str | Path, folder: str | Path) -> None:
    """Unpickle a network of EDM, WHICH RUNS THE CODE IN THE FILE, and save it.

    Args:
        path: The pickle, with the entry "ema".
        folder: Folder of the model to write.

    Raises:
        CheckpointError: The file has no entry "ema".
    """
    with open(path, "rb") as file:
        content = pickle.load(file)
    net = content.get("ema") if isinstance(content, dict) else None
    if net is None:
        raise CheckpointError("path", f"{path}, without an entry 'ema'", "a pickle of EDM or EDM2")
    ScoreModel.from_edm(net.float()).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m scoresde.interop.edm_pickle PICKLE FOLDER")
    convert(*sys.argv[1:])
