"""Masks from names and files."""

import numpy as np
import pytest
import torch

from scoresde.app.masks import mask_of, space_axes
from scoresde.errors import ArgumentError, DataError, ShapeError


def test_named_masks_lie_in_space():
    half, center = mask_of("half", (3, 4, 6), image=True), mask_of("center", (3, 4, 6), image=True)
    assert half.shape == center.shape == (3, 4, 6)
    assert torch.equal(half[0], torch.arange(4)[:, None].expand(4, 6) < 2)
    assert center[0].logical_not().nonzero().tolist() == [[row, column] for row in (1, 2) for column in (1, 2, 3)]
    assert torch.equal(half, half[:1].expand(3, 4, 6))
    assert mask_of("half", (2,), image=False).tolist() == [True, False]
    assert mask_of("center", (2,), image=False).tolist() == [False, True]
    assert mask_of("half", (2, 5), image=False).tolist() == [[True, True, False, False, False]] * 2
    assert [space_axes(*of) for of in (((4, 6), True), ((4, 6), False), ((3,), False), ((3, 4, 6), False))] == [
        2,
        1,
        1,
        2,
    ]


def test_random_masks_have_their_share_and_follow_the_seed():
    masks = [mask_of("random:0.3", (3, 10, 10), image=True, seed=seed) for seed in (0, 0, 1)]
    assert [int(mask.sum()) for mask in masks] == [90, 90, 90]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(masks[0], masks[0][:1].expand(3, 10, 10))


def test_masks_from_files(tmp_path):
    from PIL import Image

    mask = np.random.default_rng(0).random((4, 6)) < 0.5
    Image.fromarray((mask * 255).astype("uint8")).save(tmp_path / "mask.png")
    for name, values in (("bool", mask), ("int", mask.astype(int)), ("float", mask.astype("float32"))):
        np.save(tmp_path / f"{name}.npy", values)
        assert np.array_equal(mask_of(str(tmp_path / f"{name}.npy"), (3, 4, 6), image=True), np.stack([mask] * 3))
    assert np.array_equal(mask_of(str(tmp_path / "mask.png"), (3, 4, 6), image=True), np.stack([mask] * 3))


def test_bad_masks_are_refused(tmp_path):
    from PIL import Image

    for name, values in {
        "grey": np.full((4, 6), 0.5),
        "nan": np.full((4, 6), np.nan),
        "none": np.zeros((4, 6)),
        "all": np.ones((4, 6)),
        "words": np.array(["a", "b"]),
        "large": np.eye(5),
    }.items():
        np.save(tmp_path / f"{name}.npy", values)
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    Image.fromarray(np.full((4, 6), 200, "uint8")).save(tmp_path / "grey.png")
    Image.fromarray(np.full((5, 5), 255, "uint8")).save(tmp_path / "large.png")
    for text, error, what in (
        ("grey.npy", ArgumentError, "of 0 and 1, got"),
        ("nan.npy", ArgumentError, "of 0 and 1, got"),
        ("none.npy", ArgumentError, "0 everywhere"),
        ("all.npy", ArgumentError, "1 everywhere"),
        ("words.npy", DataError, "<U1"),
        ("large.npy", ShapeError, r"\(5, 5\)"),
        ("objects.npy", DataError, "objects.npy"),
        ("text.npy", DataError, "text.npy"),
        ("missing.npy", DataError, "missing.npy"),
        ("grey.png", DataError, "grey value 200"),
        ("large.png", DataError, "5x5 pixels"),
        ("missing.png", DataError, "missing.png"),
        ("random:1.5", ArgumentError, "between 0 and 1"),
        ("random:few", ArgumentError, "between 0 and 1"),
        ("halve", DataError, "half, center"),
    ):
        path = text if ":" in text or "." not in text else str(tmp_path / text)
        with pytest.raises(error, match=f"^`mask` must be .*{what}"):
            mask_of(path, (1, 4, 6), image=True)
    with pytest.raises(ArgumentError, match="0 everywhere"):
        mask_of("half", (1,), image=False)
