"""Temporal grounding: the table of intervals, by the clean definition and by the scripts that published numbers."""

from collections.abc import Sequence

import numpy as np

from eval.benchmarks.items import Item, Prediction
from eval.metrics import readers
from eval.metrics.temporal import THRESHOLDS, Measure, as_intervals, best, exceeds, iou_hull, iou_union, reaches

Values = dict[str, np.ndarray]

_PAIRS = ("timezero", "time_r1", "videochat_r1", "videotg_r1")  # rewards that read `NUM to NUM`


def measure(items: Sequence[Item], said: Sequence[Prediction | None]) -> Values:
    """Return mIoU and R1@m per item, (N,): IoU over the union, the best over the annotated intervals, at least m."""
    return measure_intervals(items, intervals(said))


def measure_intervals(items: Sequence[Item], found: np.ndarray) -> Values:
    """`measure` of intervals (N, 2)."""
    iou = best_of(iou_union, found, items)
    return {"mIoU": iou} | {f"R1@{m:g}": reaches(iou, m).astype(float) for m in THRESHOLDS}


def variants(items: Sequence[Item], said: Sequence[Prediction | None], texts: Sequence[str | None]) -> Values:
    """Return what the scripts of papers print, under their names, per item.

    Time-R1 takes the last pair of the whole reply and counts values strictly above a threshold; Temporal-R1 reads its
    JSON, swaps reversed bounds, and counts values of at least the threshold. Each is there for prompts that ask for
    answers of its form. Predictions without a text are taken as they are.
    """
    table: Values = {}
    if all(item.recipe.removesuffix("_nothink").removesuffix("_strict") in _PAIRS for item in items):
        found = [
            readers.parse_timestamp_output(text) if text is not None else one and one.interval
            for text, one in zip(texts, said, strict=True)
        ]
        iou = best_of(iou_hull, as_intervals(found), items)
        table |= {"mIoU (Time-R1)": iou} | {f"R1@{m:g} (Time-R1)": exceeds(iou, m).astype(float) for m in THRESHOLDS}
    if all(item.recipe.startswith("temporal_r1") for item in items):
        found = [
            next(iter(readers.extract_time(readers.extract_timestamps(text))), None)
            if text is not None
            else one.interval
            for text, one in zip(texts, (one or Prediction() for one in said), strict=True)
        ]
        iou = best_of(iou_hull, as_intervals(found), items)
        table |= {"mIoU (Temporal-R1)": iou}
        table |= {f"R1@{m:g} (Temporal-R1)": reaches(iou, m).astype(float) for m in THRESHOLDS}
    return table


def intervals(said: Sequence[Prediction | None]) -> np.ndarray:
    """Intervals that are scored, (N, 2); NaN where there is none."""
    return as_intervals(one and one.interval for one in said)


def best_of(measure: Measure, found: np.ndarray, items: Sequence[Item]) -> np.ndarray:
    """The best value of a measure over the annotated intervals of each item, (N,)."""
    if all(len(item.intervals) == 1 for item in items):
        return measure(found, np.array([item.intervals[0] for item in items], dtype=np.float64))
    return best(measure, found, truths(items))


def truths(items: Sequence[Item]) -> list[tuple]:
    """Annotated intervals of each item."""
    return [item.intervals for item in items]
