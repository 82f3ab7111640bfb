"""What speaks against an annotated tube: its interval, the frames and the picture of its video, the unit of its boxes.

A tube is scored frame by frame, so one that lies elsewhere, or whose boxes are in another unit, pays for wrong answers
and refuses right ones. Nothing here alters a tube.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from verl_stvg.data_builders.numbering import MISCOUNT, hull, misnumbered
from verl_stvg.data_builders.objects.boxes import annotated_size, out_of_reach
from verl_stvg.video.clock import FrameClock

COVERED = 0.9
"""Least IoU of the frames of a tube and of its interval about which nothing is said."""
APART = 0.75
"""IoU of the two below which training is spoilt: reward and time then disagree about a quarter of the frames."""

FEW = 0.1
"""Share of a tube's boxes up to which odd ones are worth knowing and no more."""

Fault = tuple[str, str, bool]
"""Problem, detail, and whether it spoils training; otherwise it is worth knowing."""


def faults(
    truth: Mapping[str, Any], extra: Mapping[str, Any], video: Mapping[str, Any], clock: FrameClock | None = None
) -> Iterator[Fault]:
    """What speaks against the tube of a row.

    Args:
        truth: ground truth of the row.
        extra: the row's ``extra_info``; its ``width`` and ``height`` are the file's.
        video: entry of the row's ``videos``.
        clock: of the file; None: frames are not compared with seconds.
    """
    boxes, begin = truth.get("boxes"), video.get("video_start") or 0.0
    if not boxes or truth.get("first_frame") is None:
        return
    annotated = truth.get("picture") or annotated_size(json.loads(extra.get("annotated") or "{}"))
    picture = annotated or annotated_size(extra)
    yield from _shape(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), picture)
    if clock is None:
        return
    shift = clock.first_shown(begin)
    first = clock.in_file(int(truth["first_frame"]), begin, extra.get("first_frame_of")) - shift
    spans = truth.get("intervals") or ([[truth["start"], truth["end"]]] if truth.get("start") is not None else [])
    frames = [(clock.nearest(begin + start) - shift, clock.nearest(begin + end) - shift) for start, end in spans]
    end = video.get("video_end")
    stop = clock.num_frames if end is None else min(clock.num_frames, clock.nearest(end))
    tube = first, first + len(boxes)
    yield from _place(tube, stop - shift, MISCOUNT * clock.fps)
    in_file = tube[0] + shift, tube[1] + shift
    if misnumbered(clock, in_file, hull(spans, begin), None) is None:  # `verl_stvg.data_builders.check` says that
        yield from _times(tube, [(low, max(high, low + 1)) for low, high in frames])


def _shape(boxes: np.ndarray, picture: tuple[float, float] | None) -> Iterator[Fault]:
    """What the numbers of boxes (T, 4) say by themselves and beside the picture's (width, height)."""
    count, sides = len(boxes), boxes[:, 2:] - boxes[:, :2]
    few = FEW * count
    flat = out_of_reach(boxes, None)
    if picture and (outside := out_of_reach(boxes, picture) - flat):
        size = f"{picture[0]:g}x{picture[1]:g}"
        yield (
            "boxes",
            f"{outside} of {count} boxes lie outside of {size}, and no answer can meet them",
            outside > few,
        )
    if flat:
        yield "boxes", f"{flat} of {count} boxes have no area, and no answer can meet them", flat > few
    if small := int(np.count_nonzero(((sides > 0) & (sides < 1)).any(axis=1))):
        unit = "; boxes are pixels, and these look like shares of the picture" if boxes.max() <= 1 else ""
        yield "boxes", f"{small} of {count} boxes are under one pixel{unit}", boxes.max() <= 1 or small > few
    whole = (boxes == np.round(boxes)).all()
    if picture and min(picture) > 100 and not whole and boxes.min() >= 0 and 1 < boxes.max() <= 100:
        detail = "all coordinates lie within 0 to 100 and are not whole; boxes are pixels: are these per cent?"
        yield "boxes", detail, False


def _place(tube: tuple[int, int], stop: int, slack: float) -> Iterator[Fault]:
    """What lies before the first frame that is shown, number 0, or after the last one, before `stop`."""
    count = tube[1] - tube[0]
    if tube[0] < 0:
        yield "tube", f"{min(count, -tube[0])} of {count} boxes before the first frame that is shown", True
    if tube[1] > stop:
        late = min(count, tube[1] - stop)
        yield "tube", f"{late} of {count} boxes after the last frame that is shown, {stop - 1}", late > max(1, slack)


def _times(tube: tuple[int, int], spans: Sequence[tuple[int, int]]) -> Iterator[Fault]:
    """What the frames of a tube and those of its intervals say against each other; each is first, and after its last.

    Where there are several intervals, nobody says which of them the tube is about, and only their hull is compared.
    """
    if not spans:
        return
    first, last = min(low for low, _ in spans), max(high for _, high in spans)
    common = min(tube[1], last) - max(tube[0], first)
    frames = f"frames {tube[0]} to {tube[1] - 1}, and the interval is frames {first} to {last - 1}"
    if common <= 0:
        yield "tube", f"tube and interval have no frame in common: the tube is {frames}", True
    elif len(spans) == 1:
        iou = common / (max(tube[1], last) - min(tube[0], first))
        if tube[0] - first == tube[1] - last == 1:
            yield "tube", f"the tube ends a frame after the interval: it is {frames}; was it counted from 1?", False
        elif max(abs(tube[0] - first), abs(tube[1] - last)) > 1 and iou < COVERED:
            share, more = 100 * common / (last - first), tube[1] - tube[0] - common
            outside = f" and has {more} frames outside of it" if more else ""
            yield "tube", f"the tube covers {share:.0f} % of the interval{outside}: it is {frames}", iou < APART
