"""Scripts of papers that tubes are scored with as well, as functions of an item and an answer.

Each takes an item, what was said of it, first and last frame of the answered time, the answered tube, and the track
files. It returns tIoU and vIoU as the script computes them.
"""

import numpy as np

from verl_stvg.eval.benchmarks.base import Prediction
from verl_stvg.eval.benchmarks.tracked import Library
from verl_stvg.eval.benchmarks.tubes import Arrays, Frames, Tube, true_tube
from verl_stvg.eval.metrics import tube_scripts

_FAR = 1e9  # seconds; beyond it only the number of digits grows


def challenge(item: Tube, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """HC-STVG challenge.

    Args:
        item: with its annotated tube.
        one: what was said of it.
        span: first and last frame of the answered time.
        tube: answered, frames (T,) and boxes (T, 4) xyxy.
        library: of track files.
    """
    return tube_scripts.hcstvg_challenge(tube, span, true_tube(item, one), item.true_frames)


def tubedetr(item: Tube, one: Prediction, span: Frames, tube: Arrays, library: Library, shift: int = 0):
    """TubeDETR.

    Args:
        item: with its annotated tube.
        one: what was said of it.
        span: first and last frame of the answered time.
        tube: answered, frames (T,) and boxes (T, 4) xyxy.
        library: of track files.
        shift: frames that the annotation is moved by, as in `tube_scripts.tubedetr`.
    """
    first, last = item.frames((0.0, item.duration))
    sampled = tube_scripts.sampled_frames(first, last, item.known_clock.fps, times=item.times)
    true_span = item.true_frames[0], item.true_frames[1] + 1
    return tube_scripts.tubedetr(tube, (span[0], span[1] + 1), true_tube(item, one), true_span, sampled, shift)[:2]


def tubedetr_hcstvg(item: Tube, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """TubeDETR on HC-STVG, whose frames it takes for zero-based.

    Args:
        item: with its annotated tube.
        one: what was said of it.
        span: first and last frame of the answered time.
        tube: answered, frames (T,) and boxes (T, 4) xyxy.
        library: of track files.
    """
    return tubedetr(item, one, span, tube, library, shift=1)


def cgstvg(item: Tube, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """CG-STVG.

    Args:
        item: with its annotated tube.
        one: what was said of it.
        span: first and last frame of the answered time.
        tube: answered, frames (T,) and boxes (T, 4) xyxy.
        library: of track files.
    """
    return tube_scripts.cgstvg(tube, (span[0], span[1] + 1), true_tube(item, one), item.true_frames)[:2]


def stvg_r1(item: Tube, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """STVG-R1 on HC-STVG, whose frames it takes for zero-based; 0 for answers without an ID.

    Args:
        item: with its annotated tube.
        one: what was said of it; its ID counts.
        span: first and last frame of the answered time.
        tube: answered, frames (T,) and boxes (T, 4) xyxy.
        library: of track files, which the boxes of the ID are taken from.
    """
    if not one.object_ids or one.interval is None:
        return 0.0, 0.0
    objects, true = library.objects(item), item.intervals[0]
    start, end = (min(time, _FAR) for time in one.interval)
    around = objects.around(one.object_ids[0])
    clock = item.known_clock
    place = clock.place
    low = max(int(place(max(start, true[0]))), 0)
    high = min(int(place(min(end, true[1]))), objects.tracks.num_frames - 1)
    seen = {
        frame: {k: (box[0], box[1], box[2] - 1, box[3] - 1) for k, box in around.boxes(frame).items()}
        for frame in range(low, high + 1)
    }
    return tube_scripts.stvg_r1(one.object_ids[0], (start, end), true_tube(item, one), true, seen, clock.fps, 1, place)


def st_align(item: Tube, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """ST-Align's STVG task: 100 frames of the clip; seconds become parts of the clip.

    Args:
        item: with its annotated tube, and with first and last frame of the clip in its annotation.
        one: what was said of it.
        span: first and last frame of the answered time.
        tube: answered, frames (T,) and boxes (T, 4) xyxy.
        library: of track files.
    """
    clip = item.extra["split_first"], item.extra["split_last"]
    sampled = tube_scripts.st_align_frames(*clip)
    answered, annotated = _limited(tube, sampled), _limited(true_tube(item, one), sampled)
    times = one.interval or [item.known_clock.seconds(k) - item.shown for k in (span[0], span[1] + 1)]
    parts = [item.span(time) / (clip[1] - clip[0]) for time in times]
    return tube_scripts.st_align(answered, parts, annotated, item.true_frames, clip)[:2]


def _limited(tube: Arrays, frames: np.ndarray) -> Arrays:
    kept = np.isin(tube[0], frames)
    return tube[0][kept], tube[1][kept]
