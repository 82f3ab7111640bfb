"""Overlap measures between predictions and truths: intervals, lists of intervals, IDs, boxes, tubes.

Plain arithmetic on numbers, separate from parsing, so that rewards, data selection and evaluation agree on one
definition. The papers divide by the hull (the smallest interval that covers both); evaluation sets mostly use the true
union. The two agree wherever the intervals overlap. Every function returns a finite float for any input without NaN.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

_INFINITE = float("inf")


def temporal_iou(start: float, end: float, true_start: float, true_end: float) -> float:
    """Return intersection over hull of two intervals, in [0, 1].

    0 for disjoint, touching, reversed or zero-length intervals and for an infinite hull.

    Args:
        start: of the prediction, seconds or any common unit.
        end: of the prediction.
        true_start: of the truth, in the same unit.
        true_end: of the truth.

    Source: STVG-R1, 2.2; Temporal-R1, 2.1.
    """
    intersection = min(end, true_end) - max(start, true_start)
    if intersection <= 0.0:
        return 0.0
    hull = max(end, true_end) - min(start, true_start)
    return intersection / hull if hull < _INFINITE else 0.0


def temporal_iou_union(start: float, end: float, true_start: float, true_end: float) -> float:
    """Return intersection over the true union of two intervals, in [0, 1]; 0 where the union is empty.

    Differs from `temporal_iou` by nothing but its treatment of reversed intervals, which have length 0 here.

    Args:
        start: of the prediction, seconds or any common unit.
        end: of the prediction.
        true_start: of the truth, in the same unit.
        true_end: of the truth.

    Source: VideoTG-R1 notes, 6.1 (VideoMind).
    """
    intersection = max(0.0, min(end, true_end) - max(start, true_start))
    union = max(0.0, end - start) + max(0.0, true_end - true_start) - intersection
    return intersection / union if 0.0 < union < _INFINITE else 0.0


def temporal_giou(start: float, end: float, true_start: float, true_end: float) -> float:
    """Return IoU minus the share of the hull that neither interval covers, in [-1, 1].

    Unlike IoU it tells a near miss from a far one. -1 for an infinite hull; reversed intervals have length 0.

    Args:
        start: of the prediction, seconds or any common unit.
        end: of the prediction.
        true_start: of the truth, in the same unit.
        true_end: of the truth.

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, for one dimension.
    """
    end, true_end = max(start, end), max(true_start, true_end)
    hull = max(end, true_end) - min(start, true_start)
    if not hull < _INFINITE:
        return -1.0
    if hull <= 0.0:  # both are the same point
        return 1.0
    # In one dimension either the intervals overlap or a gap lies between them; the union is the hull without the gap.
    overlap = min(end, true_end) - max(start, true_start)
    return overlap / hull


def temporal_diou(start: float, end: float, true_start: float, true_end: float) -> float:
    """Return IoU minus the squared distance of the centres over the squared hull, in [-1, 1].

    -1 for an infinite hull; reversed intervals have length 0.

    Args:
        start: of the prediction, seconds or any common unit.
        end: of the prediction.
        true_start: of the truth, in the same unit.
        true_end: of the truth.

    Source: Zheng et al., Distance-IoU Loss, AAAI 2020, for one dimension.
    """
    end, true_end = max(start, end), max(true_start, true_end)
    hull = max(end, true_end) - min(start, true_start)
    if not hull < _INFINITE:
        return -1.0
    if hull <= 0.0:
        return 1.0
    distance = (0.5 * (start - true_start) + 0.5 * (end - true_end)) / hull
    return temporal_iou(start, end, true_start, true_end) - distance * distance


def temporal_iou_v2(start: float, end: float, true_start: float, true_end: float, duration: float) -> float:
    """Return IoU times (1 - |start error| / duration) times (1 - |end error| / duration).

    At most 1. Negative once exactly one boundary is off by more than the duration, as in the original, which does not
    clamp. 0 without overlap and where the product is not finite. Source: Time-R1 `iou_v2` (STVG-R1 notes, 6.1).

    Args:
        start: of the prediction, seconds or any common unit.
        end: of the prediction.
        true_start: of the truth, in the same unit.
        true_end: of the truth.
        duration: of the video, in the same unit.
    """
    overlap = temporal_iou(start, end, true_start, true_end)
    if overlap <= 0.0 or duration <= 0.0:
        return 0.0
    reward = overlap * (1.0 - abs(start - true_start) / duration) * (1.0 - abs(end - true_end) / duration)
    return reward if -_INFINITE < reward < _INFINITE else 0.0


def intervals_iou(intervals: Iterable[Sequence[float]], true_intervals: Iterable[Sequence[float]]) -> float:
    """Return intersection over union of two unions of intervals, in [0, 1]; 1 where both are empty.

    Each interval is (start, end) with start <= end; overlapping and touching ones are merged first. 0 where a length is
    infinite. Source: VideoChat-R1 grounded QA (VideoTG-R1 notes, 4.2).
    """
    merged, true_merged = _merge(intervals), _merge(true_intervals)
    length, true_length = (sum(end - start for start, end in side) for side in (merged, true_merged))
    if not length + true_length < _INFINITE:
        return 0.0
    intersection, i, j = 0.0, 0, 0
    while i < len(merged) and j < len(true_merged):
        start, end = merged[i]
        true_start, true_end = true_merged[j]
        intersection += max(0.0, min(end, true_end) - max(start, true_start))
        if end < true_end:
            i += 1
        else:
            j += 1
    union = length + true_length - intersection
    return min(1.0, intersection / union) if union > 0.0 else 1.0


def _merge(intervals: Iterable[Sequence[float]]) -> list[list[float]]:
    merged: list[list[float]] = []
    for start, end in sorted((float(start), float(end)) for start, end in intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def set_f1(ids: Collection[int], true_ids: Collection[int]) -> float:
    """Return the F1 of two sets of IDs, in [0, 1]; 0 where either is empty. Equals an exact match for one ID each.

    Ours, proposed by STVG-R1 notes, 2.4: the paper handles one ID.
    """
    predicted, true = set(ids), set(true_ids)
    return 2.0 * len(predicted & true) / (len(predicted) + len(true)) if predicted and true else 0.0


def overlaps_any(start: float, end: float, intervals: Iterable[Sequence[float]]) -> bool:
    """Tell whether the interval shares a moment with any of `intervals` (closed on both sides); False if reversed.

    Args:
        start: seconds or any common unit.
        end: in the same unit.
        intervals: (start, end) of each, in the same unit.
    """
    return start <= end and any(start <= other_end and other_start <= end for other_start, other_end in intervals)


def box_iou(box: Sequence[float], true_box: Sequence[float]) -> float:
    """Return the IoU of two boxes xyxy, in [0, 1]; widths are continuous (no +1), degenerate boxes have no area."""
    left, top, right, bottom = box
    true_left, true_top, true_right, true_bottom = true_box
    width = min(right, true_right) - max(left, true_left)
    height = min(bottom, true_bottom) - max(top, true_top)
    if width <= 0.0 or height <= 0.0:
        return 0.0
    intersection = width * height
    union = (right - left) * (bottom - top) + (true_right - true_left) * (true_bottom - true_top) - intersection
    return min(1.0, intersection / union) if 0.0 < union < _INFINITE else 0.0


def tube_iou(tube: Mapping[int, Sequence[float]], true_tube: Mapping[int, Sequence[float]]) -> float:
    """Return the sum of box IoU over common frames, divided by the number of frames of either tube, in [0, 1].

    Tubes map a frame to a box xyxy. Frames that only one tube has lower the value; 0 where both are empty. Dividing by
    the common frames instead would pay half a reward for one easy frame. Source: vIoU of HC-STVG and VidSTG.
    """
    frames = len(tube.keys() | true_tube.keys())
    common = tube.keys() & true_tube.keys()
    return sum(box_iou(tube[frame], true_tube[frame]) for frame in common) / frames if frames else 0.0
