"""Grounded question answering: right for the right reason, by our rule and by NExT-GQA's for points.

Every question stays in the denominator. NExT-GQA's script gives a point within the truth full precision.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verl_stvg.eval.metrics.temporal import best, iop, iou_union, reaches

Span = Sequence[float]


def grounded_qa(
    predictions: ArrayLike,
    truths: Sequence[Sequence[Span]],
    correct: ArrayLike,
    point_rule: str = "zero",
    threshold: float = 0.5,
) -> dict[str, NDArray[np.float64]]:
    """Return values per question, each (N,): IoU, IoP, Acc@QA, Acc@GQA, Acc@IoU. Their means are the table.

    Acc@GQA: right and IoP at least the threshold; Acc@IoU: right and IoU at least the threshold. IoU is over the true
    union; both are the best over the annotated intervals. Source: VideoTG-R1 notes, 6.1.

    Args:
        predictions: (N, 2), seconds; NaN where there is none.
        truths: of each question one or more intervals.
        correct: (N,) whether the right option was chosen.
        point_rule: of `temporal.iop`.
        threshold: of grounding.

    Raises:
        ValueError: as `temporal.best`, or lengths differ.
    """
    right = np.asarray(correct, dtype=bool)
    if right.shape != (len(truths),):
        raise ValueError(f"correct has the shape {right.shape} for {len(truths)} questions")
    iou, precision = best(iou_union, predictions, truths), best(iop, predictions, truths, point_rule=point_rule)
    return {
        "IoU": iou,
        "IoP": precision,
        "Acc@QA": right.astype(np.float64),
        "Acc@GQA": (right & reaches(precision, threshold)).astype(np.float64),
        "Acc@IoU": (right & reaches(iou, threshold)).astype(np.float64),
    }
