"""What is scored: a row as an item of its kind, and an answer as the values that were read from it.

Answers are read with the parsers of `reward_fns`, so that training and evaluation read alike.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_stvg.eval.benchmarks import BENCHMARKS, questions, temporal, tubes
from verl_stvg.eval.benchmarks.base import Box, Interval, Item, Prediction, Stored
from verl_stvg.eval.benchmarks.rows import read_rows
from verl_stvg.eval.metrics.answers import read_option
from verl_stvg.rows.row import Row

__all__ = ["Box", "Interval", "Item", "Prediction", "Stored", "item_of", "read_answer", "read_rows"]


def item_of(row: Mapping[str, Any], kind: type[Item] | None = None) -> Item:
    """The item that a row is.

    Args:
        row: of `read_rows`, or with the keys of `verl_stvg.data_builders.row_schema.ROW_SCHEMA`.
        kind: of the item; None for that of the row's benchmark, or, if it has none, of what its truth holds.

    Raises:
        ValueError: the row lacks what every row has, or its data source names no reward.
    """
    row = Row.of(row)
    info, truth = row.extra, row.truth
    if row.uid is None or not row.duration:
        raise ValueError(f"row {row.name!r} has no uid or no duration; build the rows again")
    entry = row.entries[0] if row.entries else {}
    width, height, frames = (info.get(name) for name in ("width", "height", "num_frames"))
    kind = kind or _kind(row.dataset, truth, info)
    item = kind(
        row.uid,
        row.dataset,
        info.get("split") or "",
        row.recipe().name,
        entry.get("video") or "",
        info.get("query") or "",
        row.duration,
        row.intervals,
        info.get("annotated"),
        info.get("source_fps"),
        entry.get("video_start") or 0.0,
        None if frames is None else int(frames),  # Arrow returns whole numbers of some columns as doubles
        (width, height) if width and height else None,
        _times(info),
        info.get("file_end"),
        Path(entry["tracks"]) if entry.get("tracks") else None,
        len(info.get("options") or ()),
        *kind.own(truth),
    )
    if not item.fps and item.annotated:
        item = replace(item, fps=item.extra.get("fps"))
    return item.counted_in_file(info.get("first_frame_of"))


def _kind(dataset: str, truth: Mapping[str, Any], info: Mapping[str, Any]) -> type[Item]:
    if dataset in BENCHMARKS:
        return BENCHMARKS[dataset].kind
    if len(info.get("options") or ()):
        return questions.Question
    boxes = truth.get("boxes")
    tracked = truth.get("object_id") is not None or truth.get("object_ids") or (boxes is not None and len(boxes))
    return tubes.Tube if tracked else temporal.Moment


def _times(info: Mapping[str, Any]) -> tuple[float, ...] | None:
    found = info.get("frame_times")
    return None if found is None or not len(found) else tuple(map(float, found))


def read_answer(item: Item, text: str, num_options: int | None = None) -> Prediction | None:
    """What an answer says, read as the reward of the item's prompt reads it; None if nothing can be read.

    An answer that lacks a part (a letter, say) keeps the others where its reward keeps them. Times that are not finite
    are not read. Options are read by `answers.read_option`, which does not take the D of "Definitely A" for one, as a
    paper's reward may.

    Args:
        item: that was answered.
        text: of the answer.
        num_options: of the question; None for what the item says.
    """
    asks, said = item.reward.asks, item.reward.read(text)
    option = None
    if "option" in asks:
        option = read_option(text, item.num_options if num_options is None else num_options)
    if said is None:
        return Prediction(option=option).finite()
    if said.boxes is not None and said.intervals:
        return tubes.prediction(item, said.intervals[0], said.boxes)
    return Prediction(said.intervals or (), said.object_ids, option).finite()
