"""Files written all or nothing, and tensors read without running code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder that replaces ``folder`` if the block succeeds.

    After a failure (a full disk, an interrupt) ``folder`` is unchanged and the new folder is removed.

    Raises:
        CheckpointError: The folder cannot be written. The message names the cause.
    """
    # 1. fill a hidden neighbour, 2. flush it to the disk, 3. exchange the two, 4. remove what is left over
    folder = Path(folder)
    new = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.new"
    old = new.with_suffix(".old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        yield new
        for file in new.iterdir():
            _sync(file)
        _sync(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise CheckpointError("folder", f"{folder} ({error})", "a writable folder") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write ``content`` to ``path`` all or nothing; return the path.

    A temporary file beside ``path`` takes the content and then replaces ``path``. Parent folders are created.

    Args:
        path: File to write.
        content: Bytes, or text, which is encoded as UTF-8.

    Raises:
        OSError: The file cannot be written. The old file is unchanged and the temporary one removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's 0600 would hide a report from other users
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors.

    Raises:
        OSError: The disk is full, or the path cannot be written.
    """
    from safetensors.torch import save

    path.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    A pickle, which could run code, is never read.

    Raises:
        CheckpointError: The file is missing, a pickle, truncated, or foreign.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError("file", f"{path} ({error.strerror})", "a readable safetensors file") from error
    if content.startswith(_PICKLE_STARTS):
        raise CheckpointError("file", f"{path}, which is a pickle", "a safetensors file (a pickle can run code)")
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError("file", f"{path} ({error})", "a complete safetensors file") from error


def read_json(path: Path, argument: str) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: The file.
        argument: What the caller's user gave, named by the message.

    Raises:
        CheckpointError: The file is missing, is not JSON, or holds no object.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        got = f"{path.parent} ({path.name}: {error.strerror})"
        raise CheckpointError(argument, got, f"a folder with {path.name}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(argument, f"{path} ({error})", "valid JSON") from error
    if not isinstance(content, dict):
        raise CheckpointError(argument, f"{path}, a JSON {type(content).__name__}", "a JSON object")
    return content
