"""VideoMind's tables, which VideoTG-R1 builds on: grounding and answers by task, in float32, as its script prints them.

Float32 is kept because an IoU near a threshold may fall on the other side of it in float64.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verl_stvg.eval.metrics.answers import check_ans

TOP_K = (1, 3, 5)
THRESHOLDS = (0.3, 0.5, 0.7)
FRAME_FACTOR = 2
MAX_FRAMES = 768

_ALL = "\0all"  # keeps apart a task that is named "all"

Floats = NDArray[np.float32]


def iou_iop(pred: Sequence[Sequence[float]], span: Sequence[Sequence[float]]) -> tuple[Floats, Floats]:
    """Return IoU over the union and IoP of each prediction, (P,) float32, the best over the annotated intervals.

    0 where a value is not finite, such as of a point, or of a bound that is not finite or beyond float32. Source:
    VideoMind `eval_auto.py` with nncore.

    Raises:
        ValueError: no predictions or no annotated intervals.
    """
    with np.errstate(over="ignore"):
        found, true = (np.asarray(side, dtype=np.float32).reshape(-1, 2) for side in (pred, span))
    if not len(found) or not len(true):
        raise ValueError("an item has no prediction or no annotated interval")
    found, true = found[:, None], true[None]
    with np.errstate(all="ignore"):
        inter = np.minimum(found[..., 1], true[..., 1]) - np.maximum(found[..., 0], true[..., 0])
        inter = np.maximum(inter, np.float32(0))
        length, true_length = found[..., 1] - found[..., 0], true[..., 1] - true[..., 0]
        values = inter / (length + true_length - inter), inter / length
    iou, iop = (np.where(np.isfinite(value), value, np.float32(0)).max(axis=1) for value in values)
    return iou, iop


def eval_auto(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the three tables of VideoMind's script by task and for `all`: percent with two decimals, counts.

    Args:
        samples: rows with `task` (a name, several, or none: `unknown`); with `pred` (ranked intervals), `conf` and
            `span` where there is grounding; with `question`, `options`, `ans`, `response` where there is an answer;
            with `grounder_success` if it may be False, which is counted as failed. A reply that cannot be read as an
            option is counted as failed and wrong; the original raises on some.

    Source: VideoMind `eval_auto.py`; its CG-Bench mode is left out.
    """
    grounding: dict[str, list[tuple[Floats, Floats, bool]]] = {}
    answers: dict[str, list[tuple[bool | None, bool, bool]]] = {}
    for sample in samples:
        named = sample.get("task", "unknown")
        tasks = [named] if isinstance(named, str) else list(named)
        for task in tasks:
            for table in (grounding, answers):
                table.setdefault(task, [])
        near = within = False
        if "pred" in sample and "conf" in sample and "span" in sample:
            iou, iop = iou_iop(sample["pred"], sample["span"])
            near, within = bool(iou[0] >= np.float32(0.5)), bool(iop[0] >= np.float32(0.5))
            for task in (*tasks, _ALL):
                grounding.setdefault(task, []).append((iou, iop, bool(sample.get("grounder_success", True))))
        if "question" in sample and "response" in sample:
            right = check_ans(len(sample["options"]), sample["ans"], sample["response"])
            for task in (*tasks, _ALL):
                answers.setdefault(task, []).append((right, near, within))
    names = sorted(grounding.keys() - {_ALL}) + [_ALL]
    label = {task: task if task is not _ALL else "all" for task in names}
    return {
        "Grounding (IoU)": {label[task]: _grounding_row(grounding.get(task, []), 0, "mIoU") for task in names},
        "Grounding (IoP)": {label[task]: _grounding_row(grounding.get(task, []), 1, "mIoP") for task in names},
        "QA": {label[task]: _answer_row(answers.get(task, [])) for task in names},
    }


def _grounding_row(rows: Sequence[tuple[Floats, Floats, bool]], measure: int, mean: str) -> dict[str, float]:
    row: dict[str, float] = {"#Samples": len(rows), "Failed": sum(not row[2] for row in rows)}
    values = [found[:2][measure] for found in rows]
    for k in TOP_K:
        tops = np.array([found[:k].max() for found in values], dtype=np.float32)
        row |= {f"R{k}@{t}": _percent(int(np.count_nonzero(tops >= np.float32(t))), len(rows)) for t in THRESHOLDS}
    row[mean] = _percent(sum(float(found[0]) for found in values), len(rows))
    return row


def _answer_row(rows: Sequence[tuple[bool | None, bool, bool]]) -> dict[str, float]:
    return {
        "#Samples": len(rows),
        "Failed": sum(right is None for right, _, _ in rows),
        "Acc": _percent(sum(right is True for right, _, _ in rows), len(rows)),
        "Acc (IoU >= 0.5)": _percent(sum(right is True and near for right, near, _ in rows), len(rows)),
        "Acc (IoP >= 0.5)": _percent(sum(right is True and within for right, _, within in rows), len(rows)),
    }


def _percent(part: float, count: int) -> float:
    return round(part / count * 100, 2) if count else 0.0


def smart_nframes(
    total_frames: int,
    video_fps: float,
    fps: float = 2.0,
    min_frames: int = 4,
    max_frames: int | None = None,
    nframes: int | None = None,
) -> int:
    """Return how many frames VideoMind samples: the duration at `fps`, clamped, to the nearest even number.

    `verl_stvg.video.plan.smart_nframes` rounds down instead, as later versions of qwen-vl-utils do.
    Source: VideoMind `dataset/utils.py`.

    Args:
        total_frames: of the video.
        video_fps: of the video.
        fps: wanted rate.
        min_frames: rounded up to an even number.
        max_frames: rounded down to an even number; None for 768, or the video's if it has fewer.
        nframes: rounded to an even number, in place of all the others.

    Raises:
        ValueError: fewer than two frames, or more than the video has.
    """
    if nframes is not None:
        return _within(round(nframes / FRAME_FACTOR) * FRAME_FACTOR, total_frames)
    low = math.ceil(min_frames / FRAME_FACTOR) * FRAME_FACTOR
    most = min(MAX_FRAMES, total_frames) if max_frames is None else max_frames
    high = most // FRAME_FACTOR * FRAME_FACTOR
    return _within(
        round(min(max(total_frames / video_fps * fps, low), high) / FRAME_FACTOR) * FRAME_FACTOR, total_frames
    )


def _within(count: int, total_frames: int) -> int:
    if not FRAME_FACTOR <= count <= total_frames:
        raise ValueError(f"{count} frames are wanted of a video of {total_frames}, which has to have at least as many")
    return count
