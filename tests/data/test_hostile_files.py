"""Files that are small on the disk and large, deep or false inside.

Each ends in a typed error, within 100 MB.
"""

import gzip
import struct
import tracemalloc
import zipfile
import zlib

import pytest

import scoresde as S
from scoresde.app.config_files import load_config
from scoresde.errors import CheckpointError, ConfigError, DataError

BIG = 400_000_000  # bytes inside


def npy(shape, descr="|u1"):
    """Return an .npy file without its numbers."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(11 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(npy((BIG, 1)))
        for _ in range(BIG // 1_000_000):
            file.write(bytes(1_000_000))


def gzipped(path):
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">BBBBIII", 0, 0, 8, 3, 10, 28, 28))
        for _ in range(BIG // 1_000_000):
            file.write(bytes(1_000_000))


def png(path, side):
    """Write a PNG that says that it is large, and holds little."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    path.mkdir()
    (path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def aliases():
    lines = ["net:", "  options:", "    a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for one, other in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"    {other}: &{other} [{', '.join([f'*{one}'] * 9)}]")
    return "\n".join(lines)


FILES = {
    "x.npz": (zipped, "grows by 200 times at most.* become 400000128"),
    "x-idx3-ubyte.gz": (gzipped, "7840 bytes.*with more than"),
    "large.npy": (lambda path: path.write_bytes(npy((10**12, 2), "<f8") + bytes(99)), r"large\.npy"),
    "negative.npy": (lambda path: path.write_bytes(npy((-5, 2)) + bytes(99)), r"negative\.npy"),
    "deep.npy": (lambda path: path.write_bytes(npy("(" * 5000 + ")" * 5000)), r"deep\.npy"),
    "header-idx3-ubyte": (lambda path: path.write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, *[2**31] * 3)), "0 bytes"),
    "wide": (lambda path: png(path, 12_000), r"a\.png"),
    "wider": (lambda path: png(path, 60_000), r"a\.png"),
}


def refused(call, error, said):
    """Check a call's error, and the memory of Python's own blocks."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=said):
            call()
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FILES)
def test_hostile_data(tmp_path, name):
    write, said = FILES[name]
    write(tmp_path / name)
    refused(lambda: S.load_data(tmp_path / name), DataError, said)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a": ' * 100_000, '{"a": ' + "9" * 1_000_000 + "}", "\0\0"])
def test_hostile_json(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    refused(lambda: S.ScoreModel.from_pretrained(tmp_path), CheckpointError, "valid JSON")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: " + "[" * 20_000, "too many levels"),
        (aliases(), "aliases that stand for too much"),
        ("train: &t {steps: 4, x: *t}", "inside itself"),
    ],
)
def test_hostile_yaml(tmp_path, monkeypatch, text, said):
    if "levels" in said:  # the parser would take half a minute
        monkeypatch.setattr("yaml.load", None)
    (tmp_path / "c.yaml").write_text(text)
    refused(lambda: load_config(tmp_path / "c.yaml"), ConfigError, said)
