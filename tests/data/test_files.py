"""Arrays, idx files and image folders."""

import gzip
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import scoresde as S
from scoresde.data import from_array, load_array, load_idx, load_idx_folder, load_images, map_array, read_idx
from scoresde.errors import ArgumentError, DataError, DTypeError, UnknownNameError

rng = np.random.default_rng(0)
BYTES = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)


# arrays


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 5, 4), (1, 5, 4)), ((6, 5, 7, 3), (3, 5, 7)), ((6, 3, 5, 4), (3, 5, 4)), ((6, 9), (9,)), ((6,), (1,))],
)
def test_byte_arrays_become_channels_first(shape, expected):
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    data = from_array(array)
    assert (data.shape, data.num_values) == (expected, 256)
    back = data.raw.permute(0, 2, 3, 1) if shape == (6, 5, 7, 3) else data.raw.reshape(shape)
    assert np.array_equal(back.numpy(), array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">f8"])
def test_float_arrays_are_kept_as_they_are(dtype, tmp_path):
    array = rng.standard_normal((8, 5, 6)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data = load_array(tmp_path / "a.npy")
    assert (data.num_values, data.shape, data.name) == (None, (5, 6), "a")
    assert np.array_equal(data.raw.numpy(), array)


def test_number_of_values_of_integer_arrays():
    assert from_array(np.array([[0, 3]]), num_values=4).num_values == 4
    assert from_array(np.array([[True], [False]])).num_values == 2
    assert from_array(np.array([[0, 999]], dtype=">u2"), num_values=1000).raw.tolist() == [[0, 999]]
    with pytest.raises(DataError, match=r"`num_values` must be .*, got None for torch.int64"):
        from_array(np.array([[0, 3]]))
    with pytest.raises(DataError, match="a value of 18446744073709551615"):
        from_array(np.array([[2**64 - 1]], dtype=np.uint64), num_values=4)


@pytest.mark.parametrize("label_key", ["labels", "y"])
def test_npz_finds_its_array_and_labels(tmp_path, label_key):
    np.savez(tmp_path / "a.npz", pictures=BYTES, **{label_key: np.arange(6)})
    data = load_array(tmp_path / "a.npz")
    assert data.labels.tolist() == list(range(6))
    assert np.array_equal(data.raw[:, 0].numpy(), BYTES)


def test_npz_with_several_arrays_needs_a_key(tmp_path):
    np.savez(tmp_path / "a.npz", first=BYTES, second=BYTES[:3])
    assert len(load_array(tmp_path / "a.npz", key="second")) == 3
    with pytest.raises(DataError, match=r"`key` must be one of its arrays: first, second, got None"):
        load_array(tmp_path / "a.npz")
    with pytest.raises(UnknownNameError, match=r"'secnd'.*did you mean 'second'"):
        load_array(tmp_path / "a.npz", key="secnd")


def test_bad_arrays_are_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{}, None]), allow_pickle=True)
    with pytest.raises(DataError, match=r"without pickles, got .*object.npy"):
        load_array(tmp_path / "object.npy")
    np.savez(tmp_path / "object.npz", a=np.array([{}, None]))
    with pytest.raises(DataError, match=r"without pickles, got .*object.npz"):
        load_array(tmp_path / "object.npz")
    np.save(tmp_path / "whole.npy", BYTES)
    np.savez(tmp_path / "whole.npz", a=BYTES)
    for name in ("whole.npy", "whole.npz"):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes((tmp_path / name).read_bytes()[:-40])
        with pytest.raises(DataError, match=f"cut-{name}"):
            load_array(cut)
    with pytest.raises(DataError, match=r"an existing .npy or .npz file, got .*none.npy"):
        load_array(tmp_path / "none.npy")
    with pytest.raises(DataError, match=r"`key` must be .*, got 'a'"):
        load_array(tmp_path / "whole.npy", key="a")
    with pytest.raises(DTypeError, match=r"`names` must be .*, got an array of <U1"):
        from_array(np.array(["a"]), name="names")
    with pytest.raises(DTypeError, match="complex128"):
        from_array(np.array([[1j]]))
    with pytest.raises(DataError, match="1 NaN or infinite values, the first at"):
        from_array(np.array([[1.0, np.nan]]))
    with pytest.raises(DataError, match=r"`labels` must be .*, got an array of float64"):
        from_array(BYTES, labels=np.ones(6))


# idx


def write_idx(path, array, code=0x08):
    body = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_with_the_labels_beside_it(tmp_path, suffix):
    images = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", BYTES)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(6, dtype=np.uint8))
    data = load_idx(images)
    assert (data.num_values, data.shape, data.labels.tolist()) == (256, (1, 5, 4), list(range(6)))
    assert np.array_equal(data.raw[:, 0].numpy(), BYTES)


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]
)
@pytest.mark.parametrize("shape", [(7,), (3, 2), (2, 3, 2, 2)])
def test_idx_of_every_type_and_rank(tmp_path, code, dtype, shape):
    array = rng.integers(-100, 100, shape).astype(dtype)
    read = read_idx(write_idx(tmp_path / "a.idx", array, code))
    assert read.dtype.isnative
    assert np.array_equal(read, array)


def test_idx_folder(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", BYTES)
    train, test = load_idx_folder(tmp_path)
    assert (len(train), test) == (6, None)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", BYTES[:2])
    assert len(load_idx_folder(tmp_path)[1]) == 2
    write_idx(tmp_path / "t10k-images-idx3-ubyte", BYTES[:2, :3])
    with pytest.raises(DataError, match=r"t10k-images.*\(1, 3, 4\)"):
        load_idx_folder(tmp_path)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        load_idx_folder(tmp_path / "elsewhere")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_idx_files_are_refused(tmp_path, suffix):
    path = write_idx(tmp_path / f"a{suffix}", BYTES)
    whole = path.read_bytes()
    for cut in (2, 10, 60, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"`path` must be .*, got"):
            read_idx(path)
    plain = gzip.decompress(whole) if suffix else whole
    path.write_bytes(plain + b"\0")
    with pytest.raises(
        DataError, match=r"120 bytes, an array of shape \(6, 5, 4\), after its header, got .* with 121 bytes"
    ):
        read_idx(path)
    path.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12 + b"tiny")
    with pytest.raises(DataError, match="4 bytes after its header"):
        read_idx(path)
    path.write_bytes(b"PK\3\4 not idx")
    with pytest.raises(DataError, match="50 4b 03 04"):
        read_idx(path)
    with pytest.raises(DataError, match="rank 1"):
        load_idx(write_idx(path, BYTES[0, 0]))
    with pytest.raises(DataError, match="existing idx file"):
        read_idx(tmp_path / "none")


def test_idx_labels_that_do_not_fit(tmp_path):
    images = write_idx(tmp_path / "train-images-idx3-ubyte", BYTES)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    with pytest.raises(DataError, match=r"`labels` must be .*, got shape \(5,\)"):
        load_idx(images)


# image folders


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def colour(h=5, w=4):
    return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_an_image_folder_is_read_in_the_order_of_paths(tmp_path):
    pictures = {name: colour() for name in ("b.png", "a.PNG", "deep/er/c.bmp")}
    for name, array in pictures.items():
        save(tmp_path / name, array)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.png").write_text("no image either")
    data = load_images(tmp_path)
    assert (data.shape, data.num_values, data.labels, data.is_image) == ((3, 5, 4), 256, None, True)
    for raw, name in zip(data.raw, ("a.PNG", "b.png", "deep/er/c.bmp"), strict=True):
        assert np.array_equal(raw.permute(1, 2, 0).numpy(), pictures[name])


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "gif", "tiff"])
def test_image_formats(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", np.full((8, 8, 3), (200, 100, 50), np.uint8))
    raw = load_images(tmp_path).raw.float().mean((0, 2, 3))
    torch.testing.assert_close(raw, torch.tensor([200.0, 100.0, 50.0]), atol=4, rtol=0)


def test_sub_folders_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        save(tmp_path / name, colour())
    data = load_images(tmp_path)
    assert (data.labels.tolist(), data.class_names, data.classes) == ([0, 0, 1], ("cat", "dog"), 2)
    save(tmp_path / "stray.png", colour())
    assert load_images(tmp_path).labels is None


def test_gray_and_colour(tmp_path):
    gray = rng.integers(0, 256, (5, 4), dtype=np.uint8)
    save(tmp_path / "a.png", gray)
    assert np.array_equal(load_images(tmp_path).raw[0, 0].numpy(), gray)
    save(tmp_path / "b.png", colour())
    mixed = load_images(tmp_path)
    assert mixed.shape == (3, 5, 4)
    assert np.array_equal(mixed.raw[0].numpy(), np.stack([gray] * 3))
    assert load_images(tmp_path, grayscale=True).shape == (1, 5, 4)


def test_gray_of_sixteen_bits_keeps_its_values(tmp_path):
    """Read 12-bit values, as of a scanner, from PNG and TIFF, and resize them."""
    values = rng.integers(0, 4096, (6, 6)).astype(np.uint16)
    save(tmp_path / "a.png", values)
    save(tmp_path / "b.tiff", values)
    data = load_images(tmp_path, num_values=4096)
    assert (data.num_values, data.shape) == (4096, (1, 6, 6))
    assert all(np.array_equal(raw[0].numpy(), values) for raw in data.raw)
    assert load_images(tmp_path, size=3, num_values=4096).raw.float().mean() == pytest.approx(values.mean(), rel=0.1)
    with pytest.raises(DataError, match=r"`num_values` must be .*4096 of 12.*, got None for .*a\.png"):
        load_images(tmp_path)
    with pytest.raises(DataError, match=r"integers 0\.\.999"):
        load_images(tmp_path, num_values=1000)
    save(tmp_path / "c.png", np.zeros((6, 6), np.uint8))
    with pytest.raises(DataError, match=r"16-bit gray alone with num_values=4096, got the 8-bit image .*c\.png"):
        load_images(tmp_path, num_values=4096)


def png_of_deep_colour(path):
    """Write a 2x1 PNG of 16-bit RGB, which Pillow reads and cannot write."""
    rows = b"".join(b"\0" + bytes([1, 2, 3, 4, 5, 6]) for _ in range(2))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 1, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_images_that_would_lose_bits_are_refused(tmp_path):
    """Refuse floats, 32-bit integers and 16-bit colour, once black or cut."""
    for name in ("floats", "wide", "colour"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "floats" / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff, an image of floats"):
        load_images(tmp_path / "floats")
    Image.fromarray(np.full((4, 4), 120_000, np.int32)).save(tmp_path / "wide" / "a.tiff")
    with pytest.raises(DataError, match="more than 8 bits"):
        load_images(tmp_path / "wide")
    with pytest.raises(DataError, match="values from 120000"):
        load_images(tmp_path / "wide", num_values=65_536)
    png_of_deep_colour(tmp_path / "colour" / "a.png")
    with pytest.raises(DataError, match="colour of 16 bits"):
        load_images(tmp_path / "colour")


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    """Refuse PostScript and PPM in a.png: their decoders are never called."""
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", b"P6 1 1 255\nabc"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png, which cannot be read"):
            load_images(tmp_path)


def test_classes_from_the_names_of_files(tmp_path):
    for name in ("dog_0.png", "cat_0.png", "deep/cat-1.png"):
        save(tmp_path / name, colour())
    assert load_images(tmp_path).labels is None
    data = load_images(tmp_path, labels_from="names")
    assert (data.labels.tolist(), data.class_names) == ([0, 0, 1], ("cat", "dog"))
    train, _ = S.load_data(tmp_path, 1, labels_from="names")
    assert train.class_names == ("cat", "dog")
    assert load_images(tmp_path, labels_from="none").labels is None
    with pytest.raises(UnknownNameError, match="labels_from"):
        load_images(tmp_path, labels_from="name")
    save(tmp_path / "7.png", colour())
    with pytest.raises(DataError, match="1 without one"):
        load_images(tmp_path, labels_from="names")


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_layouts_of_arrays(tmp_path, dtype):
    images = rng.integers(0, 256, (5, 6, 7, 3)).astype(dtype)
    assert from_array(images).shape == (3, 6, 7)
    assert from_array(images, layout="channels-last").raw.permute(0, 2, 3, 1).tolist() == images.tolist()
    assert from_array(images, layout="channels-first").shape == (6, 7, 3)
    series = rng.integers(0, 256, (5, 100, 2)).astype(dtype)
    assert from_array(series, layout="channels-last").shape == (2, 100)
    assert from_array(series, layout="no-channels").shape == (1, 100, 2)
    volumes = rng.integers(0, 256, (5, 4, 6, 7, 2)).astype(dtype)
    assert from_array(volumes, layout="channels-last").shape == (2, 4, 6, 7)
    np.save(tmp_path / "a.npy", series)
    assert S.load_data(tmp_path / "a.npy", 1, layout="channels-last")[0].shape == (2, 100)
    mapped = map_array(tmp_path / "a.npy", layout="channels-last")
    assert mapped.shape == mapped.split(1)[0].shape == mapped.split(1)[1].shape == (2, 100)
    assert mapped.rows(torch.tensor([3]))[0].T.tolist() == series[3].tolist()


def test_ambiguous_and_wrong_layouts_are_refused():
    with pytest.raises(ArgumentError, match="both ends could be channels"):
        from_array(np.zeros((5, 3, 9, 3), np.float32))
    with pytest.raises(UnknownNameError, match="layout"):
        from_array(np.zeros((5, 3, 8), np.float32), layout="channel-last")
    with pytest.raises(ArgumentError, match="None for vectors"):
        from_array(np.zeros((5, 3), np.float32), layout="channels-last")


def test_transparency_and_orientation(tmp_path):
    save(tmp_path / "clear" / "a.png", np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8))
    assert load_images(tmp_path / "clear").raw[0, :, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]
    exif = Image.Exif()
    exif[0x0112] = 6  # a turned camera: viewers rotate by a quarter
    save(tmp_path / "turned" / "a.png", colour(5, 4), exif=exif)
    assert load_images(tmp_path / "turned").shape == (3, 4, 5)


def test_size_crops_about_the_centre(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 2:22] = 255  # antialiasing looks a little past the crop, columns 8 to 15
    save(tmp_path / "a.png", wide)
    save(tmp_path / "b.png", np.full((16, 16, 3), 255, np.uint8))
    assert load_images(tmp_path, size=4).raw.tolist() == np.full((2, 3, 4, 4), 255).tolist()
    assert load_images(tmp_path, size=(4, 6)).shape == (3, 4, 6)


def test_bad_image_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"an existing folder, got .*none"):
        load_images(tmp_path / "none")
    with pytest.raises(DataError, match=r"a folder with image files .*, got .*, without images"):
        load_images(tmp_path)
    save(tmp_path / "a.png", colour(5, 4))
    save(tmp_path / "b.png", colour(6, 7))
    with pytest.raises(
        DataError, match=r"images of one size .or size= .*, got .*a\.png of 4x5 and .*b\.png of 7x6 pixels"
    ):
        load_images(tmp_path)
    for bad in (0, -3, (4,), True, (4, 2.5)):
        with pytest.raises(ArgumentError, match=r"`size` must be .*, got"):
            load_images(tmp_path, size=bad)
    buffer = io.BytesIO()
    Image.fromarray(colour(64, 64)).save(buffer, "png")
    (tmp_path / "b.png").write_bytes(buffer.getvalue()[:500])
    with pytest.raises(DataError, match=r"b\.png, which cannot be read"):
        load_images(tmp_path, size=4)
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(DataError, match=r"b\.png, which cannot be read"):
        load_images(tmp_path, size=4)
