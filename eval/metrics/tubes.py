"""Spatio-temporal grounding: how well predicted tubes meet annotated ones, by the definition that papers mean.

With S_i the frames that both tubes have and S_u those that either has: vIoU is the sum of box IoU over S_i divided by
the size of S_u, tIoU the size of S_i over that of S_u, and vIoU@R the share of items strictly above R. A missing
prediction counts as 0. Scripts that published numbers come from differ in frames, denominators and signs of
comparison; they are in `tube_scripts`, and this is the measure to report.

A tube is a mapping from frame to box, or a pair of arrays (frames (T,), boxes (T, 4)); frames are zero-based integers
(JSON's strings of digits are taken), boxes xyxy in pixels with continuous corners. Boxes without area overlap nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verl_stvg.eval.metrics.temporal import exceeds, reaches

Floats = NDArray[np.float64]
Frames = NDArray[np.int64]
Box = Sequence[float]
Tube = Mapping[int, Box] | Mapping[str, Box] | tuple[ArrayLike, ArrayLike]

THRESHOLDS = (0.3, 0.5)
_ROUNDING = 1e-9  # seconds: frame 36 at 12 per second begins at 3 s


def consecutive(first_frame: int, boxes: ArrayLike, length: int | None = None) -> tuple[Frames, Floats]:
    """Return the tube of boxes (T, 4) of consecutive frames.

    Args:
        first_frame: zero-based.
        boxes: xyxy pixels.
        length: how many there have to be; None for any number.

    Raises:
        ValueError: another number of boxes, or as `as_arrays`.
    """
    found = np.asarray(boxes, dtype=np.float64)
    if length is not None and len(found) != length:
        raise ValueError(f"a tube of {length} frames has {len(found)} boxes")
    return as_arrays((np.arange(first_frame, first_frame + len(found)), found))


def as_arrays(tube: Tube) -> tuple[Frames, Floats]:
    """Return a tube as frames (T,), ascending, and boxes (T, 4).

    Raises:
        ValueError: boxes are not four finite numbers each, as many as frames, or a frame occurs twice.
    """
    if isinstance(tube, Mapping):
        frames = np.fromiter(map(int, tube), dtype=np.int64, count=len(tube))
        odd = next(((frame, len(box)) for frame, box in tube.items() if len(box) != 4), None)
        if odd is not None:
            raise ValueError(f"the box of frame {odd[0]} has {odd[1]} numbers instead of four")
        boxes = np.array(list(tube.values()), dtype=np.float64).reshape(-1, 4)
    else:
        frames, boxes = np.asarray(tube[0], dtype=np.int64), np.asarray(tube[1], dtype=np.float64)
        boxes = boxes.reshape(0, 4) if not boxes.size else boxes
        if frames.ndim != 1 or boxes.shape != (len(frames), 4):
            raise ValueError(f"a tube has frames (T,) and boxes (T, 4), found {frames.shape} and {boxes.shape}")
    steps = np.diff(frames)
    if (steps <= 0).any():
        order = np.argsort(frames, kind="stable")
        frames, boxes = frames[order], boxes[order]
        twice = np.flatnonzero(np.diff(frames) == 0)
        if len(twice):
            raise ValueError(f"frame {frames[twice[0]]} occurs twice in a tube")
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        wrong = int(np.argmin(finite))
        raise ValueError(f"the box of frame {frames[wrong]} is not finite: {boxes[wrong].tolist()}")
    return frames, boxes


def from_seconds(boxes: Mapping[int, Box], times: ArrayLike, span: tuple[float, float]) -> tuple[NDArray, Floats]:
    """Return which frames of a stated time have a box, bool (T,), and their boxes (T, 4), from boxes by whole second.

    Between two consecutive seconds boxes move evenly. Where only one of the two has a box, it stands for half a second;
    and for all of it where the other one lies outside of the stated time, because nothing could be said there.

    Args:
        boxes: xyxy by whole second.
        times: (T,) seconds at which the frames begin.
        span: the stated time, seconds.

    Raises:
        ValueError: as `as_arrays`.
    """
    seconds, sides = as_arrays(boxes)
    begin = np.asarray(times, dtype=np.float64)
    low = np.floor(begin + _ROUNDING).astype(np.int64)
    part = np.clip(begin - low, 0.0, 1.0)
    place = np.searchsorted(seconds, np.stack([low, low + 1]))
    known = np.append(seconds, np.iinfo(np.int64).max)
    before, after = known[place] == np.stack([low, low + 1])
    padded = np.append(sides, np.zeros((1, 4)), axis=0)
    first, second = padded[place]
    alone = before & ~after & ((part <= 0.5) | (low + 1 > span[1]))
    late = after & ~before & ((part >= 0.5) | (low < span[0]))
    share = np.where(before & after, part, late.astype(np.float64))[:, None]
    return (before & after) | alone | late, first * (1 - share) + second * share


def box_iou(boxes: ArrayLike, true_boxes: ArrayLike) -> Floats:
    """Return the IoU of each box with its counterpart, (T,), in [0, 1]; both are (T, 4) xyxy. No pixel is added.

    The same as `reward_fns.measures.box_iou`, for many boxes at once.
    """
    found, true = np.asarray(boxes, dtype=np.float64), np.asarray(true_boxes, dtype=np.float64)
    sides = np.minimum(found[:, 2:], true[:, 2:]) - np.maximum(found[:, :2], true[:, :2])
    inter = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    areas = (found[:, 2:] - found[:, :2]).prod(axis=1) + (true[:, 2:] - true[:, :2]).prod(axis=1)
    # Where boxes meet, both have an area; elsewhere the value is 0, whatever the areas.
    return np.minimum(1.0, np.divide(inter, areas - inter, out=np.zeros(len(inter)), where=inter > 0))


def common(tube: Tube, true_tube: Tube) -> tuple[Frames, Floats, int]:
    """Return the frames that both tubes have, the IoU of their boxes, and the number of frames of either.

    Raises:
        ValueError: as `as_arrays`.
    """
    frames, boxes = as_arrays(tube)
    true_frames, true_boxes = as_arrays(true_tube)
    if not len(frames) or not len(true_frames):
        return np.zeros(0, dtype=np.int64), np.zeros(0), len(frames) + len(true_frames)
    place = np.minimum(np.searchsorted(true_frames, frames), len(true_frames) - 1)
    both = true_frames[place] == frames
    ious = box_iou(boxes[both], true_boxes[place[both]])
    return frames[both], ious, len(frames) + len(true_frames) - len(ious)


def tiou_viou(tube: Tube | None, true_tube: Tube) -> tuple[float, float]:
    """Return (tIoU, vIoU) of one item, each in [0, 1]; (0, 0) for None.

    `reward_fns.measures.tube_iou` is the same vIoU. Source: vIoU of VidSTG and HC-STVG, as STVG-R1 notes 4.3 define it.

    Raises:
        ValueError: the annotated tube is empty, or as `as_arrays`.
    """
    if not len(true_tube if isinstance(true_tube, Mapping) else np.asarray(true_tube[0])):
        raise ValueError("an annotated tube has no frames")
    if tube is None:
        return 0.0, 0.0
    frames, ious, either = common(tube, true_tube)
    return len(frames) / either, float(ious.sum()) / either


def scores(tubes: Sequence[Tube | None], true_tubes: Sequence[Tube]) -> tuple[Floats, Floats]:
    """Return tIoU (N,) and vIoU (N,) of all items; see `rows.aligned` for predictions by ID.

    Raises:
        ValueError: as many predictions as not truths, or as `tiou_viou`, with the item's number.
    """
    if len(tubes) != len(true_tubes):
        raise ValueError(f"{len(tubes)} predictions for {len(true_tubes)} truths")
    values = np.zeros((len(tubes), 2))
    for k, (tube, true_tube) in enumerate(zip(tubes, true_tubes, strict=True)):
        try:
            values[k] = tiou_viou(tube, true_tube)
        except ValueError as error:
            raise ValueError(f"item {k}: {error}") from error
    return values[:, 0], values[:, 1]


def summary(
    tiou: ArrayLike, viou: ArrayLike, thresholds: Sequence[float] = THRESHOLDS, strict: bool = True
) -> dict[str, float]:
    """Return m_tIoU, m_vIoU and vIoU@R for each R, fractions.

    Args:
        tiou: (N,).
        viou: (N,).
        thresholds: R.
        strict: count items above R; False: at least R, as STVG-R1's and ST-Align's scripts.

    Raises:
        ValueError: no items, or lengths differ.
    """
    times, found = np.asarray(tiou, dtype=np.float64), np.asarray(viou, dtype=np.float64)
    if not found.size or times.shape != found.shape:
        raise ValueError(f"tIoU and vIoU are of the same items, at least one; found {times.shape} and {found.shape}")
    counts = exceeds if strict else reaches
    means = {"m_tIoU": float(times.mean()), "m_vIoU": float(found.mean())}
    return means | {f"vIoU@{r:g}": float(counts(found, r).mean()) for r in thresholds}
