"""Parquet files of rows, read in one place, so that every message names the file and says what to do.

pyarrow's own errors say what is wrong with the bytes, and not of which file.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_stvg.base import nesting
from verl_stvg.rows.row import VIDEO_COLUMN, Row

COLUMNS = ("data_source", "prompt", VIDEO_COLUMN, "reward_model", "extra_info")
"""Columns of a row."""
_FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)
_BATCH = 1000


class RowFileError(ValueError):
    """A file of rows that is missing or cannot be read; the message names it and the remedy."""


def open_rows(file: str | Path, needed: Iterable[str] = (), name: object = None) -> pq.ParquetFile:
    """A parquet file of rows, opened; a context manager that closes it.

    Args:
        file: where it is.
        needed: columns that it must have.
        name: what messages call it, if that is not where it is.

    Raises:
        RowFileError: no such file, no parquet file, a damaged one, or one without a needed column.
    """
    name = file if name is None else name
    path = Path(file).expanduser()
    if path.is_dir():
        raise RowFileError(f"{name}: is a folder; name the parquet files in it, such as {path / 'train.parquet'}")
    if not path.is_file():
        raise RowFileError(f"{name}: no such file; build the rows first, or correct the path")
    try:
        opened = pq.ParquetFile(path)
    except _FAULTS as error:
        raise _unreadable(name, error) from error
    if missing := [column for column in needed if column not in opened.schema_arrow.names]:
        opened.close()
        raise RowFileError(f"{name}: has no column {', '.join(missing)}; build the rows again")
    return opened


def schema_of(file: str | Path, needed: Iterable[str] = ()) -> pa.Schema:
    """Columns of a file of rows, without metadata.

    Raises:
        RowFileError: see `open_rows`.
    """
    with open_rows(file, needed) as opened:
        return opened.schema_arrow.remove_metadata()


def rows_in(file: str | Path, needed: Iterable[str] = (), columns: Iterable[str] | None = None) -> Iterator[dict]:
    """Rows of a file, one at a time; a thousand of them are in memory.

    Args:
        file: of rows.
        needed: columns that it must have.
        columns: that are read, as far as the file has them; None for all.

    Raises:
        RowFileError: see `open_rows`; also in the middle of a file that is damaged there.
    """
    with open_rows(file, needed) as opened:
        names = [name for name in opened.schema_arrow.names if columns is None or name in columns]
        for batch in batches_in(opened, file, names):
            try:
                rows = batch.to_pylist()
            except _FAULTS as error:
                raise _unreadable(file, error) from error
            yield from rows


def read_rows(
    file: str | Path,
    video_root: str | Path | None = None,
    columns: Iterable[str] | None = COLUMNS,
    fit: Mapping[str, float | str] | None = None,
    needed: Iterable[str] | None = None,
) -> Iterator[Row]:
    """Rows of a file, opened, one at a time.

    Args:
        file: of rows.
        video_root: see `root_of`.
        columns: that are read, as far as the file has them; None for all.
        fit: see `verl_stvg.rows.row.refit`.
        needed: columns that the file must have; None: all that are read.

    Raises:
        ValueError: see `open_rows` and `root_of`.
    """
    root = root_of(file, video_root)
    for number, row in enumerate(rows_in(file, columns or () if needed is None else needed, columns)):
        yield Row(row, root, f"{file}: row {number}", fit)


def root_of(file: str | Path, given: str | Path | None = None) -> Path:
    """Folder that relative paths of a parquet file's videos start from.

    The given one; else the one that the ``manifest.json`` beside the file names; else the file's own. Beside the file
    is where it lies itself, if it is reached through a link.

    Raises:
        ValueError: that file cannot be read.
    """
    if given:
        return Path(given).expanduser().resolve()
    file = Path(file).expanduser().resolve()
    manifest = file.parent / "manifest.json"
    root = _named_root(manifest) if manifest.is_file() else None
    return (file.parent / (root or ".")).resolve()


def _named_root(manifest: Path) -> str | None:
    try:
        found = nesting.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{manifest}: no JSON ({error}); build the rows again, or give --video-root") from error
    root = found.get("video_root") if isinstance(found, dict) else None
    if root is not None and not isinstance(root, str):
        raise ValueError(f"{manifest}: video_root is no text, found {root!r:.60}; correct it, or give --video-root")
    return root


def batches_in(
    opened: pq.ParquetFile, name: object, columns: list[str], size: int = _BATCH
) -> Iterator[pa.RecordBatch]:
    """Rows of an opened file by column, some at a time.

    Args:
        opened: of `open_rows`.
        name: of the file, for messages.
        columns: that are read; the path of a field reads that field only.
        size: most rows at a time.

    Raises:
        RowFileError: the file is damaged there.
    """
    batches = opened.iter_batches(size, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except _FAULTS as error:
            raise _unreadable(name, error) from error
        if batch is None:
            return
        yield batch


def table_in(file: str | Path, name: object = None) -> pa.Table:
    """All of a file of rows, in memory.

    Raises:
        RowFileError: see `open_rows`, whose ``name`` this is.
    """
    with open_rows(file, name=name) as opened:
        try:
            return opened.read()
        except _FAULTS as error:
            raise _unreadable(file if name is None else name, error) from error


def _unreadable(name: object, error: Exception) -> RowFileError:
    said = " ".join(str(error).split()) or type(error).__name__
    return RowFileError(f"{name}: not a readable parquet file of rows ({said}); build the rows again")
