"""Temporal grounding: the table of intervals, by the clean definition and by the scripts that published numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reward_fns.measures import intervals_iou
from verl_stvg.eval.benchmarks.base import Interval, Item, Prediction, Predictions, Values
from verl_stvg.eval.benchmarks.tracked import Sources
from verl_stvg.eval.metrics import readers
from verl_stvg.eval.metrics.lenient import is_plain, read_time
from verl_stvg.eval.metrics.temporal import (
    THRESHOLDS,
    Measure,
    as_intervals,
    at_least,
    best,
    exceeds,
    iou_hull,
    iou_union,
    reaches,
)

Counts = Callable[[np.ndarray, float], np.ndarray]

_SCRIPTS = {
    "time_r1": ("Time-R1", exceeds),
    "timezero": ("TimeZero", at_least),
    "videochat_r1": ("VideoChat-R1", at_least),
    "videotg_r1": ("VideoChat-R1", at_least),
}
"""By form of answers `NUM to NUM`: the script that scores them, and what it counts at a threshold."""


@dataclass(frozen=True)
class Moment(Item):
    """A row that asks when something happens."""

    main: ClassVar[str] = "mIoU"

    @classmethod
    def measure(cls, items: Sequence[Item], said: Predictions, sources: Sources) -> tuple[Values, list[str]]:
        return measure(items, said), []

    @classmethod
    def variants(cls, items: Sequence[Item], said: Predictions, sources: Sources, values: Values) -> Values:
        return variants(items, said, sources.texts, sources.stored)

    @classmethod
    def unseen(cls, items: Sequence[Item], times: np.ndarray) -> tuple[str, Values]:
        return "", measure_intervals(items, times)


def measure(items: Sequence[Item], said: Predictions) -> Values:
    """Return mIoU and R1@m per item, (N,): IoU over the union, the best over the annotated intervals, at least m.

    For prompts that ask for several periods set mIoU as well: of all answered periods with all annotated ones.
    """
    table = measure_intervals(items, intervals(said))
    return table | ({"set mIoU": set_iou(items, said)} if all(item.reward.asks == {"times"} for item in items) else {})


def measure_intervals(items: Sequence[Item], found: np.ndarray) -> Values:
    """`measure` of intervals (N, 2)."""
    iou = best_of(iou_union, found, items)
    return {"mIoU": iou} | {f"R1@{m:g}": reaches(iou, m).astype(float) for m in THRESHOLDS}


def variants(
    items: Sequence[Item],
    said: Predictions,
    texts: Sequence[str | None],
    stored: Sequence[str | None] | None = None,
) -> Values:
    """Return what the scripts of papers print, under their names, per item, and what the lenient reader reads.

    Each is there for prompts that ask for answers of its form. Time-R1, TimeZero and VideoChat-R1 take the last pair of
    the whole reply; Time-R1 counts values strictly above a threshold, the others those of at least the threshold.
    VideoTG-R1 has published no script, and is scored as VideoChat-R1. Temporal-R1 reads its JSON, or free text where it
    asks for no reasoning, swaps reversed bounds, and counts values of at least the threshold. Predictions without a
    text are taken as they are.

    Args:
        items: with their truth.
        said: what was read from each answer; None for nothing.
        texts: replies; None for what is no text.
        stored: texts of lmms-eval's files, which Temporal-R1's script reads as they are, by item.
    """
    table: Values = {}
    stored = stored or [None] * len(items)
    # What was read is all that such replies say, to every reader of pairs.
    texts = [
        None if text is not None and one is not None and is_plain(text) else text
        for one, text in zip(said, texts, strict=True)
    ]
    forms = {item.reward.form for item in items}
    scripts = {_SCRIPTS.get(form) for form in forms}
    if len(scripts) == 1 and (script := scripts.pop()) is not None:
        name, counts = script
        found = [
            readers.parse_timestamp_output(text) if text is not None else one and one.interval
            for text, one in zip(texts, said, strict=True)
        ]
        table |= _named(name, found, items, counts)
    if forms == {"temporal_r1"} or any(one is not None for one in stored):
        found = [_of_temporal_r1(*one) for one in zip(items, said, texts, stored, strict=True)]
        table |= _named("Temporal-R1", found, items, at_least)
    return table | lenient(items, said, texts)


def _named(name: str, found: Sequence[Interval | None], items: Sequence[Item], counts: Counts) -> Values:
    iou = best_of(iou_hull, as_intervals(found), items)
    table = {f"mIoU ({name})": iou}
    return table | {f"R1@{m:g} ({name})": counts(iou, m).astype(float) for m in THRESHOLDS}


def _of_temporal_r1(item: Item, one: Prediction | None, text: str | None, stored: str | None) -> Interval | None:
    """What Temporal-R1's scripts read: with reasoning the model's wrapper stores `start-end`, else the bare reply."""
    if stored is None:
        if text is None:
            return one and one.interval
        stored = readers.extract_timestamps(text) if "thinking" in item.reward.asks else text
    return next(((start, end) for start, end in readers.extract_time(stored)), None)


def lenient(items: Sequence[Item], said: Predictions, texts: Sequence[str | None]) -> Values:
    """Return mIoU and R1@m of what `lenient.read_time` reads, per item; nothing where it reads what was read.

    Args:
        items: with their truth.
        said: what was read from each answer; None for nothing.
        texts: replies; None for what is no text.
    """
    found = read_leniently(said, texts)
    if found is None:
        return {}
    iou = best_of(iou_union, as_intervals(found), items)
    return {"mIoU (lenient)": iou} | {f"R1@{m:g} (lenient)": reaches(iou, m).astype(float) for m in THRESHOLDS}


def read_leniently(said: Predictions, texts: Sequence[str | None]) -> list[Interval | None] | None:
    """Times of replies, however they are written; None if that changes nothing.

    What is no text is as it was said, and so is the time beside boxes, which is read from JSON.
    """
    strict = [one.interval if one is not None else None for one in said]
    found = [
        time if text is None or (one is not None and one.tube) else read_time(text)
        for one, text, time in zip(said, texts, strict, strict=True)
    ]
    return found if found != strict else None


def intervals(said: Predictions) -> np.ndarray:
    """Intervals that are scored, (N, 2); NaN where there is none."""
    return as_intervals(one and one.interval for one in said)


def set_iou(items: Sequence[Item], said: Predictions) -> np.ndarray:
    """IoU of all periods of an answer with all annotated ones, union against union, (N,).

    Periods without a length count for nothing, so that an answer, or a truth, of nothing else is worth 0.
    """
    found = np.zeros(len(items))
    for k, (item, one) in enumerate(zip(items, said, strict=True)):
        answered = [time for time in one.periods if time[0] < time[1]] if one is not None else ()
        true = [time for time in item.intervals if time[0] < time[1]]
        found[k] = intervals_iou(answered, true) if answered and true else 0.0
    return found


def best_of(measure: Measure, found: np.ndarray, items: Sequence[Item]) -> np.ndarray:
    """The best value of a measure over the annotated intervals of each item, (N,).

    Args:
        measure: of `metrics.temporal`.
        found: (N, 2) seconds, NaN where there is nothing.
        items: N, with their truth.
    """
    if all(len(item.intervals) == 1 for item in items):
        return measure(found, np.array([item.intervals[0] for item in items], dtype=np.float64))
    return best(measure, found, truths(items))


def truths(items: Sequence[Item]) -> list[tuple]:
    """Annotated intervals of each item."""
    return [item.intervals for item in items]
