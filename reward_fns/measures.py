"""Overlap measures between predictions and truths: intervals, lists of intervals, IDs, boxes, tubes.

Plain arithmetic on numbers, separate from parsing, so that rewards, data selection and evaluation agree on one
definition. The papers divide by the hull (the smallest interval that covers both); evaluation sets mostly use the true
union. The two agree wherever the intervals overlap. Every function returns a finite float for any input without NaN.
"""


def temporal_iou(start: float, end: float, true_start: float, true_end: float) -> float:
    """Return intersection over hull of two intervals, in [0, 1].

    Seconds or any common unit. 0 for disjoint, touching, reversed or zero-length intervals and for an infinite or
    zero-length hull. Source: STVG-R1, 2.2; Temporal-R1, 2.1.
    """
    intersection = min(end, true_end) - max(start, true_start)
    if intersection <= 0.0:
        return 0.0
    hull = max(end, true_end) - min(start, true_start)
    return intersection / hull if hull != float("inf") else 0.0
