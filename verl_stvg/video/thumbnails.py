"""Small pictures of a video for pages to look at, each with its time.

They are decoded in a process of its own, within the limits of `verl_stvg.video.child`: a page is made of whatever
videos there are, and one that hangs, crashes or eats memory costs its own pictures and not the page.
"""

import base64
import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from verl_stvg.video.child import shared_decoder
from verl_stvg.video.decode import VideoError
from verl_stvg.video.plan import SamplingPlan

_MOMENTS = 2000
"""Places that pictures of a long video are chosen from."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture: its time in the video, seconds, and a JPEG as data URI."""

    time: float
    source: str


def choose(
    times: Sequence[float],
    count: int,
    events: Sequence[tuple[float, float]] = (),
    claims: Sequence[tuple[float, float]] = (),
) -> list[int]:
    """Which of some frames to show, as places in ``times``, rising.

    Half of them lie inside the events, one before the first and one after the last, one in each claim that none of
    these shows, and the others where the time without one is longest. Without an event they are evenly spread.

    Args:
        times: of the frames, seconds, rising.
        count: of frames, at most.
        events: start and end of what happens, seconds.
        claims: the same of what is said to happen; numbers may be anything.
    """
    if len(times) <= count:
        return list(range(len(times)))
    if not events:
        return _spread(range(len(times)), count)
    inside = [k for k, time in enumerate(times) if any(start <= time < end for start, end in events)]
    chosen = set(_spread(inside, min(len(inside), (count + 1) // 2)))
    before = bisect.bisect_left(times, min(start for start, _ in events)) - 1
    after = bisect.bisect_left(times, max(end for _, end in events))
    for place in (before, after):
        if 0 <= place < len(times) and len(chosen) < count:
            chosen.add(place)
    for start, end in claims:
        named = range(bisect.bisect_left(times, start), bisect.bisect_left(times, end))
        if named and chosen.isdisjoint(named) and len(chosen) < count:
            chosen.add(named[len(named) // 2])
    while len(chosen) < count:
        rest = (k for k in range(len(times)) if k not in chosen)
        chosen.add(max(rest, key=lambda k: min((abs(times[k] - times[one]) for one in chosen), default=0.0)))
    return sorted(chosen)


def _spread(places: Sequence[int], count: int) -> list[int]:
    """Places in the middle of equal parts."""
    return [places[(2 * k + 1) * len(places) // (2 * count)] for k in range(count)]


def thumbnails(
    path: str | Path,
    count: int,
    side: int,
    budget: int,
    start: float = 0.0,
    end: float | None = None,
    events: Sequence[tuple[float, float]] = (),
) -> tuple[list[Thumbnail], tuple[int, int]]:
    """Frames of a part of a video, inside its events and around them (`choose`), and their (width, height).

    Without an event they lie in the middle of equal slices of the part.

    Args:
        path: of the video.
        count: of pictures.
        side: longest, pixels; smaller videos keep their size.
        budget: bytes per picture; quality is lowered to keep it.
        start: of the part, seconds.
        end: of the part, seconds; None or later than the video's end: the video's end.
        events: start and end of each, seconds of the video.

    Raises:
        VideoError: the video cannot be decoded within the limits, or ends before the part begins.
    """
    info = shared_decoder().probe(path)
    scale = min(1.0, side / max(info.width, info.height))
    width, height = max(1, round(info.width * scale)), max(1, round(info.height * scale))
    length = min(info.duration if end is None else end, info.duration) - start
    if length <= 0:
        raise VideoError(f"{path}: ends at {info.duration:.2f} s, and the part to show begins at {start:.2f} s")
    slices = min(max(round(2 * length), 2 * count), _MOMENTS) if events else count
    moments = {start + (k + 0.5) * length / slices for k in range(slices)}
    middles = {(since + until) / 2 for since, until in events}  # an event may be shorter than a slice
    moments = sorted(moments | {time for time in middles if start <= time < start + length})
    times = tuple(moments[k] for k in choose(moments, count, events))
    plan = SamplingPlan(tuple(info.clock.on_show(times).tolist()), times, height, width, count / length)
    frames = shared_decoder().read(path, plan)
    return [Thumbnail(time, jpeg(image, budget)) for time, image in zip(times, frames, strict=True)], (width, height)


def jpeg(image: np.ndarray, budget: int) -> str:
    """Data URI of an RGB image, in the best quality that fits into `budget` bytes, or in the least."""
    for quality in (88, 80, 70, 55, 40, 25):
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= budget:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
