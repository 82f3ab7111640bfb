"""Grounded question answering: right for the right reason, by our rule and by the scripts of NExT-GQA and ReXTime.

The clean measure keeps every question in the denominator. NExT-GQA's script leaves out questions without a prediction
and gives a point within the truth full precision; ReXTime's picks the annotated window by one IoU and scores it by
another. Their tables are reproduced under their names, rounding included.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verl_stvg.eval.metrics.rows import by_id
from verl_stvg.eval.metrics.temporal import best, iop, iou_hull, iou_union, reaches

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


def grounded_qa_summary(
    values: Mapping[str, NDArray[np.float64]], thresholds: Sequence[float] = (0.3, 0.5)
) -> dict[str, float]:
    """Return the means of `grounded_qa` and the shares that reach thresholds, fractions.

    Raises:
        ValueError: no questions.
    """
    if not len(values["IoU"]):
        raise ValueError("there are no questions, and so no mean")
    table = {}
    for name in ("IoU", "IoP"):
        table[f"m{name}"] = float(values[name].mean())
        table |= {f"{name}@{m:g}": float(reaches(values[name], m).mean()) for m in thresholds}
    return table | {name: float(values[name].mean()) for name in ("Acc@QA", "Acc@GQA", "Acc@IoU")}


def nextgqa_iou_iop(truth: Span, prediction: Span) -> tuple[float, float]:
    """Return IoU over the hull and IoP as NExT-GQA's script has them: negative if disjoint, 1 for a point within.

    Source: NExT-GQA `eval_ground.py`. `temporal.iop` with `point_rule="nextgqa"` is the clamped one.
    """
    start, end = prediction[0], prediction[-1]
    if start == end:
        return 0, int(truth[0] <= start <= truth[1])
    overlap = min(truth[-1], end) - max(truth[0], start)
    hull = max(truth[-1], end) - min(truth[0], start)
    return overlap / hull if hull > 0 else 0.0, overlap / (end - start) if end > start else 0.0


def nextgqa_eval_ground(
    gt: Mapping[str, Mapping[str, Any]],
    pred: Mapping[str, Span],
    qa: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """Return the row that NExT-GQA's script prints: percent with one decimal.

    Questions without a prediction leave the denominator; a question without an answer counts as wrong, where the
    original raises. Source: NExT-GQA `eval_ground.py`.

    Args:
        gt: by video, with `location`: by question, intervals in seconds.
        pred: interval by `video_question`.
        qa: by `video_question`, with `answer` and `prediction`; None scores no answers.

    Raises:
        ValueError: no question has a prediction.
    """
    rows = []
    for video, item in gt.items():
        for question, spans in item["location"].items():
            key = f"{video}_{question}"
            if key not in pred:
                continue
            iou, precision = 0.0, 0.0
            for span in spans:
                one = nextgqa_iou_iop(span, pred[key])
                iou, precision = max(iou, one[0]), max(precision, one[1])
            said = (qa or {}).get(key)
            rows.append((iou, precision, said is not None and said["answer"] == said["prediction"]))
    if not rows:
        raise ValueError("none of the questions has a prediction; keys are 'video_question'")
    table = {
        "Acc@GQA": sum(right and precision >= 0.5 for _, precision, right in rows),
        "mIoP": sum(precision for _, precision, _ in rows),
        "IoP@0.3": sum(precision >= 0.3 for _, precision, _ in rows),
        "IoP@0.5": sum(precision >= 0.5 for _, precision, _ in rows),
        "mIoU": sum(iou for iou, _, _ in rows),
        "IoU@0.3": sum(iou >= 0.3 for iou, _, _ in rows),
        "IoU@0.5": sum(iou >= 0.5 for iou, _, _ in rows),
    }
    return {name: round(total / len(rows) * 100, 1) for name, total in table.items()}


def rextime_eval_submission(
    submission: Sequence[Mapping[str, Any]], gt: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the brief table of ReXTime's script: recalls and mIoU in percent with two decimals, accuracies 0 to 1.

    The first predicted window counts. Of several annotated windows the one of the best IoU over the union is taken, and
    scored over the hull. What the first row lacks (windows, or answers) is left out of the table.
    Source: ReXTime `rextime_eval.py`.

    Args:
        submission: rows with `qid`, and `pred_relevant_windows`, `ans`, or both.
        gt: rows with `qid`, `relevant_windows`, `ans`.

    Raises:
        ValueError: no rows, an ID twice, IDs that differ, or a row without windows.
    """
    said, true = by_id(submission, lambda row: row["qid"]), by_id(gt, lambda row: row["qid"])
    if not said or said.keys() != true.keys():
        lost, extra = len(true.keys() - said.keys()), len(said.keys() - true.keys())
        raise ValueError(f"IDs have to be the same, and at least one: {lost} are missing, {extra} are not in the truth")
    has_windows, has_answers = ("pred_relevant_windows" in submission[0]), ("ans" in submission[0])
    table: dict[str, float] = {}
    right = np.zeros(len(said), dtype=bool)
    if has_answers or not has_windows:
        right = np.array([row["ans"] == true[qid]["ans"] for qid, row in said.items()])
        table["VQA"] = float(right.mean())
    if has_windows:
        ious = np.array([_rextime_iou(row, true[qid]) for qid, row in said.items()])
        table["MR-full-R1@0.3"] = round(float((ious >= 0.3).mean()) * 100, 2)
        table["MR-full-R1@0.5"] = round(float((ious >= 0.5).mean()) * 100, 2)
        table["MR-full-mIoU"] = round(float(ious.mean()) * 100, 2)
        if has_answers:
            table["VQA,mIoU@0.5"] = float((right & (ious >= 0.5)).mean())
    return table


def _rextime_iou(row: Mapping[str, Any], true: Mapping[str, Any]) -> float:
    windows = np.asarray(true["relevant_windows"], dtype=np.float64).reshape(-1, 2)
    if not len(windows) or not len(row["pred_relevant_windows"]):
        raise ValueError(f"{row['qid']!r} has no window, predicted or annotated")
    window = np.asarray(row["pred_relevant_windows"][0][:2], dtype=np.float64)[None]
    chosen = windows[[int(np.argmax(iou_union(np.repeat(window, len(windows), axis=0), windows)))]]
    return float(iou_hull(window, chosen)[0])
