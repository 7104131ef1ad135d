"""Tables with named columns: .csv and .parquet files, frames of pandas.

Pandas is the extra ``tables``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.argument_types import checked
from scoresde.data.arrays import BOMB_BYTES, BOMB_RATIO
from scoresde.data.dataset import Data
from scoresde.errors import DataError, DTypeError, MissingExtraError, UnknownNameError
from scoresde.extras import optional

SUFFIXES = (".csv", ".parquet")
MOST_CLASSES = 1000  # different values of a column of labels


@checked
def load_table(
    path: str | Path,
    columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    missing: bool = False,
) -> Data:
    """Load a .csv or .parquet file with named columns.

    Args:
        path: the file. The first line of a .csv names the columns.
        columns, label_column, missing: see :func:`from_frame`.

    Raises:
        MissingExtraError: pandas is not installed.
        DataError: a missing or damaged file, a .csv whose first line is numbers, or as :func:`from_frame`.
    """
    pandas, path = optional("pandas", "tables"), Path(path)
    read = {".csv": pandas.read_csv, ".parquet": _read_parquet}.get(path.suffix.lower())
    if read is None:
        raise DataError("path", path, f"a table, {' or '.join(SUFFIXES)}")
    try:
        frame = read(path)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError("path", path, "an existing .csv or .parquet file") from error
    except ImportError as error:  # the reader of parquet files
        raise MissingExtraError("pyarrow", "tables") from error
    except (OSError, ValueError, MemoryError, OverflowError) as error:  # pandas's and pyarrow's errors are ValueErrors
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError("path", f"{path} ({first})", f"an intact {path.suffix} file") from error
    if path.suffix.lower() == ".csv" and all(_is_number(name) for name in frame.columns):
        got = f"{path}, whose first line is {', '.join(map(str, frame.columns[:4]))}"
        raise DataError("path", got, "a .csv whose first line names the columns")
    return from_frame(frame, columns, label_column, missing, path.stem)


def _read_parquet(path: Path) -> Any:
    """Return the frame in a .parquet file, unless it is far larger.

    Raises:
        DataError: repeated values that take little room in the file and much in memory.
    """
    parquet = optional("pyarrow.parquet", "tables")
    with parquet.ParquetFile(path) as file:
        cells = file.metadata.num_rows * file.metadata.num_columns
    size = path.stat().st_size
    if 8 * cells > max(BOMB_BYTES, BOMB_RATIO * size):
        got = f"{path}, where {size} bytes become {cells} cells"
        raise DataError("path", got, f"a .parquet that grows by {BOMB_RATIO} times at most; save this one as .csv")
    return optional("pandas", "tables").read_parquet(path)


def _is_number(name: object) -> bool:
    """Return whether a column's name is a number, so that it may be a value."""
    try:
        float(str(name))
    except ValueError:
        return False
    return True


@checked
def from_frame(
    frame: Any,
    columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    missing: bool = False,
    name: str = "table",
) -> Data:
    """Return a frame of pandas as data, one item a row.

    Args:
        frame: the table, a ``pandas.DataFrame``.
        columns: names of the columns to learn, a sequence or a text with commas. None: all but the labels.
        label_column: column of classes: integers 0, 1, ..., or texts, which are numbered in alphabetical order. None:
            unlabelled.
        missing: whether empty cells are missing values, which the loss of a training leaves out. False: an error.
        name: the name that reports use.

    Returns:
        Vectors in double precision, with ``columns`` and perhaps ``class_names``.

    Raises:
        UnknownNameError: a column that the table does not have.
        DataError: no rows or columns; a column that is not of numbers; empty or infinite cells, unless ``missing``
            allows the empty ones; labels that are real numbers, are empty, or have more than 1000 different values.
        DTypeError: not a frame.
    """
    if not hasattr(frame, "iloc") or not hasattr(frame, "columns"):
        raise DTypeError("frame", type(frame).__name__, "a DataFrame of pandas")
    known = [str(column) for column in frame.columns]
    if len(set(known)) < len(known):
        raise DataError("frame", "columns of one name", "columns of different names")
    frame = frame.set_axis(known, axis=1)
    chosen = _chosen(known, columns, label_column)
    if not len(frame) or not chosen:
        raise DataError("frame", f"{len(frame)} rows and {len(chosen)} columns", "at least one row and one column")
    for column in chosen:
        if frame[column].dtype.kind not in "buif":  # texts, dates and categories have others
            got = f"the column {column!r} of {frame[column].dtype}"
            others = ",".join(one for one in chosen if frame[one].dtype.kind in "buif")
            raise DataError(
                "frame",
                got,
                f"columns of numbers (columns={others!r} leaves out the others; label_column names classes)",
            )
    raw = torch.from_numpy(np.array(frame[chosen].to_numpy(np.float64, na_value=np.nan)))
    labels, names = (None, None) if label_column is None else _classes(frame[label_column], label_column)
    return Data(name, raw, labels, class_names=names, columns=tuple(chosen), missing=missing)


def _chosen(known: list[str], columns: str | Sequence[str] | None, label_column: str | None) -> list[str]:
    """Return the names of the columns to learn.

    Raises:
        UnknownNameError: a column that the table does not have.
    """
    if label_column is not None and label_column not in known:
        raise UnknownNameError("label_column", label_column, known)
    if columns is None:
        return [column for column in known if column != label_column]
    chosen = [part.strip() for part in columns.split(",")] if isinstance(columns, str) else list(columns)
    for column in chosen:
        if not isinstance(column, str) or column not in known:
            raise UnknownNameError("columns", str(column), known)
    return chosen


def _classes(column: Any, name: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return the classes in a column, and their names if they are texts."""
    if column.isna().any():
        row = int(column.isna().to_numpy().argmax())
        raise DataError("label_column", f"an empty cell in row {row} of {name!r}", "a class in each row")
    kind = column.dtype.kind
    if kind in "bui":
        return torch.from_numpy(np.array(column.to_numpy(np.int64))), None
    if kind in "fcmM":
        raise DataError("label_column", f"{name!r} of {column.dtype}", "a column of integers or texts")
    texts = column.astype(str)
    names = tuple(sorted(set(texts)))
    if len(names) > MOST_CLASSES:
        expected = f"a column of at most {MOST_CLASSES} different texts"
        raise DataError("label_column", f"{name!r} of {len(names)} different texts", expected)
    numbers = {text: i for i, text in enumerate(names)}
    return torch.tensor([numbers[text] for text in texts]), names
