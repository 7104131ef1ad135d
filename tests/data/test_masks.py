"""Masks from image files."""

import pytest
import torch

from scoresde.data import load_mask
from scoresde.errors import DataError


def test_a_mask_is_loaded_from_a_file(tmp_path):
    from PIL import Image

    mask = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) > 0
    Image.fromarray((mask.numpy() * 255).astype("uint8")).save(tmp_path / "mask.png")
    Image.fromarray((mask.numpy() * 200).astype("uint8")).save(tmp_path / "grey.png")
    assert torch.equal(load_mask(tmp_path / "mask.png", (3, 4, 6)), mask)
    Image.new("L", (6, 4)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, shape, what in (
        ("mask.png", (4, 5), "6x4 pixels"),
        ("grey.png", (4, 6), "grey value 200"),
        ("none.png", (4, 6), "none.png"),
        ("text.png", (4, 6), "image file"),
        ("black.png", (4, 6), "black everywhere"),
    ):
        with pytest.raises(DataError, match=what):
            load_mask(tmp_path / name, shape)
