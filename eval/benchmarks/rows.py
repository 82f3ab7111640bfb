"""Rows of parquet files with what scoring needs of them.

They are read column by column, because a benchmark's prompts and boxes as Python objects take a hundred times their
size in the file. What is looked at in each row elsewhere is looked at in a column here; the rows that come of it are
those of `verl_stvg.rows.row`, with their rules.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from verl_stvg.rows.files import batches_in, open_rows, root_of
from verl_stvg.rows.row import Row, are_plain, entries_of
from verl_stvg.rows.shape import FAR, columns_are_sound, row_shape_problems

_BATCH = 4000
_TRUTH = "reward_model.ground_truth"
_INFO = (
    *("uid", "dataset", "split", "query", "options", "duration", "num_frames", "source_fps", "width", "height"),
    *("frame_times", "file_end", "first_frame_of"),
)
_VIDEO = ("video", "tracks", "video_start")
_COLUMNS = (
    "data_source",
    *(f"videos.list.element.{name}" for name in _VIDEO),
    _TRUTH,
    *(f"extra_info.{name}" for name in (*_INFO, "annotated")),
)


def read_rows(files: Iterable[Path], video_root: str | Path | None = None) -> Iterator[Row]:
    """Rows of parquet files with what scoring needs of them: boxes as arrays, paths of track files absolute.

    Args:
        files: of rows.
        video_root: folder that paths in the rows start from; see `verl_stvg.rows.files.root_of`.

    Raises:
        ValueError: a file that is missing, or one that holds no rows of ours.
    """
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file of rows; build the rows first, or correct the path")
        root = root_of(file, video_root)
        with open_rows(file, ("data_source", "reward_model", "extra_info")) as table:
            names = table.schema_arrow.names
            _check_types(table.schema_arrow, file)
            columns = list(_COLUMNS)
            paths = {table.schema.column(place).path for place in range(len(table.schema))}
            if "videos" in names and "videos.list.element.video" not in paths:
                columns.append("videos")  # of another form, or written with another name of what is in a list
            number = 0
            for batch in batches_in(table, file, columns, _BATCH):
                yield from _rows(batch, root, file, number)
                number += len(batch)


def _check_types(schema: pa.Schema, file: Path) -> None:
    """See that columns that are taken apart hold objects."""
    reward, info = schema.field("reward_model").type, schema.field("extra_info").type
    truth = reward.field("ground_truth").type if _has(reward, "ground_truth") else pa.null()
    for name, kind in (("reward_model.ground_truth", truth), ("extra_info", info)):
        if not pa.types.is_struct(kind):
            raise ValueError(f"{file}: {name} holds no objects ({kind}); give a file that `verl-stvg build` wrote")


def _has(kind: pa.DataType, name: str) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index(name) >= 0


class ColumnRow(Row):
    """A row of `read_rows`, whose videos were read with their column: paths as in the row, those of tracks absolute."""

    @cached_property
    def entries(self) -> list[dict]:
        return self.raw["videos"]


def _rows(batch: pa.RecordBatch, root: Path, file: Path, number: int) -> Iterator[Row]:
    """Rows of a batch, the first of which has this number in its file."""
    truths, infos = _columns(batch.column("reward_model").field("ground_truth")), _columns(batch.column("extra_info"))
    looked = {name: values for name, values in truths.items() if name != "boxes" or not _are_boxes(values)}  # sound
    sound = columns_are_sound(batch.column("data_source"), looked, infos)
    sources, videos = batch.column("data_source").to_pylist(), _videos(batch, root, file, number)
    rows = zip(sources, videos, _values(truths), _values(infos), strict=True)
    for place, (source, entries, truth, info) in enumerate(rows, number):
        if not sound:
            _check(source, truth, info, f"{file}: row {place}")
        reward = {"ground_truth": truth}
        row = {"data_source": source, "videos": entries, "reward_model": reward, "extra_info": info}
        yield ColumnRow(row, None, f"{file}: row {place}")


def _videos(batch: pa.RecordBatch, root: Path, file: Path, number: int) -> Iterator[list[dict]]:
    """Entries of the videos of each row, paths of track files absolute."""
    column = batch.column("videos") if "videos" in batch.schema.names else pa.nulls(len(batch))
    if (names := _only_names(column)) is not None and are_plain(names):
        yield from ([{"video": name}] for name in names)
        return
    for place, videos in enumerate(column.to_pylist(), number):
        entries = entries_of(videos, where=f"{file}: row {place}")
        for entry in entries:
            if "tracks" in entry:
                entry["tracks"] = str(root / entry["tracks"])
        yield entries


def _only_names(videos: pa.Array) -> list[str] | None:
    """Names of videos where each row has one video, and nothing more of it is known; else None."""
    if not pa.types.is_list(videos.type) or not pa.types.is_struct(videos.type.value_type) or videos.null_count:
        return None
    entries = videos.flatten()
    if entries.null_count or videos.value_lengths().unique().to_pylist() != [1]:
        return None
    known = [name for name, values in _columns(entries).items() if values.null_count < len(values)]
    return entries.field("video").to_pylist() if known == ["video"] else None


def _check(source: object, truth: dict, info: dict, where: str) -> None:
    known = truth if isinstance(truth.get("boxes"), list) else {**truth, "boxes": None}  # arrays are sound
    asked = {"data_source": source, "prompt": [], "reward_model": {"ground_truth": known}, "extra_info": info}
    if wrong := row_shape_problems(asked):
        raise ValueError(f"{where}: {wrong[0]}")


def _columns(structs: pa.StructArray) -> dict[str, pa.Array]:
    return {kind.name: structs.field(index) for index, kind in enumerate(structs.type)}


def _values(columns: Mapping[str, pa.Array]) -> Iterator[dict]:
    """Rows of columns as dictionaries, boxes as arrays (T, 4)."""
    found = {}
    for name, values in columns.items():
        if values.null_count == len(values):  # half of the columns of most sets
            found[name] = [None] * len(values)
        else:
            found[name] = _boxes(values) if name == "boxes" and _are_boxes(values) else values.to_pylist()
    return (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))


def _are_boxes(values: pa.Array) -> bool:
    """Whether a column is the boxes of tubes as `verl-stvg build` writes them, four finite numbers each."""
    if values.type != pa.list_(pa.list_(pa.float32())):
        return False
    sides = values.values.values
    lengths = np.diff(_numbers(values.values.offsets, np.int32))
    whole = not values.values.null_count and not sides.null_count and bool((lengths == 4).all())
    return whole and bool((np.abs(_numbers(sides, np.float32)) <= FAR).all())


def _boxes(column: pa.ListArray) -> list[np.ndarray | None]:
    sides = _numbers(column.values.values, np.float32)
    inner, offsets = _numbers(column.values.offsets, np.int32), _numbers(column.offsets, np.int32)
    return [
        sides[inner[start] : inner[end]].reshape(-1, 4) if known else None
        for start, end, known in zip(offsets[:-1], offsets[1:], column.is_valid().to_pylist(), strict=True)
    ]


def _numbers(values: pa.Array, kind: type) -> np.ndarray:
    """Numbers of an array without nulls; `to_numpy` would import pandas, which takes a second."""
    if not len(values):
        return np.zeros(0, dtype=kind)
    return np.frombuffer(values.buffers()[1], dtype=kind, count=len(values), offset=values.offset * kind().itemsize)
