"""Parts of videos as files of their own: lmms-eval hands a path to a model, and the model shows all of it.

VidSTG asks about parts of VidOR's videos, and times count from the start of a part. Frames are encoded anew, because a
copied stream can be cut at keyframes only.
"""

import os
from fractions import Fraction
from pathlib import Path

import av

from data_builders.objects.frames import VideoFrames

_BLOCK = 32  # frames that are held at once


def cut(video: Path, start: float, end: float, out: Path) -> Path:
    """Write a part of a video as H.264 of native size and rate; a file that is newer than the video is kept.

    Several processes may write one part at a time; each file is there whole or not at all.

    Args:
        video: the file.
        start: seconds; the first frame is the nearest one.
        end: seconds; the nearest frame is the first that is left out.
        out: mp4 file.

    Returns:
        `out`.

    Raises:
        VideoError: a missing or damaged file.
        ValueError: the part has no frame.
    """
    if out.is_file() and out.stat().st_mtime_ns >= video.stat().st_mtime_ns:
        return out
    frames = VideoFrames(video)
    first, stop = round(start * frames.fps), min(round(end * frames.fps), frames.num_frames)
    if not 0 <= first < stop:
        raise ValueError(
            f"{video}: has {frames.num_frames / frames.fps:.2f} s, and the row shows {start:.2f} to {end:.2f} s of it; "
            "correct video_start and video_end of the row, or the file"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames.fps).limit_denominator(1001))
        stream.width, stream.height = frames.width, frames.height
        stream.pix_fmt = "yuv444p" if frames.width % 2 or frames.height % 2 else "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        for begin in range(first, stop, _BLOCK):
            for image in frames.read(begin, min(begin + _BLOCK, stop)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    temporary.rename(out)
    return out
