"""Temporal grounding: how well predicted intervals meet annotated ones, for all items of a set at once.

The measures equal those of `reward_fns.measures`, which work on one item. Intervals are arrays of shape (N, 2), start
and end in seconds or any common unit. A prediction that could not be read is a row of NaN (`as_intervals` makes one of
None) and counts as 0, and so does one that is infinite or reversed; truths have to be finite.

Papers disagree about the denominator (the hull of both intervals, or their union; the two are equal wherever the
intervals overlap) and about thresholds (`reaches` or `exceeds`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Measure = Callable[..., Floats]

THRESHOLDS = (0.3, 0.5, 0.7)
TOLERANCE = 1e-9  # ours: an IoU of exactly 0.7 is 0.7 - 1e-16 as often as not


def as_intervals(found: Iterable[Sequence[float] | None]) -> Floats:
    """Return intervals as an array (N, 2); None becomes a row of NaN.

    Raises:
        ValueError: an interval has not two bounds.
    """
    rows = [(np.nan, np.nan) if interval is None else tuple(interval) for interval in found]
    for k, row in enumerate(rows):
        if len(row) != 2:
            raise ValueError(f"interval {k} has {len(row)} bounds instead of two: {row!r:.60}")
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def iou_hull(predictions: ArrayLike, truths: ArrayLike) -> Floats:
    """Return intersection over hull, (N,), in [0, 1]; 0 for disjoint, touching, reversed and zero-length intervals.

    Source: Temporal-R1 `eval_tvg.py`, STVG-R1 `evaluate.py`, VideoChat-R1, Time-R1, ReXTime.

    Raises:
        ValueError: shapes differ or are not (N, 2), or a truth is not finite.
    """
    pred, true = _pairs(predictions, truths)
    with np.errstate(all="ignore"):
        hull = np.maximum(pred[:, 1], true[:, 1]) - np.minimum(pred[:, 0], true[:, 0])
        return _ratio(_intersection(pred, true), hull)


def iou_union(predictions: ArrayLike, truths: ArrayLike) -> Floats:
    """Return intersection over the true union, (N,), in [0, 1]; reversed intervals have length 0.

    Source: VideoMind `eval_auto.py` (which computes in float32); the default of VideoTG-R1's benchmarks.

    Raises:
        ValueError: as `iou_hull`.
    """
    pred, true = _pairs(predictions, truths)
    with np.errstate(all="ignore"):
        inter = _intersection(pred, true)
        lengths = np.maximum(pred[:, 1] - pred[:, 0], 0.0) + np.maximum(true[:, 1] - true[:, 0], 0.0)
        return _ratio(inter, lengths - inter)


def iop(predictions: ArrayLike, truths: ArrayLike, point_rule: str = "zero") -> Floats:
    """Return intersection over the prediction, (N,), in [0, 1].

    Args:
        predictions: (N, 2).
        truths: (N, 2).
        point_rule: of a prediction of length 0: `zero` gives it 0 (VideoMind); `nextgqa` gives it 1 if it lies within
            the truth, bounds included, so that points alone can reach a perfect mean (NExT-GQA `eval_ground.py`).

    Raises:
        ValueError: as `iou_hull`, or an unknown rule.
    """
    if point_rule not in ("zero", "nextgqa"):
        raise ValueError(f"point_rule is 'zero' or 'nextgqa', found {point_rule!r}")
    pred, true = _pairs(predictions, truths)
    with np.errstate(all="ignore"):
        values = _ratio(_intersection(pred, true), pred[:, 1] - pred[:, 0])
    if point_rule == "nextgqa":
        start, end = pred.T
        values[(start == end) & (true[:, 0] <= start) & (start <= true[:, 1])] = 1.0
    return values


def best(
    measure: Measure, predictions: ArrayLike, truths: Sequence[Sequence[Sequence[float]]], **options: Any
) -> Floats:
    """Return the best value over the annotated intervals of each item, (N,).

    Args:
        measure: of this module.
        predictions: (N, 2), one per item.
        truths: of each item one or more intervals.
        options: of the measure.

    Raises:
        ValueError: an item has no annotated interval, or as the measure.
    """
    pred = _intervals(predictions, "predictions")
    counts, flat = _ragged(truths)
    if len(pred) != len(counts):
        raise ValueError(f"{len(pred)} predictions for {len(counts)} items")
    if not len(pred):
        return np.zeros(0)
    values = measure(np.repeat(pred, counts, axis=0), flat, **options)
    return np.maximum.reduceat(values, np.cumsum(counts) - counts)


def top_k(
    measure: Measure,
    ranked: Sequence[Sequence[Sequence[float]]],
    truths: Sequence[Sequence[Sequence[float]]],
    k: int,
    **options: Any,
) -> Floats:
    """Return the best value of the first k predictions of each item over its annotated intervals, (N,).

    Args:
        measure: of this module.
        ranked: predictions of each item, the best first; none counts as 0.
        truths: of each item one or more intervals.
        k: at least 1.
        options: of the measure.

    Raises:
        ValueError: k below 1, an item has no annotated interval, or as the measure.
    """
    if k < 1:
        raise ValueError(f"k is at least 1, found {k}")
    counts, flat = _ragged(truths)
    if len(ranked) != len(counts):
        raise ValueError(f"predictions of {len(ranked)} items for {len(counts)} items")
    pred = as_intervals(interval for found in ranked for interval in found[:k])
    owner = np.repeat(np.arange(len(ranked)), [len(found[:k]) for found in ranked])
    # Every prediction meets each interval of its item: pairs lie one after another.
    pairs = counts[owner]
    within = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    first = (np.cumsum(counts) - counts)[owner]
    values = measure(np.repeat(pred, pairs, axis=0), flat[np.repeat(first, pairs) + within], **options)
    found = np.zeros(len(counts))
    np.maximum.at(found, np.repeat(owner, pairs), values)
    return found


def reaches(values: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Tell which values are at least the threshold, less 1e-9. Temporal-R1, VideoMind, NExT-GQA, ReXTime, STVG-R1."""
    return np.asarray(values, dtype=np.float64) >= threshold - TOLERANCE


def at_least(values: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Tell which values are at least the threshold, to the last digit, as scripts compare that know no tolerance.

    TimeZero `evaluate.py`, VideoChat-R1 `evaluate_grounding.py`, Temporal-R1 `eval_tvg.py`, Moment-DETR
    `standalone_eval/eval.py`.
    """
    return np.asarray(values, dtype=np.float64) >= threshold


def exceeds(values: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Tell which values are strictly above the threshold. Time-R1 `eval_all.py`, and vIoU@R of the field."""
    return np.asarray(values, dtype=np.float64) > threshold


def summary(
    values: ArrayLike, thresholds: Sequence[float] = THRESHOLDS, strict: bool = False, name: str = "IoU", rank: int = 1
) -> dict[str, float]:
    """Return R1@m for each threshold and the mean: `{"R1@0.3": ..., "mIoU": ...}`, fractions.

    Args:
        values: (N,), of `iou_hull` or another measure.
        thresholds: m.
        strict: count values above a threshold only, as Time-R1.
        name: of the measure, for the mean.
        rank: k of `top_k`, for the name.

    Raises:
        ValueError: no items.
    """
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        raise ValueError("there are no items, and so no mean")
    counts = exceeds if strict else reaches
    return {f"R{rank}@{m:g}": float(counts(found, m).mean()) for m in thresholds} | {f"m{name}": float(found.mean())}


def _intervals(found: ArrayLike, what: str) -> Floats:
    intervals = np.asarray(found, dtype=np.float64)
    if not intervals.size and intervals.ndim == 1:
        return intervals.reshape(0, 2)
    if intervals.ndim != 2 or intervals.shape[1] != 2:
        raise ValueError(f"{what} have the shape (N, 2), found {intervals.shape}")
    return intervals


def _pairs(predictions: ArrayLike, truths: ArrayLike) -> tuple[Floats, Floats]:
    pred, true = _intervals(predictions, "predictions"), _intervals(truths, "truths")
    if len(pred) != len(true):
        raise ValueError(f"{len(pred)} predictions for {len(true)} truths")
    finite = np.isfinite(true).all(axis=1)
    if not finite.all():
        raise ValueError(f"truth {int(np.argmin(finite))} is not finite: {true[np.argmin(finite)].tolist()}")
    return pred, true


def _intersection(pred: Floats, true: Floats) -> Floats:
    return np.maximum(np.minimum(pred[:, 1], true[:, 1]) - np.maximum(pred[:, 0], true[:, 0]), 0.0)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part of a whole; 0 where that is no number, or one that only an infinite or reversed interval gives."""
    values = part / whole
    return np.where((part > 0) & np.isfinite(values), values, 0.0)


def _ragged(truths: Sequence[Sequence[Sequence[float]]]) -> tuple[NDArray[np.int64], Floats]:
    counts = np.fromiter(map(len, truths), dtype=np.int64, count=len(truths))
    if not counts.all():
        raise ValueError(f"item {int(np.argmin(counts))} has no annotated interval")
    return counts, as_intervals(interval for item in truths for interval in item)
