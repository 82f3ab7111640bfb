"""The rows that a stage of selection reads: those of some parquet files, under one root of their videos."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_stvg.rows.files import COLUMNS, read_rows, root_of, schema_of
from verl_stvg.rows.shape import row_shape_problems

_BATCH = 1000  # rows per row group


class SelectionError(ValueError):
    """Rows, answers or judgements that do not fit together; the message says which and what to do."""


@dataclass(frozen=True)
class Pool:
    """Rows of some files under one root.

    Attributes:
        files: parquet files.
        root: folder that all paths of videos start from.
        roots: the root of each file.
    """

    files: tuple[Path, ...]
    root: Path
    roots: tuple[Path, ...]

    @property
    def schema(self) -> pa.Schema:
        """Columns of all files together.

        Raises:
            SelectionError: they contradict each other.
        """
        found = [_with_entries(schema_of(file)) for file in self.files]
        try:
            return pa.unify_schemas(found, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SelectionError(
                f"{', '.join(map(str, self.files))}: columns do not fit ({error}); build them again"
            ) from error

    def rows(self) -> Iterator[dict]:
        """Rows in the order of files, paths relative to the common root.

        Raises:
            SelectionError: two rows have one uid, or a row is none (`row_shape_problems`).
        """
        seen: set[str] = set()
        for file, root in zip(self.files, self.roots, strict=True):
            prefix = Path(os.path.relpath(root, self.root))
            for row in read_rows(file, root, None, needed=COLUMNS):
                if wrong := row_shape_problems(row):
                    raise SelectionError(f"{row.where}: {wrong[0]}")
                if not isinstance(row.uid, str):
                    raise SelectionError(f"{row.where}: has no extra_info.uid; build the rows again")
                if row.uid in seen:
                    raise SelectionError(f"{file}: uid {row.uid!r} is there twice; remove one of the rows or files")
                seen.add(row.uid)
                for video in row.entries if root != self.root else ():
                    video.update((key, (prefix / video[key]).as_posix()) for key in ("video", "tracks") if key in video)
                yield {**row.raw, "videos": None if row["videos"] is None else row.entries}


def _with_entries(schema: pa.Schema) -> pa.Schema:
    """A schema whose ``videos`` are entries, as `Pool.rows` has them, where they are names alone."""
    index = schema.get_field_index("videos")
    kind = schema.field(index).type if index >= 0 else pa.null()
    if not pa.types.is_list(kind) or pa.types.is_struct(kind.value_type):
        return schema
    return schema.set(index, pa.field("videos", pa.list_(pa.struct({"video": pa.string()}))))


def pool(files: Iterable[Path], video_root: Path | None = None) -> Pool:
    """The rows of some parquet files.

    Args:
        files: as training reads them.
        video_root: see `verl_stvg.rows.files.root_of`.

    Raises:
        ValueError: no files, or one that is missing.
    """
    files = tuple(files)
    if missing := [file for file in files if not file.is_file()] if files else ["rows"]:
        raise SelectionError(f"{missing[0]}: no such file; build the rows first, or correct the path")
    roots = tuple(root_of(file, video_root) for file in files)
    return Pool(files, Path(os.path.commonpath(roots)), roots)


def with_fields(schema: pa.Schema, column: str, fields: Mapping[str, pa.DataType]) -> pa.Schema:
    """A schema whose struct column (or list of structs) has further fields.

    Args:
        schema: of rows.
        column: of structs, or of lists of structs.
        fields: types by name; they replace those of the same name. None at all: the schema as it is.
    """
    if not fields:
        return schema
    index = schema.get_field_index(column)
    old = schema.field(index).type
    struct = old.value_type if pa.types.is_list(old) else old
    kept = {struct.field(k).name: struct.field(k).type for k in range(struct.num_fields)}
    new = pa.struct({**kept, **fields})
    return schema.set(index, pa.field(column, pa.list_(new) if pa.types.is_list(old) else new))


def write_rows(path: Path, rows: Iterable[dict], schema: pa.Schema) -> int:
    """Write rows to a parquet file and return their number.

    Args:
        path: of the file, which is overwritten.
        rows: with no other columns than the schema.
        schema: of the file.
    """
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        return sum(1 for _ in as_read(rows, schema, writer))


def as_read(rows: Iterable[dict], schema: pa.Schema, writer: pq.ParquetWriter | None) -> Iterator[dict]:
    """Rows as they will be read again, written on the way if there is a writer.

    Args:
        rows: to be converted; columns that the schema has not are left out.
        schema: of the file.
        writer: of the file; None: nothing is written.
    """
    rows = iter(rows)
    while True:
        table = pa.Table.from_pylist(list(itertools.islice(rows, _BATCH)), schema)
        if writer is not None:
            writer.write_table(table)
        if not table.num_rows:
            return
        yield from table.to_pylist()
