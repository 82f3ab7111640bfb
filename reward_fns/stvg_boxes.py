"""Rewards for models that answer with boxes instead of an object ID: temporal IoU, tube IoU and format. Ours.

The answer is `{"time": [s, e], "boxes": {"key": [x1, y1, x2, y2], ...}}`. Two recipes read it, each its own unit:

- `stvg_boxes`: a key is the number of a frame, counted from 0 in what is shown, and boxes are pixels of the original
  video.
- `stvg_boxes_seconds`: the form of OneThinker. A key is a whole second of what is shown, one for each of the stated
  time, both ends included, and boxes are thousandths of the picture's width and height.

OneThinker's reward averages box IoU over the keys that both sides name, so one easy box earns the whole spatial half;
these divide by the keys that either side names, by its time or by a box. A key of the answered time without a box, and
a box outside of that time, count as answered and earn nothing.

Ground truth: `start`, `end`, `duration` (seconds), `first_frame` (zero-based, of what is shown) and `boxes`, one box
xyxy in pixels of the original video for each frame from there on; for `stvg_boxes_seconds` also `picture`, the (width,
height) in which the boxes are pixels. The weights are ours.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from math import ceil, floor
from typing import Any

from reward_fns import ground_truth as truths
from reward_fns import measures, parsing
from reward_fns.formats import think_answer
from reward_fns.parsing import Interval
from reward_fns.recipe import Reading, Recipe, said_span
from reward_fns.thinking import optional_parts

_THOUSAND = (1000.0, 1000.0)  # without a picture, which `check` refuses, true boxes are thousandths themselves
_FAR = 1e12  # frames; beyond it no video is so long, and the arithmetic stays exact
_LONGEST = 86_400  # seconds


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> tuple[Interval, dict[int, object]] | None:
    """Return ((start, end), key to box) of the first answer block, or None; see `parsing.json_tube`."""
    answer = parsing.first_block(completion, "answer")
    return parsing.json_tube(answer) if answer is not None else None


def read(completion: str) -> Reading | None:
    """Return what the first answer block says, its boxes as they were written, or None."""
    answer = parse(completion)
    return Reading((answer[0],), boxes=answer[1]) if answer is not None else None


def write(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the true span and a box for each frame of the true tube."""
    first = int(ground_truth.get("first_frame") or 0)
    boxes = ground_truth.get("boxes")
    return _said(ground_truth, {str(first + k): list(box) for k, box in enumerate(() if boxes is None else boxes)})


def write_seconds(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the true span and a box for each whole second of it."""
    return _said(ground_truth, boxes_by_second(ground_truth))


def _said(ground_truth: Mapping[str, Any], boxes: Mapping[str, list[float]]) -> str:
    time = [float(bound) for bound in said_span(ground_truth)]
    return f"<answer>{json.dumps({'time': time, 'boxes': boxes})}</answer>"


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


def spatial_seconds(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the sum of box IoU over the whole seconds of both tubes divided by the seconds of either, in [0, 1].

    Seconds of a tube are those of its time (see `whole_seconds`); those with a box are answered as well. The true box
    of a second is that of the nearest frame of the tube. 0 if unreadable.
    """
    answer = parse(completion)
    if answer is None:
        return 0.0
    span, tube = answer
    first, last = whole_seconds((ground_truth["start"], ground_truth["end"]))
    start, end = whole_seconds(span)
    low, high = max(start, first), min(end, last)
    width, height = (side / 1000.0 for side in ground_truth.get("picture", _THOUSAND))
    total, astray = 0.0, 0
    for second, found in tube.items():
        if low <= second <= high:
            box = parsing.box(found)
            if box is not None:
                left, top, right, bottom = box
                pixels = (left * width, top * height, right * width, bottom * height)
                total += measures.box_iou(pixels, _box_at(second, ground_truth))
        elif not (first <= second <= last or start <= second <= end):
            astray += 1
    both = max(0, high - low + 1)
    return total / (max(0, end - start + 1) + max(0, last - first + 1) - both + astray or 1)


def whole_seconds(span: Interval) -> tuple[int, int]:
    """Return the first and the last whole second of a time, both ends included; the last is before the first if none.

    Bounds are taken at two decimals, as they are answered. A time without a whole second has the one that is nearest to
    its middle, a reversed one has none.
    """
    start, end = (round(round(min(max(time, -_FAR), _FAR), 6), 2) for time in span)  # a sum may end in ...4999
    first, last = ceil(start), floor(end)
    if last < first and start <= end:
        first = last = floor((start + end) / 2 + 0.5)
    return (first, last) if first <= last else (0, -1)


def boxes_by_second(ground_truth: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the true boxes by whole second, in thousandths of the picture: the answer of `stvg_boxes_seconds`.

    Of a time that is longer than any video (a day) only the boxes of the first day.
    """
    first, last = whole_seconds((ground_truth["start"], ground_truth["end"]))
    width, height = (side / 1000.0 for side in ground_truth.get("picture", _THOUSAND))
    found = {}
    first = max(first, 0)
    for second in range(first, min(last, first + _LONGEST) + 1):
        left, top, right, bottom = _box_at(second, ground_truth)
        found[str(second)] = [left / width, top / height, right / width, bottom / height]
    return found


def _box_at(second: int, ground_truth: Mapping[str, Any]) -> Any:
    """The true box of the frame that begins nearest to a second; frames lie evenly, as in `answered_frames`."""
    boxes, start = ground_truth["boxes"], ground_truth["start"]
    length = ground_truth["end"] - start
    place = _nearest((second - start) * (len(boxes) / length)) if length > 0.0 else 0
    return boxes[min(max(place, 0), len(boxes) - 1)]


def answered_frames(span: Interval, ground_truth: Mapping[str, Any], first: int, count: int) -> tuple[int, int] | None:
    """Return the first frame of an answered time and the one after its last; None if the annotated time has no length.

    Ground truths do not hold the video's rate, but the annotated time and the annotated tube are the same part of the
    video: `start` is the beginning of frame `first`, `end` that of frame `first + count`, and frames lie evenly. Bounds
    are rounded to the nearest beginning of a frame.

    Args:
        span: answered start and end, seconds.
        ground_truth: with ``start`` and ``end``, seconds.
        first: frame of the annotated tube.
        count: of its frames.
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
    """Check the span, a non-negative `first_frame` and at least one box of four numbers; ValueError otherwise.

    `first_frame` counts in what is shown, so a tube that begins before that has none.
    """
    truths.check_span(ground_truth, row)
    truths.check_integer(ground_truth, "first_frame", row)
    boxes = truths.items(ground_truth, "boxes", row)
    if not boxes:
        truths.fail(row, "boxes", "is empty, one box for each frame of the tube is needed")
    for box in boxes:
        left, top, right, bottom = truths.numbers(box, 4, "boxes", row)
        if right < left or bottom < top:
            truths.fail(row, "boxes", f"holds {box!r}, whose right or bottom lies before its left or top")


def check_tube_and_picture(ground_truth: Any, row: object = None) -> None:
    """Check what `check_tube` does and a `picture` of at least one pixel by one; ValueError otherwise."""
    check_tube(ground_truth, row)
    sides = truths.items(ground_truth, "picture", row)
    width, height = truths.numbers(sides, 2, "picture", row)
    if not (width >= 1 and height >= 1):
        truths.fail(row, "picture", f"is {list(sides)!r}, and a picture has a width and a height")


RECIPES = (
    Recipe(
        name="stvg_boxes",
        parts={"temporal_iou": (temporal, 1.0), "tube_iou": (spatial, 1.0), "format": (format, 1.0)},
        check=check_tube,
        read=read,
        answer=write,
        asks=frozenset({"thinking", "time", "boxes"}),
        optional=optional_parts(parse_span),
    ),
    Recipe(
        name="stvg_boxes_seconds",
        parts={"temporal_iou": (temporal, 1.0), "tube_iou": (spatial_seconds, 1.0), "format": (format, 1.0)},
        check=check_tube_and_picture,
        read=read,
        answer=write_seconds,
        asks=frozenset({"thinking", "time", "boxes", "boxes_by_second"}),
        optional=optional_parts(parse_span),
    ),
)
