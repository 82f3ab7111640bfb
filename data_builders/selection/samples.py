"""What the stages need of a row, and the intervals that a reply names.

Replies are read by the parsers of the row's own reward, so that "hard" means that this policy earns little.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reward_fns import get_recipe, measures
from verl_stvg.rows.row import Row

Interval = tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """A row as far as it is judged.

    Attributes:
        uid: of the row.
        dataset: annotation set.
        index: position in the set's rows, before any selection.
        video: path relative to the root of the videos.
        duration: seconds.
        query: as it is asked.
        spans: annotated intervals, seconds; none where the row has none.
        template: name and version of the row's prompt, empty if it says none.
        recipe: name of the reward.
        truth: ground truth of the reward, without empty keys.
    """

    uid: str
    dataset: str
    index: int
    video: str
    duration: float
    query: str
    spans: tuple[Interval, ...]
    template: str
    recipe: str
    truth: Mapping[str, Any]


def sample_of(row: Mapping[str, Any]) -> Sample:
    """The sample of a row, from a parquet file as training reads it.

    Raises:
        ValueError: no uid, no video, one that is none (`entry_of`), no duration, or a data source without a reward.
    """
    row = Row.of(row)
    extra, uid = row.extra, row.uid
    if not isinstance(uid, str):
        raise ValueError(f"row {extra.get('index')!r} has no extra_info.uid; build the rows again")
    if lacking := [name for name in ("index", "query") if extra.get(name) is None]:
        raise ValueError(f"row {uid!r} has no extra_info.{' and no extra_info.'.join(lacking)}; build the rows again")
    if not row.entries or not row.duration:
        lacks = "duration" if row.entries else "video"
        raise ValueError(f"row {uid!r} has no {lacks}; build the rows again, with --videos")
    return Sample(
        uid=uid,
        dataset=row.dataset,
        index=extra["index"],
        video=row.entries[0]["video"],
        duration=float(row.duration),
        query=extra["query"],
        spans=tuple((float(start), float(end)) for start, end in row.intervals),
        template=extra.get("template") or "",
        recipe=row.recipe().name,
        truth=row.truth,
    )


def read_intervals(text: str, recipe: str) -> list[Interval] | None:
    """The intervals that a reply names, as the reward of that name reads it; None if it cannot be read.

    Times are finite; an interval may be reversed.

    Raises:
        ValueError: the reward reads no times.
    """
    reward = get_recipe(recipe)
    if not reward.asks & {"time", "times"}:
        raise ValueError(
            f"the reward {recipe!r} reads no times, so its rows have no interval to compare; leave them out, or select "
            "them by variance"
        )
    said = reward.read(text)
    if said is None or said.intervals is None or not all(map(math.isfinite, itertools.chain(*said.intervals))):
        return None
    return list(said.intervals)


def first_two_numbers(text: str) -> list[Interval] | None:
    """The first two numbers of a reply as an interval, whatever stands around them; None if there are not two.

    Source: Time-R1 `calc_difficulty.py`, for replies that do not keep to the form.
    """
    numbers = []
    for match in _NUMBER.finditer(text):
        numbers.append(float(match.group()))
        if len(numbers) == 2:
            return [(numbers[0], numbers[1])] if all(map(math.isfinite, numbers)) else None
    return None


def overlap(intervals: list[Interval], spans: tuple[Interval, ...]) -> float:
    """IoU of what is answered and what is annotated, in [0, 1]; unions of intervals where there are several.

    One interval against one is the paper's IoU, over the hull, in which a reversed one has none.
    """
    if len(intervals) == len(spans) == 1:
        return measures.temporal_iou(*intervals[0], *spans[0])
    return measures.intervals_iou(_forward(intervals), _forward(spans))


def _forward(intervals) -> list[Interval]:
    return [(start, end) for start, end in intervals if start <= end]


_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
