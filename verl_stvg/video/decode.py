"""Reading mp4 files: what a file holds, and the frames of a plan, by presentation time."""

from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from verl_stvg.video.plan import SamplingPlan


class VideoError(ValueError):
    """A video that cannot be used; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class VideoInfo:
    """What the container says: frames, frames per second, size in pixels."""

    num_frames: int
    fps: float
    width: int
    height: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_frames / self.fps


def _open(path: Path):
    if not path.is_file():
        raise VideoError(f"{path}: no such video; check the row's path and the folder the rows are relative to")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video ({error}); download or encode it again") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: holds no video stream; download or encode it again")
    return container


def probe(path: str | Path) -> VideoInfo:
    """Frames, rate and size of a video from its header, and proof that its first frame decodes.

    Where the header does not say how many frames there are (Matroska), the packets are counted, not decoded.

    Raises:
        VideoError: missing, unreadable or empty file.
    """
    path = Path(path)
    with _open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 0)
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        if not fps or not count:
            raise VideoError(f"{path}: the header gives {count} frames at {fps} fps; encode the video again")
        info = VideoInfo(count, fps, stream.codec_context.width, stream.codec_context.height)
    with _open(path) as container:
        try:
            first = next(container.decode(video=0), None)
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: the first frame does not decode ({error}); encode the video again") from error
    if first is None:
        raise VideoError(f"{path}: no frame decodes; encode the video again")
    return info


def read_frames(path: str | Path, plan: SamplingPlan) -> np.ndarray:
    """Decode the frames of a plan: at each grid time the frame on show (the last one presented at or before it).

    Times count from the first frame. Half a frame of slack absorbs rounding in time stamps.

    Returns:
        uint8 array (T, H, W, 3), RGB.

    Raises:
        VideoError: missing or unreadable file, or one that ends before the plan's last grid time.
    """
    path = Path(path)
    frames = np.empty((plan.num_frames, plan.height, plan.width, 3), dtype=np.uint8)
    filled, shown, last = 0, None, None
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        slack = 0.5 / float(stream.average_rate or 25)
        origin = None
        try:
            for frame in container.decode(stream):
                if origin is None:
                    origin = frame.time
                last = frame.time - origin
                while filled < plan.num_frames and plan.timestamps[filled] < last - slack:
                    frames[filled] = _resize(shown, plan)
                    filled += 1
                if filled == plan.num_frames:
                    break
                shown = frame
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: decoding fails after {last} s ({error}); encode the video again") from error
    # the last frame stays on show for one frame interval
    while filled < plan.num_frames and shown is not None and plan.timestamps[filled] <= last + 3 * slack:
        frames[filled] = _resize(shown, plan)
        filled += 1
    if filled < plan.num_frames:
        raise VideoError(
            f"{path}: decodes up to {last} s only, and the row needs {plan.timestamps[-1]} s; "
            "the file is truncated, download or encode it again"
        )
    return frames


def _resize(frame: av.VideoFrame, plan: SamplingPlan) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    if image.shape[:2] == (plan.height, plan.width):
        return image
    shrinking = image.shape[0] >= plan.height and image.shape[1] >= plan.width
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return cv2.resize(image, (plan.width, plan.height), interpolation=interpolation)
