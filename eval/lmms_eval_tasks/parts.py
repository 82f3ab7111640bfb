"""Parts of videos as files of their own: lmms-eval hands a path to a model, and the model shows all of it.

VidSTG asks about parts of VidOR's videos, and times count from the start of a part. Frames are encoded anew, because a
copied stream can be cut at keyframes only.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from verl_stvg.data_builders.objects.frames import VideoFrames
from verl_stvg.data_builders.objects.write import write_video
from verl_stvg.video.clock import ROUNDING, FrameClock

_BLOCK = 32  # frames that are held at once


def cut(video: Path, start: float, end: float, out: Path) -> Path:
    """Write a part of a video as H.264 of native size and times; a file that is newer than the video is kept.

    Several processes may write one part at a time; each file is there whole or not at all.

    Args:
        video: the file.
        start: seconds; at a constant rate the first frame is the nearest one, else the one on show.
        end: seconds; at a constant rate the nearest frame is the first that is left out, else the first that begins
            then or later.
        out: mp4 file.

    Returns:
        `out`.

    Raises:
        VideoError: a missing or damaged file.
        ValueError: the part has no frame.
    """
    changed = max(video.stat().st_mtime_ns, video.stat().st_ctime_ns)
    if out.is_file() and out.stat().st_mtime_ns >= changed:
        return out
    frames = VideoFrames(video)
    clock = frames.clock
    first, stop = _frames_of(clock, start, end)
    if not 0 <= first < stop:
        raise ValueError(
            f"{video}: has {clock.duration:.2f} s, and the row shows {start:.2f} to {end:.2f} s of it; "
            "correct video_start and video_end of the row, or the file"
        )
    times = last = None
    if clock.times is not None:
        times = tuple(max(0.0, time - start) for time in clock.times[first:stop])
        last = min(end, clock.seconds(stop)) - start
    write_video(out, _read(frames, first, stop), (frames.width, frames.height), frames.fps, times, last)
    return out


def _frames_of(clock: FrameClock, start: float, end: float) -> tuple[int, int]:
    """First frame of a part, and the one after its last; no frame at all where the part lies outside of the video."""
    if clock.times is None:
        return round(start * clock.fps), min(round(end * clock.fps), clock.num_frames)
    if not 0 <= start < min(end, clock.duration):
        return 0, 0
    return int(clock.on_show(start)), int(np.searchsorted(clock.times, end - ROUNDING))


def _read(frames: VideoFrames, first: int, stop: int) -> Iterator[np.ndarray]:
    for begin in range(first, stop, _BLOCK):
        yield from frames.read(begin, min(begin + _BLOCK, stop))
