"""What is to be had without looking at the video: numbers that every table is read beside.

The whole video meets a third of ActivityNet's annotated time, and one constant part of it a little more; a model below
that has not learned to ground. Where IDs are asked for, the ID is drawn from those that are shown (its expectation, not
a draw), or is that of the largest object; where an option is, it is drawn likewise.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from verl_stvg.eval.benchmarks import tubes
from verl_stvg.eval.benchmarks.base import Interval, Item, Prediction, only
from verl_stvg.eval.benchmarks.tracked import Library
from verl_stvg.video.tracks import Tracks

COARSE, FINE = 25, 100  # ours: steps of the two grids that the window is looked for on
_CELLS = 300_000  # of window times interval, held at once
_AT_ONCE = 255  # masks: more overflow in pycocotools 2.0.11

Table = dict[str, dict[str, float]]


def of(
    kind: type[Item], items: Sequence[Item], library: Library, shown: Library, train: Sequence[Item] | None
) -> Table:
    """Metrics of each baseline by its name; tubes are plain.

    Args:
        kind: of the items.
        items: with their truth.
        library: of the tracks that make a tube of an ID.
        shown: of the tracks whose IDs are drawn.
        train: items that the constant window is fitted on; None for those that are scored.
    """
    if not all(item.intervals for item in items):
        return {}
    durations = np.array([[item.duration] for item in items])
    found: Table = {}
    if (whole := kind.unseen(items, durations * (0.0, 1.0))) is None:
        return {}
    start, end = best_window(train if train is not None else items)
    window = f"constant window [{start:g}, {end:g}]{' of train' if train is not None else ''}"
    times = durations * (start, end)
    for name, unseen in (("whole video", whole), (window, kind.unseen(items, times))):
        if unseen is not None:
            found[name + unseen[0]] = {key: float(value.mean()) for key, value in unseen[1].items()}
    located = only(tubes.Tube, items)
    asked = [item for item in located if item.object_id is not None]
    if asked and len(located) == len(items) and all(map(shown.knows, asked)):
        found |= _by_id(located, list(map(tuple, times.tolist())), library, shown, window)
    return found


def best_window(items: Sequence[Item]) -> Interval:
    """The one part of all videos, as fractions of their duration, that has the best mean IoU; the first of equals.

    Ours: every window of a grid of twenty-fifths, then those around the best of them on a grid of hundredths.

    Raises:
        ValueError: no items, or one without annotated intervals.
    """
    if not items or not all(item.intervals for item in items):
        raise ValueError("the constant window is fitted on rows with annotated intervals, at least one")
    truths = np.array([time for item in items for time in item.intervals], dtype=np.float64)
    counts = np.array([len(item.intervals) for item in items])
    truths /= np.repeat([item.duration for item in items], counts)[:, None]
    first = np.cumsum(counts) - counts
    steps = np.arange(COARSE + 1) * (FINE // COARSE)
    grid = [(a, b) for a in steps.tolist() for b in steps.tolist() if a < b]
    a, b = _best(grid, truths, first)
    near = range(-(FINE // COARSE), FINE // COARSE + 1)
    around = [(a + i, b + j) for i in near for j in near if 0 <= a + i < b + j <= FINE]
    a, b = _best(around, truths, first)
    return a / FINE, b / FINE


def _best(windows: list[tuple[int, int]], truths: np.ndarray, first: np.ndarray) -> tuple[int, int]:
    bounds = np.array(windows, dtype=np.float32) / FINE
    start, end = truths.T.astype(np.float32)
    lengths = np.maximum(end - start, 0)
    means = []
    at_once = max(1, _CELLS // len(truths))
    for done in range(0, len(bounds), at_once):
        a, b = bounds[done : done + at_once].T[:, :, None]
        inter = np.maximum(np.minimum(b, end) - np.maximum(a, start), 0)
        iou = inter / (b - a + lengths - inter)
        if len(first) < len(truths):
            iou = np.maximum.reduceat(iou, first, axis=1)
        means.extend(iou.mean(axis=1, dtype=np.float64).tolist())
    return windows[int(np.argmax(np.round(means, 9)))]


def _by_id(
    items: Sequence[tubes.Tube], times: Sequence[Interval], library: Library, shown: Library, window: str
) -> Table:
    """Metrics of a random ID (its expectation) and of the largest object's, both over the constant window."""
    areas: dict[str, dict[int, int]] = {}
    for item in items:
        if item.video not in areas and shown.knows(item):
            areas[item.video] = _areas(shown.objects(item).tracks)
    ids = [areas.get(item.video) or {} for item in items]
    owner = np.repeat(np.arange(len(items)), [len(found) for found in ids])
    if not len(owner):
        return {}
    pairs = [Prediction((time,), (number,)) for found, time in zip(ids, times, strict=True) for number in found]
    values, _ = tubes.measure([items[k] for k in owner.tolist()], pairs, library, repair=False)
    del values["m_tIoU"]
    each = np.concatenate([1 / len(found) * np.ones(len(found)) for found in ids if found])
    largest = np.concatenate([_is_largest(found) for found in ids if found])
    found: Table = {}
    for name, weights in (("random ID", each), ("largest object", largest)):
        table = {key: float(np.dot(weights, value) / len(items)) for key, value in values.items()}
        found[f"{window}, {name}"] = table
    return found


def _areas(tracks: Tracks) -> dict[int, int]:
    """Pixels of each object, over all frames in which it is shown."""
    found = {}
    for track in tracks.tracks:
        masks = list(track.masks.values())
        found[track.object_id] = sum(
            int(coco.area(masks[k : k + _AT_ONCE]).sum()) for k in range(0, len(masks), _AT_ONCE)
        )
    return found


def _is_largest(areas: dict[int, int]) -> np.ndarray:
    largest = max(areas, key=areas.__getitem__)
    return np.array([float(number == largest) for number in areas])
