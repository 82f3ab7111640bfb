"""Small pictures of a video for pages to look at, each with its time.

They are decoded in a process of its own, within the limits of `verl_stvg.video.child`: a page is made of whatever
videos there are, and one that hangs, crashes or eats memory costs its own pictures and not the page.
"""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from verl_stvg.video.child import shared_decoder
from verl_stvg.video.decode import VideoError
from verl_stvg.video.plan import SamplingPlan


@dataclass(frozen=True)
class Thumbnail:
    """A picture: its time in the video, seconds, and a JPEG as data URI."""

    time: float
    source: str


def thumbnails(
    path: str | Path, count: int, side: int, budget: int, start: float = 0.0, end: float | None = None
) -> tuple[list[Thumbnail], tuple[int, int]]:
    """Frames in the middle of equal slices of a part of a video, and their (width, height).

    Args:
        path: of the video.
        count: of pictures.
        side: longest, pixels; smaller videos keep their size.
        budget: bytes per picture; quality is lowered to keep it.
        start: of the part, seconds.
        end: of the part, seconds; None or later than the video's end: the video's end.

    Raises:
        VideoError: the video cannot be decoded within the limits, or ends before the part begins.
    """
    info = shared_decoder().probe(path)
    scale = min(1.0, side / max(info.width, info.height))
    width, height = max(1, round(info.width * scale)), max(1, round(info.height * scale))
    length = min(info.duration if end is None else end, info.duration) - start
    if length <= 0:
        raise VideoError(f"{path}: ends at {info.duration:.2f} s, and the part to show begins at {start:.2f} s")
    times = tuple(start + (k + 0.5) * length / count for k in range(count))
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
