"""Tube metrics as published scripts compute them, each under its name, for comparison with published tables only.

All take one item and give (tIoU, vIoU, ...), to be averaged by `tubes.summary`. They differ from `tubes` and from each
other in whether spans include their end, which frames are counted, and what the sum is divided by; a prediction that is
missing is the caller's None, and scores 0 with all of them. Tubes are those of `tubes`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from reward_fns import measures
from verl_stvg.eval.metrics.tubes import Box, Floats, Frames, Tube, as_arrays, common

Span = Sequence[int]
Objects = Mapping[int, Mapping[int, Box]]

SAMPLED_FPS = 5
SAMPLED_FRAMES = 200
ST_ALIGN_FRAMES = 100


def hcstvg_challenge(tube: Tube, span: Span, true_tube: Tube, true_span: Span) -> tuple[float, float]:
    """Return (tIoU, vIoU) of the HC-STVG challenge; vIoU@R is strict.

    Spans are first and last frame, both included; the denominator is the hull of the spans, and frames are common if
    both tubes have a box, whatever the spans say. Source: HC-STVG `eval_hcvg.py`.

    Args:
        tube: predicted.
        span: predicted, first and last frame.
        true_tube: annotated.
        true_span: annotated, first and last frame.
    """
    frames, ious, _ = common(tube, true_tube)
    hull = max(span[1], true_span[1]) - min(span[0], true_span[0]) + 1
    return len(frames) / hull, float(ious.sum()) / hull


def sampled_frames(
    first: int,
    end: int,
    source_fps: float,
    fps: float = SAMPLED_FPS,
    max_frames: int = SAMPLED_FRAMES,
    times: Sequence[float] | None = None,
) -> Frames:
    """Return the frames that TubeDETR looks at and is scored on.

    Args:
        first: frame of the clip; 0 in HC-STVG.
        end: frame after the last one considered: the last of the clip itself is not (HC-STVG: `frame_count - 1`).
        source_fps: of the video; in HC-STVG the frames over 20 s.
        fps: of the sampling: the first frame of each step of the clock.
        max_frames: longer samples are thinned.
        times: seconds at which all frames of the video appear, where its rate is not constant, which the original knows
            nothing of; steps without a new frame are then left out, however few there are.

    Raises:
        ValueError: the video has fewer frames per second than are sampled.
    """
    if times is None and fps > source_fps:
        raise ValueError(f"{fps} frames per second cannot be sampled from {source_fps}")
    considered = np.arange(first, max(end, first + 1))
    if times is None:
        steps = considered * (fps / source_fps)
    else:
        steps = np.asarray(times)[np.minimum(considered, len(times) - 1)] * fps
    _, kept = np.unique(steps.astype(np.int64), return_index=True)
    frames = considered[kept]
    if len(frames) > max_frames:
        frames = frames[np.arange(max_frames) * len(frames) // max_frames]
    return frames


def tubedetr(
    tube: Tube, span: Span, true_tube: Tube, true_span: Span, sampled: Frames, shift: int = 0
) -> tuple[float, float, float]:
    """Return (tIoU, vIoU, vIoU within the annotated span) of TubeDETR's evaluators; vIoU@R is strict.

    Spans include their first frame and not their last. tIoU is of the spans; vIoU is over sampled frames only. A
    sampled frame of the annotated span without a predicted box counts as 0; the original raises.
    Source: TubeDETR `datasets/hcstvg_eval.py`, `datasets/vidstg_eval.py`.

    Args:
        tube: predicted; it need not be limited to its span.
        span: predicted, first frame and the one after the last.
        true_tube: annotated.
        true_span: annotated, likewise.
        sampled: of `sampled_frames`.
        shift: frames that the annotation is moved by. 1 equals the original on HC-STVG, whose frames it counts from 1;
            0 is right, and equals the original on VidSTG.
    """
    true_frames, true_boxes = as_arrays(true_tube)
    true_span = (true_span[0] + shift, true_span[1] + shift)
    annotated = np.isin(sampled, true_frames + shift) & _within(sampled, *true_span)
    frames, ious, _ = common(tube, (true_frames + shift, true_boxes))
    scored = np.isin(frames, sampled[annotated])
    hull = np.count_nonzero(_within(sampled, min(span[0], true_span[0]), max(span[1], true_span[1])))
    meet = scored & _within(frames, max(span[0], true_span[0]), min(span[1], true_span[1]))
    viou = float(ious[meet].sum()) / max(hull, 1)
    return _half_open_iou(span, true_span), viou, float(ious[scored].sum()) / max(np.count_nonzero(annotated), 1)


def cgstvg(tube: Tube, span: Span, true_tube: Tube, true_span: Span) -> tuple[float, float, float]:
    """Return (tIoU, vIoU, vIoU within the annotated span) of CG-STVG's evaluators; vIoU@R is strict.

    Gaps of the prediction are filled by straight lines between the boxes beside them. Bounds are used as they come (CG-
    STVG gives the annotation's last frame and the prediction's frame after the last), in half-open formulas. A frame
    without a predicted box counts as 0; on VidSTG the original raises.
    Source: CG-STVG `datasets/evaluation/hcstvg_eval.py`, `vidstg_eval.py`, `engine/evaluate.py`.

    Args:
        tube: predicted; it need not be limited to its span.
        span: predicted, first frame and the one after the last.
        true_tube: annotated, zero-based frames (`st_frame - 1` on).
        true_span: annotated, first and last frame.
    """
    frames, ious, _ = common(_filled(tube), true_tube)
    meet = _within(frames, max(span[0], true_span[0]), min(span[1], true_span[1]))
    hull = max(span[1], true_span[1]) - min(span[0], true_span[0])
    true_count = len(as_arrays(true_tube)[0])
    viou = float(ious[meet].sum()) / max(hull, 1)
    return _half_open_iou(span, true_span), viou, float(ious.sum()) / max(true_count, 1)


def st_align_frames(first: int, last: int, count: int = ST_ALIGN_FRAMES) -> Frames:
    """Return the frames that LLaVA-ST shows and scores, evenly from the first to the last of a clip, both included.

    Halves are rounded to the even frame, and short clips repeat frames. Source: LLaVA-ST `inference/src/datasets.py`.

    Args:
        first: frame of the clip.
        last: frame of the clip, included.
        count: of frames, at least two.
    """
    return first + np.rint(np.arange(count) / (count - 1) * (last - first)).astype(np.int64)


def st_align(
    tube: Tube, fractions: Sequence[float], true_tube: Tube, true_span: Span, clip: Span
) -> tuple[float, float, float]:
    """Return (tIoU, vIoU, spatial IoU over common frames) of the ST-Align benchmark; thresholds are `>=`.

    The denominator of vIoU is the frames that have a box in either tube, so a predicted time without boxes costs
    nothing. Source: LLaVA-ST `inference/src/metrics.py`, task `stvg`; `svg` has no tIoU.

    Args:
        tube: predicted, on frames of `st_align_frames`.
        fractions: predicted start and end as parts of the clip, 0 to 1.
        true_tube: annotated, on the same frames.
        true_span: annotated, first and last frame.
        clip: first and last frame; longer than one frame.
    """
    start, end = (round((frame - clip[0]) / (clip[1] - clip[0]), 3) for frame in true_span)
    overlap = max(0.0, min(end, fractions[1]) - max(start, fractions[0]))
    hull = max(end, fractions[1]) - min(start, fractions[0])
    frames, ious, either = common(tube, true_tube)
    total = float(ious.sum())
    return overlap / hull if overlap > 0 else 0.0, total / max(either, 1), total / max(len(frames), 1)


def stvg_r1(
    object_id: int | None,
    interval: Sequence[float],
    true_tube: Tube,
    true_interval: Sequence[float],
    objects: Objects,
    fps: float,
    shift: int = 0,
    place: Callable[[float], float] | None = None,
) -> tuple[float, float]:
    """Return (tIoU, vIoU) of STVG-R1's evaluation; thresholds are `>=`.

    tIoU is of the intervals, over their hull. For vIoU times are cut down to frames, whose hull is the denominator; a
    single common frame gives 0. Where the ID is not seen its box is repaired, see `stvg_r1_boxes`. An answer that could
    not be read counts as 0, which is the caller's to do, and so does an infinite one; the original leaves out items
    whose video is missing.
    Source: STVG-R1 `evaluate.py`.

    Args:
        object_id: answered; None and IDs that do not exist get the largest object of each frame.
        interval: answered, seconds.
        true_tube: annotated.
        true_interval: annotated, seconds.
        objects: see `stvg_r1_boxes`.
        fps: of the annotation.
        shift: frames that the annotation is moved by. 1 equals the original on HC-STVG, whose frames it counts from 1,
            and costs a frame of each tube; 0 is right.
        place: frame number, with a fraction, of a time, where the rate is not constant; None: the time by `fps`.
    """
    place = place or (lambda time: time * fps)
    start, end = interval
    true_start, true_end = true_interval
    overlap, hull = min(end, true_end) - max(start, true_start), max(end, true_end) - min(start, true_start)
    tiou = overlap / hull if overlap > 0 else 0.0
    if not math.isfinite(start) or not math.isfinite(end):
        return 0.0, 0.0
    first, last, true_first, true_last = (int(place(time)) for time in (start, end, true_start, true_end))
    low, high = max(first, true_first), min(last, true_last)
    if low >= high:
        return tiou, 0.0
    frames, boxes = as_arrays(true_tube)
    _, ious, _ = common(stvg_r1_boxes(objects, object_id, low, high), (frames + shift, boxes))
    return tiou, float(ious.sum()) / (max(last, true_last) - min(first, true_first) + 1)


def stvg_r1_boxes(objects: Objects, object_id: int | None, first: int, last: int) -> dict[int, Box]:
    """Return the boxes that STVG-R1's evaluation takes for an ID, by frame.

    `verl_stvg.data_builders.objects.target.tube_of` repairs by the same rules with exact boxes of our tracks; this one
    is the original to the last digit.

    Args:
        objects: boxes by ID by frame, xyxy up to the last pixel (one less than `Tracks.boxes`) and in the original's
            order; frames without a mask file are left out, frames without objects are empty. Not limited to one size:
            the original reads them before small objects are filtered away.
        object_id: answered.
        first: frame of the overlap of the answer with the truth.
        last: frame, included.
    """
    there = [frame for frame in range(first, last + 1) if frame in objects]
    own = {frame: here[object_id] for frame in there if object_id is not None and object_id in (here := objects[frame])}
    boxes: dict[int, Box] = {}
    current: Box | None = None
    seen: Box | None = None
    for frame in there:
        here = objects[frame]
        if frame in own:
            box = current = seen = own[frame]
        elif current is not None:
            box = _nearest(current, here) or _largest(here)
            if box is None and seen is not None:
                box = current = seen
        else:
            box = None
            if own:
                reference = own[min(own, key=lambda other: abs(other - frame))]
                box = current = _nearest(reference, here) or reference
            box = box or _largest(here)
        if box is not None:
            boxes[frame] = box
    return boxes


def _nearest(reference: Box, here: Mapping[int, Box]) -> Box | None:
    """The box that overlaps a reference most, the first of equal ones; None if none does."""
    best = max(here.values(), key=lambda box: measures.box_iou(box, reference), default=None)
    return best if best is not None and measures.box_iou(best, reference) > 0 else None


def _largest(here: Mapping[int, Box]) -> Box | None:
    """The largest box, the first of equal ones; None if none has an area."""
    best = max(here.values(), key=_area, default=None)
    return best if best is not None and _area(best) > 0 else None


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _filled(tube: Tube) -> tuple[Frames, Floats]:
    """A tube with a box for each frame from its first to its last, on straight lines between its own."""
    frames, boxes = as_arrays(tube)
    if len(frames) < 2:
        return frames, boxes
    every = np.arange(frames[0], frames[-1] + 1)
    return every, np.stack([np.interp(every, frames, side) for side in boxes.T], axis=1)


def _half_open_iou(span: Span, true_span: Span) -> float:
    overlap = min(span[1], true_span[1]) - max(span[0], true_span[0])
    union = (span[1] - span[0]) + (true_span[1] - true_span[0]) - overlap
    return overlap / union if overlap > 0 else 0.0


def _within(frames: Frames, first: int, end: int) -> np.ndarray:
    return (first <= frames) & (frames < end)
