"""Pictures are valid PNGs that show their input.

Input is arrays and tensors, one item or many.
"""

import io

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.app import plots
from scoresde.app.plots.curves import smoothed
from scoresde.app.plots.style import MISSING
from scoresde.errors import ArgumentError, ShapeError
from tests.marks import first_fast

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(200, 2))
IMAGES = RNG.random((6, 1, 8, 8))
GRID = np.linspace(-2, 2, 21)
LOG_P = -0.5 * (GRID[:, None] ** 2 + GRID[None, :] ** 2)
T = np.linspace(0, 1, 50)


def pixels(data: bytes) -> np.ndarray:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


DRAWN = {
    "image_grid": lambda f: plots.image_grid(f(IMAGES)),
    "captions": lambda f: plots.image_grid(f(IMAGES), columns=3, captions=list("abcdef")),
    "one image": lambda f: plots.image_grid(f(IMAGES[:1])),
    "side_by_side": lambda f: plots.side_by_side(f(IMAGES), f(IMAGES[:4])),
    "strip": lambda f: plots.strip([(t, f(IMAGES)) for t in (0.0, 0.5, 1.0)]),
    "strip of many": lambda f: plots.strip([(t, f(IMAGES)) for t in np.linspace(0, 1, 12)]),
    "columns": lambda f: plots.columns_of_images({"truth": [f(IMAGES)], "samples": [f(1 - IMAGES), f(IMAGES)]}),
    "rows": lambda f: plots.rows_of_images({"a": f(IMAGES), "a long name": f(1 - IMAGES)}),
    "restored points": lambda f: plots.restored_points(f(POINTS), f(POINTS[:3]), f(POINTS[:60].reshape(3, 20, 2))),
    "restored curves": lambda f: plots.restored_curves(*(f(T[None]) for _ in range(4)), f(T[None, None])),
    "loss_curve": lambda f: plots.loss_curve(f(np.arange(50)), f(np.exp(-T) + 0.1)),
    "loss_curve held out": lambda f: plots.loss_curve(
        f(np.arange(50)), f(np.exp(-T)), held_out=(f(T[[9, 49]]), f(T[[9, 49]]))
    ),
    "loss_curve ema": lambda f: plots.loss_curve(f(np.arange(50)), f(np.exp(-T) - 0.5), ema=f(np.exp(-T) - 0.5)),
    "histograms": lambda f: plots.histograms({"a": f(POINTS[:, 0]), "b": f(POINTS[:50, 1] + 3)}, "bits/dim"),
    "one value": lambda f: plots.histograms({"a": f(np.array([2.0]))}, "bits/dim"),
    "scatter_pair": lambda f: plots.scatter_pair(f(POINTS), f(POINTS + 0.1)),
    "score_field": lambda f: plots.score_field(f(POINTS), f(-POINTS)),
    "score_field samples": lambda f: plots.score_field(f(POINTS), f(-POINTS), background=f(POINTS)),
    "score_field density": lambda f: plots.score_field(f(POINTS), f(-POINTS), (f(GRID), f(GRID), f(LOG_P)), "t = 0"),
    "density_image": lambda f: plots.density_image(f(GRID), f(GRID), f(LOG_P), points=f(POINTS)),
    "sde_curves": lambda f: plots.sde_curves(f(T), {"VP": (f(1 - T), f(T)), "VE": (f(T * 0 + 1), f(50 * T))}),
}


@first_fast("name", DRAWN)
def test_tensor_and_array_draw_the_same_picture(name, monkeypatch):
    monkeypatch.setitem(plots.STYLE, "figure.dpi", 80)
    picture = pixels(DRAWN[name](np.asarray))
    assert picture.std() > 5  # not blank
    np.testing.assert_array_equal(
        picture, pixels(DRAWN[name](lambda a: torch.tensor(a, requires_grad=a.dtype == float)))
    )


@pytest.mark.slow
def test_missing_pixels_are_blue_and_names_stand_left_of_rows():
    gaps = IMAGES.copy()
    gaps[2, 0, :4] = np.nan
    whole, seen = (pixels(plots.columns_of_images({"a": [images], "b": [IMAGES]})) for images in (IMAGES, gaps))
    changed = (whole != seen).any(2)
    assert 0 < changed.mean() < 0.06
    assert np.abs(seen[changed] - 255 * np.array(MISSING)).max() <= 1
    with_name, without = (pixels(plots.rows_of_images({name: IMAGES})) for name in ("digit", ""))
    assert with_name.shape[1] > without.shape[1]
    assert (with_name[:, : with_name.shape[1] // 20] < 128).any()


def test_half_precision_tensors_are_drawn():
    assert pixels(plots.image_grid(torch.tensor(IMAGES, dtype=torch.bfloat16))).std() > 5


def test_matplotlib_settings_are_restored():
    before = dict(matplotlib.rcParams)
    plots.loss_curve([0, 1], [2.0, 1.0])
    assert dict(matplotlib.rcParams) == before


def test_pixels_are_whole_squares_of_the_right_grey():
    image = np.array([[0.0, 1.0], [0.4, 0.2]])[None, None]
    picture = pixels(plots.image_grid(image)).mean(axis=2)
    values, counts = np.unique(picture, return_counts=True)
    assert set(values) == {0.0, 51.0, 102.0, 255.0}
    assert counts[0] == counts[1] == counts[2]  # every pixel grows by the same factor, and edges stay sharp


def test_colours_and_transparency():
    red = np.zeros((1, 3, 4, 4))
    red[:, 0] = 1
    assert {tuple(p) for p in pixels(plots.image_grid(red)).reshape(-1, 3)} == {(255, 0, 0), (255, 255, 255)}
    clear = np.zeros((1, 4, 4, 4))
    assert (pixels(plots.image_grid(clear)) == 255).all()


@first_fast(("n", "size"), [(1, 8), (64, 8), (400, 32), (4, 300)])
def test_grids_of_any_number_stay_near_the_page_width(n, size):
    height, width, _ = pixels(plots.image_grid(np.zeros((n, 1, size, size)))).shape
    assert 300 < width < 2200
    assert 300 < height < 2200


def test_values_outside_the_range_are_clipped():
    inside = pixels(plots.image_grid(np.array([[0.0, 1.0]])[None, None]))
    np.testing.assert_array_equal(inside, pixels(plots.image_grid(np.array([[-3.0, 7.0]])[None, None])))


@pytest.mark.slow
def test_stray_samples_do_not_shrink_the_frame():
    far = np.concatenate([POINTS, [[1e6, 1e6], [np.nan, 0]]])
    edge = POINTS.max(axis=0) + 0.25 * np.ptp(POINTS, axis=0)
    near = np.concatenate([POINTS, [edge + 1e-9]])
    assert np.abs(pixels(plots.scatter_pair(POINTS, far)) - pixels(plots.scatter_pair(POINTS, near))).mean() < 0.5


def test_arrows_point_along_the_vectors():
    """Compare arrows to the right with arrows to the left.

    They add ink on opposite sides of their tails: the pictures are mirror images.
    """
    tails = np.array([[-1.0, 0.0], [1.0, 0.0]])
    right = pixels(plots.score_field(tails, np.array([[3.0, 0], [3.0, 0]]))).mean(axis=2)
    left = pixels(plots.score_field(tails, np.array([[-3.0, 0], [-3.0, 0]]))).mean(axis=2)
    ink = 200.0
    columns_right, columns_left = np.nonzero(right < ink)[1], np.nonzero(left < ink)[1]
    assert columns_right.mean() > columns_left.mean() + 10


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: plots.image_grid(np.zeros((8, 8))), ShapeError, "images"),
        (lambda: plots.image_grid(np.zeros((0, 1, 8, 8))), ShapeError, "images"),
        (lambda: plots.image_grid(np.zeros((2, 2, 8, 8))), ShapeError, "images"),
        (
            lambda: plots.image_grid(np.full((1, 1, 2, 2), np.nan)),
            ArgumentError,
            "`images` must be .*, got 4 non-finite",
        ),
        (lambda: plots.image_grid(IMAGES, columns=0), ArgumentError, "columns"),
        (lambda: plots.image_grid(IMAGES, captions=["a"]), ArgumentError, "captions"),
        (lambda: plots.image_grid("text"), ArgumentError, "images"),
        (lambda: plots.side_by_side(IMAGES, IMAGES[..., :4]), ShapeError, "samples"),
        (lambda: plots.columns_of_images({}), ArgumentError, "blocks"),
        (lambda: plots.columns_of_images({"a": [IMAGES], "b": [IMAGES[:2]]}), ShapeError, "blocks"),
        (lambda: plots.rows_of_images({"a": IMAGES, "b": IMAGES[:2]}), ShapeError, "rows"),
        (lambda: plots.restored_points(POINTS, POINTS[:7], np.zeros((7, 2, 2))), ArgumentError, "truth"),
        (lambda: plots.restored_points(POINTS, POINTS[:3], np.zeros((2, 2, 2))), ShapeError, "samples"),
        (lambda: plots.restored_curves(*[np.zeros((1, 4))] * 4, np.zeros((1, 2, 3))), ShapeError, "samples"),
        (lambda: plots.strip([]), ArgumentError, "states"),
        (lambda: plots.strip([(0, IMAGES), (1, IMAGES[:2])]), ShapeError, r"states\[1\]"),
        (lambda: plots.loss_curve([1, 2], [1.0]), ShapeError, "loss"),
        (lambda: plots.loss_curve([1, 2], [1.0, 2.0], held_out=([1], [1.0, 2.0])), ShapeError, "held_out"),
        (lambda: plots.moving_images([]), ArgumentError, "states"),
        (lambda: plots.moving_points([]), ArgumentError, "states"),
        (lambda: plots.loss_curve([1, 2], [1.0, 2.0], ema=[1.0]), ShapeError, "ema"),
        (lambda: plots.histograms({}, "x"), ArgumentError, "values"),
        (lambda: plots.histograms({"a": [1.0, np.inf]}, "x"), ArgumentError, r"values\['a'\]"),
        (lambda: plots.scatter_pair(np.zeros((3, 3)), POINTS), ShapeError, "real"),
        (lambda: plots.score_field(POINTS, POINTS[:5]), ShapeError, "vectors"),
        (lambda: plots.density_image(GRID, GRID, LOG_P[:5]), ShapeError, "log_density"),
        (lambda: plots.density_image(GRID, GRID, LOG_P * np.nan), ArgumentError, "log_density"),
        (lambda: plots.sde_curves(T, {"VP": (T, T[:3])}), ShapeError, "sigma"),
    ],
)
def test_bad_input_names_the_argument(call, error, named):
    with pytest.raises(error, match=named):
        call()


def test_non_finite_losses_are_left_out():
    steps, loss = np.arange(40), np.linspace(2, 1, 40)
    loss[7] = np.nan
    assert pixels(plots.loss_curve(steps, loss)).std() > 5


def test_smoothing_of_a_constant_is_the_constant():
    np.testing.assert_allclose(smoothed(np.full(100, 3.0)), 3.0, rtol=1e-12)


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: plots.moving_images([s * IMAGES for s in (0.0, 0.5, 1.0)]),
        lambda: plots.moving_points([s * POINTS for s in (2.0, 1.5, 1.0)]),
    ],
    ids=("images", "points"),
)
def test_moving_pictures_have_a_frame_for_each_state(drawn):
    gif, still = drawn()
    with Image.open(io.BytesIO(gif)) as moving:
        assert moving.n_frames == 3
        assert moving.info["loop"] == 0
        size = moving.size
        frames = []
        for k in range(3):
            moving.seek(k)
            frames.append(np.asarray(moving.convert("RGB"), dtype=float))
        assert moving.info["duration"] > 1000  # the last frame stays
    assert np.abs(frames[0] - frames[2]).mean() > 1
    assert np.abs(pixels(still) - frames[2]).mean() < 1
    assert pixels(still).shape[:2] == size[::-1]


def test_moving_images_show_their_pixels():
    _, still = plots.moving_images([IMAGES[:4]])
    shown = pixels(still)
    scale = shown.shape[0] // 18  # two rows of 8 pixels and a gap each
    first = shown[: 8 * scale, : 8 * scale, 0].reshape(8, scale, 8, scale).mean((1, 3)) / 255
    assert np.abs(first - IMAGES[0, 0]).max() < 0.1  # 16 colours
