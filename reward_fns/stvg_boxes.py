"""A reward for models that answer with boxes instead of an object ID: temporal IoU, tube IoU and format. Ours.

The answer is `{"time": [s, e], "boxes": {"frame": [x1, y1, x2, y2], ...}}`, the form of OneThinker. Their reward
averages box IoU over the frames that both sides name, so one easy frame earns the whole spatial half; this one
divides by the frames that either side names, by its time or by a box. A frame of the answered time without a box, and a
box outside of that time, count as answered and earn nothing; so the tube IoU is at most the IoU of the times in frames.
Ground truth: `start`, `end`, `duration` (seconds), `first_frame` (zero-based) and `boxes`, one
box xyxy in pixels of the original video for each frame from there on. The weights are ours.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import floor
from typing import Any

from reward_fns import ground_truth as truths
from reward_fns import measures, parsing
from reward_fns.formats import think_answer
from reward_fns.parsing import Interval
from reward_fns.recipe import Recipe
from reward_fns.thinking import optional_parts

_FAR = 1e12  # frames; beyond it no video is so long, and the arithmetic stays exact


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> tuple[Interval, dict[int, object]] | None:
    """Return ((start, end), frame to box) of the first answer block, or None."""
    answer = parsing.first_block(completion, "answer")
    return parsing.json_tube(answer) if answer is not None else None


def parse_span(completion: str) -> Interval | None:
    """Return (start, end) of the first answer block, or None."""
    answer = parse(completion)
    return answer[0] if answer is not None else None


def temporal(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU (intersection over hull) of the answer, in [0, 1]; 0 if unreadable."""
    span = parse_span(completion)
    return measures.temporal_iou(*span, ground_truth["start"], ground_truth["end"]) if span is not None else 0.0


def spatial(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the sum of box IoU over the frames of both tubes divided by the frames of either, in [0, 1].

    Frames of the answered time (see `answered_frames`) are answered, and so are those with a box. Without a box, with
    one that is no box, and outside of the answered time they have no overlap; 0 if unreadable.
    """
    answer = parse(completion)
    if answer is None:
        return 0.0
    span, tube = answer
    first, true_boxes = int(ground_truth["first_frame"]), ground_truth["boxes"]
    count = len(true_boxes)
    start, end = answered_frames(span, ground_truth, first, count) or (first, first + count)
    last = first + count
    low, high = max(start, first), min(end, last)
    total, astray = 0.0, 0
    for frame, found in tube.items():
        if low <= frame < high:
            box = parsing.box(found)
            if box is not None:
                total += measures.box_iou(box, true_boxes[frame - first])
        elif not (first <= frame < last or start <= frame < end):
            astray += 1
    return total / (max(0, end - start) + count - max(0, high - low) + astray)


def answered_frames(span: Interval, ground_truth: Mapping[str, Any], first: int, count: int) -> tuple[int, int] | None:
    """Return the first frame of an answered time and the one after its last; None if the annotated time has no length.

    Ground truths do not hold the video's rate, but the annotated time and the annotated tube are the same part of the
    video: `start` is the beginning of frame `first`, `end` that of frame `first + count`, and frames lie evenly. Bounds
    are rounded to the nearest beginning of a frame.
    """
    true_start, length = ground_truth["start"], ground_truth["end"] - ground_truth["start"]
    if not length > 0.0:
        return None
    start, end = ((time - true_start) / length * count for time in span)
    return first + _nearest(start), first + _nearest(end)


def _nearest(place: float) -> int:
    """The nearest integer, at most a trillion; also of what is infinite or no number."""
    return floor(place + 0.5) if -_FAR < place < _FAR else int(_FAR if place > 0.0 else -_FAR)


def format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for the think-then-answer layout, else 0.0."""
    return think_answer(completion)


def check_tube(ground_truth: Any, row: object = None) -> None:
    """Check the span, a non-negative `first_frame` and at least one box of four numbers; ValueError otherwise."""
    truths.check_span(ground_truth, row)
    truths.check_integer(ground_truth, "first_frame", row)
    boxes = truths.items(ground_truth, "boxes", row)
    if not boxes:
        truths.fail(row, "boxes", "is empty, one box for each frame of the tube is needed")
    for box in boxes:
        left, top, right, bottom = truths.numbers(box, 4, "boxes", row)
        if right < left or bottom < top:
            truths.fail(row, "boxes", f"holds {box!r}, whose right or bottom lies before its left or top")


RECIPES = (
    Recipe(
        name="stvg_boxes",
        parts={"temporal_iou": (temporal, 1.0), "tube_iou": (spatial, 1.0), "format": (format, 1.0)},
        check=check_tube,
        optional=optional_parts(parse_span),
    ),
)
