"""Rows that a page shows, found by uid in parquet files."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_stvg.base import nesting
from verl_stvg.eval.benchmarks import BENCHMARKS, SORTS
from verl_stvg.rows.files import root_of
from verl_stvg.rows.row import Row, read_entries
from verl_stvg.rows.shape import row_shape_problems


class Rows:
    """Rows of parquet files, found by uid; files that are gone are told in `notices`."""

    def __init__(self, files: Iterable[Path], video_root: str | Path | None = None):
        self.notices: list[str] = []
        self._found: dict[str, tuple[int, int]] = {}
        self._tables: list[tuple[Path, Path, pa.Table]] = []
        for file in files:
            if not file.is_file():
                self.notices.append(f"The rows ({file.name}) are gone, so no frames are shown; the answers are.")
                continue
            try:
                table = pq.read_table(file, columns=["data_source", "videos", "reward_model", "extra_info"])
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file}: not a parquet file of rows ({error}); build the rows again") from error
            kind = table.schema.field("extra_info").type
            if not pa.types.is_struct(kind) or kind.get_field_index("uid") < 0:
                raise ValueError(f"{file}: its column extra_info has no uid ({kind}); build the rows again")
            uids = table.column("extra_info").combine_chunks().field("uid").to_pylist()
            self._found.update((str(uid), (len(self._tables), k)) for k, uid in enumerate(uids))
            self._tables.append((file, root_of(file, video_root), table))

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, uid: str) -> bool:
        return uid in self._found

    def __getitem__(self, uid: str) -> Row:
        place, k = self._found[uid]
        file, root, table = self._tables[place]
        row = Row(table.slice(k, 1).to_pylist()[0], root, f"{file}: row {k}")
        wrong = row_shape_problems({**row, "prompt": []})
        wrong += [beginning + text for beginning, _, text in read_entries(row["videos"]) if text]
        if wrong:
            raise ValueError(f"{row.where}: {wrong[0]}")
        return row

    def get(self, uid: str) -> Row | None:
        """A row; None if it is not there, or not one that can be read, which `draw` tells."""
        try:
            return self[uid] if uid in self else None
        except ValueError:
            return None

    def folder(self, uid: str) -> Path:
        """Where the file of a row lies."""
        return self._tables[self._found[uid][0]][0].parent

    def sorts(self) -> dict[str, dict[str, str]]:
        """The group of each uid, by kind of group (`verl_stvg.eval.benchmarks` sorts rows by their annotation)."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for _, _, table in self._tables:
            info = table.column("extra_info").combine_chunks()
            columns = [
                info.field(name).to_pylist() if info.type.get_field_index(name) >= 0 else [None] * len(info)
                for name in ("uid", "dataset", "annotated")
            ]
            for source, uid, dataset, annotated in zip(table.column("data_source").to_pylist(), *columns, strict=True):
                fields = _fields(annotated)
                row = Row({"data_source": source, "extra_info": {"dataset": dataset}})
                benchmark = BENCHMARKS.get(row.dataset)
                for field, name in {**SORTS, **(benchmark.sorts if benchmark else {})}.items():
                    if fields.get(field):
                        found[name][str(uid)] = str(fields[field])
        return dict(found)

    def videos(self) -> dict[str, str]:
        """Path of each row's video by uid; the uid itself where the row cannot be read."""
        paths = [[_path(videos) for videos in table.column("videos").to_pylist()] for _, _, table in self._tables]
        return {uid: paths[place][k] or uid for uid, (place, k) in self._found.items()}


def _fields(annotated: object) -> dict:
    """Further fields of a row's annotation; none where the text is no JSON object, which the row's own card says."""
    try:
        fields = nesting.loads(annotated) if isinstance(annotated, str | bytes) else None
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _path(videos: object) -> str | None:
    return next((entry.get("video") for _, entry, _ in read_entries(videos)), None)
